"""Merge: several segments of a shard become one. It keeps a map from old to new rows, so that rows which flushes declare dead
meanwhile are dead in the output too; it gives up only if one of its inputs is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_compactor.flush import FlushSettings
from shoal_compactor.policy import MergePolicy
from shoal_compactor.publish import Edited, Publisher, job_prefix
from shoal_core.contracts import Collection, Lease, VersionInfo
from shoal_core.errors import Conflict
from shoal_core.records import EMBEDDING, concat_rows
from shoal_index.build import BuiltSegment, build_segment, decode_tombstones, encode_tombstones, sort_rows
from shoal_index.segment import TO_MERGE, BlockReader
from shoal_index.vector.engine import Rows
from shoal_index.version import SegmentView, open_shard
from shoal_storage.blocks import BlockRef, EncodedBlock
from shoal_storage.manifest import Manifest, SegmentRef, ShardManifest

_OLD_POSITION = "#old_position"


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What a merge did."""

    version: VersionInfo
    inputs: int
    rows: int


@dataclass(frozen=True, slots=True)
class _Merged:
    """The output (None when every row was dead) and, per input id, the (rows,) int64 map to output rows, -1 for dead ones."""

    segment: BuiltSegment | None
    new_row: dict[str, npt.NDArray[np.int64]]

    def placed(self, prefix: str, segment_id: str) -> _Merged:
        """The same with the output's name and the place of its objects."""
        return replace(self, segment=self.segment.placed(prefix, segment_id) if self.segment else None)


async def merge_once(
    collection: Collection,
    lease: Lease,
    *,
    policy: MergePolicy,
    publisher: Publisher,
    blocks: BlockReader,
    settings: FlushSettings,
    now_ms: int,
    erase_before_ms: int | None = None,
) -> MergeResult | None:
    """Do the most useful merge of a collection; None when none is due.

    Args:
        now_ms: Unix time, from when on rows are dead that die during the merge.
        erase_before_ms: see `MergePolicy.choose`.

    Raises what `Publisher.publish` raises.
    """
    manifest = await publisher.current(collection)
    for shard in manifest.shards:
        inputs = policy.choose(shard, erase_before_ms)
        if not inputs:
            continue
        opened = await open_shard(_only(manifest, shard, inputs), shard.shard, blocks, {}, kinds=TO_MERGE)
        await publisher.step("merge-read")
        merged = await asyncio.to_thread(_merge, opened.segments, collection, settings)
        await publisher.step("merge-built")
        # An upload expires, and a graph may take longer to build than that.
        upload_id = await publisher.catalog.begin_upload(collection.id)
        prefix = job_prefix(collection.id, upload_id)
        merged = merged.placed(prefix, f"{upload_id}-m")
        await publisher.upload(merged.segment.objects if merged.segment else ())
        await publisher.step("merge-uploaded")
        edit = _MergeEdit(shard.shard, merged, blocks, now_ms)
        info = await publisher.publish(collection, lease, upload_id, prefix, edit)
        return MergeResult(info, len(inputs), merged.segment.ref.rows if merged.segment else 0)
    return None


def _only(manifest: Manifest, shard: ShardManifest, inputs: Sequence[SegmentRef]) -> Manifest:
    """The manifest with these segments, in its own order, as all that the shard has."""
    names = {segment.id for segment in inputs}
    less = replace(shard, segments=tuple(segment for segment in shard.segments if segment.id in names))
    return replace(manifest, shards=tuple(less if part is shard else part for part in manifest.shards))


def _merge(views: Sequence[SegmentView], collection: Collection, settings: FlushSettings) -> _Merged:
    lives = [np.arange(view.ref.rows) if view.dead is None else np.flatnonzero(~view.dead) for view in views]
    table = _join(views, lives)
    new_of_old = np.empty(table.num_rows, dtype=np.int64)
    new_of_old[table.column(_OLD_POSITION).to_numpy()] = np.arange(table.num_rows)
    maps = {}
    start = 0
    for view, live in zip(views, lives, strict=True):
        new_row = np.full(view.ref.rows, -1, dtype=np.int64)
        new_row[live] = new_of_old[start : start + len(live)]
        maps[view.ref.id] = new_row
        start += len(live)
    if start == 0:
        return _Merged(None, maps)
    tier = 1 + max(view.ref.tier for view in views) if len(views) > 1 else views[0].ref.tier
    segment = build_segment(
        table.drop_columns([_OLD_POSITION]),
        collection.space,
        segment_id="merged",
        tier=tier,
        prefix="",
        threads=settings.threads,
        graph_rows=settings.graph_rows,
        coded_graphs=settings.coded_graphs,
        schema=collection.schema,
        inputs=[(view.segment, maps[view.ref.id]) for view in views],
    )
    return _Merged(segment, maps)


def _join(views: Sequence[SegmentView], lives: Sequence[Rows]) -> pa.Table:
    """The live rows of all segments as one sorted row table, with their position before sorting."""
    parts = []
    start = 0
    for view, live in zip(views, lives, strict=True):
        rows = view.segment.take(live, [*view.segment.schema.names, EMBEDDING])
        parts.append(rows.append_column(_OLD_POSITION, pa.array(np.arange(start, start + len(live)))))
        start += len(live)
    return sort_rows(concat_rows(parts))


@dataclass(frozen=True, slots=True)
class _MergeEdit:
    """Puts the output in place of the inputs, with the rows that died meanwhile dead in it."""

    shard: int
    merged: _Merged
    blocks: BlockReader
    now_ms: int

    async def __call__(self, manifest: Manifest, prefix: str) -> Edited:
        shard = manifest.shards[self.shard]
        present = {segment.id: segment for segment in shard.segments}
        if not self.merged.new_row.keys() <= present.keys():
            raise Conflict(f"an input of a merge in shard {self.shard} of {manifest.collection_id} is gone")
        died = await self._died_meanwhile(present)
        kept = [segment for segment in shard.segments if segment.id not in self.merged.new_row]
        objects: list[tuple[BlockRef, EncodedBlock]] = []
        if self.merged.segment is not None:
            output = self.merged.segment.ref
            if len(died):
                ref, block = encode_tombstones(died, f"{prefix}/dead-of-{output.id}")
                output = replace(output, dead=len(died), tombstones=ref, dead_since_ms=self.now_ms)
                objects.append((ref, block))
            if output.live:
                kept.insert(0, output)
        shards = list(manifest.shards)
        shards[self.shard] = replace(shard, segments=tuple(kept))
        return Edited(manifest.replace_shards(tuple(shards), dimension=manifest.dimension), tuple(objects))

    async def _died_meanwhile(self, present: dict[str, SegmentRef]) -> npt.NDArray[np.int64]:
        """Output rows whose input row is dead by now though it was alive when it was read."""
        died = [np.empty(0, np.int64)]
        for name, new_row in self.merged.new_row.items():
            tombstones = present[name].tombstones
            if tombstones is None:
                continue
            now = new_row[decode_tombstones(await self.blocks.get(tombstones))]
            died.append(now[now >= 0])
        return np.concatenate(died)
