"""The tail in memory: the raw entries of a shard's log since some offset, and the overlay, their fold over a version.

The overlay keeps every state it went through, each row with the offsets between which it was the row of its id, so that a read at an
older snapshot sees exactly that snapshot while writes go on. Readers work on a `Frozen` picture and take no lock: a fold only adds
rows, and sets the end of a row's validity to an offset beyond every picture taken before.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat
from threading import Lock

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.contracts import TailEntry
from shoal_core.errors import Corrupt
from shoal_core.materialize import fold, join_operations
from shoal_core.records import (
    CREATED_OFFSET,
    DOCUMENT,
    EMBEDDING,
    ID,
    Kind,
    MetadataField,
    concat_rows,
    decode_batch,
    embedding_matrix,
)
from shoal_core.schema import Analyzer
from shoal_index.segment import Pieces
from shoal_index.terms import TermIndex
from shoal_index.vector import scalar_codes
from shoal_index.vector.column import VectorChunk, VectorColumn
from shoal_index.vector.engine import Mask, Rows
from shoal_index.vector.scalar_codes import ScalarCodes, code_vectors, join_codes
from shoal_index.version import Located, ShardVersion

_ID_BYTES = 160  # of what is known of an id, in Python objects
_FOREVER = np.uint64(2**64 - 1)
_REMOVED = -2  # an id that the tail removed: it hides the segments' row
_UNKNOWN = -1  # an id that the tail has not touched


class RawTail:
    """Entries of the log in order, without gaps, in ``(base, through]``."""

    def __init__(self, base: int) -> None:
        self.base = base
        self.through = base
        self.size_bytes = 0
        self._entries: list[TailEntry] = []
        self._ends: list[int] = []

    def add(self, entries: Sequence[TailEntry], through: int) -> None:
        """Append what is new of an answer that reached ``through``; entries known already are passed over."""
        for entry in entries:
            if entry.end_offset <= self.through:
                continue
            if entry.first_offset != self.through + 1:
                raise Corrupt(f"the log has a gap between offsets {self.through} and {entry.first_offset}")
            self._entries.append(entry)
            self._ends.append(entry.end_offset)
            self.through = entry.end_offset
            self.size_bytes += entry.payload.size
        if through > self.through:
            raise Corrupt(f"a tail answer ends at {self.through}, not at {through} as it says")

    def between(self, after: int, up_to: int) -> list[TailEntry]:
        """Entries in ``(after, up_to]``."""
        return self._entries[bisect_right(self._ends, after) : bisect_right(self._ends, up_to)]

    def is_end(self, offset: int) -> bool:
        """Whether a batch ends at ``offset``."""
        at = bisect_left(self._ends, offset)
        return offset == self.base or (at < len(self._ends) and self._ends[at] == offset)

    def end_at(self, offset: int) -> int:
        """The end of the last batch at or below ``offset``, which is not below ``base``."""
        at = bisect_right(self._ends, offset)
        return self._ends[at - 1] if at else self.base

    def release(self, up_to: int) -> None:
        """Forget entries that end at or before ``up_to``."""
        count = bisect_right(self._ends, up_to)
        if count == 0:
            return
        self.size_bytes -= sum(entry.payload.size for entry in self._entries[:count])
        self.base = self._ends[count - 1]
        del self._entries[:count], self._ends[:count]


class _Growing:
    """An array that grows at the end; views of a prefix stay valid."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._data = np.empty(64, dtype=dtype)
        self.count = 0

    def extend(self, values: npt.NDArray[np.generic]) -> None:
        needed = self.count + len(values)
        if needed > len(self._data):
            grown = np.empty(max(needed, 2 * len(self._data)), dtype=self._data.dtype)
            grown[: self.count] = self._data[: self.count]
            self._data = grown
        self._data[self.count : needed] = values
        self.count = needed

    def view(self) -> npt.NDArray[np.uint64]:
        return self._data[: self.count]


class Piece:
    """One of the overlay's row tables, with its vectors, and the ranked indexes of its documents, made when first asked for.

    ``codes`` are those of the vectors; a fold sets them, once, where the tail is long.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.created: npt.NDArray[np.uint64] = table.column(CREATED_OFFSET).to_numpy()
        self.vectors = VectorChunk(embedding_matrix(table.column(EMBEDDING)))
        self.codes: ScalarCodes | None = None
        self._table_bytes = int(table.nbytes)
        self._term_indexes: dict[Analyzer, TermIndex] = {}
        self._building = Lock()

    @property
    def size_bytes(self) -> int:
        """Bytes of the rows, of their codes and of the indexes made so far."""
        codes = 0 if self.codes is None else self.codes.size_bytes
        return self._table_bytes + codes + sum(index.size_bytes for index in tuple(self._term_indexes.values()))

    def term_index(self, analyzer: Analyzer) -> TermIndex:
        """The ranked index of the documents."""
        with self._building:
            if analyzer not in self._term_indexes:
                absent = DOCUMENT not in self.table.column_names
                documents = pa.nulls(self.table.num_rows, pa.string()) if absent else self.table.column(DOCUMENT)
                self._term_indexes[analyzer] = TermIndex.build(documents, analyzer)
            return self._term_indexes[analyzer]

    def sparse(self, key: str) -> pa.ChunkedArray | None:
        """The column of a sparse key."""
        name = MetadataField(key, Kind.SPARSE).column
        return self.table.column(name) if name in self.table.column_names else None


@dataclass(frozen=True, slots=True)
class Frozen:
    """The overlay as it was after one fold.

    Attributes:
        offset: folded up to here.
        pieces: row tables one after another; None without rows.
        vectors: their embeddings.
        valid_from, valid_to: (n,) uint64; a row is its id's row at offsets ``valid_from <= offset < valid_to``.
        hidden: per segment position, the rows that the tail replaced or removed, (m,) int64, and since when, (m,) uint64 ascending.
        parts: the pieces again, for ranked reads.
    """

    offset: int
    pieces: Pieces | None
    vectors: VectorColumn | None
    valid_from: npt.NDArray[np.uint64]
    valid_to: npt.NDArray[np.uint64]
    created: npt.NDArray[np.uint64]
    hidden: dict[int, tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]]
    parts: tuple[Piece, ...]

    def visible(self, offset: int) -> Mask:
        """(n,) bool: rows that are the row of their id at ``offset``."""
        mask: Mask = (self.valid_from <= offset) & (self.valid_to > offset)
        return mask

    def hidden_rows(self, segment: int, offset: int) -> Rows:
        """Rows of a segment that the tail up to ``offset`` replaced or removed."""
        if segment not in self.hidden:
            return np.empty(0, dtype=np.int64)
        rows, since = self.hidden[segment]
        return rows[: int(np.searchsorted(since, offset, side="right"))].astype(np.int64)


@dataclass(slots=True)
class Overlay:
    """The fold of a tail over a version. One fold at a time; `frozen` may be read by any thread at any time.

    Attributes:
        keeps_codes: of vectors, where it is long; they take longer to make than one search saves.
    """

    version: ShardVersion
    keeps_codes: bool = True
    frozen: Frozen = field(init=False)
    _latest: dict[str, int] = field(default_factory=dict)
    _pieces: Pieces | None = None
    _vectors: VectorColumn | None = None
    _parts: tuple[Piece, ...] = ()
    _valid_from: _Growing = field(default_factory=lambda: _Growing(np.uint64))
    _valid_to: _Growing = field(default_factory=lambda: _Growing(np.uint64))
    _created: _Growing = field(default_factory=lambda: _Growing(np.uint64))
    _hidden: dict[int, tuple[_Growing, _Growing]] = field(default_factory=dict)
    _boundaries: list[int] = field(default_factory=list)
    quarantined: int = 0

    def __post_init__(self) -> None:
        self._boundaries.append(self.version.compacted_offset)
        self._freeze(self.version.compacted_offset)

    @property
    def offset(self) -> int:
        """Folded up to here."""
        return self.frozen.offset

    @property
    def size_bytes(self) -> int:
        """Bytes of all rows it went through and of what was made for reads."""
        return sum(part.size_bytes for part in self.frozen.parts) + _ID_BYTES * len(self._latest)

    def serves(self, offset: int) -> bool:
        """Whether the state at exactly this offset was kept: a fold ended there."""
        at = bisect_left(self._boundaries, offset)
        return at < len(self._boundaries) and self._boundaries[at] == offset

    def advance(self, entries: Sequence[TailEntry], to_offset: int, dimension: int | None) -> None:
        """Fold the entries ``(offset, to_offset]``, all in one step."""
        batches = [_operations(entry) for entry in entries if entry.payload.size]
        if batches:
            self._fold(batches, to_offset, dimension)
        self._boundaries.append(to_offset)
        self._freeze(to_offset)

    def _fold(
        self, batches: list[tuple[pa.RecordBatch, npt.NDArray[np.uint64]]], to_offset: int, dimension: int | None
    ) -> None:
        found: list[tuple[Rows, list[str]]] = []

        def find(ids: pa.Array) -> tuple[pa.Table, npt.NDArray[np.int64]]:
            names = ids.to_pylist()
            mine = np.fromiter(map(self._latest.get, names, repeat(_UNKNOWN)), np.int64, len(names))
            found.append((mine, names))
            return self._base_rows(ids, mine, to_offset)

        folded = fold(join_operations(batches, dimension), find, dimension)
        mine, names = found[0]
        self.quarantined += len(folded.quarantined)
        changed = np.flatnonzero(folded.changed)
        replaced = mine[changed]
        start = self._created.count
        live = np.flatnonzero(folded.changed & folded.live)
        unhidden = changed[replaced == _UNKNOWN]
        located = self.version.locate(folded.ids.take(pa.array(unhidden))) if len(unhidden) else None
        self._append(folded.rows, to_offset)  # what can fail comes before the first change: a fold may be tried again
        self._valid_to.view()[replaced[replaced >= 0]] = to_offset
        number = np.full(len(names), _REMOVED, dtype=np.int64)
        number[live] = np.arange(start, start + len(live))
        self._latest.update(zip(map(names.__getitem__, changed.tolist()), number[changed].tolist(), strict=True))
        if located is not None:
            self._hide(located, to_offset)

    def _base_rows(self, ids: pa.Array, mine: Rows, to_offset: int) -> tuple[pa.Table, npt.NDArray[np.int64]]:
        """The rows of ids before the fold: the overlay's own, else the segments'."""
        elsewhere = np.flatnonzero(mine == _UNKNOWN)
        base, at = self.version.find(ids.take(pa.array(elsewhere)) if len(elsewhere) < len(ids) else ids)
        number = np.full(len(ids), -1, dtype=np.int64)
        number[elsewhere] = at
        here = np.flatnonzero(mine >= 0)
        if len(here) == 0:
            return base, number
        assert self._pieces is not None
        number[here] = base.num_rows + np.arange(len(here))
        return concat_rows([base, self._pieces.take(mine[here])]), number

    def _append(self, rows: pa.Table, to_offset: int) -> None:
        if rows.num_rows == 0:
            return
        tables = [*(self._pieces.tables if self._pieces else ()), rows]
        while len(tables) > 1 and tables[-1].num_rows * 2 > tables[-2].num_rows:
            last = tables.pop()  # sizes halve from piece to piece, so there are few and each row moves seldom
            tables[-1] = concat_rows([tables[-1], last]).combine_chunks()
        kept = [part for part, table in zip(self._parts, tables, strict=False) if part.table is table]
        parts = (*kept, *map(Piece, tables[len(kept) :]))
        self._code(parts, len(kept))
        created = np.concatenate([part.created for part in parts])
        pieces, vectors = Pieces(tables), VectorColumn([part.vectors for part in parts], created)
        self._pieces, self._vectors, self._parts = pieces, vectors, parts
        count = rows.num_rows
        self._valid_from.extend(np.full(count, to_offset, dtype=np.uint64))
        self._valid_to.extend(np.full(count, _FOREVER, dtype=np.uint64))
        self._created.extend(rows.column(CREATED_OFFSET).to_numpy())

    def _code(self, parts: Sequence[Piece], kept: int) -> None:
        """Codes for the vectors of a long tail: the last part takes over those of the parts that it is made of, but for the ``kept``
        first, so that no row is coded twice.
        """
        if not self.keeps_codes or sum(len(part.created) for part in parts) < scalar_codes.CODED_ROWS:
            return
        taken = [
            part.codes for part in self._parts[kept:] if part.codes is not None
        ]  # all of them, or the tail was short
        for part, known in zip(parts, [*((part.codes,) for part in parts[:kept]), taken], strict=True):
            codes = [each for each in known if each is not None]
            start = sum(each.count for each in codes)
            if start < len(part.created):
                part.codes = join_codes([*codes, code_vectors(part.vectors.vectors[start:], self.version.space)])

    def _hide(self, located: Located, to_offset: int) -> None:
        for segment in np.unique(located.segment[located.segment >= 0]).tolist():
            rows = located.row[located.segment == segment].astype(np.uint64)
            known, since = self._hidden.setdefault(segment, (_Growing(np.uint64), _Growing(np.uint64)))
            known.extend(rows)
            since.extend(np.full(len(rows), to_offset, dtype=np.uint64))

    def _freeze(self, offset: int) -> None:
        hidden = {segment: (rows.view(), since.view()) for segment, (rows, since) in self._hidden.items()}
        self.frozen = Frozen(
            offset,
            self._pieces,
            self._vectors,
            self._valid_from.view(),
            self._valid_to.view(),
            self._created.view(),
            hidden,
            self._parts,
        )


def ids_of(frozen: Frozen) -> pa.ChunkedArray:
    """The id column of the overlay's rows."""
    assert frozen.pieces is not None
    return pa.chunked_array([chunk for table in frozen.pieces.tables for chunk in table.column(ID).chunks])


def _operations(entry: TailEntry) -> tuple[pa.RecordBatch, npt.NDArray[np.uint64]]:
    batch = decode_batch(entry.payload)
    if entry.offsets is not None:
        return batch, entry.offsets
    return batch, np.arange(entry.first_offset, entry.end_offset + 1, dtype=np.uint64)
