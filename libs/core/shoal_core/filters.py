"""The filter language as a tree of plain data, and its parser from the JSON form.

    where:           {"key": value} · {"key": {"$op": operand}} · {"$and": [...]} · {"$or": [...]}
    where_document:  {"$contains": text} and $not_contains, $regex, $not_regex, $and, $or

Keys ``#id``, ``#uri`` and ``#document`` reach the id, the uri and the document. `evaluate` gives the tree its meaning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from shoal_core.errors import InvalidArgument
from shoal_core.limits import Limits
from shoal_core.records import URI_KEY

Scalar = str | int | float | bool


def _types(*values: Scalar) -> tuple[str, ...]:
    """Part of a node's equality, because to Python ``1 == True`` and to a filter they differ: trees are keys of caches."""
    return tuple(type(value).__name__ for value in values)


ID_KEY = "#id"
DOCUMENT_KEY = "#document"


class Comparator(StrEnum):
    """Comparison operators, spelled as in the JSON form."""

    EQ = "$eq"
    NE = "$ne"
    GT = "$gt"
    GTE = "$gte"
    LT = "$lt"
    LTE = "$lte"


class TextMatcher(StrEnum):
    """Document operators, spelled as in the JSON form."""

    CONTAINS = "$contains"
    NOT_CONTAINS = "$not_contains"
    REGEX = "$regex"
    NOT_REGEX = "$not_regex"


@dataclass(frozen=True, slots=True)
class And:
    """All of the children hold."""

    children: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Any of the children holds."""

    children: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Compare:
    """A metadata value compared with a scalar. ``$ne`` is the complement of ``$eq``: missing keys match it."""

    key: str
    comparator: Comparator
    value: Scalar
    _types: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_types", _types(self.value))


@dataclass(frozen=True, slots=True)
class Membership:
    """A metadata value is (or, negated, is not) one of the values. Missing keys match the negated form."""

    key: str
    values: tuple[Scalar, ...]
    negated: bool = False
    _types: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_types", _types(*self.values))


@dataclass(frozen=True, slots=True)
class ListContains:
    """A metadata list contains (or, negated, does not contain) the value. Missing keys match the negated form."""

    key: str
    value: Scalar
    negated: bool = False
    _types: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_types", _types(self.value))


@dataclass(frozen=True, slots=True)
class Exists:
    """The record has (or has not) the key."""

    key: str
    expected: bool = True


@dataclass(frozen=True, slots=True)
class IdIn:
    """The record's id is (or, negated, is not) one of these."""

    ids: tuple[str, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """The document matches. The negated matchers match records without a document."""

    matcher: TextMatcher
    pattern: str


Filter = And | Or | Compare | Membership | ListContains | Exists | IdIn | Text


def all_of(*filters: Filter | None) -> Filter | None:
    """The conjunction of those that are not None; None if there is none."""
    present = tuple(item for item in filters if item is not None)
    if len(present) <= 1:
        return present[0] if present else None
    return And(present)


def parse_where(where: Mapping[str, Any] | None, limits: Limits | None = None) -> Filter | None:
    """The tree of a ``where`` mapping; None for None. Raises `InvalidArgument` naming the place."""
    if where is None:
        return None
    parsed = _parse_where(where, "where", 1, limits or Limits())
    check_size(parsed, limits or Limits())
    return parsed


def parse_where_document(where: Mapping[str, Any] | None, limits: Limits | None = None) -> Filter | None:
    """The tree of a ``where_document`` mapping; None for None. Raises `InvalidArgument` naming the place."""
    if where is None:
        return None
    parsed = _parse_document(where, "where_document", 1, limits or Limits())
    check_size(parsed, limits or Limits())
    return parsed


def check_size(tree: Filter, limits: Limits) -> None:
    """Raise `InvalidArgument` if the tree has too many nodes, is too deep or lists too many values."""
    nodes = 0
    level: list[Filter] = [tree]
    for depth in range(1, limits.filter_nodes + 2):
        if not level:
            return
        if depth > limits.filter_depth:
            raise InvalidArgument(f"nested deeper than {limits.filter_depth} levels", field="where")
        nodes += len(level)
        if nodes > limits.filter_nodes:
            raise InvalidArgument(f"more than {limits.filter_nodes} conditions", field="where")
        for node in level:
            values = (
                len(node.values) if isinstance(node, Membership) else len(node.ids) if isinstance(node, IdIn) else 0
            )
            if values > limits.filter_values:
                raise InvalidArgument(f"{values} values, at most {limits.filter_values}", field="where")
        level = [child for node in level if isinstance(node, And | Or) for child in node.children]


def check_key(key: str, place: str) -> None:
    """Raise `InvalidArgument` unless conditions on values may name the key: no record has another one that is reserved."""
    if not key:
        raise InvalidArgument("keys are non-empty strings", field=place)
    if key.startswith("$"):
        raise InvalidArgument(f"unknown operator {key[:64]}", field=place)
    if key.startswith("#") and key != URI_KEY:
        raise InvalidArgument(
            f"no such key; {ID_KEY}, {URI_KEY} and {DOCUMENT_KEY} are those that start with #", field=place
        )


def _single(where: Any, place: str) -> tuple[str, Any]:
    if not isinstance(where, Mapping):
        raise InvalidArgument(f"expected an object, got {type(where).__name__}", field=place)
    if len(where) != 1:
        raise InvalidArgument(f"expected exactly one key, got {len(where)}; join several with $and", field=place)
    key, operand = next(iter(where.items()))
    if not isinstance(key, str) or not key:
        raise InvalidArgument("keys are non-empty strings", field=place)
    _check_unicode(key, place)
    return key, operand


def _children(operand: Any, place: str) -> Sequence[Any]:
    if not isinstance(operand, Sequence) or isinstance(operand, str | bytes) or not operand:
        raise InvalidArgument("expected a non-empty list of conditions", field=place)
    return operand


def _deeper(depth: int, place: str, limits: Limits) -> int:
    if depth >= limits.filter_depth:
        raise InvalidArgument(f"nested deeper than {limits.filter_depth} levels", field=place)
    return depth + 1


def _parse_where(where: Any, place: str, depth: int, limits: Limits) -> Filter:
    key, operand = _single(where, place)
    if key in ("$and", "$or"):
        deeper = _deeper(depth, place, limits)
        parts = enumerate(_children(operand, f"{place}.{key}"))
        children = tuple(_parse_where(child, f"{place}.{key}[{i}]", deeper, limits) for i, child in parts)
        return And(children) if key == "$and" else Or(children)
    place = f"{place}.{key}"
    if key == DOCUMENT_KEY:
        return _parse_document(operand, place, depth, limits)
    if key != ID_KEY:
        check_key(key, place)
    if not isinstance(operand, Mapping):
        return _compare(key, Comparator.EQ, operand, place)
    operator, value = _single(operand, place)
    return _operator(key, operator, value, f"{place}.{operator}")


def _operator(key: str, operator: str, value: Any, place: str) -> Filter:
    if key == ID_KEY and operator in ("$contains", "$not_contains", "$exists"):
        raise InvalidArgument(_ID_OPERATORS, field=place)
    match operator:
        case "$in" | "$nin":
            return _membership(key, value, operator == "$nin", place)
        case "$contains" | "$not_contains":
            return ListContains(key, _scalar(value, place), operator == "$not_contains")
        case "$exists":
            if not isinstance(value, bool):
                raise InvalidArgument("expected true or false", field=place)
            return Exists(key, value)
        case "$eq" | "$ne" | "$gt" | "$gte" | "$lt" | "$lte":
            return _compare(key, Comparator(operator), value, place)
        case _:
            raise InvalidArgument(f"unknown operator {operator}", field=place)


_ID_OPERATORS = "#id takes $eq, $ne, $in and $nin with strings"


def _check_unicode(text: str, place: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument("not valid Unicode: it has a lone surrogate", field=place) from error


def _scalar(value: Any, place: str) -> Scalar:
    if not isinstance(value, str | int | float | bool):
        raise InvalidArgument(f"expected a string, number or bool, got {type(value).__name__}", field=place)
    if isinstance(value, str):
        _check_unicode(value, place)
    if isinstance(value, float) and math.isnan(value):
        raise InvalidArgument("NaN compares with nothing", field=place)
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        raise InvalidArgument("integers are 64-bit signed", field=place)
    return value


def _compare(key: str, comparator: Comparator, operand: Any, place: str) -> Filter:
    value = _scalar(operand, place)
    if key == ID_KEY:
        if comparator not in (Comparator.EQ, Comparator.NE) or not isinstance(value, str):
            raise InvalidArgument(_ID_OPERATORS, field=place)
        return IdIn((value,), comparator is Comparator.NE)
    if comparator not in (Comparator.EQ, Comparator.NE) and isinstance(value, bool):
        raise InvalidArgument(f"{comparator} does not apply to a bool", field=place)
    return Compare(key, comparator, value)


def _membership(key: str, operand: Any, negated: bool, place: str) -> Filter:
    if not isinstance(operand, Sequence) or isinstance(operand, str | bytes) or not operand:
        raise InvalidArgument("expected a non-empty list", field=place)
    values = tuple(_scalar(value, f"{place}[{i}]") for i, value in enumerate(operand))
    if len({type(value) for value in values}) > 1 and {type(value) for value in values} != {int, float}:
        raise InvalidArgument("the values must be of one type", field=place)
    if key != ID_KEY:
        return Membership(key, values, negated)
    ids = tuple(value for value in values if isinstance(value, str))
    if len(ids) != len(values):
        raise InvalidArgument("ids are strings", field=place)
    return IdIn(ids, negated)


def _parse_document(where: Any, place: str, depth: int, limits: Limits) -> Filter:
    operator, operand = _single(where, place)
    if operator in ("$and", "$or"):
        deeper = _deeper(depth, place, limits)
        parts = enumerate(_children(operand, f"{place}.{operator}"))
        children = tuple(_parse_document(child, f"{place}.{operator}[{i}]", deeper, limits) for i, child in parts)
        return And(children) if operator == "$and" else Or(children)
    if operator not in list(TextMatcher):
        raise InvalidArgument(f"unknown operator {operator}", field=place)
    if not isinstance(operand, str):
        raise InvalidArgument("expected a string", field=f"{place}.{operator}")
    _check_unicode(operand, f"{place}.{operator}")
    return Text(TextMatcher(operator), operand)
