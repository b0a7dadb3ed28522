"""Checks of an operation batch before it is written, vectorised over its columns. What is stored is folded for ever.

Errors name the field, the first row at fault and the limit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal_core.errors import DimensionMismatch, InvalidArgument
from shoal_core.limits import Limits
from shoal_core.records import (
    DELETED_KEYS,
    DOCUMENT,
    EMBEDDING,
    ID,
    OP,
    URI_KEY,
    Kind,
    MetadataField,
    Operation,
    dimension_of,
    embedding_matrix,
    embedding_type,
    metadata_fields,
)
from shoal_frontend.validate import at_first, check_ids, check_key, check_numbers, mask_of

_REQUIRED = {OP: "operations", ID: "ids"}
_COLUMN_TYPES = {OP: pa.uint8(), ID: pa.string(), DOCUMENT: pa.string(), DELETED_KEYS: pa.list_(pa.string())}


def check_batch(
    batch: pa.RecordBatch, dimension: int | None, limits: Limits, promised: npt.NDArray[np.bool_] | None = None
) -> None:
    """Raise `InvalidArgument` or `DimensionMismatch` for the first thing wrong with an operation batch.

    ``dimension`` is the collection's as far as known; the append decides. ``promised``: (n,) the records whose embeddings are still
    to be made, and need none yet.
    """
    if not 1 <= batch.num_rows <= limits.batch_records:
        raise InvalidArgument(
            f"{batch.num_rows} records; between 1 and {limits.batch_records} are allowed", field="ids"
        )
    if batch.nbytes > limits.batch_size_bytes:
        raise InvalidArgument(
            f"{batch.nbytes} bytes, at most {limits.batch_size_bytes}; send smaller batches", field="records"
        )
    _check_columns(batch.schema)
    operations = _operations(batch)
    check_ids(batch.column(ID), limits)
    _check_embeddings(batch, operations, dimension, limits, promised)
    if DOCUMENT in batch.schema.names:
        _check_sizes(batch.column(DOCUMENT), "documents", limits.document_size_bytes)
    _check_metadata(batch, limits)


def _check_columns(schema: pa.Schema) -> None:
    """What is stored is folded for ever: an operation batch has the columns of `records` and no others, of exactly their types."""
    if len(set(schema.names)) < len(schema.names):
        twice = next(name for name in schema.names if schema.names.count(name) > 1)
        raise InvalidArgument("given twice", field=twice)
    for name, field in _REQUIRED.items():
        if schema.get_field_index(name) < 0:
            raise InvalidArgument("every record needs one", field=field)
    for column in schema:
        expected = _column_type(column)
        if column.type != expected:
            raise InvalidArgument(f"the column is of type {column.type}, not {expected}", field=column.name)


def _column_type(column: pa.Field) -> pa.DataType:
    if column.name in _COLUMN_TYPES:
        return _COLUMN_TYPES[column.name]
    if column.name == EMBEDDING:
        fixed = pa.types.is_fixed_size_list(column.type)
        return embedding_type(column.type.list_size if fixed else 1)
    try:
        field = MetadataField.of_column(column.name)
    except ValueError:
        field = None
    if field is None or (field.key == URI_KEY and field.kind is not Kind.STRING):
        raise InvalidArgument("no such column in an operation batch", field=column.name[:64])
    return field.arrow_type


def _operations(batch: pa.RecordBatch) -> npt.NDArray[np.uint8]:
    column = batch.column(OP)
    if column.null_count:
        raise InvalidArgument("every record needs an operation", field="operations")
    operations: npt.NDArray[np.uint8] = column.to_numpy()
    if operations.max() > max(Operation):
        raise InvalidArgument(
            f"{operations.max()} is not an operation",
            field=at_first("operations", np.greater(operations, max(Operation))),
        )
    return operations


def _check_embeddings(
    batch: pa.RecordBatch,
    operations: npt.NDArray[np.uint8],
    dimension: int | None,
    limits: Limits,
    promised: npt.NDArray[np.bool_] | None,
) -> None:
    needed = (operations == Operation.ADD) | (operations == Operation.UPSERT)
    if promised is not None:
        needed &= ~promised
    given = dimension_of(batch.schema)
    if given is None:
        if needed.any():
            raise InvalidArgument("add and upsert need an embedding", field=at_first("embeddings", needed))
        return
    if not 1 <= given <= limits.dimension:
        raise InvalidArgument(f"dimension {given}; between 1 and {limits.dimension} are allowed", field="embeddings")
    if dimension is not None and given != dimension:
        raise DimensionMismatch(
            f"the collection has embeddings of dimension {dimension}, these have {given}", field="embeddings"
        )
    column = batch.column(EMBEDDING)
    valid = mask_of(pc.is_valid(column))
    if (needed & ~valid).any():
        raise InvalidArgument("add and upsert need an embedding", field=at_first("embeddings", needed & ~valid))
    check_numbers(embedding_matrix(column), valid, "embeddings")


def _check_metadata(batch: pa.RecordBatch, limits: Limits) -> None:
    fields = metadata_fields(batch.schema.names)
    keys = {field.key for field in fields}
    if len(keys) > limits.metadata_keys:
        raise InvalidArgument(f"{len(keys)} keys, at most {limits.metadata_keys}", field="metadatas")
    for key in keys:
        if key != URI_KEY:
            check_key(key, limits)
    for field in fields:
        _check_metadata_column(batch.column(field.column), field, limits)
    for key in keys:
        _check_one_kind(batch, [field for field in fields if field.key == key])
    if DELETED_KEYS in batch.schema.names:
        deleted = pc.list_flatten(batch.column(DELETED_KEYS))
        for key in deleted.unique().to_pylist():
            check_key(key, limits)


def _check_metadata_column(column: pa.Array, field: MetadataField, limits: Limits) -> None:
    name = "uris" if field.key == URI_KEY else f"metadatas.{field.key}"
    match field.kind:
        case Kind.STRING:
            _check_sizes(
                column, name, limits.uri_size_bytes if field.key == URI_KEY else limits.metadata_value_size_bytes
            )
        case Kind.FLOAT:
            _check_floats(column, column, name)
        case Kind.INTS | Kind.FLOATS | Kind.BOOLS | Kind.STRINGS:
            _check_list(column, field, name, limits)
        case Kind.SPARSE:
            _check_sparse(column, name, limits)


def _check_list(column: pa.Array, field: MetadataField, name: str, limits: Limits) -> None:
    _check_lengths(column, name, limits)
    elements = pc.list_flatten(column)
    if elements.null_count:
        raise InvalidArgument("a list holds a null", field=name)
    if field.kind is Kind.STRINGS:
        rows = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
        _check_sizes(elements, name, limits.metadata_value_size_bytes, rows)
    if field.kind is Kind.FLOATS:
        _check_floats(elements, column, name)


def _check_lengths(lists: pa.Array, name: str, limits: Limits) -> None:
    lengths = pc.fill_null(pc.list_value_length(lists), 1).to_numpy(zero_copy_only=False)
    if (lengths == 0).any():
        raise InvalidArgument("a list is empty; leave the key out instead", field=at_first(name, lengths == 0))
    if lengths.max(initial=0) > limits.metadata_list_length:
        too_long = lengths > limits.metadata_list_length
        raise InvalidArgument(
            f"{lengths.max()} elements, at most {limits.metadata_list_length}", field=at_first(name, too_long)
        )


def _check_sparse(column: pa.Array, name: str, limits: Limits) -> None:
    present = column.filter(pc.is_valid(column))
    indices, values = pc.struct_field(present, "indices"), pc.struct_field(present, "values")
    if indices.null_count or values.null_count:
        raise InvalidArgument("a sparse vector needs indices and values", field=name)
    lengths = pc.list_value_length(indices)
    if not lengths.equals(pc.list_value_length(values)):
        raise InvalidArgument("indices and values of a sparse vector differ in length", field=name)
    if (pc.max(lengths).as_py() or 0) > limits.metadata_list_length:
        raise InvalidArgument(f"a sparse vector has more than {limits.metadata_list_length} elements", field=name)
    if pc.list_flatten(indices).null_count or pc.list_flatten(values).null_count:
        raise InvalidArgument("a sparse vector holds a null", field=name)
    _check_floats(pc.list_flatten(values), column, name)
    flat = pc.list_flatten(indices).to_numpy(zero_copy_only=False).astype(np.int64)
    same = np.diff(pc.list_parent_indices(indices).to_numpy(zero_copy_only=False)) == 0
    if (same & (np.diff(flat) <= 0)).any():
        raise InvalidArgument("indices of a sparse vector must be strictly ascending", field=name)


def _check_floats(elements: pa.Array, column: pa.Array, name: str) -> None:
    finite = pc.fill_null(pc.is_finite(elements), True)
    if not pc.all(finite).as_py() and len(elements):
        field = at_first(name, ~mask_of(finite)) if elements is column else name
        raise InvalidArgument("NaN and infinite numbers are not stored", field=field)


def _check_one_kind(batch: pa.RecordBatch, fields: Sequence[MetadataField]) -> None:
    if len(fields) < 2:
        return
    present = sum(mask_of(pc.is_valid(batch.column(field.column))).astype(np.int64) for field in fields)
    if (np.asarray(present) > 1).any():
        raise InvalidArgument("a key has values of two types in one record", field=f"metadatas.{fields[0].key}")


def _check_sizes(column: pa.Array, name: str, limit: int, rows: npt.NDArray[np.int64] | None = None) -> None:
    """``rows``: the record of each value, where they are not one for one."""
    sizes = pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
    if sizes.max(initial=0) > limit:
        first = int(np.argmax(sizes > limit))
        row = first if rows is None else int(rows[first])
        raise InvalidArgument(f"{sizes.max()} bytes, at most {limit}", field=f"{name}[{row}]")
