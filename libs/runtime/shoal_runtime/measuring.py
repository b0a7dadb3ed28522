"""What metrics need beside counters: answers asked for again and again, and how late the event loop is."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from shoal_core.errors import ShoalError
from shoal_core.ports import Clock

T = TypeVar("T")

_log = logging.getLogger(__name__)
_LAG_INTERVAL_S = 0.25
_SHARED_S = 0.5


class Polled(Generic[T]):
    """The last answer to a question that is asked every ``interval_ms``; None before the first, and after a failure: rather
    nothing than something old.
    """

    def __init__(self, name: str, ask: Callable[[], Awaitable[T]], clock: Clock, interval_ms: int) -> None:
        self._name = name
        self._ask = ask
        self._clock = clock
        self._interval_s = interval_ms / 1_000
        self.value: T | None = None

    async def run(self) -> None:
        """Ask until cancelled. A failure is logged at most once in a row."""
        failed = False
        while True:
            try:
                self.value, failed = await self._ask(), False
            except Exception as error:
                self.value = None
                if not failed:
                    unexpected = None if isinstance(error, ShoalError) else error
                    _log.warning("cannot measure the %s: %s", self._name, error, exc_info=unexpected)
                failed = True
            await self._clock.sleep(self._interval_s)


class Shared(Generic[T]):
    """One reading for all metrics that are taken from it: made anew only when the last is more than half a second old."""

    def __init__(self, read: Callable[[], T], clock: Clock) -> None:
        self._read = read
        self._clock = clock
        self._last: tuple[float, T] | None = None

    def __call__(self) -> T:
        now = self._clock.monotonic()
        if self._last is None or now - self._last[0] > _SHARED_S:
            self._last = (now, self._read())
        return self._last[1]


async def watch_event_loop(clock: Clock, record: Callable[[float], None]) -> None:
    """Tell every quarter of a second how many milliseconds later than asked for the event loop came back."""
    while True:
        due = clock.monotonic() + _LAG_INTERVAL_S
        await clock.sleep(_LAG_INTERVAL_S)
        record(max(0.0, (clock.monotonic() - due) * 1_000))
