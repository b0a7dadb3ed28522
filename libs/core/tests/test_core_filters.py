"""The filter parser: what it makes of each form, and that every refusal names its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given

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
    Text,
    TextMatcher,
    all_of,
    check_size,
    parse_where,
    parse_where_document,
)
from shoal_core.limits import Limits
from shoal_testing.strategies import QUICK, Where, where_documents, wheres

A1 = Compare("a", Comparator.EQ, 1)
TEXT = Text(TextMatcher.CONTAINS, "x")


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"a": 1}, A1),
        ({"a": {"$eq": 1}}, A1),
        ({"a": {"$ne": "x"}}, Compare("a", Comparator.NE, "x")),
        ({"a": {"$gte": 0.5}}, Compare("a", Comparator.GTE, 0.5)),
        ({"a": {"$lt": float("inf")}}, Compare("a", Comparator.LT, float("inf"))),
        ({"a": {"$gt": "x"}}, Compare("a", Comparator.GT, "x")),
        ({"a": True}, Compare("a", Comparator.EQ, True)),
        ({"a": -(2**63)}, Compare("a", Comparator.EQ, -(2**63))),
        ({"a": {"$in": [1, 2.5]}}, Membership("a", (1, 2.5))),
        ({"a": {"$nin": ["x"]}}, Membership("a", ("x",), negated=True)),
        ({"a": {"$contains": False}}, ListContains("a", False)),
        ({"a": {"$not_contains": 1}}, ListContains("a", 1, negated=True)),
        ({"a": {"$exists": False}}, Exists("a", expected=False)),
        ({"#id": "x"}, IdIn(("x",))),
        ({"#id": {"$ne": "x"}}, IdIn(("x",), negated=True)),
        ({"#id": {"$in": ["x", "y"]}}, IdIn(("x", "y"))),
        ({"#id": {"$nin": ["x"]}}, IdIn(("x",), negated=True)),
        ({"#uri": "u"}, Compare("#uri", Comparator.EQ, "u")),
        ({"#document": {"$contains": "x"}}, TEXT),
        ({"#document": {"$or": [{"$contains": "x"}]}}, Or((TEXT,))),
        ({"$and": [{"a": 1}, {"#document": {"$contains": "x"}}]}, And((A1, TEXT))),
        ({"$or": ({"a": 1},)}, Or((A1,))),
    ],
)
def test_where(where: Where, expected: Filter) -> None:
    assert parse_where(where) == expected


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"$contains": "x"}, TEXT),
        ({"$not_contains": ""}, Text(TextMatcher.NOT_CONTAINS, "")),
        ({"$regex": "a|b"}, Text(TextMatcher.REGEX, "a|b")),
        ({"$not_regex": "a"}, Text(TextMatcher.NOT_REGEX, "a")),
        ({"$and": [{"$contains": "x"}, {"$or": [{"$contains": "x"}]}]}, And((TEXT, Or((TEXT,))))),
    ],
)
def test_where_document(where: Where, expected: Filter) -> None:
    assert parse_where_document(where) == expected


@pytest.mark.parametrize(
    ("where", "place"),
    [
        ([], "where"),
        ("x", "where"),
        ({}, "where"),
        ({"a": 1, "b": 2}, "where"),
        ({"": 1}, "where"),
        ({1: 1}, "where"),
        ({"$not": [{"a": 1}]}, "where.$not"),
        ({"#documents": "x"}, "where.#documents"),
        ({"#embedding": {"$exists": True}}, "where.#embedding"),
        ({"$and": []}, "where.$and"),
        ({"$and": {"a": 1}}, "where.$and"),
        ({"$or": "ab"}, "where.$or"),
        ({"$or": [{"a": 1}, {}]}, "where.$or[1]"),
        ({"$or": [{"$and": [{"a": {"$bad": 1}}]}]}, "where.$or[0].$and[0].a.$bad"),
        ({"a": None}, "where.a"),
        ({"a": [1]}, "where.a"),
        ({"a": b"x"}, "where.a"),
        ({"a": float("nan")}, "where.a"),
        ({"a": 2**63}, "where.a"),
        ({"a": -(2**63) - 1}, "where.a"),
        ({"a": "\ud800"}, "where.a"),
        ({"a\ud800": 1}, "where"),
        ({"a": {}}, "where.a"),
        ({"a": {"$gt": 1, "$lt": 2}}, "where.a"),
        ({"a": {"$gt": True}}, "where.a.$gt"),
        ({"a": {"$lte": None}}, "where.a.$lte"),
        ({"a": {"$in": []}}, "where.a.$in"),
        ({"a": {"$in": "ab"}}, "where.a.$in"),
        ({"a": {"$in": 1}}, "where.a.$in"),
        ({"a": {"$in": [1, None]}}, "where.a.$in[1]"),
        ({"a": {"$nin": [1, "x"]}}, "where.a.$nin"),
        ({"a": {"$nin": [1, True]}}, "where.a.$nin"),
        ({"a": {"$exists": 1}}, "where.a.$exists"),
        ({"a": {"$contains": [1]}}, "where.a.$contains"),
        ({"a": {"$regex": "x"}}, "where.a.$regex"),
        ({"#id": 1}, "where.#id"),
        ({"#id": {"$gt": "x"}}, "where.#id.$gt"),
        ({"#id": {"$in": [1]}}, "where.#id.$in"),
        ({"#id": {"$exists": True}}, "where.#id.$exists"),
        ({"#id": {"$contains": "x"}}, "where.#id.$contains"),
        ({"#id": {"$not_contains": "x"}}, "where.#id.$not_contains"),
        ({"#document": "x"}, "where.#document"),
        ({"#document": {"$eq": "x"}}, "where.#document"),
        ({"#document": {"$contains": 1}}, "where.#document.$contains"),
    ],
)
def test_where_refuses(where: Any, place: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        parse_where(where)
    assert raised.value.field == place


@pytest.mark.parametrize(
    ("where", "place"),
    [
        (1, "where_document"),
        ({}, "where_document"),
        ({"a": "x"}, "where_document"),
        ({"$eq": "x"}, "where_document"),
        ({"$contains": 1}, "where_document.$contains"),
        ({"$contains": None}, "where_document.$contains"),
        ({"$contains": "\ud800"}, "where_document.$contains"),
        ({"$and": []}, "where_document.$and"),
        ({"$and": [{"$contains": "x"}, {"$regex": ["x"]}]}, "where_document.$and[1].$regex"),
    ],
)
def test_where_document_refuses(where: Any, place: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        parse_where_document(where)
    assert raised.value.field == place


def nested(depth: int) -> Where:
    where: Where = {"a": 1}
    for _ in range(depth - 1):
        where = {"$and": [where]}
    return where


def test_depth_has_a_limit() -> None:
    limits = Limits(filter_depth=4)
    assert parse_where(nested(4), limits) is not None
    for depth in (5, 100_000):
        with pytest.raises(InvalidArgument, match="deeper than 4"):
            parse_where(nested(depth), limits)


def test_size_has_a_limit() -> None:
    limits = Limits(filter_nodes=4, filter_values=3)
    assert parse_where({"$or": [{"a": 1}] * 3}, limits) is not None
    with pytest.raises(InvalidArgument, match="more than 4"):
        parse_where({"$or": [{"a": 1}] * 4}, limits)
    assert parse_where({"a": {"$in": [1, 2, 3]}}, limits) is not None
    for key, values in (("a", [1, 2, 3, 4]), ("#id", ["a", "b", "c", "d"])):
        with pytest.raises(InvalidArgument, match="at most 3"):
            parse_where({key: {"$in": values}}, limits)


def test_check_size_refuses_a_deep_tree() -> None:
    tree: Filter = A1
    for _ in range(10_000):
        tree = Or((tree,))
    with pytest.raises(InvalidArgument, match="deeper"):
        check_size(tree, Limits())


@pytest.mark.parametrize(
    "node",
    [
        lambda value: Compare("a", Comparator.EQ, value),
        lambda value: Membership("a", (value,)),
        lambda value: ListContains("a", value),
        lambda value: And((Or((Compare("a", Comparator.EQ, value),)),)),
    ],
)
def test_trees_that_mean_different_things_differ(node: Callable[[Any], Filter]) -> None:
    assert node(1) != node(True)
    assert len({node(1), node(True), node("1"), node(0), node(False)}) == 5
    assert len({node(1), node(1)}) == 1
    assert repr(node(1)).count("types") == 0


def test_all_of() -> None:
    assert all_of() is None
    assert all_of(None, None) is None
    assert all_of(None, A1) == A1
    assert all_of(A1, None, TEXT) == And((A1, TEXT))


@QUICK
@given(where=wheres(), document=where_documents())
def test_generated_filters_parse(where: Where, document: Where) -> None:
    assert parse_where(where) is not None
    assert parse_where_document(document) is not None
    assert parse_where(None) is None
    assert parse_where_document(None) is None
