"""Time and randomness for tests: virtual, seeded, the same in every run."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Awaitable
from typing import TypeVar

R = TypeVar("R")


class VirtualClock:
    """A `Clock` that moves only when told. Sleepers wake in the order of their time, then of their call.

    Between two wake-ups the event loop runs ``settle_rounds`` times, so that what one sleeper starts is done before
    the next wakes. Work in threads or on sockets is not waited for.
    """

    def __init__(
        self, start: float = 0.0, *, epoch_ns: int = 1_700_000_000_000_000_000, settle_rounds: int = 50
    ) -> None:
        self._start = start
        self._now = start
        self._epoch_ns = epoch_ns
        self._settle_rounds = settle_rounds
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return self._now

    def time_ns(self) -> int:
        """See `Clock.time_ns`."""
        return self._epoch_ns + round((self._now - self._start) * 1e9)

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock was advanced by ``seconds``; 0 or less lets others run once."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), sleeper))
        await sleeper

    def next_wake_at(self) -> float | None:
        """When the next sleeper wakes; None if nobody sleeps."""
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    async def settle(self) -> None:
        """Let the event loop run without moving time."""
        for _ in range(self._settle_rounds):
            await asyncio.sleep(0)

    async def advance(self, seconds: float) -> None:
        """Move time on, waking sleepers on the way."""
        until = self._now + seconds
        await self.settle()
        while (wake_at := self.next_wake_at()) is not None and wake_at <= until:
            await self._wake_next()
        self._now = until

    async def run(self, awaitable: Awaitable[R]) -> R:
        """Await, moving time to the next sleeper whenever nothing else can happen.

        Raises:
            RuntimeError: it is not done, and nobody sleeps.
        """
        task = asyncio.ensure_future(awaitable)
        try:
            await self.settle()
            while not task.done():
                if self.next_wake_at() is None:
                    raise RuntimeError("deadlock in virtual time: the awaited is not done and nobody sleeps")
                await self._wake_next()
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _wake_next(self) -> None:
        wake_at, _, sleeper = heapq.heappop(self._sleepers)
        self._now = max(self._now, wake_at)
        if not sleeper.done():
            sleeper.set_result(None)
        await self.settle()


class SeededRandom:
    """A `Random` that gives the same sequence for the same seed."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def uniform(self) -> float:
        """See `Random.uniform`."""
        return self._random.random()

    def token(self) -> bytes:
        """See `Random.token`."""
        return self._random.randbytes(16)
