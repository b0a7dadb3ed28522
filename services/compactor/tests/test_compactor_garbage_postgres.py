"""Garbage collection on a real Postgres: the catalog's SQL, trimming beside it, and a sweeper over catalog, log and objects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from shoal_compactor.compactor import Compactor, CompactorSettings
from shoal_compactor.garbage import GarbageSettings, Sweeper
from shoal_core.contracts import Collection
from shoal_core.errors import NotFound, UploadExpired
from shoal_log import AppendSettings, LogSettings
from shoal_log.trim_store import PartitionStore
from shoal_runtime.system import SystemClock
from shoal_storage.postgres import Pool
from shoal_testing.blocks import DirectBlocks
from shoal_testing.contract_garbage import GarbageContract
from shoal_testing.contract_stores import HOUR_MS, Stores
from shoal_testing.memory_objects import MemoryObjectStore
from shoal_testing.postgres_stores import postgres_stores

pytestmark = pytest.mark.integration

NOTHING_IS_RETAINED = GarbageSettings(version_retention_ms=0, deleted_retention_ms=0, grace_ms=0)


@dataclass
class World:
    """Catalog and log over one database; every payload of the log is an object."""

    stores: Stores
    pool: Pool
    objects: MemoryObjectStore

    def compactor(self) -> Compactor:
        blocks, settings = DirectBlocks(self.objects), CompactorSettings(min_records=1)
        catalog, log = self.stores.catalog, self.stores.log
        return Compactor("c", catalog, log, self.objects, blocks, SystemClock(), lambda _: True, settings)

    def sweeper(self) -> Sweeper:
        return Sweeper(self.stores.catalog, self.objects, SystemClock(), lambda _: True, NOTHING_IS_RETAINED)

    async def keys(self, prefix: str) -> list[str]:
        return [info.key async for info in self.objects.list(prefix)]

    async def rows(self, table: str, collection: Collection) -> int:
        column = "id" if table == "collection" else "collection_id"
        count: int = await self.pool.fetchval(f"SELECT count(*) FROM {table} WHERE {column}::text = $1", collection.id)
        return count


@pytest.fixture
async def world(fresh_database: str) -> AsyncIterator[World]:
    settings = LogSettings(append=AppendSettings(inline_limit_bytes=0))
    async with postgres_stores(fresh_database, settings) as made:
        yield World(made.stores, made.pool, made.objects)


@pytest.fixture
def stores(world: World) -> Stores:
    return world.stores


class TestPostgresGarbage(GarbageContract):
    """All cases of the catalog."""


async def test_a_sweeper_over_a_database(world: World) -> None:
    stores, compactor = world.stores, world.compactor()
    made, gone = await stores.create(), await stores.create("gone")
    for number in range(5):
        for collection in (made, gone):
            await stores.append(collection, [f"id{number}", "same"])
            await compactor.compact(collection.id, merge=True)
    orphan = await stores.catalog.begin_upload(made.id)
    lost = [f"segments/{made.id}/{orphan}/0/manifest", f"log/{made.id}/{orphan}"]
    for key in lost:
        await world.objects.put(key, b"x")
    await stores.catalog.delete_collection(gone.id)

    planned = await world.sweeper().sweep(dry_run=True)
    assert planned.counters.objects == len(planned.keys) > 10
    swept = await world.sweeper().sweep()
    assert (swept.counters.failures, swept.counters.collections) == (0, 1)
    assert swept.counters.versions >= 4
    assert swept.counters.objects == planned.counters.objects
    assert await world.rows("collection_version", made) == 1
    for table in ("collection", "collection_version", "lease", "log_head", "log_entry"):
        assert await world.rows(table, gone) == 0, table
    assert await world.keys(f"segments/{gone.id}/") == await world.keys(f"log/{gone.id}/") == []
    assert set(lost) <= set(await world.keys(""))

    for _ in range(2):
        await stores.age_uploads()
    assert (await world.sweeper().sweep()).counters.uploads == 1
    assert set(lost).isdisjoint(await world.keys(""))
    assert len(await world.keys(f"log/{made.id}/")) == 5
    publisher = compactor._publisher()
    manifest = await publisher.current(made)
    kept = {(await stores.catalog.get_version(made.id)).manifest_key, *manifest.object_keys()}
    assert set(await world.keys(f"segments/{made.id}/")) == kept
    assert manifest.records == 6
    assert (await world.sweeper().sweep()).counters.objects == 0


async def test_many_sweepers_at_once(world: World) -> None:
    stores, compactor = world.stores, world.compactor()
    collections = [await stores.create(f"c{number}") for number in range(4)]
    for collection in collections:
        for number in range(3):
            await stores.append(collection, [f"id{number}"])
            await compactor.compact(collection.id, merge=False)
    for collection in collections[:2]:
        await stores.catalog.delete_collection(collection.id)
    reports = await asyncio.gather(*(world.sweeper().sweep() for _ in range(6)))
    assert sum(report.counters.failures for report in reports) == 0
    assert sum(report.counters.versions for report in reports) == 4
    for collection in collections[:2]:
        assert await world.rows("collection", collection) == 0
    for collection in collections[2:]:
        await stores.append(collection, ["more"])
        await compactor.compact(collection.id, merge=True)
        assert (await compactor._publisher().current(collection)).records == 4


async def test_an_upload_that_is_being_published_is_no_orphan(world: World) -> None:
    """However late its transaction commits: the row is locked."""
    made = await world.stores.create()
    upload_id = await world.stores.catalog.begin_upload(made.id)
    for _ in range(3):
        await world.stores.age_uploads()
    assert [upload.id for upload in await world.stores.catalog.expired_uploads(limit=9)] == [upload_id]
    async with world.pool.acquire() as publishing, publishing.transaction():
        await publishing.execute("DELETE FROM upload_intent WHERE id::text = $1", upload_id)
        assert await asyncio.wait_for(world.stores.catalog.expired_uploads(limit=9), 5) == []


async def test_a_retention_begins_when_a_version_is_replaced(world: World) -> None:
    catalog, made = world.stores.catalog, await world.stores.create()
    await world.stores.compact(made, 0)
    await world.pool.execute("UPDATE collection_version SET created_at = created_at - interval '1 day'")
    await world.stores.compact(made, 0, expected=1)

    async def due() -> list[int]:
        found = await catalog.collections_with_garbage(
            after="", limit=9, version_retention_ms=HOUR_MS, deleted_retention_ms=0
        )
        return [item.overdue_ms for item in found]

    assert await due() == []
    assert await catalog.drop_versions(made.id, below=9, version_retention_ms=HOUR_MS) == 0
    await world.pool.execute("UPDATE collection_version SET created_at = created_at - interval '2 hours'")
    (overdue_ms,) = await due()
    assert HOUR_MS <= overdue_ms < HOUR_MS + 600_000
    assert await catalog.drop_versions(made.id, below=9, version_retention_ms=HOUR_MS) == 1


async def test_the_log_is_trimmed_though_old_versions_are_gone(world: World) -> None:
    """Versions that were swept need no log; without them the oldest that is left says what is needed."""
    stores = world.stores
    made = await stores.create()
    for number in range(2):
        await stores.append(made, [f"id{number}"])
        await stores.compact(made, number + 1, expected=number)
    partitions = PartitionStore(world.pool, acquire_timeout_ms=5_000)
    (period, *_), _ = await partitions.periods()
    assert await partitions.drop(period, version_retention_ms=HOUR_MS, lock_timeout_ms=5_000) is None
    assert await stores.catalog.drop_versions(made.id, below=2, version_retention_ms=0) == 1
    await stores.append(made, ["tail"])
    assert await partitions.drop(period, version_retention_ms=HOUR_MS, lock_timeout_ms=5_000) is None
    await stores.compact(made, 3, expected=2)
    assert await partitions.drop(period, version_retention_ms=HOUR_MS, lock_timeout_ms=5_000) is None
    assert await stores.catalog.drop_versions(made.id, below=3, version_retention_ms=0) == 1
    dropped = await partitions.drop(period, version_retention_ms=HOUR_MS, lock_timeout_ms=5_000)
    assert dropped is not None
    assert len(dropped.object_keys) == 3


async def test_a_slow_publish_is_refused(world: World) -> None:
    stores = world.stores
    made = await stores.create()
    lease = await stores.claim(made)
    request = await stores.publishing(lease, 0)
    await stores.age_uploads()
    with pytest.raises(UploadExpired):
        await stores.catalog.publish(request)
    assert await stores.catalog.expired_uploads(limit=9) == []
    await stores.age_uploads()
    await world.sweeper().sweep()
    with pytest.raises(UploadExpired):
        await stores.catalog.publish(request)
    with pytest.raises(NotFound):
        await stores.catalog.get_version(made.id, 1)
