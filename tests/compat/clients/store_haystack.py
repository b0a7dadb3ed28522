"""Haystack's Chroma store."""

from __future__ import annotations

from typing import Any

import pytest
from haystack import Document
from haystack.document_stores.types import DuplicatePolicy
from haystack_integrations.components.retrievers.chroma import ChromaEmbeddingRetriever
from haystack_integrations.document_stores.chroma import ChromaDocumentStore
from letters import letters_of

from conftest import host_and_port, settings

TEXTS = ["banana", "bandana", "cherry", "fig"]


@pytest.fixture
def store(database: str) -> Any:
    """The store knows the default database only."""
    host, port = host_and_port()
    given = settings()
    more: dict[str, Any] = {}
    if given.chroma_client_auth_provider:
        more["client_settings"] = {
            "chroma_client_auth_provider": given.chroma_client_auth_provider,
            "chroma_client_auth_credentials": given.chroma_client_auth_credentials,
            "chroma_auth_token_transport_header": given.chroma_auth_token_transport_header,
        }
    store = ChromaDocumentStore(database, host=host, port=port, distance_function="cosine", **more)
    documents = [
        Document(id=f"{at}", content=text, meta={"n": at}, embedding=letters_of(text)) for at, text in enumerate(TEXTS)
    ]
    assert store.write_documents(documents) == 4
    yield store
    store._client.delete_collection(database)  # it has no other way to leave nothing behind


def contents(documents: list[Document]) -> list[str | None]:
    return [document.content for document in documents]


def test_count_filter_delete(store: ChromaDocumentStore) -> None:
    assert store.count_documents() == 4
    found = store.filter_documents({"field": "meta.n", "operator": ">=", "value": 2})
    assert contents(found) == ["cherry", "fig"]
    both = {
        "operator": "OR",
        "conditions": [
            {"field": "meta.n", "operator": "==", "value": 0},
            {"field": "meta.n", "operator": "in", "value": [3, 9]},
        ],
    }
    assert contents(store.filter_documents(both)) == ["banana", "fig"]
    store.delete_documents(["0"])
    assert store.count_documents() == 3
    assert store.delete_by_filter({"field": "meta.n", "operator": "==", "value": 1}) == 1
    changed = Document(id="2", content="cherries", embedding=letters_of("cherries"))
    store.write_documents([changed], policy=DuplicatePolicy.OVERWRITE)
    assert contents(store.filter_documents()) == ["cherries", "fig"]


def test_retrieve(store: ChromaDocumentStore) -> None:
    retriever = ChromaEmbeddingRetriever(store, top_k=2)
    found = retriever.run(letters_of("banana"))["documents"]
    assert contents(found) == ["banana", "bandana"]
    assert found[0].score == pytest.approx(0.0, abs=1e-5)
    where = {"field": "meta.n", "operator": ">", "value": 0}
    assert contents(retriever.run(letters_of("banana"), filters=where, top_k=1)["documents"]) == ["bandana"]
