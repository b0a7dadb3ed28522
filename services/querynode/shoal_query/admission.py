"""Admission: a bound on the reads at work and on those that wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shoal_core.errors import ResourceExhausted


class Admission:
    """Lets ``at_work`` reads in at a time and ``waiting`` more wait for a place; the next is refused."""

    def __init__(self, at_work: int, waiting: int) -> None:
        self._places = asyncio.Semaphore(at_work)
        self._limit = at_work + waiting
        self.present = 0

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """Hold a place. Raises `ResourceExhausted` at the bound."""
        if self.present >= self._limit:
            raise ResourceExhausted(
                f"more than {self._limit} reads at a time; try again or add query nodes", retry_after_ms=50
            )
        self.present += 1
        try:
            async with self._places:
                yield
        finally:
            self.present -= 1
