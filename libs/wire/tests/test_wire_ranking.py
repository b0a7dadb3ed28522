"""Rank expressions and searches survive the wire; malformed and hostile ones name the place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from libs.wire.tests.wire_support import same
from shoal_core.errors import InvalidArgument
from shoal_core.filters import Exists, Membership
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
    leaves_of,
)
from shoal_testing.strategies import QUICK
from shoal_wire.codec import filters, ranking
from shoal_wire.codec.ranking import decode_rank, decode_searches, encode_rank, encode_search
from shoal_wire.v1 import shoal_pb2 as pb
from shoal_wire.v1 import types_pb2

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
FLOAT32 = st.floats(width=32)
UINT32 = st.integers(0, 2**32 - 1)
UINT64 = st.integers(0, 2**64 - 1)


def _sparse(pairs: list[tuple[int, float]]) -> SparseQuery:
    indices, values = [index for index, _ in pairs], [value for _, value in pairs]
    return SparseQuery(np.array(indices, np.uint32), np.array(values, np.float32))


QUERIES = st.one_of(
    st.lists(FLOAT32, max_size=4).map(lambda values: DenseQuery(np.array(values, np.float32))),
    st.lists(st.tuples(UINT32, FLOAT32), max_size=4).map(_sparse),
    st.builds(TextQuery, TEXT),
)
LEAVES = st.builds(Knn, QUERIES, TEXT, UINT32, st.none() | st.floats(), st.booleans()) | st.builds(Val, st.floats())


def _branches(children: st.SearchStrategy[Rank]) -> st.SearchStrategy[Rank]:
    several = st.lists(children, min_size=1, max_size=3).map(tuple)
    return st.one_of(
        *(st.builds(kind, several) for kind in (Sum, Mul, Max, Min)),
        *(st.builds(kind, children, children) for kind in (Sub, Div)),
        *(st.builds(kind, children) for kind in (Abs, Exp, Log)),
    )


RANKS = st.recursive(LEAVES, _branches, max_leaves=12)
NAMES = st.lists(TEXT, max_size=3).map(tuple)
SEARCHES = st.builds(
    Search,
    where=st.none() | st.builds(Exists, TEXT, st.booleans()),
    ids=st.none() | NAMES,
    rank=st.none() | RANKS,
    group_by=st.none() | st.builds(GroupBy, NAMES, NAMES, UINT32, st.booleans()),
    limit=st.none() | UINT64,
    offset=UINT64,
    select=st.builds(Select, st.booleans(), st.booleans(), st.booleans(), st.booleans(), NAMES),
    cursor=TEXT,
)


@QUICK
@given(RANKS)
def test_expressions_survive(rank: Rank) -> None:
    assert same(decode_rank(pb.Rank.FromString(encode_rank(rank).SerializeToString())), rank)


@QUICK
@given(st.lists(SEARCHES, max_size=3))
def test_searches_survive(searches: list[Search]) -> None:
    request = pb.SearchRequest(searches=[encode_search(search) for search in searches])
    assert same(decode_searches(pb.SearchRequest.FromString(request.SerializeToString()).searches), searches)


def test_a_search_that_says_nothing_is_the_default() -> None:
    assert decode_searches([pb.Search()]) == [Search()]


@pytest.mark.parametrize("vector", [np.arange(4, dtype=np.float32)[::2], np.arange(3, dtype=np.float64)])
def test_vectors_are_packed_whatever_their_layout(vector: np.ndarray) -> None:
    decoded = decode_rank(encode_rank(Knn(DenseQuery(vector))))
    assert same(decoded, Knn(DenseQuery(np.ascontiguousarray(vector, np.float32))))


def test_vectors_of_another_shape_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="shape"):
        encode_rank(Knn(DenseQuery(np.zeros((1, 3), np.float32))))


# --- depth and size

NEST: list[Callable[[Rank], Rank]] = [lambda rank: Sum((rank,)), lambda rank: Sub(Val(1), rank), Abs]


def _nested(nest: Callable[[Rank], Rank], depth: int) -> Rank:
    rank: Rank = Knn(SparseQuery(np.zeros(1, np.uint32), np.zeros(1, np.float32)), "k")
    for _ in range(depth - 1):
        rank = nest(rank)
    return rank


@pytest.mark.parametrize("nest", NEST)
def test_the_deepest_expression_fits_into_a_request(nest: Callable[[Rank], Rank]) -> None:
    search = Search(rank=_nested(nest, ranking.MAX_DEPTH))
    data = pb.SearchRequest(searches=[encode_search(search)]).SerializeToString()
    assert same(decode_searches(pb.SearchRequest.FromString(data).searches), [search])


@pytest.mark.parametrize("nest", NEST)
@pytest.mark.parametrize("depth", [ranking.MAX_DEPTH + 1, 5000])
def test_a_deeper_expression_is_not_encoded(nest: Callable[[Rank], Rank], depth: int) -> None:
    with pytest.raises(InvalidArgument, match=f"deeper than {ranking.MAX_DEPTH}"):
        encode_rank(_nested(nest, depth))


def test_a_deeper_message_is_refused() -> None:
    message = pb.Rank()
    inner = message
    for _ in range(ranking.MAX_DEPTH):
        inner = inner.abs
    inner.val = 1
    with pytest.raises(InvalidArgument, match=f"deeper than {ranking.MAX_DEPTH}"):
        decode_rank(pb.Rank.FromString(message.SerializeToString()))


def test_deeper_nesting_than_protobuf_takes_is_refused_by_the_parser() -> None:
    message = pb.SearchRequest()
    inner = message.searches.add().rank
    for _ in range(120):
        inner = inner.sum.children.add()
    with pytest.raises(DecodeError):
        pb.SearchRequest.FromString(message.SerializeToString())


def test_the_work_of_a_request_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "MAX_NODES", 4)
    five = Sum((Val(1), Val(2), Val(3), Val(4)))
    with pytest.raises(InvalidArgument, match="more than 4 nodes"):
        encode_rank(five)
    with pytest.raises(InvalidArgument, match="more than 4 nodes") as caught:
        decode_searches([pb.Search(rank=pb.Rank(abs=pb.Rank(val=1))) for _ in range(3)])
    assert caught.value.field == "searches[2].rank", "the bound is that of all searches together"


def test_an_expression_that_shares_its_parts_is_as_large_as_it_is_written_out() -> None:
    rank: Rank = Val(1)
    for _ in range(30):
        rank = Sum((rank, rank))
    with pytest.raises(InvalidArgument, match="nodes"):
        encode_rank(rank)


def test_filters_of_all_searches_share_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "MAX_NODES_AND_VALUES", 5)
    search = encode_search(Search(where=Membership("a", (1, 2))))
    assert len(decode_searches([search])) == 1
    with pytest.raises(InvalidArgument, match="more than 5"):
        decode_searches([search, search])


def test_the_number_of_searches_is_bounded() -> None:
    assert len(decode_searches([pb.Search()] * ranking.MAX_SEARCHES)) == ranking.MAX_SEARCHES
    with pytest.raises(InvalidArgument, match="at most 1000") as caught:
        decode_searches([pb.Search()] * (ranking.MAX_SEARCHES + 1))
    assert caught.value.field == "searches"


# --- malformed messages


def _knn(**fields: object) -> pb.Rank:
    return pb.Rank(knn=pb.Rank.Knn(**fields))  # type: ignore[arg-type]


def _uneven(indices: int, values: int) -> pb.Rank:
    return _knn(sparse=pb.Rank.Knn.Sparse(indices=bytes(indices), values=bytes(values)))


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.Rank(), "rank"),
        (pb.Rank(sum=pb.Rank.List()), "rank.$sum"),
        (pb.Rank(max=pb.Rank.List(children=[pb.Rank(val=1), pb.Rank()])), "rank.$max[1]"),
        (pb.Rank(sub=pb.Rank.Pair(left=pb.Rank(val=1))), "rank.$sub.right"),
        (pb.Rank(div=pb.Rank.Pair(right=pb.Rank(val=1))), "rank.$div.left"),
        (pb.Rank(log=pb.Rank(exp=pb.Rank())), "rank.$log.$exp"),
        (_knn(key="k"), "rank.$knn.query"),
        (_knn(dense=bytes(5)), "rank.$knn.dense"),
        (_uneven(3, 4), "rank.$knn.sparse.indices"),
        (_uneven(4, 3), "rank.$knn.sparse.values"),
        (_uneven(4, 8), "rank.$knn.sparse.values"),
        (pb.Rank(mul=pb.Rank.List(children=[_uneven(8, 4)])), "rank.$mul[0].$knn.sparse.values"),
    ],
)
def test_malformed_expressions_name_the_place(message: pb.Rank, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode_rank(message)
    assert caught.value.field == field
    with pytest.raises(InvalidArgument) as caught:
        decode_searches([pb.Search(), pb.Search(rank=message)])
    assert caught.value.field == f"searches[1].{field}"


def test_malformed_filters_of_searches_name_the_place() -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode_searches([pb.Search(where=types_pb2.Filter())])
    assert caught.value.field == "searches[0].where"


BYTES = st.binary(max_size=12)
HOSTILE_LEAVES = st.one_of(
    st.builds(pb.Rank),
    st.builds(pb.Rank, val=st.floats()),
    BYTES.map(lambda data: _knn(dense=data)),
    st.tuples(BYTES, BYTES).map(lambda pair: _knn(sparse=pb.Rank.Knn.Sparse(indices=pair[0], values=pair[1]))),
    TEXT.map(lambda text: _knn(text=text, limit=7)),
)


def _hostile_branches(children: st.SearchStrategy[pb.Rank]) -> st.SearchStrategy[pb.Rank]:
    lists = st.lists(children, max_size=3).map(lambda items: pb.Rank.List(children=items))
    pairs = st.builds(pb.Rank.Pair, left=st.none() | children, right=st.none() | children)
    return st.one_of(st.builds(pb.Rank, sum=lists), st.builds(pb.Rank, div=pairs), st.builds(pb.Rank, exp=children))


@QUICK
@given(st.recursive(HOSTILE_LEAVES, _hostile_branches, max_leaves=8))
def test_hostile_expressions_raise_invalid_argument_or_decode_to_sound_ones(message: pb.Rank) -> None:
    try:
        rank = decode_rank(message)
    except InvalidArgument:
        return
    assert same(decode_rank(encode_rank(rank)), rank)
    for leaf in leaves_of(rank):
        if isinstance(leaf.query, SparseQuery):
            assert leaf.query.indices.shape == leaf.query.values.shape


@QUICK
@given(st.binary(max_size=60), st.integers(0, 200), SEARCHES)
def test_torn_and_random_bytes_do_no_harm(noise: bytes, cut: int, search: Search) -> None:
    whole = pb.SearchRequest(searches=[encode_search(search)]).SerializeToString()
    for data in (noise, whole[:cut] + noise):
        try:
            decode_searches(pb.SearchRequest.FromString(data).searches)
        except (DecodeError, InvalidArgument):
            continue
