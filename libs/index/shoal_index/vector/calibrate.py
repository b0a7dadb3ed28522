"""Measuring recall against effort where an index is built, on rows of its segment that it does not have.

Where a part of the rows is allowed, these are random rows, and again rows that lie together, in one place or in many: filters are
often about what vectors are about. For a filter the worst of those counts that are at most as clumped as the next more clumped one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from shoal_index.vector.calibration import BY_LOT, Calibration, Curve, Point, recalls_of
from shoal_index.vector.column import VectorColumn
from shoal_index.vector.engine import Mask, Neighbours, Rows, VectorIndex, Vectors, exact_distances
from shoal_index.vector.exact import nearest_means, search_exact

SHARES = (1.0, 0.5, 0.2)
SMALL_SHARES = (0.08, 0.03, 0.01)  # where that is so many rows that an index may be faster than a scan
SMALL_SHARE_ROWS = 9_000
QUERIES = 1_024
FILTERED_QUERIES = 256  # where a part of the rows is allowed, in one way and another
LARGEST_K = 100

_LEAST_HELD_OUT = 32
_LARGEST_PART = 20  # of the rows at most a 20th is held out
_ENOUGH = 0.995  # recall: a target above it is for a scan
_LEVEL = 0.002  # recall: where a step brings less, and much is found already, more effort is of no use
_MUCH = 0.9
_CELLS = (24, 256)
_FEWEST_IN_CELL = 20  # rows, on average
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 by the golden ratio (Knuth): upper bits of its multiples are spread evenly
_LEAST_TOLD = 0.08  # share: of fewer rows the sampled blocks hold too few to tell how clumped they are
_SEED = 5


@dataclass(frozen=True, slots=True)
class Case:
    """Some allowed rows, and the true nearest of every query among them."""

    allowed: Mask
    true: Neighbours

    def every(self, step: int) -> Case:
        """Of one query in so many."""
        counts = self.true.counts
        kept = np.repeat(np.arange(len(counts)) % step == 0, counts)
        return Case(self.allowed, Neighbours(self.true.rows[kept], self.true.distances[kept], counts[::step]))


@dataclass(frozen=True, slots=True)
class Trial:
    """Queries where a share of the rows is allowed, in one way or in several, of which the first is by lot."""

    share: float
    queries: Vectors
    cases: tuple[Case, ...]

    def with_about(self, count: int) -> Trial:
        """With so many of the queries, hardly twice as many, or all of them."""
        step = max(1, len(self.queries) // count)
        return replace(self, queries=self.queries[::step], cases=tuple(case.every(step) for case in self.cases))

    @property
    def allowed(self) -> int:
        """The fewest rows of any case."""
        return min(int(np.count_nonzero(case.allowed)) for case in self.cases)


@dataclass(frozen=True, slots=True)
class Subject:
    """How an index is measured.

    Attributes:
        efforts: rising.
        ks: groups of numbers of neighbours, of which one search for the largest tells of all, and of about how many queries it
            is asked: where all rows are allowed, and where a part is.
        enough: whether a point, of k neighbours in a trial, costs more than any search would spend.
        least_share: of allowed rows that it is any good for.
        clumping: of allowed rows, see `ClusterIndex`; without it, the worst of a trial's cases decides for all that are not by lot.
    """

    index: VectorIndex
    efforts: Sequence[int]
    ks: Sequence[tuple[Sequence[int], int, int]]
    enough: Callable[[int, Point, Trial], bool]
    least_share: float = 0.0
    clumping: Callable[[Mask], float] | None = None


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
    if count < _LEAST_HELD_OUT:
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
        some = queries if share == 1.0 else queries[:: max(1, len(queries) // FILTERED_QUERIES)]
        cases = tuple(
            Case(mask, search_exact(column, space, some, LARGEST_K, allowed=mask, threads=threads))
            for mask in _masks(share, present, regions)
        )
        found.append(Trial(share, some, cases))
    return found


def calibrate(subject: Subject, by: Sequence[Trial], *, threads: int, refine: int = 1) -> Calibration:
    """Measure an index that does not have the queries, or whose searches do not find them as they are not allowed."""
    fair = [trial for trial in by if trial.share >= subject.least_share]
    curves: list[Curve] = []
    for ks, most, most_filtered in subject.ks:
        for trial in fair:
            some = trial.with_about(most if trial.share == 1.0 else most_filtered)
            curves += _curves(subject, some, ks, threads)
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
    points: dict[int, list[list[Point]]] = {k: [] for k in ks if k <= allowed // 4}  # of each effort those of each case
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
            points[k].append(
                [
                    _measured(effort, k, near, case, counts)
                    for (near, counts), case in zip(found, trial.cases, strict=True)
                ]
            )
        worst = {k: [_worst(measured) for measured in known] for k, known in points.items() if known}
        if len(worst) < len(points):
            continue
        if all(_is_level(known) for known in worst.values()):
            break
        if any(subject.enough(k, known[-1], trial) for k, known in worst.items()):
            break
    levels = _levels(subject, trial)
    return [
        Curve(k, trial.share, tuple(_worst([measured[case] for case in cases]) for measured in known), clumping)
        for k, known in points.items()
        for clumping, cases in levels
    ]


def _levels(subject: Subject, trial: Trial) -> list[tuple[float, list[int]]]:
    """How clumped rows may be, and the cases of a trial that are not more so; the first one is for all there may be."""
    if subject.clumping is None or trial.share < _LEAST_TOLD:
        clumping = [BY_LOT] + [math.inf] * (len(trial.cases) - 1)
    else:
        clumping = [max(subject.clumping(case.allowed), BY_LOT) for case in trial.cases]
    _, *less = sorted(set(clumping), reverse=True)
    levels = [(level, [case for case, of_case in enumerate(clumping) if of_case <= level]) for level in less]
    return [(math.inf, [*range(len(clumping))]), *levels]


def _worst(measured: Sequence[Point]) -> Point:
    """The lowest recall and the highest cost of several cases."""
    worst = min(measured, key=lambda point: point.sure_recall)
    return replace(worst, compared=max(point.compared for point in measured))


def _is_level(known: Sequence[Point]) -> bool:
    last = known[-1].recall
    return last >= _ENOUGH or (len(known) > 2 and last >= _MUCH and last - known[-3].recall < _LEVEL)


def _measured(effort: int, k: int, near: Neighbours, case: Case, compared: npt.NDArray[np.int64]) -> Point:
    recalls = recalls_of(near, case.true, k)
    error = float(recalls.std() / np.sqrt(len(recalls)))
    return Point(effort, float(recalls.mean()), error, float(compared.mean()))
