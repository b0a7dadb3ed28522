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
from shoal_core.materialize import Folded, Operations, fold, join_operations
from shoal_core.records import ID, decode_batch
from shoal_index.build import BuiltSegment, build_segment, encode_tombstones, sort_rows
from shoal_index.segment import BlockReader
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
    """

    records: int = 200_000
    size_bytes: int = 512 << 20
    threads: int = 2
    graph_rows: int = 10_000


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
    segment: BuiltSegment | None
    replaced: pa.Array


async def flush(
    collection: Collection,
    lease: Lease,
    *,
    log: Log,
    publisher: Publisher,
    blocks: BlockReader,
    settings: FlushSettings,
) -> FlushResult | None:
    """Compact a collection's tail; None when there is none.

    Raises what `Publisher.publish` raises, and `Corrupt` when log or segments cannot be read.
    """
    manifest = await publisher.current(collection)
    entries, dimension = await _read_tail(collection, manifest, log, settings)
    if not entries:
        return None
    await publisher.step("read")
    end = entries[-1].end_offset
    operations = await asyncio.to_thread(_operations, entries, dimension)
    upload_id = await publisher.catalog.begin_upload(collection.id)
    prefix = job_prefix(collection.id, upload_id)
    parts, quarantined = [], [np.empty(0, np.uint64)]
    shards = await asyncio.to_thread(_split, operations, collection.shards)
    for shard, run in enumerate(shards):
        if run is None:
            continue
        version = await open_shard(manifest, shard, blocks, {}, with_graphs=False)
        part, folded = await asyncio.to_thread(
            _flush_shard, shard, run, version, dimension, collection, prefix, settings
        )
        parts.append(part)
        quarantined.append(folded.quarantined)
        await publisher.step("folded")
        await publisher.upload(part.segment.objects if part.segment else ())
    await publisher.step("uploaded")
    edit = _FlushEdit(tuple(parts), end, dimension, blocks)
    info = await publisher.publish(collection, lease, upload_id, prefix, edit)
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


def _split(operations: Operations, shards: int) -> list[Operations | None]:
    """The run of each shard, None where it is empty."""
    if shards == 1:
        return [operations]
    owner = shard_of(hash_ids(operations.table.column(ID)), shards)
    runs: list[Operations | None] = []
    for shard in range(shards):
        mine = np.flatnonzero(owner == shard)
        table = operations.table.take(pa.array(mine)).combine_chunks()
        runs.append(Operations(table, operations.offsets[mine], operations.misfit[mine]) if len(mine) else None)
    return runs


def _flush_shard(
    shard: int,
    run: Operations,
    version: ShardVersion,
    dimension: int | None,
    collection: Collection,
    prefix: str,
    settings: FlushSettings,
) -> tuple[_ShardFlush, Folded]:
    located: list[Located] = []

    def find(ids: pa.Array) -> tuple[pa.Table, npt.NDArray[np.int64]]:
        located.append(version.locate(ids))
        return version.take(located[0])

    folded = fold(run, find, dimension)
    replaced = folded.ids.take(pa.array(np.flatnonzero(folded.changed & (located[0].row >= 0))))
    if folded.rows.num_rows == 0:
        return _ShardFlush(shard, None, replaced), folded
    segment = build_segment(
        sort_rows(folded.rows),
        collection.space,
        segment_id=f"s{shard:03d}",
        tier=0,
        prefix=prefix,
        threads=settings.threads,
        graph_rows=settings.graph_rows,
    )
    named = replace(segment, ref=replace(segment.ref, id=f"{prefix.rsplit('/', 1)[-1]}-{shard}"))
    return _ShardFlush(shard, named, replaced), folded


@dataclass(frozen=True, slots=True)
class _FlushEdit:
    """Adds the new segments and marks the rows they replace, wherever a merge may have moved them meanwhile."""

    parts: tuple[_ShardFlush, ...]
    end_offset: int
    dimension: int | None
    blocks: BlockReader

    async def __call__(self, manifest: Manifest, prefix: str) -> Edited:
        shards = [replace(shard, compacted_offset=self.end_offset) for shard in manifest.shards]
        objects: list[tuple[BlockRef, EncodedBlock]] = []
        for part in self.parts:
            segments = list(manifest.shards[part.shard].segments)
            if len(part.replaced):
                version = await open_shard(manifest, part.shard, self.blocks, {}, with_graphs=False)
                segments, tombstones = await asyncio.to_thread(_bury, version, part.replaced, prefix)
                objects.extend(tombstones)
            if part.segment is not None:
                segments.append(part.segment.ref)
            shards[part.shard] = replace(shards[part.shard], segments=tuple(segments))
        return Edited(manifest.replace_shards(tuple(shards), dimension=self.dimension), tuple(objects))


def _bury(
    version: ShardVersion, ids: pa.Array, prefix: str
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
        segments.append(replace(view.ref, dead=int(np.count_nonzero(dead)), tombstones=ref))
        objects.append((ref, block))
    return segments, objects
