"""Filters that need an index which is off, and patterns that are too long, are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from shoal_core.errors import InvalidArgument
from shoal_core.filters import (
    And,
    Filter,
    Text,
    TextMatcher,
    parse_where,
    parse_where_document,
)
from shoal_core.schema import Index, Schema
from shoal_frontend.indexed import check_indexed

OFF = Schema(off=frozenset(Index))


def _only(key: str, *on: Index) -> Schema:
    return Schema(frozenset(Index), {key: dict.fromkeys(on, True)})


@pytest.mark.parametrize(
    ("where", "needed"),
    [
        ({"a": 1}, (Index.INT, Index.FLOAT)),
        ({"a": {"$gt": 1.5}}, (Index.INT, Index.FLOAT)),
        ({"a": {"$ne": True}}, (Index.BOOL,)),
        ({"a": "x"}, (Index.STRING,)),
        ({"a": {"$in": [1, 2.5]}}, (Index.INT, Index.FLOAT)),
        ({"a": {"$nin": ["x", "y"]}}, (Index.STRING,)),
        ({"a": {"$in": [False]}}, (Index.BOOL,)),
        ({"a": {"$contains": 2}}, (Index.INT, Index.FLOAT)),
        ({"a": {"$not_contains": "x"}}, (Index.STRING,)),
        ({"a": {"$contains": True}}, (Index.BOOL,)),
        ({"#uri": "u"}, (Index.STRING,)),
        ({"#document": {"$not_regex": "x"}}, (Index.SUBSTRING,)),
    ],
)
def test_a_condition_needs_the_indexes_of_its_values(where: dict[str, Any], needed: tuple[Index, ...]) -> None:
    (key,) = where
    tree = parse_where(where)
    check_indexed(tree, Schema())
    check_indexed(tree, _only(key, *needed))
    for missing in needed:
        with pytest.raises(
            InvalidArgument, match=f"the {missing} index of key '{key}' is off; allow a scan or turn it on"
        ):
            check_indexed(tree, _only(key, *set(Index) - {missing}))
        with pytest.raises(InvalidArgument):
            check_indexed(tree, _only("other", *Index))


@pytest.mark.parametrize(
    "where", [{"a": {"$exists": True}}, {"#id": "x"}, {"#id": {"$nin": ["x"]}}, {"a": {"$exists": False}}]
)
def test_what_is_always_known_needs_no_index(where: dict[str, Any]) -> None:
    check_indexed(parse_where(where), OFF)


def test_no_filter_needs_nothing() -> None:
    check_indexed(None, OFF)


@pytest.mark.parametrize("join", ["$and", "$or"])
def test_every_branch_counts(join: str) -> None:
    schema = Schema(keys={"b": {Index.STRING: False}, "c": {Index.BOOL: False}})
    fine = {"a": {"$exists": True}}
    check_indexed(parse_where({join: [fine, {"b": 1}, {join: [{"c": "x"}, fine]}]}), schema)
    with pytest.raises(InvalidArgument, match="'b'") as caught:  # the first from the left
        check_indexed(parse_where({join: [fine, {join: [fine, {"b": "x"}]}, {"c": True}]}), schema)
    assert caught.value.field == "where.b"
    with pytest.raises(InvalidArgument, match=r"where_document: the substring index of key '#document'"):
        check_indexed(parse_where_document({join: [{"$contains": "x"}]}), _only("a", *Index))


def test_trees_of_any_depth_are_walked() -> None:
    tree: Filter = Text(TextMatcher.CONTAINS, "x")
    for _ in range(5_000):
        tree = And((tree,))
    with pytest.raises(InvalidArgument, match="#document"):
        check_indexed(tree, OFF)
