"""The value counts of a version: those of its segments' live rows, most of which are known from the run before."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.records import concat_rows
from shoal_index.build import decode_tombstones
from shoal_index.segment import BlockReader
from shoal_index.value_counts import ValueCounts, count_values, counted_columns, sum_counts
from shoal_storage.blocks import decode_block
from shoal_storage.manifest import Manifest, SegmentRef

Rows: TypeAlias = npt.NDArray[np.int64]

_NO_ROWS: Rows = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """The counts of a segment's rows but for the dead ones. ``dead``: (m,) int64, ascending."""

    dead: Rows
    counts: ValueCounts

    @property
    def size_bytes(self) -> int:
        return self.dead.nbytes + self.counts.size_bytes


@dataclass(slots=True)
class SegmentCounts:
    """Counts of segments, least recently used first out.

    A segment never changes but for which of its rows are dead: of one that is known, the rows that died since are taken away, and
    those that live in a fork, or in its source, are added. Only the blocks that hold these are read.
    """

    blocks: BlockReader
    capacity_bytes: int
    _known: OrderedDict[str, _Known] = field(default_factory=OrderedDict)
    _size_bytes: int = 0

    async def of(self, manifest: Manifest) -> ValueCounts:
        """The counts of all live rows of a version. Raises `Corrupt`, `NotFound`, `Unavailable`."""
        parts = [await self._segment(ref) for shard in manifest.shards for ref in shard.segments]
        return await asyncio.to_thread(sum_counts, [(part, 1) for part in parts])

    async def _segment(self, ref: SegmentRef) -> ValueCounts:
        known = self._known.get(ref.id) or _Known(_NO_ROWS, await self._count(ref, None))
        tombstones = None if ref.tombstones is None else await self.blocks.get(ref.tombstones)
        dead, died, live = await asyncio.to_thread(_compared, tombstones, known.dead)
        parts = [(known.counts, 1)]
        parts += [(await self._count(ref, rows), sign) for rows, sign in ((died, -1), (live, 1)) if len(rows)]
        counts = known.counts if len(parts) == 1 else await asyncio.to_thread(sum_counts, parts)
        self._remember(ref.id, _Known(dead, counts))
        return counts

    async def _count(self, ref: SegmentRef, rows: Rows | None) -> ValueCounts:
        """Of these rows, ascending; None for all."""
        refs = ref.blocks["rows"]
        starts = np.cumsum([0, *(block.rows for block in refs)])
        per_block = None if rows is None else np.split(rows, np.searchsorted(rows, starts[1:-1]))
        touched = [n for n in range(len(refs)) if per_block is None or len(per_block[n])]
        data = await asyncio.gather(*(self.blocks.get(refs[n]) for n in touched))
        within = [None if per_block is None else per_block[n] - starts[n] for n in touched]
        return await asyncio.to_thread(_counted, data, within)

    def _remember(self, segment_id: str, known: _Known) -> None:
        before = self._known.pop(segment_id, None)
        self._known[segment_id] = known
        self._size_bytes += known.size_bytes - (before.size_bytes if before else 0)
        while self._size_bytes > self.capacity_bytes:
            _, forgotten = self._known.popitem(last=False)
            self._size_bytes -= forgotten.size_bytes


def _compared(tombstones: pa.Buffer | None, known: Rows) -> tuple[Rows, Rows, Rows]:
    """The dead rows, those of them that were not known to be dead, and those that were known to be and are not."""
    dead = _NO_ROWS if tombstones is None else decode_tombstones(tombstones)
    return dead, np.setdiff1d(dead, known, assume_unique=True), np.setdiff1d(known, dead, assume_unique=True)


def _counted(data: list[pa.Buffer], rows: list[Rows | None]) -> ValueCounts:
    tables = []
    for part, within in zip(data, rows, strict=True):
        table = decode_block(part)
        names = counted_columns(table.column_names)
        if not names:
            return ValueCounts({})  # the blocks of a segment have the same columns
        table = table.select(names)
        tables.append(table if within is None else table.take(pa.array(within)))
    return count_values(concat_rows(tables))
