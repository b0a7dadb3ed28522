"""Partitions are there in time, and go when nobody needs their entries any more."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from services.logservice.tests.log_support import World, eventually, request_of, rows_of, whole_tail
from shoal_core.contracts import Condition, TailRequest
from shoal_core.errors import InvalidArgument, OffsetExpired, StaleRead
from shoal_log import AppendSettings, LogService, LogSettings, TrimSettings
from shoal_log.trim import expired_periods, missing_periods
from shoal_log.trim_store import _KEYS, Period

pytestmark = pytest.mark.integration


def periods(*bounds: tuple[int, int]) -> list[Period]:
    return [Period(*pair) for pair in bounds]


def test_periods_cover_the_present_and_the_near_future() -> None:
    assert missing_periods([], 1234, 100, 2) == periods((1200, 1300), (1300, 1400), (1400, 1500))
    assert missing_periods(periods((1200, 1300), (1400, 1500)), 1299, 100, 2) == periods((1300, 1400))
    assert missing_periods(periods((1200, 1600)), 1234, 100, 2) == []


def test_periods_fit_between_those_of_another_length() -> None:
    existing = periods((1000, 1250), (1330, 1400))
    assert missing_periods(existing, 1240, 100, 1) == periods((1250, 1300), (1300, 1330))
    assert missing_periods(periods((1250, 1300)), 1230, 100, 0) == periods((1200, 1250))


def test_expired_periods_are_oldest_first() -> None:
    existing = periods((300, 400), (100, 200), (200, 300))
    assert expired_periods(existing, 350, 50_000) == periods((100, 200), (200, 300))
    assert expired_periods(existing, 350, 50_001) == periods((100, 200))


def test_names_of_partitions() -> None:
    assert Period.of_name(Period(1, 2).name) == Period(1, 2)
    assert Period.of_name("log_entry_default") is None
    assert Period.of_name("log_entry_1_x") is None


def test_settings_that_forget_keys_before_the_log_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        TrimSettings(retention_ms=1000, idempotency_retention_ms=999)


def settings_of(**trim: Any) -> LogSettings:
    values = {"retention_ms": 60_000, "version_retention_ms": 0, "idempotency_retention_ms": 3_600_000} | trim
    return LogSettings(append=AppendSettings(inline_limit_bytes=1000), trim=TrimSettings(**values))


async def partitions_of(world: World) -> list[str]:
    rows = await world.sql.fetch(
        "SELECT relname FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = 'log_entry'::regclass"
    )
    return sorted(row["relname"] for row in rows)


async def age_entries(world: World, hours: int = 2) -> None:
    """Move what is in the log into a partition of the past."""
    now: int = await world.sql.fetchval("SELECT extract(epoch FROM now())::bigint")
    start = (now // 3600 - hours) * 3600
    name = Period(start, start + 3600).name
    await world.sql.execute(
        f"""CREATE TABLE IF NOT EXISTS {name} PARTITION OF log_entry
            FOR VALUES FROM (to_timestamp({start})) TO (to_timestamp({start + 3600}));
        UPDATE log_entry SET committed_at = to_timestamp({start + 60})
            WHERE committed_at > now() - interval '50 minutes'"""
    )


async def appended(node: LogService, collection: str, *names: str) -> None:
    for name in names:
        await node.append(request_of(collection, [name]))


async def test_partitions_are_made_at_start_and_by_many_nodes_at_once(world: World) -> None:
    nodes = await asyncio.gather(*(world.node() for _ in range(4)))
    made = await partitions_of(world)
    assert len(made) == 5
    assert await nodes[0]._trimmer.ensure_partitions() == 0
    await world.node(settings_of(period_ms=1_800_000, periods_ahead=9))
    assert set(await partitions_of(world)) >= set(made)
    storage = await world.sql.fetch(
        "SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass AND attstorage = 'e'", made[0]
    )
    assert {row["attname"] for row in storage} == {"payload", "id_hashes"}


async def test_an_append_without_a_partition_makes_it_and_goes_on(world: World) -> None:
    node = await world.node()
    collection = await world.collection()
    await appended(node, collection, "a")
    for name in await partitions_of(world):
        await world.sql.execute(f"ALTER TABLE log_entry DETACH PARTITION {name}; DROP TABLE {name}")
    await world.sql.execute(
        "UPDATE log_head SET head_offset = 0, total_bytes = 0, set_hash = decode(repeat('00', 32), 'hex')"
    )
    result = await node.append(request_of(collection, ["b"]))
    assert result.first_offset == 1
    assert len(await partitions_of(world)) == 5


async def test_making_partitions_does_not_wait_for_open_transactions(world: World) -> None:
    node = await world.node()
    collection = await world.collection()
    await appended(node, collection, "a")
    async with world.sql.acquire() as other, other.transaction():
        await other.execute("SELECT FROM log_entry; UPDATE log_entry SET size_bytes = size_bytes")
        await asyncio.wait_for(world.node(settings_of(periods_ahead=8)), 5)
    assert len(await partitions_of(world)) == 9


async def test_a_partition_goes_when_all_of_it_is_compacted_and_old(world: World) -> None:
    node, cold = await world.node(settings_of()), await world.node(settings_of())
    one, two, gone = [await world.collection() for _ in range(3)]
    await appended(node, one, "a", "b")
    await appended(node, two, "x")
    await appended(node, gone, "y")
    await node.append(request_of(one, [f"large{i}" for i in range(250)]))
    await age_entries(world)
    await appended(node, one, "new")
    await world.publish(one, 252)
    assert (await node.trim()).dropped == ()  # two and gone are not compacted
    await world.publish(two, 1)
    assert (await node.trim()).dropped == ()
    await world.delete(gone)
    (key,) = [info.key async for info in world.objects.list("log/")]
    before = await partitions_of(world)
    report = await node.trim()
    assert [period.name for period in report.dropped] == before[:1]
    assert report.object_keys == (key,)
    assert [info.key async for info in world.objects.list("log/")] == []
    assert await partitions_of(world) == before[1:]
    floors = {
        str(r["id"]): r["floor"]
        for r in await world.sql.fetch("SELECT collection_id AS id, trim_floor AS floor FROM log_head")
    }
    assert floors == {one: 252, two: 1, gone: 1}
    for reader in (node, cold, await world.node()):
        with pytest.raises(OffsetExpired):
            await reader.read_tail(TailRequest(one, 1, 0))
        tail = await reader.read_tail(TailRequest(one, 1, 252))
        assert rows_of(tail.entries) == [(253, "new")]
    with pytest.raises(StaleRead):
        await node.append(request_of(one, ["z"], condition=Condition(251, ("q",))))
    assert (await node.append(request_of(one, ["z"], condition=Condition(252, ("q",))))).first_offset == 254
    assert (await node.trim()).dropped == ()


async def test_a_young_partition_stays(world: World) -> None:
    node = await world.node(settings_of(retention_ms=3 * 3_600_000, idempotency_retention_ms=4 * 3_600_000))
    collection = await world.collection()
    await appended(node, collection, "a")
    await age_entries(world, hours=2)
    await world.publish(collection)
    assert (await node.trim()).dropped == ()
    older = await world.node(settings_of(retention_ms=3_500_000))
    assert len((await older.trim()).dropped) == 1


async def test_what_a_retained_version_is_replayed_from_stays(world: World) -> None:
    """`as_of` an offset between two versions needs the log after the older one."""
    node = await world.node(settings_of(version_retention_ms=1_800_000))
    collection = await world.collection()
    await appended(node, collection, "a", "b", "c")
    await world.publish(collection, 1)
    await world.publish(collection, 3)
    await age_entries(world)
    assert (await node.trim()).dropped == ()
    await world.sql.execute(
        "UPDATE collection_version SET created_at = now() - interval '31 minutes' WHERE version = 1"
    )
    assert (await node.trim()).dropped == ()
    await world.sql.execute("UPDATE collection_version SET created_at = now() - interval '31 minutes'")
    assert len((await node.trim()).dropped) == 1


async def test_trimming_does_not_wait_long_for_readers_and_tries_again(world: World) -> None:
    node = await world.node(settings_of(lock_timeout_ms=50))
    collection = await world.collection()
    await appended(node, collection, "a")
    await world.publish(collection)
    await age_entries(world)
    async with world.sql.acquire() as other, other.transaction():
        await other.execute("SELECT FROM log_entry")
        report = await node.trim()
        assert (report.dropped, report.busy) == ((), 1)
        assert await world.sql.fetchval("SELECT trim_floor FROM log_head") == 0
        await appended(node, collection, "b")
    assert len((await node.trim()).dropped) == 1
    assert await world.sql.fetchval("SELECT trim_floor FROM log_head") == 1


async def test_a_retry_after_trimming_still_returns_the_first_outcome(world: World) -> None:
    node = await world.node(settings_of())
    collection = await world.collection()
    request = request_of(collection, ["a"], key="k")
    first = await node.append(request)
    await world.publish(collection)
    await age_entries(world)
    assert len((await node.trim()).dropped) == 1
    assert await node.append(request) == replace(first, replayed=True)
    assert (await node.append(request_of(collection, ["b"]))).first_offset == 2


async def test_old_keys_are_forgotten_in_batches(world: World) -> None:
    node = await world.node(settings_of(idempotency_batch=4, idempotency_batches=2))
    collection = await world.collection()
    for i in range(12):
        await node.append(request_of(collection, ["a"], key=f"k{i}"))
    await world.sql.execute("UPDATE idempotency SET created_at = now() - interval '2 hours' WHERE key <> 'k3'")
    assert (await node.trim()).forgotten_keys == 8
    assert (await node.trim()).forgotten_keys == 3
    assert [row["key"] for row in await world.sql.fetch("SELECT key FROM idempotency")] == ["k3"]


async def test_only_payloads_that_forks_may_name_are_looked_for_in_the_rest_of_the_log(world: World) -> None:
    """Appends must not wait while all of it is read."""
    node = await world.node(LogSettings(append=AppendSettings(inline_limit_bytes=0)))
    collection, fork = await world.collection(), await world.collection()
    await appended(node, collection, "a", "b")
    await age_entries(world)
    await appended(node, collection, "c")
    (old, *_) = await partitions_of(world)

    async def looked_for() -> tuple[int, int]:
        plan = await world.sql.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {_KEYS.format(name=old)}")
        scans = [scan for scan in _scans(json.loads(plan)[0]["Plan"]) if scan["Relation Name"].startswith("log_entry_")]
        others = sum(scan["Actual Loops"] for scan in scans if scan["Relation Name"] != old)
        return len(await world.sql.fetch(_KEYS.format(name=old))), others

    assert await looked_for() == (2, 0)
    await world.sql.execute(
        "UPDATE collection SET ancestors = ARRAY[$1::text::uuid] WHERE id = $2::text::uuid", collection, fork
    )
    found, others = await looked_for()
    assert (found, others > 0) == (2, True)
    await world.sql.execute(
        """INSERT INTO log_entry SELECT $2::text::uuid, first_offset, end_offset, clock_timestamp(), payload, object_key,
            size_bytes, checksum, id_hashes, total_bytes, set_hash
        FROM log_entry WHERE collection_id = $1::text::uuid AND end_offset = 2""",
        collection,
        fork,
    )
    assert (await looked_for())[0] == 1


def _scans(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Of tables, anywhere in a plan."""
    below = [scan for part in plan.get("Plans", ()) for scan in _scans(part)]
    return [plan, *below] if "Relation Name" in plan else below


async def test_trimming_races_appends_reads_and_publishes(world: World) -> None:
    nodes = [await world.node(settings_of(lock_timeout_ms=300)) for _ in range(2)]
    collections = [await world.collection() for _ in range(3)]
    acknowledged: dict[str, list[tuple[int, str]]] = {collection: [] for collection in collections}
    stop = False
    dropped = 0

    async def write(writer: int) -> None:
        turn = 0
        while not stop:
            turn += 1
            collection, name = collections[(writer + turn) % 3], f"{writer}-{turn}"
            result = await nodes[writer % 2].append(request_of(collection, [name]))
            acknowledged[collection].append((result.first_offset, name))

    async def read(reader: int) -> None:
        node = await world.node(LogSettings())
        while not stop:
            collection = collections[reader % 3]
            head = await node.read_index(collection, 1)
            try:
                tail = await node.read_tail(TailRequest(collection, 1, head.compacted_offset))
            except OffsetExpired:
                continue
            offsets = [offset for offset, _ in rows_of(tail.entries)]
            assert offsets == list(range(head.compacted_offset + 1, tail.through_offset + 1))

    async def trim() -> None:
        nonlocal dropped
        for turn in range(8):
            for collection in collections:
                await world.publish(collection)
            # Only whole histories move to the past, as entries there are older than those that stay.
            await age_compacted(world)
            dropped += len((await nodes[turn % 2].trim()).dropped)

    tasks = [asyncio.create_task(write(writer)) for writer in range(4)]
    tasks += [asyncio.create_task(read(reader)) for reader in range(3)]
    await trim()
    stop = True
    await asyncio.gather(*tasks)
    assert dropped >= 4
    assert await world.deadlocks() == 0
    for collection in collections:
        offsets = sorted(offset for offset, _ in acknowledged[collection])
        assert offsets == list(range(1, len(offsets) + 1))
        floor = await world.sql.fetchval("SELECT trim_floor FROM log_head WHERE collection_id = $1::uuid", collection)
        assert floor > 0
        tail = await nodes[0].read_tail(TailRequest(collection, 1, floor))
        assert rows_of(tail.entries) == sorted(acknowledged[collection])[floor:]


async def age_compacted(world: World) -> None:
    now: int = await world.sql.fetchval("SELECT extract(epoch FROM now())::bigint")
    start = (now // 3600 - 2) * 3600
    await world.sql.execute(
        f"""CREATE TABLE IF NOT EXISTS {Period(start, start + 3600).name} PARTITION OF log_entry
            FOR VALUES FROM (to_timestamp({start})) TO (to_timestamp({start + 3600}))"""
    )
    await world.sql.execute(
        f"""UPDATE log_entry e SET committed_at = to_timestamp({start + 60})
        FROM collection c JOIN collection_version v ON v.collection_id = c.id AND v.version = c.version
        WHERE e.collection_id = c.id AND e.end_offset <= v.compacted_offset"""
    )


async def test_maintenance_runs_by_itself(world: World) -> None:
    node = await world.node(settings_of(interval_ms=20))
    collection = await world.collection()
    await appended(node, collection, "a")
    await world.publish(collection)
    await age_entries(world)
    await eventually(lambda: _dropped(node))
    assert rows_of(await whole_tail_after(node, collection, 1)) == []


async def _dropped(node: LogService) -> bool:
    return node.counters.partitions_dropped == 1


async def whole_tail_after(node: LogService, collection: str, offset: int) -> Any:
    return (await node.read_tail(TailRequest(collection, 1, offset))).entries


async def test_a_single_process_sees_the_new_floor_too(world: World) -> None:
    node = await world.node(settings_of(), exclusive=True)
    collection = await world.collection()
    await appended(node, collection, "a", "b")
    assert len(await whole_tail(node, collection)) == 2
    node.published(collection, *(await world.publish(collection)))
    await age_entries(world)
    assert len((await node.trim()).dropped) == 1
    with pytest.raises(OffsetExpired):
        await node.read_tail(TailRequest(collection, 1, 0))
