"""Search by 8-bit codes answers what the exact scan answers, bit for bit: whatever the data, the codes only save work."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_index.vector import native
from shoal_index.vector.column import VectorChunk, VectorColumn
from shoal_index.vector.engine import SPACES, Mask, Vectors, exact_distances
from shoal_index.vector.exact import search_exact
from shoal_index.vector.scalar_codes import (
    CODED_ROWS,
    ScalarCodes,
    code_vectors,
    join_codes,
    prefers_codes,
    search_by_codes,
)
from shoal_testing.strategies import examples

DIMENSIONS = (1, 2, 15, 16, 17, 31, 32, 33, 63, 65, 100, 128, 385)
K = 10


def column_of(vectors: Vectors, cuts: list[int]) -> VectorColumn:
    parts = [part for part in np.split(vectors, sorted(cuts)) if len(part)]
    return VectorColumn([VectorChunk(part) for part in parts], np.arange(len(vectors), dtype=np.uint64)[::-1])


def codes_of(column: VectorColumn, space: str) -> list[ScalarCodes]:
    return [code_vectors(chunk.vectors, space) for chunk in column.chunks]


def check(column: VectorColumn, space: str, queries: Vectors, k: int, allowed: Mask | None = None) -> float:
    """That both answers are the nearest by the distances of all rows; the share of rows that were rescored."""
    codes = codes_of(column, space)
    true = search_exact(column, space, queries, k, allowed=allowed)
    names = np.arange(column.count) if allowed is None else np.flatnonzero(allowed)
    vectors = column.gather(names)
    measured = [exact_distances(space, query, vectors) for query in queries]
    order = [np.lexsort((column.ties[names], distances))[:k] for distances in measured]
    assert true.rows.tolist() == [row for each in order for row in names[each].tolist()]
    rescored = 0
    for threads in (1, 2):
        found, rows = search_by_codes(column, codes, space, queries, k, allowed=allowed, threads=threads)
        assert found.rows.tolist() == true.rows.tolist()
        assert found.distances.tobytes() == true.distances.tobytes()
        assert found.counts.tolist() == true.counts.tolist()
        rescored = int(rows.sum())
    return rescored / (len(queries) * column.count)


def far_apart(random: np.random.Generator, vectors: Vectors) -> Vectors:
    return vectors


def all_equal(random: np.random.Generator, vectors: Vectors) -> Vectors:
    return np.broadcast_to(vectors[:1], vectors.shape)


def duplicates(random: np.random.Generator, vectors: Vectors) -> Vectors:
    return vectors[random.integers(0, max(1, len(vectors) // 8), len(vectors))]


def small_integers(random: np.random.Generator, vectors: Vectors) -> Vectors:
    return np.rint(vectors)


def one_huge_component(random: np.random.Generator, vectors: Vectors) -> Vectors:
    grown = vectors.copy()
    grown[:, random.integers(vectors.shape[1])] *= np.float32(1e6)
    return grown


def close_together(random: np.random.Generator, vectors: Vectors) -> Vectors:
    return 1e3 + np.float32(1e-3) * vectors


def lengths_of_all_sizes(random: np.random.Generator, vectors: Vectors) -> Vectors:
    return np.ldexp(vectors, random.choice([-149, -140, -126, -100, -60, -30, 0, 20, 50], len(vectors))[:, None])


def subnormal(random: np.random.Generator, vectors: Vectors) -> Vectors:
    return np.ldexp(vectors, -140)


def long(random: np.random.Generator, vectors: Vectors) -> Vectors:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-6) * np.float32(8.9e18)


def some_zero(random: np.random.Generator, vectors: Vectors) -> Vectors:
    return np.where(random.random(len(vectors))[:, None] < 0.3, np.float32(0.0), vectors)


KINDS = (
    *(far_apart, all_equal, duplicates, small_integers, one_huge_component, close_together),
    *(lengths_of_all_sizes, subnormal, long, some_zero),
)


def made(kind: int, seed: int, rows: int, dimension: int, queries: int) -> tuple[Vectors, Vectors]:
    """Vectors of a kind and queries: of its own kind, some of them rows themselves, or zero."""
    random = np.random.default_rng(seed)
    drawn = random.standard_normal((rows + queries, dimension)).astype(np.float32)
    both = np.ascontiguousarray(KINDS[kind](random, drawn), dtype=np.float32)
    vectors, asked = both[:rows], both[rows:].copy()
    asked[::3] = vectors[random.integers(0, rows, len(asked[::3]))]
    if random.random() < 0.2:
        asked[-1] = 0.0
    return vectors, asked


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("kind", range(len(KINDS)), ids=[kind.__name__ for kind in KINDS])
def test_the_answer_is_that_of_the_exact_scan(kind: int, space: str, level: str) -> None:
    for dimension in DIMENSIONS:
        for queries in (1, 3, 9):
            vectors, asked = made(kind, dimension, 300, dimension, queries)
            check(column_of(vectors, [100, 117, 250]), space, asked, K)


@examples(150)
@given(
    kind=st.integers(0, len(KINDS) - 1),
    seed=st.integers(0, 2**32 - 1),
    space=st.sampled_from(SPACES),
    dimension=st.sampled_from(DIMENSIONS),
    rows=st.integers(1, 400),
    queries=st.integers(1, 20),
    k=st.integers(1, 450),
    exponents=st.tuples(st.sampled_from([0, 0, -40, -90, 15]), st.sampled_from([0, 0, -60, 20])),
    share=st.sampled_from([None, 0.0, 0.02, 0.5, 0.98]),
    cuts=st.lists(st.integers(1, 400), max_size=4),
)
def test_any_rows_chunks_masks_and_k(
    kind: int,
    seed: int,
    space: str,
    dimension: int,
    rows: int,
    queries: int,
    k: int,
    exponents: tuple[int, int],
    share: float | None,
    cuts: list[int],
) -> None:
    """Also where one side is so much longer than the other that most distances are equal in float32."""
    vectors, asked = made(kind, seed, rows, dimension, queries)
    if KINDS[kind] not in (long, lengths_of_all_sizes):  # which must not get longer
        vectors, asked = np.ldexp(vectors, exponents[0]), np.ldexp(asked, exponents[1])
    allowed = None if share is None else np.random.default_rng(seed).random(rows) < share
    check(column_of(vectors, [cut for cut in cuts if cut < rows]), space, asked, k, allowed)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("queries", [1, 6, 40])
def test_most_rows_are_ruled_out_by_their_codes(space: str, queries: int, level: str) -> None:
    """Also where threads share the rows out, which are enough for that."""
    random = np.random.default_rng(3)
    centres = random.standard_normal((50, 64))
    both = centres[random.integers(0, 50, 20_000 + queries)] + 0.5 * random.standard_normal((20_000 + queries, 64))
    vectors, asked = np.split(both.astype(np.float32), [20_000])
    share = check(column_of(vectors, [9_000, 16_000]), space, asked, K, random.random(20_000) < 0.9)
    assert share < 0.02


def test_an_error_of_the_codes_beyond_the_bounds_would_be_seen(level: str) -> None:
    """Bounds of nothing left out rule out what they should not: the test above does not pass by itself."""
    random = np.random.default_rng(5)
    vectors = (10 + random.standard_normal((5_000, 33))).astype(np.float32)
    column = column_of(vectors, [])
    [codes] = codes_of(column, "l2")
    codes.bounds[1] = 0.0
    asked = vectors[:20] + np.float32(0.01)
    found, _ = search_by_codes(column, [codes], "l2", asked, K, allowed=None)
    assert found.rows.tolist() != search_exact(column, "l2", asked, K, allowed=None).rows.tolist()


@pytest.mark.parametrize("space", SPACES)
def test_bounds_hold_what_codes_leave_out(space: str, level: str) -> None:
    for kind in range(len(KINDS)):
        vectors, _ = made(kind, 7, 200, 37, 1)
        codes = code_vectors(vectors, space)
        wide = vectors.astype(np.float64)
        lengths = np.sqrt((wide**2).sum(axis=1))
        told = lengths >= 1e-15 if space == "cosine" else np.ones(200, dtype=bool)
        unit = wide[told] / lengths[told, None] if space == "cosine" else wide
        stands = codes.codes[told, :37] * codes.bounds[0, told, None].astype(np.float64)
        left = np.sqrt(((unit - stands) ** 2).sum(axis=1))
        assert (codes.bounds[1, told] >= left).all()
        assert (codes.bounds[1, told] <= left * 1.00001 + 2e-9).all()
        np.testing.assert_allclose(codes.bounds[2, told], np.sqrt((stands**2).sum(axis=1)), rtol=1e-6)
        assert np.isinf(codes.bounds[1, ~told]).all()
        assert not codes.codes[:, 37:].any()


def test_joined_codes_are_those_of_the_joined_vectors() -> None:
    vectors, _ = made(0, 1, 100, 20, 1)
    whole = code_vectors(vectors, "l2")
    joined = join_codes([code_vectors(vectors[:30], "l2"), code_vectors(vectors[30:], "l2")])
    assert joined.codes.tobytes() == whole.codes.tobytes()
    assert joined.bounds.tobytes() == whole.bounds.tobytes()
    assert joined.size_bytes == 100 * (32 + 12)
    assert join_codes([whole]) is whole


def test_codes_of_other_vectors_are_refused() -> None:
    vectors, asked = made(0, 1, 100, 20, 1)
    column = column_of(vectors, [50])
    codes = codes_of(column, "l2")
    with pytest.raises(ValueError, match="other vectors"):
        search_by_codes(column, codes[:1], "l2", asked, K, allowed=None)
    with pytest.raises(ValueError, match="expected"):
        search_by_codes(column, [codes[0], code_vectors(vectors[51:], "l2")], "l2", asked, K, allowed=None)
    with pytest.raises(ValueError, match="expected"):
        native.scan_codes(
            column.handle("l2"),
            [part.codes for part in codes],
            [codes[0].bounds, codes[1].bounds[:2]],
            asked,
            K,
            allowed=None,
            threads=1,
        )


def test_codes_are_for_many_rows_and_few_queries(level: str) -> None:
    assert not prefers_codes(CODED_ROWS - 1, 1, K)
    assert prefers_codes(CODED_ROWS, 1, K)
    assert not prefers_codes(CODED_ROWS, 1, CODED_ROWS // 5)
    assert prefers_codes(CODED_ROWS, 100, K) == (level == "v2")


@pytest.mark.parametrize("space", SPACES)
def test_distances_that_are_equal_in_float32_go_by_their_ties(space: str, level: str) -> None:
    """Rows so short that no distance tells them apart, though products do; by themselves and in batches."""
    random = np.random.default_rng(8)
    vectors = np.ldexp(random.standard_normal((300, 5)).astype(np.float32), -40)
    asked = random.standard_normal((40, 5)).astype(np.float32)
    for queries in (1, 6, 40):
        check(column_of(vectors, [100]), space, asked[:queries], K)


def test_nothing_allowed_and_nothing_asked() -> None:
    vectors, asked = made(0, 1, 100, 20, 3)
    column = column_of(vectors, [50])
    for allowed, queries, k in ((np.zeros(100, dtype=bool), asked, K), (None, asked[:0], K), (None, asked, 0)):
        found, rescored = search_by_codes(column, codes_of(column, "l2"), "l2", queries, k, allowed=allowed)
        assert (len(found.rows), found.counts.tolist()) == (0, [0] * len(queries))
        assert rescored.tolist() == [0] * len(queries)
