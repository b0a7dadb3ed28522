"""Whether the indexes that a filter needs are on, before anything is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from shoal_core.errors import InvalidArgument
from shoal_core.filters import And, Compare, Filter, ListContains, Membership, Or, Scalar, Text
from shoal_core.schema import DOCUMENT_KEY, Index, Schema

_INDEXES_OF: Mapping[type, tuple[Index, ...]] = {bool: (Index.BOOL,), str: (Index.STRING,)}
_OF_NUMBERS = (Index.INT, Index.FLOAT)


def check_indexed(tree: Filter | None, schema: Schema, *, allow_scan: bool = False) -> None:
    """Raise `InvalidArgument` for a condition that needs an index which is off, unless the reader allows a scan.

    ``#uri`` is a key like others.

    A number needs the int and the float index: it equals numbers of both types. Whether a key exists and which ids there are is
    always known.
    """
    if allow_scan:
        return
    for node in conditions(tree):
        match node:
            case Compare(key, _, value) | ListContains(key, value):
                _check_on(key, (value,), schema)
            case Membership(key, values):
                _check_on(key, values, schema)
            case Text() if not schema.enabled(DOCUMENT_KEY, Index.SUBSTRING):
                raise index_off(DOCUMENT_KEY, Index.SUBSTRING, "where_document")


def conditions(tree: Filter | None) -> Iterator[Filter]:
    """The leaves, from left to right; without recursion, as nobody may have looked at the depth yet."""
    stack: list[Filter] = [] if tree is None else [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, And | Or):
            stack.extend(reversed(node.children))
        else:
            yield node


def _check_on(key: str, values: tuple[Scalar, ...], schema: Schema) -> None:
    for kind in dict.fromkeys(map(type, values)):
        for index in _INDEXES_OF.get(kind, _OF_NUMBERS):
            if not schema.enabled(key, index):
                raise index_off(key, index, f"where.{key}")


def index_off(key: str, index: Index, field: str) -> InvalidArgument:
    """The error of a read that needs an index which is off."""
    return InvalidArgument(f"the {index} index of key {key!r} is off; allow a scan or turn it on", field=field)
