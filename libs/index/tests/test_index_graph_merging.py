"""Graphs of merged segments: the largest is extended, rows that are gone are gone, and what drifted is built anew."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from libs.index.tests.test_index_calibration import mixture
from shoal_core.schema import VectorConfig
from shoal_index import build_vectors
from shoal_index.build_vectors import Old, built_ways
from shoal_index.planner import Way
from shoal_index.vector.calibration import Calibration, recalls_of
from shoal_index.vector.column import VectorChunk, VectorColumn
from shoal_index.vector.engine import SPACES, Vectors
from shoal_index.vector.exact import search_exact
from shoal_index.vector.hnsw import NONE, Graph, HnswIndex
from shoal_index.vector.hnsw_build import GraphBuilder

ROWS, CONFIG = 4_000, VectorConfig()
QUERIES = mixture(200, 99)


def ties(count: int) -> npt.NDArray[np.uint64]:
    return np.arange(count, dtype=np.uint64)


def old_graph(index: HnswIndex, calibration: Calibration, new_row: npt.NDArray[np.int64]) -> Old:
    return Old([Way(index, calibration)], new_row)


def built(vectors: Vectors, space: str = "l2", *old: Old) -> tuple[HnswIndex, Calibration]:
    ways = built_ways(vectors, ties(len(vectors)), space, CONFIG, threads=2, old=old)
    index, calibration = ways[0].index, ways[0].calibration
    assert calibration is not None
    assert isinstance(index, HnswIndex)
    index.graph.check(len(vectors))
    return index, calibration


def recall(index: HnswIndex, vectors: Vectors, space: str, effort: int) -> float:
    column = VectorColumn([VectorChunk(vectors)], ties(len(vectors)))
    true = search_exact(column, space, QUERIES, 10, allowed=None)
    found = index.search(QUERIES, 10, effort=effort, allowed=None, threads=2)
    assert found.counts.tolist() == [10] * len(QUERIES)
    return float(recalls_of(found, true, 10).mean())


def churned(rows: int, share: float, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """New row of each old one, -1 for a share that is gone, and the rows that are new: as many as are gone, among the others."""
    random = np.random.default_rng(seed)
    order = random.permutation(rows)
    gone = round(share * rows)
    new_row = np.full(rows, -1, dtype=np.int64)
    kept = np.sort(random.permutation(rows)[gone:])
    new_row[kept] = order[: len(kept)]
    return new_row, order[len(kept) :]


@pytest.mark.parametrize("space", SPACES)
def test_a_graph_is_taken_over_row_by_row(space: str) -> None:
    """Out of hnswlib and into it: nobody gone, nothing added, the same links under new names."""
    vectors = mixture(1_500, 1)
    graph = built(vectors, space)[0].graph
    order = np.random.default_rng(2).permutation(len(vectors))
    moved = np.empty_like(vectors)
    moved[order] = vectors
    builder = GraphBuilder(VectorColumn([VectorChunk(moved)], ties(len(moved))), space, threads=1)
    builder.start_from(graph, order)
    taken = builder.graph()
    taken.check(len(moved))
    assert (taken.levels, taken.upper_rows[taken.entry]) == (graph.levels, order[graph.upper_rows[graph.entry]])
    renamed = np.where(
        graph.links == NONE, NONE, order.astype(np.uint32)[np.where(graph.links == NONE, 0, graph.links)]
    )
    assert np.array_equal(np.sort(taken.links[order], axis=1), np.sort(renamed, axis=1))
    assert sorted(taken.upper_rows) == sorted(order[graph.upper_rows])
    assert len(taken.upper_links) == len(graph.upper_links)


@pytest.mark.parametrize("space", SPACES)
def test_rounds_of_deleting_and_inserting_keep_recall_and_size(space: str) -> None:
    """A tenth each time: the effort that is measured for 0.95 gives it, for queries of which no graph knows."""
    vectors = mixture(ROWS, 3)
    index, calibration = built(vectors, space)
    size = index.size_bytes
    for round_ in range(5):
        new_row, fresh = churned(ROWS, 0.1, round_)
        following = np.empty_like(vectors)
        following[new_row[new_row >= 0]] = vectors[new_row >= 0]
        following[fresh] = mixture(len(fresh), 50 + round_)
        vectors = following
        index, calibration = built(vectors, space, old_graph(index, calibration, new_row))
        assert recall(index, vectors, space, calibration.needed) >= 0.94
        assert index.size_bytes <= 1.02 * size
        assert calibration.needed <= 1.5 * calibration.reference
    assert calibration.reference > 0


def test_what_is_gone_is_linked_by_nobody_and_what_is_new_is_found() -> None:
    vectors = mixture(ROWS, 3)
    index, calibration = built(vectors)
    new_row, fresh = churned(ROWS, 0.3, 1)
    following = np.empty_like(vectors)
    following[new_row[new_row >= 0]] = vectors[new_row >= 0]
    following[fresh] = mixture(len(fresh), 8)
    again, _ = built(following, "l2", old_graph(index, calibration, new_row))
    found = again.search(following[fresh], 1, effort=64, allowed=None, threads=1)
    assert np.mean(found.rows == fresh) > 0.98


def spied(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """The graphs that builders start from."""
    started: list[Graph] = []
    start = GraphBuilder.start_from

    def noted(self: GraphBuilder, graph: Graph, new_row: npt.NDArray[np.int64]) -> None:
        started.append(graph)
        start(self, graph, new_row)

    monkeypatch.setattr(GraphBuilder, "start_from", noted)
    return started


def test_which_graph_is_extended(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = mixture(2_000, 3)
    small, large = built(vectors[:700]), built(vectors[700:2_000])
    started = spied(monkeypatch)
    maps = [np.arange(700), np.arange(700, 2_000)]
    old = [old_graph(i, c, new_row) for (i, c), new_row in zip((small, large), maps, strict=True)]
    built(vectors, "l2", *old)
    assert started == [large[0].graph]
    started.clear()
    built(vectors, "l2", old[0])
    assert started == [], "it has too few of the rows"
    monkeypatch.setattr("libs.index.tests.test_index_graph_merging.CONFIG", VectorConfig(m=8))
    built(vectors, "l2", old[1])
    assert started == [], "the collection wants fewer links now"


def test_a_graph_that_drifted_is_built_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = mixture(2_000, 3)
    index, calibration = built(vectors)
    old = old_graph(index, calibration, np.arange(2_000))
    kept = built(vectors, "l2", old)[1]
    assert kept.reference == calibration.reference
    started = spied(monkeypatch)
    monkeypatch.setattr(build_vectors, "_DRIFT", 0.01)
    anew = built(vectors, "l2", old)[1]
    assert len(started) == 1
    assert anew.reference == anew.needed


def test_a_graph_that_lost_its_upper_levels() -> None:
    """Every row with an upper level is gone: what is left is one level, and new rows bring new ones."""
    vectors = mixture(1_500, 1)
    index, _ = built(vectors)
    graph = index.graph
    assert graph.levels > 0
    new_row = np.arange(1_500)
    new_row[graph.upper_rows] = -1
    builder = GraphBuilder(VectorColumn([VectorChunk(vectors)], ties(1_500)), "l2", threads=1)
    builder.start_from(graph, new_row)
    flat = builder.graph()
    flat.check(1_500)
    assert (flat.levels, len(flat.upper_rows)) == (0, 0)
    builder.add(np.flatnonzero(new_row < 0))
    whole = builder.graph()
    whole.check(1_500)
    column = VectorColumn([VectorChunk(vectors)], ties(1_500))
    assert recall(HnswIndex(whole, column, "l2"), vectors, "l2", 100) > 0.9
