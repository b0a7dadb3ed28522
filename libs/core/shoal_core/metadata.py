"""Metadata as users give it → typed columns. The edge where records are looked at one by one.

Each value keeps its kind: ``1`` is an int, ``1.0`` a float. A key with values of several kinds becomes several columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.errors import InvalidArgument
from shoal_core.records import DELETED_KEYS, SPARSE_TYPE, Kind, MetadataField, one_chunk

Columns = dict[str, pa.Array]
Place = Callable[[int], str]

_SPARSE_KEYS = frozenset({"indices", "values"})
_SPARSE_MARK = "#type"
_EMPTY = "a list is empty; leave the key out instead"
_LIST_KINDS = {
    Kind.INT: Kind.INTS,
    Kind.FLOAT: Kind.FLOATS,
    Kind.BOOL: Kind.BOOLS,
    Kind.STRING: Kind.STRINGS,
}


def metadata_columns(metadatas: Any, count: int, *, deletes: bool) -> Columns:
    """The metadata columns of ``count`` records.

    Args:
        metadatas: a list of one mapping or None per record, or a mapping from key to a column of ``count`` values (list, array
            or Arrow array; None and null mean "no value").
        deletes: a None in the list form deletes the key of the record; else it means "no value".

    Raises:
        InvalidArgument: naming ``metadatas[row].key``.
    """
    if isinstance(metadatas, Mapping):
        return _from_columns(metadatas, count)
    if isinstance(metadatas, str | bytes) or not isinstance(metadatas, Sequence | np.ndarray):
        raise InvalidArgument(
            f"expected a list of mappings or a mapping of columns, got {type(metadatas).__name__}", field="metadatas"
        )
    if len(metadatas) != count:
        raise InvalidArgument(f"{len(metadatas)} entries for {count} ids", field="metadatas")
    return _from_rows(list(metadatas), count, deletes)


def check_key(key: object, place: str) -> None:
    """Raise `InvalidArgument` unless users may have the key."""
    if not isinstance(key, str) or not key:
        raise InvalidArgument(f"keys are non-empty strings, got {key!r}", field=place)
    if key[0] in "#$":
        raise InvalidArgument(f"keys that start with {key[0]} are reserved; rename {key!r}", field=place)
    if not key.isascii():
        try:
            key.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgument(f"{key!r} holds a lone surrogate, which UTF-8 cannot encode", field=place) from error


# --- rows


def _from_rows(metadatas: Sequence[Any], count: int, deletes: bool) -> Columns:
    found: Columns = {}
    deleted: list[tuple[int, str]] = []
    for key, (rows, values) in _gather(metadatas).items():
        check_key(key, f"metadatas[{rows[0]}]")
        if type(None) in set(map(type, values)):
            if deletes:
                deleted += [(row, key) for row, value in zip(rows, values, strict=True) if value is None]
            kept = [(row, value) for row, value in zip(rows, values, strict=True) if value is not None]
            rows, values = [row for row, _ in kept], [value for _, value in kept]
        found |= _typed_columns(key, rows, values, count, partial(_row_place, key))
    if deleted:
        found[DELETED_KEYS] = _key_lists(deleted, count)
    return found


def _row_place(key: str, row: int) -> str:
    return f"metadatas[{row}].{key}"


def _gather(metadatas: Sequence[Any]) -> dict[str, tuple[list[int], list[Any]]]:
    """Per key, the rows that have it and their values."""
    if (
        set(map(type, metadatas)) == {dict} and len(set(map(tuple, metadatas))) == 1
    ):  # as most are: all of the same keys
        rows = [*range(len(metadatas))]
        columns = zip(*map(dict.values, metadatas), strict=True)
        return {key: (rows, list(column)) for key, column in zip(metadatas[0], columns, strict=True)}
    found: dict[str, tuple[list[int], list[Any]]] = {}
    for row, metadata in enumerate(metadatas):
        if metadata is None:
            continue
        if not isinstance(metadata, Mapping):
            raise InvalidArgument(f"expected a mapping, got {type(metadata).__name__}", field=f"metadatas[{row}]")
        for key, value in metadata.items():
            entry = found.get(key)
            if entry is None:
                entry = found[key] = ([], [])
            entry[0].append(row)
            entry[1].append(value)
    return found


def _key_lists(deleted: list[tuple[int, str]], count: int) -> pa.Array:
    keys: list[list[str] | None] = [None] * count
    for row, key in deleted:
        names = keys[row]
        if names is None:
            keys[row] = [key]
        else:
            names.append(key)
    return pa.array(keys, pa.list_(pa.string()))


# --- columns


def _from_columns(columns: Mapping[Any, Any], count: int) -> Columns:
    found: Columns = {}
    for key, column in columns.items():
        check_key(key, "metadatas")
        found |= column_of(key, column, count, f"metadatas.{key}")
    return found


def column_of(key: str, column: Any, count: int, place: str) -> Columns:
    """The columns of one key from its ``count`` values; ``place`` names them in errors."""
    if isinstance(column, str | bytes | Mapping) or not hasattr(column, "__len__"):
        raise InvalidArgument(
            f"expected a column of {count} values, got {type(column).__name__}; metadata by record is a list of mappings",
            field=place,
        )
    if len(column) != count:
        raise InvalidArgument(f"{len(column)} values for {count} ids", field=place)
    if isinstance(column, pa.Array | pa.ChunkedArray):
        return _from_arrow(key, one_chunk(column), place)
    if isinstance(column, np.ndarray) and column.dtype.kind in "biuf" and column.ndim in (1, 2):
        return _from_arrow(key, _arrow_of(column), place)
    if not isinstance(column, Sequence | np.ndarray):
        raise InvalidArgument(f"expected a list or an array, got {type(column).__name__}", field=place)
    values = column.tolist() if isinstance(column, np.ndarray) else column
    rows = [row for row, value in enumerate(values) if value is not None]
    kept = [values[row] for row in rows] if len(rows) < count else list(values)
    return _typed_columns(key, rows, kept, count, lambda row: f"{place}[{row}]")


def _arrow_of(array: npt.NDArray[Any]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(array).reshape(-1))
    return flat if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, array.shape[1])


def _from_arrow(key: str, array: pa.Array, place: str) -> Columns:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.null_count == len(array):
        return {}
    kind = _arrow_kind(array.type)
    if kind is None:
        raise InvalidArgument(
            f"{array.type} is no metadata type; use int64, float64, bool, string or lists of these", field=place
        )
    field = MetadataField(key, kind)
    try:
        array = array.cast(field.arrow_type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InvalidArgument(f"does not fit {field.arrow_type}: {error}", field=place) from error
    _check_array(kind, array, lambda row: f"{place}[{row}]", range(len(array)))
    return {field.column: array}


def _arrow_kind(found: pa.DataType) -> Kind | None:
    types = pa.types
    if types.is_integer(found):
        return Kind.INT
    if types.is_floating(found):
        return Kind.FLOAT
    if types.is_boolean(found):
        return Kind.BOOL
    if types.is_string(found) or types.is_large_string(found) or types.is_string_view(found):
        return Kind.STRING
    if types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found):
        element = _arrow_kind(found.value_type)
        return None if element is None else _LIST_KINDS.get(element)
    if types.is_struct(found) and {found.field(i).name for i in range(found.num_fields)} == _SPARSE_KEYS:
        return Kind.SPARSE
    return None


# --- values


def _typed_columns(key: str, rows: Sequence[int], values: list[Any], count: int, place: Place) -> Columns:
    """Columns of ``count`` rows from values (none of them None) at ``rows``."""
    found: Columns = {}
    for kind, chosen in _by_kind(values, rows, place):
        at = rows if chosen is None else [rows[index] for index in chosen]
        of_kind = values if chosen is None else [values[index] for index in chosen]
        field = MetadataField(key, kind)
        array = _to_arrow(kind, of_kind, field.arrow_type, at, place)
        _check_array(kind, array, place, at)
        found[field.column] = array if len(at) == count else _spread(array, at, count)
    return found


def _by_kind(values: list[Any], rows: Sequence[int], place: Place) -> Iterator[tuple[Kind, list[int] | None]]:
    """The kinds among the values, each with the indices of its values; None for all of them."""
    kinds = {cls: _scalar_kind(cls) for cls in set(map(type, values))}
    if None not in kinds.values():
        distinct = set(kinds.values())
        if len(distinct) == 1:
            yield next(iter(distinct)) or Kind.STRING, None
            return
    indices: dict[Kind, list[int]] = {}
    for index, value in enumerate(values):
        kind = kinds[type(value)] or _compound_kind(value, place(rows[index]))
        indices.setdefault(kind, []).append(index)
    for kind, chosen in indices.items():
        yield kind, None if len(chosen) == len(values) else chosen


def _scalar_kind(cls: type) -> Kind | None:
    if issubclass(cls, bool | np.bool_):
        return Kind.BOOL
    if issubclass(cls, int | np.integer):
        return Kind.INT
    if issubclass(cls, float | np.floating):
        return Kind.FLOAT
    return Kind.STRING if issubclass(cls, str) else None


def _compound_kind(value: Any, place: str) -> Kind:
    if isinstance(value, Mapping):
        if value.keys() - {_SPARSE_MARK} != _SPARSE_KEYS:
            raise InvalidArgument(
                "nested mappings are not metadata; flatten it, or give a sparse vector as {'indices': [...], 'values': [...]}",
                field=place,
            )
        return Kind.SPARSE
    if not isinstance(value, list | tuple | np.ndarray) or (isinstance(value, np.ndarray) and value.ndim != 1):
        raise InvalidArgument(
            f"{type(value).__name__} is no metadata value; use a string, number, bool or a list of one of these",
            field=place,
        )
    if len(value) == 0:
        raise InvalidArgument(_EMPTY, field=place)
    kinds = {_scalar_kind(cls) for cls in set(map(type, value))}
    if len(kinds) > 1 or None in kinds:
        names = ", ".join(sorted({cls.__name__ for cls in set(map(type, value))}))
        raise InvalidArgument(f"a list holds values of one type (string, int, float or bool), got {names}", field=place)
    return _LIST_KINDS[kinds.pop() or Kind.STRING]


def _to_arrow(kind: Kind, values: list[Any], to: pa.DataType, rows: Sequence[int], place: Place) -> pa.Array:
    try:
        if kind is Kind.SPARSE:
            parts = [pa.array([value[name] for value in values], to.field(name).type) for name in ("indices", "values")]
            return pa.StructArray.from_arrays(parts, fields=list(SPARSE_TYPE))
        return pa.array(values, to)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError, TypeError, ValueError) as error:
        if len(values) == 1:
            raise InvalidArgument(f"{_unfit(kind)}: {error}", field=place(rows[0])) from error
        for row, value in zip(rows, values, strict=True):  # once more, to name the row
            _to_arrow(kind, [value], to, [row], place)
        raise


def _unfit(kind: Kind) -> str:
    if kind in (Kind.INT, Kind.INTS):
        return "integers are 64-bit signed"
    if kind is Kind.SPARSE:
        return "a sparse vector has indices of 32 bits, unsigned, and as many float values"
    return "cannot be encoded"


def _check_array(kind: Kind, array: pa.Array, place: Place, rows: Sequence[int]) -> None:
    """Finite numbers, no nulls in lists, sparse vectors in order. ``rows`` are the record numbers of the array's rows."""
    if kind is Kind.FLOAT:
        values = array.to_numpy(zero_copy_only=False)
        bad = ~np.isfinite(values) & np.asarray(array.is_valid())
        _refuse(bad, place, rows, "not a finite number; leave the value out where there is none")
    elif kind is Kind.SPARSE:
        _check_sparse(array, place, rows)
    elif pa.types.is_list(array.type):
        _refuse(np.asarray(array.value_lengths().fill_null(1)) == 0, place, rows, _EMPTY)
        _check_elements(array, place, rows)


def _check_elements(array: pa.Array, place: Place, rows: Sequence[int]) -> None:
    elements = array.flatten()
    bad = ~np.asarray(elements.is_valid())
    if pa.types.is_floating(elements.type):
        bad |= ~np.isfinite(elements.to_numpy(zero_copy_only=False))
    _refuse_elements(bad, array, place, rows, "a list holds finite numbers and no nulls")


def _check_sparse(array: pa.Array, place: Place, rows: Sequence[int]) -> None:
    valid = array.drop_null()
    at = np.flatnonzero(np.asarray(array.is_valid()))
    indices, values = valid.field("indices"), valid.field("values")
    lengths = [np.asarray(part.value_lengths().fill_null(-1)) for part in (indices, values)]
    uneven = (lengths[0] != lengths[1]) | (lengths[0] < 0)
    here = [rows[row] for row in at.tolist()]
    _refuse(uneven, place, here, "a sparse vector needs as many values as indices")
    _check_elements(values, place, here)
    flat = indices.flatten()
    if flat.null_count:
        _refuse_elements(~np.asarray(flat.is_valid()), indices, place, here, "a sparse vector holds no nulls")
    numbers = flat.to_numpy().astype(np.int64)
    owners = np.repeat(np.arange(len(indices)), lengths[0])
    falls = np.concatenate([[False], (np.diff(numbers) <= 0) & (np.diff(owners) == 0)])[: len(numbers)]
    _refuse_elements(falls, indices, place, here, "the indices of a sparse vector ascend strictly")


def _refuse_elements(
    bad: npt.NDArray[np.bool_], lists: pa.Array, place: Place, rows: Sequence[int], message: str
) -> None:
    if bad.any():
        lengths = np.asarray(lists.value_lengths().fill_null(0))
        owner = int(np.repeat(np.arange(len(lists)), lengths)[int(np.argmax(bad))])
        raise InvalidArgument(message, field=place(rows[owner]))


def _refuse(bad: npt.NDArray[np.bool_], place: Place, rows: Sequence[int], message: str) -> None:
    if bad.any():
        raise InvalidArgument(message, field=place(rows[int(np.argmax(bad))]))


def _spread(array: pa.Array, rows: Sequence[int], count: int) -> pa.Array:
    """The values at ``rows`` of ``count``, null elsewhere."""
    index = np.full(count, -1, dtype=np.int64)
    index[np.asarray(rows)] = np.arange(len(array))
    return array.take(pa.array(index, mask=index < 0))
