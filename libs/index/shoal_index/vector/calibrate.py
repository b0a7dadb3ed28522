"""Measuring recall against effort where an index is built, on rows of its segment that it does not have.

Where a part of the rows is allowed, these are random rows, and again rows that lie together, in one place or in many: filters are
often about what vectors are about. The worst counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from shoal_index.vector.calibration import Calibration, Curve, Point, recalls_of
from shoal_index.vector.column import VectorColumn
from shoal_index.vector.engine import Mask, Neighbours, Rows, VectorIndex, Vectors, exact_distances
from shoal_index.vector.exact import nearest_means, search_exact

SHARES = (1.0, 0.5, 0.2)
SMALL_SHARES = (0.08, 0.03, 0.01)  # where that is so many rows that an index may be faster than a scan
SMALL_SHARE_ROWS = 9_000
QUERIES = 256
LARGEST_K = 100

_FEWEST_QUERIES = 32
_LARGEST_PART = 20  # of the rows at most a 20th is held out
_ENOUGH = 0.995  # recall: a target above it is for a scan
_LEVEL = 0.002  # recall: where a step brings less, and much is found already, more effort is of no use
_MUCH = 0.9
_CELLS = (24, 256)
_FEWEST_IN_CELL = 20  # rows, on average
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 by the golden ratio (Knuth): upper bits of its multiples are spread evenly
_SEED = 5


@dataclass(frozen=True, slots=True)
class Case:
    """Some allowed rows, and the true nearest of every query among them."""

    allowed: Mask
    true: Neighbours

    def half(self) -> Case:
        """Of every second query."""
        counts = self.true.counts
        kept = np.repeat(np.arange(len(counts)) % 2 == 0, counts)
        return Case(self.allowed, Neighbours(self.true.rows[kept], self.true.distances[kept], counts[::2]))


@dataclass(frozen=True, slots=True)
class Trial:
    """Queries where a share of the rows is allowed, in one way or in several, of which the first is by lot."""

    share: float
    queries: Vectors
    cases: tuple[Case, ...]

    def half(self) -> Trial:
        """Every second query."""
        return replace(self, queries=self.queries[::2], cases=tuple(case.half() for case in self.cases))

    @property
    def allowed(self) -> int:
        """The fewest rows of any case."""
        return min(int(np.count_nonzero(case.allowed)) for case in self.cases)


@dataclass(frozen=True, slots=True)
class Subject:
    """How an index is measured.

    Attributes:
        efforts: rising.
        ks: groups of numbers of neighbours; one search for the largest of a group tells of all of it.
        enough: whether a point, of k neighbours and so many allowed rows, costs more than any search would spend.
        least_share: of allowed rows that it is any good for.
    """

    index: VectorIndex
    efforts: Sequence[int]
    ks: Sequence[Sequence[int]]
    enough: Callable[[int, Point, int], bool]
    least_share: float = 0.0


def efforts_between(first: int, last: int, growth: float) -> tuple[int, ...]:
    """So many times as much each time, the last one included."""
    found = [first]
    while found[-1] < last:
        found.append(min(last, max(found[-1] + 1, int(found[-1] * growth))))
    return tuple(found)


def spared(ties: npt.NDArray[np.uint64]) -> Mask:
    """(n,) a sixteenth of the rows, that nothing may be trained on: the same rows whenever segments are merged."""
    return ties * _ODD >> np.uint64(60) == 0


def held_out(ties: npt.NDArray[np.uint64]) -> Rows:
    """Rows of those spared that calibration asks for and an index must not have while it is measured: sorted, distinct.

    None of a segment too small to spare enough of them.
    """
    candidates = np.flatnonzero(spared(ties))
    count = min(QUERIES, len(ties) // _LARGEST_PART, len(candidates))
    if count < _FEWEST_QUERIES:
        return np.empty(0, np.int64)
    return np.sort(np.random.default_rng(_SEED).choice(candidates, count, replace=False))


def trials(column: VectorColumn, space: str, asked: Rows, *, threads: int) -> list[Trial]:
    """What all indexes of a segment are measured by: the rows ``asked`` are the queries, and never allowed."""
    queries = column.gather(asked)
    present = np.ones(column.count, dtype=bool)
    present[asked] = False
    found = []
    regions = _regions(column, threads)
    for share in (*SHARES, *(share for share in SMALL_SHARES if share * column.count >= SMALL_SHARE_ROWS)):
        some = queries if share == 1.0 else queries[::2]
        cases = tuple(
            Case(mask, search_exact(column, space, some, LARGEST_K, allowed=mask, threads=threads))
            for mask in _masks(share, present, regions)
        )
        found.append(Trial(share, some, cases))
    return found


def calibrate(subject: Subject, by: Sequence[Trial], *, threads: int, refine: int = 1) -> Calibration:
    """Measure an index that does not have the queries, or whose searches do not find them as they are not allowed."""
    fair = [trial for trial in by if trial.share >= subject.least_share]
    curves = [curve for trial in fair for ks in subject.ks for curve in _curves(subject, trial, ks, threads)]
    return Calibration(subject.index.name, len(by[0].queries), tuple(curves), refine=refine)


@dataclass(frozen=True, slots=True)
class _Regions:
    """Where rows lie: (n,) how far from one of them, and in which of few cells, and of many."""

    far: npt.NDArray[np.float32]
    cells: Sequence[npt.NDArray[np.int64]]


def _regions(column: VectorColumn, threads: int) -> _Regions:
    random = np.random.default_rng(_SEED)
    middle = column.gather(random.integers(column.count, size=1))[0]
    far = np.concatenate([exact_distances("l2", middle, chunk.vectors) for chunk in column.chunks])
    cells = []
    for count in _CELLS:
        centres = column.gather(random.permutation(column.count)[: min(count, column.count // _FEWEST_IN_CELL)])
        cells.append(np.concatenate([nearest_means(chunk.vectors, centres, threads) for chunk in column.chunks]))
    return _Regions(far, cells)


def _masks(share: float, present: Mask, regions: _Regions) -> Iterator[Mask]:
    """Rows at random; a ball around one; and islands here and there, as a category of records has them, large ones and small ones."""
    if share == 1.0:
        yield present
        return
    random = np.random.default_rng(_SEED)
    rows = len(present)
    yield present & (random.random(rows) < share)
    yield present & (regions.far <= np.quantile(regions.far, share))
    for cell in regions.cells:
        sizes = np.bincount(cell)
        order = random.permutation(len(sizes))
        chosen = order[: 1 + int(np.searchsorted(np.cumsum(sizes[order]), share * rows))]
        yield present & np.isin(cell, chosen)


def _curves(subject: Subject, trial: Trial, ks: Sequence[int], threads: int) -> list[Curve]:
    allowed = trial.allowed
    points: dict[int, list[Point]] = {k: [] for k in ks if k <= allowed // 4}
    by_lot: dict[int, list[Point]] = {k: [] for k in points}
    if min(ks) >= LARGEST_K:  # of so many neighbours each, fewer queries tell as much, and cost much more
        trial = trial.half()
    for effort in subject.efforts if points else ():
        able = [k for k in points if subject.index.least_effort(k) <= effort]
        if not able:
            continue
        k = max(ks) if subject.index.least_effort(max(ks)) <= effort else max(able)
        found = [
            subject.index.search_counting(trial.queries, k, effort=effort, allowed=case.allowed, threads=threads)
            for case in trial.cases
        ]
        for k in able:
            measured = [
                _measured(effort, k, near, case, compared)
                for (near, compared), case in zip(found, trial.cases, strict=True)
            ]
            worst = min(measured, key=lambda point: point.recall - point.error)
            points[k].append(replace(worst, compared=max(point.compared for point in measured)))
            by_lot[k].append(measured[0])
        reached = {k: known[-1] for k, known in points.items() if known}
        if len(reached) < len(points):
            continue
        if all(_is_level(known) for known in points.values()):
            break
        if any(subject.enough(k, point, allowed) for k, point in reached.items()):
            break
    curves = [Curve(k, trial.share, tuple(known)) for k, known in points.items()]
    if trial.share < 1.0:
        curves += [Curve(k, trial.share, tuple(known), scattered=True) for k, known in by_lot.items()]
    return curves


def _is_level(known: Sequence[Point]) -> bool:
    last = known[-1].recall
    return last >= _ENOUGH or (len(known) > 2 and last >= _MUCH and last - known[-3].recall < _LEVEL)


def _measured(effort: int, k: int, near: Neighbours, case: Case, compared: npt.NDArray[np.int64]) -> Point:
    recalls = recalls_of(near, case.true, k)
    error = float(recalls.std() / np.sqrt(len(recalls)))
    return Point(effort, float(recalls.mean()), error, float(compared.mean()))
