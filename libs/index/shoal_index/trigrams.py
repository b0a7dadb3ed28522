"""Which documents have which three consecutive bytes: the index for substrings and regular expressions.

Each document is thought of as followed by two bytes 0xFF, which UTF-8 never has, so that every byte starts a trigram. A trigram's code
is its bytes as a big-endian number: a pattern of one or two bytes is then a range of codes. A trigram of more than one row in 32 is
stored as a bitmap, which is smaller from there on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal_core.filters import TextMatcher
from shoal_index.postings import Int64s, Mask, Postings, Rows
from shoal_index.regex_literals import Literals, required_literals

_BATCH_BYTES: Final = 1 << 20  # of text at a time: what is made of it stays near the processor
_BITS: Final = 32  # of a row number; a bitmap has one bit for each row
_ENOUGH: Final = 32  # rows: looking at so few documents is cheaper than excluding some of them
_MAX_TRIGRAMS: Final = 16  # of a pattern, the rarest: more exclude hardly anything

Codes = npt.NDArray[np.uint32]
Pairs = npt.NDArray[np.uint64]  # code in the upper half, row in the lower


@dataclass(frozen=True, slots=True)
class Candidates:
    """Rows that may match: no other row does, and if ``exact``, each of them does.

    Attributes:
        rows: (count,) uint32, ascending.
        read_bytes: of the postings and bitmaps they were made from.
    """

    rows: Rows
    exact: bool
    read_bytes: int

    @property
    def count(self) -> int:
        return len(self.rows)


@dataclass(slots=True)
class _Reads:
    """What one look for candidates has read so far."""

    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TrigramIndex:
    """Rows by trigram.

    Attributes:
        rows: how many rows there are, with a document or without.
        codes: (d,) uint32, ascending: the trigrams that occur.
        postings: rows of each code that has no bitmap.
        frequent: (m,) uint32, ascending: positions in ``codes`` of those that have one.
        frequent_counts: (m,) uint32 rows of each.
        bitmaps: (m, ⌈rows / 8⌉) uint8, the lowest bit first.
    """

    rows: int
    codes: Codes
    postings: Postings
    frequent: Codes
    frequent_counts: Codes
    bitmaps: npt.NDArray[np.uint8]

    @classmethod
    def build(cls, documents: pa.Array | pa.ChunkedArray) -> TrigramIndex:
        """The index of a string column, row numbers being positions in it. Null and empty documents have no trigrams."""
        batches = [_batch(texts, first) for texts, first in _slices(documents)]
        used = np.unique(np.concatenate([codes for codes, _, _ in batches])) if batches else np.empty(0, np.uint32)
        starts = np.zeros(len(used) + 1, dtype=np.int64)
        places = [np.searchsorted(used, codes) for codes, _, _ in batches]
        for place, (_, counts, _) in zip(places, batches, strict=True):
            starts[place + 1] += counts
        np.cumsum(starts, out=starts)
        rows, free = np.empty(starts[-1], dtype=np.uint32), starts[:-1].copy()
        for place, (_, counts, some) in zip(places, batches, strict=True):
            before = np.cumsum(counts) - counts  # batches come in order of rows, so each goes behind the one before
            rows[np.arange(len(some)) + np.repeat(free[place] - before, counts)] = some
            free[place] += counts
        return cls._of_postings(used, Postings(starts, rows), len(documents))

    @classmethod
    def merge(cls, parts: Sequence[tuple[TrigramIndex, Int64s]], rows: int) -> TrigramIndex:
        """The index of merged segments: with each the (n,) int64 new row of each of its rows, or -1 for one left behind."""
        pairs = np.concatenate([np.empty(0, np.uint64), *(part._pairs(new_row) for part, new_row in parts)])
        pairs.sort()
        codes, counts, merged = _grouped(pairs)
        starts = np.concatenate([[0], np.cumsum(counts)])
        return cls._of_postings(codes, Postings(starts, merged), rows)

    @classmethod
    def of_table(cls, table: pa.Table) -> TrigramIndex:
        """The inverse of `to_table`, without copying."""
        lists = {
            name: table.column(name).chunk(0).flatten().to_numpy() for name in table.column_names if name != "count"
        }
        postings = Postings(lists["starts"], lists["rows"])
        frequent, bitmaps = lists["frequent"], lists["bitmaps"]
        rows = table.column("count")[0].as_py()
        bitmaps = bitmaps.reshape(len(frequent), -(-rows // 8))
        return cls(rows, lists["codes"], postings, frequent, lists["frequent_counts"], bitmaps)

    def to_table(self) -> pa.Table:
        """As stored in a block: one row of lists."""
        lists: dict[str, npt.NDArray[Any]] = {
            "codes": self.codes,
            "starts": self.postings.starts,
            "rows": self.postings.rows,
            "frequent": self.frequent,
            "frequent_counts": self.frequent_counts,
            "bitmaps": self.bitmaps.reshape(-1),
        }
        columns = {
            name: pa.LargeListArray.from_arrays([0, len(values)], pa.array(values)) for name, values in lists.items()
        }
        return pa.table({"count": pa.array([self.rows], pa.int64()), **columns})

    def candidates(self, matcher: TextMatcher, pattern: str) -> Candidates | None:
        """Rows whose documents may contain or match the pattern, also for the negated matchers, of which it is the complement.

        A substring of at most three bytes has exact candidates. None when the index does not narrow the search enough to pay.
        A malformed regular expression is not noticed.
        """
        reads = _Reads()
        if matcher in (TextMatcher.CONTAINS, TextMatcher.NOT_CONTAINS):
            literal = pattern.encode()
            found = self._containing(literal, reads) if literal else None
            exact = len(literal) <= 3
        else:
            found, exact = self._matching(required_literals(pattern), reads), False
        if found is None or (not exact and 2 * len(found) > self.rows):
            return None
        return Candidates(found, exact, reads.size_bytes)

    def _matching(self, required: Sequence[Literals], reads: _Reads) -> Rows | None:
        """Rows that may contain a literal of each set; None if that may be most of them."""
        bounds = [sum(map(self._at_most, literals)) for literals in required]
        found: Rows | None = None
        for n in np.argsort(bounds, kind="stable"):
            if 2 * bounds[n] > self.rows or (found is not None and len(found) <= _ENOUGH):
                break
            rows = _union([self._containing(literal, reads) for literal in required[n]])
            found = rows if found is None else _both(found, rows)
        return found

    def _at_most(self, literal: bytes) -> int:
        """A bound on the rows that contain it, without reading any."""
        if len(literal) >= 3:
            return int(self._trigrams(literal)[1][0])
        first, last = self._range(literal)
        frequent = slice(*np.searchsorted(self.frequent, (first, last)))
        return self.postings.count(first, last) + int(self.frequent_counts[frequent].sum())

    def _containing(self, literal: bytes, reads: _Reads) -> Rows:
        """Rows that contain it, or, if it is longer than three bytes, may contain it."""
        if len(literal) < 3:
            return self._within(*self._range(literal), reads)
        places, counts = self._trigrams(literal)
        if counts[0] == 0:
            return np.empty(0, dtype=np.uint32)
        found = self._rows(int(places[0]), reads)
        for place in places[1:_MAX_TRIGRAMS].tolist():
            if len(found) <= _ENOUGH:
                break
            found = self._among(found, place, reads)
        return found

    def _trigrams(self, literal: bytes) -> tuple[Int64s, Int64s]:
        """Positions of a literal's trigrams in ``codes``, the rarest first, and how many rows each has, 0 if it has none."""
        codes = np.unique(_codes(np.frombuffer(literal, dtype=np.uint8))[:-2])
        places = np.searchsorted(self.codes, codes)
        if places[-1] == len(self.codes) or not np.array_equal(self.codes[places], codes):
            return np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
        starts = self.postings.starts
        counts = starts[places + 1] - starts[places]
        frequent = np.flatnonzero(counts == 0)
        counts[frequent] = self.frequent_counts[np.searchsorted(self.frequent, places[frequent])]
        order = np.argsort(counts, kind="stable")
        return places[order], counts[order]

    def _range(self, literal: bytes) -> tuple[int, int]:
        """Positions in ``codes`` of the trigrams that start with one or two bytes: first, and last + 1."""
        shift = 8 * (3 - len(literal))
        code = int.from_bytes(literal, "big") << shift
        first, last = np.searchsorted(self.codes, np.array([code, code + (1 << shift)], dtype=np.uint32))
        return int(first), int(last)

    def _within(self, first: int, last: int, reads: _Reads) -> Rows:
        """Rows of any of the codes ``first <= c < last``."""
        mask = np.zeros(self.rows, dtype=np.bool_)
        scattered = self.postings.of(first, last)
        mask[scattered] = True
        bitmaps = self.bitmaps[slice(*np.searchsorted(self.frequent, (first, last)))]
        if len(bitmaps):
            mask |= self._unpacked(np.bitwise_or.reduce(bitmaps, axis=0))
        reads.size_bytes += scattered.nbytes + bitmaps.nbytes
        return np.flatnonzero(mask).astype(np.uint32)

    def _rows(self, place: int, reads: _Reads) -> Rows:
        postings, bitmap = self._stored(place, reads)
        return postings if bitmap is None else np.flatnonzero(self._unpacked(bitmap)).astype(np.uint32)

    def _among(self, rows: Rows, place: int, reads: _Reads) -> Rows:
        """Of the rows those that have the code."""
        postings, bitmap = self._stored(place, reads)
        if bitmap is None:
            return _both(rows, postings)
        return rows[(bitmap[rows >> 3] >> (rows & 7).astype(np.uint8) & 1).view(np.bool_)]

    def _stored(self, place: int, reads: _Reads) -> tuple[Rows, npt.NDArray[np.uint8] | None]:
        """The rows of a code, or none and a bitmap of them."""
        at = int(np.searchsorted(self.frequent, place))
        often = at < len(self.frequent) and self.frequent[at] == place
        rows, bitmap = self.postings.of(place), self.bitmaps[at] if often else None
        reads.size_bytes += rows.nbytes if bitmap is None else bitmap.nbytes
        return rows, bitmap

    def _unpacked(self, bitmap: npt.NDArray[np.uint8]) -> Mask:
        return np.unpackbits(bitmap, count=self.rows, bitorder="little").view(np.bool_)

    @classmethod
    def _of_postings(cls, codes: Codes, postings: Postings, rows: int) -> TrigramIndex:
        """Moves the rows of the frequent codes to bitmaps."""
        counts = postings.counts()
        often = counts * _BITS > rows
        frequent = np.flatnonzero(often)
        bitmaps = np.zeros((len(frequent), -(-rows // 8)), dtype=np.uint8)
        mask = np.empty(rows, dtype=np.bool_)
        for bitmap, place in zip(bitmaps, frequent.tolist(), strict=True):
            mask[:] = False
            mask[postings.of(place)] = True
            bitmap[:] = np.packbits(mask, bitorder="little")
        starts = np.concatenate([[0], np.cumsum(np.where(often, 0, counts))])
        sparse = Postings(starts, postings.rows[np.repeat(~often, counts)])
        return cls(rows, codes, sparse, frequent.astype(np.uint32), counts[frequent].astype(np.uint32), bitmaps)

    def _pairs(self, new_row: Int64s) -> Pairs:
        """All codes with the new rows of their rows."""
        counts = self.postings.counts()
        counts[self.frequent] = self.frequent_counts
        frequent = [np.flatnonzero(self._unpacked(bitmap)) for bitmap in self.bitmaps]
        often = np.zeros(len(counts), dtype=np.bool_)
        often[self.frequent] = True
        rows = np.concatenate([new_row[self.postings.rows], *(new_row[some] for some in frequent)])
        codes = np.concatenate([np.repeat(self.codes[part], counts[part]) for part in (~often, often)])
        kept = rows >= 0
        return _shifted(codes[kept]) | rows[kept].astype(np.uint64)


def _slices(documents: pa.Array | pa.ChunkedArray) -> Iterator[tuple[pa.Array, int]]:
    """Pieces of about `_BATCH_BYTES` with the row number of the first; nulls are empty."""
    first = 0
    for chunk in documents.chunks if isinstance(documents, pa.ChunkedArray) else [documents]:
        if len(chunk) == 0:
            continue
        texts = pc.fill_null(chunk, "")
        offsets = _offsets(texts)
        cuts = np.searchsorted(offsets, np.arange(offsets[0], offsets[-1], _BATCH_BYTES)[1:])
        cuts = np.unique(np.concatenate([[0], cuts, [len(texts)]]))
        for start, end in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            yield texts.slice(start, end - start), first + start
        first += len(chunk)


def _offsets(texts: pa.Array) -> Int64s:
    """(n + 1,) int64: where each text starts in the data buffer."""
    width = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    offsets = np.frombuffer(texts.buffers()[1], dtype=width, count=texts.offset + len(texts) + 1)
    return offsets[texts.offset :].astype(np.int64)


def _batch(texts: pa.Array, first: int) -> tuple[Codes, Int64s, Rows]:
    """The trigrams of texts in the rows from ``first``, as `_grouped`."""
    offsets = _offsets(texts)
    data = texts.buffers()[2]
    if offsets[0] == offsets[-1] or data is None:
        return _grouped(np.empty(0, np.uint64))
    codes = _codes(np.frombuffer(data, dtype=np.uint8)[offsets[0] : offsets[-1]])
    lengths = np.diff(offsets)
    ends = offsets[1:] - offsets[0]
    codes[ends[lengths > 0] - 1] |= 0xFFFF
    codes[ends[lengths > 1] - 2] |= 0xFF
    pairs = _shifted(codes)
    pairs |= np.repeat(np.arange(first, first + len(texts), dtype=np.uint64), lengths)
    pairs.sort()
    distinct = np.concatenate([[True], pairs[1:] != pairs[:-1]])
    return _grouped(pairs[distinct])


def _shifted(codes: Codes) -> Pairs:
    return codes.astype(np.uint64) << np.uint64(32)


def _grouped(pairs: Pairs) -> tuple[Codes, Int64s, Rows]:
    """Of ascending pairs the (d,) distinct codes, (d,) how many rows each has, and those rows."""
    codes = (pairs >> 32).astype(np.uint32)
    starts = np.flatnonzero(np.diff(codes, prepend=~codes[:1]))
    return codes[starts], np.diff(starts, append=len(codes)), pairs.astype(np.uint32)


def _codes(text: npt.NDArray[np.uint8]) -> Codes:
    """(n,) uint32 code of the trigram that starts at each byte, zeros following the last."""
    codes = text.astype(np.uint32) << np.uint32(16)
    codes[:-1] |= text[1:].astype(np.uint32) << np.uint32(8)
    codes[:-2] |= text[2:]
    return codes


def _both(some: Rows, others: Rows) -> Rows:
    """Rows in both of two ascending arrays."""
    few, many = (some, others) if len(some) < len(others) else (others, some)
    if len(few) == 0:
        return few
    at = np.minimum(np.searchsorted(many, few), len(many) - 1)
    return few[many[at] == few]


def _union(lists: Sequence[Rows]) -> Rows:
    return lists[0] if len(lists) == 1 else np.unique(np.concatenate(lists))
