"""Forks on a real Postgres: payloads that logs share, limits, and forks of what is being written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.compactor.tests.test_compactor_garbage_postgres import NOTHING_IS_RETAINED, World
from shoal_compactor.garbage import Sweeper
from shoal_core.contracts import Collection, TailRequest
from shoal_core.errors import AlreadyExists, FailedPrecondition, NotFound, ResourceExhausted, ShoalError, Unavailable
from shoal_log import AppendSettings, LogSettings
from shoal_log.trim_store import PartitionStore
from shoal_runtime.system import SystemClock
from shoal_storage.manifest import empty_manifest, encode_manifest
from shoal_sysdb import CatalogService, PostgresCatalogStore
from shoal_sysdb.forks import ForkLimits
from shoal_testing.postgres_stores import postgres_stores

pytestmark = pytest.mark.integration


@pytest.fixture
async def world(fresh_database: str) -> AsyncIterator[World]:
    """Every payload of the log is an object."""
    settings = LogSettings(append=AppendSettings(inline_limit_bytes=0))
    async with postgres_stores(fresh_database, settings) as made:
        yield World(made.stores, made.pool, made.objects)


@pytest.fixture
async def inline(fresh_database: str) -> AsyncIterator[World]:
    """Every payload is in Postgres."""
    async with postgres_stores(fresh_database) as made:
        yield World(made.stores, made.pool, made.objects)


async def _tail(world: World, collection: Collection, after: int) -> list[int]:
    """Read whole, payloads included: the ends of its entries."""
    request = TailRequest(collection.id, collection.epoch, after_offset=after, max_size_bytes=1 << 20)
    tail = await world.stores.log.read_tail(request)
    assert all(entry.payload.size for entry in tail.entries)
    return [entry.end_offset for entry in tail.entries]


async def _drop_partition(world: World) -> tuple[str, ...]:
    """The oldest one, with all retentions over; what nobody names any more."""
    partitions = PartitionStore(world.pool, acquire_timeout_ms=5_000)
    (period, *_), _ = await partitions.periods()
    dropped = await partitions.drop(period, version_retention_ms=0, lock_timeout_ms=5_000)
    assert dropped is not None
    return dropped.object_keys


async def _age_entries(world: World, collection: Collection) -> None:
    """Move the log of a collection into a partition of its own, the oldest."""
    await world.pool.execute(
        "CREATE TABLE log_entry_0_3600 PARTITION OF log_entry FOR VALUES FROM (to_timestamp(0)) TO (to_timestamp(3600))"
    )
    await world.pool.execute(
        "UPDATE log_entry SET committed_at = to_timestamp(60) WHERE collection_id::text = $1", collection.id
    )


async def test_payloads_live_as_long_as_any_log_names_them(world: World) -> None:
    stores, catalog = world.stores, world.stores.catalog
    made = await stores.create()
    for name in ("a", "b"):
        await stores.append(made, [name])
    await stores.compact(made, 1)
    fork = await catalog.fork_collection(made.id, "fork")
    payloads = await world.keys(f"log/{made.id}/")
    assert len(payloads) == 2
    assert await world.keys(f"log/{fork.id}/") == []
    await _age_entries(world, made)
    await stores.compact(made, 2, expected=1)
    gone = await _drop_partition(world)
    assert len(gone) == 1
    (kept,) = set(payloads) - set(gone)
    await world.objects.delete(list(gone))
    assert await _tail(world, fork, 1) == [2]

    await catalog.delete_collection(made.id)
    sweeper = Sweeper(catalog, world.objects, SystemClock(), lambda _: True, NOTHING_IS_RETAINED)
    manifest = (await catalog.get_version(fork.id)).manifest_key
    await world.objects.put(manifest, encode_manifest(empty_manifest(made.id, "l2", 1)))
    for _ in range(2):
        assert (await sweeper.sweep()).counters.failures == 0
    assert await world.keys("log/") == [kept]
    assert await _tail(world, fork, 1) == [2]
    assert await world.rows("collection", made) == 1

    await catalog.delete_collection(fork.id)
    for _ in range(2):
        assert (await sweeper.sweep()).counters.failures == 0
    assert await world.keys("log/") == []
    for collection in (made, fork):
        assert await world.rows("collection", collection) == 0


async def test_a_payload_left_by_the_last_log_that_named_it_is_swept(world: World) -> None:
    stores, catalog = world.stores, world.stores.catalog
    made = await stores.create()
    await stores.append(made, ["a"])
    fork = await catalog.fork_collection(made.id, "fork")
    await _age_entries(world, made)
    await stores.compact(made, 1)
    assert await _drop_partition(world) == ()
    manifest = (await catalog.get_version(made.id)).manifest_key
    await world.objects.put(manifest, encode_manifest(empty_manifest(made.id, "l2", 1)))
    await world.sweeper().sweep()
    assert len(await world.keys("log/")) == 1
    await catalog.delete_collection(fork.id)
    for _ in range(2):
        assert (await world.sweeper().sweep()).counters.failures == 0
    assert await world.keys("log/") == []


async def test_limits_of_forks(inline: World) -> None:
    stores, made = inline.stores, await inline.stores.create()
    await stores.append(made, ["a"], text="x" * 1000)
    catalog = CatalogService(
        PostgresCatalogStore(inline.pool), fork_limits=ForkLimits(forks=2, tail_size_bytes=3000, retry_ms=70)
    )
    child = await catalog.fork_collection(made.id, "child")
    await catalog.fork_collection(child.id, "grandchild")
    for source in (made, child):
        with pytest.raises(FailedPrecondition, match="has 2 forks"):
            await catalog.fork_collection(source.id, "more")
    await catalog.delete_collection(child.id)
    with pytest.raises(FailedPrecondition):  # what is not purged is read by the sweeper
        await catalog.fork_collection(made.id, "more")
    await catalog.purge_collection(child.id, deleted_retention_ms=0, limit=9)
    await stores.append(made, ["b"], text="x" * 2000)
    with pytest.raises(ResourceExhausted) as refused:
        await catalog.fork_collection(made.id, "more")
    assert refused.value.retry_after_ms == 70
    await stores.compact(made, 2)
    assert (await catalog.fork_collection(made.id, "more")).compacted_offset == 2


async def test_a_fork_without_a_partition_of_the_log_is_to_be_tried_again(inline: World) -> None:
    """As after a machine slept through all periods that were made ahead."""
    stores, made = inline.stores, await inline.stores.create()
    await stores.append(made, ["a"])
    await _age_entries(inline, made)
    partitions = PartitionStore(inline.pool, acquire_timeout_ms=5_000)
    for period in (await partitions.periods())[0][1:]:
        await inline.pool.execute(f"DROP TABLE {period.name}")
    with pytest.raises(Unavailable):
        await stores.catalog.fork_collection(made.id, "fork")
    await stores.append(made, ["b"])
    assert await _tail(inline, await stores.catalog.fork_collection(made.id, "fork"), 0) == [1, 2]


async def test_purged_ancestors_are_forgotten_by_later_forks(inline: World) -> None:
    """A chain of forks, each of the one before, may go on for ever."""
    catalog, root = inline.stores.catalog, await inline.stores.create()
    newest = root
    for number in range(5):
        source, newest = newest, await catalog.fork_collection(newest.id, f"fork{number}")
        await catalog.delete_collection(source.id)
        await catalog.purge_collection(source.id, deleted_retention_ms=0, limit=9)
    ancestors = await inline.pool.fetchval("SELECT ancestors FROM collection WHERE id::text = $1", newest.id)
    assert [str(one) for one in ancestors] == [root.id, source.id]
    child = await catalog.fork_collection(newest.id, "child")
    ancestors = await inline.pool.fetchval("SELECT ancestors FROM collection WHERE id::text = $1", child.id)
    assert [str(one) for one in ancestors] == [root.id, newest.id]
    assert await catalog.count_forks(child.id) == 2


async def test_forks_of_what_is_being_written_end_at_batches(inline: World) -> None:
    stores, catalog, made = inline.stores, inline.stores.catalog, await inline.stores.create()
    acknowledged = 0

    async def write() -> None:
        nonlocal acknowledged
        for number in range(60):
            result = await stores.append(made, [f"{number}-{row}" for row in range(3)])
            acknowledged = result.token.offset

    async def publish() -> None:
        for version in range(6):
            await asyncio.sleep(0)
            await stores.compact(made, acknowledged, expected=version)

    async def fork() -> None:
        for number in range(12):
            before = acknowledged
            taken = await catalog.fork_collection(made.id, f"fork{number}")
            head = await stores.log.read_index(taken.id, taken.epoch)
            assert head.head_offset >= before
            assert head.head_offset % 3 == 0
            ends = await _tail(inline, taken, head.compacted_offset)
            assert ends == list(range(head.compacted_offset + 3, head.head_offset + 1, 3))
            assert (await stores.append(taken, ["x"])).token.offset == head.head_offset + 1

    await asyncio.gather(write(), fork(), publish())
    assert acknowledged == 180


async def test_one_of_many_forks_gets_the_name(inline: World) -> None:
    stores, catalog, made = inline.stores, inline.stores.catalog, await inline.stores.create()
    await stores.append(made, ["a"])
    tries = [catalog.fork_collection(made.id, "fork") for _ in range(8)]
    ended = await asyncio.gather(*tries, catalog.delete_database("default_tenant", "nowhere"), return_exceptions=True)
    assert isinstance(ended.pop(), NotFound)
    assert [type(one) for one in ended if isinstance(one, ShoalError)] == [AlreadyExists] * 7
    assert await catalog.count_forks(made.id) == 1
