"""Flush: the tail up to some batch end becomes one new segment per shard and tombstones over the older ones."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_compactor.publish import Edited, Publisher, job_prefix
from shoal_core.contracts import Collection, Lease, Log, TailEntry, TailRequest, VersionInfo
from shoal_core.hashing import hash_ids, shard_of
from shoal_core.materialize import Operations, fold, join_operations
from shoal_core.records import ID, decode_batch
from shoal_index.build import build_segment, encode_tombstones, sort_rows
from shoal_index.segment import TO_FLUSH, BlockReader
from shoal_index.version import Located, ShardVersion, open_shard
from shoal_storage.blocks import BlockRef, EncodedBlock
from shoal_storage.manifest import Manifest, SegmentRef


@dataclass(frozen=True, slots=True)
class FlushSettings:
    """Bounds of one flush; they bound its memory.

    Attributes:
        records, size_bytes: the tail taken in one flush; the first batch is taken whatever its size.
        threads: for building graphs.
        graph_rows: segments with more rows get a graph.
        coded_graphs: whether links of graphs are coded, which makes searches faster and segments larger.
    """

    records: int = 200_000
    size_bytes: int = 512 << 20
    threads: int = 2
    graph_rows: int = 10_000
    coded_graphs: bool = False


@dataclass(frozen=True, slots=True)
class FlushResult:
    """What a flush did. ``quarantined``: offsets of the operations that could not be applied, ascending."""

    version: VersionInfo
    operations: int
    quarantined: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _ShardFlush:
    """One shard's part: its new segment, if any, and the ids whose older rows are dead."""

    shard: int
    segment: SegmentRef | None
    replaced: pa.Array


@dataclass(frozen=True, slots=True)
class _Built:
    """A shard's part before its upload."""

    part: _ShardFlush
    objects: tuple[tuple[BlockRef, EncodedBlock], ...]
    quarantined: npt.NDArray[np.uint64]


async def flush(
    collection: Collection,
    lease: Lease,
    *,
    log: Log,
    publisher: Publisher,
    blocks: BlockReader,
    settings: FlushSettings,
    now_ms: int,
) -> FlushResult | None:
    """Compact a collection's tail; None when there is none. ``now_ms``: Unix time, from when on rows are dead that it replaces.

    Raises what `Publisher.publish` raises, and `Corrupt` when log or segments cannot be read.
    """
    manifest = await publisher.current(collection)
    entries, dimension = await _read_tail(collection, manifest, log, settings)
    if not entries:
        return None
    await publisher.step("read")
    end = entries[-1].end_offset
    operations = await asyncio.to_thread(_operations, entries, dimension)
    del entries  # a copy of all of it
    upload_id = await publisher.catalog.begin_upload(collection.id)
    parts, quarantined = [], [np.empty(0, np.uint64)]
    owner = await asyncio.to_thread(_owner, operations, collection.shards)
    for shard in np.unique(owner).tolist():
        version = await open_shard(manifest, shard, blocks, {}, kinds=TO_FLUSH)
        built = await asyncio.to_thread(
            _flush_shard, shard, operations, owner, version, dimension, collection, upload_id, settings
        )
        await publisher.step("folded")
        await publisher.upload(built.objects)
        parts.append(built.part)
        quarantined.append(built.quarantined)
    await publisher.step("uploaded")
    edit = _FlushEdit(tuple(parts), end, dimension, blocks, now_ms)
    info = await publisher.publish(collection, lease, upload_id, job_prefix(collection.id, upload_id), edit)
    return FlushResult(info, operations.table.num_rows, tuple(np.sort(np.concatenate(quarantined)).tolist()))


async def _read_tail(
    collection: Collection, manifest: Manifest, log: Log, settings: FlushSettings
) -> tuple[list[TailEntry], int | None]:
    """Entries after the compacted offset up to the bounds, and the collection's dimension."""
    entries: list[TailEntry] = []
    start = after = manifest.compacted_offset
    left = settings.size_bytes
    while True:
        request = TailRequest(collection.id, epoch=0, after_offset=after, max_size_bytes=max(left, 1))
        tail = await log.read_tail(request)
        for entry in tail.entries:
            if entries and (left <= 0 or entry.end_offset - start > settings.records):
                return entries, tail.head.dimension
            entries.append(entry)
            left -= entry.payload.size
        after = tail.through_offset
        if after >= tail.head.head_offset or not tail.entries or left <= 0:
            return entries, tail.head.dimension


def _operations(entries: list[TailEntry], dimension: int | None) -> Operations:
    batches = []
    for entry in entries:
        batch = decode_batch(entry.payload)
        offsets = np.arange(entry.first_offset, entry.end_offset + 1, dtype=np.uint64)
        batches.append((batch, offsets if entry.offsets is None else entry.offsets))
    return join_operations(batches, dimension)


def _owner(operations: Operations, shards: int) -> npt.NDArray[np.int64]:
    """(n,) int64: the shard of each operation."""
    if shards == 1:
        return np.zeros(len(operations.offsets), dtype=np.int64)
    return shard_of(hash_ids(operations.table.column(ID)), shards)


def _run_of(operations: Operations, mine: npt.NDArray[np.bool_]) -> Operations:
    """The operations of one shard."""
    if mine.all():
        return operations
    table = operations.table.take(pa.array(np.flatnonzero(mine))).combine_chunks()
    return Operations(table, operations.offsets[mine], operations.misfit[mine])


def _flush_shard(
    shard: int,
    operations: Operations,
    owner: npt.NDArray[np.int64],
    version: ShardVersion,
    dimension: int | None,
    collection: Collection,
    upload_id: str,
    settings: FlushSettings,
) -> _Built:
    located: list[Located] = []

    def find(ids: pa.Array) -> tuple[pa.Table, npt.NDArray[np.int64]]:
        located.append(version.locate(ids))
        return version.take(located[0])

    folded = fold(_run_of(operations, owner == shard), find, dimension)
    replaced = folded.ids.take(pa.array(np.flatnonzero(folded.changed & (located[0].row >= 0))))
    if folded.rows.num_rows == 0:
        return _Built(_ShardFlush(shard, None, replaced), (), folded.quarantined)
    segment = build_segment(
        sort_rows(folded.rows),
        collection.space,
        segment_id=f"s{shard:03d}",
        tier=0,
        prefix="",
        threads=settings.threads,
        graph_rows=settings.graph_rows,
        coded_graphs=settings.coded_graphs,
        schema=collection.schema,
    )
    placed = segment.placed(job_prefix(collection.id, upload_id), f"{upload_id}-{shard}")
    return _Built(_ShardFlush(shard, placed.ref, replaced), placed.objects, folded.quarantined)


@dataclass(frozen=True, slots=True)
class _FlushEdit:
    """Adds the new segments and marks the rows they replace, wherever a merge may have moved them meanwhile."""

    parts: tuple[_ShardFlush, ...]
    end_offset: int
    dimension: int | None
    blocks: BlockReader
    now_ms: int

    async def __call__(self, manifest: Manifest, prefix: str) -> Edited:
        shards = [replace(shard, compacted_offset=self.end_offset) for shard in manifest.shards]
        objects: list[tuple[BlockRef, EncodedBlock]] = []
        for part in self.parts:
            segments = list(manifest.shards[part.shard].segments)
            if len(part.replaced):
                version = await open_shard(manifest, part.shard, self.blocks, {}, kinds=TO_FLUSH)
                segments, tombstones = await asyncio.to_thread(_bury, version, part.replaced, prefix, self.now_ms)
                objects.extend(tombstones)
            if part.segment is not None:
                segments.append(part.segment)
            shards[part.shard] = replace(shards[part.shard], segments=tuple(segments))
        return Edited(manifest.replace_shards(tuple(shards), dimension=self.dimension), tuple(objects))


def _bury(
    version: ShardVersion, ids: pa.Array, prefix: str, now_ms: int
) -> tuple[list[SegmentRef], list[tuple[BlockRef, EncodedBlock]]]:
    """The version's segments with the rows of ``ids`` dead too, without those that are all dead, and the new tombstone blocks."""
    located = version.locate(ids)
    segments, objects = [], []
    for number, view in enumerate(version.segments):
        rows = located.row[located.segment == number]
        if len(rows) == 0:
            segments.append(view.ref)
            continue
        dead = np.zeros(view.ref.rows, dtype=bool) if view.dead is None else view.dead.copy()
        dead[rows] = True
        if dead.all():
            continue
        ref, block = encode_tombstones(np.flatnonzero(dead), f"{prefix}/dead-{number:04d}-of-{view.ref.id}")
        # Of rows that died before such times were kept, none is known.
        since_ms = view.ref.dead_since_ms if view.ref.dead else now_ms
        segments.append(replace(view.ref, dead=int(np.count_nonzero(dead)), tombstones=ref, dead_since_ms=since_ms))
        objects.append((ref, block))
    return segments, objects
