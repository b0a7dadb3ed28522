"""Checks of ids and filters of reads. Filters also come as trees, past the parser of the JSON form."""

from __future__ import annotations

from collections.abc import Sequence

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
    check_key,
    check_size,
)
from shoal_core.limits import Limits
from shoal_frontend.indexed import conditions
from shoal_frontend.validate import check_ids, id_array

_MANY_VALUES = 1_000
_REGEXES = (TextMatcher.REGEX, TextMatcher.NOT_REGEX)


def takes_long(ids: Sequence[str] | None, where: Filter | None) -> bool:
    """Whether `check_selection` would hold up the event loop: regular expressions can take milliseconds to compile."""
    values = 0 if ids is None else len(ids)
    for node in conditions(where):
        values += len(node.values) if isinstance(node, Membership) else len(node.ids) if isinstance(node, IdIn) else 1
        if values > _MANY_VALUES or (isinstance(node, Text) and node.matcher in _REGEXES):
            return True
    return values > _MANY_VALUES


def check_selection(ids: Sequence[str] | None, where: Filter | None, limits: Limits) -> None:
    """Raise `InvalidArgument` for ids or a filter that no collection can answer."""
    if ids is not None:
        if len(ids) > limits.get_results:
            raise InvalidArgument(f"{len(ids)} ids, at most {limits.get_results}", field="ids")
        if ids:
            check_ids(id_array(ids), limits)
    if where is not None:
        check_size(where, limits)
        _check_conditions(where, limits)


def _check_conditions(where: Filter, limits: Limits) -> None:
    """What the parser of the JSON form refuses, for trees that came another way; and patterns."""
    match where:
        case And(children) | Or(children):
            if not children:
                raise InvalidArgument("expected a non-empty list of conditions", field="where")
            for child in children:
                _check_conditions(child, limits)
        case Compare(key, comparator, value):
            _check_values(key, (value,))
            if isinstance(value, bool) and comparator not in (Comparator.EQ, Comparator.NE):
                raise InvalidArgument(f"{comparator} does not apply to a bool", field=f"where.{key}")
        case Membership(key, values):
            _check_values(key, values)
        case ListContains(key, value):
            _check_values(key, (value,))
        case Exists(key):
            check_key(key, f"where.{key}")
        case Text():
            _check_pattern(where, limits)


def _check_values(key: str, values: Sequence[Scalar]) -> None:
    check_key(key, f"where.{key}")
    if not values:
        raise InvalidArgument("expected a non-empty list", field=f"where.{key}")
    types = {type(value) for value in values}
    if len(types) > 1 and types != {int, float}:
        raise InvalidArgument("the values must be of one type", field=f"where.{key}")
    if any(value != value or (isinstance(value, int) and not -(2**63) <= value < 2**63) for value in values):
        raise InvalidArgument("numbers are 64-bit signed integers or floats but not NaN", field=f"where.{key}")


def _check_pattern(condition: Text, limits: Limits) -> None:
    """Also where nothing is searched in the end, a pattern that is none is an error."""
    field = f"where_document.{condition.matcher}"
    size = len(condition.pattern.encode("utf-8", "surrogatepass"))
    if size > limits.pattern_size_bytes:
        raise InvalidArgument(
            f"{size} bytes, at most {limits.pattern_size_bytes}; search for a shorter text", field=field
        )
    if condition.matcher not in _REGEXES:
        return
    try:
        pc.match_substring_regex(pa.array([""]), condition.pattern)
    except pa.ArrowInvalid as error:
        raise InvalidArgument(f"not a regular expression: {error}", field=field) from error
