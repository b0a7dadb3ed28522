"""The meaning of a filter: a mask over the rows of a row table. Tail and segments share it.

* A scalar compares with the key's number, string or bool; lists match `$contains` only.
* Numbers compare by value across int64 and float64, exactly, also where one cannot represent the other.
* ``$ne``, ``$nin``, ``$not_contains`` and ``$not_regex`` are complements: records without the key match.
* Strings compare by code point; substrings are case-sensitive; regular expressions are RE2 (linear time), searched, not anchored.
"""

from __future__ import annotations

import math
import re

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal_core.errors import InvalidArgument
from shoal_core.filters import (
    And,
    Comparator,
    Compare,
    Exists,
    Filter,
    IdIn,
    ListContains,
    Membership,
    Or,
    Scalar,
    Text,
    TextMatcher,
)
from shoal_core.records import DOCUMENT, ID, Kind, MetadataField, one_chunk

Mask = npt.NDArray[np.bool_]

_LIST_KINDS = (Kind.INTS, Kind.FLOATS, Kind.BOOLS, Kind.STRINGS)


def evaluate(tree: Filter, rows: pa.Table) -> Mask:
    """(n,) bool: which rows match. Raises `InvalidArgument` for a malformed regular expression."""
    match tree:
        case And(children):
            return np.logical_and.reduce([evaluate(child, rows) for child in children])
        case Or(children):
            return np.logical_or.reduce([evaluate(child, rows) for child in children])
        case Compare(key, Comparator.NE, value):
            return ~_compare(rows, key, Comparator.EQ, value)
        case Compare(key, comparator, value):
            return _compare(rows, key, comparator, value)
        case Membership(key, values, negated):
            return _members(rows, key, values) ^ negated
        case ListContains(key, value, negated):
            return _list_contains(rows, key, value) ^ negated
        case Exists(key, expected):
            return _exists(rows, key) ^ (not expected)
        case IdIn(ids, negated):
            return _true_where(pc.is_in(rows.column(ID), value_set=pa.array(ids, pa.string()))) ^ negated
        case Text(matcher, pattern):
            return _text(rows, matcher, pattern)


def columns_of(tree: Filter, available: pa.Schema) -> set[str]:
    """Names of the columns, among those available, that `evaluate` reads."""
    match tree:
        case And(children) | Or(children):
            return set().union(*(columns_of(child, available) for child in children))
        case IdIn():
            return {ID}
        case Text():
            return {DOCUMENT} & set(available.names)
        case Compare(key) | Membership(key) | ListContains(key) | Exists(key):
            return {name for kind in Kind if available.get_field_index(name := MetadataField(key, kind).column) >= 0}


def _column(rows: pa.Table, key: str, kind: Kind) -> pa.ChunkedArray | None:
    name = MetadataField(key, kind).column
    index = rows.schema.get_field_index(name)
    return rows.column(index) if index >= 0 else None


def _true_where(column: pa.ChunkedArray | pa.Array) -> Mask:
    """A bool column as a mask, nulls False."""
    return np.asarray(pc.fill_null(column, False).to_numpy())


def _nothing(rows: pa.Table) -> Mask:
    return np.zeros(rows.num_rows, dtype=bool)


def _compare(rows: pa.Table, key: str, comparator: Comparator, value: Scalar) -> Mask:
    if isinstance(value, bool):
        return _simple(rows, key, Kind.BOOL, comparator, value)
    if isinstance(value, str):
        return _simple(rows, key, Kind.STRING, comparator, value)
    mask = _nothing(rows)
    ints, floats = _column(rows, key, Kind.INT), _column(rows, key, Kind.FLOAT)
    if ints is not None:
        mask |= _compare_ints(ints, comparator, value)
    if floats is not None:
        mask |= _compare_floats(floats, comparator, value)
    return mask


def _simple(rows: pa.Table, key: str, kind: Kind, comparator: Comparator, value: Scalar) -> Mask:
    column = _column(rows, key, kind)
    return _nothing(rows) if column is None else _true_where(_ARROW[comparator](column, value))


_ARROW = {
    Comparator.EQ: pc.equal,
    Comparator.GT: pc.greater,
    Comparator.GTE: pc.greater_equal,
    Comparator.LT: pc.less,
    Comparator.LTE: pc.less_equal,
}


def _compare_ints(column: pa.ChunkedArray, comparator: Comparator, value: int | float) -> Mask:
    """An int64 column against a number, by value: a fraction moves the bound to the next integer on the right side."""
    if isinstance(value, float) and math.isinf(value):
        below = (value > 0) == (comparator in (Comparator.LT, Comparator.LTE))
        return _true_where(pc.is_valid(column)) & (comparator is not Comparator.EQ and below)
    bound = math.ceil(value) if comparator in (Comparator.GTE, Comparator.LT) else math.floor(value)
    if comparator is Comparator.EQ and bound != value:
        return np.zeros(len(column), dtype=bool)
    if -(2**63) <= bound < 2**63:
        return _true_where(_ARROW[comparator](column, pa.scalar(bound, pa.int64())))
    below = (bound > 0) == (comparator in (Comparator.LT, Comparator.LTE))
    return _true_where(pc.is_valid(column)) & (comparator is not Comparator.EQ and below)


def _compare_floats(column: pa.ChunkedArray, comparator: Comparator, value: int | float) -> Mask:
    """A float64 column against a number, by value: an integer between two floats becomes a bound on the nearer one."""
    nearest = float(value)
    if nearest == value:  # Python compares int and float exactly
        return _true_where(_ARROW[comparator](column, nearest))
    if comparator is Comparator.EQ:
        return np.zeros(len(column), dtype=bool)
    upwards = comparator in (Comparator.GT, Comparator.GTE)
    if nearest > value:
        return _true_where((pc.greater_equal if upwards else pc.less)(column, nearest))
    return _true_where((pc.greater if upwards else pc.less_equal)(column, nearest))


def _members(rows: pa.Table, key: str, values: tuple[Scalar, ...]) -> Mask:
    if isinstance(values[0], bool | str):
        kind = Kind.BOOL if isinstance(values[0], bool) else Kind.STRING
        column = _column(rows, key, kind)
        if column is None:
            return _nothing(rows)
        return _true_where(pc.is_in(column, value_set=pa.array(values, column.type)))
    numbers = [value for value in values if isinstance(value, int | float)]
    mask = _nothing(rows)
    ints, floats = _column(rows, key, Kind.INT), _column(rows, key, Kind.FLOAT)
    if ints is not None:
        whole = [int(v) for v in numbers if math.isfinite(v) and v == int(v) and -(2**63) <= v < 2**63]
        mask |= _true_where(pc.is_in(ints, value_set=pa.array(whole, pa.int64())))
    if floats is not None:
        exact = [float(v) for v in numbers if float(v) == v]
        mask |= _true_where(pc.is_in(floats, value_set=pa.array(exact, pa.float64())))
        if 0.0 in exact:  # is_in tells 0.0 from -0.0
            mask |= _true_where(pc.equal(floats, 0.0))
    return mask


def _list_contains(rows: pa.Table, key: str, value: Scalar) -> Mask:
    mask = _nothing(rows)
    for kind in _LIST_KINDS:
        column = _column(rows, key, kind)
        if column is None:
            continue
        lists = one_chunk(column)
        elements = pa.table({MetadataField("e", _element_kind(kind)).column: pc.list_flatten(lists)})
        hits = _compare(elements, "e", Comparator.EQ, value)
        mask[pc.list_parent_indices(lists).to_numpy()[hits]] = True
    return mask


def _element_kind(kind: Kind) -> Kind:
    return {Kind.INTS: Kind.INT, Kind.FLOATS: Kind.FLOAT, Kind.BOOLS: Kind.BOOL, Kind.STRINGS: Kind.STRING}[kind]


def _exists(rows: pa.Table, key: str) -> Mask:
    mask = _nothing(rows)
    for kind in Kind:
        column = _column(rows, key, kind)
        if column is not None:
            mask |= _true_where(pc.is_valid(column))
    return mask


def _text(rows: pa.Table, matcher: TextMatcher, pattern: str) -> Mask:
    negated = matcher in (TextMatcher.NOT_CONTAINS, TextMatcher.NOT_REGEX)
    regex = matcher in (TextMatcher.REGEX, TextMatcher.NOT_REGEX)
    documents = (
        rows.column(DOCUMENT)
        if DOCUMENT in rows.column_names
        else pa.chunked_array([pa.nulls(rows.num_rows, pa.string())])
    )
    try:
        if regex and rows.num_rows == 0:
            pc.match_substring_regex(
                pa.array([""]), pattern
            )  # a bad pattern is an error also where nothing is searched
        if regex or len(pattern) > 1:  # RE2 finds a literal several times faster than Arrow's own search does
            found = pc.match_substring_regex(documents, pattern if regex else re.escape(pattern))
        else:
            found = pc.match_substring(documents, pattern)
    except pa.ArrowInvalid as error:
        raise InvalidArgument(f"not a regular expression: {error}", field="where_document") from error
    return _true_where(found) ^ negated
