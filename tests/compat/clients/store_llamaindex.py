"""LlamaIndex's Chroma store below its index, with an embedding that needs no model."""

from __future__ import annotations

from typing import Any

import pytest
from letters import letters_of
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.core.vector_stores.types import VectorStoreQueryMode
from llama_index.vector_stores.chroma import ChromaVectorStore

from conftest import sync_client


class LetterEmbedding(BaseEmbedding):
    """As LlamaIndex has them."""

    def _get_query_embedding(self, query: str) -> list[float]:
        return letters_of(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return letters_of(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return letters_of(text)


DOCUMENTS = [
    Document(text="banana", doc_id="doc-1", metadata={"kind": "fruit", "year": 2020}),
    Document(text="bandana", doc_id="doc-2", metadata={"kind": "cloth", "year": 2021}),
    Document(text="cherry", doc_id="doc-3", metadata={"kind": "fruit", "year": 2022}),
    Document(text="fig", doc_id="doc-4", metadata={"kind": "fruit", "year": 2023}),
]
for document in DOCUMENTS:
    document.excluded_embed_metadata_keys = ["kind", "year"]


@pytest.fixture
def collection(database: str) -> Any:
    return sync_client(database).create_collection("fruits", embedding_function=None)


@pytest.fixture
def store(collection: Any) -> ChromaVectorStore:
    return ChromaVectorStore(chroma_collection=collection)


@pytest.fixture
def index(store: ChromaVectorStore) -> VectorStoreIndex:
    context = StorageContext.from_defaults(vector_store=store)
    return VectorStoreIndex.from_documents(DOCUMENTS, storage_context=context, embed_model=LetterEmbedding())


def texts(nodes: Any) -> list[str]:
    return [node.get_content() for node in nodes]


def test_retrieve(index: VectorStoreIndex, collection: Any) -> None:
    assert collection.count() == 4
    found = index.as_retriever(similarity_top_k=2).retrieve("banana")
    assert texts(found) == ["banana", "bandana"]
    assert found[0].score > found[1].score
    assert (found[0].metadata, found[0].node.ref_doc_id) == ({"kind": "fruit", "year": 2020}, "doc-1")


@pytest.mark.parametrize(
    ("filters", "condition", "expected"),
    [
        ([("kind", "==", "fruit")], "and", ["banana", "cherry", "fig"]),
        ([("kind", "!=", "fruit")], "and", ["bandana"]),
        ([("year", ">", 2021)], "and", ["cherry", "fig"]),
        ([("year", "in", [2020, 2021])], "and", ["banana", "bandana"]),
        ([("year", "nin", [2020, 2021])], "and", ["cherry", "fig"]),
        ([("kind", "==", "fruit"), ("year", ">=", 2022)], "and", ["cherry", "fig"]),
        ([("kind", "==", "cloth"), ("year", "<", 2021)], "or", ["banana", "bandana"]),
    ],
)
def test_metadata_filters(index: VectorStoreIndex, filters: Any, condition: str, expected: list[str]) -> None:
    wanted = MetadataFilters(
        filters=[MetadataFilter(key=key, operator=FilterOperator(by), value=value) for key, by, value in filters],
        condition=FilterCondition(condition),
    )
    assert sorted(texts(index.as_retriever(similarity_top_k=10, filters=wanted).retrieve("banana"))) == expected


def test_delete_by_document(index: VectorStoreIndex, collection: Any) -> None:
    index.delete_ref_doc("doc-1")
    assert texts(index.as_retriever(similarity_top_k=1).retrieve("banana")) == ["bandana"]
    assert collection.count() == 3


def test_insert_and_update(index: VectorStoreIndex) -> None:
    index.insert(Document(text="date", doc_id="doc-5"))
    assert texts(index.as_retriever(similarity_top_k=1).retrieve("date")) == ["date"]
    index.update_ref_doc(Document(text="elderberry", doc_id="doc-5"))
    assert texts(index.as_retriever(similarity_top_k=1).retrieve("elderberry")) == ["elderberry"]


def test_nodes(store: ChromaVectorStore, collection: Any) -> None:
    nodes = [
        TextNode(text=text, id_=f"node-{at}", metadata={"n": at}, embedding=letters_of(text))
        for at, text in enumerate(["banana", "cherry", "fig"])
    ]
    assert store.add(nodes) == ["node-0", "node-1", "node-2"]
    assert texts(store.get_nodes(["node-0", "node-2"])) == ["banana", "fig"]
    where = MetadataFilters(filters=[MetadataFilter(key="n", value=1)])
    assert texts(store.get_nodes(None, filters=where)) == ["cherry"]
    store.delete_nodes(["node-0"])
    store.delete_nodes(["node-1", "node-2"], filters=where)
    assert collection.get()["ids"] == ["node-2"]
    store.clear()
    assert collection.count() == 0


def test_query_modes(index: VectorStoreIndex, store: ChromaVectorStore) -> None:
    query = VectorStoreQuery(query_embedding=letters_of("fig"), similarity_top_k=1)
    result = store.query(query)
    assert texts(result.nodes) == ["fig"]
    query = VectorStoreQuery(
        query_embedding=letters_of("banana"), similarity_top_k=2, mode=VectorStoreQueryMode.MMR, mmr_threshold=0.0
    )
    result = store.query(query)
    assert len(result.nodes or []) == 2


def test_an_index_over_what_is_there(index: VectorStoreIndex, store: ChromaVectorStore) -> None:
    again = VectorStoreIndex.from_vector_store(store, embed_model=LetterEmbedding())
    assert texts(again.as_retriever(similarity_top_k=1).retrieve("cherry")) == ["cherry"]
