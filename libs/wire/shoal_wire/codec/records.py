"""Records in columns: `RecordColumns` ↔ operation batches and rows of answers (the layouts of `shoal_core.records`)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from shoal_core.errors import Internal, InvalidArgument
from shoal_core.limits import Limits
from shoal_core.records import (
    CREATED_OFFSET,
    DELETED_KEYS,
    DOCUMENT,
    EMBEDDING,
    ID,
    OP,
    UPDATED_OFFSET,
    MetadataField,
    Operation,
    embedding_type,
)
from shoal_wire.codec import columns
from shoal_wire.codec.metadata import decode_metadata, encode_metadata
from shoal_wire.v1 import types_pb2 as pb

DISTANCE = "distance"
SCORE = "score"
ORIGIN = "origin"

_MAX_DIMENSION = 2**31 - 1  # what Arrow's list size can hold
_STRING_SIZE_BYTES = 128  # a guess at a string with what surrounds it


def encode_records(batch: pa.RecordBatch | pa.Table, message: pb.RecordColumns | None = None) -> pb.RecordColumns:
    """An operation batch or the row table of an answer, in columns.

    ``updated_offset`` stays behind: no answer carries it. Values under nulls are sent as zeros and empty strings.

    Args:
        message: an empty message to fill, where it is part of another: protobuf copies what is assigned to a field.

    Raises:
        InvalidArgument: a metadata list holds a null, or a sparse vector is uneven.
        Internal: a column that neither layout knows.
    """
    message = pb.RecordColumns() if message is None else message
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        _encode_column(message, name, columns.one_chunk(column))
    return message


def _encode_column(message: pb.RecordColumns, name: str, array: pa.Array) -> None:
    match name:
        case "id":
            message.ids.extend(columns.encode_strings(array))
        case "op":
            message.operations = _encode_operations(array)
        case "embedding":
            _encode_embeddings(message, array)
        case "document":
            message.documents.extend(columns.encode_strings(array))
            if array.null_count or len(array) == 0:
                message.document_validity = columns.encode_validity(columns.valid_bits(array))
        case "created_offset":
            message.created_offsets = columns.encode_numbers(array, np.uint64)
        case "distance":
            message.distances = columns.encode_numbers(array, np.float32)
        case "score":
            message.scores = columns.encode_numbers(array, np.float64)
        case "origin":
            message.origins = columns.encode_numbers(array, np.uint8)
        case "deleted_keys":
            offsets, keys = columns.list_parts(array)
            message.deleted_keys.extend(columns.encode_strings(keys))
            message.deleted_key_offsets = offsets.tobytes()
        case _ if (field := MetadataField.of_column(name)) is not None:
            encode_metadata(field, array, message.metadata.add())
        case _ if name != UPDATED_OFFSET:
            raise Internal(f"column {name} has no place on the wire")


def _encode_operations(array: pa.Array) -> bytes:
    operations = columns.values_view(array, np.uint8)
    if len(operations) and bool((operations == operations[0]).all()):
        operations = operations[:1]
    return operations.tobytes()


def _encode_embeddings(message: pb.RecordColumns, array: pa.Array) -> None:
    dimension = array.type.list_size
    valid = columns.valid_bits(array)
    values = columns.values_view(array.values.slice(array.offset * dimension, len(array) * dimension), np.float32)
    if valid is not None:
        values = np.where(valid[:, None], values.reshape(len(array), dimension), np.float32(0))
        message.embedding_validity = columns.encode_validity(valid)
    message.dimension = dimension
    message.embeddings = values.tobytes()


def decode_operations(message: pb.RecordColumns, limits: Limits | None = None) -> pa.RecordBatch:
    """The operation batch that a message from a stranger holds, sharing the message's memory.

    Columns without any value are left out, as the layout asks. What the values mean (ids not empty, vectors finite,
    sizes) is for the validator.

    Raises:
        InvalidArgument: naming the field whose length, kind or offsets do not fit, or that has more records or metadata
            columns than ``limits`` allow, which bounds the work a message can cause.
    """
    limits = limits or Limits()
    rows = len(message.ids)
    if rows > limits.batch_records:
        raise InvalidArgument(f"{rows} records, at most {limits.batch_records} in one batch", field="records.ids")
    if len(message.metadata) > max(rows, 1) * limits.metadata_keys:
        raise InvalidArgument("more metadata columns than the records may have keys", field="records.metadata")
    found: dict[str, pa.Array] = {
        OP: _decode_operations(message.operations, rows),
        ID: columns.decode_strings(message.ids[:], rows, None, "records.ids"),
    }
    for name, array in _optional_columns(message, rows):
        if array.null_count < rows:
            found[name] = array
    return pa.RecordBatch.from_arrays(list(found.values()), names=list(found))


def decode_rows(message: pb.RecordColumns) -> pa.Table:
    """The row table of an answer, sharing the message's memory. Raises `InvalidArgument` naming the field at fault."""
    rows = len(message.ids)
    found: dict[str, pa.Array] = {
        ID: columns.decode_strings(message.ids[:], rows, None, "rows.ids"),
        CREATED_OFFSET: columns.decode_numbers(
            message.created_offsets, pa.uint64(), 8, rows, None, "rows.created_offsets"
        ),
    }
    if message.HasField("distances"):
        found[DISTANCE] = columns.decode_numbers(message.distances, pa.float32(), 4, rows, None, "rows.distances")
    if message.HasField("scores"):
        found[SCORE] = columns.decode_numbers(message.scores, pa.float64(), 8, rows, None, "rows.scores")
    if message.HasField("origins"):
        found[ORIGIN] = columns.decode_numbers(message.origins, pa.uint8(), 1, rows, None, "rows.origins")
    found.update(_optional_columns(message, rows))
    return pa.Table.from_arrays(list(found.values()), names=list(found))


def _optional_columns(message: pb.RecordColumns, rows: int) -> Iterator[tuple[str, pa.Array]]:
    """Embeddings, documents, metadata and deleted keys, those that are there, in the order of the layout."""
    if message.dimension or message.embeddings:
        yield EMBEDDING, _decode_embeddings(message, rows)
    if message.documents or message.HasField("document_validity"):
        validity = columns.decode_validity(message.document_validity, rows, "records.document_validity")
        yield DOCUMENT, columns.decode_strings(message.documents[:], rows, validity, "records.documents")
    seen: set[str] = set()
    for index, column in enumerate(message.metadata):
        place = f"records.metadata[{index}]"
        field, array = decode_metadata(column, rows, place)
        if field.column in seen:
            raise InvalidArgument(f"a second {field.kind} column of key {field.key!r}", field=f"{place}.key")
        seen.add(field.column)
        yield field.column, array
    if message.deleted_keys or message.deleted_key_offsets:
        keys = message.deleted_keys[:]
        elements = columns.decode_strings(keys, len(keys), None, "records.deleted_keys")
        offsets = message.deleted_key_offsets
        if len(elements):
            yield DELETED_KEYS, columns.decode_list(elements, offsets, rows, None, "records.deleted_key_offsets")
        else:
            columns.decode_offsets(offsets, rows, 0, "records.deleted_key_offsets")


def _decode_operations(data: bytes, rows: int) -> pa.Array:
    if len(data) == 1 and rows != 1:
        data *= rows
    columns.check_size(data, rows, 1, "records.operations")
    if rows and max(data) > max(Operation):
        raise InvalidArgument(f"unknown operation {max(data)}", field="records.operations")
    return pa.Array.from_buffers(pa.uint8(), rows, [None, pa.py_buffer(data)])


def _decode_embeddings(message: pb.RecordColumns, rows: int) -> pa.Array:
    dimension, data = message.dimension, message.embeddings
    if not 0 < dimension <= _MAX_DIMENSION:
        raise InvalidArgument("embeddings need the dimension they have", field="records.dimension")
    if len(data) != 4 * rows * dimension:
        raise InvalidArgument(
            f"{len(data)} bytes, expected {4 * rows * dimension}: {rows} embeddings of {dimension} float32",
            field="records.embeddings",
        )
    validity = columns.decode_validity(message.embedding_validity, rows, "records.embedding_validity")
    values = pa.Array.from_buffers(pa.float32(), rows * dimension, [None, pa.py_buffer(data)])
    return pa.Array.from_buffers(embedding_type(dimension), rows, [validity], children=[values])


def estimated_size_bytes(message: pb.RecordColumns) -> int:
    """About how large the message is, without looking at every string."""
    strings = 1 + bool(message.documents) + sum(1 for column in message.metadata if column.kind == "str")
    return len(message.ids) * (4 * message.dimension + 8 * len(message.metadata) + _STRING_SIZE_BYTES * strings)
