"""Calling other processes: deadlines, retries, and hedged calls of replicas.

The decisions are plain classes over given times (`RetryPolicy`, `ReplicaRace`); `call_with_retry` and `call_replicas`
run them under asyncio with whatever `Clock` they get.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from shoal_core.errors import DeadlineExceeded, InvalidArgument, OutcomeUnknown, ShoalError, Unavailable
from shoal_core.ports import Clock, Random

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a call must have ended, in seconds of ``clock.monotonic()``; may be infinite."""

    clock: Clock
    expires_at: float

    @classmethod
    def after(cls, clock: Clock, timeout_ms: float) -> Deadline:
        """``timeout_ms`` from now."""
        return cls(clock, clock.monotonic() + timeout_ms / 1_000)

    def remaining_ms(self) -> float:
        """What is left; 0 when it has passed."""
        return max(0.0, (self.expires_at - self.clock.monotonic()) * 1_000)

    def check(self) -> None:
        """Raise `DeadlineExceeded` if it has passed."""
        if self.clock.monotonic() >= self.expires_at:
            raise DeadlineExceeded("the deadline of the call has passed; give it more time or ask for less")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off.

    Attributes:
        max_attempts: the first try included.
        jitter: the share of a pause that is random, 0 to 1.
    """

    max_attempts: int = 4
    initial_backoff_ms: float = 50.0
    max_backoff_ms: float = 2_000.0
    multiplier: float = 2.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise InvalidArgument(f"must be at least 1, not {self.max_attempts}", field="retry.max_attempts")
        if not 0 <= self.initial_backoff_ms <= self.max_backoff_ms:
            raise InvalidArgument("must be between 0 and max_backoff_ms", field="retry.initial_backoff_ms")
        if self.multiplier < 1:
            raise InvalidArgument(f"must be at least 1, not {self.multiplier}", field="retry.multiplier")
        if not 0 <= self.jitter <= 1:
            raise InvalidArgument(f"must be between 0 and 1, not {self.jitter}", field="retry.jitter")

    def backoff_ms(self, attempt: int, uniform: float) -> float:
        """The pause after the ``attempt``-th failure (from 1); ``uniform`` is random in [0, 1)."""
        # The exponent is bounded: a loop that never gives up must not overflow.
        exponent = min(max(attempt, 1) - 1, 64)
        full = min(self.max_backoff_ms, self.initial_backoff_ms * self.multiplier**exponent)
        return full * (1 - self.jitter * uniform)


async def call_with_retry(
    operation: Callable[[], Awaitable[R]],
    *,
    policy: RetryPolicy,
    clock: Clock,
    random: Random,
    deadline: Deadline,
    retryable: Callable[[ShoalError], bool],
    keeps_deadline: bool = False,
) -> R:
    """Call ``operation`` until it succeeds; pauses are at least the error's ``retry_after_ms``.

    An attempt still running at the deadline is cancelled; whether it had an effect is then unknown. An operation that
    ``keeps_deadline`` by itself is spared the task and the timer for that.

    Raises:
        DeadlineExceeded: the deadline passed, or would pass during the next pause; the last error is its cause.
        ShoalError: the last error, when it is not retryable or the attempts are used up.
    """
    failures = 0
    last: ShoalError | None = None
    while True:
        try:
            return await (operation() if keeps_deadline else _within(operation, clock, deadline, last))
        except DeadlineExceeded:
            raise
        except ShoalError as error:
            failures, last = failures + 1, error
            if failures >= policy.max_attempts or not retryable(error):
                raise
        pause_ms = max(policy.backoff_ms(failures, random.uniform()), last.retry_after_ms)
        if pause_ms >= deadline.remaining_ms():
            raise _deadline_exceeded(last) from last
        await clock.sleep(pause_ms / 1_000)


async def _within(
    operation: Callable[[], Awaitable[R]], clock: Clock, deadline: Deadline, last: ShoalError | None
) -> R:
    deadline.check()
    task = asyncio.ensure_future(operation())
    try:
        await _wait_any((task,), deadline.expires_at, clock)
        if not task.done():
            raise _deadline_exceeded(last) from last
        error = _failure(task)
        if error is not None:
            raise error
        return task.result()
    finally:
        await _cancel((task,))


def _deadline_exceeded(last: ShoalError | None) -> DeadlineExceeded:
    if last is None:
        return DeadlineExceeded("no answer before the deadline of the call; give it more time or ask for less")
    message = f"the deadline of the call leaves no time for another try after: {type(last).__name__}: {last}"
    return DeadlineExceeded(message, retry_after_ms=last.retry_after_ms)


@dataclass(slots=True)
class ReplicaRace:
    """Which of ``count`` candidates to call when. Times are seconds of one monotonic clock.

    At most one call is a hedge: it starts when a single running call has taken ``hedge_after_ms``. A failed call, or
    one that took ``attempt_timeout_ms``, is replaced by the next candidate at once.
    """

    count: int
    hedge_after_ms: float | None
    attempt_timeout_ms: float | None
    launched: int = 0
    hedged: bool = False
    running: dict[int, float] = field(default_factory=dict)

    def launch(self, now: float) -> int | None:
        """Start the next candidate: its index, or None if all were tried."""
        if self.launched >= self.count:
            return None
        index = self.launched
        self.launched += 1
        self.running[index] = now
        return index

    def finished(self, index: int, now: float) -> float:
        """A running call ended or was given up; the milliseconds it took."""
        return (now - self.running.pop(index)) * 1_000

    def hedge(self, now: float) -> int | None:
        """Start a hedge if one is due: its index, else None."""
        if now < self._hedge_at():
            return None
        self.hedged = True
        return self.launch(now)

    def expired(self, now: float) -> list[int]:
        """Running calls that have used up their time."""
        return [index for index, started in self.running.items() if now >= self._attempt_ends_at(started)]

    def wake_at(self) -> float:
        """When `hedge` or `expired` has something to say next; infinity if never."""
        return min([self._hedge_at(), *map(self._attempt_ends_at, self.running.values())])

    def _hedge_at(self) -> float:
        if self.hedge_after_ms is None or self.hedged or len(self.running) != 1 or self.launched >= self.count:
            return math.inf
        return next(iter(self.running.values())) + self.hedge_after_ms / 1_000

    def _attempt_ends_at(self, started: float) -> float:
        return math.inf if self.attempt_timeout_ms is None else started + self.attempt_timeout_ms / 1_000


async def call_replicas(
    candidates: Sequence[T],
    operation: Callable[[T], Awaitable[R]],
    *,
    hedge_after_ms: float | None,
    attempt_timeout_ms: float | None,
    clock: Clock,
    deadline: Deadline,
    retryable: Callable[[ShoalError], bool],
    on_result: Callable[[T, float, bool], None] | None = None,
) -> R:
    """The first success of ``operation`` over ``candidates`` in order, see `ReplicaRace`; the losers are cancelled.

    ``on_result(candidate, latency_ms, ok)`` hears of every call that ended. ``ok`` means that the candidate works: it
    answered, if only with an error that another one would give too. A cancelled loser that had taken longer than the
    winner is reported as well, with the time so far, so that a slow replica is known as slow.

    Raises:
        DeadlineExceeded: the deadline passed first; the last error is its cause.
        ShoalError: an error that is not retryable, or the last one when every candidate failed; `Unavailable` if there
            is no candidate.
    """
    if not candidates:
        raise Unavailable("no replica is known for this call; try again when one has registered")
    deadline.check()
    race = ReplicaRace(len(candidates), hedge_after_ms, attempt_timeout_ms)
    calls = _ReplicaCalls(candidates, operation, race, retryable, on_result)
    try:
        calls.begin(race.launch(clock.monotonic()))
        while calls.running:
            await _wait_any(calls.running.values(), min(race.wake_at(), deadline.expires_at), clock)
            now = clock.monotonic()
            winner = calls.collect(now)
            if winner is not None:
                return winner.result()
            if now >= deadline.expires_at:
                raise _deadline_exceeded(calls.last_error) from calls.last_error
            calls.give_up_expired(now)
            calls.begin(race.hedge(now))
        raise calls.last_error or Unavailable("no replica answered")
    finally:
        await _cancel(calls.started)


class _ReplicaCalls(Generic[T, R]):
    """The running calls of a `ReplicaRace`."""

    def __init__(
        self,
        candidates: Sequence[T],
        operation: Callable[[T], Awaitable[R]],
        race: ReplicaRace,
        retryable: Callable[[ShoalError], bool],
        on_result: Callable[[T, float, bool], None] | None,
    ) -> None:
        self._candidates = candidates
        self._operation = operation
        self._race = race
        self._retryable = retryable
        self._on_result = on_result
        self.running: dict[int, asyncio.Future[R]] = {}
        self.started: list[asyncio.Future[R]] = []
        self.last_error: ShoalError | None = None

    def begin(self, index: int | None) -> None:
        """Call a candidate, if there is one."""
        if index is not None:
            self.running[index] = asyncio.ensure_future(self._operation(self._candidates[index]))
            self.started.append(self.running[index])

    def collect(self, now: float) -> asyncio.Future[R] | None:
        """The call that succeeded, if any; failed ones are replaced, and an error that is not retryable raised."""
        done = [(_failure(call), index) for index, call in self.running.items() if call.done()]
        for error, index in sorted(done, key=lambda entry: (entry[0] is not None, entry[1])):
            if error is None:
                return self._won(index, now)
            answered = isinstance(error, ShoalError) and not self._retryable(error)
            self._end(index, now, answered)
            if not isinstance(error, ShoalError) or answered:
                raise error
            self.last_error = error
            self.begin(self._race.launch(now))
        return None

    def give_up_expired(self, now: float) -> None:
        """Cancel the calls that took too long, and replace them if they may be repeated: what they did is unknown."""
        for index in self._race.expired(now):
            self.running[index].cancel()
            latency_ms = self._end(index, now, False)
            self.last_error = OutcomeUnknown(f"a replica did not answer within {latency_ms:.0f} ms")
            if not self._retryable(self.last_error):
                raise self.last_error
            self.begin(self._race.launch(now))

    def _won(self, index: int, now: float) -> asyncio.Future[R]:
        call = self.running[index]
        latency_ms = self._end(index, now, True)
        for loser, began in tuple(self._race.running.items()):
            if (now - began) * 1_000 > latency_ms:
                self._end(loser, now, True)
        return call

    def _end(self, index: int, now: float, ok: bool) -> float:
        del self.running[index]
        latency_ms = self._race.finished(index, now)
        if self._on_result is not None:
            self._on_result(self._candidates[index], latency_ms, ok)
        return latency_ms


def _failure(task: asyncio.Future[Any]) -> BaseException | None:
    if task.cancelled():
        # Nobody here cancelled it: gRPC does so to the calls of a channel that closes, whatever the server did with them.
        return OutcomeUnknown("the call was cancelled by its connection")
    return task.exception()


async def _wait_any(tasks: Iterable[asyncio.Future[Any]], until: float, clock: Clock) -> None:
    """Return when a task is done or ``until`` has come."""
    waiting: set[asyncio.Future[Any]] = set(tasks)
    timer: asyncio.Future[Any] | None = None
    if until != math.inf:
        timer = asyncio.ensure_future(clock.sleep(max(0.0, until - clock.monotonic())))
        waiting.add(timer)
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if timer is not None:
            await _cancel((timer,))


async def _cancel(tasks: Collection[asyncio.Future[Any]]) -> None:
    pending = [task for task in tasks if not task.done()]
    for task in pending:
        task.cancel()
    # Also retrieves the exceptions of tasks nobody asked about.
    await asyncio.gather(*tasks, return_exceptions=True)
