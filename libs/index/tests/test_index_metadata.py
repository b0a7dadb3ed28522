"""Value indexes: exact counts and masks, the same whether built or merged, across every kind of value."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_core.evaluate import evaluate
from shoal_core.filters import Comparator, Compare, Filter, ListContains, Membership, Scalar
from shoal_core.records import ID, Kind, MetadataField
from shoal_index.metadata import Codes, ValueIndex, pack_indexes, unpack_indexes
from shoal_index.postings import Int64s
from shoal_storage.blocks import decode_block, encode_block
from shoal_testing.strategies import FLOATS, INFINITIES, INTS, STRINGS, examples

_POOLS: dict[Kind, list[Any]] = {
    Kind.INT: [*INTS],
    Kind.FLOAT: [*FLOATS, *INFINITIES, math.nan],
    Kind.BOOL: [True, False],
    Kind.STRING: [*STRINGS],
}
_LISTS = {Kind.INTS: Kind.INT, Kind.FLOATS: Kind.FLOAT, Kind.BOOLS: Kind.BOOL, Kind.STRINGS: Kind.STRING}
_KINDS = [*_POOLS, *_LISTS]
_COMPARATORS = [comparator for comparator in Comparator if comparator is not Comparator.NE]


@st.composite
def columns(draw: st.DrawFn, kind: Kind) -> pa.Array:
    pool = st.sampled_from(_POOLS[_LISTS.get(kind, kind)])
    value = st.lists(pool, max_size=4) if kind in _LISTS else pool
    return pa.array(draw(st.lists(st.none() | value, max_size=20)), MetadataField("k", kind).arrow_type)


def needles(kind: Kind) -> st.SearchStrategy[Any]:
    """Operands that may be compared with a column of the kind."""
    scalar = _LISTS.get(kind, kind)
    if scalar in (Kind.INT, Kind.FLOAT):
        return st.sampled_from([*INTS, *FLOATS, *INFINITIES])
    return st.sampled_from(_POOLS[scalar])


def true_mask(column: pa.Array, kind: Kind, tree: Filter) -> list[bool]:
    table = pa.table({ID: pa.array([str(n) for n in range(len(column))], pa.string()), f"m:{kind}:k": column})
    return [bool(found) for found in evaluate(tree, table)]


def same(one: ValueIndex, other: ValueIndex) -> bool:
    return all(a.equals(b) for a, b in zip(pack_indexes({"k": one}), pack_indexes({"k": other}), strict=True))


def check(index: ValueIndex, codes: Codes, expected: list[bool]) -> None:
    assert index.mask(codes).tolist() == expected
    assert index.count(codes) == sum(expected)
    assert 0 <= index.read_bytes(codes) <= 4 * len(index.postings.rows) + index.bitmaps.nbytes


@pytest.mark.parametrize("kind", _KINDS)
@examples(60)
@given(data=st.data())
def test_counts_and_masks_are_those_of_evaluate(kind: Kind, data: st.DataObject) -> None:
    column = data.draw(columns(kind))
    index = ValueIndex.build(column)
    value: Scalar = data.draw(needles(kind))
    if kind in _LISTS:
        codes = index.compared(Comparator.EQ, value)
        check(index, codes, true_mask(column, kind, ListContains("k", value)))
        return
    for comparator in _COMPARATORS if kind is not Kind.BOOL else [Comparator.EQ]:
        check(index, index.compared(comparator, value), true_mask(column, kind, Compare("k", comparator, value)))
    several = tuple(data.draw(st.lists(needles(kind), min_size=1, max_size=4)))
    check(index, index.among(several), true_mask(column, kind, Membership("k", several)))


@pytest.mark.parametrize("kind", _KINDS)
@examples(60)
@given(data=st.data())
def test_merged_is_what_would_be_built(kind: Kind, data: st.DataObject) -> None:
    parts = data.draw(st.lists(columns(kind), min_size=1, max_size=3))
    whole = pa.concat_arrays(parts)
    order = np.array(data.draw(st.permutations(range(len(whole)))), dtype=np.int64)
    kept = order[: data.draw(st.integers(0, len(whole)))]
    new_of_old = np.full(len(whole), -1, dtype=np.int64)
    new_of_old[kept] = np.arange(len(kept))
    starts = np.cumsum([0, *(len(part) for part in parts)])
    inputs = [
        (ValueIndex.build(part), new_of_old[start : start + len(part)])
        for part, start in zip(parts, starts, strict=False)
    ]
    assert same(ValueIndex.merge(inputs, len(kept)), ValueIndex.build(whole.take(pa.array(kept))))


@pytest.mark.parametrize("kind", _KINDS)
@examples(30)
@given(data=st.data())
def test_blocks_hold_all_of_an_index(kind: Kind, data: st.DataObject) -> None:
    column = data.draw(columns(kind))
    index = ValueIndex.build(column)
    tables = pack_indexes({"m:int:a:b": index, f"m:{kind}:": index})
    stored = [decode_block(encode_block(table).data) for table in tables]
    found = {name: back for table in stored for name, back in unpack_indexes(table, len(column))}
    assert sorted(found) == sorted(["m:int:a:b", f"m:{kind}:"])
    assert all(same(back, index) for back in found.values())


def many(rows: int) -> dict[str, Any]:
    random = np.random.default_rng(3)
    return {
        "int": random.integers(-50, 50, rows),
        "unique": random.permutation(rows),
        "skewed": np.minimum(random.geometric(0.3, rows), 20),
    }


@pytest.mark.parametrize("name", ["int", "unique", "skewed"])
def test_ranges_across_common_and_rare_values(name: str) -> None:
    values: Int64s = many(5_000)[name]
    index = ValueIndex.build(pa.array(values))
    assert (len(index.common) > 0) == (name == "skewed")
    for bound in (-51, -50, 0, 1, 3, 7, 20, 2_500, 4_999, 5_000):
        assert (index.mask(index.compared(Comparator.LT, bound)) == (values < bound)).all()
        assert (index.mask(index.compared(Comparator.GTE, bound)) == (values >= bound)).all()
    for needles in (range(2), range(-3, 9), range(0, 5_000, 3), [7_000, 8_000]):
        codes = index.among([int(needle) for needle in needles])
        check(index, codes, np.isin(values, list(needles)).tolist())


def test_a_bitmap_for_values_of_more_than_a_sixteenth() -> None:
    index = ValueIndex.build(pa.array([1] * 2 + [2] * 3 + [3] * 27))
    assert index.values.take(pa.array(index.common)).to_pylist() == [2, 3]
    assert index.bitmaps.shape == (2, 4)


def test_many_columns_share_blocks_of_bounded_size_and_are_not_copied() -> None:
    unique = ValueIndex.build(pa.array(np.arange(50_000)))
    indexes = {f"m:int:{n}": unique for n in range(12)}
    tables = pack_indexes(indexes)
    assert [table.num_rows for table in tables] == [1] * len(tables)
    assert 1 < len(tables) < len(indexes)
    data = encode_block(tables[0]).data
    _, index = next(unpack_indexes(decode_block(data), 50_000))
    assert data.address < index.postings.rows.ctypes.data < data.address + data.size


def test_a_column_in_chunks_is_one_column() -> None:
    whole = pa.array(["b", None, "a", "b"])
    assert same(ValueIndex.build(pa.chunked_array([whole[:1], whole[1:]])), ValueIndex.build(whole))
    lists = pa.array([["b"], None, [], ["a", "b", "a"]])
    assert same(ValueIndex.build(pa.chunked_array([lists[:2], lists[2:]])), ValueIndex.build(lists))


def test_bytes_read_are_those_of_bitmaps_and_postings() -> None:
    values: Int64s = np.array([1] * 800 + [2] * 100 + [3] * 60 + [4] * 40)
    index = ValueIndex.build(pa.array(values))
    assert index.common.tolist() == [0, 1]
    assert index.read_bytes(index.compared(Comparator.EQ, 1)) == 1_000 // 8
    assert index.read_bytes(index.compared(Comparator.EQ, 3)) == 60 * 4
    assert index.read_bytes(index.among([2, 3, 4])) == 1_000 // 8 + 100 * 4
    assert index.read_bytes(index.compared(Comparator.LT, 4)) == 40 * 4, "by way of the others"
    assert index.read_bytes(index.compared(Comparator.EQ, 9)) == 0
