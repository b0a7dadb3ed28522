"""The latency window, replica order and hedge delay."""

from __future__ import annotations

import pytest

from shoal_cluster.latency import LatencyTracker


def tracked(**latencies_ms: float) -> LatencyTracker:
    tracker = LatencyTracker()
    for member_id, latency_ms in latencies_ms.items():
        for _ in range(20):
            tracker.record(member_id, latency_ms, True, now=0.0)
    return tracker


def order(tracker: LatencyTracker, *names: str, now: float = 1.0) -> tuple[str, ...]:
    return tracker.order(names, lambda name: name, now)


def test_average_follows_the_samples() -> None:
    tracker = LatencyTracker(smoothing=0.5)
    tracker.record("a", 10, True, now=0)
    tracker.record("a", 20, True, now=1)
    assert tracker.ewma_ms("a", now=1) == 15
    assert tracker.ewma_ms("b", now=1) is None


def test_a_failure_costs_a_penalty_and_no_percentile() -> None:
    tracker = tracked(a=10)
    tracker.record("a", 5, False, now=0)
    assert tracker.ewma_ms("a", now=0) == pytest.approx(10 + 0.2 * 995)
    assert tracker.percentile_ms("a", 1.0) == 10


def test_percentile_by_nearest_rank_over_a_bounded_window() -> None:
    tracker = LatencyTracker(window=100)
    for latency_ms in range(1, 201):
        tracker.record("a", latency_ms, True, now=0)
    tracker.record("a", 201, True, now=0)
    assert tracker.percentile_ms("a", 0.5) == pytest.approx(151, abs=1)
    assert tracker.percentile_ms("a", 0.95) == pytest.approx(196, abs=1)


def test_too_few_samples_say_nothing() -> None:
    tracker = LatencyTracker()
    tracker.record("a", 1, True, now=0)
    assert tracker.percentile_ms("a", 0.95) is None
    assert tracker.hedge_after_ms("a", ceiling_ms=300) == 300


def test_hedge_delay_is_bounded() -> None:
    tracker = tracked(fast=0.5, usual=40, slow=9_000)
    delays = [tracker.hedge_after_ms(m, floor_ms=5, ceiling_ms=500) for m in ("fast", "usual", "slow")]
    assert delays == [5, 40, 500]


def test_small_differences_keep_the_order_and_the_caches() -> None:
    assert order(tracked(a=19, b=10), "a", "b") == ("a", "b")
    assert order(tracked(a=1.5, b=0.2), "a", "b") == ("a", "b")


def test_much_slower_members_go_last_by_speed() -> None:
    assert order(tracked(a=90, b=50, c=10), "a", "b", "c") == ("c", "b", "a")


def test_unknown_members_keep_their_place() -> None:
    assert order(tracked(b=50, c=10), "a", "b", "c") == ("a", "c", "b")
    assert order(LatencyTracker(), "b", "a") == ("b", "a")


def test_a_slow_member_gets_another_chance() -> None:
    tracker = tracked(a=900, b=10)
    assert order(tracker, "a", "b", now=1) == ("b", "a")
    tracker.record("b", 10, True, now=11)
    assert order(tracker, "a", "b", now=11) == ("a", "b")


def test_those_not_called_for_longest_are_forgotten() -> None:
    tracker = LatencyTracker(members=2)
    for name in ("a", "b", "a", "c"):
        tracker.record(name, 1.0, True, now=0.0)
    assert [tracker.ewma_ms(name, 0.0) for name in ("a", "b", "c")] == [1.0, None, 1.0]
