"""Schemas as users give them: objects or their JSON form."""

from __future__ import annotations

from collections.abc import Mapping

from shoal_core.errors import InvalidArgument
from shoal_core.schema import Json, Schema, check_change, parse_schema


def schema_of(given: Schema | Json | None) -> Schema:
    """The schema, checked; None is the default. Raises `InvalidArgument` naming the member at fault."""
    if given is not None and not isinstance(given, Schema | Mapping):
        raise InvalidArgument(f"expected a Schema or its JSON form, got {type(given).__name__}", field="schema")
    return parse_schema(given.to_json() if isinstance(given, Schema) else given)


def changed_schema(old: Schema, given: Schema | Json) -> Schema:
    """As `schema_of`, if the collection's schema may become it. Raises `InvalidArgument`."""
    new = schema_of(given)
    check_change(old, new)
    return new
