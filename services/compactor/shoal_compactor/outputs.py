"""A function's output collection: what is there, and the writes that make it what the function says.

Writes go through the output's log, on condition that the guard was not written since the output was read. So of two that run the
same function one is refused; and one that comes late finds a guard that is ahead of it, and writes nothing. The guard gets the new
offset with the last write, so one that died in between is followed by one that finds the rest to do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shoal_compactor.builtin import COMPLETION_OFFSET, OutputFormat
from shoal_compactor.function_settings import FunctionSettings
from shoal_compactor.publish import Publisher
from shoal_core.contracts import AppendRequest, Collection, Condition, Log, TailEntry, TailRequest
from shoal_core.errors import OutcomeUnknown
from shoal_core.materialize import fold, join_operations
from shoal_core.records import (
    DOCUMENT,
    EMBEDDING,
    ID,
    OP,
    Operation,
    concat_rows,
    decode_batch,
    embedding_array,
    encode_batch,
)
from shoal_index.segment import TO_FLUSH, BlockReader
from shoal_index.version import ShardVersion, open_shard

_DIMENSION = 1
_ROW_BYTES = 64  # of a row besides its texts


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """What a function's output holds.

    Attributes:
        head_offset: of the log that was read.
        completion_offset: that of the guard, 0 without one.
        records: ``id`` (string) and ``number`` (int64) of the function's records but for the guard.
    """

    head_offset: int
    completion_offset: int
    records: pa.Table


async def read_output(
    collection: Collection, form: OutputFormat, *, log: Log, publisher: Publisher, blocks: BlockReader
) -> Output:
    """The output as of now: its current version with the tail of its log. Raises `NotFound`, `OffsetExpired`, `Unavailable`."""
    manifest = await publisher.current(collection)
    entries: list[TailEntry] = []
    after = manifest.compacted_offset
    while True:
        tail = await log.read_tail(TailRequest(collection.id, epoch=0, after_offset=after))
        entries.extend(tail.entries)
        after = tail.through_offset
        if not tail.entries or after >= tail.head.head_offset:
            break
    version = await open_shard(manifest, 0, blocks, {}, kinds=TO_FLUSH)
    return await asyncio.to_thread(_output, version, entries, after, form)


def _output(version: ShardVersion, entries: list[TailEntry], head_offset: int, form: OutputFormat) -> Output:
    columns = (ID, *form.required, COMPLETION_OFFSET)
    run = []
    for entry in entries:
        offsets = np.arange(entry.first_offset, entry.end_offset + 1, dtype=np.uint64)
        run.append((decode_batch(entry.payload), offsets))
    folded = fold(join_operations(run, _DIMENSION), version.find, _DIMENSION)
    overwritten = folded.ids.filter(pa.array(folded.changed))
    parts = [_chosen(folded.rows, columns)]
    for view in version.segments:
        rows = np.arange(view.ref.rows) if view.dead is None else np.flatnonzero(~view.dead)
        table = _chosen(view.segment.take(rows, columns), columns)
        parts.append(table.filter(pc.invert(pc.is_in(table.column(ID), value_set=overwritten))))
    table = concat_rows(parts)
    is_guard = pc.equal(table.column(ID), form.guard)
    reached = pc.max(table.filter(is_guard).column(COMPLETION_OFFSET)).as_py() or 0
    own = pc.invert(is_guard)
    for name in form.required:
        own = pc.and_(own, pc.is_valid(table.column(name)))
    mine = table.filter(own)
    records = pa.table({ID: mine.column(ID), "number": mine.column(form.number)}).combine_chunks()
    return Output(head_offset, reached, records)


def _chosen(table: pa.Table, columns: tuple[str, ...]) -> pa.Table:
    """The columns, null where there is none of the name."""
    types = {ID: pa.string()} | {name: pa.int64() if name.startswith("m:int:") else pa.string() for name in columns[1:]}
    present = set(table.column_names)
    return pa.table(
        {name: table.column(name) if name in present else pa.nulls(table.num_rows, types[name]) for name in columns}
    )


async def write_output(
    collection: Collection,
    output: Output,
    wanted: pa.Table,
    form: OutputFormat,
    offset: int,
    *,
    function_id: str,
    publisher: Publisher,
    log: Log,
    settings: FunctionSettings,
) -> int:
    """Make the output what ``wanted`` says, by writing what differs; how many records that were.

    Raises what `Log.append` raises, `WriteConflict` when another wrote meanwhile.
    """
    batches = await asyncio.to_thread(_changes, output, wanted, form, offset, settings)
    read_at = output.head_offset
    for batch in batches:
        key = f"{function_id.replace('-', '')}:{offset:x}:{read_at:x}"
        condition = Condition(read_at, (form.guard,))
        payload = await asyncio.to_thread(encode_batch, batch)
        request = AppendRequest(collection.id, collection.epoch, collection.tenant, payload, key, condition)
        await publisher.step("function-append")
        try:
            result = await log.append(request)
        except OutcomeUnknown:
            result = await log.append(request)  # the key makes it the same append
        await publisher.step("function-appended")
        read_at = result.token.offset
    return sum(batch.num_rows for batch in batches)


def _changes(
    output: Output, wanted: pa.Table, form: OutputFormat, offset: int, settings: FunctionSettings
) -> list[pa.RecordBatch]:
    """The operation batches, each of which writes the guard, the last one with its new offset."""
    is_guard = pc.equal(wanted.column(ID), form.guard)
    guard, others = wanted.filter(is_guard), wanted.filter(pc.invert(is_guard))
    there = output.records.column(ID).combine_chunks()
    at = pc.index_in(others.column(ID), value_set=there)
    before = output.records.column("number").take(at)
    same = pc.fill_null(pc.equal(before, others.column(form.number)), False)
    changed = others.filter(pc.invert(same))
    gone = there.filter(pc.invert(pc.is_in(there, value_set=others.column(ID).combine_chunks())))
    rows = pa.concat_tables(
        [_operations(changed, Operation.UPSERT), _operations(pa.table({ID: gone}), Operation.DELETE)],
        promote_options="default",
    )
    parts = list(_split(rows.combine_chunks(), settings))
    batches = []
    for number, part in enumerate(parts, 1):
        reached = offset if number == len(parts) else output.completion_offset
        marked = guard.append_column(COMPLETION_OFFSET, pa.array([reached], pa.int64()))
        whole = pa.concat_tables([part, _operations(marked, Operation.UPSERT)], promote_options="default")
        batches.append(_batch(whole))
    return batches


def _operations(table: pa.Table, operation: Operation) -> pa.Table:
    return table.append_column(OP, pa.array(np.full(table.num_rows, operation, dtype=np.uint8)))


def _split(rows: pa.Table, settings: FunctionSettings) -> Iterator[pa.Table]:
    """In parts that are within the bounds of a batch, or a row beyond."""
    sizes = np.full(rows.num_rows, _ROW_BYTES, dtype=np.int64)
    for column in rows.columns:
        if pa.types.is_string(column.type):
            sizes += pc.fill_null(pc.binary_length(column), 0).to_numpy()
    by_size = np.cumsum(sizes) // settings.batch_size_bytes
    by_rows = np.arange(len(sizes)) // settings.batch_records
    ends = np.flatnonzero((np.diff(by_size) > 0) | (np.diff(by_rows) > 0)) + 1
    for first, last in pairwise([0, *ends.tolist(), rows.num_rows]):
        yield rows.slice(first, last - first)


def _batch(rows: pa.Table) -> pa.RecordBatch:
    upserts = pc.equal(rows.column(OP), int(Operation.UPSERT)).to_numpy()
    vectors = embedding_array(np.zeros((rows.num_rows, _DIMENSION), dtype=np.float32), upserts)
    whole = rows.append_column(EMBEDDING, vectors)
    names = [OP, ID, EMBEDDING, DOCUMENT, *sorted(set(whole.column_names) - {OP, ID, EMBEDDING, DOCUMENT})]
    return whole.select(names).combine_chunks().to_batches()[0]
