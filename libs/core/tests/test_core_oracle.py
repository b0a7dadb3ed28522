"""The oracle on examples worked out by hand; what the other tests compare with must itself be right."""

from __future__ import annotations

import math
from typing import Any

import pytest

from shoal_testing.oracle import Hit, OracleCollection, Quarantined, distance

ONE, TWO = (1.0, 0.0), (0.0, 2.0)


def collection(space: str = "l2") -> OracleCollection:
    oracle = OracleCollection(space, 2)
    oracle.apply("add", ["a", "b"], [ONE, TWO], ["doc a", None], ["u", None], [{"k": 1, "t": ["x"]}, None])
    return oracle


def test_the_first_of_duplicate_ids_wins() -> None:
    oracle = OracleCollection("l2", 2)
    oracle.apply("add", ["a", "a"], [ONE, TWO])
    [record] = oracle.get()
    assert (record["embedding"], record["created_offset"], oracle.head_offset) == (ONE, 1, 2)


def test_add_of_existing_and_update_and_delete_of_missing_do_nothing() -> None:
    oracle, untouched = collection(), collection()
    oracle.apply("add", ["a"], [TWO], ["other"])
    oracle.apply("update", ["missing"], [TWO])
    oracle.apply("delete", ["missing"])
    assert oracle.get() == untouched.get()
    assert oracle.head_offset == 5
    assert oracle.quarantined == []


@pytest.mark.parametrize("operation", ["update", "upsert"])
def test_merge(operation: str) -> None:
    oracle = collection()
    oracle.apply(operation, ["a"], [None], [None], [None], [{"k": "one", "t": None, "new": 2.5}])
    [record] = oracle.get(["a"])
    assert record == {
        "id": "a",
        "embedding": ONE,
        "document": "doc a",
        "uri": "u",
        "metadata": {"k": "one", "new": 2.5},
        "created_offset": 1,
        "updated_offset": 3,
    }


def test_delete_and_add_starts_anew() -> None:
    oracle = collection()
    oracle.apply("delete", ["a"])
    oracle.apply("upsert", ["a"], [TWO])
    assert [(record["id"], record["created_offset"], record["document"]) for record in oracle.get()] == [
        ("b", 2, None),
        ("a", 4, None),
    ]


def test_creating_without_an_embedding_is_quarantined() -> None:
    oracle = OracleCollection("l2", 2)
    assert oracle.apply("upsert", ["a", "a"], [None, ONE], ["lost", "kept"]) == [Quarantined(1, "a")]
    assert oracle.apply("add", ["b"]) == [Quarantined(3, "b")]
    assert [(record["id"], record["document"]) for record in oracle.get()] == [("a", "kept")]


def test_get_orders_and_cuts() -> None:
    oracle = collection()
    oracle.apply("update", ["a"], documents=["later"])
    assert [record["id"] for record in oracle.get(["b", "a", "b", "missing"])] == ["a", "b"]
    assert [record["id"] for record in oracle.get(limit=1, offset=1)] == ["b"]
    assert oracle.count({"k": {"$exists": False}}) == 1
    assert oracle.count({"k": 1}, {"$contains": "late"}) == 1


@pytest.mark.parametrize(
    ("space", "left", "right", "expected"),
    [
        ("l2", (1.0, 2.0), (4.0, 6.0), 25.0),
        ("cosine", (1.0, 0.0), (0.0, 2.0), 1.0),
        ("cosine", (3.0, 4.0), (6.0, 8.0), 0.0),
        ("cosine", (1.0, 0.0), (-2.0, 0.0), 2.0),
        ("cosine", (0.0, 0.0), (1.0, 0.0), 1.0),
        ("cosine", (0.0, 0.0), (0.0, 0.0), 1.0),
        ("cosine", (1e-30, 0.0), (1e-30, 1e-30), 1.0 - math.sqrt(0.5)),
        ("ip", (1.0, 2.0), (3.0, 4.0), -10.0),
    ],
)
def test_distances(space: str, left: Any, right: Any, expected: float) -> None:
    assert distance(space, left, right) == pytest.approx(expected, abs=1e-12)


def test_query_is_exact_filtered_and_breaks_ties_by_creation() -> None:
    oracle = OracleCollection("l2", 2)
    oracle.apply("add", ["far", "tie1", "tie2", "near"], [(9, 9), (1, 0), (0, 1), (0, 0)], metadatas=[{"k": 1}] * 4)
    assert oracle.query([(0, 0)], 3) == [[Hit("near", 0.0), Hit("tie1", 1.0), Hit("tie2", 1.0)]]
    assert oracle.query([(0, 0), (9, 9)], 1, ids=["tie2", "far"]) == [[Hit("tie2", 1.0)], [Hit("far", 0.0)]]
    assert oracle.query([(0, 0)], 9, where={"k": 2}) == [[]]
