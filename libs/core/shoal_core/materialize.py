"""Folding: a run of log operations over the rows they find, in offset order. The one place that says what an operation does.

Query nodes fold the tail with it and compactors fold it into segments, so both always agree, also on what is quarantined.

Per id, in offset order, over its old row if it has one:

    add      no row: creates one           row: nothing
    upsert   no row: creates one           row: merges
    update   no row: nothing               row: merges
    delete   no row: nothing               row: removes it

A merge replaces embedding and document where given and merges metadata per key: a value replaces the key's value of whatever kind,
a deleted key goes. Creating a record needs an embedding of the collection's dimension; an operation that lacks it is quarantined: it
does nothing and is reported.

All of it is vectorised: operations are grouped by id with one stable sort; whether a row is there before an operation follows from the
last operation of its group that sets that, and each column takes the last value set since the row came to be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal_core.records import (
    CREATED_OFFSET,
    DELETED_KEYS,
    DOCUMENT,
    EMBEDDING,
    ID,
    OP,
    UPDATED_OFFSET,
    Operation,
    dimension_of,
    embedding_array,
    embedding_matrix,
    empty_rows,
    metadata_key,
    one_chunk,
)

Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_ADD, _UPDATE, _UPSERT, _DELETE = (int(item) for item in Operation)  # comparing arrays with an enum is slow


@dataclass(frozen=True, slots=True)
class Operations:
    """A run of log operations.

    Attributes:
        table: operation batches one after another (see `records`), n rows, one chunk per column.
        offsets: (n,) uint64, ascending: the log offset of each.
        misfit: (n,) bool, rows whose embedding has another dimension than the collection.
    """

    table: pa.Table
    offsets: npt.NDArray[np.uint64]
    misfit: Mask


@dataclass(frozen=True, slots=True)
class Folded:
    """What a run of operations comes to.

    Attributes:
        ids: the u distinct ids of the run, string.
        changed: (u,) bool, ids on which any operation had an effect.
        live: (u,) bool, ids that have a row at the end.
        rows: row table of the ids that are changed and live, in order of ``ids``.
        quarantined: uint64 offsets of the operations that could not be applied.
    """

    ids: pa.Array
    changed: Mask
    live: Mask
    rows: pa.Table
    quarantined: npt.NDArray[np.uint64]


def join_operations(
    batches: Sequence[tuple[pa.RecordBatch, npt.NDArray[np.uint64]]], dimension: int | None
) -> Operations:
    """Operation batches with the offsets of their rows, in log order, as one run for a collection of ``dimension``."""
    misfits = [np.zeros(0, dtype=bool)]
    tables = [_NO_OPERATIONS.empty_table()]
    for batch, offsets in batches:
        width = dimension_of(batch.schema)
        fits = width is None or width == dimension
        misfits.append(np.zeros(len(offsets), dtype=bool) if fits else _valid(batch.column(EMBEDDING)))
        tables.append(pa.Table.from_batches([batch if fits else _without(batch, EMBEDDING)]))
    if len(batches) == 1:
        return Operations(tables[1], batches[0][1], misfits[1])
    table = pa.concat_tables(tables, promote_options="default").combine_chunks()
    offsets = np.concatenate([np.zeros(0, dtype=np.uint64), *(offsets for _, offsets in batches)])
    return Operations(table, offsets, np.concatenate(misfits))


_NO_OPERATIONS = pa.schema([(OP, pa.uint8()), (ID, pa.string())])


def _without(batch: pa.RecordBatch, name: str) -> pa.RecordBatch:
    return batch.select([column for column in batch.schema.names if column != name])


def fold(operations: Operations, find: Callable[[pa.Array], tuple[pa.Table, Indices]], dimension: int | None) -> Folded:
    """Fold ``operations`` over the rows that ``find`` returns.

    Columns of the rows may share memory with the operations.

    Args:
        find: from (u,) distinct ids to a row table and, per id, its (u,) int64 row number there or -1. Called once.
    """
    table = operations.table
    given = {name: one_chunk(column) for name, column in zip(table.column_names, table.columns, strict=True)}
    encoded = given[ID].dictionary_encode()
    ids = encoded.dictionary
    base, base_row = find(ids)
    if len(ids) == 0:
        nothing = np.zeros(0, dtype=bool)
        return Folded(ids, nothing, nothing, empty_rows(dimension), np.zeros(0, dtype=np.uint64))
    groups = _Groups.of(encoded.indices.to_numpy(), len(ids))
    effects = _effects(given, operations.misfit, groups, base_row >= 0)
    changed = groups.any(effects.creates | effects.merges | effects.removes)
    chosen = np.flatnonzero(changed & effects.live_at_end)
    quarantined = np.sort(operations.offsets[groups.order[effects.quarantined]])
    if len(chosen) == 0:
        return Folded(ids, changed, effects.live_at_end, empty_rows(dimension), quarantined)
    old_row = np.where(effects.born < 0, base_row, -1)[chosen]
    source = _Source.of(given, base, groups, effects.writes(groups), chosen, old_row)
    columns = {ID: _take(ids, chosen)}
    columns |= _offset_columns(operations.offsets, effects.born[chosen], source)
    if dimension is not None:
        columns[EMBEDDING] = source.vectors(dimension)
    if DOCUMENT in given or DOCUMENT in source.old:
        columns[DOCUMENT] = source.values(DOCUMENT, source.last_valid(DOCUMENT))
    columns |= _metadata_columns(source)
    return Folded(ids, changed, effects.live_at_end, pa.table(columns), quarantined)


@dataclass(frozen=True, slots=True)
class _Groups:
    """Operations sorted by id, in log order within each: ``order`` maps sorted positions to rows of the run."""

    order: Indices
    starts: Indices
    group_of: Indices

    @classmethod
    def of(cls, codes: npt.NDArray[np.int32], groups: int) -> _Groups:
        order = np.argsort(codes, kind="stable").astype(np.int64)
        group_of = codes[order].astype(np.int64)
        return cls(order, np.searchsorted(group_of, np.arange(groups)), group_of)

    def last(self, eligible: Mask) -> Indices:
        """Per group the last sorted position where ``eligible``, or -1."""
        return np.maximum.reduceat(np.where(eligible, np.arange(len(eligible)), -1), self.starts)

    def any(self, mask: Mask) -> Mask:
        """Per group whether any operation is in ``mask``."""
        return np.logical_or.reduceat(mask, self.starts)


@dataclass(frozen=True, slots=True)
class _Effects:
    """What each operation (by sorted position) does, and per group whether a row is there at the end and since when.

    ``born``: sorted position of the operation that created the final row, or -1 when it is the old row.
    """

    creates: Mask
    merges: Mask
    removes: Mask
    quarantined: Mask
    live_at_end: Mask
    born: Indices

    def writes(self, groups: _Groups) -> Mask:
        """Operations that contribute values to the final row."""
        since = self.born[groups.group_of]
        return (self.creates | self.merges) & (np.arange(len(self.creates)) >= since)


def _effects(given: Mapping[str, pa.Array], misfit: Mask, groups: _Groups, base_live: Mask) -> _Effects:
    op = given[OP].to_numpy()[groups.order]
    can_create = _valid(given[EMBEDDING])[groups.order] if EMBEDDING in given else np.zeros(len(op), dtype=bool)
    misfit = misfit[groups.order]
    adds, upserts = op == _ADD, op == _UPSERT
    updates, deletes = op == _UPDATE, op == _DELETE
    sets_live = (adds | upserts) & can_create
    before = _live_before(sets_live, deletes, groups, base_live)
    creates = sets_live & ~before
    merges = (updates | upserts) & before & ~misfit
    quarantined = ((adds | upserts) & ~before & ~can_create) | ((updates | upserts) & before & misfit)
    last_set = groups.last(sets_live | deletes)
    live_at_end = np.where(last_set < 0, base_live, sets_live[last_set])
    return _Effects(creates, merges, deletes & before, quarantined, live_at_end, groups.last(creates))


def _live_before(sets_live: Mask, deletes: Mask, groups: _Groups, base_live: Mask) -> Mask:
    positions = np.arange(len(sets_live))
    last_set = np.maximum.accumulate(np.where(sets_live | deletes, positions, -1))
    previous = np.concatenate([np.array([-1]), last_set[:-1]])
    inside = previous >= groups.starts[groups.group_of]
    return np.where(inside, sets_live[previous], base_live[groups.group_of])


def _offset_columns(offsets: npt.NDArray[np.uint64], born: Indices, source: _Source) -> dict[str, pa.Array]:
    order = source.groups.order
    created = offsets[order[np.maximum(born, 0)]]
    kept = source.old_row >= 0
    if kept.any():
        created[kept] = _rows_of(source.old[CREATED_OFFSET], source.old_row[kept]).to_numpy()
    return {CREATED_OFFSET: pa.array(created), UPDATED_OFFSET: pa.array(offsets[order[source.last_write]])}


@dataclass(frozen=True, slots=True)
class _Source:
    """Takes column values for the chosen groups, from an operation or else from the old row.

    Attributes:
        given: the columns of the operations.
        old: the columns of the old rows.
        writes: by sorted position, operations that contribute values to the final row.
        old_row: per chosen group, its row in ``old`` or -1.
        last_write: per chosen group, the sorted position of its last write. There always is one.
    """

    given: Mapping[str, pa.Array]
    old: Mapping[str, pa.ChunkedArray]
    groups: _Groups
    writes: Mask
    chosen: Indices
    old_row: Indices
    last_write: Indices

    @classmethod
    def of(
        cls,
        given: Mapping[str, pa.Array],
        base: pa.Table,
        groups: _Groups,
        writes: Mask,
        chosen: Indices,
        old_row: Indices,
    ) -> _Source:
        old = dict(zip(base.column_names, base.columns, strict=True))
        return cls(given, old, groups, writes, chosen, old_row, groups.last(writes)[chosen])

    def last_valid(self, name: str) -> Indices:
        """Per chosen group the sorted position of the last write with a value in the column, or -1."""
        column = self.given.get(name)
        if column is None:
            return np.full(len(self.chosen), -1)
        if column.null_count == 0:
            return self.last_write
        return self.groups.last(self.writes & _valid(column)[self.groups.order])[self.chosen]

    def values(self, name: str, position: Indices, keep_old: Mask | None = None) -> pa.Array:
        """The column: from the operation at ``position``; at -1 the old row's value where ``keep_old``, else null.

        A null comes from the last write: it has none in a column whose last value is older or superseded.
        """
        given, old = self.given.get(name), self.old.get(name)
        if position is self.last_write:
            return _take(given, self.groups.order[position])
        use_old = (position < 0) & (self.old_row >= 0)
        if keep_old is not None:
            use_old &= keep_old
        if given is None:
            return _rows_of(self.old[name], np.where(use_old, self.old_row, -1))
        rows = self.groups.order[np.where(position < 0, self.last_write, position)]
        if old is None or not use_old.any():
            return _take(given, rows)
        kept = _rows_of(old, self.old_row[use_old])
        rows[use_old] = len(given) + np.arange(len(kept))
        return pa.concat_arrays([given, kept]).take(pa.array(rows))

    def vectors(self, dimension: int) -> pa.Array:
        """The embedding column. Every final row has one: creating a row needs it."""
        position = self.last_valid(EMBEDDING)
        fresh = position >= 0
        rows = self.groups.order[position[fresh]]
        if fresh.all() and _is_identity(rows, len(self.given[EMBEDDING])) and _is_aligned(self.given[EMBEDDING]):
            return self.given[EMBEDDING]
        matrix = np.empty((len(self.chosen), dimension), dtype=np.float32)
        if fresh.any():
            matrix[fresh] = embedding_matrix(self.given[EMBEDDING])[rows]
        if not fresh.all():
            matrix[~fresh] = _vectors_of(self.old[EMBEDDING], self.old_row[~fresh])
        return embedding_array(matrix)


def _metadata_columns(source: _Source) -> dict[str, pa.Array]:
    keys = {name: key for name in (*source.given, *source.old) if (key := metadata_key(name)) is not None}
    touched = _deletions(source, set(keys.values()))
    last = {name: source.last_valid(name) for name in keys}
    for name, key in keys.items():
        touched[key] = np.maximum(touched[key], last[name]) if key in touched else last[name]
    columns = {}
    for name, key in keys.items():
        superseded = touched[key] is not last[name]
        position = np.where(last[name] == touched[key], last[name], -1) if superseded else last[name]
        columns[name] = source.values(name, position, keep_old=touched[key] < 0)
    return columns


def _deletions(source: _Source, keys: set[str]) -> dict[str, Indices]:
    """Per key that any operation deletes: for each chosen group the last sorted position that deletes it, or -1."""
    if DELETED_KEYS not in source.given:
        return {}
    lists = source.given[DELETED_KEYS]
    deleted = pc.list_flatten(lists).dictionary_encode()
    rows = pc.list_parent_indices(lists).to_numpy()
    codes = deleted.indices.to_numpy(zero_copy_only=False)
    found = {}
    for code, key in enumerate(deleted.dictionary.to_pylist()):
        if key not in keys:
            continue
        names_key = np.zeros(len(lists), dtype=bool)
        names_key[rows[codes == code]] = True
        found[key] = source.groups.last(source.writes & names_key[source.groups.order])[source.chosen]
    return found


def _is_identity(rows: Indices, count: int) -> bool:
    return len(rows) == count and bool((rows == np.arange(count)).all())


def _is_aligned(embeddings: pa.Array) -> bool:
    """Whether numpy may compute on the vectors in place: a payload can start at any byte of a message."""
    return embedding_matrix(embeddings).flags.aligned


def _take(array: pa.Array, rows: Indices) -> pa.Array:
    """The rows of an array, the array itself when they are all of it in order."""
    return array if _is_identity(rows, len(array)) else array.take(pa.array(rows))


def _rows_of(column: pa.ChunkedArray, rows: Indices) -> pa.Array:
    """Rows of a column as one array, null at -1; never gathers the whole column."""
    absent = rows < 0
    index = pa.array(rows, mask=absent) if absent.any() else pa.array(rows)
    if column.num_chunks == 1:
        return column.chunk(0).take(index)
    return column.take(index).combine_chunks()


def _vectors_of(column: pa.ChunkedArray, rows: Indices) -> npt.NDArray[np.float32]:
    """(len(rows), dim) float32 rows of an embedding column."""
    if column.num_chunks == 1:
        return embedding_matrix(column.chunk(0))[rows]
    return embedding_matrix(_rows_of(column, rows))


def _valid(array: pa.Array) -> Mask:
    """(n,) bool: where the array has a value."""
    if array.null_count == 0:
        return np.ones(len(array), dtype=bool)
    return array.is_valid().to_numpy(zero_copy_only=False)
