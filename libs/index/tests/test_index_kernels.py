"""The compiled kernels: what they answer is what float64 arithmetic answers, in every dimension; and what they say of themselves."""

from __future__ import annotations

import importlib.metadata
import subprocess
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from shoal_core.errors import FailedPrecondition, Unavailable
from shoal_index.vector import kernels
from shoal_index.vector.engine import SPACES, Rows, Vectors, VectorSource, exact_distances
from shoal_index.vector.exact import search_exact, squared_lengths
from shoal_index.vector.hnsw import Graph, build_graph

COMMON = (1, 3, 31, 64, 128, 384, 768, 1024, 1536, 3072, 4096)
TAILS = (*range(2, 41), 127, 129, 383, 385)
ROWS, QUERIES, K = 60, 7, 10

Floats = npt.NDArray[np.float64]


class Chunks:
    """Vectors in pieces, as a segment of several blocks has them."""

    def __init__(self, vectors: Vectors) -> None:
        self.vectors = vectors
        self.parts = np.array_split(vectors, 3)

    @property
    def count(self) -> int:
        return len(self.vectors)

    def chunks(self) -> list[Vectors]:
        return self.parts

    def squares(self) -> list[npt.NDArray[np.float32]]:
        return [squared_lengths(part) for part in self.parts]

    def gather(self, rows: Rows) -> Vectors:
        return self.vectors[rows]


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


def check_search(source: VectorSource, space: str, queries: Vectors, expected: Floats, place: str) -> None:
    """The rows of the reference, but for those that are equally far within a rounding of float32, at its distances."""
    ties = np.arange(source.count, dtype=np.uint64)
    found = search_exact(source, space, queries, K, allowed=None, ties=ties)
    _, distances = nearest(expected, K)
    assert found.counts.tolist() == [min(K, source.count)] * len(queries), place
    np.testing.assert_allclose(found.distances, distances, rtol=2e-7, atol=2e-7, err_msg=place)
    of_rows = np.take_along_axis(expected, found.rows.reshape(len(queries), -1), axis=1).ravel()
    np.testing.assert_allclose(of_rows, distances, rtol=2e-7, atol=2e-7, err_msg=place)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("dimensions", [COMMON, TAILS], ids=["of models", "odd tails"])
def test_exact_search_is_that_of_float64_in_every_dimension(dimensions: tuple[int, ...], space: str) -> None:
    for dimension in dimensions:
        vectors, queries = made(dimension)
        expected = reference(space, queries, vectors)
        place = f"{space}, dimension {dimension}"
        check_search(Chunks(vectors), space, queries, expected, f"{place}, batched")
        for number in range(QUERIES):
            one = slice(number, number + 1)
            check_search(Chunks(vectors), space, queries[one], expected[one], f"{place}, query {number} alone")


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("share", [0.1, 0.45, 0.8])
def test_many_rows_are_copied_and_measured_a_few_at_a_time(
    space: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the vectors are alike, so that all of those are candidates; some are too short for float32."""
    vectors, queries = made(5)
    vectors[::2] = vectors[0]
    vectors[7] = 0.0
    vectors[9] *= np.float32(2.0**-70)
    allowed = np.random.default_rng(2).random(ROWS) < share
    source, ties = Chunks(vectors), np.arange(ROWS, dtype=np.uint64)
    names = np.flatnonzero(allowed)
    at_once = search_exact(Chunks(vectors[allowed]), space, queries, K, allowed=None, ties=ties[allowed])
    copied: list[int] = []
    gather = Chunks.gather

    def noted(self: Chunks, rows: Rows) -> Vectors:
        copied.append(len(rows))
        return gather(self, rows)

    monkeypatch.setattr(Chunks, "gather", noted)
    monkeypatch.setattr("shoal_index.vector.exact._COPIED_BYTES", 4 * 5 * 4)
    monkeypatch.setattr("shoal_index.vector.exact._MEASURED_BYTES", 8 * 5 * 3)
    by_few = search_exact(source, space, queries, K, allowed=allowed, ties=ties)
    assert max(copied) <= 4
    assert by_few.rows.tolist() == names[at_once.rows].tolist()
    assert by_few.distances.tolist() == at_once.distances.tolist()


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
def test_a_graph_finds_the_nearest_by_float64_in_every_dimension(space: str) -> None:
    """Its effort is the whole graph, so that only its kernels can go wrong. Vectors are of one length: else the graph of ``ip``
    is not one of neighbours.
    """
    for dimension in (2, 3, 15, 16, 17, 31, 64, 127, 129, 384, 385, 1024, 1536):
        vectors, queries = made(dimension)
        vectors[3] = vectors[2] + np.float32(0.5)
        vectors, queries = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (vectors, queries))
        graph = Graph(build_graph(np.array_split(vectors, 3), space, threads=1), space, dimension, ROWS)
        expected = reference(space, queries, vectors)
        batch = graph.search(queries, K, ef=ROWS, threads=1)
        assert batch is not None
        singles = [graph.search(queries[n : n + 1], K, ef=ROWS, threads=1) for n in range(QUERIES)]
        assert [one is not None and one.ravel().tolist() for one in singles] == batch.tolist()
        _, distances = nearest(expected, K)
        of_rows = np.take_along_axis(expected, batch, axis=1).ravel()
        np.testing.assert_allclose(of_rows, distances, rtol=1e-5, atol=1e-5, err_msg=f"{space}, dimension {dimension}")


@pytest.mark.parametrize("of_query", [-140, -66, 0, 58])
def test_a_graph_by_cosine_does_not_depend_on_lengths(of_query: int) -> None:
    """From subnormal to nearly too long: the graph of float32 vectors that are exact multiples of short integers by powers of two."""
    random = np.random.default_rng(11)
    directions = random.integers(-7, 8, (300, 4)) + np.array([8, 0, 0, 0])
    exponents = random.choice([-140, -126, -100, -66, -60, 0, 20, 58], len(directions))
    vectors = np.ldexp(directions.astype(np.float64), exponents[:, None]).astype(np.float32)
    queries = np.ldexp(directions[:20].astype(np.float64), of_query).astype(np.float32)
    graph = Graph(build_graph(np.array_split(vectors, 3), "cosine", threads=1), "cosine", 4, len(vectors))
    found = graph.search(queries, K, ef=len(vectors), threads=1)
    assert found is not None
    expected = reference("cosine", queries, vectors)
    of_rows = np.take_along_axis(expected, found, axis=1)
    np.testing.assert_allclose(of_rows, np.sort(expected, axis=1)[:, :K], rtol=0, atol=1e-6)


def test_the_report_names_what_runs() -> None:
    found = kernels.report()
    assert sorted(found) == ["arrow", "blas", "hnswlib", "numpy"]
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
    right = Graph.search

    def wrong(self: Graph, queries: Vectors, k: int, *, ef: int, threads: int) -> Rows | None:
        found = right(self, queries, k, ef=ef, threads=threads)
        return None if found is None else found[::-1]

    monkeypatch.setattr(Graph, "search", wrong)
    with pytest.raises(RuntimeError, match="wrong neighbours"):
        kernels.probe()
