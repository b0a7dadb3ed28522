"""The JSON form of searches: what it makes of each form, and that every refusal names its place."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest

from shoal_core.errors import InvalidArgument
from shoal_core.filters import Comparator, Compare
from shoal_core.limits import Limits
from shoal_core.rank_json import check_rank, parse_group_by, parse_rank, parse_search, placed_leaves
from shoal_core.ranking import (
    Abs,
    DenseQuery,
    Div,
    Exp,
    GroupBy,
    Knn,
    Log,
    Max,
    Min,
    Mul,
    Rank,
    Search,
    Select,
    SparseQuery,
    Sub,
    Sum,
    TextQuery,
    Val,
    with_leaves,
)
from shoal_core.scoring import rrf

KNN = {"$knn": {"query": [1, 2.5]}}
DENSE = Knn(DenseQuery(np.array([1, 2.5], np.float32)))
TEXT = {"$knn": {"query": "sea", "key": "#document", "return_rank": True}}


def plain(value: Any) -> Any:
    """Expressions compare by parts; arrays with their types."""
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.tolist())
    if is_dataclass(value):
        return (type(value), [plain(getattr(value, field.name)) for field in fields(value)])
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def refused(call: Any, *arguments: Any, **named: Any) -> tuple[str, str]:
    with pytest.raises(InvalidArgument) as caught:
        call(*arguments, **named)
    return caught.value.field, caught.value.message


# --- rank


@pytest.mark.parametrize(
    ("value", "rank"),
    [
        (KNN, DENSE),
        ({"$knn": {"query": np.array([1, 2.5])}}, DENSE),
        (
            {"$knn": {"query": [1, 2.5], "key": "#embedding", "limit": 7, "default": 2, "return_rank": True}},
            Knn(DENSE.query, "#embedding", 7, 2.0, True),
        ),
        ({"$knn": {"query": [1, 2.5], "default": None}}, DENSE),
        (TEXT, Knn(TextQuery("sea"), "#document", return_rank=True)),
        (
            {"$knn": {"query": {"#type": "sparse_vector", "indices": [0, 2**32 - 1], "values": [1, -0.5]}, "key": "s"}},
            Knn(SparseQuery(np.array([0, 2**32 - 1], np.uint32), np.array([1, -0.5], np.float32)), "s"),
        ),
        (
            {"$knn": {"query": {"indices": [], "values": []}, "key": "s"}},
            Knn(SparseQuery(np.array([], np.uint32), np.array([], np.float32)), "s"),
        ),
        ({"$sum": [KNN, {"$val": 2}]}, Sum((DENSE, Val(2.0)))),
        ({"$mul": [KNN]}, Mul((DENSE,))),
        ({"$max": [KNN, KNN]}, Max((DENSE, DENSE))),
        ({"$min": [KNN, KNN]}, Min((DENSE, DENSE))),
        ({"$sub": {"left": KNN, "right": {"$val": -1.5}}}, Sub(DENSE, Val(-1.5))),
        ({"$div": {"left": {"$val": 1}, "right": KNN}}, Div(Val(1.0), DENSE)),
        ({"$abs": KNN}, Abs(DENSE)),
        ({"$exp": KNN}, Exp(DENSE)),
        ({"$log": KNN}, Log(DENSE)),
        ({"$sum": [{"$val": math.inf}, KNN]}, Sum((Val(math.inf), DENSE))),
    ],
)
def test_each_form(value: Any, rank: Rank) -> None:
    assert plain(parse_rank(value)) == plain(rank)


def test_rrf_is_short_for_its_expression() -> None:
    ranked = Knn(TextQuery("sea"), "#document", return_rank=True)
    assert plain(parse_rank({"$rrf": {"ranks": [TEXT, TEXT]}})) == plain(rrf([ranked, ranked]))
    given = {"ranks": [TEXT, TEXT], "k": 10, "weights": [3, 1], "normalize": True}
    assert plain(parse_rank({"$rrf": given})) == plain(rrf([ranked, ranked], k=10, weights=[3, 1], normalize=True))
    shifted = {"$sum": [{"$rrf": {"ranks": [TEXT]}}, {"$val": 1}]}
    assert plain(parse_rank(shifted)) == plain(Sum((rrf([ranked]), Val(1.0))))


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ([], "rank"),
        ({}, "rank"),
        ({**KNN, "$val": 1}, "rank"),
        ({"$pow": [KNN]}, "rank.$pow"),
        ({"$sum": {}}, "rank.$sum"),
        ({"$sum": []}, "rank.$sum"),
        ({"$sum": [KNN, {"$knn": {"query": [1], "limit": 0}}]}, "rank.$sum[1].$knn.limit"),
        ({"$knn": {"query": [1], "limit": 10_001}}, "rank.$knn.limit"),
        ({"$knn": {"query": [1], "limit": True}}, "rank.$knn.limit"),
        ({"$knn": {"query": [1], "limit": 2.0}}, "rank.$knn.limit"),
        ({"$knn": {"query": [1], "k": 3}}, "rank.$knn.k"),
        ({"$knn": {"query": [1], "key": 3}}, "rank.$knn.key"),
        ({"$knn": {"query": [1], "return_rank": 1}}, "rank.$knn.return_rank"),
        ({"$knn": {"query": [1], "default": "x"}}, "rank.$knn.default"),
        ({"$knn": {"query": [1], "default": math.nan}}, "rank.$knn.default"),
        ({"$knn": {}}, "rank.$knn.query"),
        ({"$knn": {"query": []}}, "rank.$knn.query"),
        ({"$knn": {"query": [1, "x"]}}, "rank.$knn.query[1]"),
        ({"$knn": {"query": [1, True]}}, "rank.$knn.query[1]"),
        ({"$knn": {"query": [[1]]}}, "rank.$knn.query[0]"),
        ({"$knn": {"query": [1, 1e39]}}, "rank.$knn.query[1]"),
        ({"$knn": {"query": [math.nan]}}, "rank.$knn.query[0]"),
        ({"$knn": {"query": [10**400]}}, "rank.$knn.query"),
        ({"$knn": {"query": np.zeros((1, 2))}}, "rank.$knn.query"),
        ({"$knn": {"query": np.array(["a"])}}, "rank.$knn.query"),
        ({"$knn": {"query": [0] * 8193}}, "rank.$knn.query"),
        ({"$knn": {"query": [1], "key": "s"}}, "rank.$knn.key"),
        ({"$knn": {"query": "sea", "key": "s"}}, "rank.$knn.query"),
        ({"$knn": {"query": "\ud800", "key": "#document"}}, "rank.$knn.query"),
        ({"$knn": {"query": "é" * (1 << 19) + "x", "key": "#document"}}, "rank.$knn.query"),
        ({"$knn": {"query": {"indices": [1], "values": [1]}}}, "rank.$knn.key"),
        ({"$knn": {"query": {"indices": [1], "values": [1]}, "key": "$s"}}, "rank.$knn.key"),
        ({"$knn": {"query": {"indices": [1], "values": []}, "key": "s"}}, "rank.$knn.query"),
        ({"$knn": {"query": {"indices": [2, 2], "values": [1, 1]}, "key": "s"}}, "rank.$knn.query.indices"),
        ({"$knn": {"query": {"indices": [-1], "values": [1]}, "key": "s"}}, "rank.$knn.query.indices[0]"),
        ({"$knn": {"query": {"indices": [2**32], "values": [1]}, "key": "s"}}, "rank.$knn.query.indices[0]"),
        ({"$knn": {"query": {"indices": [1], "values": [1e39]}, "key": "s"}}, "rank.$knn.query.values[0]"),
        ({"$knn": {"query": {"#type": "x", "indices": [1], "values": [1]}, "key": "s"}}, "rank.$knn.query.#type"),
        ({"$val": "1"}, "rank.$val"),
        ({"$val": True}, "rank.$val"),
        ({"$val": math.nan}, "rank.$val"),
        ({"$sum": [KNN, {"$val": 10**400}]}, "rank.$sum[1].$val"),
        ({"$val": 1}, "rank"),
        ({"$sum": [{"$val": 1}, {"$val": 2}]}, "rank"),
        ({"$sub": {"left": KNN}}, "rank.$sub.right"),
        ({"$sub": [KNN, KNN]}, "rank.$sub"),
        ({"$div": {"left": KNN, "right": {"$abs": {"$log": 3}}}}, "rank.$div.right.$abs.$log"),
        ({"$rrf": {"ranks": [TEXT, KNN]}}, "rank.$rrf.ranks[1]"),
        ({"$rrf": {"ranks": [{"$knn": {"query": [1], "limit": 0}}]}}, "rank.$rrf.ranks[0].$knn.limit"),
        ({"$rrf": {"ranks": []}}, "rank.$rrf.ranks"),
        ({"$rrf": {"ranks": [TEXT], "k": "x"}}, "rank.$rrf.k"),
        ({"$rrf": {"ranks": [TEXT], "weights": ["x"]}}, "rank.$rrf.weights[0]"),
        ({"$rrf": {"ranks": [TEXT], "weights": [1, 2]}}, "rank.$rrf.weights"),
        ({"$rrf": {"ranks": [TEXT], "normalize": "yes"}}, "rank.$rrf.normalize"),
    ],
)
def test_a_refusal_names_its_place(value: Any, place: str) -> None:
    assert refused(parse_rank, value)[0] == place


def test_a_text_for_another_key_is_for_the_client_to_embed() -> None:
    assert "the client embeds it" in refused(parse_rank, {"$knn": {"query": "sea", "key": "sparse"}})[1]
    assert plain(parse_rank({"$knn": {"query": "sea"}})) == plain(Knn(TextQuery("sea"))), "a server may embed it"


def nested(depth: int) -> Any:
    return KNN if depth == 1 else {"$abs": nested(depth - 1)}


def test_bounds_of_expressions() -> None:
    parse_rank(nested(16))
    assert refused(parse_rank, nested(17))[0] == "rank" + ".$abs" * 16
    assert refused(parse_rank, nested(500))[0] == "rank" + ".$abs" * 16
    parse_rank({"$sum": [KNN] * 32 + [{"$val": 1}] * 223})
    assert refused(parse_rank, {"$sum": [KNN] * 33}) == ("rank", "33 times $knn, at most 32")
    assert refused(parse_rank, {"$sum": [{"$sum": [KNN] + [{"$val": 1}] * 253}, KNN]}) == (
        "rank",
        "more than 256 parts",
    )
    parse_rank({"$rrf": {"ranks": [TEXT] * 32}})
    small = Limits(rank_depth=2, rank_nodes=3, rank_leaves=2, query_results=5)
    assert refused(parse_rank, nested(3), small)[0] == "rank.$abs.$abs"
    assert refused(parse_rank, KNN, small)[0] == "rank.$knn.limit"


def test_trees_that_never_were_json_are_checked_too() -> None:
    limits = Limits()
    sparse = SparseQuery(np.array([2, 1], np.uint32), np.array([1, 1], np.float32))
    infinite = SparseQuery(np.array([1, 2], np.uint32), np.array([1, np.inf], np.float32))
    deep: Rank = DENSE
    for _ in range(16):
        deep = Abs(deep)
    cases: list[tuple[Rank, str]] = [
        (Sum(()), "r.$sum"),
        (Sub(Sum((DENSE, Min(()))), DENSE), "r.$sub.left.$sum[1].$min"),
        (Abs(Knn(DENSE.query, "k")), "r.$abs.$knn.key"),
        (Div(DENSE, Exp(Val(math.nan))), "r.$div.right.$exp.$val"),
        (Max((DENSE, Knn(sparse, "s"))), "r.$max[1].$knn.query.indices"),
        (Knn(infinite, "s"), "r.$knn.query.values"),
        (Knn(TextQuery("x"), "s"), "r.$knn.query"),
        (Knn(DENSE.query, limit=0), "r.$knn.limit"),
        (Log(Val(1.0)), "r"),
        (deep, "r"),
        (Sum((Val(0.0),) * 257), "r"),
    ]
    for rank, place in cases:
        assert refused(check_rank, rank, limits, "r")[0] == place
    check_rank(Sub(Val(1.0), DENSE), limits, "r")


def test_leaves_and_their_places() -> None:
    text = Knn(TextQuery("x"), "#document")
    rank = Sum((Div(DENSE, Abs(text)), DENSE))
    assert placed_leaves(rank, "r") == [
        (DENSE, "r.$sum[0].$div.left"),
        (text, "r.$sum[0].$div.right.$abs"),
        (DENSE, "r.$sum[1]"),
    ]


@pytest.mark.parametrize("name", ["$sum", "$mul", "$max", "$min", "$sub", "$div", "$abs", "$exp", "$log"])
def test_leaves_are_replaced_wherever_they_are(name: str) -> None:
    def form(leaf: Any) -> Any:
        if name in ("$sub", "$div"):
            return {name: {"left": leaf, "right": {name: {"left": {"$val": 1}, "right": leaf}}}}
        return {name: [{"$val": 1}, leaf]} if name in ("$sum", "$mul", "$max", "$min") else {name: leaf}

    replaced = with_leaves(parse_rank(form(TEXT)), lambda leaf: DENSE if leaf.return_rank else leaf)
    assert plain(replaced) == plain(parse_rank(form(KNN)))


# --- groups and searches


def test_group_by() -> None:
    value = {"keys": ["a", "#uri"], "aggregate": {"$min_k": {"keys": ["#score", "b"], "k": 3}}}
    assert parse_group_by(value) == GroupBy(("a", "#uri"), ("#score", "b"), 3)
    value = {"keys": ["a"], "aggregate": {"$max_k": {"keys": ["b"], "k": 1}}}
    assert parse_group_by(value) == GroupBy(("a",), ("b",), 1, largest=True)
    assert parse_group_by(None) is None


def test_a_whole_search() -> None:
    group_by = {"keys": ["a"], "aggregate": {"$min_k": {"keys": ["#score"], "k": 1}}}
    payload = {
        "filter": {"a": 1, "query_ids": ["x", "y"]},
        "rank": TEXT,
        "group_by": group_by,
        "limit": {"offset": 2, "limit": 3},
        "select": {"keys": ["#document", "#embedding", "#metadata", "#score", "b", "#uri", "b"]},
        "cursor": "c",
    }
    wanted = Search(
        Compare("a", Comparator.EQ, 1),
        ("x", "y"),
        Knn(TextQuery("sea"), "#document", return_rank=True),
        GroupBy(("a",), ("#score",), 1),
        3,
        2,
        Select(True, True, True, True, ("b", "#uri")),
        "c",
    )
    assert plain(parse_search(payload)) == plain(wanted)


@pytest.mark.parametrize(
    "payload",
    [
        {},
        dict.fromkeys(("filter", "rank", "group_by", "limit", "select", "cursor")),
        {"filter": {}, "rank": {}, "group_by": {}, "limit": {}, "select": {}},
        {"limit": {"offset": None, "limit": None}, "select": {"keys": []}},
    ],
)
def test_what_is_left_out_is_as_by_default(payload: Any) -> None:
    assert parse_search(payload) == Search()


def test_ids_beside_a_condition_on_a_key_of_that_name() -> None:
    assert parse_search({"where": {"query_ids": []}}) == Search(ids=())
    assert parse_search({"where": {"query_ids": "x"}}) == Search(Compare("query_ids", Comparator.EQ, "x"))
    assert parse_search({"where": {"query_ids": {"$eq": "x"}}}) == Search(Compare("query_ids", Comparator.EQ, "x"))


@pytest.mark.parametrize(
    ("payload", "place"),
    [
        ([], "searches[2]"),
        ({"ranks": {}}, "searches[2].ranks"),
        ({"filter": {"a": 1}, "where": {"a": 1}}, "searches[2].where"),
        ({"filter": [1]}, "searches[2].filter"),
        ({"filter": {"$and": [{"a": 1}, {"a": {"$eq": []}}]}}, "searches[2].filter.$and[1].a.$eq"),
        ({"where": {"a": None}}, "searches[2].where.a"),
        ({"where": {"query_ids": [1]}}, "searches[2].where.query_ids"),
        ({"rank": []}, "searches[2].rank"),
        ({"rank": {"$sum": [KNN, {"$knn": {"query": [1], "limit": 0}}]}}, "searches[2].rank.$sum[1].$knn.limit"),
        ({"limit": 3}, "searches[2].limit"),
        ({"limit": {"limit": -1}}, "searches[2].limit.limit"),
        ({"limit": {"limit": 100_001}}, "searches[2].limit.limit"),
        ({"limit": {"offset": -1}}, "searches[2].limit.offset"),
        ({"select": ["#score"]}, "searches[2].select"),
        ({"select": {"keys": ["#scores"]}}, "searches[2].select.keys"),
        ({"select": {"keys": [1]}}, "searches[2].select.keys"),
        ({"select": {"keys": ["x" * 257]}}, "searches[2].select.keys"),
        ({"select": {"keys": [str(n) for n in range(65)]}}, "searches[2].select.keys"),
        ({"cursor": 3}, "searches[2].cursor"),
        ({"group_by": {"keys": []}}, "searches[2].group_by.aggregate"),
        ({"group_by": {"keys": ["a"], "aggregate": {"$avg": {}}}}, "searches[2].group_by.aggregate"),
        (
            {"group_by": {"keys": ["a"], "aggregate": {"$min_k": {"keys": ["b"], "k": 0}}}},
            "searches[2].group_by.aggregate.$min_k.k",
        ),
        (
            {"group_by": {"keys": ["#score"], "aggregate": {"$min_k": {"keys": ["b"], "k": 1}}}},
            "searches[2].group_by.keys[0]",
        ),
        ({"group_by": {"keys": [], "aggregate": {"$min_k": {"keys": ["b"], "k": 1}}}}, "searches[2].group_by.keys"),
        (
            {"group_by": {"keys": ["a"], "aggregate": {"$min_k": {"keys": ["#x"], "k": 1}}}},
            "searches[2].group_by.aggregate.keys[0]",
        ),
    ],
)
def test_a_refused_search_names_its_place(payload: Any, place: str) -> None:
    assert refused(parse_search, payload, place="searches[2]")[0] == place
