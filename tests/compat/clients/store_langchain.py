"""LangChain's Chroma store, as its documentation shows it."""

from __future__ import annotations

from typing import Any

import pytest
from chromadb.errors import NotFoundError
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from letters import letters_of

from conftest import settings, sync_client

TEXTS = ["banana", "bandana", "cherry", "fig", "date"]
METADATAS: list[dict[str, Any]] = [{"page": page, "kind": "fruit" if page != 1 else "cloth"} for page in range(5)]
IDS = ["1", "2", "3", "4", "5"]


class LetterEmbeddings(Embeddings):
    """As LangChain has them."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [letters_of(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return letters_of(text)


@pytest.fixture
def store(database: str) -> Chroma:
    store = Chroma("fruits", LetterEmbeddings(), client=sync_client(database))
    assert store.add_texts(TEXTS, METADATAS, ids=IDS) == IDS
    return store


def contents(documents: list[Document]) -> list[str]:
    return [document.page_content for document in documents]


def test_similarity_search(store: Chroma) -> None:
    found = store.similarity_search("banana", k=2)
    assert contents(found) == ["banana", "bandana"]
    assert (found[0].id, found[0].metadata) == ("1", METADATAS[0])
    assert contents(store.similarity_search("banana", k=1, filter={"kind": "cloth"})) == ["bandana"]
    both: dict[str, Any] = {"$and": [{"kind": "fruit"}, {"page": {"$gt": 2}}]}
    assert contents(store.similarity_search("date", k=5, filter=both)) == ["date", "fig"]
    assert contents(store.similarity_search("banana", k=5, where_document={"$contains": "dana"})) == ["bandana"]


def test_scores(store: Chroma) -> None:
    (first, near), (second, far) = store.similarity_search_with_score("banana", k=2)
    assert (first.page_content, second.page_content) == ("banana", "bandana")
    assert (near, far) == (0.0, 1.0)
    relevant = store.similarity_search_with_relevance_scores("banana", k=1)
    assert relevant[0][1] == pytest.approx(1.0)
    found = store.similarity_search_by_vector_with_relevance_scores(letters_of("fig"), k=1)
    assert (found[0][0].page_content, found[0][1]) == ("fig", 0.0)
    with_vectors = store.similarity_search_with_vectors("fig", k=1)
    assert list(with_vectors[0][1]) == letters_of("fig")


def test_by_vector_and_mmr(store: Chroma) -> None:
    assert contents(store.similarity_search_by_vector(letters_of("cherry"), k=1)) == ["cherry"]
    diverse = store.max_marginal_relevance_search("banana", k=2, fetch_k=5, lambda_mult=0.0)
    assert contents(diverse)[0] == "banana"
    assert contents(diverse)[1] != "bandana"
    assert len(store.max_marginal_relevance_search_by_vector(letters_of("fig"), k=3, filter={"kind": "fruit"})) == 3


def test_get_update_delete(store: Chroma) -> None:
    assert contents(store.get_by_ids(["3", "1"])) == ["banana", "cherry"]
    got = store.get(where={"page": {"$lt": 3}}, limit=2, include=["documents", "metadatas"])
    assert (got["ids"], got["documents"]) == (["1", "2"], TEXTS[:2])
    store.update_document("4", Document("figs figs", metadata={"page": 30}))
    assert contents(store.similarity_search("figs figs", k=1)) == ["figs figs"]
    store.update_documents(
        ["1", "2"], [Document("apple", metadata={"page": 8}), Document("pear", metadata={"page": 9})]
    )
    assert contents(store.get_by_ids(["1", "2"])) == ["apple", "pear"]
    store.add_texts(["grape"], ids=["1"])  # the store upserts
    assert contents(store.get_by_ids(["1"])) == ["grape"]
    store.delete(["1", "2"])
    assert store.get()["ids"] == ["3", "4", "5"]


def test_retriever(store: Chroma) -> None:
    retriever = store.as_retriever(search_type="mmr", search_kwargs={"k": 1, "fetch_k": 3})
    assert contents(retriever.invoke("cherry")) == ["cherry"]


def test_from_texts_and_from_documents(database: str) -> None:
    client = sync_client(database)
    space = {"hnsw": {"space": "cosine"}}
    made = Chroma.from_texts(
        TEXTS, LetterEmbeddings(), METADATAS, IDS, "texts", client=client, collection_configuration=space
    )
    assert made.similarity_search_with_score("fig", k=1)[0][1] == pytest.approx(0.0, abs=1e-5)
    documents = [Document(text, metadata=metadata) for text, metadata in zip(TEXTS, METADATAS, strict=True)]
    made = Chroma.from_documents(documents, LetterEmbeddings(), collection_name="documents", client=client)
    assert contents(made.similarity_search("date", k=1)) == ["date"]
    opened = Chroma("texts", LetterEmbeddings(), client=client, create_collection_if_not_exists=False)
    assert sorted(opened.get()["ids"]) == IDS


def test_made_from_host_and_port(database: str) -> None:
    from conftest import TENANT, host_and_port

    host, port = host_and_port()
    store = Chroma(
        "fruits",
        LetterEmbeddings(),
        host=host,
        port=port,
        tenant=TENANT,
        database=database,
        client_settings=None if settings().chroma_client_auth_provider is None else settings(),
    )
    store.add_documents([Document("banana"), Document("fig")], ids=["a", "b"])
    assert contents(store.similarity_search("fig", k=1)) == ["fig"]


def test_reset_and_delete_collection(store: Chroma, database: str) -> None:
    store.reset_collection()
    assert store.get()["ids"] == []
    store.delete_collection()
    with pytest.raises(NotFoundError):
        sync_client(database).get_collection("fruits")


async def test_async_methods(store: Chroma) -> None:
    await store.aadd_texts(["elderberry"], [{"page": 6}], ids=["6"])
    assert contents(await store.asimilarity_search("elderberry", k=1)) == ["elderberry"]
    assert contents(await store.aget_by_ids(["6"])) == ["elderberry"]
