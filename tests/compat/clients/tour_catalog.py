"""Tenants, databases, collections: what there is, by name."""

from __future__ import annotations

import os
import uuid
from typing import Any

import pytest
from chromadb.errors import ChromaError, InvalidArgumentError, NotFoundError
from letters import Letters

from conftest import TENANT, Chroma, done


async def test_the_server_answers_for_itself(chroma: Chroma) -> None:
    assert await done(chroma.client.heartbeat()) > 1_700_000_000 * 10**9
    assert await done(chroma.client.get_version()) == "1.0.0"
    assert await done(chroma.client.get_max_batch_size()) > 0
    identity = await done(chroma.client.get_user_identity())
    assert identity.tenant == (TENANT if os.environ.get("SHOAL_AUTH", "none") == "none" else "*")


async def test_tenants_and_databases(chroma: Chroma) -> None:
    tenant = f"tenant-{uuid.uuid4().hex}"
    await done(chroma.admin.create_tenant(tenant))
    assert (await done(chroma.admin.get_tenant(tenant)))["name"] == tenant
    with pytest.raises(ChromaError, match="already exists"):
        await done(chroma.admin.create_tenant(tenant))
    for name in ("one", "two", "three"):
        await done(chroma.admin.create_database(name, tenant))
    with pytest.raises(ChromaError, match="already exists"):
        await done(chroma.admin.create_database("one", tenant))
    assert (await done(chroma.admin.get_database("one", tenant)))["tenant"] == tenant
    names = [database["name"] for database in await done(chroma.admin.list_databases(tenant=tenant))]
    assert sorted(names) == ["one", "three", "two"]
    page = await done(chroma.admin.list_databases(limit=2, offset=1, tenant=tenant))
    assert [database["name"] for database in page] == names[1:]
    await done(chroma.admin.delete_database("two", tenant))
    with pytest.raises(NotFoundError):
        await done(chroma.admin.get_database("two", tenant))
    with pytest.raises(NotFoundError):
        await done(chroma.admin.get_tenant("no-such-tenant"))


async def test_databases_keep_apart(chroma: Chroma) -> None:
    tenant = f"tenant-{uuid.uuid4().hex}"
    await done(chroma.admin.create_tenant(tenant))
    await done(chroma.admin.create_database("other", tenant))
    mine = await chroma.create("same-name")
    client = await chroma.connect("other", tenant)
    other = await done(client.create_collection("same-name", embedding_function=None))
    await done(mine.add(ids=["a"], embeddings=[[1.0, 2.0]]))
    assert await done(other.count()) == 0
    assert await done(client.count_collections()) == 1
    with pytest.raises(NotFoundError, match="missing"):
        await chroma.connect("missing", tenant)
    await done(chroma.admin.delete_database("other", tenant))


async def test_create_get_or_create_and_get(chroma: Chroma) -> None:
    made = await chroma.create(metadata={"topic": "fish", "year": 2024, "ratio": 0.5, "kept": True})
    assert made.metadata == {"topic": "fish", "year": 2024, "ratio": 0.5, "kept": True}
    got = await done(chroma.client.get_collection("things", embedding_function=None))
    assert (got.id, got.name, got.metadata) == (made.id, "things", made.metadata)
    assert (got.tenant, got.database) == (TENANT, chroma.database)
    again = await done(
        chroma.client.get_or_create_collection("things", metadata={"topic": "birds"}, embedding_function=None)
    )
    assert (again.id, again.metadata) == (made.id, made.metadata)
    new = await done(chroma.client.get_or_create_collection("birds", metadata={"n": 1}, embedding_function=None))
    assert new.metadata == {"n": 1}


async def test_list_and_count_collections(chroma: Chroma) -> None:
    assert await done(chroma.client.list_collections()) == []
    for number in range(5):
        await chroma.create(f"collection-{number}")
    assert await done(chroma.client.count_collections()) == 5
    every = [collection.name for collection in await done(chroma.client.list_collections())]
    assert sorted(every) == [f"collection-{number}" for number in range(5)]
    page = await done(chroma.client.list_collections(limit=2, offset=3))
    assert [collection.name for collection in page] == every[3:]
    assert await done(chroma.client.list_collections(limit=2, offset=9)) == []


async def test_modify(chroma: Chroma) -> None:
    made = await chroma.create(metadata={"a": 1, "b": 2})
    await done(made.modify(name="renamed", metadata={"c": 3}))
    assert made.name == "renamed"
    got = await done(chroma.client.get_collection("renamed", embedding_function=None))
    assert (got.id, got.metadata) == (made.id, {"c": 3})
    with pytest.raises(NotFoundError):
        await done(chroma.client.get_collection("things"))
    await done(got.modify(configuration={"hnsw": {"ef_search": 77}}))
    again = await done(chroma.client.get_collection("renamed", embedding_function=None))
    assert again.configuration["hnsw"]["ef_search"] == 77
    with pytest.raises(ValueError, match="distance function"):
        await done(got.modify(metadata={"hnsw:space": "cosine"}))


@pytest.mark.parametrize("space", ["l2", "cosine", "ip"])
async def test_configuration(chroma: Chroma, space: str) -> None:
    hnsw = {"space": space, "ef_construction": 120, "ef_search": 110, "max_neighbors": 24}
    made = await chroma.create(configuration={"hnsw": hnsw})
    got = await done(chroma.client.get_collection("things", embedding_function=None))
    assert hnsw.items() <= made.configuration["hnsw"].items()
    assert hnsw.items() <= got.configuration["hnsw"].items()
    await done(got.add(ids=["a", "b"], embeddings=[[3.0, 4.0], [4.0, 3.0]]))
    found = await done(got.query(query_embeddings=[[3.0, 4.0]], n_results=2))
    far = {"l2": 2.0, "cosine": 1 - 24 / 25, "ip": 1 - 24.0}[space]
    near = {"l2": 0.0, "cosine": 0.0, "ip": 1 - 25.0}[space]
    assert found["ids"] == [["a", "b"]]
    assert found["distances"] == [pytest.approx([near, far], abs=1e-5)]


async def test_legacy_metadata_choose_the_space(chroma: Chroma) -> None:
    made = await chroma.create(metadata={"hnsw:space": "cosine", "hnsw:M": 20})
    assert made.configuration["hnsw"]["space"] == "cosine"
    assert made.configuration["hnsw"]["max_neighbors"] == 20
    assert made.metadata == {"hnsw:space": "cosine", "hnsw:M": 20}


async def test_a_schema(chroma: Chroma) -> None:
    from chromadb import Schema
    from chromadb.api.types import StringInvertedIndexConfig, VectorIndexConfig

    schema = Schema()
    schema.create_index(VectorIndexConfig(space="cosine", embedding_function=None))
    schema.delete_index(StringInvertedIndexConfig(), "notes")
    made = await chroma.create(schema=schema)
    got = await done(chroma.client.get_collection("things", embedding_function=None))
    for collection in (made, got):
        assert collection.schema.keys["notes"].string.string_inverted_index.enabled is False
        assert collection.schema.keys["#embedding"].float_list.vector_index.config.space == "cosine"
    await done(got.add(ids=["a"], embeddings=[[1.0, 0.0]], metadatas=[{"notes": "x", "n": 1}]))
    assert (await done(got.get(where={"n": 1})))["ids"] == ["a"]
    with pytest.raises(InvalidArgumentError):
        await done(got.get(where={"notes": "x"}))


async def test_an_embedding_function_comes_back_with_its_collection(chroma: Chroma) -> None:
    made = await done(chroma.client.create_collection("letters", embedding_function=Letters()))
    await done(made.add(ids=["a", "b"], documents=["aaa", "bbb"]))
    got = await done(chroma.client.get_collection("letters"))
    found = await done(got.query(query_texts=["abb"], n_results=2))
    assert (found["ids"], found["distances"]) == ([["b", "a"]], [[2.0, 8.0]])
    stored: Any = got.configuration["embedding_function"]
    assert stored.name() == "letters"
    assert got.configuration_json["embedding_function"]["config"] == {"alphabet": "a-z"}


async def test_delete_collection(chroma: Chroma) -> None:
    made = await chroma.create()
    await done(chroma.client.delete_collection("things"))
    with pytest.raises(NotFoundError, match=r"Collection .* does not exist"):
        await done(chroma.client.get_collection("things"))
    with pytest.raises(NotFoundError):
        await done(made.count())
    with pytest.raises(NotFoundError):
        await done(chroma.client.delete_collection("things"))
    again = await chroma.create()
    assert again.id != made.id
