"""The ways to search one segment beside each other: each at the least effort that its curve gives for a target.

make bench ARGS="engines --coded-graphs --set wordnet384"
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from shoal_index.planner import Strategy, Way
from shoal_index.segment import Segment

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]
Search = Callable[[npt.NDArray[np.float32]], Rows]


def print_ways(
    segment: Segment,
    queries: npt.NDArray[np.float32],
    k: int,
    targets: Sequence[float],
    cells: Sequence[tuple[str, Mask | None, Callable[[Rows], float]]],
    rounds: int,
) -> None:
    """A line for each cell, target and way: what it reaches, and its microseconds a query, in one call and one by one.

    Args:
        cells: name, allowed rows, and what tells the recall of found rows (q, k).
        rounds: measured in turns, of which the best counts, by the time of this thread's processor.
    """
    heads = f"{'cell':5} {'target':6} {'way':>12} {'effort':>6} {'compared':>8} {'recall':>6} {'batch us':>9} {'single us':>9}"
    print(f"{heads}  beside the graph")
    for name, allowed, recall_of in cells:
        for target in targets:
            found = list(_at(segment, k, target, allowed))
            searches = [partial(_search, way, k, effort, allowed) for way, effort, _ in found]
            works = [
                work for search in searches for work in (partial(search, queries), partial(_each, search, queries))
            ]
            seconds = [1e6 * taken / len(queries) for taken in _timed(rounds, works)]
            for number, (way, effort, compared) in enumerate(found):
                batch, single = seconds[2 * number : 2 * number + 2]
                reached = recall_of(searches[number](queries))
                print(
                    f"{name:5} {target:6} {way.strategy!s:>12} {effort:>6} {compared:>8.0f} {reached:.4f} {batch:>9.1f} {single:>9.1f}"
                    f"  {seconds[0] / batch:.2f}, {seconds[1] / single:.2f}"
                )


def _at(segment: Segment, k: int, target: float, allowed: Mask | None) -> Iterator[tuple[Way, int, float]]:
    """Of each strategy the cheapest way, its effort for a target, and what it compares; the graph first."""
    share = 1.0 if allowed is None else float(np.count_nonzero(allowed)) / segment.rows
    for strategy in (Strategy.GRAPH, Strategy.CODED_GRAPH, Strategy.CLUSTERS):
        able = []
        for way in segment.ways:
            point = way.calibration.least(k, share, target) if way.strategy is strategy and way.calibration else None
            if point is not None:
                able.append((way.index.cost(k, point.compared, shared=True), way, point))
        if able:
            _, way, point = min(able, key=lambda each: each[0])
            yield way, point.effort, point.compared


def _timed(rounds: int, works: Sequence[Callable[[], object]]) -> list[float]:
    """The best seconds of each."""
    taken = [float("inf")] * len(works)
    for _ in range(rounds):
        for number, work in enumerate(works):
            started = time.thread_time()
            work()
            taken[number] = min(taken[number], time.thread_time() - started)
    return taken


def _search(way: Way, k: int, effort: int, allowed: Mask | None, queries: npt.NDArray[np.float32]) -> Rows:
    found = way.index.search(queries, k, effort=effort, allowed=allowed, threads=1)
    if len(found.rows) == len(queries) * k:
        return found.rows.reshape(len(queries), k)
    filled = np.full((len(queries), k), -1, dtype=np.int64)
    filled[np.arange(k) < found.counts[:, None]] = found.rows
    return filled


def _each(search: Search, queries: npt.NDArray[np.float32]) -> None:
    for number in range(len(queries)):
        search(queries[number : number + 1])
