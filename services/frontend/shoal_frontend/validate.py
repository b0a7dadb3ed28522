"""Checks of everything a user sends, before anything is written or sent on. Vectorised over the columns of a batch.

Errors name the field, the first row at fault and the limit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal_core.contracts import Json, NewCollection
from shoal_core.errors import DimensionMismatch, InvalidArgument
from shoal_core.filters import And, Comparator, Compare, Filter, ListContains, Membership, Or, Scalar, check_size
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
from shoal_frontend.indexed import check_patterns

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,510}[a-zA-Z0-9]")
_IPV4 = re.compile(r"\d{1,3}(\.\d{1,3}){3}")
_SPACES = ("l2", "cosine", "ip")
_LONGEST_SQUARE = 8e37  # four times this, the square of a distance, still is a float32
_REQUIRED = {OP: "operations", ID: "ids"}
_COLUMN_TYPES = {OP: pa.uint8(), ID: pa.string(), DOCUMENT: pa.string(), DELETED_KEYS: pa.list_(pa.string())}


def check_tenant_name(name: str, limits: Limits) -> None:
    """Raise `InvalidArgument` for a name too short or too long."""
    size = len(name.encode())
    if not limits.tenant_name_min_size_bytes <= size <= limits.name_size_bytes:
        raise InvalidArgument(
            f"{size} bytes; between {limits.tenant_name_min_size_bytes} and {limits.name_size_bytes} are allowed",
            field="tenant.name",
        )


def check_name(name: str, field: str) -> None:
    """Raise `InvalidArgument` unless this is a name for a database or collection."""
    if not _NAME.fullmatch(name) or ".." in name or _IPV4.fullmatch(name):
        raise InvalidArgument(
            f"{name[:64]!r} is not a name: 3 to 512 characters from [a-zA-Z0-9._-], starting and ending with a letter or "
            "digit, without '..', and not an IPv4 address",
            field=field,
        )


def check_new_collection(new: NewCollection, limits: Limits) -> None:
    """Raise `InvalidArgument` for anything a collection cannot be created with."""
    check_name(new.name, "name")
    if new.space not in _SPACES:
        raise InvalidArgument(f"{new.space!r} is not one of {', '.join(_SPACES)}", field="space")
    if not 1 <= new.shards <= limits.shards:
        raise InvalidArgument(f"{new.shards}; between 1 and {limits.shards} are allowed", field="shards")
    if new.dimension is not None and not 1 <= new.dimension <= limits.dimension:
        raise InvalidArgument(f"{new.dimension}; between 1 and {limits.dimension} are allowed", field="dimension")
    check_collection_metadata(new.metadata, limits)
    check_json(new.configuration, "configuration", limits)


def check_idempotency_key(key: str, limits: Limits) -> None:
    """Raise `InvalidArgument` for a key that is too long. An empty one is none."""
    if len(key.encode()) > limits.idempotency_key_size_bytes:
        raise InvalidArgument(f"at most {limits.idempotency_key_size_bytes} bytes", field="idempotency_key")


def check_collection_metadata(metadata: Json | None, limits: Limits) -> None:
    """Raise `InvalidArgument` unless metadata is None or a mapping from names to scalars."""
    if metadata is None:
        return
    check_json(metadata, "metadata", limits)
    for key, value in metadata.items():
        if not key or not isinstance(value, str | int | float | bool | None):
            raise InvalidArgument("values are strings, numbers, bools or null", field=f"metadata.{key}")


def check_json(value: Json, field: str, limits: Limits) -> None:
    """Raise `InvalidArgument` unless this is a JSON object of bounded size."""
    if not isinstance(value, Mapping):
        raise InvalidArgument("expected an object", field=field)
    try:
        size = len(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"not JSON: {error}", field=field) from error
    if size > limits.collection_metadata_size_bytes:
        raise InvalidArgument(f"{size} bytes, at most {limits.collection_metadata_size_bytes}", field=field)


# --- batches ---------------------------------------------------------------------------------------------------------


def check_batch(batch: pa.RecordBatch, dimension: int | None, limits: Limits) -> None:
    """Raise `InvalidArgument` or `DimensionMismatch` for the first thing wrong with an operation batch.

    ``dimension`` is the collection's as far as known; the append decides.
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
    _check_embeddings(batch, operations, dimension, limits)
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
            f"{operations.max()} is not an operation", field=_at("operations", np.greater(operations, max(Operation)))
        )
    return operations


def check_ids(ids: pa.Array, limits: Limits) -> None:
    """Raise `InvalidArgument` for null, empty or oversized ids."""
    if ids.null_count:
        raise InvalidArgument("an id is missing", field=_at("ids", _mask(pc.is_null(ids))))
    sizes = pc.binary_length(ids).to_numpy(zero_copy_only=False)
    if (sizes == 0).any():
        raise InvalidArgument("an id is empty", field=_at("ids", sizes == 0))
    if sizes.max(initial=0) > limits.id_size_bytes:
        raise InvalidArgument(
            f"{sizes.max()} bytes, at most {limits.id_size_bytes}", field=_at("ids", sizes > limits.id_size_bytes)
        )


def _check_embeddings(
    batch: pa.RecordBatch, operations: npt.NDArray[np.uint8], dimension: int | None, limits: Limits
) -> None:
    needed = (operations == Operation.ADD) | (operations == Operation.UPSERT)
    given = dimension_of(batch.schema)
    if given is None:
        if needed.any():
            raise InvalidArgument("add and upsert need an embedding", field=_at("embeddings", needed))
        return
    if not 1 <= given <= limits.dimension:
        raise InvalidArgument(f"dimension {given}; between 1 and {limits.dimension} are allowed", field="embeddings")
    if dimension is not None and given != dimension:
        raise DimensionMismatch(
            f"the collection has embeddings of dimension {dimension}, these have {given}", field="embeddings"
        )
    column = batch.column(EMBEDDING)
    valid = _mask(pc.is_valid(column))
    if (needed & ~valid).any():
        raise InvalidArgument("add and upsert need an embedding", field=_at("embeddings", needed & ~valid))
    _check_numbers(embedding_matrix(column), valid, "embeddings")


def check_vectors(vectors: npt.NDArray[np.float32], dimension: int | None, limits: Limits) -> None:
    """Raise `InvalidArgument` or `DimensionMismatch` for query vectors (q, dim)."""
    if vectors.dtype.kind != "f":
        raise InvalidArgument(f"vectors are of floats, not {vectors.dtype}", field="query_embeddings")
    if vectors.ndim != 2 or not 1 <= len(vectors) <= limits.query_vectors:
        raise InvalidArgument(f"between 1 and {limits.query_vectors} vectors are allowed", field="query_embeddings")
    if not 1 <= vectors.shape[1] <= limits.dimension:
        raise InvalidArgument(
            f"dimension {vectors.shape[1]}; between 1 and {limits.dimension} are allowed", field="query_embeddings"
        )
    if dimension is not None and vectors.shape[1] != dimension:
        raise DimensionMismatch(
            f"the collection has embeddings of dimension {dimension}, the query has {vectors.shape[1]}",
            field="query_embeddings",
        )
    _check_numbers(vectors, np.ones(len(vectors), dtype=bool), "query_embeddings")


def _check_numbers(vectors: npt.NDArray[np.floating[Any]], valid: npt.NDArray[np.bool_], field: str) -> None:
    """Raise unless each valid row is finite and so short that the square of a distance is a float32 too."""
    squares = np.einsum("ij,ij->i", vectors, vectors)  # one pass: NaN and infinity show in the sum
    bad = valid & ~(squares < _LONGEST_SQUARE)
    if not bad.any():
        return
    at = int(np.argmax(bad))
    if not np.isfinite(vectors[at]).all():
        raise InvalidArgument("NaN and infinite numbers cannot be searched", field=f"{field}[{at}]")
    raise InvalidArgument("its length is 9e18 or more, whose square overflows; scale it down", field=f"{field}[{at}]")


def check_page(limit: int | None, offset: int, most: int, field: str = "limit") -> None:
    """Raise `InvalidArgument` for a limit or offset out of bounds."""
    if limit is not None and not 0 <= limit <= most:
        raise InvalidArgument(f"{limit}; between 0 and {most} are allowed", field=field)
    if offset < 0:
        raise InvalidArgument(f"{offset} is negative", field="offset")


def check_selection(ids: Sequence[str] | None, where: Filter | None, limits: Limits) -> None:
    """Raise `InvalidArgument` for ids or a filter out of bounds."""
    if ids is not None:
        if len(ids) > limits.get_results:
            raise InvalidArgument(f"{len(ids)} ids, at most {limits.get_results}", field="ids")
        if ids:
            check_ids(_id_array(ids), limits)
    if where is not None:
        check_size(where, limits)
        check_patterns(where, limits)
        _check_conditions(where)


def _check_conditions(where: Filter) -> None:
    """What the parser of the JSON form refuses, for trees that came another way."""
    match where:
        case And(children) | Or(children):
            if not children:
                raise InvalidArgument("expected a non-empty list of conditions", field="where")
            for child in children:
                _check_conditions(child)
        case Compare(key, comparator, value):
            _check_values(key, (value,))
            if isinstance(value, bool) and comparator not in (Comparator.EQ, Comparator.NE):
                raise InvalidArgument(f"{comparator} does not apply to a bool", field=f"where.{key}")
        case Membership(key, values):
            if not values:
                raise InvalidArgument("expected a non-empty list", field=f"where.{key}")
            _check_values(key, values)
        case ListContains(key, value):
            _check_values(key, (value,))


def _check_values(key: str, values: Sequence[Scalar]) -> None:
    types = {type(value) for value in values}
    if len(types) > 1 and types != {int, float}:
        raise InvalidArgument("the values must be of one type", field=f"where.{key}")
    if any(value != value or (isinstance(value, int) and not -(2**63) <= value < 2**63) for value in values):
        raise InvalidArgument("numbers are 64-bit signed integers or floats but not NaN", field=f"where.{key}")


def _id_array(ids: Sequence[str]) -> pa.Array:
    try:
        return pa.array(ids, pa.string())
    except (pa.ArrowException, TypeError, UnicodeError) as error:
        raise InvalidArgument(f"ids are strings: {error}", field="ids") from error


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


def check_key(key: str | None, limits: Limits) -> None:
    """Raise `InvalidArgument` for a metadata key that is empty, too long or reserved."""
    if not key or len(key.encode()) > limits.metadata_key_size_bytes:
        raise InvalidArgument(
            f"keys have 1 to {limits.metadata_key_size_bytes} bytes", field=f"metadatas.{(key or '')[:64]}"
        )
    if key[0] in "#$":
        raise InvalidArgument("keys that start with # or $ are reserved", field=f"metadatas.{key}")


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
        raise InvalidArgument("a list is empty; leave the key out instead", field=_at(name, lengths == 0))
    if lengths.max(initial=0) > limits.metadata_list_length:
        too_long = lengths > limits.metadata_list_length
        raise InvalidArgument(
            f"{lengths.max()} elements, at most {limits.metadata_list_length}", field=_at(name, too_long)
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
        field = _at(name, ~_mask(finite)) if elements is column else name
        raise InvalidArgument("NaN and infinite numbers are not stored", field=field)


def _check_one_kind(batch: pa.RecordBatch, fields: Sequence[MetadataField]) -> None:
    if len(fields) < 2:
        return
    present = sum(_mask(pc.is_valid(batch.column(field.column))).astype(np.int64) for field in fields)
    if (np.asarray(present) > 1).any():
        raise InvalidArgument("a key has values of two types in one record", field=f"metadatas.{fields[0].key}")


def _check_sizes(column: pa.Array, name: str, limit: int, rows: npt.NDArray[np.int64] | None = None) -> None:
    """``rows``: the record of each value, where they are not one for one."""
    sizes = pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
    if sizes.max(initial=0) > limit:
        first = int(np.argmax(sizes > limit))
        row = first if rows is None else int(rows[first])
        raise InvalidArgument(f"{sizes.max()} bytes, at most {limit}", field=f"{name}[{row}]")


def _mask(array: pa.Array) -> npt.NDArray[np.bool_]:
    mask: npt.NDArray[np.bool_] = array.to_numpy(zero_copy_only=False).astype(bool)
    return mask


def _at(field: str, wrong: npt.NDArray[np.bool_]) -> str:
    return f"{field}[{int(np.argmax(wrong))}]"
