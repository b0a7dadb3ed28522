"""Ranked lists and statistics of a shard survive the wire; malformed ones name the place."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from libs.wire.tests.wire_support import same
from shoal_core.consistency import ServedAt
from shoal_core.contracts import (
    DenseLeaf,
    Leaf,
    SearchRequest,
    SparseLeaf,
    SparseStatistics,
    Statistics,
    StatisticsAnswer,
    StatisticsRequest,
    Target,
    TextLeaf,
    TextStatistics,
)
from shoal_core.errors import InvalidArgument
from shoal_core.schema import Analyzer
from shoal_testing.strategies import QUICK
from shoal_wire.codec import leaves, reads
from shoal_wire.codec.leaves import (
    decode_asks,
    decode_leaves,
    decode_statistics_answer,
    encode_analyzer,
    encode_statistics_answer,
    leaves_size_bytes,
)
from shoal_wire.v1 import query_pb2 as pb

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
TERMS = st.lists(TEXT, max_size=4).map(tuple)
UINT32 = st.integers(0, 2**32 - 1)
UINT64 = st.integers(0, 2**64 - 1)
ANALYZERS = st.builds(Analyzer, TEXT, TEXT, UINT32, st.none() | TERMS)


def _array(values: st.SearchStrategy, dtype: npt.DTypeLike) -> st.SearchStrategy[np.ndarray]:
    return st.lists(values, max_size=4).map(lambda items: np.array(items, dtype))


INDICES = _array(UINT32, np.uint32)


def _weights(count: int) -> st.SearchStrategy[np.ndarray]:
    return st.lists(st.floats(), min_size=count, max_size=count).map(lambda items: np.array(items, np.float64))


LEAVES = st.one_of(
    st.builds(DenseLeaf, _array(st.floats(width=32), np.float32), UINT32),
    INDICES.flatmap(lambda found: st.builds(SparseLeaf, TEXT, st.just(found), _weights(len(found)), UINT32)),
    TERMS.flatmap(
        lambda terms: st.builds(
            TextLeaf, st.just(terms), _weights(len(terms)), UINT32, st.floats(), st.floats(), st.floats(), ANALYZERS
        )
    ),
)
ASKS = st.builds(TextStatistics, TERMS, ANALYZERS) | st.builds(SparseStatistics, TEXT, INDICES)
STATISTICS = st.builds(Statistics, UINT64, UINT64, _array(st.integers(0, 2**63 - 1), np.int64))
TARGET = Target("c", 3, "cosine", 1, 4)


@QUICK
@given(st.lists(LEAVES, max_size=3).map(tuple), st.booleans())
def test_searches_of_a_shard_survive(found: tuple[Leaf, ...], flag: bool) -> None:
    request = SearchRequest(TARGET, found, 2**60, exact=flag, explain=not flag)
    data = reads.encode_search_request(request).SerializeToString()
    assert same(reads.decode_search_request(pb.ShardSearchRequest.FromString(data)), request)


@QUICK
@given(st.lists(ASKS, max_size=3).map(tuple))
def test_asks_for_statistics_survive(asks: tuple[TextStatistics | SparseStatistics, ...]) -> None:
    request = StatisticsRequest(TARGET, asks, 2**60)
    data = reads.encode_statistics_request(request).SerializeToString()
    assert same(reads.decode_statistics_request(pb.ShardStatisticsRequest.FromString(data)), request)


@QUICK
@given(st.lists(STATISTICS, max_size=3).map(tuple))
def test_statistics_survive(found: tuple[Statistics, ...]) -> None:
    answer = StatisticsAnswer(found, ServedAt(2**60, 3))
    data = encode_statistics_answer(answer).SerializeToString()
    assert same(decode_statistics_answer(pb.ShardStatisticsAnswer.FromString(data)), answer)


def test_no_stop_words_are_not_those_of_the_language() -> None:
    assert [encode_analyzer(Analyzer(stop_words=words)).has_stop_words for words in (None, (), ("a",))] == [
        False,
        True,
        True,
    ]


def test_vectors_share_the_memory_of_their_message() -> None:
    data = pb.Leaf(dense=pb.Leaf.Dense(vector=np.arange(3, dtype=np.float32).tobytes()))
    (leaf,) = decode_leaves([data])
    assert isinstance(leaf, DenseLeaf)
    assert (leaf.vector.tolist(), leaf.vector.flags.owndata, leaf.vector.flags.writeable) == ([0, 1, 2], False, False)


def _leaf(**fields: object) -> pb.Leaf:
    return pb.Leaf(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("leaf", "field"),
    [
        (_leaf(k=3), "leaves[1]"),
        (_leaf(dense=pb.Leaf.Dense(vector=bytes(6))), "leaves[1].dense.vector"),
        (_leaf(sparse=pb.Leaf.Sparse(indices=bytes(5), values=bytes(8))), "leaves[1].sparse.indices"),
        (_leaf(sparse=pb.Leaf.Sparse(indices=bytes(4), values=bytes(4))), "leaves[1].sparse.values"),
        (_leaf(sparse=pb.Leaf.Sparse(indices=bytes(4), values=bytes(16))), "leaves[1].sparse.values"),
        (_leaf(text=pb.Leaf.Text(terms=["a"])), "leaves[1].text.weights"),
        (_leaf(text=pb.Leaf.Text(terms=["a"], weights=bytes(9))), "leaves[1].text.weights"),
    ],
)
def test_malformed_leaves_name_the_place(leaf: pb.Leaf, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode_leaves([pb.Leaf(dense=pb.Leaf.Dense()), leaf])
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("ask", "field"),
    [
        (pb.StatisticsAsk(), "asks[0]"),
        (pb.StatisticsAsk(sparse=pb.StatisticsAsk.Sparse(indices=bytes(3))), "asks[0].sparse.indices"),
    ],
)
def test_malformed_asks_name_the_place(ask: pb.StatisticsAsk, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode_asks([ask])
    assert caught.value.field == field


def test_frequencies_that_are_no_int64_are_refused() -> None:
    statistics = [pb.ShardStatisticsAnswer.Statistics(frequencies=bytes(12))]
    with pytest.raises(InvalidArgument, match="frequencies"):
        decode_statistics_answer(pb.ShardStatisticsAnswer(statistics=statistics))


def test_the_work_of_decoding_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaves, "MAX_LEAVES", 2)
    with pytest.raises(InvalidArgument, match="3 of them, at most 2"):
        decode_leaves([pb.Leaf(dense=pb.Leaf.Dense())] * 3)
    with pytest.raises(InvalidArgument, match="3 of them, at most 2"):
        decode_asks([pb.StatisticsAsk(text=pb.StatisticsAsk.Text())] * 3)


def test_sizes_are_those_of_the_vectors() -> None:
    text = TextLeaf(("a",), np.zeros(1), 1, 1.0, 1.0, 1.0, Analyzer())
    sparse = SparseLeaf("k", np.zeros(100, np.uint32), np.zeros(100), 1)
    assert leaves_size_bytes((DenseLeaf(np.zeros(1000, np.float32), 1),)) == 4000
    assert leaves_size_bytes((text, sparse)) < 2000


@QUICK
@given(st.binary(max_size=60), st.integers(0, 100), st.lists(LEAVES, max_size=2).map(tuple))
def test_torn_and_random_bytes_do_no_harm(noise: bytes, cut: int, found: tuple[Leaf, ...]) -> None:
    whole = reads.encode_search_request(SearchRequest(TARGET, found, 1)).SerializeToString()
    for data in (noise, whole[:cut] + noise):
        try:
            reads.decode_search_request(pb.ShardSearchRequest.FromString(data))
            reads.decode_statistics_request(pb.ShardStatisticsRequest.FromString(data))
        except (DecodeError, InvalidArgument):
            continue
