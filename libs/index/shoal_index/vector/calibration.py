"""Recall as a promise: how much effort an index needs, measured (`calibrate`) on rows of its own segment that it does not have.

A curve holds, for one k and one share of allowed rows, points of rising effort with the recall they reached and what they cost. The
planner reads from it the least effort for a target. Recall@k is the share of the true k nearest that an answer has.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from shoal_core.errors import Corrupt
from shoal_index.vector.engine import Neighbours

BY_LOT = 1.6  # clumping, at most, of rows that are taken to be chosen by lot: of 256 blocks it is seldom above 1.3

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

    @property
    def sure_recall(self) -> float:
        """The recall, less what chance may have added."""
        return self.recall - _ERRORS * self.error


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of rising effort for one ``k``, where this share of the rows is allowed, and they are at most so clumped: `BY_LOT` as if
    by lot, infinite anyhow. See `ClusterIndex.clumping`.
    """

    k: int
    share: float
    points: tuple[Point, ...]
    clumping: float = math.inf


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

    def least(self, k: int, share: float, target: float, *, clumping: float = math.inf) -> Point | None:
        """The least effort whose recall is the target's, with what it reaches; None where no effort measured does.

        ``clumping``: of the allowed rows. The curve for the next more clumped ones decides, beyond the last one that one.

        The curve of the next larger k decides; beyond the largest, effort goes with k. Between the shares that were measured, it goes
        with the reciprocal of the share, and so it does a little below one of them where the next has nothing to say. What the next
        larger share does not reach is not promised, though a smaller one, with less effort, does.
        """
        below = max((curve.share for curve in self.curves if curve.share <= share), default=None)
        above = min((curve.share for curve in self.curves if curve.share >= share), default=None)
        if below is None or above is None:
            return None
        hard, easy = (_least(self._curve(k, of, clumping), target, k) for of in (below, above))
        if easy is None or below == above:
            return hard if below == above or share * _NEARLY <= below else None
        if hard is None:
            return _stretched(easy, above / share * _MARGIN) if share >= _NEARLY * above else None
        part = (1 / share - 1 / above) / (1 / below - 1 / above)
        effort = int(np.ceil(easy.effort + part * (hard.effort - easy.effort)))
        mixed = [a + part * (b - a) for a, b in zip(_values(easy), _values(hard), strict=True)]
        return Point(effort, min(easy.recall, hard.recall), *mixed[1:])

    def at(self, k: int, share: float, effort: int) -> Point | None:
        """What an effort reaches, by the next smaller share; None where that was not measured."""
        curve = self._curve(k, share, math.inf)
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

    def _curve(self, k: int, share: float, clumping: float) -> Curve | None:
        """Of the next smaller share, the next larger k, and rows at least so clumped, or as clumped as any."""
        nearest = max((curve.share for curve in self.curves if curve.share <= share), default=None)
        of_share = [curve for curve in self.curves if curve.share == nearest]
        known_k = min((c.k for c in of_share if c.k >= k), default=max((c.k for c in of_share), default=None))
        alike = sorted((c for c in of_share if c.k == known_k), key=lambda curve: curve.clumping)
        return next((curve for curve in alike if curve.clumping >= clumping), None) or next(reversed(alike), None)

    def to_json(self) -> bytes:
        """As stored."""
        raw = asdict(self)
        for curve in raw["curves"]:
            curve["scattered"] = math.isfinite(curve["clumping"])  # for readers that take what is not so for all else
            if not curve["scattered"]:  # JSON has no infinity
                del curve["clumping"]
        return json.dumps(raw, separators=(",", ":")).encode()

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
                    float(c.get("clumping", BY_LOT if c.get("scattered", False) else math.inf)),
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
        if point.sure_recall >= target:
            found = _between(before, point, target)
            if curve is None or k <= curve.k:
                return found
            return replace(_stretched(found, k / curve.k), recall=np.nan)  # nobody measured that
        before = point
    return None


def _stretched(point: Point, factor: float) -> Point:
    """More effort, which compares as many more rows."""
    return Point(int(np.ceil(point.effort * factor)), point.recall, point.error, point.compared * factor)


def _between(before: Point | None, after: Point, target: float) -> Point:
    """Between two measured points recall is taken to rise with the logarithm of the effort."""
    if before is None:
        return after
    low, high = before.sure_recall, after.sure_recall
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
