"""Tenants, databases and collections against a real Postgres."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from shoal_core.contracts import Catalog, Collection, Lease, NewCollection, PublishRequest, Tenant
from shoal_core.errors import AlreadyExists, InvalidArgument, NotFound, ShoalError, Unavailable
from shoal_storage.postgres import Pool
from shoal_sysdb.catalog import CatalogService

pytestmark = pytest.mark.integration

TENANT, DATABASE = "default_tenant", "default_database"


def _new(name: str, **changes: object) -> NewCollection:
    return replace(NewCollection(TENANT, DATABASE, name), **changes)  # type: ignore[arg-type]


async def _create(catalog: Catalog, name: str, **changes: object) -> Collection:
    collection, created = await catalog.create_collection(_new(name, **changes), get_or_create=False)
    assert created
    return collection


async def test_tenants(catalog: CatalogService) -> None:
    await catalog.create_tenant("acme")
    assert await catalog.get_tenant("acme") == Tenant("acme")
    with pytest.raises(AlreadyExists, match="acme"):
        await catalog.create_tenant("acme")
    with pytest.raises(NotFound):
        await catalog.get_tenant("nobody")


async def test_databases(catalog: CatalogService) -> None:
    with pytest.raises(NotFound, match="nobody"):
        await catalog.create_database("nobody", "d")
    await catalog.create_tenant("acme")
    made = [await catalog.create_database("acme", name) for name in ("b", "a", "c")]
    with pytest.raises(AlreadyExists):
        await catalog.create_database("acme", "a")
    assert await catalog.get_database("acme", "b") == made[0]
    names = [database.name for database in await catalog.list_databases("acme", limit=2, offset=1)]
    assert names == ["b", "c"]
    with pytest.raises(NotFound):
        await catalog.get_database(TENANT, "a")


async def test_create_and_get(catalog: CatalogService, pool: Pool) -> None:
    metadata = {"z": 1, "a": 1e22, "b": -0.0, "c": "ü\U0001f41f", "d": None, "e": [True]}
    configuration = {"embedding": {"name": "x"}, "a": 2**60}
    made = await _create(
        catalog, "c", metadata=metadata, configuration=configuration, space="ip", shards=3, dimension=7
    )
    assert (made.epoch, made.space, made.shards, made.dimension) == (1, "ip", 3, 7)
    found = await catalog.get_collection(TENANT, DATABASE, "c")
    assert found == made == await catalog.get_collection_by_id(made.id)
    assert repr(found.metadata) == repr(metadata)
    assert repr(found.configuration) == repr(configuration)
    assert await pool.fetchval("SELECT head_offset FROM log_head WHERE collection_id = $1", made.id) == 0
    with pytest.raises(AlreadyExists, match="'c'"):
        await catalog.create_collection(_new("c"), get_or_create=False)
    with pytest.raises(NotFound, match="database"):
        await catalog.create_collection(_new("c", database="none"), get_or_create=True)
    with pytest.raises(NotFound):
        await catalog.get_collection(TENANT, "none", "c")


async def test_get_or_create_keeps_what_exists(catalog: CatalogService) -> None:
    made = await _create(catalog, "c", metadata={"a": 1})
    assert await catalog.create_collection(_new("c", metadata={"b": 2}), get_or_create=True) == (made, False)


async def test_racing_creates_have_one_winner(catalog: CatalogService) -> None:
    results = await asyncio.gather(
        *(catalog.create_collection(_new("c"), get_or_create=False) for _ in range(50)), return_exceptions=True
    )
    losers = [result for result in results if isinstance(result, BaseException)]
    assert len(losers) == 49
    assert {type(loser) for loser in losers} == {AlreadyExists}


async def test_racing_get_or_creates_agree(catalog: CatalogService, pool: Pool) -> None:
    results = await asyncio.gather(*(catalog.create_collection(_new("c"), get_or_create=True) for _ in range(50)))
    assert len({collection.id for collection, _ in results}) == 1
    assert sum(created for _, created in results) == 1
    assert await pool.fetchval("SELECT count(*) FROM log_head") == 1


async def test_get_or_create_against_deletes(catalog: CatalogService) -> None:
    async def cycle() -> None:
        for _ in range(10):
            collection, _ = await catalog.create_collection(_new("c"), get_or_create=True)
            try:
                await catalog.delete_collection(collection.id)
            except NotFound:
                continue

    await asyncio.gather(*(cycle() for _ in range(6)))
    assert await catalog.count_collections(TENANT, DATABASE) == 0


async def test_modify_replaces_what_is_given(catalog: CatalogService) -> None:
    made = await _create(catalog, "c", metadata={"a": 1}, configuration={"b": 2})
    renamed = await catalog.modify_collection(made.id, name="d")
    assert renamed == replace(made, name="d", epoch=2)
    emptied = await catalog.modify_collection(made.id, metadata={})
    assert emptied == replace(made, name="d", metadata={}, epoch=3)
    configured = await catalog.modify_collection(made.id, configuration={"x": 1}, name="d")
    assert configured == replace(emptied, configuration={"x": 1}, epoch=4)
    with pytest.raises(NotFound):
        await catalog.get_collection(TENANT, DATABASE, "c")


async def test_rename_to_a_taken_name(catalog: CatalogService) -> None:
    first, second = await _create(catalog, "a"), await _create(catalog, "b")
    with pytest.raises(AlreadyExists, match="'b'"):
        await catalog.modify_collection(first.id, name="b")
    assert (await catalog.get_collection_by_id(first.id)).epoch == 1
    await catalog.delete_collection(second.id)
    assert (await catalog.modify_collection(first.id, name="b")).name == "b"


async def test_racing_renames_have_one_winner(catalog: CatalogService) -> None:
    made = [await _create(catalog, f"c{i}") for i in range(12)]
    results = await asyncio.gather(
        *(catalog.modify_collection(collection.id, name="x") for collection in made),
        catalog.create_collection(_new("x"), get_or_create=False),
        return_exceptions=True,
    )
    losers = [result for result in results if isinstance(result, BaseException)]
    assert len(losers) == 12
    assert {type(loser) for loser in losers} == {AlreadyExists}


async def test_swapping_names_does_not_deadlock(catalog: CatalogService) -> None:
    first, second = await _create(catalog, "a"), await _create(catalog, "b")
    for _ in range(10):
        results = await asyncio.gather(
            catalog.modify_collection(first.id, name="b"),
            catalog.modify_collection(second.id, name="a"),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [AlreadyExists, AlreadyExists]


async def test_every_modification_grows_the_epoch(catalog: CatalogService) -> None:
    made = await _create(catalog, "c")
    results = await asyncio.gather(*(catalog.modify_collection(made.id, metadata={"i": i}) for i in range(20)))
    assert sorted(collection.epoch for collection in results) == list(range(2, 22))
    final = await catalog.get_collection_by_id(made.id)
    assert next(c for c in results if c.epoch == 21) == final


async def test_a_deleted_name_is_free_at_once(catalog: CatalogService, pool: Pool) -> None:
    first = await _create(catalog, "c")
    await catalog.delete_collection(first.id)
    second = await _create(catalog, "c")
    assert (second.id, second.incarnation) != (first.id, first.incarnation)
    assert await pool.fetchval("SELECT epoch FROM collection WHERE id = $1", first.id) == 2
    calls = (catalog.delete_collection, catalog.get_collection_by_id, catalog.begin_upload, catalog.get_version)
    for call in calls:
        with pytest.raises(NotFound):
            await call(first.id)
    with pytest.raises(NotFound):
        await catalog.modify_collection(first.id, name="y")


async def test_racing_deletes_have_one_winner(catalog: CatalogService) -> None:
    made = await _create(catalog, "c")
    results = await asyncio.gather(*(catalog.delete_collection(made.id) for _ in range(10)), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["NoneType"] + ["NotFound"] * 9


async def test_delete_database(catalog: CatalogService, pool: Pool) -> None:
    before = await catalog.create_database(TENANT, "d")
    made = [await _create(catalog, f"c{i}", database="d") for i in range(5)]
    kept = await _create(catalog, "kept")
    await catalog.delete_database(TENANT, "d")
    for call in (catalog.get_database, catalog.delete_database):
        with pytest.raises(NotFound):
            await call(TENANT, "d")
    for collection in made:
        with pytest.raises(NotFound):
            await catalog.get_collection_by_id(collection.id)
    again = await catalog.create_database(TENANT, "d")
    assert again.id != before.id
    assert await catalog.list_collections(TENANT, "d", limit=10, offset=0) == []
    assert (await _create(catalog, "c0", database="d")).id != made[0].id
    assert await catalog.get_collection(TENANT, DATABASE, "kept") == kept


async def test_delete_database_against_creates(catalog: CatalogService, pool: Pool) -> None:
    """No collection stays alive in a dead database."""
    await catalog.create_database(TENANT, "d")
    creates = [catalog.create_collection(_new(f"c{i}", database="d"), get_or_create=False) for i in range(20)]
    results = await asyncio.gather(
        *creates[:10], catalog.delete_database(TENANT, "d"), *creates[10:], return_exceptions=True
    )
    assert {type(result) for result in results if isinstance(result, BaseException)} <= {NotFound}
    assert await pool.fetchval("SELECT count(*) FROM collection WHERE deleted_at IS NULL") == 0


async def test_pages_are_stable_under_inserts(catalog: CatalogService) -> None:
    names = [f"c{(i * 7) % 10}" for i in range(10)]
    for name in names:
        await _create(catalog, name)
    seen: list[str] = []
    for page in range(5):
        seen += [c.name for c in await catalog.list_collections(TENANT, DATABASE, limit=2, offset=2 * page)]
        await _create(catalog, f"a{page}")
    assert seen == names
    assert await catalog.count_collections(TENANT, DATABASE) == 15
    assert await catalog.list_collections(TENANT, DATABASE, limit=0, offset=0) == []
    assert await catalog.count_collections(TENANT, "none") == 0


@pytest.mark.parametrize("bad", ["", "x", "c" * 36, "{12345678-1234-5678-1234-567812345678}", "\0", "1" * 32])
async def test_malformed_ids_are_not_found(catalog: CatalogService, bad: str) -> None:
    lease = Lease(bad, "flush", "me", 1)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: catalog.get_collection_by_id(bad),
        lambda: catalog.modify_collection(bad, name="x"),
        lambda: catalog.delete_collection(bad),
        lambda: catalog.claim(bad, "flush", "me", ttl_ms=1000),
        lambda: catalog.renew(lease, ttl_ms=1000),
        lambda: catalog.release(lease),
        lambda: catalog.begin_upload(bad),
        lambda: catalog.publish(PublishRequest(lease, 0, "m", 0, str(uuid.uuid4()))),
        lambda: catalog.get_version(bad),
    ]
    for call in calls:
        with pytest.raises(NotFound):
            await call()


@pytest.mark.parametrize(
    "changes",
    [
        {"shards": 0},
        {"shards": 2**40},
        {"space": "hamming"},
        {"dimension": 0},
        {"metadata": {"x": float("nan")}},
        {"configuration": {"x": object()}},
        {"name": "a\0b"},
        {"name": "\ud800"},
        {"name": "".join(uuid.uuid4().hex for _ in range(500))},
    ],
    ids=("no-shards", "shards", "space", "dimension", "nan", "object", "zero-byte", "surrogate", "too-long-to-index"),
)
async def test_values_that_cannot_be_stored(catalog: CatalogService, changes: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        await _create(catalog, **{"name": "c", **changes})  # type: ignore[arg-type]
    await _create(catalog, "still works")


async def test_absurd_pages_are_refused(catalog: CatalogService) -> None:
    for limit, offset in ((-1, 0), (1, -1), (2**70, 0)):
        with pytest.raises(InvalidArgument):
            await catalog.list_collections(TENANT, DATABASE, limit=limit, offset=offset)


async def test_a_row_locked_for_too_long_is_unavailable(catalog: CatalogService, pool: Pool) -> None:
    made = await _create(catalog, "c")
    async with pool.acquire() as other, other.transaction():
        await other.execute("SELECT FROM collection WHERE id = $1 FOR UPDATE", made.id)
        with pytest.raises(ShoalError) as caught:
            await asyncio.wait_for(catalog.delete_collection(made.id), 10)
    assert isinstance(caught.value, Unavailable)
    await catalog.delete_collection(made.id)
