"""Rank expressions against a reading of their meaning over dictionaries, and the best of groups against plain Python."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_core.errors import InvalidArgument
from shoal_core.ranking import (
    Abs,
    Div,
    Exp,
    GroupBy,
    Knn,
    Log,
    Max,
    Min,
    Mul,
    Rank,
    Sub,
    Sum,
    TextQuery,
    Val,
    leaves_of,
)
from shoal_core.scoring import LeafHits, best_first, best_of_groups, rrf, score
from shoal_testing.strategies import FLOATS, INTS, STRINGS, examples, kind_of, to_row_table

NAN, INF = math.nan, math.inf
RECORDS = 6
Hits = Sequence[tuple[int, float]]
Scores = dict[int, float]


def leaf(default: float | None = None, return_rank: bool = False) -> Knn:
    return Knn(TextQuery("x"), "#document", 16, default, return_rank)


def scores(rank: Rank, *hits: Hits) -> Scores:
    """What `score` makes of hits given as pairs."""
    found = [LeafHits(np.array([k for k, _ in part], np.int64), np.array([m for _, m in part], float)) for part in hits]
    scored = score(rank, found)
    assert scored.keys.dtype == np.int64
    assert scored.scores.dtype == np.float64
    assert scored.keys.tolist() == sorted(set(scored.keys.tolist()))
    return dict(zip(scored.keys.tolist(), scored.scores.tolist(), strict=True))


# --- the oracle: a part of an expression is (what it supports, its default)


def divide(left: float, right: float) -> float:
    if right != 0:
        return left / right
    if left == 0 or left != left:
        return NAN
    return math.copysign(INF, left) * math.copysign(1.0, right)


def quiet(function: Callable[[float], float], beyond: float) -> Callable[[float], float]:
    def called(value: float) -> float:
        try:
            return function(value)
        except OverflowError:
            return beyond
        except ValueError:
            return -INF if value == 0 else NAN

    return called


def pick(choose: Callable[[float, float], float]) -> Callable[[float, float], float]:
    def picked(left: float, right: float) -> float:
        if left != left or right != right:
            return right if left != left else left
        return choose(left, right)

    return picked


def signed(value: float) -> tuple[float, float]:
    """Zeros in order of their signs."""
    return value, math.copysign(1.0, value)


BINARY: dict[type, Callable[[float, float], float]] = {
    Sum: lambda left, right: left + right,
    Mul: lambda left, right: left * right,
    Max: pick(lambda left, right: max(left, right, key=signed)),
    Min: pick(lambda left, right: min(left, right, key=signed)),
    Sub: lambda left, right: left - right,
    Div: divide,
}
UNARY: dict[type, Callable[[float], float]] = {Abs: abs, Exp: quiet(math.exp, INF), Log: quiet(math.log, INF)}


def expected(rank: Rank, hits: list[Hits]) -> tuple[Scores, float | None]:
    """Takes the leaves' hits from the front of the list."""
    match rank:
        case Knn():
            found = hits.pop(0)
            values = {key: float(at) if rank.return_rank else measure for at, (key, measure) in enumerate(found)}
            return values, rank.default
        case Val(value):
            return {}, value
        case Sum(children) | Mul(children) | Max(children) | Min(children):
            return functools.reduce(
                functools.partial(joined, BINARY[type(rank)]), [expected(c, hits) for c in children]
            )
        case Sub(left, right) | Div(left, right):
            return joined(BINARY[type(rank)], expected(left, hits), expected(right, hits))
        case Abs(child) | Exp(child) | Log(child):
            function = UNARY[type(rank)]
            values, default = expected(child, hits)
            return {key: function(value) for key, value in values.items()}, (
                None if default is None else function(default)
            )


def joined(
    op: Callable[[float, float], float], left: tuple[Scores, float | None], right: tuple[Scores, float | None]
) -> tuple[Scores, float | None]:
    (ours, our_default), (theirs, their_default) = left, right
    found = {}
    for key in {*ours, *theirs}:
        one, other = ours.get(key, our_default), theirs.get(key, their_default)
        if one is not None and other is not None:
            found[key] = op(one, other)
    if our_default is None or their_default is None:
        # A default stands in where the other side has a record; it adds none of its own side's.
        keep = set(found)
        if our_default is not None:
            keep &= set(theirs)
        if their_default is not None:
            keep &= set(ours)
        return {key: found[key] for key in keep}, None
    return found, op(our_default, their_default)


NUMBERS = st.sampled_from([0.0, -0.0, 1.0, -2.5, 0.5, 1e308, -1e308, 710.0, INF, -INF, NAN]) | st.floats(-10, 10)
LEAVES = st.builds(leaf, st.none() | NUMBERS, st.booleans())


def grown(children: st.SearchStrategy[Rank]) -> st.SearchStrategy[Rank]:
    several = st.lists(children, min_size=1, max_size=4).map(tuple)
    lists: list[st.SearchStrategy[Rank]] = [st.builds(kind, several) for kind in (Sum, Mul, Max, Min)]
    pairs: list[st.SearchStrategy[Rank]] = [st.builds(kind, children, children) for kind in (Sub, Div)]
    single: list[st.SearchStrategy[Rank]] = [st.builds(kind, children) for kind in (Abs, Exp, Log)]
    return st.one_of(*lists, *pairs, *single)


RANKS = st.recursive(LEAVES | LEAVES | st.builds(Val, NUMBERS), grown, max_leaves=8)


@examples(300)
@given(st.data())
def test_any_expression_scores_as_dictionaries_say(data: st.DataObject) -> None:
    rank = data.draw(RANKS)
    one = st.lists(st.tuples(st.integers(0, RECORDS - 1), NUMBERS), max_size=RECORDS, unique_by=lambda hit: hit[0])
    hits = [data.draw(one) for _ in leaves_of(rank)]
    found, wanted = scores(rank, *hits), expected(rank, [*hits])[0]
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-14)
        assert math.copysign(1, found[key]) == math.copysign(1, value) or value != value


# --- cases by hand


def test_without_defaults_only_records_of_all_lists_are_scored() -> None:
    assert scores(Sum((leaf(), leaf())), [(0, 1.0), (1, 2.0)], [(1, 10.0), (2, 20.0)]) == {1: 12.0}


def test_a_default_stands_in_where_the_other_has_a_record() -> None:
    hits: tuple[Hits, Hits] = ([(0, 1.0), (1, 2.0)], [(1, 10.0), (2, 20.0)])
    assert scores(Sum((leaf(5.0), leaf())), *hits) == {1: 12.0, 2: 25.0}
    assert scores(Sum((leaf(), leaf(5.0))), *hits) == {0: 6.0, 1: 12.0}
    assert scores(Sum((leaf(5.0), leaf(7.0))), *hits) == {0: 8.0, 1: 12.0, 2: 25.0}
    assert scores(Sum((leaf(5.0), leaf(7.0), leaf())), *hits, [(3, 100.0)]) == {3: 112.0}


def test_positions_are_of_the_list_whatever_the_measures() -> None:
    assert scores(leaf(return_rank=True), [(3, -1.0), (0, 5.0), (7, 5.0)]) == {3: 0.0, 0: 1.0, 7: 2.0}


def test_constants_support_nothing() -> None:
    assert scores(Sum((Val(1.0), Val(2.0)))) == {}
    assert scores(Sum((Val(1.0), leaf())), []) == {}
    assert scores(Sub(Val(1.0), leaf()), [(4, 0.25)]) == {4: 0.75}


def test_not_a_number_comes_last_and_equals_are_in_order_of_creation() -> None:
    created = np.array([9, 3, 5, 1, 2], np.uint64)
    assert best_first(np.array([NAN, 1.0, -INF, 1.0, NAN]), created).tolist() == [2, 3, 1, 4, 0]
    assert best_first(np.array([0.0, -0.0]), np.array([2, 1], np.uint64)).tolist() == [1, 0]


# --- reciprocal rank fusion


def test_rrf_is_the_negated_sum_of_weighted_reciprocals() -> None:
    positions = [[(0, 0.1), (1, 0.2)], [(1, 0.3), (2, 0.4)]]
    rank = rrf([leaf(None, True), leaf(1000.0, True)], weights=[2.0, 1.0])
    assert scores(rank, *positions) == pytest.approx({0: -(2 / 60 + 1 / 1060), 1: -(2 / 61 + 1 / 60)})
    assert scores(rrf([leaf(None, True)] * 2, k=1.0), *positions) == {1: -(1 / 2 + 1 / 1)}
    shared = rrf([leaf(None, True)] * 2, weights=[3, 1], normalize=True)
    assert scores(shared, *positions) == pytest.approx({1: -(0.75 / 61 + 0.25 / 60)})


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"ranks": []}, "rrf.ranks"),
        ({"ranks": [leaf(None, True), Sum((leaf(),))]}, "rrf.ranks[1]"),
        ({"ranks": [leaf(None, True)], "k": 0.0}, "rrf.k"),
        ({"ranks": [leaf(None, True)], "k": NAN}, "rrf.k"),
        ({"ranks": [leaf(None, True)], "weights": [1.0, 1.0]}, "rrf.weights"),
        ({"ranks": [leaf(None, True)], "weights": [-1.0]}, "rrf.weights[0]"),
        ({"ranks": [leaf(None, True)], "weights": [NAN]}, "rrf.weights[0]"),
        ({"ranks": [leaf(None, True)], "weights": [0.0], "normalize": True}, "rrf.weights"),
    ],
)
def test_what_rrf_refuses(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        rrf(**arguments)
    assert caught.value.field == field


# --- groups

VALUES = st.none() | st.sampled_from(
    [*INTS, *FLOATS, *STRINGS, True, False, [1], ["x"], {"indices": [1], "values": [0.5]}]
)
ORDER = {"bool": 0, "int": 1, "float": 1, "str": 2}


def comparable(value: Any) -> tuple[int, Any] | None:
    kind = None if value is None else str(kind_of(value))
    return (ORDER[kind], value) if kind in ORDER else None


def best_by_hand(records: Sequence[dict[str, Any]], by: GroupBy, scored: Sequence[float]) -> list[bool]:
    """Kept or not, comparing one record with another."""

    def before(one: int, other: int) -> bool:
        for key in by.aggregate:
            ours, theirs = (
                (None if scored[at] != scored[at] else (1, scored[at]))
                if key == "#score"
                else comparable(records[at].get(key))
                for at in (one, other)
            )
            if ours == theirs:
                continue
            if ours is None or theirs is None:
                return theirs is None
            return (ours > theirs) == by.largest
        first, second = (
            (scored[at] != scored[at], 0 if scored[at] != scored[at] else scored[at], at) for at in (one, other)
        )
        return first < second

    def group(at: int) -> list[Any]:
        return [comparable(records[at].get(key)) for key in by.keys]

    numbers = range(len(records))
    return [sum(before(other, at) for other in numbers if group(other) == group(at)) < by.k for at in numbers]


@examples(300)
@given(
    records=st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys("abc", VALUES)), max_size=10),
    keys=st.lists(st.sampled_from("abc"), min_size=1, max_size=2),
    aggregate=st.lists(st.sampled_from(["a", "b", "c", "#score"]), min_size=1, max_size=3),
    k=st.integers(1, 3),
    largest=st.booleans(),
    scored=st.lists(st.sampled_from([0.0, -0.0, 1.0, INF, -INF, NAN]), min_size=10, max_size=10),
)
def test_the_best_of_each_group(
    records: list[dict[str, Any]], keys: list[str], aggregate: list[str], k: int, largest: bool, scored: list[float]
) -> None:
    by = GroupBy(tuple(keys), tuple(aggregate), k, largest)
    rows = table(records)
    kept = best_of_groups(rows, by, np.array(scored[: len(records)]), rows.column("created_offset").to_numpy())
    assert kept.tolist() == best_by_hand(records, by, scored)


def table(records: Sequence[dict[str, Any]]) -> pa.Table:
    full = [
        {"id": str(at), "embedding": None, "document": None, "uri": None, "created_offset": at, "updated_offset": at}
        | {"metadata": {key: value for key, value in record.items() if value is not None}}
        for at, record in enumerate(records, 1)
    ]
    return to_row_table(full, 2)


def test_numbers_group_and_order_by_value_of_any_type_and_size() -> None:
    values: list[Any] = [2**53 + 1, 2.0**53, 2**53, 1, 1.0, True, "1", 2**63 - 1, 2.0**63]
    rows = table([{"v": value} for value in values])
    created = np.arange(len(values), dtype=np.uint64)
    zeros = np.zeros(len(values))
    one_each = best_of_groups(rows, GroupBy(("v",), ("#score",), 1), zeros, created)
    assert list(itertools.compress(values, one_each)) == [2**53 + 1, 2.0**53, 1, True, "1", 2**63 - 1, 2.0**63]
    order = [
        int(np.flatnonzero(best_of_groups(rows, GroupBy(("none",), ("v",), k), zeros, created)).sum())
        for k in range(1, len(values) + 1)
    ]
    assert np.diff([0, *order]).tolist() == [5, 3, 4, 1, 2, 0, 7, 8, 6]
