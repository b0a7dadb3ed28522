"""Which way to search one segment, and how hard, from exact counts and what was measured of its index.

A scan of the allowed rows is exact, and the fastest where they are few; an index is the fastest where they are most rows. What lies
between depends on how many queries share a scan, and on how hard an index has to look for the recall asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from shoal_index.vector import costs
from shoal_index.vector.calibration import BY_LOT, Calibration, Point
from shoal_index.vector.engine import VectorIndex

SCAN_ROWS = 1_000  # so few are scanned whatever else there is
DEFAULT_EF = 64  # of a graph that was not calibrated
DEFAULT_RECALL = 0.95

_SHARED = 8  # queries that share what they read
_PAGED_ROW_NS = 3_000.0  # a row somewhere that may not be in memory
_PAGED_SCAN = 8.0  # times as long as in memory, a scan takes
_UNKNOWN = 0.35  # of what may be missed, kept in reserve where a filter leaves next to nothing: it may be worse than those measured
_COMPARED_PER_EF = 24  # rows, of a graph that was not calibrated


class Strategy(StrEnum):
    """How a segment is searched."""

    NOTHING = "nothing"
    SCAN = "scan"
    GRAPH = "graph"
    CODED_GRAPH = "coded_graph"
    CLUSTERS = "clusters"


@dataclass(frozen=True, slots=True)
class Way:
    """An index of a segment, and what was measured of it. A segment has one for each `Strategy` but a scan, or several."""

    index: VectorIndex
    calibration: Calibration | None = None

    @property
    def strategy(self) -> Strategy:
        """That it stands for."""
        return Strategy(self.index.name)


@dataclass(frozen=True, slots=True)
class Ask:
    """What a search wants.

    Attributes:
        recall: the share of the true k nearest that is to be found, at least on average.
        effort: of a walk through a graph, where there is one, instead of what the recall needs; 0 leaves it to the planner.
        exact: all of the true nearest.
        queries: how many are searched together.
        clumping: of what may be answered, see `ClusterIndex`: about 1 as if by lot, more where vectors are of one kind; infinite if
            it is not known, and the hardest has to be reckoned with.
        paged: vectors are not in memory for the most part: reading one costs as much as comparing many.
    """

    k: int
    recall: float = DEFAULT_RECALL
    effort: int = 0
    exact: bool = False
    queries: int = 1
    clumping: float = math.inf
    paged: bool = False


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """The choice for one segment.

    Attributes:
        k: rows to find for each query.
        effort: of the index.
        recall: estimated; None where nothing was measured.
        rejected: the strategies not chosen, each with the reason.
        compared: rows whose distance is computed exactly.
        way: the number of the segment's way that is gone; -1 for none of them.
        cost_ns: what a query takes, as `costs` has it.
    """

    strategy: Strategy
    k: int
    effort: int = 0
    recall: float | None = 1.0
    rejected: tuple[tuple[Strategy, str], ...] = ()
    compared: int = 0
    way: int = -1
    cost_ns: float = 0.0

    @property
    def approximate(self) -> bool:
        """Whether some of the true nearest may be missed."""
        return self.way >= 0


def plan_segment(ask: Ask, *, rows: int, dimension: int, allowed: int, ways: Sequence[Way]) -> SegmentPlan:
    """Choose for a segment of ``rows`` rows of which ``allowed`` may be answered: the cheapest way that reaches the recall."""
    wanted = min(ask.k, allowed)
    if wanted == 0:
        return SegmentPlan(Strategy.NOTHING, 0)
    strategies = tuple(dict.fromkeys(way.strategy for way in ways)) or (Strategy.GRAPH, Strategy.CLUSTERS)
    row = costs.scan_row(dimension, shared=ask.queries >= _SHARED, share=allowed / rows)
    scanning = allowed * row * (_PAGED_SCAN if ask.paged else 1.0)

    def scan(*reasons: str) -> SegmentPlan:
        rejected = tuple(zip(strategies, reasons * len(strategies), strict=False))
        return SegmentPlan(Strategy.SCAN, wanted, rejected=rejected, compared=allowed, cost_ns=scanning)

    if not ways:
        return scan("the segment is small and has none")
    if ask.exact:
        return scan("an exact answer was asked for")
    if allowed <= SCAN_ROWS:
        return scan(f"only {allowed} rows may be answered, at most {SCAN_ROWS} are always compared one by one")
    options = [_option(ask, number, way, wanted, rows, allowed) for number, way in enumerate(ways)]
    best = [min((o for o in options if o.strategy is each), key=lambda option: option.cost) for each in strategies]
    chosen = min(best, key=lambda option: option.cost)
    asked = next((option for option in best if ask.effort and option.strategy is Strategy.GRAPH), None)
    if asked is None and chosen.cost >= scanning:
        return scan(*(option.against(scanning, row) for option in best))
    chosen = asked or chosen
    assert chosen.point is not None
    others = [(option.strategy, option.against(chosen.cost, row)) for option in best if option is not chosen]
    others.append((Strategy.SCAN, f"comparing {allowed} rows costs more than what compares to {chosen.cost / row:.0f}"))
    if asked is not None:
        others = [(strategy, "an effort was asked for") for strategy, _ in others]
    recall = None if math.isnan(chosen.point.recall) else chosen.point.recall
    index = ways[chosen.way].index
    return SegmentPlan(
        chosen.strategy,
        wanted,
        chosen.point.effort,
        recall,
        tuple(others),
        index.measured(wanted),
        chosen.way,
        chosen.cost,
    )


@dataclass(frozen=True, slots=True)
class _Option:
    """One way to go: ``cost`` in nanoseconds; without a point the target is out of its reach."""

    way: int
    strategy: Strategy
    point: Point | None
    cost: float
    target: float

    def against(self, other: float, row: float) -> str:
        """Why another was chosen, in rows of a scan, of which one takes ``row``."""
        if self.point is None:
            return f"no effort that was measured reaches a recall of {self.target:g} with so many rows allowed"
        return f"costs as much as comparing {self.cost / row:.0f} rows one by one, not {other / row:.0f}"


def _option(ask: Ask, number: int, way: Way, wanted: int, rows: int, allowed: int) -> _Option:
    graph = way.strategy is Strategy.GRAPH
    point = _point(ask, way, wanted, allowed / rows, ask.effort if graph else 0)
    if point is None:
        return _Option(number, way.strategy, None, math.inf, ask.recall)
    effort = max(point.effort, way.index.least_effort(wanted))
    compared = point.compared * effort / point.effort
    cost = way.index.cost(wanted, compared, shared=ask.queries >= _SHARED)
    if ask.paged:
        cost += _PAGED_ROW_NS * way.index.touched(wanted, compared)
    return _Option(number, way.strategy, Point(effort, point.recall, point.error, compared), cost, ask.recall)


def _point(ask: Ask, way: Way, wanted: int, share: float, effort: int) -> Point | None:
    """What to search with, and what that is expected to reach and cost; None where the target is out of reach."""
    calibration = way.calibration
    if calibration is not None and not effort:
        kept = 1.0 if ask.clumping <= BY_LOT else 1.0 - _UNKNOWN * (1.0 - share)
        point = calibration.least(wanted, share, 1.0 - (1.0 - ask.recall) * kept, clumping=ask.clumping)
        return point and replace(point, recall=1.0 - (1.0 - point.recall) / kept)
    effort = max(effort or DEFAULT_EF, way.index.least_effort(wanted))
    known = None if calibration is None else calibration.at(wanted, share, effort)
    return known or Point(effort, math.nan, 0.0, _COMPARED_PER_EF * effort / share)


def worth(index: VectorIndex, k: int, point: Point, *, rows: int, dimension: int, allowed: int) -> bool:
    """Whether a search would spend so much, rather than compare the allowed rows: where calibration ends."""
    row = costs.scan_row(dimension, shared=False, share=allowed / rows)
    return 2 * index.cost(k, point.compared, shared=False) < allowed * row
