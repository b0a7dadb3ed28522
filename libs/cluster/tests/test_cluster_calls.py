"""Deadlines, retries and hedged calls in virtual time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

import pytest

from shoal_cluster.calls import Deadline, ReplicaRace, RetryPolicy, call_replicas, call_with_retry
from shoal_core.errors import BackPressure, DeadlineExceeded, InvalidArgument, OutcomeUnknown, ShoalError, Unavailable
from shoal_testing.virtual_clock import SeededRandom, VirtualClock

EXACT = RetryPolicy(max_attempts=4, initial_backoff_ms=100, max_backoff_ms=300, multiplier=2, jitter=0)


def is_retryable(error: ShoalError) -> bool:
    return error.retryable


class Script:
    """An operation that plays one outcome per call and notes when it was called."""

    def __init__(self, clock: VirtualClock, *outcomes: BaseException | str, takes_s: float = 0.0) -> None:
        self.clock, self.outcomes, self.takes_s = clock, list(outcomes), takes_s
        self.called_at: list[float] = []

    async def __call__(self) -> str:
        self.called_at.append(round(self.clock.monotonic(), 6))
        await self.clock.sleep(self.takes_s)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


async def retry(clock: VirtualClock, operation: Callable[[], Awaitable[str]], timeout_ms: float = 10_000) -> str:
    return await clock.run(
        call_with_retry(
            operation,
            policy=EXACT,
            clock=clock,
            random=SeededRandom(1),
            deadline=Deadline.after(clock, timeout_ms),
            retryable=is_retryable,
        )
    )


class TestDeadline:
    async def test_counts_down_and_raises(self) -> None:
        clock = VirtualClock()
        deadline = Deadline.after(clock, 1_500)
        deadline.check()
        await clock.advance(1.0)
        assert deadline.remaining_ms() == pytest.approx(500)
        await clock.advance(0.5)
        assert deadline.remaining_ms() == 0
        with pytest.raises(DeadlineExceeded, match="deadline"):
            deadline.check()


class TestRetryPolicy:
    def test_grows_up_to_the_bound(self) -> None:
        assert [EXACT.backoff_ms(n, 0.9) for n in (1, 2, 3, 4, 10_000)] == [100, 200, 300, 300, 300]

    def test_jitter_only_shortens(self) -> None:
        policy = RetryPolicy(initial_backoff_ms=100, jitter=0.5)
        assert policy.backoff_ms(1, 0.0) == 100
        assert policy.backoff_ms(1, 0.999) == pytest.approx(50, abs=0.1)

    @pytest.mark.parametrize(
        ("fields", "name"),
        [
            ({"max_attempts": 0}, "max_attempts"),
            ({"initial_backoff_ms": -1.0}, "initial_backoff_ms"),
            ({"initial_backoff_ms": 10.0, "max_backoff_ms": 5.0}, "initial_backoff_ms"),
            ({"multiplier": 0.5}, "multiplier"),
            ({"jitter": 1.5}, "jitter"),
        ],
    )
    def test_refuses_nonsense(self, fields: dict[str, float], name: str) -> None:
        with pytest.raises(InvalidArgument, match=name):
            RetryPolicy(**fields)  # type: ignore[arg-type]


class TestCallWithRetry:
    async def test_backs_off_until_success(self) -> None:
        clock = VirtualClock()
        script = Script(clock, Unavailable("a"), Unavailable("b"), "done")
        assert await retry(clock, script) == "done"
        assert script.called_at == [0, 0.1, 0.3]

    async def test_waits_as_long_as_the_error_says(self) -> None:
        clock = VirtualClock()
        script = Script(clock, BackPressure("full", retry_after_ms=2_500), "done")
        assert await retry(clock, script) == "done"
        assert script.called_at == [0, 2.5]

    async def test_raises_the_last_error_when_attempts_are_used_up(self) -> None:
        clock = VirtualClock()
        script = Script(clock, *(Unavailable(str(i)) for i in range(5)))
        with pytest.raises(Unavailable, match="3"):
            await retry(clock, script)
        assert len(script.called_at) == 4

    async def test_never_repeats_what_is_not_retryable(self) -> None:
        clock = VirtualClock()
        script = Script(clock, InvalidArgument("bad"), "done")
        with pytest.raises(InvalidArgument):
            await retry(clock, script)
        assert script.called_at == [0]

    async def test_other_exceptions_pass(self) -> None:
        clock = VirtualClock()
        with pytest.raises(ZeroDivisionError):
            await retry(clock, Script(clock, ZeroDivisionError()))

    async def test_does_not_begin_a_pause_that_outlasts_the_deadline(self) -> None:
        clock = VirtualClock()
        script = Script(clock, BackPressure("full", retry_after_ms=2_500), "done")
        with pytest.raises(DeadlineExceeded, match="BackPressure") as raised:
            await retry(clock, script, timeout_ms=2_500)
        assert clock.monotonic() == 0
        assert isinstance(raised.value.__cause__, BackPressure)
        assert raised.value.retry_after_ms == 2_500

    async def test_cancels_an_attempt_at_the_deadline(self) -> None:
        clock = VirtualClock()
        with pytest.raises(DeadlineExceeded):
            await retry(clock, Script(clock, "late", takes_s=5), timeout_ms=1_000)
        assert clock.monotonic() == 1.0
        assert clock.next_wake_at() is None

    async def test_a_passed_deadline_calls_nothing(self) -> None:
        clock = VirtualClock()
        script = Script(clock, "done")
        with pytest.raises(DeadlineExceeded):
            await retry(clock, script, timeout_ms=0)
        assert script.called_at == []

    async def test_a_call_cancelled_by_its_channel_is_unavailable(self) -> None:
        clock = VirtualClock()
        assert await retry(clock, Script(clock, asyncio.CancelledError(), "done")) == "done"

    async def test_cancelling_the_caller_cancels_the_operation(self) -> None:
        clock = VirtualClock()
        script = Script(clock, "late", takes_s=5)
        caller = asyncio.create_task(
            call_with_retry(
                script,
                policy=EXACT,
                clock=clock,
                random=SeededRandom(),
                deadline=Deadline(clock, math.inf),
                retryable=is_retryable,
            )
        )
        await clock.advance(1)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert clock.next_wake_at() is None


class Replicas:
    """Replicas by name: each takes some seconds and then returns its name or raises."""

    def __init__(self, clock: VirtualClock, **behaviour: tuple[float, BaseException | None]) -> None:
        self.clock, self.behaviour = clock, behaviour
        self.called: list[tuple[str, float]] = []
        self.cancelled: list[str] = []
        self.results: list[tuple[str, float, bool]] = []

    async def operation(self, name: str) -> str:
        self.called.append((name, round(self.clock.monotonic(), 6)))
        takes_s, error = self.behaviour[name]
        try:
            await self.clock.sleep(takes_s)
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        if error is not None:
            raise error
        return name

    async def call(
        self,
        *,
        hedge_after_ms: float | None = None,
        attempt_timeout_ms: float | None = None,
        timeout_ms: float = 60_000,
    ) -> str:
        return await self.clock.run(
            call_replicas(
                tuple(self.behaviour),
                self.operation,
                hedge_after_ms=hedge_after_ms,
                attempt_timeout_ms=attempt_timeout_ms,
                clock=self.clock,
                deadline=Deadline.after(self.clock, timeout_ms),
                retryable=is_retryable,
                on_result=lambda name, ms, ok: self.results.append((name, round(ms, 3), ok)),
            )
        )


class TestCallReplicas:
    async def test_asks_the_first_only(self) -> None:
        replicas = Replicas(VirtualClock(), a=(0.01, None), b=(0.01, None))
        assert await replicas.call(hedge_after_ms=50) == "a"
        assert replicas.called == [("a", 0)]
        assert replicas.results == [("a", 10, True)]

    async def test_moves_on_upon_failure(self) -> None:
        replicas = Replicas(VirtualClock(), a=(0.01, Unavailable("x")), b=(0.02, Unavailable("y")), c=(0, None))
        assert await replicas.call() == "c"
        assert replicas.called == [("a", 0), ("b", 0.01), ("c", 0.03)]
        assert replicas.results == [("a", 10, False), ("b", 20, False), ("c", 0, True)]

    async def test_raises_the_last_error(self) -> None:
        replicas = Replicas(VirtualClock(), a=(0.01, Unavailable("x")), b=(0.02, Unavailable("y")))
        with pytest.raises(Unavailable, match="y"):
            await replicas.call()

    async def test_an_error_of_the_request_ends_it(self) -> None:
        replicas = Replicas(VirtualClock(), a=(0.01, InvalidArgument("bad")), b=(0, None))
        with pytest.raises(InvalidArgument):
            await replicas.call()
        assert replicas.called == [("a", 0)]
        assert replicas.results == [("a", 10, True)]  # the replica works

    async def test_hedges_a_slow_call_and_cancels_the_loser(self) -> None:
        replicas = Replicas(VirtualClock(), a=(9, None), b=(0.01, None), c=(0, None))
        assert await replicas.call(hedge_after_ms=50) == "b"
        assert replicas.called == [("a", 0), ("b", 0.05)]
        assert replicas.cancelled == ["a"]
        assert replicas.results == [("b", 10, True), ("a", 60, True)]
        assert replicas.clock.next_wake_at() is None

    async def test_the_first_may_still_win_after_the_hedge(self) -> None:
        replicas = Replicas(VirtualClock(), a=(0.06, None), b=(1, None))
        assert await replicas.call(hedge_after_ms=50) == "a"
        assert replicas.cancelled == ["b"]
        assert replicas.results == [("a", 60, True)]  # b had no chance to show anything

    async def test_hedges_once(self) -> None:
        replicas = Replicas(VirtualClock(), a=(1, None), b=(2, None), c=(0, None))
        assert await replicas.call(hedge_after_ms=50) == "a"
        assert [name for name, _ in replicas.called] == ["a", "b"]

    async def test_a_failed_hedge_is_replaced(self) -> None:
        replicas = Replicas(VirtualClock(), a=(1, None), b=(0.01, Unavailable("x")), c=(0.01, None))
        assert await replicas.call(hedge_after_ms=50) == "c"
        assert replicas.called == [("a", 0), ("b", 0.05), ("c", 0.06)]

    async def test_without_a_hedge_a_slow_call_is_waited_for(self) -> None:
        replicas = Replicas(VirtualClock(), a=(9, None), b=(0, None))
        assert await replicas.call() == "a"

    async def test_gives_up_an_attempt_after_its_time(self) -> None:
        replicas = Replicas(VirtualClock(), a=(9, None), b=(0.5, None))
        assert await replicas.call(attempt_timeout_ms=1_000) == "b"
        assert replicas.called == [("a", 0), ("b", 1)]
        assert replicas.cancelled == ["a"]
        assert replicas.results == [("a", 1_000, False), ("b", 500, True)]

    async def test_all_attempts_time_out(self) -> None:
        replicas = Replicas(VirtualClock(), a=(9, None), b=(9, None))
        with pytest.raises(OutcomeUnknown, match="1000 ms"):
            await replicas.call(attempt_timeout_ms=1_000)
        assert replicas.clock.monotonic() == 2

    async def test_never_exceeds_the_deadline(self) -> None:
        replicas = Replicas(VirtualClock(), a=(0.5, Unavailable("x")), b=(9, None))
        with pytest.raises(DeadlineExceeded, match="Unavailable"):
            await replicas.call(timeout_ms=800)
        assert replicas.clock.monotonic() == pytest.approx(0.8)
        assert replicas.cancelled == ["b"]

    async def test_success_beats_a_failure_of_the_same_moment(self) -> None:
        clock, answered = VirtualClock(), asyncio.Event()

        async def operation(name: str) -> str:
            if name == "b":
                answered.set()
                return name
            await answered.wait()
            raise InvalidArgument("bad")

        call = call_replicas(
            ("a", "b"),
            operation,
            hedge_after_ms=50,
            attempt_timeout_ms=None,
            clock=clock,
            deadline=Deadline(clock, math.inf),
            retryable=is_retryable,
        )
        assert await clock.run(call) == "b"

    async def test_no_candidates(self) -> None:
        with pytest.raises(Unavailable, match="no replica"):
            await Replicas(VirtualClock()).call()

    async def test_a_defect_passes_and_cancels_the_rest(self) -> None:
        replicas = Replicas(VirtualClock(), a=(1, None), b=(0.01, KeyError("defect")))
        with pytest.raises(KeyError):
            await replicas.call(hedge_after_ms=50)
        assert replicas.cancelled == ["a"]


class TestReplicaRace:
    def test_hedge_waits_for_the_newest_single_call(self) -> None:
        race = ReplicaRace(3, hedge_after_ms=50, attempt_timeout_ms=1_000)
        assert race.launch(0.0) == 0
        assert race.wake_at() == pytest.approx(0.05)
        assert race.finished(0, 0.01) == pytest.approx(10)
        assert race.launch(0.01) == 1
        assert race.hedge(0.05) is None
        assert race.hedge(0.07) == 2
        assert race.wake_at() == pytest.approx(1.01)
        assert race.expired(1.015) == [1]

    def test_sleeps_for_ever_without_limits(self) -> None:
        race = ReplicaRace(1, hedge_after_ms=None, attempt_timeout_ms=None)
        race.launch(0.0)
        assert race.wake_at() == math.inf
        assert race.launch(0.0) is None
