"""Flushes and merges one after another: what a version holds is what folding the log from the start comes to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_compactor.flush import FlushSettings
from shoal_compactor.policy import MergePolicy
from shoal_core.contracts import AppendRequest, Tail, TailRequest
from shoal_core.records import encode_batch
from shoal_testing.compaction import CompactionWorld
from shoal_testing.strategies import Op, examples, operations, to_operation_batch

_SOME = examples(60)
JOBS = st.lists(operations(2) | operations(2) | st.sampled_from(("flush", "flush", "merge")), max_size=14)


@pytest.mark.parametrize("shards", [1, 2, 5])
@_SOME
@given(jobs=JOBS)
def test_every_version_is_the_fold_of_the_log(shards: int, jobs: Sequence[str | list[Op]]) -> None:
    async def run() -> None:
        world = await CompactionWorld.create(shards=shards)
        quarantined: list[int] = []
        for job in jobs:
            if job == "merge":
                await world.merge()
            elif job == "flush":
                result = await world.flush()
                quarantined.extend(result.quarantined if result else ())
            else:
                await world.write([op for op in job if isinstance(op, tuple)])
                continue
            await world.check()
        while (last := await world.flush()) is not None:
            quarantined.extend(last.quarantined)
        await world.finish()
        manifest = await world.check()
        assert manifest.compacted_offset == world.oracle.head_offset
        assert sorted(quarantined) == [item.offset for item in world.oracle.quarantined]
        assert await world.orphans() == []

    asyncio.run(run())


async def test_an_update_keeps_the_created_offset_through_flushes_and_merges() -> None:
    world = await CompactionWorld.create()
    await world.upsert("a", "b")
    await world.flush()
    await world.upsert("b", value=2.0)
    await world.flush()
    assert [(row["id"], row["created_offset"], row["updated_offset"]) for row in await world.records()] == [
        ("a", 1, 1),
        ("b", 2, 3),
    ]
    await world.finish()
    manifest = await world.check()
    assert [segment.rows for segment in manifest.shards[0].segments] == [2]


async def test_a_record_deleted_and_added_again_is_a_new_one() -> None:
    world = await CompactionWorld.create()
    await world.upsert("a", "b")
    await world.flush()
    await world.delete("a")
    await world.upsert("a")
    await world.flush()
    await world.check()
    assert [(row["id"], row["created_offset"]) for row in await world.records()] == [("b", 2), ("a", 4)]


async def test_a_segment_of_only_dead_rows_is_dropped() -> None:
    world = await CompactionWorld.create()
    await world.upsert("a", "b")
    await world.flush()
    await world.delete("a")
    await world.flush()
    assert [(s.rows, s.dead) for s in (await world.check()).shards[0].segments] == [(2, 1)]
    await world.delete("b", "nothing")
    await world.flush()
    assert (await world.check()).shards[0].segments == ()
    assert await world.flush() is None


async def test_operations_that_change_nothing_advance_the_offset() -> None:
    world = await CompactionWorld.create(shards=2)
    await world.upsert("a")
    await world.flush()
    before = await world.check()
    await world.write([("add", "a", (5.0, 5.0), "t", None, None), ("update", "missing", None, "t", None, None)])
    result = await world.flush()
    assert result is not None
    assert (result.operations, result.quarantined, result.version.compacted_offset) == (2, (), 3)
    after = await world.check()
    assert [part.segments for part in after.shards] == [part.segments for part in before.shards]
    assert [part.compacted_offset for part in after.shards] == [3, 3]


async def test_what_cannot_be_applied_is_reported_and_blocks_nothing() -> None:
    world = await CompactionWorld.create(shards=3)
    await world.write([("upsert", "a", None, "text", None, None)])
    result = await world.flush()  # nobody has given an embedding yet: the dimension is unknown
    assert result is not None
    assert result.quarantined == (1,)
    assert (await world.check()).dimension is None
    ids = [f"id{n}" for n in range(12)]
    await world.write([("upsert", ids[0], (1.0, 2.0), None, None, None)])
    await world.write([("upsert", text, None, "no embedding", None, None) for text in ids])
    await world.upsert(*ids[6:])
    result = await world.flush()
    assert result is not None
    assert result.quarantined == tuple(range(4, 15))
    assert (await world.check()).dimension == 2
    assert world.oracle.count() == 7


async def test_an_embedding_that_does_not_fit_is_quarantined() -> None:
    world = await CompactionWorld.create()
    made = world.collection
    await world.upsert("a")
    state = world.catalog.state(made.id)
    dimension, state.collection = state.collection, made  # as if the log had not checked
    payload = encode_batch(to_operation_batch([("upsert", "b", (1.0, 2.0, 3.0), None, None, None)], 3))
    await world.log.append(AppendRequest(made.id, made.epoch, made.tenant, payload))
    state.collection = dimension
    result = await world.flush()
    assert result is not None
    assert result.quarantined == (2,)
    assert [row["id"] for row in await world.records()] == ["a"]


async def test_a_flush_takes_whole_batches_within_its_bounds() -> None:
    world = await CompactionWorld.create(settings=FlushSettings(records=5, threads=1))
    for start in (0, 3, 6, 9):
        await world.upsert(*(f"id{n}" for n in range(start, start + 3)))
    await world.upsert(*(f"big{n}" for n in range(20)))
    ends = []
    while (result := await world.flush()) is not None:
        ends.append(result.version.compacted_offset)
        await world.check()
    assert ends == [3, 6, 9, 12, 32]
    small = await CompactionWorld.create(settings=FlushSettings(size_bytes=1, threads=1))
    for text in "abc":
        await small.upsert(text)
    assert [(await small.flush()) is not None for _ in range(4)] == [True, True, True, False]
    assert small.version.version == 3


async def test_tails_that_come_in_pieces_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await CompactionWorld.create()
    read_tail = world.log.read_tail
    asked: list[int] = []

    async def one_at_a_time(request: TailRequest) -> Tail:
        asked.append(request.after_offset)
        return await read_tail(replace(request, max_size_bytes=1))

    monkeypatch.setattr(world.log, "read_tail", one_at_a_time)
    for text in "abcd":
        await world.upsert(text)
    assert await world.flush() is not None
    assert asked == [0, 1, 2, 3]
    assert (await world.check()).records == 4


async def test_segments_above_the_bound_get_a_graph() -> None:
    world = await CompactionWorld.create(settings=FlushSettings(threads=1, graph_rows=3))
    await world.upsert(*"abcd")
    await world.flush()
    await world.upsert("e")
    await world.flush()
    kinds = [set(segment.blocks) for segment in (await world.check()).shards[0].segments]
    assert kinds == [{"ids", "rows", "vectors", "lengths", "graph"}, {"ids", "rows", "vectors", "lengths"}]
    await world.merge()
    (merged,) = (await world.check()).shards[0].segments
    assert "graph" in merged.blocks
    assert merged.blocks["graph"][0].rows == 5


async def test_a_worn_segment_is_rewritten_by_itself() -> None:
    world = await CompactionWorld.create(policy=MergePolicy(fanout=9, dead_share=0.4))
    await world.upsert(*"abcde")
    await world.flush()
    await world.delete("a", "b")
    await world.flush()
    assert await world.merge() is None  # two of five are not more than 0.4
    await world.delete("c")
    await world.flush()
    result = await world.merge()
    assert result is not None
    assert (result.inputs, result.rows) == (1, 2)
    (segment,) = (await world.check()).shards[0].segments
    assert (segment.rows, segment.dead, segment.tier, segment.tombstones) == (2, 0, 0, None)
    assert await world.merge() is None
