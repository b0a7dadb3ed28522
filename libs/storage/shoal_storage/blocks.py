"""Blocks: Arrow files of a few MiB, and opaque bytes, each with a checksum.

A block travels as bytes (`EncodedBlock`) and is named by a `BlockRef`, which a manifest holds.

The checksum is XXH3-128: it runs faster than memory can be copied, and guards against broken disks and networks, not against
someone who makes up content.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import pyarrow as pa
import xxhash

from shoal_core.errors import Corrupt

TARGET_BLOCK_BYTES = 4 << 20
CHECKSUM_BYTES = 16


@dataclass(frozen=True, slots=True)
class BlockRef:
    """The name of one block.

    Attributes:
        key: of its object.
        size_bytes: of the object.
        checksum: 32 hex digits; the content address.
        rows: of the table; 0 for opaque bytes, unless their maker counts something.
    """

    key: str
    size_bytes: int
    checksum: str
    rows: int = 0

    def to_json(self) -> dict[str, str | int]:
        """Plain values, to be undone by `from_json`."""
        return {"key": self.key, "size_bytes": self.size_bytes, "checksum": self.checksum, "rows": self.rows}

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> BlockRef:
        """The reference in ``value``; unknown members are ignored. Raises `Corrupt` naming the member at fault."""
        checksum = _text(value, "checksum")
        if len(checksum) != 2 * CHECKSUM_BYTES or not set(checksum) <= set("0123456789abcdef"):
            raise Corrupt(f"{checksum!r} is not {2 * CHECKSUM_BYTES} hex digits", field="checksum")
        return cls(_text(value, "key"), _count(value, "size_bytes"), checksum, _count(value, "rows"))


def _text(value: Mapping[str, object], name: str) -> str:
    found = value.get(name)
    if not isinstance(found, str) or not found:
        raise Corrupt(f"expected a non-empty string, found {found!r}", field=name)
    return found


def _count(value: Mapping[str, object], name: str) -> int:
    found = value.get(name)
    if not isinstance(found, int) or isinstance(found, bool) or found < 0:
        raise Corrupt(f"expected a count, found {found!r}", field=name)
    return found


@dataclass(frozen=True, slots=True)
class EncodedBlock:
    """The bytes of one block with their checksum (16 bytes)."""

    data: pa.Buffer
    checksum: bytes
    rows: int = 0

    @property
    def content_address(self) -> str:
        """The checksum in hex; a good last segment of the object's key."""
        return self.checksum.hex()

    def ref(self, key: str) -> BlockRef:
        """The name of this block once it is stored under ``key``."""
        return BlockRef(key, self.data.size, self.content_address, self.rows)


def checksum_of(data: pa.Buffer | bytes | memoryview) -> bytes:
    """XXH3-128 of ``data``: 16 bytes, big-endian as usual for xxHash."""
    return xxhash.xxh3_128_digest(memoryview(data))


def encode_block(table: pa.Table | pa.RecordBatch, *, compression: str | None = None) -> EncodedBlock:
    """``table`` as one Arrow file of one record batch.

    Args:
        table: any schema; its metadata is kept.
        compression: ``lz4`` or ``zstd``; None keeps the block readable without copying.
    """
    whole = table.combine_chunks() if isinstance(table, pa.Table) else pa.Table.from_batches([table])
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression, unify_dictionaries=True)
    with pa.ipc.new_file(sink, whole.schema, options=options) as writer:
        writer.write_table(whole)
    data = sink.getvalue()
    return EncodedBlock(data, checksum_of(data), whole.num_rows)


def decode_block(data: pa.Buffer | bytes | memoryview) -> pa.Table:
    """The table of an `encode_block`; its columns are views of ``data`` unless it is compressed.

    Check the bytes with `verify` first. Raises `Corrupt` if they are no Arrow file.
    """
    try:
        with pa.ipc.open_file(pa.BufferReader(data)) as reader:
            return reader.read_all()
    except (pa.ArrowException, OSError) as error:
        raise Corrupt(f"not an Arrow file: {error}") from error


def encode_blob(data: pa.Buffer | bytes | memoryview, *, rows: int = 0) -> EncodedBlock:
    """Opaque bytes as a block, not copied; ``rows`` is the maker's own count."""
    buffer = data if isinstance(data, pa.Buffer) else pa.py_buffer(data)
    return EncodedBlock(buffer, checksum_of(buffer), rows)


def verify(data: pa.Buffer | bytes | memoryview, ref: BlockRef) -> None:
    """Raise `Corrupt` unless ``data`` has the size and the checksum of ``ref``."""
    size_bytes = memoryview(data).nbytes
    if size_bytes != ref.size_bytes:
        raise Corrupt(f"block {ref.key!r}: expected {ref.size_bytes} bytes, found {size_bytes}")
    found = checksum_of(data).hex()
    if found != ref.checksum:
        raise Corrupt(f"block {ref.key!r}: expected checksum {ref.checksum}, found {found}")


def pack_table_into_blocks(table: pa.Table, target_size_bytes: int = TARGET_BLOCK_BYTES) -> list[pa.Table]:
    """``table`` cut by rows into slices near the target size, without copying; none for an empty table.

    Rows of even size give slices of even size; where some are much larger, slices above one and a half times the target
    are cut again. A row larger than the target has a slice of its own.
    """
    if table.num_rows == 0:
        return []
    parts = min(table.num_rows, round(table.nbytes / target_size_bytes))
    if parts < 2:
        return [table]
    bounds = [table.num_rows * part // parts for part in range(parts + 1)]
    slices = (table.slice(start, end - start) for start, end in pairwise(bounds))
    return [block for cut in slices for block in pack_table_into_blocks(cut, target_size_bytes)]
