"""Every order of flushes, merges, crashes, sweeps and time: no version that anybody may open ever loses an object."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoal_core.errors import Conflict, NotFound, UploadExpired
from shoal_testing.compaction import SteppedJob
from shoal_testing.garbage import SweptWorld
from shoal_testing.schedules import run_quietly
from shoal_testing.strategies import examples

JOBS = ("flush", "flush", "merge", "sweep", "sweep2")
PAUSES_S = (1, 30, 14 * 60, 16 * 60, 31 * 60)
MOVES = st.lists(
    st.sampled_from([*JOBS, "write", "write"])
    | st.tuples(st.sampled_from(["crash", "run", "several", "several"]), st.sampled_from(JOBS))
    | st.sampled_from(PAUSES_S),
    min_size=10,
    max_size=60,
)
Move = str | int | tuple[str, str]


class _Run:
    """One order of events. Sweepers have no grace: what the catalog says must do."""

    def __init__(self, world: SweptWorld) -> None:
        self.world = world
        self.jobs: dict[str, SteppedJob] = {}
        self.starts: dict[str, Callable[[], SteppedJob]] = {
            "flush": lambda: SteppedJob(lambda step: world.flush(step=step)),
            "merge": lambda: SteppedJob(lambda step: world.merge(step=step)),
            "sweep": lambda: world.sweeping(grace_ms=0),
            "sweep2": lambda: world.sweeping(grace_ms=0, objects=3),
        }
        self.crashed: list[SteppedJob] = []
        self.writes = 0

    async def make(self, move: Move) -> None:
        match move:
            case "write":
                self.writes += 1
                await self.world.upsert("same", f"id{self.writes % 7}", value=float(self.writes))
            case int() as pause_s:
                await self.world.clock.advance(pause_s)
            case ("crash", str() as kind):
                if kind in self.jobs:
                    self.crashed.append(self.jobs.pop(kind))
            case ("several", str() as kind):
                for _ in range(4):
                    if await self.advance(kind):
                        return
            case ("run", str() as kind):
                while not await self.advance(kind):
                    pass
            case str() as kind:
                await self.advance(kind)

    async def advance(self, kind: str) -> bool:
        """One step of a job; whether it ended."""
        try:
            ended = await self.jobs.setdefault(kind, self.starts[kind]()).advance()
        except (Conflict, UploadExpired, NotFound):  # a lost race, or so slow that its inputs were swept
            ended = True
        if ended:
            del self.jobs[kind]
        return ended

    async def check(self) -> None:
        for info in await self.world.retained():
            await self.world.check_version(info)

    async def close(self) -> None:
        """Cancel what crashed and what is under way."""
        for job in (*self.crashed, *self.jobs.values()):
            await job.cancel()


@pytest.mark.parametrize("shards", [1, 2])
@examples(30)
@given(moves=MOVES)
@example(
    moves=[
        "write",
        ("run", "flush"),
        "write",
        ("run", "flush"),
        *["merge"] * 6,
        14 * 60,
        *["sweep"] * 9,
        ("run", "merge"),
    ]
)
def test_any_interleaving_of_jobs_crashes_and_sweeps(shards: int, moves: Sequence[Move]) -> None:
    async def run() -> None:
        world = await SweptWorld.create(shards=shards)
        order = _Run(world)
        for move in moves:
            before = (world.version, await world.stored())
            await order.make(move)
            if (world.version, await world.stored()) != before:
                await order.check()
        await order.close()
        await world.check()
        await world.finish()
        await world.clock.advance(3600)
        report = await world.sweeper().sweep()
        assert report.counters.failures == 0
        assert set(await world.stored()) == await world.needed()
        assert await world.catalog.expired_uploads(limit=9) == []
        await world.check()

    run_quietly(run())
