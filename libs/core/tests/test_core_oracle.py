"""The oracle on examples worked out by hand; what the other tests compare with must itself be right."""

from __future__ import annotations

import math
from typing import Any

import pytest

from shoal_core.schema import Analyzer, Bm25, Schema, SparseConfig
from shoal_testing.oracle import Hit, OracleCollection, Quarantined, distance, matches
from shoal_testing.oracle_filters import python_pattern
from shoal_testing.oracle_measures import measure_sparse, measure_text, terms_of

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


def test_a_batch_says_what_became_of_each_record() -> None:
    oracle = collection()
    outcomes = oracle.write(
        [
            ("add", "a", TWO, None, None, None),
            ("upsert", "a", TWO, None, None, None),
            ("delete", "a", None, None, None, None),
            ("update", "a", TWO, None, None, None),
            ("delete", "a", None, None, None, None),
            ("add", "a", TWO, None, None, None),
            ("update", "b", None, "new", None, None),
        ]
    )
    assert outcomes == ["existed", "updated", "deleted", "missing", "missing", "added", "updated"]
    assert [(row["id"], row["created_offset"]) for row in oracle.get()] == [("b", 2), ("a", 8)]


def test_delete_by_filter() -> None:
    oracle = OracleCollection("l2", 2)
    oracle.apply("add", ["a", "b", "c"], [ONE] * 3, metadatas=[{"k": 1}, {"k": 2}, {"k": 1.0}])
    assert oracle.delete_where(where={"k": 1}, limit=1) == 1
    assert [row["id"] for row in oracle.get()] == ["b", "c"]
    assert oracle.delete_where(where={"k": 7}) == 0
    assert oracle.delete_where(["b", "missing", "b"]) == 2
    assert ([row["id"] for row in oracle.get()], oracle.head_offset) == (["c"], 6)


def test_as_of_is_the_end_of_the_last_batch_at_or_below() -> None:
    oracle = OracleCollection("l2", 2, keep_history=True)
    oracle.apply("add", ["a", "b"], [ONE, TWO], documents=["old", None])
    oracle.apply("update", ["a", "b"], documents=["new", "new"])
    assert [oracle.at(offset).head_offset for offset in (0, 1, 2, 3, 4, 9)] == [0, 0, 2, 2, 4, 4]
    assert [row["document"] for row in oracle.at(3).get()] == ["old", None]
    assert oracle.at(1).count() == 0


def test_pages() -> None:
    oracle = OracleCollection("l2", 2)
    oracle.apply("add", list("abcde"), [ONE] * 5)
    ids = [[row["id"] for row in page] for page in oracle.pages(limit=2, offset=1)]
    assert ids == [["b", "c"], ["d", "e"]]
    assert oracle.pages(where={"k": 1}, limit=2) == []


RECORD = {
    "id": "a",
    "document": "a\nbé",
    "uri": "u",
    "metadata": {"i": 2**53 + 1, "f": 1.0, "s": "b", "t": True, "l": [1, 2], "v": {"indices": [], "values": []}},
}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"f": 1}, True),
        ({"i": 2.0**53}, False),
        ({"i": {"$gt": 2.0**53}}, True),
        ({"t": 1}, False),
        ({"f": {"$eq": True}}, False),
        ({"t": {"$gt": 0}}, False),
        ({"s": {"$gt": "a"}}, True),
        ({"s": {"$gt": "B"}}, True),
        ({"s": {"$lt": 5}}, False),
        ({"s": {"$ne": 5}}, True),
        ({"absent": {"$ne": 5}}, True),
        ({"absent": {"$nin": [5]}}, True),
        ({"absent": {"$gte": 5}}, False),
        ({"l": {"$contains": 1.0}}, True),
        ({"l": {"$contains": "1"}}, False),
        ({"l": {"$eq": 1}}, False),
        ({"l": {"$ne": 1}}, True),
        ({"f": {"$contains": 1.0}}, False),
        ({"f": {"$not_contains": 1.0}}, True),
        ({"v": {"$exists": True}}, True),
        ({"v": {"$not_contains": 1}}, True),
        ({"absent": {"$exists": False}}, True),
        ({"#uri": {"$gte": "u"}}, True),
        ({"#uri": {"$exists": False}}, False),
        ({"#id": {"$in": ["a", "b"]}}, True),
        ({"#document": {"$contains": ""}}, True),
        ({"#document": {"$regex": "a.b"}}, False),
        ({"#document": {"$regex": "^b"}}, False),
        ({"#document": {"$not_regex": "é$"}}, False),
        ({"$and": [{"f": 1}, {"$or": [{"t": True}, {"s": "x"}]}]}, True),
    ],
)
def test_filters(where: Any, expected: bool) -> None:
    assert matches(RECORD, where) is expected


def test_without_a_document_nothing_is_contained() -> None:
    record = RECORD | {"document": None}
    conditions = [("$contains", ""), ("$not_contains", ""), ("$regex", ""), ("$not_regex", "")]
    assert [matches(record, {"#document": {name: text}}) for name, text in conditions] == [False, True, False, True]


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("a$", "a\n", False),
        ("(?m)a$", "a\n", True),
        (r"\w$", "é", False),
        (r"[\w-]$", "a-", True),
        (r"\s", "\u00a0", False),
        (r"\bb", "éb", True),
        (r"[$]a\z", "$a", True),
        ("(?s)a.b", "a\nb", True),
    ],
)
def test_patterns_mean_what_re2_means(pattern: str, text: str, expected: bool) -> None:
    assert (python_pattern(pattern).search(text) is not None) is expected


# --- searches


@pytest.mark.parametrize(
    ("analyzer", "text", "expected"),
    [
        (
            Analyzer(language="none"),
            "The cat's state-of-the-art, a_1!",
            ["the", "cat", "s", "state", "of", "the", "art", "a_1"],
        ),
        (Analyzer("whitespace", "none"), "The cat's\nart!", ["the", "cat's", "art!"]),
        (Analyzer(stop_words=("the",)), "The runs running", ["run", "run"]),
        (Analyzer(language="none", token_length=3), "ab abcd abc", ["ab", "abc"]),
        (Analyzer(language="none"), " ", []),
    ],
)
def test_terms(analyzer: Analyzer, text: str, expected: list[str]) -> None:
    assert list(terms_of(text, analyzer)) == expected


def searched() -> OracleCollection:
    schema = Schema(analyzer=Analyzer(language="none"), sparse={"w": SparseConfig(idf=True)})
    oracle = OracleCollection("l2", 2, schema)
    rows: list[tuple[str, tuple[float, float], str | None, dict[str, Any]]] = [
        (
            "a",
            (0, 0),
            "x y",
            {"g": 1, "n": 3, "s": {"indices": [1, 2], "values": [1, 2]}, "w": {"indices": [1], "values": [1]}},
        ),
        (
            "b",
            (1, 0),
            "x x z",
            {"g": 1.0, "n": 1, "s": {"indices": [2], "values": [-1]}, "w": {"indices": [2], "values": [1]}},
        ),
        ("c", (2, 0), "z", {"g": "1", "s": {"indices": [], "values": []}, "w": {"indices": [2], "values": [3]}}),
        ("d", (0, 3), None, {"g": [1], "n": "x"}),
        ("e", (0, 4), "", {"n": True}),
    ]
    for record_id, vector, document, metadata in rows:
        oracle.write([("add", record_id, vector, document, None, metadata)])
    return oracle


def test_bm25_counts_documents_and_terms_of_the_whole_collection() -> None:
    oracle = searched()
    found = {key: one.value for key, one in measure_text(oracle.get(), "x x z", oracle.schema).items()}
    idf = math.log(1 + (4 - 2 + 0.5) / (2 + 0.5))  # x and z are in two of four documents, of 6 / 4 terms

    def part(occurrences: int, length: int) -> float:
        return idf * occurrences * 2.2 / (occurrences + 1.2 * (0.25 + 0.75 * length / 1.5))

    assert found == pytest.approx({"a": 1 - 2 * part(1, 2), "b": 1 - 2 * part(2, 3) - part(1, 3), "c": 1 - part(1, 1)})
    filtered = oracle.search(
        {"filter": {"n": 3}, "rank": {"$knn": {"query": "x", "key": "#document"}}, "select": {"keys": ["#score"]}}
    )
    assert filtered.rows == [{"id": "a", "score": pytest.approx(1 - part(1, 2)), "metadata": {}}]


def test_bm25_parameters() -> None:
    oracle = searched()
    flat = Schema(analyzer=Analyzer(language="none"), bm25=Bm25(k1=0.0, b=0.0))
    idf = math.log(1 + 2.5 / 2.5)
    assert {one.value for one in measure_text(oracle.get(), "x", flat).values()} == {1 - idf}


def test_sparse_vectors() -> None:
    records = searched().get()
    plain = measure_sparse(records, "s", {"indices": [2, 9], "values": [0.5, 1]}, idf=False)
    assert {key: one.value for key, one in plain.items()} == {"a": 0.0, "b": 1.5, "c": 1.0}
    weighted = measure_sparse(records, "w", {"indices": [1, 2], "values": [1, 1]}, idf=True)
    rare, common = math.log(1 + 2.5 / 1.5), math.log(1 + 1.5 / 2.5)
    assert {key: one.value for key, one in weighted.items()} == pytest.approx(
        {"a": 1 - rare, "b": 1 - common, "c": 1 - 3 * common}
    )


def leaf(**given: Any) -> Any:
    return {"$knn": {"query": [0, 0], **given}}


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        (leaf(), [("a", 0), ("b", 1), ("c", 4), ("d", 9), ("e", 16)]),
        (leaf(limit=2), [("a", 0), ("b", 1)]),
        (leaf(limit=2, return_rank=True, default=50), [("a", 0), ("b", 1)]),
        ({"$sum": [leaf(limit=2), leaf(limit=3)]}, [("a", 0), ("b", 2)]),
        ({"$sum": [leaf(limit=2, default=7), leaf(limit=3)]}, [("a", 0), ("b", 2), ("c", 11)]),
        ({"$sum": [leaf(limit=1, default=7), leaf(limit=2, default=5)]}, [("a", 0), ("b", 8)]),
        ({"$mul": [leaf(limit=2), {"$val": -1}]}, [("b", -1), ("a", 0)]),
        ({"$sub": {"left": {"$val": 1}, "right": leaf(limit=2)}}, [("b", 0), ("a", 1)]),
        ({"$div": {"left": {"$val": 1}, "right": leaf(limit=2)}}, [("b", 1), ("a", math.inf)]),
        ({"$log": leaf(limit=2)}, [("a", -math.inf), ("b", 0)]),
        ({"$exp": {"$abs": {"$mul": [leaf(limit=2), {"$val": -1}]}}}, [("a", 1), ("b", math.e)]),
        ({"$max": [leaf(limit=3), {"$val": 2}]}, [("a", 2), ("b", 2), ("c", 4)]),
        (
            {"$min": [{"$log": {"$sub": {"left": leaf(limit=2), "right": {"$val": 1}}}}, {"$val": 3}]},
            [("b", -math.inf), ("a", 3)],
        ),
        (
            {"$rrf": {"ranks": [leaf(limit=2, return_rank=True), leaf(limit=1, return_rank=True, default=10)], "k": 1}},
            [("a", -2), ("b", -(1 / 2 + 1 / 11))],
        ),
    ],
)
def test_expressions(rank: Any, expected: list[tuple[str, float]]) -> None:
    found = searched().search({"rank": rank, "select": {"keys": ["#score"]}})
    assert [(row["id"], row["score"]) for row in found.rows] == [(key, pytest.approx(score)) for key, score in expected]
    assert found.settled


def test_not_a_number_is_last() -> None:
    rank = {"$log": {"$sub": {"left": leaf(), "right": {"$val": 2}}}}
    found = searched().search({"rank": rank, "select": {"keys": ["#score"]}})
    assert [row["id"] for row in found.rows] == ["c", "d", "e", "a", "b"]
    assert [math.isnan(row["score"]) for row in found.rows] == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("keys", "aggregate", "expected"),
    [
        (["g"], {"$min_k": {"keys": ["#score"], "k": 1}}, ["a", "c", "d"]),
        (["g"], {"$max_k": {"keys": ["#score"], "k": 1}}, ["b", "c", "e"]),
        (["absent"], {"$min_k": {"keys": ["n"], "k": 3}}, ["a", "b", "e"]),
        (["absent"], {"$max_k": {"keys": ["n"], "k": 4}}, ["a", "b", "d", "e"]),
        (["absent"], {"$max_k": {"keys": ["g", "n"], "k": 2}}, ["a", "c"]),
    ],
)
def test_groups(keys: list[str], aggregate: Any, expected: list[str]) -> None:
    found = searched().search({"rank": leaf(), "group_by": {"keys": keys, "aggregate": aggregate}})
    assert [row["id"] for row in found.rows] == expected


def test_a_page_of_selected_columns() -> None:
    page = {"limit": {"offset": 1, "limit": 2}, "select": {"keys": ["#document", "n"]}}
    rows = [{"id": "b", "document": "x x z", "metadata": {"n": 1}}, {"id": "c", "document": "z", "metadata": {}}]
    assert searched().search({"rank": leaf(), **page}).rows == rows
    assert searched().search(page | {"filter": {"g": {"$ne": "x"}}}).rows == rows


def test_near_ties_are_not_settled() -> None:
    oracle = OracleCollection("cosine", 2)
    oracle.apply("add", ["a", "b", "c"], [(1, 1), (3, 3), (0, 1)])
    assert not oracle.search({"rank": {"$knn": {"query": [1, 2]}}}).settled
    assert not oracle.search({"rank": {"$knn": {"query": [1, 2], "limit": 1}}}).settled
    assert oracle.search({"rank": {"$knn": {"query": [1, 2]}}}, ["a", "c"]).settled
