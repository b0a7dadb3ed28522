"""The virtual clock that the tests of this library stand on."""

from __future__ import annotations

import asyncio

import pytest

from shoal_testing.virtual_clock import SeededRandom, VirtualClock


async def test_sleepers_wake_in_order_of_time_then_call() -> None:
    clock, woken = VirtualClock(start=100), list[tuple[str, float]]()

    async def sleeper(name: str, *pauses: float) -> None:
        for pause in pauses:
            await clock.sleep(pause)
            woken.append((name, clock.monotonic()))

    async with asyncio.TaskGroup() as group:
        for name, pauses in {"a": (2, 1), "b": (1, 1), "c": (2,), "d": (0,)}.items():
            group.create_task(sleeper(name, *pauses))
        await clock.advance(2.5)
        assert woken == [("d", 100), ("b", 101), ("a", 102), ("c", 102), ("b", 102)]
        assert clock.monotonic() == 102.5
        assert clock.next_wake_at() == 103
        await clock.advance(0.5)
    assert woken[-1] == ("a", 103)
    assert clock.time_ns() == 1_700_000_003_000_000_000


async def test_run_moves_time_only_as_far_as_needed() -> None:
    clock = VirtualClock()
    idle = asyncio.create_task(clock.sleep(1_000))
    await clock.run(clock.sleep(3))
    assert clock.monotonic() == 3
    idle.cancel()


async def test_run_notices_a_deadlock() -> None:
    with pytest.raises(RuntimeError, match="deadlock"):
        await VirtualClock().run(asyncio.Event().wait())


def test_seeded_random_repeats() -> None:
    a, b = SeededRandom(7), SeededRandom(7)
    assert [a.uniform() for _ in range(3)] == [b.uniform() for _ in range(3)]
    assert a.token() == b.token()
    assert len(a.token()) == 16
