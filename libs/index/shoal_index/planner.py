"""Which way to search one segment, and how hard, from exact counts and what was measured of its index.

A scan of the allowed rows is exact, and the fastest where they are few; a walk of a graph is the fastest where they are most rows. What
lies between depends on how many queries share a scan, and on how far the walk has to go for the recall asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from shoal_index.vector.calibration import Calibration, Point

SCAN_ROWS = 1_000  # so few are scanned whatever else there is
DEFAULT_EF = 64  # of a graph that was not calibrated
DEFAULT_RECALL = 0.95

# What comparing one row on a walk costs, in rows of a scan: one query waits for memory in both, several share each row of a scan.
WALK_COST = 3.0
WALK_COST_SHARED = 12.0
_SHARED = 8  # queries
_COMPARED_PER_EF = 24  # rows, of a graph that was not calibrated


class Strategy(StrEnum):
    """How a segment is searched."""

    NOTHING = "nothing"
    SCAN = "scan"
    GRAPH = "graph"


@dataclass(frozen=True, slots=True)
class Ask:
    """What a search wants.

    Attributes:
        recall: the share of the true k nearest that is to be found, at least on average.
        effort: of an index, instead of what the recall needs; 0 leaves it to the planner.
        exact: all of the true nearest.
        queries: how many are searched together.
    """

    k: int
    recall: float = DEFAULT_RECALL
    effort: int = 0
    exact: bool = False
    queries: int = 1


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """The choice for one segment.

    Attributes:
        k: rows to find for each query.
        effort: of the index.
        recall: estimated; None where nothing was measured.
        rejected: the strategies not chosen, each with the reason.
        compared: rows whose distance is computed exactly.
    """

    strategy: Strategy
    k: int
    effort: int = 0
    recall: float | None = 1.0
    rejected: tuple[tuple[Strategy, str], ...] = ()
    compared: int = 0


def plan_segment(
    ask: Ask, *, rows: int, allowed: int, has_graph: bool, calibration: Calibration | None = None
) -> SegmentPlan:
    """Choose for a segment of ``rows`` rows of which ``allowed`` may be answered."""
    wanted = min(ask.k, allowed)
    if wanted == 0:
        return SegmentPlan(Strategy.NOTHING, 0)

    def scan(reason: str) -> SegmentPlan:
        return SegmentPlan(Strategy.SCAN, wanted, rejected=((Strategy.GRAPH, reason),), compared=allowed)

    if not has_graph:
        return scan("the segment is small and has none")
    if ask.exact:
        return scan("an exact answer was asked for")
    if allowed <= SCAN_ROWS:
        return scan(f"only {allowed} rows may be answered, at most {SCAN_ROWS} are always compared one by one")
    point = _effort(ask, wanted, allowed / rows, calibration)
    if point is None:
        return scan(
            f"no effort that was measured reaches a recall of {ask.recall:g} with {allowed} of {rows} rows allowed"
        )
    effort = max(point.effort, wanted)
    compared = point.compared * effort / point.effort
    cost = compared * (WALK_COST if ask.queries < _SHARED else WALK_COST_SHARED)
    if not ask.effort and cost >= allowed:
        return scan(f"a walk past {compared:.0f} rows costs more than comparing {allowed} one by one")
    against = f"comparing {allowed} rows costs more than a walk past {compared:.0f}"
    recall = None if math.isnan(point.recall) else point.recall
    return SegmentPlan(Strategy.GRAPH, wanted, effort, recall, ((Strategy.SCAN, against),), wanted)


def _effort(ask: Ask, wanted: int, share: float, calibration: Calibration | None) -> Point | None:
    """What to walk with, and what that is expected to reach and cost; None where the target is out of reach."""
    if calibration is None:
        effort = max(ask.effort or DEFAULT_EF, wanted)
        return Point(effort, math.nan, 0.0, _COMPARED_PER_EF * effort / share)
    if ask.effort:
        effort = max(ask.effort, wanted)
        known = calibration.at(wanted, share, effort)
        return known or Point(effort, math.nan, 0.0, _COMPARED_PER_EF * effort / share)
    return calibration.least(wanted, share, ask.recall)


def worth(point: Point, allowed: int) -> bool:
    """Whether a search would walk so far, rather than compare the allowed rows: where calibration ends."""
    return point.compared * 2 * WALK_COST < allowed
