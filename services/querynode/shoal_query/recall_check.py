"""Recall of live queries: now and then one that was answered through an index is asked again exactly, in the background. Where more is
missing than the index's curve says, as queries are not like the stored records, searches look harder.

Plain state: the node says when a query was answered and what a check found, and asks for leave to check.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from shoal_index.planner import Ask
from shoal_index.vector.calibration import recalls_of
from shoal_index.vector.engine import Neighbours, Vectors
from shoal_query.execute import SegmentHits, Selection, Snapshot, allowed_rows

LARGEST_RECALL = 0.99  # that is asked for by way of correction: curves end not far above it

_REMEMBERED = 500.0  # checks; older ones fade
_FEWEST = 20.0  # checks before anything is corrected
_PRIOR = 0.05 * _FEWEST  # rows missed, both as expected and as found, that keep few checks from swaying much
_SMALLEST_FACTOR = 0.1
_BURST_S = 1.0  # of a core, saved up while idle
_FADING_S = 600.0  # until what was found counts a third: where it made all a scan, nothing else would change it


@dataclass(slots=True)
class CheckBudget:
    """Leave to check: so large a share of one core's time since the start, little of it saved up."""

    share: float
    saved_s: float = 0.0
    checked_at: float | None = None
    running: bool = False

    def begin(self, now: float) -> bool:
        """Whether a check may begin; it must be told of its `end`."""
        if self.checked_at is not None:
            self.saved_s = min(_BURST_S, self.saved_s + self.share * (now - self.checked_at))
        self.checked_at = now
        if self.running or self.saved_s <= 0:
            return False
        self.running = True
        return True

    def end(self, taken_s: float) -> None:
        """A check is over."""
        self.running = False
        self.saved_s -= taken_s


@dataclass(slots=True)
class ObservedRecall:
    """What checks of one shard found. ``checks`` and the others fade with time.

    Attributes:
        expected: neighbours missed, as shares of k, that the curves foretold.
        missed: that were missed.
    """

    checks: float = 0.0
    expected: float = 0.0
    missed: float = 0.0
    _looked_at: float | None = None

    def fade(self, now: float) -> None:
        """Time has passed."""
        if self._looked_at is not None:
            kept = math.exp(-max(0.0, now - self._looked_at) / _FADING_S)
            self.checks, self.expected, self.missed = self.checks * kept, self.expected * kept, self.missed * kept
        self._looked_at = now

    def add(self, estimated: float, recall: float) -> None:
        """One query: what its plan said, and what exact search says."""
        fade = 1.0 - 1.0 / _REMEMBERED
        self.checks = self.checks * fade + 1.0
        self.expected = self.expected * fade + (1.0 - estimated)
        self.missed = self.missed * fade + (1.0 - recall)

    @property
    def recall(self) -> float | None:
        """The mean; None before the first check."""
        return 1.0 - self.missed / self.checks if self.checks else None

    @property
    def factor(self) -> float:
        """How much less than was asked for may be missed by the curves, so that as much is missed as was asked for; at most 1."""
        if self.checks < _FEWEST:
            return 1.0
        return min(1.0, max(_SMALLEST_FACTOR, (self.expected + _PRIOR) / (self.missed + _PRIOR)))

    def corrected(self, ask: Ask) -> Ask:
        """What to ask of the curves."""
        wanted = min(max(LARGEST_RECALL, ask.recall), 1.0 - (1.0 - ask.recall) * self.factor)
        return ask if wanted <= ask.recall else replace(ask, recall=wanted)

    def estimate(self, recall: float | None) -> float | None:
        """What the curves' estimate comes to."""
        return None if recall is None else max(0.0, 1.0 - (1.0 - recall) / self.factor)


def check_query(
    snapshot: Snapshot, selection: Selection, hits: Sequence[SegmentHits], query: Vectors, number: int
) -> list[tuple[float, float]]:
    """The estimated recall of one query, and the true one, on average over the segments that were searched through an index; none if
    no segment was.

    Args:
        snapshot: that the hits are of.
        query: (1, dim), the one of this number.
    """
    found = []
    for source, hit in enumerate(hits):
        if not hit.plan.approximate or hit.plan.recall is None:
            continue
        segment = snapshot.version.segments[source].segment
        allowed = allowed_rows(snapshot, source, selection)
        true = segment.scan(query, hit.plan.k, allowed=allowed, threads=1)
        found.append((hit.plan.recall, float(recalls_of(_of_query(hit.near, number), true, hit.plan.k)[0])))
    return [(float(np.mean([e for e, _ in found])), float(np.mean([r for _, r in found])))] if found else []


def _of_query(near: Neighbours, number: int) -> Neighbours:
    end = int(near.counts[: number + 1].sum())
    part = slice(end - int(near.counts[number]), end)
    return Neighbours(near.rows[part], near.distances[part], np.array([near.counts[number]]))
