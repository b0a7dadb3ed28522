"""Blocks straight from an object store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from shoal_core.ports import ObjectStore
from shoal_storage.blocks import BlockRef, verify
from shoal_storage.cache import ReadMeter


@dataclass(frozen=True, slots=True)
class DirectBlocks:
    """A `BlockReader` without a cache: every block is fetched and verified anew."""

    objects: ObjectStore

    async def get(self, ref: BlockRef, meter: ReadMeter | None = None) -> pa.Buffer:
        """The block. Raises `Corrupt`, `NotFound`, `Unavailable`."""
        data = await self.objects.get(ref.key)
        verify(data, ref)
        if meter is not None:
            meter.store_bytes += data.nbytes
        return pa.py_buffer(data)

    def mapped_bytes(self, refs: Iterable[BlockRef]) -> int:
        """None of them."""
        return 0

    def release(self, refs: Iterable[BlockRef]) -> None:
        """Nothing is kept."""

    def read_ahead(self, refs: Iterable[BlockRef]) -> None:
        """Nothing is mapped."""
