"""Runners of functions that die or are deposed at any moment: the output ends as it must, and never goes back."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from shoal_compactor.publish import Step, no_step
from shoal_core.contracts import AttachedFunction
from shoal_core.contracts.functions import RECORD_COUNTER, STATISTICS
from shoal_core.errors import NotFound, OutcomeUnknown, Unavailable
from shoal_testing.compaction import LEASE_MS, Crash, SteppedJob
from shoal_testing.functions import FunctionWorld, counted, values_of

STEPS = {
    "function-begun",
    "function-read",
    "function-computed",
    "function-append",
    "function-appended",
    "function-completed",
}
GUARD = "summary::s:total_count"
SMALL: dict[str, Any] = {"batch_records": 2}  # so that one change takes several writes


async def _put(world: FunctionWorld, first: int, last: int, **metadata: Any) -> None:
    await world.write([("upsert", f"id{n}", (1.0, 0.0), None, None, {"n": n, **metadata}) for n in range(first, last)])
    await world.flush()


async def _start(*, counter: bool = True) -> tuple[FunctionWorld, AttachedFunction]:
    """An output that is behind: values come, go and change."""
    world = await FunctionWorld.create(shards=2)
    if counter:
        await world.attach(RECORD_COUNTER, "count")
    function = await world.attach(STATISTICS, "stats")
    await _put(world, 0, 5, colour="red")
    await world.runner(**SMALL).run_due()
    await _put(world, 3, 9, colour="blue")
    return world, function


def _cut_off(world: FunctionWorld) -> None:
    """From now on no lease can be renewed: whoever holds one loses it without hearing of it."""

    def fail(name: str) -> None:
        if name == "renew":
            raise Unavailable(name)

    world.catalog.before = fail


async def _run(world: FunctionWorld, step: Step, holder: str = "r1") -> None:
    """A round of somebody whose predecessor's lease has run out."""
    await world.clock.advance(LEASE_MS / 1000)
    await world.runner(holder, step=step, **SMALL).run_due()


async def _check(world: FunctionWorld, function: AttachedFunction) -> None:
    offset = world.oracle.head_offset
    written = world.written(function)
    assert (await world.attached("stats")).completion_offset == offset
    assert (written[GUARD]["completion_offset"], written[GUARD]["count"]) == (offset, len(world.snapshots[offset]))
    assert counted(written) == values_of(world.snapshots[offset])
    try:
        count = await world.attached("count")
    except NotFound:
        return
    expected = {"total_count": len(world.snapshots[offset]), "completion_offset": offset}
    assert world.written(count) == {"function_output": expected}


async def _steps() -> list[str]:
    world, function = await _start()
    steps: list[str] = []

    async def note(name: str) -> None:
        steps.append(name)

    await _run(world, note)
    await _check(world, function)
    return steps


async def test_the_steps_are_all_there() -> None:
    steps = await _steps()
    assert set(steps) == STEPS
    assert steps.count("function-append") > 3


async def test_a_crash_at_any_step() -> None:
    for number, name in enumerate(await _steps()):
        world, function = await _start()
        passed = itertools.count()

        async def step(name: str, dies_at: int = number, passed: Any = passed) -> None:
            if next(passed) == dies_at:
                raise Crash(name)

        runner = world.runner(step=step, **SMALL)
        with pytest.MonkeyPatch.context() as patch:  # a process that is gone records nothing
            patch.setattr(type(runner), "_record_failure", _gone)
            await runner.run_due()
        await _run(world, no_step, "r2")
        await _check(world, function)
        assert await world.runner().run_due() == 0, name


async def _gone(*args: object) -> None:
    """Nothing."""


async def test_an_append_whose_outcome_is_unknown_is_settled() -> None:
    for moment in ("before", "after"):
        world, function = await _start()
        failures = itertools.chain([OutcomeUnknown("append")], itertools.repeat(None))

        def fail(name: str, failures: Any = failures) -> None:
            error = next(failures) if name == "append" else None
            if error is not None:
                raise error

        setattr(world.log, moment, fail)
        await _run(world, no_step)
        await _check(world, function)
        assert (await world.attached("stats")).failures == 0


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_completion_that_is_not_recorded_is_recorded_later(moment: str) -> None:
    world, function = await _start()

    def fail(name: str) -> None:
        if name == "complete_function":
            raise Unavailable(name)

    setattr(world.functions, moment, fail)
    await _run(world, no_step)
    assert (await world.attached("stats")).last_error == "complete_function"
    setattr(world.functions, moment, lambda name: None)
    head_offset = world.catalog.state(function.output_collection_id).head_offset
    await _run(world, no_step, "r2")
    await _check(world, function)
    assert world.catalog.state(function.output_collection_id).head_offset == head_offset


async def test_a_deposed_runner_delays_and_never_corrupts() -> None:
    """One runner stops at each of its steps, another runs at a newer version, and then the first one goes on."""
    for number in range(len(await _steps())):
        world, function = await _start()
        _cut_off(world)

        async def late(step: Step, world: FunctionWorld = world) -> int:
            return await world.runner("late", step=step, **SMALL).run_due()

        job = SteppedJob(late)
        for _ in range(number + 1):
            await job.advance()
        await _put(world, 0, 2, colour="green")
        await _run(world, no_step, "newer")
        offset = world.oracle.head_offset
        newer_is_done = world.written(function)[GUARD]["completion_offset"] == offset
        await job.run_out()
        reached = world.written(function)[GUARD]["completion_offset"]
        assert reached == offset or not newer_is_done
        assert reached < offset or counted(world.written(function)) == values_of(world.snapshots[offset])
        await _run(world, no_step, "newest")
        await _check(world, function)


async def test_two_at_once_step_by_step() -> None:
    """Two runners that both believe to hold the lease take turns in every way that a few bits can say."""
    for bits in itertools.product((0, 1), repeat=7):
        world, function = await _start(counter=False)
        _cut_off(world)

        def run(holder: str, world: FunctionWorld = world) -> SteppedJob:
            async def start(step: Step) -> int:
                return await world.runner(holder, step=step, **SMALL).run_due()

            return SteppedJob(start)

        jobs = [run("one"), run("two")]
        done = [False, False]
        await jobs[0].advance()
        await _put(world, 1, 4, colour="green")
        await world.clock.advance(LEASE_MS / 1000)
        for bit in bits:
            if not done[bit]:
                done[bit] = await jobs[bit].advance()
        for bit in (0, 1):
            if not done[bit]:
                await jobs[bit].run_out()
        reached = world.written(function)[GUARD]["completion_offset"]
        assert (await world.attached("stats")).completion_offset <= reached
        if reached == world.oracle.head_offset:
            assert counted(world.written(function)) == values_of(world.snapshots[reached])
        await _run(world, no_step, "last")
        await _check(world, function)
