"""Which way to search one segment, from exact counts.

A graph under a narrow filter loses speed and recall; a scan of few rows is always exact and fast. Constants are measured
(`bench/`): a scan of 10,000 rows costs about as much as a graph search through Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

SCAN_ROWS = 10_000
DEFAULT_EF = 64
_LARGEST_FETCH = 2_000


class Strategy(StrEnum):
    """How a segment is searched."""

    NOTHING = "nothing"
    SCAN = "scan"
    GRAPH = "graph"


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """The choice for one segment.

    Attributes:
        fetch: rows to ask a graph for, more than k where some will be dropped.
        ef: effort of the graph search.
        rejected: the strategies not chosen, each with the reason.
        compared: rows whose distance is computed exactly.
    """

    strategy: Strategy
    fetch: int
    ef: int
    rejected: tuple[tuple[Strategy, str], ...] = ()
    compared: int = 0


def plan_segment(*, rows: int, allowed: int, has_graph: bool, k: int, ef: int, exact: bool) -> SegmentPlan:
    """Choose for a segment of ``rows`` rows of which ``allowed`` may be answered."""
    if allowed == 0 or k == 0:
        return SegmentPlan(Strategy.NOTHING, 0, 0)
    wanted = min(k, allowed)
    fetch = wanted if allowed == rows else min(rows, int(1.3 * wanted * rows / allowed) + 8)
    against = _against_graph(allowed, fetch, has_graph=has_graph, exact=exact)
    if against:
        return SegmentPlan(Strategy.SCAN, wanted, 0, ((Strategy.GRAPH, against),), allowed)
    effort = max(ef or DEFAULT_EF, fetch)
    against = f"{allowed} rows are more than the {SCAN_ROWS} that are compared one by one"
    return SegmentPlan(Strategy.GRAPH, fetch, effort, ((Strategy.SCAN, against),), fetch)


def _against_graph(allowed: int, fetch: int, *, has_graph: bool, exact: bool) -> str:
    """Why a graph is not to be used; empty when it is."""
    if not has_graph:
        return "the segment is small and has none"
    if exact:
        return "an exact answer was asked for"
    if allowed <= SCAN_ROWS:
        return f"only {allowed} rows may be answered, at most {SCAN_ROWS} are compared one by one"
    if fetch > _LARGEST_FETCH:
        return f"{fetch} rows would have to be fetched, more than {_LARGEST_FETCH}"
    return ""


def deepen(plan: SegmentPlan, *, rows: int, allowed: int) -> SegmentPlan:
    """The next plan after too few of the rows fetched were allowed."""
    fetch = plan.fetch * 4
    if fetch > min(_LARGEST_FETCH, rows):
        reason = f"{plan.fetch} rows of it were not enough"
        return SegmentPlan(Strategy.SCAN, plan.fetch, 0, ((Strategy.GRAPH, reason),), allowed)
    return SegmentPlan(Strategy.GRAPH, fetch, max(plan.ef, fetch), plan.rejected, fetch)
