"""Metadata columns: `MetadataColumn` ↔ an Arrow array of its kind."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from shoal_core.errors import InvalidArgument
from shoal_core.records import ARROW_TYPES, SPARSE_TYPE, Kind, MetadataField
from shoal_wire.codec import columns
from shoal_wire.v1 import types_pb2 as pb

_WIDTH = 8
_NUMBERS = {Kind.INT: np.int64, Kind.FLOAT: np.float64, Kind.INTS: np.int64, Kind.FLOATS: np.float64}
_KINDS = {str(kind): kind for kind in Kind}


def encode_metadata(field: MetadataField, array: pa.Array, column: pb.MetadataColumn) -> None:
    """Fill an empty ``column``. Raises `InvalidArgument` for a null inside a list and for uneven sparse vectors."""
    valid = columns.valid_bits(array)
    column.key = field.key
    column.kind = kind = field.kind
    column.validity = columns.encode_validity(valid)
    match kind:
        case Kind.STRING:
            column.strings.extend(columns.encode_strings(array))
        case Kind.INT | Kind.FLOAT:
            column.numbers = columns.encode_numbers(array, _NUMBERS[kind], valid)
        case Kind.BOOL:
            column.numbers = columns.encode_bools(array, valid)
        case Kind.SPARSE:
            _encode_sparse(field, array, column)
        case _:
            _encode_list(field, array, column)


def _encode_list(field: MetadataField, array: pa.Array, column: pb.MetadataColumn) -> None:
    offsets, elements = columns.list_parts(array)
    _check_no_nulls(field, elements)
    column.list_offsets = offsets.tobytes()
    if field.kind is Kind.STRINGS:
        column.strings.extend(columns.encode_strings(elements))
    elif field.kind is Kind.BOOLS:
        column.numbers = columns.encode_bools(elements)
    else:
        column.numbers = columns.encode_numbers(elements, _NUMBERS[field.kind])


def _encode_sparse(field: MetadataField, array: pa.Array, column: pb.MetadataColumn) -> None:
    offsets, indices = columns.list_parts(array.field("indices"))
    value_offsets, values = columns.list_parts(array.field("values"))
    if not np.array_equal(offsets, value_offsets):
        raise InvalidArgument("a sparse vector needs as many values as indices", field=f"metadata.{field.key}")
    _check_no_nulls(field, indices)
    _check_no_nulls(field, values)
    column.list_offsets = offsets.tobytes()
    column.sparse_indices = columns.encode_numbers(indices, np.uint32)
    column.numbers = columns.encode_numbers(values, np.float32)


def _check_no_nulls(field: MetadataField, elements: pa.Array) -> None:
    if elements.null_count:
        raise InvalidArgument("lists hold no nulls", field=f"metadata.{field.key}")


def decode_metadata(column: pb.MetadataColumn, rows: int, place: str) -> tuple[MetadataField, pa.Array]:
    """The field and its array of ``rows`` rows.

    Raises:
        InvalidArgument: naming ``place`` and the part of the column that does not fit.
    """
    kind = _KINDS.get(column.kind)
    if kind is None:
        raise InvalidArgument(f"unknown kind; one of {', '.join(Kind)}", field=f"{place}.kind")
    field = MetadataField(column.key, kind)
    validity = columns.decode_validity(column.validity, rows, f"{place}.validity")
    match kind:
        case Kind.STRING:
            return field, columns.decode_strings(column.strings[:], rows, validity, f"{place}.strings")
        case Kind.INT | Kind.FLOAT:
            place = f"{place}.numbers"
            return field, columns.decode_numbers(column.numbers, ARROW_TYPES[kind], _WIDTH, rows, validity, place)
        case Kind.BOOL:
            return field, columns.decode_bools(column.numbers, rows, validity, f"{place}.numbers")
        case Kind.SPARSE:
            return field, _decode_sparse(column, rows, validity, place)
    elements = _decode_elements(column, kind, place)
    return field, columns.decode_list(elements, column.list_offsets, rows, validity, f"{place}.list_offsets")


def _decode_elements(column: pb.MetadataColumn, kind: Kind, place: str) -> pa.Array:
    if kind is Kind.STRINGS:
        strings = column.strings[:]
        return columns.decode_strings(strings, len(strings), None, f"{place}.strings")
    numbers, place = column.numbers, f"{place}.numbers"
    if kind is Kind.BOOLS:
        return columns.decode_bools(numbers, len(numbers), None, place)
    element = ARROW_TYPES[Kind.INT if kind is Kind.INTS else Kind.FLOAT]
    return columns.decode_numbers(numbers, element, _WIDTH, len(numbers) // _WIDTH, None, place)


def _decode_sparse(column: pb.MetadataColumn, rows: int, validity: pa.Buffer | None, place: str) -> pa.Array:
    values, indices, offsets = column.numbers, column.sparse_indices, column.list_offsets
    elements = len(values) // 4
    lists = [
        columns.decode_list(
            columns.decode_numbers(data, kind, 4, elements, None, f"{place}.{part}"),
            offsets,
            rows,
            None,
            f"{place}.list_offsets",
        )
        for data, kind, part in ((indices, pa.uint32(), "sparse_indices"), (values, pa.float32(), "numbers"))
    ]
    return pa.Array.from_buffers(SPARSE_TYPE, rows, [validity], children=lists)
