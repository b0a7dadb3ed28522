"""One shard at one version, opened: its segments with the rows that the version calls dead. Immutable."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.hashing import hash_ids
from shoal_core.records import EMBEDDING, concat_rows, empty_rows
from shoal_index.build import decode_tombstones
from shoal_index.segment import TO_READ, BlockReader, Segment, open_segment
from shoal_index.vector.engine import Mask, Rows
from shoal_storage.manifest import Manifest, SegmentRef


@dataclass(frozen=True, slots=True)
class SegmentView:
    """A segment as a version sees it. ``dead`` is (rows,) bool, or None when no row is dead."""

    ref: SegmentRef
    segment: Segment
    dead: Mask | None


@dataclass(frozen=True, slots=True)
class Located:
    """Where ids are: (m,) int64 position of the segment in the version, or -1, and row in it."""

    segment: npt.NDArray[np.int64]
    row: Rows


@dataclass(frozen=True, slots=True)
class ShardVersion:
    """The live rows of a shard at one version."""

    version: int
    space: str
    compacted_offset: int
    dimension: int | None
    segments: tuple[SegmentView, ...]

    def locate(self, ids: pa.Array) -> Located:
        """The live row of each id. At most one segment has it."""
        hashes = hash_ids(ids)
        where = np.full(len(ids), -1, dtype=np.int64)
        rows = np.full(len(ids), -1, dtype=np.int64)
        open_ = np.arange(len(ids))
        for number, view in enumerate(self.segments):
            if len(open_) == 0:
                break
            found = view.segment.locate(ids.take(pa.array(open_)), hashes[open_])
            live = found >= 0
            if view.dead is not None:
                live &= ~view.dead[np.maximum(found, 0)]
            where[open_[live]] = number
            rows[open_[live]] = found[live]
            open_ = open_[~live]
        return Located(where, rows)

    def take(self, located: Located) -> tuple[pa.Table, npt.NDArray[np.int64]]:
        """All columns of the rows found, and per id its row number in that table or -1: what `materialize.fold` asks for."""
        number_of = np.full(len(located.row), -1, dtype=np.int64)
        tables = []
        taken = 0
        for number in np.unique(located.segment[located.segment >= 0]):
            at = np.flatnonzero(located.segment == number)
            segment = self.segments[number].segment
            tables.append(segment.take(located.row[at], [*segment.schema.names, EMBEDDING]))
            number_of[at] = np.arange(taken, taken + len(at))
            taken += len(at)
        return (concat_rows(tables) if tables else empty_rows(self.dimension)), number_of

    def find(self, ids: pa.Array) -> tuple[pa.Table, npt.NDArray[np.int64]]:
        """`locate` and `take` in one."""
        return self.take(self.locate(ids))


async def open_shard(
    manifest: Manifest,
    shard: int,
    blocks: BlockReader,
    opened: Mapping[str, Segment],
    *,
    kinds: Collection[str] = TO_READ,
) -> ShardVersion:
    """Open one shard of a version, with these kinds of block.

    Segments found in ``opened``, by id, are used again: only tombstones change between versions.
    """
    part = manifest.shards[shard]
    views = await asyncio.gather(*(_view(ref, manifest.space, blocks, opened, kinds) for ref in part.segments))
    return ShardVersion(manifest.version, manifest.space, part.compacted_offset, manifest.dimension, tuple(views))


async def _view(
    ref: SegmentRef, space: str, blocks: BlockReader, opened: Mapping[str, Segment], kinds: Collection[str]
) -> SegmentView:
    segment = opened.get(ref.id) or await open_segment(ref, space, blocks, kinds=kinds)
    if ref.tombstones is None:
        return SegmentView(ref, segment, None)
    dead = np.zeros(ref.rows, dtype=bool)
    dead[decode_tombstones(await blocks.get(ref.tombstones))] = True
    return SegmentView(ref, segment, dead)
