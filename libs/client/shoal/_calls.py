"""Calling one of several frontends: failover, retries, the deadline of a call."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from shoal_core.contracts import PublicApi
from shoal_core.errors import DeadlineExceeded, OutcomeUnknown, ResourceExhausted, ShoalError, Unavailable
from shoal_core.ports import Clock, Random

T = TypeVar("T")

_INITIAL_BACKOFF_MS = 50.0
_MAX_BACKOFF_MS = 2_000.0
_COOLDOWN_MS = 1_000.0


class SystemClock:
    """The process's clock."""

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return time.monotonic()

    def time_ns(self) -> int:
        """See `Clock.time_ns`."""
        return time.time_ns()

    async def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        await asyncio.sleep(seconds)


class SystemRandom:
    """The process's randomness."""

    def uniform(self) -> float:
        """See `Random.uniform`."""
        return random.random()

    def token(self) -> bytes:
        """See `Random.token`."""
        return secrets.token_bytes(16)


class Caller:
    """Calls the endpoints in turn; one that was unavailable is left out for a second unless all were.

    Args:
        endpoints: at least one.
        timeout_ms: of a whole call with its retries.
    """

    def __init__(self, endpoints: Sequence[PublicApi], timeout_ms: int, clock: Clock, random: Random) -> None:
        self._endpoints = tuple(endpoints)
        self._usable_at = [0.0] * len(self._endpoints)
        self._next = 0
        self.timeout_ms = timeout_ms
        self.clock = clock
        self._random = random

    def new_key(self) -> str:
        """A fresh idempotency key: 32 hexadecimal digits."""
        return self._random.token().hex()

    async def call(
        self, operation: Callable[[PublicApi], Awaitable[T]], *, write: bool = False, repeatable: bool = True
    ) -> T:
        """The result of ``operation``, tried until it succeeds, fails for good or the deadline comes.

        Args:
            write: it may change something, so a try that was cut off may have happened.
            repeatable: doing it twice does no harm (a read, or a write with an idempotency key).

        Raises:
            DeadlineExceeded: no answer in time.
            OutcomeUnknown: no clear answer in time to a write.
            ShoalError: the last error.
        """
        deadline = self.clock.monotonic() + self.timeout_ms / 1_000
        failures, ambiguous = 0, False
        while True:
            index = self._pick()
            try:
                async with asyncio.timeout(deadline - self.clock.monotonic()):
                    return await operation(self._endpoints[index])
            except TimeoutError as error:
                raise self._expired(write) from error
            except ShoalError as error:
                failures += 1
                ambiguous = ambiguous or isinstance(error, OutcomeUnknown)
                self._note(index, error)
                if not _is_retryable(error, repeatable):
                    raise
                pause_ms = self._pause_ms(error, failures)
                if self.clock.monotonic() + pause_ms / 1_000 >= deadline:
                    error.add_note(f"given up after {failures} tries within {self.timeout_ms} ms")
                    if ambiguous and not isinstance(error, OutcomeUnknown):
                        raise OutcomeUnknown(f"an earlier try of this write may have happened; now: {error}") from error
                    raise
            await self.clock.sleep(pause_ms / 1_000)

    def _pick(self) -> int:
        now, count = self.clock.monotonic(), len(self._endpoints)
        order = [(self._next + step) % count for step in range(count)]
        index = min(order, key=lambda candidate: max(self._usable_at[candidate], now))
        self._next = (index + 1) % count
        return index

    def _note(self, index: int, error: ShoalError) -> None:
        if isinstance(error, Unavailable | OutcomeUnknown):
            self._usable_at[index] = self.clock.monotonic() + _COOLDOWN_MS / 1_000

    def _pause_ms(self, error: ShoalError, failures: int) -> float:
        """None before another endpoint is tried for the first time; else exponential with jitter."""
        if isinstance(error, Unavailable | OutcomeUnknown) and failures < len(self._endpoints):
            return 0.0
        backoff = min(_MAX_BACKOFF_MS, _INITIAL_BACKOFF_MS * 2.0 ** min(failures - 1, 16))
        return max(backoff * (1 - self._random.uniform() / 2), error.retry_after_ms)

    def _expired(self, write: bool) -> ShoalError:
        if write:
            return OutcomeUnknown(
                f"no answer to a write within {self.timeout_ms} ms: it may have happened; raise timeout_ms, and to be "
                "sure send it again with the same idempotency_key"
            )
        return DeadlineExceeded(f"no answer within {self.timeout_ms} ms; raise timeout_ms or ask for less")


def _is_retryable(error: ShoalError, repeatable: bool) -> bool:
    if isinstance(error, OutcomeUnknown):
        return repeatable
    if type(error) is ResourceExhausted:
        return error.retry_after_ms > 0  # a quota that does not say when it is over will not pass by itself
    return error.retryable
