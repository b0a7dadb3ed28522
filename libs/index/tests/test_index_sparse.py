"""Inverted lists of sparse vectors: plain arithmetic on Python numbers gives the same rows and, to the bit, the same measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_core.records import SPARSE_TYPE
from shoal_index import sparse
from shoal_index.sparse import SparseIndex, count_sparse, scan_sparse
from shoal_storage.blocks import decode_block, encode_block
from shoal_testing.strategies import examples

Vector = Mapping[int, float]
SOME = examples(150)

_INDICES = (0, 1, 2, 3, 7, 4_294_967_295)
_NUMBERS = (0.0, -0.0, 1.0, -1.0, 0.5, 0.1, -0.1, 1e-30, 3e38, -3e38)


def numbers() -> st.SearchStrategy[float]:
    return st.sampled_from(_NUMBERS) | st.floats(-4, 4, width=32)


def vectors() -> st.SearchStrategy[dict[int, float]]:
    return st.dictionaries(st.sampled_from(_INDICES), numbers(), max_size=6)


def columns(max_size: int = 12) -> st.SearchStrategy[list[dict[int, float] | None]]:
    return st.lists(st.none() | vectors(), max_size=max_size)


def to_column(rows: Sequence[Vector | None]) -> pa.Array:
    plain = [None if row is None else {"indices": sorted(row), "values": [row[i] for i in sorted(row)]} for row in rows]
    return pa.array(plain, SPARSE_TYPE)


def to_query(query: Vector) -> tuple[np.ndarray, np.ndarray]:
    return np.array(sorted(query), np.uint32), np.array([query[i] for i in sorted(query)], np.float64)


def measure(row: Vector, query: Vector) -> float:
    """One product after another in ascending order of index, in float64."""
    total = 0.0
    for index in sorted(row.keys() & query.keys()):
        total += query[index] * float(np.float32(row[index]))
    return 1.0 - total


def expected(
    rows: Sequence[Vector | None], query: Vector, k: int, allowed: Sequence[bool], ties: Sequence[int]
) -> list[tuple[int, float]]:
    found = [(n, measure(row, query)) for n, row in enumerate(rows) if row is not None and allowed[n]]
    return sorted(found, key=lambda pair: (pair[1], ties[pair[0]]))[:k]


def found(index: SparseIndex, query: Vector, k: int, allowed: Any, ties: Sequence[int]) -> list[tuple[int, float]]:
    rows, measures = index.search(*to_query(query), k, allowed=allowed, ties=np.array(ties, np.uint64))
    assert [rows.dtype.name, measures.dtype.name] == ["int64", "float64"]
    return list(zip(rows.tolist(), measures.tolist(), strict=True))


def assert_same(left: SparseIndex, right: SparseIndex) -> None:
    for name, column in left.to_table().to_pydict().items():
        assert right.to_table().column(name).to_pylist() == column, name
    assert left.to_table().schema == right.to_table().schema


@pytest.fixture(params=["looked up", "read", "pruned"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the sizes: rows are looked up in the lists, lists are read through, or both after pruning."""
    if request.param == "pruned":
        monkeypatch.setattr(sparse, "_WORTH_PRUNING", -1)
        monkeypatch.setattr(sparse, "BLOCK", 2)
    monkeypatch.setattr(sparse, "_LOOKUP", {"looked up": 0.0, "read": 1e9, "pruned": 1}[request.param])


@SOME
@given(rows=columns(), query=vectors(), k=st.integers(1, 15), data=st.data())
def test_finds_what_plain_arithmetic_finds(
    rows: list[dict[int, float] | None], query: Vector, k: int, data: st.DataObject
) -> None:
    allowed = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    ties = data.draw(st.permutations(range(len(rows))))
    index = SparseIndex.build(to_column(rows))
    everything = [True] * len(rows)
    assert found(index, query, k, None, ties) == expected(rows, query, k, everything, ties)
    assert found(index, query, k, np.array(allowed, bool), ties) == expected(rows, query, k, allowed, ties)
    measures, present = scan_sparse(to_column(rows), *to_query(query))
    assert present.tolist() == [row is not None for row in rows]
    assert [measures[n] for n, row in enumerate(rows) if row is not None] == [
        measure(row, query) for row in rows if row is not None
    ]


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("scale", [1.0, 1e-17, 1e-70, 1e30])
def test_finds_the_same_in_every_way(seed: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    rows: list[Vector | None] = [None if random.random() < 0.05 else _random_vector(random, 1.0) for _ in range(400)]
    rows[50:60] = [rows[3]] * 10  # equal vectors, and one without a common index
    rows[70] = {}
    ties = random.permutation(400).tolist()
    index = SparseIndex.build(to_column(rows))
    for k in (1, 10, 60, 390, 1000):
        query = {i: scale * value for i, value in _random_vector(random, 0.5).items()}
        allowed = random.random(400) < random.choice([0.03, 0.5, 1.0])
        got = found(index, query, k, allowed, ties)
        assert got == expected(rows, query, k, allowed.tolist(), ties)


def _random_vector(random: np.random.Generator, positive: float) -> dict[int, float]:
    """Frequent and rare dimensions; a share of at least ``positive`` of the values above zero."""
    dimensions = np.unique((random.pareto(0.6, random.integers(1, 40)) * 3).astype(np.int64) % 500)
    values = random.exponential(1.0, len(dimensions)).astype(np.float32)
    values[random.random(len(dimensions)) < (1 - positive) / 2] *= -1
    return dict(zip(dimensions.tolist(), values.tolist(), strict=True))


def test_few_rows_are_left_in_the_race(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long list of a small weight is not read: few rows are looked up in it."""
    random = np.random.default_rng(3)
    rows = [{0: float(np.float32(random.random())), 1 + n % 500: 1.0, 1000: 0.1} for n in range(20_000)]
    index = SparseIndex.build(to_column(rows))
    query = {0: 0.01, 7: 3.0, 8: 2.0, 1000: 0.5}
    looked_up: list[int] = []
    original = sparse._Term.gains_of

    def gains_of(term: Any, named: Any, scale: float = 1.0) -> Any:
        looked_up.append(len(named))
        return original(term, named, scale)

    def gains(term: Any, scale: float = 1.0) -> Any:
        assert len(term.rows) < 1000, "a long list was read"
        return np.multiply(term.values, term.weight * scale, dtype=np.float64)

    monkeypatch.setattr(sparse, "_WORTH_PRUNING", 1000)
    monkeypatch.setattr(sparse._Term, "gains_of", gains_of)
    monkeypatch.setattr(sparse._Term, "gains", gains)
    got = found(index, query, 10, None, range(20_000))
    assert got == expected(rows, query, 10, [True] * 20_000, range(20_000))
    assert looked_up
    assert max(looked_up) <= 40


@SOME
@given(parts=st.lists(columns(6), min_size=1, max_size=3), data=st.data())
def test_a_merged_index_is_the_one_that_would_be_built(
    parts: list[list[dict[int, float] | None]], data: st.DataObject
) -> None:
    places = [(part, row) for part, rows in enumerate(parts) for row in range(len(rows))]
    kept = data.draw(st.lists(st.sampled_from(places), unique=True)) if places else []
    # Rows of one part keep their order
    order = iter({part: iter(sorted(row for p, row in kept if p == part)) for part in range(len(parts))}.items())
    queues = dict(order)
    merged = [(part, next(queues[part])) for part, _ in kept]
    new_row = [np.full(len(rows), -1, np.int64) for rows in parts]
    for number, (part, row) in enumerate(merged):
        new_row[part][row] = number
    indexes = [SparseIndex.build(to_column(rows)) for rows in parts]
    got = SparseIndex.merge(list(zip(indexes, new_row, strict=True)), len(merged))
    assert_same(got, SparseIndex.build(to_column([parts[part][row] for part, row in merged])))


@SOME
@given(rows=columns(), query=vectors(), data=st.data())
def test_statistics(rows: list[dict[int, float] | None], query: Vector, data: st.DataObject) -> None:
    live = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))), bool)
    indices, _ = to_query(query)
    column = to_column(rows)
    index = SparseIndex.build(column)
    for mask, got in (
        (np.ones(len(rows), bool), index.statistics(indices, None)),
        (live, index.statistics(indices, live)),
        (live, count_sparse(column, indices, live)),
    ):
        counted = [row for n, row in enumerate(rows) if row is not None and mask[n]]
        assert (got.records, got.length) == (len(counted), 0)
        assert got.frequencies.dtype == np.int64
        assert got.frequencies.tolist() == [sum(i in row for row in counted) for i in sorted(query)]


@SOME
@given(rows=columns(), cut=st.integers(0, 12))
def test_columns_may_be_cut_and_chunked(rows: list[dict[int, float] | None], cut: int) -> None:
    whole = to_column([{9: 1.0}, *rows, None])
    sliced = whole.slice(1, len(rows))
    chunked = pa.chunked_array([sliced.slice(0, cut), sliced.slice(cut)], SPARSE_TYPE)
    for column in (sliced, chunked):
        assert_same(SparseIndex.build(column), SparseIndex.build(to_column(rows)))
        query = to_query({9: 2.0, 1: 1.0})
        for left, right in zip(scan_sparse(column, *query), scan_sparse(to_column(rows), *query), strict=True):
            np.testing.assert_array_equal(left, right)


@given(rows=columns())
@SOME
def test_is_read_from_its_table_without_copying(rows: list[dict[int, float] | None]) -> None:
    index = SparseIndex.build(to_column(rows))
    assert_same(SparseIndex.of_table(index.to_table()), index)
    table = decode_block(encode_block(index.to_table()).data)
    read = SparseIndex.of_table(table)
    assert_same(read, index)
    assert read.present.dtype == bool
    start = table.column("values").chunk(0).values.buffers()[1].address
    assert len(read.values) == 0 or read.values.ctypes.data == start


def test_blocks_bound_their_values() -> None:
    random = np.random.default_rng(0)
    rows = [
        {0: float(value), 1: 1.0} if n % 3 else {1: 2.0}
        for n, value in enumerate(random.random(1000, dtype=np.float32))
    ]
    index = SparseIndex.build(to_column(rows))
    assert index.blocks.tolist() == [0, 6, 14]
    values = index.values[: index.postings.starts[1]]
    blocks = [values[at : at + 128] for at in range(0, len(values), 128)]
    assert index.greatest[:6].tolist() == [block.max() for block in blocks]
    assert index.least[:6].tolist() == [block.min() for block in blocks]


def test_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "_WORTH_PRUNING", 0)
    index = SparseIndex.build(to_column([{1: 0.5, 2: 1.0}] * 50))
    assert found(index, {1: 1.0, 2: 2.0}, 0, None, range(50)) == []
    assert index.size_bytes == sum(column.chunk(0).values.nbytes for column in index.to_table().columns)
