"""Arrow arrays ↔ packed bytes, one column at a time.

Encoding copies a column once, into the bytes of a message; decoding wraps bytes of a message as Arrow buffers without
copying. Everything decoded comes from strangers: each function checks lengths before it builds an array and raises
`InvalidArgument` with the name of the wire field. Hosts are little-endian, as the wire is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.errors import InvalidArgument

Bits = npt.NDArray[np.bool_]


def one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The column as one array, copied only if it has several chunks."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def valid_bits(array: pa.Array) -> Bits | None:
    """Which rows have a value, (n,) bool; None when all have."""
    if array.null_count == 0:
        return None
    bitmap = array.buffers()[0]
    if bitmap is None:  # a null array
        return np.zeros(len(array), dtype=np.bool_)
    first, last = array.offset, array.offset + len(array)
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8)[: (last + 7) >> 3], bitorder="little")
    return bits[first:last].view(np.bool_)


def encode_validity(valid: Bits | None) -> bytes:
    """A bitmap, least significant bit first, unused bits zero; empty when every row has a value."""
    return b"" if valid is None else np.packbits(valid, bitorder="little").tobytes()


def decode_validity(data: bytes, rows: int, field: str) -> pa.Buffer | None:
    """The bitmap as an Arrow buffer, None when every row has a value."""
    if not data:
        return None
    if len(data) != (rows + 7) >> 3:
        raise InvalidArgument(
            f"{len(data)} bytes, expected {(rows + 7) >> 3}: one bit for each of {rows} rows", field=field
        )
    return pa.py_buffer(data)


def values_view(array: pa.Array, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """The values of a fixed-width array as a read-only view (n,), undefined where a row is null."""
    buffer = array.buffers()[1]
    if buffer is None or len(array) == 0:
        return np.zeros(len(array), dtype=dtype)
    wide = np.dtype(dtype)
    return np.frombuffer(buffer, wide, count=len(array), offset=array.offset * wide.itemsize)


def encode_numbers(array: pa.Array, dtype: npt.DTypeLike, valid: Bits | None = None) -> bytes:
    """The values of a fixed-width array, packed. Where ``valid`` is False, zero: that memory may hold anything."""
    values = values_view(array, dtype)
    if valid is not None:
        values = np.where(valid, values, np.zeros((), dtype=dtype))
    return values.tobytes()


def decode_numbers(
    data: bytes, kind: pa.DataType, width: int, rows: int, validity: pa.Buffer | None, field: str
) -> pa.Array:
    """An array of ``rows`` values of ``width`` bytes each."""
    check_size(data, rows, width, field)
    return pa.Array.from_buffers(kind, rows, [validity, pa.py_buffer(data)])


def check_size(data: bytes, rows: int, width: int, field: str) -> None:
    """Raise `InvalidArgument` unless ``data`` holds ``rows`` values of ``width`` bytes."""
    if len(data) != rows * width:
        raise InvalidArgument(f"{len(data)} bytes, expected {rows * width}: {rows} times {width} bytes", field=field)


def encode_bools(array: pa.Array, valid: Bits | None = None) -> bytes:
    """One byte each, 0 or 1; 0 where ``valid`` is False."""
    bitmap = array.buffers()[1]
    if bitmap is None or len(array) == 0:
        return bytes(len(array))
    first, last = array.offset, array.offset + len(array)
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8)[: (last + 7) >> 3], bitorder="little")[first:last]
    return (bits if valid is None else bits & valid).tobytes()


def decode_bools(data: bytes, rows: int, validity: pa.Buffer | None, field: str) -> pa.Array:
    """An array of ``rows`` bools from a byte each."""
    check_size(data, rows, 1, field)
    values = np.frombuffer(data, np.uint8)
    if rows and int(values.max()) > 1:
        raise InvalidArgument("bools are bytes of 0 or 1", field=field)
    bits = np.packbits(values, bitorder="little").tobytes()
    return pa.Array.from_buffers(pa.bool_(), rows, [validity, pa.py_buffer(bits)])


def encode_strings(array: pa.Array) -> list[str]:
    """The strings; empty where a row is null."""
    values: list[str] = array.to_pylist()
    return values if array.null_count == 0 else [value or "" for value in values]


def decode_strings(values: list[str], rows: int, validity: pa.Buffer | None, field: str) -> pa.Array:
    """A string array of ``rows`` values."""
    if len(values) != rows:
        raise InvalidArgument(f"{len(values)} strings, expected {rows}", field=field)
    array = pa.array(values, pa.string())
    if validity is None:
        return array
    return pa.Array.from_buffers(pa.string(), rows, [validity, *array.buffers()[1:]])


def list_parts(array: pa.Array) -> tuple[npt.NDArray[np.int32], pa.Array]:
    """Offsets (n + 1,) int32 from 0 and the flattened elements of a list array."""
    if len(array) == 0:
        return np.zeros(1, dtype=np.int32), array.values.slice(0, 0)
    offsets = values_view(array.offsets, np.int32)
    first, last = int(offsets[0]), int(offsets[-1])
    return offsets - np.int32(first), array.values.slice(first, last - first)


def decode_offsets(data: bytes, rows: int, elements: int, field: str) -> pa.Buffer:
    """List offsets: ``rows + 1`` of int32, from 0 to ``elements``, never decreasing."""
    check_size(data, rows + 1, 4, field)
    offsets = np.frombuffer(data, np.int32)
    if offsets[0] != 0 or offsets[-1] != elements:
        raise InvalidArgument(f"list offsets must go from 0 to {elements}, the number of elements", field=field)
    if bool((offsets[1:] < offsets[:-1]).any()):
        raise InvalidArgument("list offsets must not decrease", field=field)
    return pa.py_buffer(data)


def decode_list(elements: pa.Array, offsets: bytes, rows: int, validity: pa.Buffer | None, field: str) -> pa.Array:
    """A list array of ``rows`` lists over the flattened ``elements``."""
    checked = decode_offsets(offsets, rows, len(elements), field)
    return pa.Array.from_buffers(pa.list_(elements.type), rows, [validity, checked], children=[elements])
