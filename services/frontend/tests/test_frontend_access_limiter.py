"""Rates: never more than the bucket allows over any window, and a hint after which a request is admitted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_core.errors import ResourceExhausted
from shoal_frontend.access.limiter import Limiter, Rates, rates_of
from shoal_frontend.access.verbs import Load


class HandClock:
    """A clock in nanoseconds, moved by hand."""

    def __init__(self) -> None:
        self.now_ns = 0

    def monotonic(self) -> float:
        return self.now_ns / 1e9

    def time_ns(self) -> int:
        return self.now_ns

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nobody sleeps here")


def limiter(clock: HandClock, rates: Rates, capacity: int = 100) -> Limiter:
    return Limiter("tenant", clock, rates_of(rates, {}), capacity=capacity)


def refused_ms(limited: Limiter, key: str) -> int | None:
    """How long to wait; None where the request was admitted."""
    try:
        limited.enter(key, Load.READ)
    except ResourceExhausted as error:
        return error.retry_after_ms
    return None


RATES = st.builds(
    Rates,
    reads_per_s=st.floats(0.05, 5_000),
    read_burst=st.integers(0, 50),
)
PAUSES_NS = st.lists(st.integers(0, 3_000_000_000) | st.integers(0, 2_000_000), min_size=1, max_size=200)


@given(RATES, PAUSES_NS)
def test_no_window_admits_more_than_burst_and_rate(rates: Rates, pauses_ns: list[int]) -> None:
    clock = HandClock()
    limited = limiter(clock, rates)
    admitted: list[float] = []
    for pause_ns in pauses_ns:
        clock.now_ns += pause_ns
        try:
            limited.enter("t", Load.READ)
        except ResourceExhausted:
            continue
        limited.leave("t")
        admitted.append(clock.monotonic())
    burst = rates.read_burst or max(1, int(rates.reads_per_s))
    for first in range(len(admitted)):
        for last in range(first, len(admitted)):
            window_s = admitted[last] - admitted[first]
            assert last - first + 1 <= burst + rates.reads_per_s * window_s + 1e-6


@given(RATES, PAUSES_NS)
def test_the_hint_is_long_enough_and_not_much_too_long(rates: Rates, pauses_ns: list[int]) -> None:
    clock = HandClock()
    limited = limiter(clock, rates)
    for pause_ns in pauses_ns:
        clock.now_ns += pause_ns
        wait_ms = refused_ms(limited, "t")
        if wait_ms is not None:
            assert 0 < wait_ms <= 1000 / rates.reads_per_s + 2
            clock.now_ns += wait_ms * 1_000_000
            limited.enter("t", Load.READ)


@given(st.integers(1, 5), st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), max_size=60))
def test_only_so_many_are_under_way(concurrent: int, steps: list[tuple[str, bool]]) -> None:
    limited = limiter(HandClock(), Rates(concurrent=concurrent))
    running = {"a": 0, "b": 0}
    for key, comes in steps:
        if comes:
            wait_ms = refused_ms(limited, key)
            assert (wait_ms is not None) == (running[key] == concurrent)
            running[key] += wait_ms is None
        elif running[key]:
            limited.leave(key)
            running[key] -= 1
        assert all(count <= concurrent for count in running.values())


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 400_000_000)), max_size=120))
def test_memory_is_bounded_and_forgetting_gives_nothing_away(steps: list[tuple[int, int]]) -> None:
    clock = HandClock()
    rates = Rates(reads_per_s=2.0, read_burst=2)
    bounded, unbounded = limiter(clock, rates, capacity=4), limiter(clock, rates, capacity=10_000)
    for key, pause_ns in steps:
        clock.now_ns += pause_ns
        admitted = []
        for limited in (unbounded, bounded):
            try:
                limited.enter(str(key), Load.READ)
                limited.leave(str(key))
                admitted.append(True)
            except ResourceExhausted:
                admitted.append(False)
                if limited is unbounded:
                    break
        assert admitted in ([True, True], [True, False], [False])
        assert len(bounded) <= 4
        if admitted == [True, False]:  # refused for want of memory: the other must not be ahead of it
            unbounded.refund(str(key), Load.READ)


def test_reads_and_writes_have_buckets_of_their_own() -> None:
    limited = limiter(HandClock(), Rates(reads_per_s=1, writes_per_s=1))
    limited.enter("t", Load.READ)
    limited.enter("t", Load.WRITE)
    for load in Load:
        with pytest.raises(ResourceExhausted):
            limited.enter("t", load)


def test_without_limits_nothing_is_remembered() -> None:
    limited = limiter(HandClock(), Rates())
    for key in range(1000):
        limited.enter(str(key), Load.WRITE)
        limited.leave(str(key))
    assert len(limited) == 0


def test_keys_may_have_rates_of_their_own_and_a_refund_counts() -> None:
    limited = Limiter("tenant", HandClock(), rates_of(Rates(reads_per_s=1), {"big": Rates()}))
    for _ in range(10):
        limited.enter("big", Load.READ)
    limited.enter("small", Load.READ)
    limited.refund("small", Load.READ)
    limited.enter("small", Load.READ)
    with pytest.raises(ResourceExhausted):
        limited.enter("small", Load.READ)
