"""Admission: a bound on the reads at work and on those that wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shoal_core.errors import ResourceExhausted
from shoal_query.queue_time import ADMISSION, QueueTime


class Admission:
    """Lets ``at_work`` reads in at a time and ``waiting`` more wait for a place; the next is refused."""

    def __init__(self, at_work: int, waiting: int, queue_time: QueueTime) -> None:
        self._places = asyncio.Semaphore(at_work)
        self._limit = at_work + waiting
        self._queue_time = queue_time
        self.present = 0
        self.refused = 0

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """Hold a place. Raises `ResourceExhausted` at the bound."""
        if self.present >= self._limit:
            self.refused += 1
            raise ResourceExhausted(
                f"more than {self._limit} reads at a time; try again or add query nodes", retry_after_ms=50
            )
        self.present += 1
        clock = self._queue_time.clock
        since = clock.monotonic()
        try:
            async with self._places:
                self._queue_time.waited(ADMISSION, (clock.monotonic() - since) * 1_000)
                yield
        finally:
            self.present -= 1
