"""Records as columns: the one Arrow layout from the SDK to the block.

An *operation batch* is what the log stores:

    op            uint8                             see `Operation`
    id            string                            non-empty
    embedding     fixed_size_list<float32, dim>     null: unchanged; column absent when no row has one
    document      string                            null: unchanged; column absent when no row has one
    m:<kind>:<key>                                  one column per (key, kind); null: unchanged
    deleted_keys  list<string>                      metadata keys to delete; column absent when no row has any

A *row table* is what segments, the tail overlay and answers hold: the same without ``op`` and ``deleted_keys`` (a null is "has
none"), with ``created_offset`` and ``updated_offset`` (uint64). A uri is the metadata key ``#uri``; keys of users never start with #.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.errors import Corrupt, NewerFormat

FORMAT_KEY = b"shoal.format"  # in the metadata of a payload's schema
PAYLOAD_FORMAT = 1

OP = "op"
ID = "id"
EMBEDDING = "embedding"
DOCUMENT = "document"
DELETED_KEYS = "deleted_keys"
CREATED_OFFSET = "created_offset"
UPDATED_OFFSET = "updated_offset"
URI_KEY = "#uri"
_METADATA_PREFIX = "m:"


class Operation(IntEnum):
    """What one row of an operation batch does. The numbers are stored; do not change them."""

    ADD = 0
    UPDATE = 1
    UPSERT = 2
    DELETE = 3


class Kind(StrEnum):
    """Type of a metadata value. A key may have several kinds in a collection, a record's key has one at a time."""

    INT = "int"
    FLOAT = "float"
    BOOL = "bool"
    STRING = "str"
    INTS = "ints"
    FLOATS = "floats"
    BOOLS = "bools"
    STRINGS = "strs"
    SPARSE = "sparse"


SPARSE_TYPE = pa.struct([("indices", pa.list_(pa.uint32())), ("values", pa.list_(pa.float32()))])

ARROW_TYPES: dict[Kind, pa.DataType] = {
    Kind.INT: pa.int64(),
    Kind.FLOAT: pa.float64(),
    Kind.BOOL: pa.bool_(),
    Kind.STRING: pa.string(),
    Kind.INTS: pa.list_(pa.int64()),
    Kind.FLOATS: pa.list_(pa.float64()),
    Kind.BOOLS: pa.list_(pa.bool_()),
    Kind.STRINGS: pa.list_(pa.string()),
    Kind.SPARSE: SPARSE_TYPE,
}


@dataclass(frozen=True, slots=True, order=True)
class MetadataField:
    """One metadata column: a key and the kind of its values."""

    key: str
    kind: Kind

    @property
    def column(self) -> str:
        """Its Arrow column name."""
        return f"{_METADATA_PREFIX}{self.kind}:{self.key}"

    @property
    def arrow_type(self) -> pa.DataType:
        """Its Arrow type."""
        return ARROW_TYPES[self.kind]

    @classmethod
    def of_column(cls, name: str) -> MetadataField | None:
        """The field that a column name stands for, or None for a column that is not metadata."""
        if not name.startswith(_METADATA_PREFIX):
            return None
        _, kind, key = name.split(":", 2)
        return cls(key, Kind(kind))


def metadata_key(name: str) -> str | None:
    """The metadata key that a column name stands for, or None for a column that is not metadata."""
    return name.split(":", 2)[2] if name.startswith(_METADATA_PREFIX) else None


def metadata_fields(names: Iterable[str]) -> tuple[MetadataField, ...]:
    """The metadata fields among column names, sorted."""
    found = (MetadataField.of_column(name) for name in names)
    return tuple(sorted(field for field in found if field is not None))


def embedding_type(dimension: int) -> pa.DataType:
    """Arrow type of an embedding column."""
    return pa.list_(pa.float32(), dimension)


def embedding_array(vectors: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    """An embedding column over ``vectors`` (n, dim) float32 without copying; rows where ``valid`` is False are null."""
    rows, dimension = vectors.shape
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    if valid is None or bool(valid.all()):
        return pa.FixedSizeListArray.from_arrays(flat, dimension)
    mask = pa.array(~valid)
    if rows == 0:
        return pa.array([], embedding_type(dimension))
    return pa.FixedSizeListArray.from_arrays(flat, dimension, mask=mask)


def embedding_matrix(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """The values of an embedding column as (n, dim) float32, zero-copy for one chunk; null rows hold undefined numbers."""
    array = one_chunk(column)
    dimension = array.type.list_size
    values = array.values.slice(array.offset * dimension, len(array) * dimension)
    flat = values.to_numpy(zero_copy_only=values.null_count == 0)
    return flat.reshape(len(array), dimension)


def one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column as one array, without copying when it is one already (``combine_chunks`` always copies)."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def dimension_of(schema: pa.Schema) -> int | None:
    """The dimension of the embedding column, or None where there is none."""
    index = schema.get_field_index(EMBEDDING)
    return None if index < 0 else int(schema.field(index).type.list_size)


def encode_batch(batch: pa.RecordBatch) -> pa.Buffer:
    """One operation batch as Arrow IPC stream bytes: a log payload."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def decode_batch(payload: pa.Buffer | bytes | memoryview) -> pa.RecordBatch:
    """The inverse of `encode_batch`, without copying. Raises `Corrupt`, and `NewerFormat` for what a newer release wrote."""
    try:
        with pa.ipc.open_stream(payload) as reader:
            _check_format(reader.schema.metadata or {})
            batches = [reader.read_next_batch()]
    except (pa.ArrowInvalid, StopIteration, OSError) as error:
        raise Corrupt(f"a log payload cannot be read: {error}") from error
    return batches[0]


def _check_format(metadata: Mapping[bytes, bytes]) -> None:
    """A payload without `FORMAT_KEY` has format 1, so that nothing is spent on it."""
    found = metadata.get(FORMAT_KEY, b"1").decode("ascii", "replace")
    if found != str(PAYLOAD_FORMAT):
        raise NewerFormat(
            f"a newer release wrote this log payload: format {found}, and this process reads {PAYLOAD_FORMAT}; upgrade it"
        )


def concat_rows(tables: Sequence[pa.Table]) -> pa.Table:
    """Row tables one after another; a column that a table lacks is null there."""
    if len(tables) == 1:
        return tables[0]
    return pa.concat_tables(tables, promote_options="default")


def empty_rows(dimension: int | None) -> pa.Table:
    """A row table with no rows."""
    fields = [(ID, pa.string()), (CREATED_OFFSET, pa.uint64()), (UPDATED_OFFSET, pa.uint64())]
    if dimension is not None:
        fields.append((EMBEDDING, embedding_type(dimension)))
    return pa.schema(fields).empty_table()
