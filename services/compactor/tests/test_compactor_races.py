"""Jobs that overtake each other: deposed compactors, merges under flushes, flushes under merges, and every order of their steps."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_compactor.policy import MergePolicy
from shoal_core.errors import Conflict, Fenced, VersionConflict
from shoal_testing.compaction import POLICY, CompactionWorld, SteppedJob
from shoal_testing.strategies import Op, examples, operations

FLUSH_STEPS = ["read", "folded", "uploaded", "tombstones", "manifest", "publish"]
MERGE_STEPS = ["merge-read", "merge-built", "merge-uploaded", "tombstones", "manifest", "publish"]
IDS = [f"id{n}" for n in range(24)]


async def _two_segments(shards: int = 1, policy: MergePolicy = POLICY) -> CompactionWorld:
    """Half the ids in one segment, half in the other, one row of each dead: a merge is due."""
    world = await CompactionWorld.create(shards=shards, policy=policy)
    await world.upsert(*IDS[:12], "gone")
    await world.flush()
    await world.upsert(*IDS[12:], "also")
    await world.delete("gone")
    await world.flush()
    await world.delete("also")
    await world.flush()
    return world


def _merging(world: CompactionWorld) -> SteppedJob:
    return SteppedJob(lambda step: world.merge(step=step))


def _flushing(world: CompactionWorld) -> SteppedJob:
    return SteppedJob(lambda step: world.flush(step=step))


# --- deposed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stalls_at", FLUSH_STEPS)
async def test_a_deposed_flusher_publishes_nothing(stalls_at: str) -> None:
    world = await _two_segments(shards=2)
    await world.upsert(*IDS[:2], "x", value=2.0)
    deposed = _flushing(world)
    await deposed.run_to(stalls_at)
    await world.delete("x", IDS[15])
    await world.flush()  # by another, once the lease has run out
    published = world.version
    with pytest.raises(Fenced):
        await deposed.run_out()
    assert world.version == published
    await world.upsert("x", value=3.0)
    await world.finish()
    assert (await world.check()).compacted_offset == world.oracle.head_offset


@pytest.mark.parametrize("stalls_at", MERGE_STEPS)
async def test_a_deposed_merger_publishes_nothing(stalls_at: str) -> None:
    world = await _two_segments()
    deposed = _merging(world)
    await deposed.run_to(stalls_at)
    await world.merge()
    published = world.version
    with pytest.raises(Conflict):  # its inputs are gone, or it is fenced
        await deposed.run_out()
    assert world.version == published
    await world.check()


async def test_a_deposed_merger_is_fenced_though_its_inputs_are_there() -> None:
    world = await _two_segments()
    deposed = _merging(world)
    await deposed.run_to("merge-built")
    await world.take_over("merge")
    with pytest.raises(Fenced):
        await deposed.run_out()
    assert len((await world.check()).shards[0].segments) == 2


async def test_a_deposed_flusher_is_fenced_though_its_successor_did_nothing_yet() -> None:
    world = await _two_segments()
    await world.upsert("x")
    deposed = _flushing(world)
    await deposed.run_to("publish")
    lease = await world.take_over("flush")
    with pytest.raises(Fenced):
        await deposed.run_out()
    assert await world.flush(lease=lease) is not None
    await world.check()


# --- flush against merge ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stalls_at", MERGE_STEPS)
@pytest.mark.parametrize("shards", [1, 3])
async def test_flushes_land_on_the_inputs_of_a_merge(stalls_at: str, shards: int) -> None:
    world = await _two_segments(shards)
    merge = _merging(world)
    await merge.run_to(stalls_at)
    await world.delete(IDS[0], IDS[14])
    await world.write([("update", IDS[1], (7.0, 7.0), "updated", None, {"a": 1})])
    await world.flush()
    await world.check()
    await world.upsert(IDS[0], "fresh", value=4.0)  # back again: a new row, the old one stays dead
    await world.delete(IDS[15])
    await world.flush()
    await world.check()
    assert await merge.run_out() is not None
    await world.check()
    await world.finish()
    await world.check()


@pytest.mark.parametrize("stalls_at", FLUSH_STEPS)
async def test_a_merge_moves_the_rows_that_a_flush_replaces(stalls_at: str) -> None:
    world = await _two_segments()
    await world.delete(IDS[0], IDS[14])
    await world.upsert(IDS[1], IDS[16], "fresh", value=5.0)
    flush = _flushing(world)
    await flush.run_to(stalls_at)
    merged = await world.merge()
    assert merged is not None
    assert merged.inputs == 2
    await world.check()
    assert await flush.run_out() is not None
    manifest = await world.check()
    dead = [(segment.rows, segment.dead) for segment in manifest.shards[0].segments]
    assert dead == [(24, 4), (3, 0)]


async def test_a_merge_may_take_longer_than_an_upload_lives() -> None:
    world = await _two_segments()

    async def slow(name: str) -> None:
        if name == "merge-built":
            await world.clock.advance(3600)

    assert await world.merge(step=slow) is not None
    assert len((await world.check()).shards[0].segments) == 1


async def test_a_merge_gives_up_when_an_input_is_gone() -> None:
    world = await _two_segments()
    merge = _merging(world)
    await merge.run_to("merge-built")
    await world.delete(*IDS[:12])
    await world.flush()  # the first input is all dead and dropped
    with pytest.raises(Conflict, match="gone"):
        await merge.run_out()
    before = await world.check()
    await world.finish()
    assert (await world.check()).records == before.records == 12


async def test_rows_that_die_under_a_worn_merge_are_dead_in_its_output() -> None:
    world = await CompactionWorld.create(policy=MergePolicy(fanout=9))
    await world.upsert(*IDS[:8])
    await world.flush()
    await world.delete(*IDS[:6])
    await world.flush()  # worn: six of eight
    merge = _merging(world)
    await merge.run_to("merge-uploaded")
    await world.delete(IDS[6])
    await world.flush()
    assert await merge.run_out() is not None
    (segment,) = (await world.check()).shards[0].segments
    assert (segment.rows, segment.dead) == (2, 1)


async def test_a_flush_that_always_loses_gives_up_and_is_tried_again() -> None:
    world = await _two_segments()
    await world.upsert("x")
    lost = 0

    def conflict(name: str) -> None:
        nonlocal lost
        if name == "publish":
            lost += 1
            raise VersionConflict("somebody was faster")

    world.catalog.before = conflict
    with pytest.raises(VersionConflict, match="tried again later"):
        await world.flush()
    assert lost == world.publisher().attempts
    world.catalog.before = lambda name: None
    await world.flush()
    await world.check()


# --- every order -----------------------------------------------------------------------------------------------------

MOVES = st.lists(
    st.sampled_from(("flush", "flush", "merge")) | st.sampled_from(("flush", "merge", "merge")) | operations(2, 4),
    min_size=20,
    max_size=60,
)


@pytest.mark.parametrize("shards", [1, 2])
@examples(30)
@given(moves=MOVES)
def test_any_interleaving_of_flush_merge_and_writes(shards: int, moves: Sequence[str | list[Op]]) -> None:
    async def run() -> None:
        world = await CompactionWorld.create(shards=shards)
        jobs: dict[str, SteppedJob] = {}
        starts = {"flush": _flushing, "merge": _merging}

        async def advance(kind: str) -> None:
            before = world.version
            allowed = Conflict if kind == "merge" else ()
            try:
                ended = await jobs.setdefault(kind, starts[kind](world)).advance()
            except allowed:  # an input was dropped
                ended = True
            if ended:
                del jobs[kind]
            if world.version != before:
                await world.check()

        for move in moves:
            if isinstance(move, str):
                await advance(move)
            else:
                await world.write(move)
        while jobs:
            for kind in list(jobs):
                await advance(kind)
        await world.finish()
        assert (await world.check()).compacted_offset == world.oracle.head_offset

    asyncio.run(run())
