"""Filters against the oracle, on rows with and without the columns that they name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_core.errors import InvalidArgument
from shoal_core.evaluate import columns_of, evaluate
from shoal_core.filters import Text, TextMatcher, parse_where, parse_where_document
from shoal_core.records import concat_rows
from shoal_testing.oracle import matches, matches_document
from shoal_testing.strategies import (
    FLOATS,
    INFINITIES,
    INTS,
    QUICK,
    STRINGS,
    Record,
    Where,
    records,
    to_row_table,
    where_documents,
    wheres,
)

DIMENSION = 2
rows_of = records(DIMENSION, nan=True)


def mask_of(table: pa.Table, where: Where) -> list[bool]:
    tree = parse_where(where)
    assert tree is not None
    mask = evaluate(tree, table)
    assert mask.dtype == np.bool_
    assert mask.shape == (table.num_rows,)
    return mask.tolist()


@QUICK
@given(rows=rows_of, where=wheres())
def test_where_agrees_with_the_oracle(rows: list[Record], where: Where) -> None:
    assert mask_of(to_row_table(rows, DIMENSION), where) == [matches(row, where) for row in rows]


@QUICK
@given(rows=rows_of, where=where_documents())
def test_where_document_agrees_with_the_oracle(rows: list[Record], where: Where) -> None:
    tree = parse_where_document(where)
    assert tree is not None
    mask = evaluate(tree, to_row_table(rows, DIMENSION))
    assert mask.tolist() == [matches_document(row, where) for row in rows]


@QUICK
@given(parts=st.lists(rows_of, min_size=1, max_size=3), where=wheres(), start=st.integers(0, 12), data=st.data())
def test_chunks_and_slices_give_the_same_mask(
    parts: list[list[Record]], where: Where, start: int, data: st.DataObject
) -> None:
    rows = [row for part in parts for row in part]
    length = data.draw(st.integers(0, len(rows)))
    table = concat_rows([to_row_table(part, DIMENSION) for part in parts])
    expected = [matches(row, where) for row in rows]
    assert mask_of(table, where) == expected
    assert mask_of(table.slice(start, length), where) == expected[start : start + length]
    assert mask_of(table.combine_chunks().slice(start, length), where) == expected[start : start + length]


@QUICK
@given(rows=rows_of, where=wheres())
def test_columns_of_suffices(rows: list[Record], where: Where) -> None:
    table = to_row_table(rows, DIMENSION)
    tree = parse_where(where)
    assert tree is not None
    names = columns_of(tree, table.schema)
    assert names <= set(table.column_names)
    assert evaluate(tree, table.select(sorted(names))).tolist() == evaluate(tree, table).tolist()


def row(**metadata: Any) -> Record:
    return {
        "id": "a",
        "embedding": (0.0, 0.0),
        "document": None,
        "uri": None,
        "metadata": metadata,
        "created_offset": 1,
        "updated_offset": 1,
    }


@pytest.mark.parametrize(
    ("value", "operand", "expected"),
    [
        (1, {"$eq": 1.0}, True),
        (1.0, {"$eq": 1}, True),
        (True, {"$eq": 1}, False),
        (1, {"$eq": True}, False),
        ([1], {"$eq": 1}, False),
        ([1], {"$ne": 1}, True),
        (2**53 + 1, {"$eq": float(2**53)}, False),
        (2**53 + 1, {"$gt": float(2**53)}, True),
        (float(2**53), {"$lt": 2**53 + 1}, True),
        (float(2**53), {"$gte": 2**53 + 1}, False),
        (float(2**53), {"$in": [2**53 + 1]}, False),
        (2**63 - 1, {"$lt": 2.0**63}, True),
        (2**63 - 1, {"$eq": 2.0**63}, False),
        (2.0**63, {"$gt": 2**63 - 1}, True),
        (-(2**63), {"$gte": -(2.0**63)}, True),
        (-(2**63), {"$gt": float("-inf")}, True),
        (float("inf"), {"$gt": 2**63 - 1}, True),
        (float("inf"), {"$eq": float("inf")}, True),
        (float("nan"), {"$gte": 0}, False),
        (float("nan"), {"$ne": 0}, True),
        (-0.0, {"$in": [0]}, True),
        (-0.0, {"$eq": 0}, True),
        ([-0.0], {"$contains": 0}, True),
        ([1.0, 2.0], {"$contains": 2}, True),
        ([True], {"$contains": 1}, False),
        ([], {"$exists": True}, True),
        ([], {"$not_contains": "x"}, True),
        ("x", {"$contains": "x"}, False),
        ("\uffff", {"$lt": "\U0001f600"}, True),
        ("Z", {"$lt": "a"}, True),
        ("1", {"$gt": 0}, False),
    ],
)
def test_one_value(value: Any, operand: Where, expected: bool) -> None:
    assert mask_of(to_row_table([row(k=value)], DIMENSION), {"k": operand}) == [expected]
    assert matches(row(k=value), {"k": operand}) == expected


SCALARS: list[Any] = [*INTS, *FLOATS, *INFINITIES, float("nan"), *STRINGS, True, False]
OPERANDS: list[Any] = [value for value in SCALARS if value == value]  # a filter refuses NaN


@pytest.mark.parametrize("operator", ["$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin"])
def test_all_pairs_of_scalars(operator: str) -> None:
    rows = [row(k=value) for value in SCALARS]
    table = to_row_table(rows, DIMENSION)
    for operand in OPERANDS:
        if isinstance(operand, bool) and operator in ("$gt", "$gte", "$lt", "$lte"):
            continue
        where = {"k": {operator: [operand] if operator in ("$in", "$nin") else operand}}
        assert mask_of(table, where) == [matches(row, where) for row in rows]


@pytest.mark.parametrize("operator", ["$contains", "$not_contains", "$eq"])
def test_all_pairs_of_lists_and_elements(operator: str) -> None:
    rows = [row(k=[value]) for value in SCALARS] + [row(k=[0, 1]), row(k=["x", "x"]), row(k=[]), row(k=1), row()]
    table = to_row_table(rows, DIMENSION)
    for operand in OPERANDS:
        where = {"k": {operator: operand}}
        assert mask_of(table, where) == [matches(row, where) for row in rows]


def test_a_key_of_several_kinds_matches_each_by_its_own() -> None:
    values: list[Any] = [1, 1.0, True, "1", [1], None]
    rows = [row() if value is None else row(k=value) for value in values]
    table = to_row_table(rows, DIMENSION)
    assert mask_of(table, {"k": 1}) == [True, True, False, False, False, False]
    assert mask_of(table, {"k": {"$ne": 1}}) == [False, False, True, True, True, True]
    assert mask_of(table, {"k": {"$exists": True}}) == [True] * 5 + [False]


@pytest.mark.parametrize("matcher", [TextMatcher.REGEX, TextMatcher.NOT_REGEX])
@pytest.mark.parametrize("documents", [[], [None], ["a"]])
def test_a_malformed_regular_expression_is_a_typed_error(matcher: TextMatcher, documents: list[str | None]) -> None:
    rows = [row() | {"document": document} for document in documents]
    with pytest.raises(InvalidArgument, match="where_document"):
        evaluate(Text(matcher, "(unclosed"), to_row_table(rows, DIMENSION))
