"""Value indexes: for each value of a metadata column the rows that have it. They answer equality, ranges and membership.

Values are sorted, so a comparison is a range of positions and its exact count a subtraction. Values that many rows have also keep
a bitmap. Which rows have a key at all is not here: the columns' own validity says it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal_core.filters import Comparator, Scalar
from shoal_core.records import one_chunk
from shoal_index.postings import Int64s, Mask, MergePart, Postings, merge_postings
from shoal_storage.blocks import TARGET_BLOCK_BYTES

#: Positions of values: a slice of them, or these, ascending and distinct.
Codes = slice | Int64s

_COMMON_SHARE = 16
_SCAN_PER_NEEDLE = 500  # looking at so many values in turn costs as much as one bisection
_PARTS = ("values", "starts", "rows", "common", "bitmaps")


@dataclass(frozen=True, slots=True)
class ValueIndex:
    """The index of one column.

    Attributes:
        rows: of the segment.
        values: (d,) the distinct values, ascending (strings by code point); of lists, their elements. -0.0 is 0.0, and
            not-a-number, which equals nothing, is left out.
        postings: the rows of each value.
        common: (c,) int64 positions of the values that more than 1/16 of the rows have.
        bitmaps: (c, ⌈rows / 8⌉) uint8, the rows of those, eight to a byte.
    """

    rows: int
    values: pa.Array
    postings: Postings
    common: Int64s
    bitmaps: npt.NDArray[np.uint8]

    @classmethod
    def build(cls, column: pa.Array | pa.ChunkedArray) -> ValueIndex:
        """The index of a metadata column of any kind but sparse vectors."""
        if pa.types.is_list(column.type):
            lists = one_chunk(column)
            elements, rows = pc.list_flatten(lists), pc.list_parent_indices(lists).to_numpy()
        else:
            elements, rows = column, np.arange(len(column))
        known = pc.fill_null(pc.equal(elements, elements), False)  # neither null nor not-a-number
        values, codes = _coded(elements.filter(known))
        postings = _grouped(codes, rows[known.to_numpy(zero_copy_only=False)], len(values))
        return _with_bitmaps(len(column), values, postings)

    @classmethod
    def merge(cls, parts: Sequence[tuple[ValueIndex, Int64s]], rows: int) -> ValueIndex:
        """The index of ``rows`` rows, from those of segments.

        Args:
            parts: each index with its map (rows,) int64 from its rows to the new ones, -1 for one that is left behind.
        """
        union, coded = _coded(pa.concat_arrays([index.values for index, _ in parts]))
        codes = np.split(coded, np.cumsum([len(index.values) for index, _ in parts])[:-1])
        merge = [MergePart(index.postings, code, new) for (index, new), code in zip(parts, codes, strict=True)]
        postings, used, _ = merge_postings(merge)
        return _with_bitmaps(rows, union.take(pa.array(used)), postings)

    def compared(self, comparator: Comparator, value: Scalar) -> slice:
        """The values for which the comparison (not ``$ne``) holds, by the rules of `evaluate`.

        ``value`` is of the column's type, where numbers are one type: Python compares int and float exactly, as the rules ask.
        """
        first = bisect_left(self.values, value, key=lambda scalar: scalar.as_py())
        last = first + (first < len(self.values) and self.values[first].as_py() == value)
        match comparator:
            case Comparator.LT:
                return slice(0, first)
            case Comparator.LTE:
                return slice(0, last)
            case Comparator.GT:
                return slice(last, len(self.values))
            case Comparator.GTE:
                return slice(first, len(self.values))
        return slice(first, last)

    def among(self, needles: Sequence[Scalar]) -> Codes:
        """The values that equal one of the needles, which are of the column's type."""
        if len(needles) == 1:
            return self.compared(Comparator.EQ, needles[0])
        if len(needles) * _SCAN_PER_NEEDLE < len(self.values):
            spans = [self.compared(Comparator.EQ, needle) for needle in needles]
            return np.unique(np.array([span.start for span in spans if span.start < span.stop], dtype=np.int64))
        found = pc.is_in(self.values, value_set=pa.array(_same(needles, self.values.type), self.values.type))
        return np.flatnonzero(found.to_numpy(zero_copy_only=False))

    def count(self, codes: Codes) -> int:
        """How many rows have one of the values; of a column of lists, with repetition."""
        if isinstance(codes, slice):
            return self.postings.count(codes.start, codes.stop)
        starts = self.postings.starts
        return int((starts[codes + 1] - starts[codes]).sum())

    def mask(self, codes: Codes) -> Mask:
        """(rows,) bool: those that have one of the values."""
        if isinstance(codes, slice):
            if self._is_most(codes):
                below, above = self._others(codes)
                return ~(self.mask(below) | self.mask(above))
            at = self._common_among(codes)
            bounds = (codes.start - 1, *self.common[at].tolist(), codes.stop)
            scattered = [self.postings.of(before + 1, after) for before, after in pairwise(bounds)]
        else:
            at = self._common_among(codes)
            scattered = [self._rows_of(codes[~np.isin(codes, self.common)])]
        mask = self._bitmap(at)
        for rows in scattered:
            mask[rows] = True
        return mask

    def read_bytes(self, codes: Codes) -> int:
        """Bytes of bitmaps and postings that `mask` reads."""
        if isinstance(codes, slice) and self._is_most(codes):
            return sum(map(self.read_bytes, self._others(codes)))
        at = self._common_among(codes)
        scattered = self.count(codes) - self.count(self.common[at])
        return len(at) * self.bitmaps.shape[1] + scattered * self.postings.rows.itemsize

    def _common_among(self, codes: Codes) -> Int64s:
        """Positions in ``common`` of those of the values that are there."""
        if isinstance(codes, slice):
            return np.arange(*np.searchsorted(self.common, (codes.start, codes.stop)))
        return np.flatnonzero(np.isin(self.common, codes))

    def _others(self, codes: slice) -> tuple[slice, slice]:
        """The values below and above a range."""
        return slice(0, codes.start), slice(codes.stop, len(self.values))

    def _is_most(self, codes: slice) -> bool:
        """Whether the rows outside a range are fewer, every row having a value. Lists are not asked for ranges."""
        every = len(self.postings.rows) == self.rows and codes.stop - codes.start > 1
        return every and 2 * self.count(codes) > self.rows

    def _bitmap(self, at: Int64s) -> Mask:
        if len(at) == 0:
            return np.zeros(self.rows, dtype=bool)
        return np.unpackbits(np.bitwise_or.reduce(self.bitmaps[at]), count=self.rows).view(bool)

    def _rows_of(self, codes: Int64s) -> npt.NDArray[np.uint32]:
        """Rows of many values without a loop over them."""
        starts = self.postings.starts
        counts = starts[codes + 1] - starts[codes]
        ends = np.cumsum(counts)
        shift = np.repeat(starts[codes] - (ends - counts), counts)
        return self.postings.rows[np.arange(len(shift)) + shift]


def _with_bitmaps(rows: int, values: pa.Array, postings: Postings) -> ValueIndex:
    common = np.flatnonzero(postings.counts() * _COMMON_SHARE > rows)
    bitmaps = np.zeros((len(common), (rows + 7) // 8), dtype=np.uint8)
    for at, code in enumerate(common.tolist()):
        mask = np.zeros(rows, dtype=bool)
        mask[postings.of(code)] = True
        bitmaps[at] = np.packbits(mask)
    return ValueIndex(rows, values, postings, common, bitmaps)


def _coded(elements: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, Int64s]:
    """The distinct values, ascending, and the position of each element among them, (n,) int64."""
    if pa.types.is_integer(elements.type) or pa.types.is_floating(elements.type):
        numbers = elements.to_numpy()
        unique, codes = np.unique(numbers + numbers.dtype.type(0), return_inverse=True)  # -0.0 + 0.0 is 0.0
        return pa.array(unique), codes
    if pa.types.is_string(elements.type):
        elements = elements.cast(pa.large_string())  # whose offsets cannot overflow
    values = pc.unique(elements)
    values = values.take(pc.sort_indices(values))
    return values, pc.index_in(elements, value_set=values).to_numpy().astype(np.int64)


def _grouped(codes: Int64s, rows: npt.NDArray[np.integer], count: int) -> Postings:
    """Postings of pairs in any order, each kept once. Sorting one number per pair is much faster than two keys."""
    pairs = np.sort(codes.astype(np.uint64) << 32 | rows.astype(np.uint64))
    pairs = pairs[np.diff(pairs, prepend=~pairs[:1]) != 0]
    starts = np.searchsorted(pairs, np.arange(count + 1, dtype=np.uint64) << 32).astype(np.int64)
    return Postings(starts, pairs.astype(np.uint32))  # the lower half


def _same(needles: Iterable[Scalar], kind: pa.DataType) -> list[Scalar]:
    """Numbers that a column's type can represent, in that type; other needles as they are."""
    if pa.types.is_integer(kind):
        numbers = (value for value in needles if not isinstance(value, str) and math.isfinite(value))
        return [int(value) for value in numbers if value == int(value) and -(2**63) <= value < 2**63]
    if pa.types.is_floating(kind):
        return [float(value) + 0.0 for value in needles if not isinstance(value, str) and float(value) == value]
    return list(needles)


# --- blocks ------------------------------------------------------------------------------------------------------------


def pack_indexes(indexes: Mapping[str, ValueIndex]) -> list[pa.Table]:
    """Indexes by column name as tables of one row of lists, each near the size of a block or of one index."""
    tables: list[pa.Table] = []
    open_: dict[str, pa.Array] = {}
    for name, index in sorted(indexes.items()):
        arrays = _arrays(name, index)
        if open_ and _size_bytes(open_) + _size_bytes(arrays) > TARGET_BLOCK_BYTES:
            tables.append(pa.table(open_))
            open_ = {}
        open_ |= arrays
    return [*tables, pa.table(open_)] if open_ else tables


def unpack_indexes(table: pa.Table, rows: int) -> Iterator[tuple[str, ValueIndex]]:
    """The inverse of `pack_indexes` for one table of a segment of ``rows`` rows, without copying."""
    for name in table.column_names:
        part, _, column = name.partition(":")
        if part != _PARTS[0]:
            continue
        values, starts, at, common, bitmaps = (_list(table, f"{part}:{column}") for part in _PARTS)
        postings = Postings(starts.to_numpy(), at.to_numpy())
        packed = bitmaps.to_numpy().reshape(len(common), (rows + 7) // 8)
        yield column, ValueIndex(rows, values, postings, common.to_numpy(), packed)


def _arrays(name: str, index: ValueIndex) -> dict[str, pa.Array]:
    parts = (index.values, index.postings.starts, index.postings.rows, index.common, index.bitmaps.reshape(-1))
    return {f"{part}:{name}": _one_row(pa.array(values)) for part, values in zip(_PARTS, parts, strict=True)}


def _one_row(values: pa.Array) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)


def _list(table: pa.Table, name: str) -> pa.Array:
    return one_chunk(table.column(name)).flatten()


def _size_bytes(arrays: Mapping[str, pa.Array]) -> int:
    return sum(int(array.nbytes) for array in arrays.values())
