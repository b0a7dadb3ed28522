"""Read index and tails over a real Postgres."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from services.logservice.tests.log_support import World, request_of, rows_of, whole_tail
from shoal_core.contracts import EVERYTHING, HashRange, TailRequest, shard_range
from shoal_core.errors import Corrupt, InvalidArgument, NotFound, OffsetExpired, StaleEpoch, Unavailable
from shoal_core.hashing import hash_ids
from shoal_core.records import ID, decode_batch
from shoal_log import LogSettings, TailSettings

pytestmark = pytest.mark.integration

UNCACHED = LogSettings(tail=TailSettings(cache_size_bytes=0))


def settings_of(**tail: Any) -> LogSettings:
    return LogSettings(tail=TailSettings(**tail))


async def filled(world: World, *, batches: int = 20) -> tuple[str, list[tuple[int, str]]]:
    node = await world.node()
    collection = await world.collection()
    for batch in range(batches):
        await node.append(request_of(collection, [f"{batch}-{row}" for row in range(1 + batch % 5)], dimension=4))
    return collection, rows_of(await whole_tail(node, collection))


# --- read index ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exclusive", [False, True])
async def test_the_head_of_an_instant(world: World, exclusive: bool) -> None:
    node = await world.node(exclusive=exclusive)
    collection = await world.collection()
    head = await node.read_index(collection, 1)
    assert (head.collection_id, head.epoch, head.head_offset, head.version) == (collection, 1, 0, 0)
    assert (head.compacted_offset, head.dimension) == (0, None)
    result = await node.append(request_of(collection, ["a", "b"], dimension=5))
    version, offset = await world.publish(collection)
    node.published(collection, version, offset)
    head = await node.read_index(collection, 1)
    assert (head.incarnation, head.head_offset) == (result.token.incarnation, 2)
    assert (head.version, head.compacted_offset, head.dimension) == (1, 2, 5)
    await world.sql.execute("UPDATE collection SET epoch = 2")
    node.catalog_changed(collection)
    with pytest.raises(StaleEpoch):
        await node.read_index(collection, 1)
    with pytest.raises(StaleEpoch):
        await node.read_tail(TailRequest(collection, 1, 0))
    assert (await node.read_index(collection, 2)).epoch == 2
    assert (await node.read_tail(TailRequest(collection, 0, 0))).through_offset == 2
    await world.delete(collection)
    node.catalog_changed(collection)
    for epoch in (0, 1, 2):
        with pytest.raises(NotFound):
            await node.read_index(collection, epoch)
        with pytest.raises(NotFound):
            await node.read_tail(TailRequest(collection, epoch, 0))
    for unknown in ("00000000-0000-0000-0000-000000000000", "x"):
        with pytest.raises(NotFound):
            await node.read_index(unknown, 0)


@pytest.mark.parametrize("exclusive", [False, True])
async def test_a_read_that_begins_after_an_append_was_acknowledged_never_sees_less(
    world: World, exclusive: bool
) -> None:
    nodes = [await world.node(exclusive=exclusive)] if exclusive else [await world.node(), await world.node()]
    collections = [await world.collection() for _ in range(3)]
    acknowledged = dict.fromkeys(collections, 0)
    stop = False

    async def write(writer: int) -> None:
        turn = 0
        while not stop:
            turn += 1
            collection = collections[(writer + turn) % 3]
            result = await nodes[writer % len(nodes)].append(request_of(collection, [f"{writer}-{turn}"]))
            acknowledged[collection] = max(acknowledged[collection], result.token.offset)

    async def read(reader: int) -> int:
        turn = 0
        while not stop:
            turn += 1
            collection = collections[(reader + turn) % 3]
            at_least = acknowledged[collection]
            head = await nodes[reader % len(nodes)].read_index(collection, 1)
            assert head.head_offset >= at_least
            if turn % 8 == 0 and head.head_offset:
                tail = await nodes[reader % len(nodes)].read_tail(TailRequest(collection, 1, 0))
                assert tail.head.head_offset >= head.head_offset
                assert tail.entries[-1].end_offset == tail.through_offset
            await asyncio.sleep(0)
        return turn

    tasks = [asyncio.create_task(write(writer)) for writer in range(4)]
    readers = [asyncio.create_task(read(reader)) for reader in range(12)]
    await asyncio.sleep(1.5)
    stop = True
    await asyncio.gather(*tasks, *readers)
    if not exclusive:
        counters = [node.counters for node in nodes]
        assert sum(c.read_index_statements for c in counters) < sum(c.read_index_asks for c in counters) / 2


async def test_concurrent_questions_share_a_statement(world: World) -> None:
    node = await world.node()
    collections = [await world.collection() for _ in range(5)]
    await asyncio.gather(*(node.read_index(collections[i % 5], 1) for i in range(50)))
    assert node.counters.read_index_asks == 50
    assert node.counters.read_index_statements == 1


async def test_a_missing_collection_does_not_hurt_the_others_of_its_statement(world: World) -> None:
    node = await world.node()
    collection = await world.collection()
    gone = "00000000-0000-0000-0000-000000000000"
    answers = await asyncio.gather(
        node.read_index(collection, 1), node.read_index(gone, 1), node.read_index(collection, 2), return_exceptions=True
    )
    assert [type(answer).__name__ for answer in answers] == ["Head", "NotFound", "StaleEpoch"]
    assert node.counters.read_index_statements == 1


async def test_the_committed_head_in_memory_needs_no_statement(world: World) -> None:
    node = await world.node(exclusive=True)
    collection = await world.collection()
    await node.read_index(collection, 1)
    for turn in range(5):
        await node.append(request_of(collection, [f"{turn}"]))
        assert (await node.read_index(collection, 1)).head_offset == turn + 1
        assert (await node.read_tail(TailRequest(collection, 1, turn))).through_offset == turn + 1
    assert node.counters.read_index_statements == 1
    assert node.counters.tail_entries_loaded == 0


async def test_a_read_survives_the_loss_of_its_connection(world: World) -> None:
    node = await world.node()
    collection = await world.collection()
    await node.append(request_of(collection, ["a"]))
    await node.read_index(collection, 1)
    await world.terminate_backends("shoal-log-read")
    assert (await node.read_index(collection, 1)).head_offset == 1
    await world.terminate_backends("shoal-log-read")
    assert (await (await world.node(UNCACHED)).read_tail(TailRequest(collection, 1, 0))).through_offset == 1


# --- tails -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [LogSettings(), UNCACHED, settings_of(page_size_bytes=2000, page_entries=3)])
async def test_tails_cut_to_ranges_are_together_the_whole(world: World, settings: LogSettings) -> None:
    collection, expected = await filled(world)
    for node in (await world.node(settings), world.nodes[0]):
        for shards in (1, 3):
            parts = [
                await whole_tail(node, collection, hash_range=shard_range(shard, shards)) for shard in range(shards)
            ]
            assert sorted(row for part in parts for row in rows_of(part)) == expected
            for shard, part in enumerate(parts):
                assert [entry.end_offset for entry in part] == [entry.end_offset for entry in parts[0]]
                span = shard_range(shard, shards)
                for entry in part:
                    if entry.payload.size:
                        hashes = hash_ids(decode_batch(entry.payload).column(ID)).tolist()
                        assert all(span.start <= hash <= span.last for hash in hashes)
        first = int(hash_ids(decode_batch((await whole_tail(node, collection))[0].payload).column(ID))[0])
        only = await whole_tail(node, collection, hash_range=HashRange(first, first))
        assert rows_of(only) == expected[:1]
        assert len(only) == 20


async def test_a_whole_entry_is_passed_on_as_it_was_written(world: World) -> None:
    node, cold = await world.node(), await world.node(UNCACHED)
    collection = await world.collection()
    request = request_of(collection, ["a", "b"], dimension=3)
    await node.append(request)
    (warm_entry,) = await whole_tail(node, collection)
    (cold_entry,) = await whole_tail(cold, collection)
    assert warm_entry.payload is request.payload
    assert cold_entry.payload.equals(request.payload)
    assert warm_entry.offsets is None
    everything = HashRange(0, int(hash_ids(decode_batch(request.payload).column(ID)).max()))
    (kept,) = await whole_tail(node, collection, hash_range=everything)
    assert kept.payload is request.payload


@pytest.mark.parametrize("settings", [LogSettings(), UNCACHED])
async def test_an_answer_is_bounded_and_always_makes_progress(world: World, settings: LogSettings) -> None:
    collection, expected = await filled(world)
    node = await world.node(settings)
    single = await node.read_tail(TailRequest(collection, 1, 0, max_size_bytes=1))
    assert (len(single.entries), single.through_offset) == (1, 1)
    assert single.head.head_offset == len(expected)
    assert rows_of(await whole_tail(node, collection, max_size_bytes=1)) == expected
    sizes = [entry.payload.size for entry in await whole_tail(node, collection)]
    exactly = await node.read_tail(TailRequest(collection, 1, 0, max_size_bytes=sum(sizes[:4])))
    assert len(exactly.entries) == 4
    less = await node.read_tail(TailRequest(collection, 1, 0, max_size_bytes=sum(sizes[:4]) - 1))
    assert len(less.entries) == 3
    few = await world.node(replace(settings, tail=replace(settings.tail, entries=2)))
    assert len((await few.read_tail(TailRequest(collection, 1, 0))).entries) == 2


@pytest.mark.parametrize("settings", [LogSettings(), UNCACHED])
async def test_offsets_of_tails_are_ends_of_batches(world: World, settings: LogSettings) -> None:
    node = await world.node(settings)
    collection = await world.collection()
    for ids in (["a"], ["b", "c", "d"], ["e"]):
        await node.append(request_of(collection, ids))
    for after, up_to in [(2, 0), (3, 5), (0, 2), (1, 3), (4, 1), (6, 0), (0, 6), (-1, 0), (0, -1), (0, 2**63)]:
        with pytest.raises(InvalidArgument, match="offset"):
            await node.read_tail(TailRequest(collection, 1, after, up_to))
    for size_bytes, span in ((0, EVERYTHING), (1, HashRange(2, 1)), (1, HashRange(0, 2**64))):
        with pytest.raises(InvalidArgument):
            await node.read_tail(TailRequest(collection, 1, 0, hash_range=span, max_size_bytes=size_bytes))
    tail = await node.read_tail(TailRequest(collection, 1, 1, 4))
    assert (tail.through_offset, rows_of(tail.entries)) == (4, [(2, "b"), (3, "c"), (4, "d")])
    assert (await node.read_tail(TailRequest(collection, 1, 5))).entries == ()


async def test_a_pinned_offset_that_is_known_needs_no_read_index(world: World) -> None:
    node = await world.node()
    collection = await world.collection()
    for i in range(3):
        await node.append(request_of(collection, [f"{i}"]))
    await node.read_index(collection, 1)
    asked = node.counters.read_index_asks
    assert (await node.read_tail(TailRequest(collection, 1, 0, 2))).through_offset == 2
    assert node.counters.read_index_asks == asked
    other = await world.node()
    await other.append(request_of(collection, ["x"]))
    assert (await node.read_tail(TailRequest(collection, 1, 0, 4))).through_offset == 4
    assert node.counters.read_index_asks == asked + 1
    with pytest.raises(StaleEpoch):
        await node.read_tail(TailRequest(collection, 2, 0, 2))


async def test_open_transactions_never_show_and_leave_no_gap(world: World) -> None:
    nodes = [await world.node(), await world.node(UNCACHED)]
    collection = await world.collection()
    async with world.sql.acquire() as other, other.transaction():
        # Another node's append: locked and written, not committed.
        await other.execute("SELECT FROM collection FOR NO KEY UPDATE")
        await other.execute(
            """INSERT INTO log_entry VALUES ($1::uuid, 1, 1, now(), 'x', NULL, 1, '', '', 1, '')""", collection
        )
        await other.execute("UPDATE log_head SET head_offset = 1")
        for node in nodes:
            assert (await node.read_tail(TailRequest(collection, 1, 0))).entries == ()
        await other.execute("DELETE FROM log_entry")
        await other.execute("UPDATE log_head SET head_offset = 0")
    await nodes[0].append(request_of(collection, ["a"]))
    for node in nodes:
        assert rows_of(await whole_tail(node, collection)) == [(1, "a")]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE log_entry SET payload = set_byte(payload, 300, get_byte(payload, 300) # 1) WHERE first_offset = 3",
        "UPDATE log_entry SET checksum = set_byte(checksum, 3, get_byte(checksum, 3) # 1) WHERE first_offset = 3",
        "UPDATE log_entry SET set_hash = set_byte(set_hash, 3, get_byte(set_hash, 3) # 1) WHERE first_offset = 3",
        "DELETE FROM log_entry WHERE first_offset = 3",
        "DELETE FROM log_entry WHERE first_offset = 1",
        "DELETE FROM log_entry WHERE first_offset = 5",
        "UPDATE log_entry SET first_offset = 3, end_offset = 4 WHERE first_offset IN (3, 4)",
        "UPDATE log_entry SET first_offset = 2 WHERE first_offset = 3",
    ],
)
async def test_a_damaged_log_is_an_error_and_never_skipped(world: World, damage: str) -> None:
    node = await world.node()
    collection = await world.collection()
    for i in range(5):
        await node.append(request_of(collection, [f"{i}"]))
    await world.sql.execute(damage)
    with pytest.raises(Corrupt):
        await (await world.node()).read_tail(TailRequest(collection, 1, 0))


async def test_an_entry_missing_just_below_the_offset_asked_after_is_an_error(world: World) -> None:
    node = await world.node()
    collection = await world.collection()
    for i in range(3):
        await node.append(request_of(collection, [f"{i}"]))
    await world.sql.execute("DELETE FROM log_entry WHERE first_offset = 2")
    with pytest.raises(Corrupt):
        await (await world.node()).read_tail(TailRequest(collection, 1, 2))
    await world.sql.execute("UPDATE log_head SET trim_floor = 2")
    tail = await (await world.node()).read_tail(TailRequest(collection, 1, 2))
    assert rows_of(tail.entries) == [(3, "2")]


async def test_below_the_trim_floor_the_offset_has_expired(world: World) -> None:
    node = await world.node()
    collection = await world.collection()
    for i in range(4):
        await node.append(request_of(collection, [f"{i}"]))
    await world.sql.execute("UPDATE log_head SET trim_floor = 2")
    for reader in (node, await world.node()):
        for after in (0, 1):
            with pytest.raises(OffsetExpired):
                await reader.read_tail(TailRequest(collection, 1, after))
        assert len((await reader.read_tail(TailRequest(collection, 1, 2))).entries) == 2


async def test_entries_trimmed_after_the_head_was_read_have_expired(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not taken for a gap."""
    node = await world.node(UNCACHED)
    collection = await world.collection()
    for i in range(3):
        await node.append(request_of(collection, [f"{i}"]))
    read = node._store.page

    async def trim_first(*arguments: Any) -> Any:
        await world.sql.execute("DELETE FROM log_entry WHERE end_offset <= 2; UPDATE log_head SET trim_floor = 2")
        return await read(*arguments)

    monkeypatch.setattr(node._store, "page", trim_first)
    with pytest.raises(OffsetExpired):
        await node.read_tail(TailRequest(collection, 1, 0))


async def test_the_cache_is_bounded_and_evicts_the_longest_unused(world: World) -> None:
    node = await world.node(settings_of(cache_size_bytes=20_000))
    collection = await world.collection()
    for i in range(60):
        await node.append(request_of(collection, [f"{i}"], dimension=8))
        assert node._cache.size_bytes <= 20_000
    await node.read_tail(TailRequest(collection, 1, 55))
    assert node.counters.tail_entries_loaded == 0
    await node.read_tail(TailRequest(collection, 1, 0))
    assert node.counters.tail_entries_loaded >= 30
    await node.append(request_of(collection, [f"big{i}" for i in range(200)], dimension=8))
    big = await node.read_tail(TailRequest(collection, 1, 60))
    assert big.through_offset == 260
    assert node._cache.size_bytes <= 20_000


async def test_the_log_of_another_incarnation_is_another_log(world: World) -> None:
    node = await world.node()
    collection = await world.collection()
    await node.append(request_of(collection, ["old"]))
    await world.sql.execute(
        """UPDATE collection SET incarnation = gen_random_uuid();
        UPDATE log_head SET head_offset = 0, total_bytes = 0, set_hash = decode(repeat('00', 32), 'hex');
        DELETE FROM log_entry"""
    )
    await (await world.node()).append(request_of(collection, ["new"]))
    assert rows_of(await whole_tail(node, collection)) == [(1, "new")]


async def test_reads_wait_for_a_free_connection_and_then_fail_typed(world: World) -> None:
    node = await world.node(replace(LogSettings(), read_connections=1, acquire_timeout_ms=50))
    collection = await world.collection()
    async with node._store.reading():
        with pytest.raises(Unavailable):
            await node.read_index(collection, 1)
    assert (await node.read_index(collection, 1)).head_offset == 0
    assert (await node.append(request_of(collection, ["a"]))).first_offset == 1


async def test_a_single_process_believes_a_newer_epoch(world: World) -> None:
    """A rename whose COMMIT went unanswered: the log was told before it was done, and then asked the database too early."""
    node = await world.node(exclusive=True)
    collection = await world.collection()
    assert (await node.read_index(collection, 1)).epoch == 1
    await world.sql.execute("UPDATE collection SET epoch = 2 WHERE id = $1::uuid", collection)
    assert (await node.read_index(collection, 2)).epoch == 2
    with pytest.raises(StaleEpoch):
        await node.read_index(collection, 1)
    with pytest.raises(StaleEpoch):
        await node.read_index(collection, 3)
