"""How fast each member answers lately: input of replica order and hedge delay."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Window:
    samples: deque[float]
    ewma_ms: float = 0.0
    recorded_at: float = -math.inf
    percentiles: dict[float, float] = field(default_factory=dict)
    age: int = 0


class LatencyTracker:
    """A bounded window of latencies and a moving average (EWMA) per member id. Times are monotonic seconds.

    Args:
        window: samples kept per member.
        smoothing: weight of the newest sample in the average, 0 to 1.
        failure_penalty_ms: a failed call counts in the average as this much slower than it was.
        stale_after_s: an average this old says nothing any more, so that a member once slow gets another chance.
        tolerance: how many times slower than the best a member may be and keep its place in `order`.
        slack_ms: a difference below this never matters.
        members: how many are known; those not called for longest are forgotten. Every start of a process is another member.
    """

    def __init__(
        self,
        *,
        window: int = 128,
        smoothing: float = 0.2,
        failure_penalty_ms: float = 1_000.0,
        stale_after_s: float = 10.0,
        tolerance: float = 2.0,
        slack_ms: float = 2.0,
        members: int = 1_000,
    ) -> None:
        self._window = window
        self._smoothing = smoothing
        self._failure_penalty_ms = failure_penalty_ms
        self._stale_after_s = stale_after_s
        self._tolerance = tolerance
        self._slack_ms = slack_ms
        self._kept = members
        self._members: dict[str, _Window] = {}

    def record(self, member_id: str, latency_ms: float, ok: bool, now: float) -> None:
        """Note one call. Failures move the average only; the percentiles are of answers."""
        window = self._members.pop(member_id, None) or _Window(deque(maxlen=self._window))
        self._members[member_id] = window  # in order of the last call
        while len(self._members) > self._kept:
            del self._members[next(iter(self._members))]
        cost_ms = latency_ms if ok else latency_ms + self._failure_penalty_ms
        fresh = now - window.recorded_at < self._stale_after_s
        window.ewma_ms = window.ewma_ms + self._smoothing * (cost_ms - window.ewma_ms) if fresh else cost_ms
        window.recorded_at = now
        if not ok:
            return
        window.samples.append(latency_ms)
        window.age += 1
        if window.age % 16 == 0:
            window.percentiles.clear()

    def ewma_ms(self, member_id: str, now: float) -> float | None:
        """The moving average, or None without a recent sample."""
        window = self._members.get(member_id)
        if window is None or now - window.recorded_at >= self._stale_after_s:
            return None
        return window.ewma_ms

    def percentile_ms(self, member_id: str, quantile: float) -> float | None:
        """A percentile of the window by nearest rank, at most 15 samples old; None below 16 samples."""
        window = self._members.get(member_id)
        if window is None or len(window.samples) < 16:
            return None
        if quantile not in window.percentiles:
            rank = max(1, math.ceil(quantile * len(window.samples)))
            window.percentiles[quantile] = sorted(window.samples)[rank - 1]
        return window.percentiles[quantile]

    def hedge_after_ms(
        self, member_id: str, *, quantile: float = 0.95, floor_ms: float = 5.0, ceiling_ms: float = 500.0
    ) -> float:
        """When to hedge a call of this member: its own percentile within bounds, the ceiling while it is unknown."""
        observed = self.percentile_ms(member_id, quantile)
        return ceiling_ms if observed is None else min(max(observed, floor_ms), ceiling_ms)

    def order(self, candidates: Sequence[T], member_id: Callable[[T], str], now: float) -> tuple[T, ...]:
        """The candidates, those much slower than the best of them moved behind.

        Otherwise the given order stays, because it is the one that keeps caches warm; unknown members keep their place.
        """
        averages = [self.ewma_ms(member_id(candidate), now) for candidate in candidates]
        best = min((average for average in averages if average is not None), default=0.0)
        limit = max(best * self._tolerance, best + self._slack_ms)
        slow = [average is not None and average > limit for average in averages]
        ranked = sorted(range(len(candidates)), key=lambda i: (slow[i], (averages[i] or 0.0) if slow[i] else 0.0, i))
        return tuple(candidates[i] for i in ranked)
