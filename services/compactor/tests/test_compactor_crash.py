"""A compactor that dies at any moment: the next one ends where an undisturbed one would have, and nothing that is named is lost."""

from __future__ import annotations

import pytest

from shoal_compactor.publish import Step, no_step
from shoal_core.errors import OutcomeUnknown, Unavailable
from shoal_testing.compaction import CompactionWorld, Crash
from shoal_testing.strategies import Record

FLUSH_STEPS = {"read", "folded", "uploaded", "tombstones", "manifest", "publish", "published"}
MERGE_STEPS = {"merge-read", "merge-built", "merge-uploaded"}


async def _start() -> CompactionWorld:
    """Two shards with a version each way: segments with and without tombstones, and a tail over them."""
    world = await CompactionWorld.create(shards=2)
    ids = [f"id{n}" for n in range(10)]
    await world.upsert(*ids)
    await world.flush()
    await world.delete(*ids[:3])
    await world.upsert("new1", "new2", *ids[5:8], value=2.0)
    return world


async def _jobs(world: CompactionWorld, step: Step) -> None:
    """What a compactor does until it dies: flushes and merges while new writes come."""
    await world.flush(step=step)
    await world.merge(step=step)
    await world.delete("id3", "new1")
    await world.upsert("id9", "id0", value=3.0)
    await world.flush(step=step)
    while await world.merge(step=step) is not None:
        pass


async def _finish(world: CompactionWorld) -> list[Record]:
    """A new compactor does the rest; writes that the dead one's time did not see come first."""
    if world.oracle.head_offset < 22:
        await world.delete("id3", "new1")
        await world.upsert("id9", "id0", value=3.0)
    await world.finish()
    manifest = await world.check()
    assert manifest.compacted_offset == world.oracle.head_offset == 22
    orphans = await world.orphans()
    await world.objects.delete(orphans)
    await world.check()
    return await world.records()


async def _undisturbed() -> tuple[list[Record], list[str], int, int]:
    """The final records, the steps passed, and the puts: those of the start, and all."""
    world = await _start()
    steps: list[str] = []
    puts = world.objects.puts

    async def note(name: str) -> None:
        steps.append(name)

    await _jobs(world, note)
    assert await world.orphans() == []
    return await _finish(world), steps, puts, world.objects.puts


async def test_the_steps_are_all_there() -> None:
    _, steps, _, _ = await _undisturbed()
    assert set(steps) == FLUSH_STEPS | MERGE_STEPS
    assert steps.count("read") == 2
    assert steps.count("merge-read") >= 3


async def test_a_crash_at_any_step() -> None:
    expected, steps, _, _ = await _undisturbed()
    for number in range(len(steps)):
        world = await _start()
        passed = 0

        async def step(name: str, dies_at: int = number) -> None:
            nonlocal passed
            passed += 1
            if passed > dies_at:
                raise Crash(name)

        with pytest.raises(Crash, match=f"^{steps[number]}$"):
            await _jobs(world, step)
        await world.check()
        assert await _finish(world) == expected, steps[number]


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_crash_at_any_put(moment: str) -> None:
    expected, _, first, last = await _undisturbed()
    for dies_at in range(first + 1, last + 1):
        world = await _start()

        def hook(key: str, world: CompactionWorld = world, dies_at: int = dies_at) -> None:
            if world.objects.puts >= dies_at:
                raise Crash(key)

        setattr(world.objects, f"{moment}_put", hook)
        with pytest.raises(Crash):
            await _jobs(world, no_step)
        setattr(world.objects, f"{moment}_put", None)
        await world.check()
        assert await _finish(world) == expected, dies_at


async def test_a_put_that_fails_is_an_error_of_the_one_tree() -> None:
    world = await _start()

    def unavailable(key: str) -> None:
        raise Unavailable(key)

    world.objects.before_put = unavailable
    with pytest.raises(Unavailable):
        await world.flush()
    world.objects.before_put = None
    await world.flush()
    await world.check()


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_publish_whose_outcome_is_unknown_is_settled(moment: str) -> None:
    world = await _start()
    failures = 1

    def unknown(name: str) -> None:
        nonlocal failures
        if name == "publish" and failures:
            failures -= 1
            raise OutcomeUnknown(name)

    setattr(world.catalog, moment, unknown)
    result = await world.flush()
    assert result is not None
    assert result.version.version == 2
    assert failures == 0
    assert (await world.check()).version == 2
    assert await world.orphans() == []


async def test_a_corrupt_block_is_never_compacted() -> None:
    world = await _start()
    manifest = await world.check()
    segment = next(part.segments[0] for part in manifest.shards if part.segments)
    world.objects.corrupt(segment.blocks["vectors"][0].key)
    with pytest.raises(Exception, match="checksum"):
        await world.flush()
    assert world.version.version == 1
