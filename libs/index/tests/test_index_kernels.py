"""The compiled kernels: what they answer is what float64 arithmetic answers, in every dimension; and what they say of themselves."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from shoal_core.errors import FailedPrecondition, Unavailable
from shoal_index.vector import kernels, native
from shoal_index.vector.column import VectorChunk, VectorColumn
from shoal_index.vector.engine import SPACES, Mask, Neighbours, Vectors, exact_distances
from shoal_index.vector.exact import search_exact
from shoal_index.vector.hnsw import Graph, HnswIndex
from shoal_index.vector.hnsw_build import GraphBuilder

COMMON = (1, 3, 31, 64, 128, 384, 768, 1024, 1536, 3072, 4096)
TAILS = (*range(2, 41), 127, 129, 383, 385)
ROWS, QUERIES, K = 60, 7, 10

Floats = npt.NDArray[np.float64]


def column_of(vectors: Vectors, *, even: bool = False) -> VectorColumn:
    """The vectors in pieces, as a segment of several blocks has them, or a tail, whose pieces are of any size."""
    parts = (
        [vectors[start : start + 16] for start in range(0, len(vectors), 16)] if even else np.array_split(vectors, 3)
    )
    return VectorColumn([VectorChunk(part) for part in parts], np.arange(len(vectors), dtype=np.uint64))


def graph_of(column: VectorColumn, space: str) -> HnswIndex:
    builder = GraphBuilder(column, space, threads=1)
    builder.add(np.arange(column.count))
    return HnswIndex(builder.graph(), column, space)


def made(dimension: int) -> tuple[Vectors, Vectors]:
    """(ROWS, dimension) vectors, one of them zero and two alike, and (QUERIES, dimension) queries."""
    random = np.random.default_rng(dimension)
    vectors = random.standard_normal((ROWS, dimension)).astype(np.float32)
    vectors[3], vectors[5] = 0.0, vectors[4]
    return vectors, random.standard_normal((QUERIES, dimension)).astype(np.float32)


def reference(space: str, queries: Vectors, vectors: Vectors) -> Floats:
    """(q, n) distances by the definitions, in float64, without BLAS."""
    wide, asked = vectors.astype(np.float64), queries.astype(np.float64)[:, None, :]
    if space == "l2":
        return np.asarray(((asked - wide) ** 2).sum(axis=2))
    products = (asked * wide).sum(axis=2)
    if space == "ip":
        return np.asarray(1.0 - products)
    lengths = np.sqrt((asked**2).sum(axis=2)) * np.sqrt((wide**2).sum(axis=1))
    return np.asarray(1.0 - np.where(lengths > 0, products / np.where(lengths > 0, lengths, 1.0), 0.0))


def nearest(expected: Floats, k: int) -> tuple[list[int], list[float]]:
    """Of all queries, one after another: the k nearest rows, equal ones in order of row, and their distances in float32."""
    rounded = expected.astype(np.float32)
    order = np.argsort(rounded, axis=1, kind="stable")[:, :k]
    return order.ravel().tolist(), np.take_along_axis(rounded, order, axis=1).ravel().tolist()


def check_search(source: VectorColumn, space: str, queries: Vectors, expected: Floats, place: str) -> None:
    """The rows of the reference, but for those that are equally far within a rounding of float32, at its distances."""
    found = search_exact(source, space, queries, K, allowed=None)
    _, distances = nearest(expected, K)
    assert found.counts.tolist() == [min(K, source.count)] * len(queries), place
    np.testing.assert_allclose(found.distances, distances, rtol=2e-7, atol=2e-7, err_msg=place)
    of_rows = np.take_along_axis(expected, found.rows.reshape(len(queries), -1), axis=1).ravel()
    np.testing.assert_allclose(of_rows, distances, rtol=2e-7, atol=2e-7, err_msg=place)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("dimensions", [COMMON, TAILS], ids=["of models", "odd tails"])
def test_exact_search_is_that_of_float64_in_every_dimension(
    dimensions: tuple[int, ...], space: str, level: str
) -> None:
    for dimension in dimensions:
        vectors, queries = made(dimension)
        expected = reference(space, queries, vectors)
        place = f"{space}, dimension {dimension}"
        check_search(column_of(vectors), space, queries, expected, f"{place}, batched")
        check_search(column_of(vectors, even=True), space, queries, expected, f"{place}, in even chunks")
        for number in range(QUERIES):
            one = slice(number, number + 1)
            check_search(column_of(vectors), space, queries[one], expected[one], f"{place}, query {number} alone")


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("queries", [1, 7, 40])
def test_some_rows_many_of_them_alike(space: str, share: float, queries: int, level: str) -> None:
    """Half of the vectors are alike, so that all of those are candidates; some are too short for float32. Threads change nothing."""
    random = np.random.default_rng(2)
    vectors = random.standard_normal((20_000, 24)).astype(np.float32)
    vectors[::2] = vectors[0]
    vectors[7] = 0.0
    vectors[9] *= np.float32(2.0**-70)
    asked = random.standard_normal((queries, 24)).astype(np.float32)
    asked[0] = vectors[0]
    allowed = random.random(len(vectors)) < share
    names = np.flatnonzero(allowed)
    rounded = np.array([exact_distances(space, query, vectors[allowed]) for query in asked])
    order = np.argsort(rounded, axis=1, kind="stable")[:, :K]
    for threads in (1, 2):
        found = search_exact(column_of(vectors), space, asked, K, allowed=allowed, threads=threads)
        assert found.rows.tolist() == names[order].ravel().tolist()
        assert found.distances.tolist() == np.take_along_axis(rounded, order, axis=1).ravel().tolist()


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("queries", [1, 5, 20])
def test_the_nearest_of_rows_of_all_sizes_in_any_order(queries: int, space: str, level: str) -> None:
    """Each row nearer than those before it, or none; scores that differ by many powers of two; runs of equal ones."""
    random = np.random.default_rng(9)
    drawn = random.standard_normal((1_500, 9))
    sizes = np.linspace(60, -60, len(drawn))
    for exponents in (sizes, sizes[::-1], random.permutation(sizes), np.repeat(sizes[::500], 500)):
        vectors = (drawn * 2.0 ** np.rint(exponents)[:, None]).astype(np.float32)
        asked = random.standard_normal((queries, 9)).astype(np.float32)
        asked[0] = vectors[1_034]
        measured = np.array([exact_distances(space, query, vectors) for query in asked])
        order = np.argsort(measured, axis=1, kind="stable")
        for k in (1, 10, 300):
            best = order[:, :k]
            found = search_exact(column_of(vectors), space, asked, k, allowed=None)
            assert found.rows.tolist() == best.ravel().tolist()
            assert found.distances.tolist() == np.take_along_axis(measured, best, axis=1).ravel().tolist()


@pytest.mark.parametrize("space", SPACES)
def test_vectors_far_from_the_origin_and_close_together(space: str, level: str) -> None:
    random = np.random.default_rng(4)
    vectors = (1e4 + random.standard_normal((5_000, 32))).astype(np.float32)
    asked = vectors[:33] + np.float32(0.01)
    rounded = np.array([exact_distances(space, query, vectors) for query in asked])
    order = np.argsort(rounded, axis=1, kind="stable")[:, :K]
    found = search_exact(column_of(vectors), space, asked, K, allowed=None)
    assert found.rows.tolist() == order.ravel().tolist()


def test_fewer_rows_than_k_and_none() -> None:
    column = column_of(made(5)[0])
    asked = made(5)[1]
    few = np.zeros(ROWS, dtype=bool)
    few[[3, 50]] = True
    assert search_exact(column, "l2", asked, K, allowed=few).counts.tolist() == [2] * QUERIES
    for allowed, queries in ((few & False, asked), (None, asked[:0])):
        found = search_exact(column, "l2", queries, K, allowed=allowed)
        assert (len(found.rows), found.counts.tolist()) == (0, [0] * len(queries))
    assert search_exact(column, "l2", asked, 0, allowed=None).counts.tolist() == [0] * QUERIES


def test_wrong_shapes_are_refused() -> None:
    column = column_of(made(5)[0])
    with pytest.raises(ValueError, match="expected"):
        native.scan(column.handle("l2"), made(6)[1], K, allowed=None, threads=1)
    with pytest.raises(ValueError, match="expected"):
        native.scan(column.handle("l2"), made(5)[1], K, allowed=np.ones(ROWS + 1, dtype=bool), threads=1)
    with pytest.raises(ValueError, match="expected"):
        graph_of(column, "l2").search(made(5)[1], K, effort=9, allowed=np.ones(3, dtype=bool), threads=1)
    with pytest.raises(ValueError, match="other vectors"):
        native.search_graph(
            column.handle("l2"),
            graph_of(column_of(made(5)[0][1:]), "l2").handle,
            made(5)[1],
            K,
            ef=9,
            allowed=None,
            threads=1,
        )
    with pytest.raises(ValueError, match="ties"):
        VectorColumn([VectorChunk(made(5)[0])], np.arange(3, dtype=np.uint64))


@pytest.mark.parametrize("space", SPACES)
def test_a_distance_is_the_same_wherever_its_vector_lies(space: str) -> None:
    """Bit by bit: alone, in a batch, at an odd address, with other neighbours."""
    for dimension in (3, 31, 129, 768):
        vectors, queries = made(dimension)
        whole = exact_distances(space, queries[0], vectors)
        expected = reference(space, queries[:1], vectors)[0].astype(np.float32)
        np.testing.assert_allclose(whole, expected, rtol=2e-7, atol=2e-7)
        shifted = np.empty(vectors.size + 1, np.float32)[1:].reshape(vectors.shape)
        shifted[:] = vectors
        assert exact_distances(space, queries[0], shifted).tolist() == whole.tolist()
        alone = [exact_distances(space, queries[0], vectors[row : row + 1])[0] for row in range(ROWS)]
        assert alone == whole.tolist()


@pytest.mark.parametrize("space", SPACES)
def test_a_graph_finds_the_nearest_by_float64_in_every_dimension(space: str, level: str) -> None:
    """Its effort is the whole graph, so that only its kernels can go wrong. Vectors are of one length: else the graph of ``ip``
    is not one of neighbours.
    """
    for dimension in (2, 3, 15, 16, 17, 31, 64, 127, 129, 384, 385, 1024, 1536):
        vectors, queries = made(dimension)
        vectors[3] = vectors[2] + np.float32(0.5)
        vectors, queries = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (vectors, queries))
        graph = graph_of(column_of(vectors, even=True), space)
        expected = reference(space, queries, vectors)
        batch = graph.search(queries, K, effort=ROWS, allowed=None, threads=2)
        singles = [graph.search(queries[n : n + 1], K, effort=ROWS, allowed=None, threads=1) for n in range(QUERIES)]
        assert np.concatenate([one.rows for one in singles]).tolist() == batch.rows.tolist()
        _, distances = nearest(expected, K)
        np.testing.assert_allclose(batch.distances, distances, rtol=2e-7, atol=2e-7)
        of_rows = np.take_along_axis(expected, batch.rows.reshape(QUERIES, K), axis=1).ravel()
        np.testing.assert_allclose(of_rows, distances, rtol=1e-5, atol=1e-5, err_msg=f"{space}, dimension {dimension}")


def test_a_graph_measures_what_float32_cannot_tell_apart(level: str) -> None:
    """Vectors of nearly one direction: their order by cosine is in the digits that a float32 score has not."""
    random = np.random.default_rng(6)
    vectors = (700 + random.standard_normal((2_000, 32))).astype(np.float32)
    queries = (700 + random.standard_normal((50, 32))).astype(np.float32)
    column = column_of(vectors)
    found = graph_of(column, "cosine").search(queries, K, effort=len(vectors), allowed=None, threads=1)
    true = search_exact(column, "cosine", queries, K, allowed=None)
    assert np.mean(found.distances == true.distances) > 0.99


def complete_graph(column: VectorColumn, space: str) -> HnswIndex:
    """Every row is linked with all others, so that a walk of full effort comes to all of them whatever they are."""
    rows = np.arange(column.count)
    links = np.array([np.delete(rows, row) for row in rows], dtype=np.uint32)
    none = np.empty(0, np.uint32)
    return HnswIndex(Graph(links, none, none, none.reshape(0, 1), levels=0, entry=0), column, space)


def tying() -> Iterator[tuple[Vectors, Vectors]]:
    """Vectors and queries of which float32 distances are often equal though float32 scores are not: rows too short beside the query or
    beside 1, rows of nearly one direction, rows far from a query and near each other. Half of the queries are rows.
    """
    random = np.random.default_rng(21)
    for shrunk, moved, spread in ((-40, 0.0, 1.0), (-12, 0.0, 1.0), (0, 700.0, 1.0), (0, 1e4, 1e-2)):
        vectors = np.ldexp(moved + spread * random.standard_normal((300, 5)), shrunk).astype(np.float32)
        queries = (moved + random.standard_normal((16, 5))).astype(np.float32)
        queries[::2] = vectors[: len(queries) // 2]
        yield vectors, queries


def tied(vectors: Vectors) -> VectorColumn:
    """Their ties are not in the order of rows."""
    ties = np.random.default_rng(22).permutation(len(vectors)).astype(np.uint64)
    return VectorColumn([VectorChunk(vectors)], ties)


@pytest.mark.parametrize("space", SPACES)
def test_a_graph_of_full_effort_orders_equal_distances_by_their_ties(space: str, level: str) -> None:
    for vectors, queries in tying():
        column = tied(vectors)
        true = search_exact(column, space, queries, K, allowed=None)
        graph = complete_graph(column, space)
        found = graph.search(queries, K, effort=len(vectors), allowed=None, threads=1)
        assert found.distances.tolist() == true.distances.tolist()
        assert found.rows.tolist() == true.rows.tolist()


@pytest.mark.parametrize("of_query", [-140, -66, 0, 58])
def test_a_graph_by_cosine_does_not_depend_on_lengths(of_query: int) -> None:
    """From subnormal to nearly too long: the graph of float32 vectors that are exact multiples of short integers by powers of two."""
    random = np.random.default_rng(11)
    directions = random.integers(-7, 8, (300, 4)) + np.array([8, 0, 0, 0])
    exponents = random.choice([-140, -126, -100, -66, -60, 0, 20, 58], len(directions))
    vectors = np.ldexp(directions.astype(np.float64), exponents[:, None]).astype(np.float32)
    queries = np.ldexp(directions[:20].astype(np.float64), of_query).astype(np.float32)
    found = graph_of(column_of(vectors), "cosine").search(queries, K, effort=len(vectors), allowed=None, threads=1)
    expected = reference("cosine", queries, vectors)
    of_rows = np.take_along_axis(expected, found.rows.reshape(-1, K), axis=1)
    np.testing.assert_allclose(of_rows, np.sort(expected, axis=1)[:, :K], rtol=0, atol=1e-6)


def test_the_report_names_what_runs() -> None:
    found = kernels.report()
    assert sorted(found) == ["arrow", "blas", "hnswlib", "numpy", "shoal"]
    assert found["numpy"].startswith(np.__version__)
    assert importlib.metadata.version("hnswlib") in found["hnswlib"]
    assert "native build" in found["hnswlib"]
    assert "threads: " in found["blas"]
    assert all(found.values())


def test_the_report_does_without_a_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "threadpool_info", list)
    assert kernels.report()["blas"] == "not found"


def test_the_check_passes_here() -> None:
    kernels.check()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "compiled for another CPU: run make setup here"),
        ("raise ImportError('hnswlib: cannot open')", r"ImportError: hnswlib: cannot open\): run make setup here"),
        ("raise SystemExit(3)", "exit status 3"),
    ],
)
def test_a_child_that_dies_is_an_error_with_a_way_out(program: str, reason: str) -> None:
    with pytest.raises(FailedPrecondition, match=reason):
        kernels.check(program)


def test_a_child_that_hangs_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(Unavailable, match="60 s"):
        kernels.check()


def test_a_graph_that_answers_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = HnswIndex.search

    def wrong(
        self: HnswIndex, queries: Vectors, k: int, *, effort: int, allowed: Mask | None, threads: int
    ) -> Neighbours:
        return right(self, queries[::-1], k, effort=effort, allowed=allowed, threads=threads)

    monkeypatch.setattr(HnswIndex, "search", wrong)
    with pytest.raises(RuntimeError, match="wrong neighbours"):
        kernels.probe()
