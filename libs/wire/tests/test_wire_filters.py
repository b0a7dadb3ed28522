"""Filter trees survive the wire; malformed ones name the place."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

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
)
from shoal_testing.strategies import QUICK
from shoal_wire.codec import filters
from shoal_wire.codec.filters import decode_filter, decoding_work, encode_filter, encoding_work
from shoal_wire.messages import LARGE_BYTES
from shoal_wire.v1 import types_pb2 as pb

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SCALARS = TEXT | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.booleans()
LEAVES = st.one_of(
    st.builds(Compare, TEXT, st.sampled_from(Comparator), SCALARS),
    st.builds(Membership, TEXT, st.lists(SCALARS, max_size=4).map(tuple), st.booleans()),
    st.builds(ListContains, TEXT, SCALARS, st.booleans()),
    st.builds(Exists, TEXT, st.booleans()),
    st.builds(IdIn, st.lists(TEXT, max_size=4).map(tuple), st.booleans()),
    st.builds(Text, st.sampled_from(TextMatcher), TEXT),
)


def _branches(children: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
    several = st.lists(children, min_size=1, max_size=3).map(tuple)
    return st.builds(And, several) | st.builds(Or, several)


def _types(tree: Filter) -> list[type]:
    """Types of all scalars: True == 1 == 1.0, but they are not the same filter."""
    match tree:
        case And(children) | Or(children):
            return [kind for child in children for kind in _types(child)]
        case Compare(_, _, value) | ListContains(_, value):
            return [type(value)]
        case Membership(_, values):
            return [type(value) for value in values]
    return []


@QUICK
@given(st.recursive(LEAVES, _branches, max_leaves=12))
def test_filters_survive(tree: Filter) -> None:
    decoded = decode_filter(pb.Filter.FromString(encode_filter(tree).SerializeToString()))
    assert decoded == tree
    assert _types(decoded) == _types(tree)


def _nested(depth: int) -> Filter:
    tree: Filter = Exists("a")
    for _ in range(depth):
        tree = And((tree,))
    return tree


def test_every_depth_the_model_allows_fits() -> None:
    tree = _nested(40)
    assert decode_filter(pb.Filter.FromString(encode_filter(tree).SerializeToString())) == tree


def test_deeper_nesting_than_protobuf_takes_is_refused_by_the_parser() -> None:
    message = pb.Filter()
    inner = message
    for _ in range(120):
        inner = inner.all_of.children.add()
    with pytest.raises(DecodeError):
        pb.Filter.FromString(message.SerializeToString())


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.Filter(), "where"),
        (pb.Filter(all_of=pb.Filter.List()), "where.$and"),
        (
            pb.Filter(any_of=pb.Filter.List(children=[pb.Filter(exists=pb.Filter.Exists()), pb.Filter()])),
            "where.$or[1]",
        ),
        (pb.Filter(compare=pb.Filter.Compare(key="a", comparator="$eq")), "where"),
        (
            pb.Filter(compare=pb.Filter.Compare(comparator="=", value=pb.Scalar(int_value=1))),
            "where.compare.comparator",
        ),
        (pb.Filter(membership=pb.Filter.Membership(key="a", values=[pb.Scalar()])), "where"),
        (pb.Filter(text=pb.Filter.Text(matcher="$like")), "where.text.matcher"),
    ],
)
def test_malformed_filters_name_the_place(message: pb.Filter, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode_filter(message)
    assert caught.value.field == field


def test_integers_beyond_64_bits_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="64-bit"):
        encode_filter(Compare("a", Comparator.EQ, 2**63))


def test_the_work_of_decoding_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "MAX_NODES_AND_VALUES", 5)
    with pytest.raises(InvalidArgument, match="more than 5"):
        decode_filter(encode_filter(Membership("a", (1, 2, 3, 4, 5))))
    with pytest.raises(InvalidArgument, match="more than 5"):
        decode_filter(encode_filter(Or(tuple(Exists("a") for _ in range(5)))))


def test_only_trees_of_many_values_go_to_a_thread() -> None:
    few: Filter = And(
        (Compare("a", Comparator.EQ, "x"), Or((Membership("b", (1, 2)), Exists("c"), Text(TextMatcher.REGEX, "x"))))
    )
    many: Filter = And((few, Membership("b", tuple(range(5_000)))))
    for tree, large in ((few, False), (many, True), (Or((Exists("a"),) * 1_000), True)):
        assert (encoding_work(tree) > LARGE_BYTES) is large
        assert (decoding_work(encode_filter(tree)) > LARGE_BYTES) is large
    assert encoding_work(None) == 0
