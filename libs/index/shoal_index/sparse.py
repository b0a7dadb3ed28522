"""Inverted lists of sparse vectors, and the search for the largest dot products with one.

A measure is 1 − Σ query value · record value. It is defined as one sequence of float64 operations, products summed in ascending
order of index, so that equal vectors have equal measures wherever they lie: in the tail or in any segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal_core.contracts.query import Statistics
from shoal_core.records import one_chunk
from shoal_index.postings import Int64s, Mask, MergePart, Postings, merge_postings
from shoal_index.vector.engine import order_by_distance

Floats = npt.NDArray[np.float64]
UInt32s = npt.NDArray[np.uint32]
Values = npt.NDArray[np.float32]

BLOCK = 128  # postings that share a bound
_WORTH_PRUNING = 1 << 16  # postings of a query below which a plain sum is as quick
_LOOKUP = 12  # what looking up one row in a list costs, in postings read through
_TINY = 1e-30  # added to 1 it changes nothing
_ROUNDING = float(np.finfo(np.float32).eps)


@dataclass(frozen=True, slots=True, eq=False)
class SparseIndex:
    """The sparse vectors of one metadata key. All numbers are finite.

    Attributes:
        dimensions: (d,) uint32, ascending: indices that any row has.
        postings: rows by position in ``dimensions``.
        values: (n,) float32, one per posting.
        blocks: (d + 1,) int64: where the blocks of a list, `BLOCK` postings each, begin in ``least`` and ``greatest``.
        least, greatest: (blocks[-1],) float32 extremes of the values of each block.
        present: (rows,) bool: rows that have the key, be it with an empty vector.
    """

    dimensions: UInt32s
    postings: Postings
    values: Values
    blocks: Int64s
    least: Values
    greatest: Values
    present: Mask

    @classmethod
    def build(cls, column: pa.Array | pa.ChunkedArray) -> SparseIndex:
        """The index of a column of `SPARSE_TYPE`, row numbers being positions in it. Indices ascend strictly in each vector."""
        entries = _entries(column)
        order = np.argsort(entries.indices, kind="stable")
        indices = entries.indices[order]
        dimensions = np.unique(indices)
        starts = np.append(np.searchsorted(indices, dimensions), len(indices))
        postings = Postings(starts, entries.rows[order].astype(np.uint32))
        return cls._of(dimensions, postings, entries.values[order], entries.present)

    @classmethod
    def merge(cls, parts: Sequence[tuple[SparseIndex, Int64s]], rows: int) -> SparseIndex:
        """The index of ``rows`` merged rows.

        Args:
            parts: indexes, at least one, and the merged row of each of their rows, or -1 for one left behind.
        """
        merging = [MergePart(index.postings, index.dimensions.astype(np.int64), new_row) for index, new_row in parts]
        postings, dimensions, order = merge_postings(merging)
        values = np.concatenate([index.values for index, _ in parts])[order]
        present = np.zeros(rows, dtype=bool)
        for index, new_row in parts:
            present[new_row[index.present & (new_row >= 0)]] = True
        return cls._of(dimensions.astype(np.uint32), postings, values, present)

    @classmethod
    def _of(cls, dimensions: UInt32s, postings: Postings, values: Values, present: Mask) -> SparseIndex:
        blocks = np.zeros(len(postings.starts), dtype=np.int64)
        np.cumsum(-(-postings.counts() // BLOCK), out=blocks[1:])
        number = np.arange(blocks[-1]) - np.repeat(blocks[:-1], np.diff(blocks))  # within its list
        firsts = np.repeat(postings.starts[:-1], np.diff(blocks)) + BLOCK * number
        least, greatest = (f.reduceat(values, firsts) if len(firsts) else values for f in (np.minimum, np.maximum))
        return cls(dimensions, postings, values, blocks, least, greatest, present)

    @classmethod
    def of_table(cls, table: pa.Table) -> SparseIndex:
        """The inverse of `to_table`, without copying."""
        parts = {name: table.column(name).chunk(0).values.to_numpy() for name in table.column_names}
        postings = Postings(parts.pop("starts"), parts.pop("rows"))
        return cls(postings=postings, present=parts.pop("present").view(np.bool_), **parts)

    def to_table(self) -> pa.Table:
        """As stored in a block: one row of lists."""
        columns: dict[str, npt.NDArray[np.generic]] = {
            "dimensions": self.dimensions,
            "starts": self.postings.starts,
            "rows": self.postings.rows,
            "values": self.values,
            "blocks": self.blocks,
            "least": self.least,
            "greatest": self.greatest,
            "present": self.present.view(np.uint8),
        }
        return pa.table({name: pa.ListArray.from_arrays([0, len(part)], part) for name, part in columns.items()})

    @property
    def size_bytes(self) -> int:
        """In memory."""
        parts = (self.dimensions, self.postings.starts, self.postings.rows, self.values, self.blocks, self.least)
        return sum(part.nbytes for part in (*parts, self.greatest, self.present))

    def statistics(self, indices: UInt32s, live: Mask | None) -> Statistics:
        """How many rows, of the ``live`` ones, have the key, and each of ``indices`` (n,): a value of zero counts too."""
        present = self.present if live is None else self.present & live
        codes = self._codes(indices)
        frequencies = np.zeros(len(indices), dtype=np.int64)
        for at in np.flatnonzero(codes >= 0).tolist():
            rows = self.postings.of(codes[at])
            frequencies[at] = len(rows) if live is None else np.count_nonzero(live[rows])
        return Statistics(int(np.count_nonzero(present)), 0, frequencies)

    def search(
        self, indices: UInt32s, values: Floats, k: int, *, allowed: Mask | None, ties: npt.NDArray[np.uint64]
    ) -> tuple[Int64s, Floats]:
        """The ``k`` rows of the smallest measures among those that have the key; one without a common index measures 1.

        Args:
            indices: (n,) ascending.
            values: (n,) float64, finite.
            allowed: (rows,) bool, or None for all rows.
            ties: (rows,) uint64 that orders rows of equal measure.

        Returns:
            (m,) int64 rows and (m,) float64 measures, ascending.
        """
        if k == 0:
            return np.empty(0, np.int64), np.empty(0)
        possible = self.present if allowed is None else self.present & allowed
        terms = self._terms(indices, values)
        count = int(np.count_nonzero(possible))
        total = sum(len(term.rows) for term in terms)
        prune = total > _WORTH_PRUNING and count * len(terms) * _LOOKUP > total and k * _LOOKUP < count
        rows = _candidates(terms, possible, k) if prune else np.flatnonzero(possible)
        measures = 1.0 - _dots(terms, rows, len(possible), total)
        best = order_by_distance(measures, ties[rows], k)
        return rows[best], measures[best]

    def _codes(self, indices: UInt32s) -> Int64s:
        """(n,) positions in ``dimensions``, or -1."""
        codes = np.searchsorted(self.dimensions, indices)
        known = codes < len(self.dimensions)
        known[known] = self.dimensions[codes[known]] == indices[known]
        return np.where(known, codes, -1)

    def _terms(self, indices: UInt32s, values: Floats) -> list[_Term]:
        """The lists that a query reads, in ascending order of index."""
        codes = self._codes(indices)
        starts, blocks = self.postings.starts, self.blocks
        return [
            _Term(
                float(weight),
                self.postings.of(code),
                self.values[starts[code] : starts[code + 1]],
                self.least[blocks[code] : blocks[code + 1]],
                self.greatest[blocks[code] : blocks[code + 1]],
            )
            for code, weight in zip(codes.tolist(), values, strict=True)
            if code >= 0
        ]


def scan_sparse(column: pa.Array | pa.ChunkedArray, indices: UInt32s, values: Floats) -> tuple[Floats, Mask]:
    """The measure of each row of a column of `SPARSE_TYPE`, (rows,) float64, and which rows have a vector, (rows,) bool."""
    entries = _entries(column)
    place, common = entries.common(indices)
    products = values[place] * entries.values[common].astype(np.float64)
    # Adds one product after another, hence in ascending order of index
    dots = np.bincount(entries.rows[common], weights=products, minlength=len(entries.present)).astype(np.float64)
    return 1.0 - dots, entries.present


def count_sparse(column: pa.Array | pa.ChunkedArray, indices: UInt32s, live: Mask) -> Statistics:
    """`SparseIndex.statistics` of a column of `SPARSE_TYPE` without an index."""
    entries = _entries(column)
    place, common = entries.common(indices)
    frequencies = np.bincount(place[live[entries.rows[common]]], minlength=len(indices))
    return Statistics(int(np.count_nonzero(entries.present & live)), 0, frequencies)


# --- the entries of a column -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entries:
    """The pairs of index and value of a column, row after row, and which rows have a vector."""

    rows: Int64s
    indices: UInt32s
    values: Values
    present: Mask

    def common(self, indices: UInt32s) -> tuple[Int64s, Int64s]:
        """The entries whose index is one of ``indices``, ascending: their places in it, and their numbers."""
        place = np.searchsorted(indices, self.indices)
        common = np.flatnonzero(place < len(indices))
        common = common[indices[place[common]] == self.indices[common]]
        return place[common], common


def _entries(column: pa.Array | pa.ChunkedArray) -> _Entries:
    array = one_chunk(column)
    indices = pc.struct_field(array, "indices")
    lengths = pc.fill_null(pc.list_value_length(indices), 0).to_numpy()
    return _Entries(
        np.repeat(np.arange(len(array)), lengths),
        indices.flatten().to_numpy(),
        pc.struct_field(array, "values").flatten().to_numpy(),
        array.is_valid().to_numpy(zero_copy_only=False),
    )


# --- search ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Term:
    """One list of a query: ``weight`` times ``values`` is what its rows gain."""

    weight: float
    rows: UInt32s
    values: Values
    least: Values
    greatest: Values

    def gains(self, scale: float = 1.0) -> Floats:
        """What each row of the list gains, times ``scale``."""
        return np.multiply(self.values, self.weight * scale, dtype=np.float64)

    def gains_of(self, rows: UInt32s, scale: float = 1.0) -> Floats:
        """What each of ``rows`` gains, times ``scale``; 0 for those that are not in the list."""
        at = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        gains = np.multiply(self.values[at], self.weight * scale, dtype=np.float64)
        gains[self.rows[at] != rows] = 0.0
        return gains

    def extremes(self) -> tuple[float, float]:
        """The least and the greatest that a row gains; one that is not in the list gains 0."""
        ends = self.weight * float(self.least.min()), self.weight * float(self.greatest.max())
        return min(0.0, *ends), max(0.0, *ends)

    def bounds_of(self, rows: UInt32s, scale: float) -> Floats:
        """The greatest that each of ``rows`` may gain, times ``scale``, by the extremes of the block where it would be."""
        extremes = self.greatest if self.weight > 0 else self.least
        greatest = np.maximum(np.multiply(extremes, self.weight * scale, dtype=np.float64), 0.0)
        block = np.searchsorted(self.rows[::BLOCK], rows, side="right") - 1
        return np.where(block >= 0, greatest[block], 0.0)


def _dots(terms: Sequence[_Term], rows: Int64s, count: int, total: int) -> Floats:
    """Σ of what ``rows`` gain, summed in order of the terms; ``total`` postings are in the lists of ``count`` rows."""
    if len(rows) * len(terms) * _LOOKUP < total:
        named = rows.astype(np.uint32)
        found = np.zeros(len(rows))
        for term in terms:
            found += term.gains_of(named)
        return found
    sums = np.zeros(count)
    for term in terms:
        at = term.rows.astype(np.int64)
        sums[at] += term.gains()
    return sums[rows]


def _candidates(terms: Sequence[_Term], possible: Mask, k: int) -> Int64s:
    """Rows, ascending, among which are the ``k`` of the greatest sums.

    MaxScore (Turtle and Flood 1995) with bounds per block (Ding and Suel 2011): lists that promise most per posting are read through;
    once the rest cannot lift a row that is behind, the rows still in the race are looked up in them. It counts in float32, in
    parts of what all lists together could change, and keeps every row within its rounding error.
    """
    extremes = np.array([term.extremes() for term in terms])
    total = float(np.sum(extremes[:, 1] - extremes[:, 0]))
    scale = 1.0 / total if total > _TINY else 0.0
    slack = 8 * _ROUNDING * (len(terms) + 4 + _ROUNDING * scale)  # measures are 1 − sum: what is tiny beside 1 ties
    order = np.argsort((extremes[:, 0] - extremes[:, 1]) / [len(term.rows) for term in terms], kind="stable")
    lower, upper = np.vstack([np.cumsum(extremes[order][::-1] * scale, axis=0)[::-1], [0.0, 0.0]]).T.tolist()
    sums = np.where(possible, np.float32(0), np.float32(-np.inf))
    threshold = lower[0]  # the k-th greatest sum is at least this
    read = 0
    for term in (terms[number] for number in order.tolist()):
        bar = threshold - upper[read] - slack  # what a row must have by now
        if bar > 0 and np.count_nonzero(sums >= bar) * _LOOKUP < len(term.rows):
            break
        at = term.rows.astype(np.int64)
        grown = sums[at]
        grown += term.gains(scale)
        sums[at] = grown
        read += 1
        threshold = max(threshold, _kth(grown, k, threshold - lower[read]) + lower[read])
    rows = np.flatnonzero(sums >= threshold - upper[read] - slack)
    sums, named = sums[rows], rows.astype(np.uint32)
    for place, number in enumerate(order[read:].tolist(), start=read + 1):
        term = terms[number]
        racing = sums + term.bounds_of(named, scale) >= threshold - upper[place] - slack
        named, sums = named[racing], sums[racing]
        sums += term.gains_of(named, scale)
        threshold = max(threshold, _kth(sums, k, threshold - lower[place]) + lower[place])
    return named.astype(np.int64)


def _kth(sums: Values, k: int, least: float) -> float:
    """The k-th greatest of the sums, if it is more than ``least``, else that."""
    better = sums[sums > least]
    return least if len(better) < k else float(np.partition(better, len(better) - k)[len(better) - k])
