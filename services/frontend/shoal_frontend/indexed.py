"""Whether the indexes that a filter needs are on, and whether its patterns are short enough. Both hold before anything is read."""

from __future__ import annotations

from collections.abc import Iterator

from shoal_core.errors import InvalidArgument
from shoal_core.filters import And, Compare, Filter, ListContains, Membership, Or, Scalar, Text
from shoal_core.limits import Limits
from shoal_core.schema import DOCUMENT_KEY, Index, Schema


def check_indexed(tree: Filter | None, schema: Schema, *, allow_scan: bool = False) -> None:
    """Raise `InvalidArgument` for a condition that needs an index which is off, unless the reader allows a scan.

    ``#uri`` is a key like others.

    A number needs the int and the float index: it equals numbers of both types. Whether a key exists and which ids there are is
    always known.
    """
    if allow_scan:
        return
    for node in _conditions(tree):
        match node:
            case Compare(key, _, value) | ListContains(key, value):
                _check_on(key, (value,), schema)
            case Membership(key, values):
                _check_on(key, values, schema)
            case Text() if not schema.enabled(DOCUMENT_KEY, Index.SUBSTRING):
                raise _off(DOCUMENT_KEY, Index.SUBSTRING, "where_document")


def check_patterns(tree: Filter | None, limits: Limits) -> None:
    """Raise `InvalidArgument` for a text or regular expression to search documents for that is too long."""
    for node in _conditions(tree):
        if not isinstance(node, Text):
            continue
        size = len(node.pattern.encode("utf-8", "surrogatepass"))
        if size > limits.pattern_size_bytes:
            raise InvalidArgument(
                f"{size} bytes, at most {limits.pattern_size_bytes}; search for a shorter text",
                field=f"where_document.{node.matcher}",
            )


def _conditions(tree: Filter | None) -> Iterator[Filter]:
    """The leaves, from left to right; without recursion, as nobody may have looked at the depth yet."""
    stack: list[Filter] = [] if tree is None else [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, And | Or):
            stack.extend(reversed(node.children))
        else:
            yield node


def _check_on(key: str, values: tuple[Scalar, ...], schema: Schema) -> None:
    for index in dict.fromkeys(index for value in values for index in _indexes_of(value)):
        if not schema.enabled(key, index):
            raise _off(key, index, f"where.{key}")


def _indexes_of(value: Scalar) -> tuple[Index, ...]:
    match value:
        case bool():
            return (Index.BOOL,)
        case str():
            return (Index.STRING,)
        case _:
            return (Index.INT, Index.FLOAT)


def _off(key: str, index: Index, field: str) -> InvalidArgument:
    return InvalidArgument(f"the {index} index of key {key!r} is off; allow a scan or turn it on", field=field)
