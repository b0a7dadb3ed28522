"""Postings: for each code (a value, a term, a trigram, a dimension) the rows that have it. What the inverted indexes share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.uint32]
Mask = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Postings:
    """Rows by code, codes being 0 … d − 1.

    Attributes:
        starts: (d + 1,) int64: the rows of code c are ``rows[starts[c]:starts[c + 1]]``, ascending and distinct.
        rows: (n,) uint32.
    """

    starts: Int64s
    rows: Rows

    def of(self, first: int, last: int | None = None) -> Rows:
        """Rows of one code, or of the codes ``first <= c < last`` one after another."""
        end = first + 1 if last is None else last
        return self.rows[self.starts[first] : self.starts[end]]

    def count(self, first: int, last: int | None = None) -> int:
        """How many there are."""
        end = first + 1 if last is None else last
        return int(self.starts[end] - self.starts[first])

    def counts(self) -> Int64s:
        """(d,) int64 rows of each code."""
        return np.diff(self.starts)


@dataclass(frozen=True, slots=True)
class MergePart:
    """The postings of one segment, for merging.

    Attributes:
        codes: (d,) int64: what its codes are called in the merged index; ascending, so that order is kept.
        new_row: (rows,) int64: the merged row of each of its rows, or -1 for one that is left behind.
    """

    postings: Postings
    codes: Int64s
    new_row: Int64s


def merge_postings(parts: Sequence[MergePart]) -> tuple[Postings, Int64s, Int64s]:
    """One index of several, without looking at what the codes stand for.

    Returns:
        The postings; the (d,) int64 codes that still have rows, ascending, which become 0 … d − 1; and for each posting its
        position in the parts' postings taken one after another, (n,) int64.
    """
    codes = np.concatenate([np.repeat(part.codes, part.postings.counts()) for part in parts])
    rows = np.concatenate([part.new_row[part.postings.rows] for part in parts])
    kept = np.flatnonzero(rows >= 0)
    codes, rows = codes[kept], rows[kept]
    order = np.lexsort((rows, codes))
    used, dense = np.unique(codes[order], return_inverse=True)
    starts = np.searchsorted(dense, np.arange(len(used) + 1)).astype(np.int64)
    return Postings(starts, rows[order].astype(np.uint32)), used, kept[order]
