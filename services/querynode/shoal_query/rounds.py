"""Rounds: asks that share one answer, where an ask may join only a round that has not been sent yet.

An answer speaks of an instant after its request was sent. An ask that arrives while a request is under way must not take that answer:
it could miss a write acknowledged before the ask began. It waits for the next round, together with all others that arrive meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from opentelemetry import trace

from shoal_wire.spans import shared_span

T = TypeVar("T")


class Rounds(Generic[T]):
    """Shares the answers of ``send`` among concurrent asks. At most one request is under way."""

    def __init__(self, send: Callable[[], Awaitable[T]]) -> None:
        self._send = send
        self._under_way: asyncio.Task[T] | None = None
        self._next: asyncio.Task[T] | None = None
        self._askers: list[trace.Span] = []  # of the next round
        self.sent = 0

    async def ask(self) -> T:
        """An answer whose request was sent after this call began. Raises what ``send`` raises."""
        self._askers.append(trace.get_current_span())
        if self._next is None:
            self._next = asyncio.create_task(self._round(self._under_way))
            self._next.add_done_callback(seen)
        return await asyncio.shield(self._next)

    async def _round(self, before: asyncio.Task[T] | None) -> T:
        if before is not None and not before.done():
            await asyncio.wait([before])
        self._under_way, self._next = self._next, None
        askers, self._askers = self._askers, []
        self.sent += 1
        with shared_span("query catch up", askers):
            return await self._send()


def seen(task: asyncio.Future[T]) -> None:
    """Every ask may have been cancelled; the failure is theirs to see, not the loop's."""
    if not task.cancelled():
        task.exception()
