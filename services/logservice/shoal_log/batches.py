"""Checks that a payload is an operation batch, and what the log needs to know of it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from shoal_core.errors import InvalidArgument
from shoal_core.hashing import hash_ids
from shoal_core.limits import Limits
from shoal_core.records import (
    DELETED_KEYS,
    DOCUMENT,
    EMBEDDING,
    ID,
    OP,
    MetadataField,
    Operation,
)

_FIXED_TYPES = {OP: pa.uint8(), ID: pa.string(), DOCUMENT: pa.string(), DELETED_KEYS: pa.list_(pa.string())}


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A checked payload.

    Attributes:
        dimension: of its embeddings, None where it has none.
        checksum: xxh3-128 of the payload, 16 bytes; also what tells two uses of an idempotency key apart.
        row_hashes: (rows,) uint64 id hashes in row order.
        sorted_hashes: the same, ascending.
    """

    payload: pa.Buffer
    dimension: int | None
    checksum: bytes
    row_hashes: npt.NDArray[np.uint64]
    sorted_hashes: npt.NDArray[np.uint64]

    @property
    def rows(self) -> int:
        """How many records."""
        return len(self.row_hashes)

    @property
    def size_bytes(self) -> int:
        """Of the payload."""
        return int(self.payload.size)


def checksum_of(payload: pa.Buffer | bytes | memoryview) -> bytes:
    """xxh3-128, 16 bytes."""
    return xxhash.xxh3_128_digest(memoryview(payload))


def hashes_to_bytes(hashes: npt.NDArray[np.uint64]) -> bytes:
    """Little-endian uint64, as ``log_entry.id_hashes`` holds them."""
    return hashes.astype("<u8", copy=False).tobytes()


def hashes_from_bytes(data: bytes) -> npt.NDArray[np.uint64]:
    """The inverse of `hashes_to_bytes`, without copying."""
    stored = np.frombuffer(data, dtype="<u8")
    return stored if sys.byteorder == "little" else stored.astype(np.uint64)


def check_batch(payload: pa.Buffer, limits: Limits) -> Batch:
    """Decode and check everything that readers rely on. Raises `InvalidArgument`."""
    batch = _decode(payload)
    if not 1 <= batch.num_rows <= limits.batch_records:
        raise _invalid(f"has {batch.num_rows} records, not 1 to {limits.batch_records}; split the batch")
    _check_schema(batch.schema, limits)
    _check_operations(batch.column(OP))
    _check_ids(batch.column(ID), limits)
    row_hashes = hash_ids(batch.column(ID))
    index = batch.schema.get_field_index(EMBEDDING)
    return Batch(
        payload=payload,
        dimension=None if index < 0 else int(batch.schema.field(index).type.list_size),
        checksum=checksum_of(payload),
        row_hashes=row_hashes,
        sorted_hashes=np.sort(row_hashes),
    )


def _decode(payload: pa.Buffer) -> pa.RecordBatch:
    try:
        with pa.ipc.open_stream(payload) as reader:
            batches = list(reader)
        if len(batches) != 1:
            raise _invalid(f"holds {len(batches)} record batches, not one")
        batches[0].validate(full=True)  # lengths and offsets inside foreign bytes are not to be trusted
    except (pa.ArrowException, OSError, ValueError, NotImplementedError) as error:
        raise _invalid(f"is not an Arrow IPC stream of one record batch: {error}") from error
    return batches[0]


def _check_schema(schema: pa.Schema, limits: Limits) -> None:
    names = schema.names
    if len(set(names)) != len(names):
        raise _invalid("names a column twice")
    missing = [name for name in (OP, ID) if name not in names]
    if missing:
        raise _invalid(f"lacks the column {missing[0]}")
    for field in schema:
        if field.name == EMBEDDING:
            _check_embedding_type(field.type, limits)
        elif not _fits(field):
            raise _invalid(f"column {field.name!r} of type {field.type} does not belong to an operation batch")


def _fits(field: pa.Field) -> bool:
    fixed = _FIXED_TYPES.get(field.name)
    if fixed is not None:
        return bool(field.type.equals(fixed))
    try:
        metadata = MetadataField.of_column(field.name)
    except ValueError:
        return False
    return metadata is not None and bool(field.type.equals(metadata.arrow_type))


def _check_embedding_type(kind: pa.DataType, limits: Limits) -> None:
    if not pa.types.is_fixed_size_list(kind) or not pa.types.is_float32(kind.value_type):
        raise _invalid(f"column {EMBEDDING!r} is {kind}, not fixed_size_list<float32>")
    if not 1 <= kind.list_size <= limits.dimension:
        raise _invalid(f"embeddings have dimension {kind.list_size}, not 1 to {limits.dimension}")


def _check_operations(operations: pa.Array) -> None:
    if operations.null_count:
        raise _invalid("has rows without an operation")
    highest = int(operations.to_numpy().max())
    if highest > max(Operation):
        raise _invalid(f"operation {highest} is unknown")


def _check_ids(ids: pa.Array, limits: Limits) -> None:
    if ids.null_count:
        raise _invalid("has rows without an id")
    sizes = pc.binary_length(ids).to_numpy()
    if sizes.min() < 1 or sizes.max() > limits.id_size_bytes:
        raise _invalid(f"ids must have 1 to {limits.id_size_bytes} bytes, not {sizes.min()} to {sizes.max()}")


def _invalid(message: str) -> InvalidArgument:
    return InvalidArgument(message, field="payload")
