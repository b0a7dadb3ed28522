"""Errors by their types, and where to look for them."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from chromadb.errors import ChromaError, DuplicateIDError, InvalidArgumentError, NotFoundError

from conftest import Chroma, done


async def test_names_that_are_taken(chroma: Chroma) -> None:
    await chroma.create()
    with pytest.raises(ChromaError, match=r"Collection \[things\] already exists") as caught:
        await chroma.create()
    assert type(caught.value) is ChromaError
    other = await chroma.create("other")
    with pytest.raises(ChromaError, match="already exists"):
        await done(other.modify(name="things"))
    assert (await done(chroma.client.get_collection("other", embedding_function=None))).id == other.id


@pytest.mark.parametrize("name", ["ab", "no spaces", "-start", "end-", "a..b", "192.168.1.1", "x" * 513])
async def test_names_that_are_none(chroma: Chroma, name: str) -> None:
    with pytest.raises((InvalidArgumentError, ValueError), match="name"):
        await chroma.create(name)
    assert await done(chroma.client.count_collections()) == 0


async def test_what_is_not_there(chroma: Chroma) -> None:
    with pytest.raises(NotFoundError, match=r"Collection \[nothing\] does not exist") as caught:
        await done(chroma.client.get_collection("nothing"))
    assert caught.value.trace_id  # type: ignore[attr-defined]
    collection = await chroma.create()
    await done(chroma.client.delete_collection("things"))
    for call in (
        lambda: collection.add(ids=["a"], embeddings=[[1.0]]),
        lambda: collection.get(),
        lambda: collection.query(query_embeddings=[[1.0]]),
        lambda: collection.delete(ids=["a"]),
        lambda: collection.modify(name="other"),
        lambda: collection.count(),
    ):
        with pytest.raises(NotFoundError, match=r"Collection .* does not exist"):
            await done(call())


async def test_dimensions_that_do_not_fit(chroma: Chroma) -> None:
    collection = await chroma.create()
    await done(collection.add(ids=["a"], embeddings=[[1.0, 2.0, 3.0]]))
    expected = "Collection expecting embedding with dimension of 3, got 2"
    with pytest.raises(InvalidArgumentError, match=expected):
        await done(collection.add(ids=["b"], embeddings=[[1.0, 2.0]]))
    with pytest.raises(InvalidArgumentError, match=expected):
        await done(collection.query(query_embeddings=[[1.0, 2.0]]))
    with pytest.raises(InvalidArgumentError, match="dimension"):
        await done(collection.upsert(ids=["b", "c"], embeddings=[[1.0, 2.0], [1.0, 2.0, 3.0]]))
    assert (await done(collection.get()))["ids"] == ["a"]


async def test_what_clients_refuse_themselves(chroma: Chroma) -> None:
    collection = await chroma.create()
    with pytest.raises(DuplicateIDError):
        await done(collection.add(ids=["a", "a"], embeddings=[[1.0], [2.0]]))
    with pytest.raises(ValueError, match="provide"):
        await done(collection.add(ids=["a"]))
    with pytest.raises(ValueError, match="Unequal lengths"):
        await done(collection.add(ids=["a", "b"], embeddings=[[1.0]]))
    with pytest.raises(ValueError, match="metadata"):
        await done(collection.add(ids=["a"], embeddings=[[1.0]], metadatas=[{"k": {"nested": 1}}]))
    with pytest.raises(ValueError, match="where"):
        await done(collection.get(where={"n": {"$bogus": 1}}))
    with pytest.raises(ValueError, match="ids"):
        await done(collection.delete())
    assert await done(collection.count()) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"where_document": {"$regex": "["}}, "Regex syntax errror"),
        ({"where_document": {"$regex": "(?=look)"}}, "Regex syntax errror"),
    ],
)
async def test_what_the_server_refuses_to_get(chroma: Chroma, arguments: Any, message: str) -> None:
    collection = await chroma.create()
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        await done(collection.get(**arguments))
    assert caught.value.trace_id  # type: ignore[attr-defined]


async def test_what_the_server_refuses_to_write(chroma: Chroma) -> None:
    collection = await chroma.create()
    with pytest.raises(InvalidArgumentError, match="Empty ID"):
        await done(collection.add(ids=["a", ""], embeddings=[[1.0], [2.0]]))
    with pytest.raises(InvalidArgumentError):
        await done(collection.add(ids=["a"], embeddings=[[1.0]], metadatas=[{"$k": 1}]))
    assert await done(collection.count()) == 0


async def test_trace_ids_differ(chroma: Chroma) -> None:
    ids = set()
    for _ in range(3):
        with pytest.raises(NotFoundError) as caught:
            await done(chroma.client.get_collection(f"nothing-{uuid4().hex}"))
        ids.add(caught.value.trace_id)  # type: ignore[attr-defined]
    assert len(ids) == 3


async def test_reset_is_refused_unless_allowed(chroma: Chroma) -> None:
    collection = await chroma.create()
    with pytest.raises((ChromaError, ValueError)):
        await done(chroma.client.reset())
    assert await done(collection.count()) == 0
