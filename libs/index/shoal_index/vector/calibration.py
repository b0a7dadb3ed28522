"""Recall as a promise: how much effort an index needs, measured (`calibrate`) on rows of its own segment that it does not have.

A curve holds, for one k and one share of allowed rows, points of rising effort with the recall they reached and what they cost. The
planner reads from it the least effort for a target. Recall@k is the share of the true k nearest that an answer has.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from shoal_core.errors import Corrupt
from shoal_index.vector.engine import Neighbours

_NEARLY = 0.9  # of a share that was measured
_MARGIN = 1.1
_ERRORS = 1.5  # standard errors


@dataclass(frozen=True, slots=True)
class Point:
    """One effort: the mean recall of the queries, its standard error, and the mean of what a query was compared with: rows or codes."""

    effort: int
    recall: float
    error: float
    compared: float


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of rising effort for one ``k``, where this share of the rows is allowed: ``scattered`` as if by lot, else anyhow."""

    k: int
    share: float
    points: tuple[Point, ...]
    scattered: bool = False


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured of one index.

    Attributes:
        refine: rows measured for each that is wanted, of an engine that compares codes.
        queries: how many rows were held out.
        needed: effort for the usual recall of 10 neighbours; 0 where that was not reached.
        reference: the same of the last index in its line that was built from nothing: what drift is told from.
    """

    engine: str
    queries: int
    curves: tuple[Curve, ...]
    needed: int = 0
    reference: int = 0
    refine: int = 1

    def least(self, k: int, share: float, target: float, *, scattered: bool = False) -> Point | None:
        """The least effort whose recall is the target's, with what it reaches; None where no effort measured does.

        ``scattered``: the allowed rows are as if by lot, not where vectors are of one kind.

        The curve of the next larger k decides; beyond the largest, effort goes with k. Between the shares that were measured, it goes
        with the reciprocal of the share, and so it does a little below one of them where the next has nothing to say.
        """
        below = max((curve.share for curve in self.curves if curve.share <= share), default=None)
        above = min((curve.share for curve in self.curves if curve.share >= share), default=None)
        if below is None or above is None:
            return None
        hard, easy = (_least(self._curve(k, of, scattered=scattered), target, k) for of in (below, above))
        if easy is None or below == above:
            return hard
        if hard is None:
            return _stretched(easy, above / share * _MARGIN) if share >= _NEARLY * above else None
        part = (1 / share - 1 / above) / (1 / below - 1 / above)
        effort = int(np.ceil(easy.effort + part * (hard.effort - easy.effort)))
        mixed = [a + part * (b - a) for a, b in zip(_values(easy), _values(hard), strict=True)]
        return Point(effort, min(easy.recall, hard.recall), *mixed[1:])

    def at(self, k: int, share: float, effort: int) -> Point | None:
        """What an effort reaches, by the next smaller share; None where that was not measured."""
        curve = self._curve(k, share, scattered=False)
        if curve is None or not curve.points:
            return None
        efforts = [point.effort for point in curve.points]
        columns = [_values(point) for point in curve.points]
        recall, error, compared = (float(np.interp(effort, efforts, column)) for column in zip(*columns, strict=True))
        if effort < efforts[0]:
            recall *= effort / efforts[0]
        if effort > efforts[-1]:
            compared *= effort / efforts[-1]
        return Point(effort, recall, error, compared)

    def _curve(self, k: int, share: float, *, scattered: bool) -> Curve | None:
        """Of the next smaller share and the next larger k. Where all rows are allowed, they are anyhow."""
        nearest = max((curve.share for curve in self.curves if curve.share <= share), default=None)
        alike = (c for c in self.curves if c.share == nearest and c.scattered == (scattered and c.share < 1.0))
        of_share = sorted(alike, key=lambda curve: curve.k)
        larger = [curve for curve in of_share if curve.k >= k]
        return next(iter(larger), None) or next(reversed(of_share), None)

    def to_json(self) -> bytes:
        """As stored."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def of_json(cls, data: bytes) -> Calibration:
        """The inverse of `to_json`. Raises `Corrupt`."""
        try:
            raw = json.loads(data)
            curves = [
                Curve(
                    int(c["k"]),
                    float(c["share"]),
                    tuple(Point(**point) for point in c["points"]),
                    bool(c.get("scattered", False)),
                )
                for c in raw["curves"]
            ]
            efforts = int(raw["needed"]), int(raw["reference"])
            return cls(str(raw["engine"]), int(raw["queries"]), tuple(curves), *efforts, int(raw.get("refine", 1)))
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupt(f"a calibration cannot be read: {error!r}") from error


def _least(curve: Curve | None, target: float, k: int) -> Point | None:
    before: Point | None = None
    for point in () if curve is None else curve.points:
        if _surely(point) >= target:
            found = _between(before, point, target)
            if curve is None or k <= curve.k:
                return found
            return replace(_stretched(found, k / curve.k), recall=np.nan)  # nobody measured that
        before = point
    return None


def _surely(point: Point) -> float:
    """The recall, less what chance may have added."""
    return point.recall - _ERRORS * point.error


def _stretched(point: Point, factor: float) -> Point:
    """More effort, which compares as many more rows."""
    return Point(int(np.ceil(point.effort * factor)), point.recall, point.error, point.compared * factor)


def _between(before: Point | None, after: Point, target: float) -> Point:
    """Between two measured points recall is taken to rise with the logarithm of the effort."""
    if before is None:
        return after
    low, high = _surely(before), _surely(after)
    part = (target - low) / (high - low) if high > low else 1.0
    effort = int(np.ceil(before.effort * (after.effort / before.effort) ** part))
    part = np.log(effort / before.effort) / np.log(after.effort / before.effort)
    mixed = [b + part * (a - b) for b, a in zip(_values(before), _values(after), strict=True)]
    return Point(effort, *map(float, mixed))


def _values(point: Point) -> tuple[float, float, float]:
    return point.recall, point.error, point.compared


def recalls_of(found: Neighbours, true: Neighbours, k: int) -> npt.NDArray[np.float64]:
    """(q,) recall@k of each query: what is as near as the k-th true one counts, whichever of several equal rows it is."""
    far = _padded(true, k)
    kth = np.where(np.isfinite(far), far, -np.inf).max(axis=1, initial=-np.inf)
    hits = (_padded(found, k) <= kth[:, None]).sum(axis=1)
    return hits / np.maximum(np.minimum(true.counts, k), 1)


def _padded(found: Neighbours, k: int) -> npt.NDArray[np.float32]:
    """(q, k) the first k distances of each query; infinity where there are fewer."""
    starts = np.cumsum(found.counts) - found.counts
    there = np.arange(k) < found.counts[:, None]
    padded = np.full(there.shape, np.inf, dtype=np.float32)
    padded[there] = found.distances[(starts[:, None] + np.arange(k))[there]]
    return padded
