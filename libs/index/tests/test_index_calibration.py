"""Recall as a promise: what calibration measures is what new queries get, and plans follow it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from libs.index.tests.test_index_segment import Blocks, graph_of, row_table
from shoal_core.errors import Corrupt
from shoal_core.records import EMBEDDING, embedding_array
from shoal_index.build import build_segment
from shoal_index.planner import DEFAULT_EF, SCAN_ROWS, Ask, Strategy, Way, plan_segment
from shoal_index.segment import Segment, open_segment
from shoal_index.vector.calibrate import held_out
from shoal_index.vector.calibration import BY_LOT, Calibration, Curve, Point, recalls_of
from shoal_index.vector.column import VectorChunk, VectorColumn
from shoal_index.vector.engine import SPACES, Mask, Neighbours
from shoal_index.vector.hnsw import NONE, Graph, HnswIndex

ROWS, DIMENSION, CLUSTERS = 12_000, 32, 40


def mixture(rows: int, seed: int) -> npt.NDArray[np.float32]:
    """Points of overlapping clusters, as embeddings are, away from the origin."""
    centres = np.random.default_rng(1).standard_normal((CLUSTERS, DIMENSION))
    random = np.random.default_rng(seed)
    points = centres[random.integers(CLUSTERS, size=rows)] + 0.9 * random.standard_normal((rows, DIMENSION))
    return points.astype(np.float32)


async def opened(space: str) -> Segment:
    table = row_table(ROWS, DIMENSION)
    table = table.set_column(table.schema.get_field_index(EMBEDDING), EMBEDDING, embedding_array(mixture(ROWS, 2)))
    built = build_segment(table, space, segment_id="s", tier=0, prefix="c", threads=2, graph_rows=1000)
    return await open_segment(built.ref, space, Blocks({ref.key: block.data for ref, block in built.objects}))


def filters(share: float, segment: Segment) -> list[Mask | None]:
    """Random rows, and rows that lie together."""
    if share == 1.0:
        return [None]
    middle = segment.vectors.gather(np.array([77]))[0]
    far = ((segment.vectors.gather(np.arange(ROWS)) - middle) ** 2).sum(axis=1)
    return [np.random.default_rng(3).random(ROWS) < share, far <= np.quantile(far, share)]


@pytest.mark.parametrize("space", SPACES)
async def test_new_queries_get_the_recall_that_was_asked_for(space: str) -> None:
    """Whatever is allowed, and never fewer than k; the estimate is near."""
    segment = await opened(space)
    queries = mixture(400, 9)
    for share in (1.0, 0.5, 0.1, 0.01):
        for allowed in filters(share, segment):
            true, _ = segment.search(queries, Ask(10, exact=True), allowed=allowed, threads=2)
            for target in (0.9, 0.95, 0.99):
                found, plan = segment.search(queries, Ask(10, target), allowed=allowed, threads=2)
                assert found.counts.tolist() == [10] * len(queries)
                reached = float(recalls_of(found, true, 10).mean())
                assert reached >= target - 0.01, (share, plan)
                assert plan.recall is not None
                assert plan.recall >= target
                assert reached >= plan.recall - 0.03, (share, plan)


@pytest.mark.parametrize("share", [0.8, 0.5])
async def test_filters_on_a_category_get_their_recall_too(share: float) -> None:
    """A category is many islands: a walk that has reached one of them must not think that it is done."""
    centres = np.random.default_rng(1).standard_normal((CLUSTERS, DIMENSION))
    segment = await opened("cosine")
    owner = np.argmin(
        [
            ((segment.vectors.gather(np.arange(ROWS)) - centre) ** 2).sum(axis=1)
            for centre in centres.astype(np.float32)
        ],
        axis=0,
    )
    chosen = np.random.default_rng(2).permutation(CLUSTERS)[: round(share * CLUSTERS)]
    allowed = np.isin(owner, chosen)
    queries = mixture(400, 9)
    true, _ = segment.search(queries, Ask(10, exact=True), allowed=allowed, threads=2)
    for target in (0.9, 0.95):
        found, plan = segment.search(queries, Ask(10, target), allowed=allowed, threads=2)
        assert float(recalls_of(found, true, 10).mean()) >= target - 0.03, plan


async def test_more_recall_is_more_effort() -> None:
    segment = await opened("cosine")
    plans = [segment.search(mixture(1, 9), Ask(10, target), allowed=None, threads=1)[1] for target in (0.9, 0.95, 0.99)]
    assert all(plan.approximate for plan in plans)
    assert [plan.strategy for plan in plans] == [plans[0].strategy] * 3
    assert plans[0].effort < plans[1].effort < plans[2].effort


async def test_lists_are_measured_for_filters_as_clumped_as_there_are() -> None:
    """From anyhow down to by lot; those less clumped need no more. Walks tell but these two apart."""
    segment = await opened("l2")
    for way in segment.ways:
        assert way.calibration is not None
        levels = [c.clumping for c in way.calibration.curves if (c.k, c.share) == (10, 0.5)]
        assert levels == sorted(levels, reverse=True)
        assert (levels[0], levels[-1]) == (np.inf, BY_LOT)
        assert len(levels) == (2 if way.strategy is Strategy.GRAPH else 4)
        found = [way.calibration.least(10, 0.5, 0.9, clumping=level) for level in levels]
        efforts = [point.effort for point in found if point is not None]
        assert len(efforts) == len(levels)
        assert efforts == sorted(efforts, reverse=True)


async def test_rows_that_were_held_out_are_in_the_index() -> None:
    segment = await opened("l2")
    asked = held_out(segment.vectors.ties)
    assert len(asked) == ROWS // 20, "of more rows QUERIES"
    for way in segment.ways:
        found = way.index.search(segment.vectors.gather(asked), 1, effort=64, allowed=None, threads=1)
        assert np.mean(found.rows == asked) > 0.98


async def test_a_calibration_is_read_as_it_was_written() -> None:
    found = [way.calibration for way in (await opened("ip")).ways]
    assert [calibration.engine for calibration in found if calibration][:2] == ["graph", "clusters"]
    for calibration in found:
        assert calibration is not None
        assert calibration.queries == ROWS // 20
        assert Calibration.of_json(calibration.to_json()) == calibration
    for data in (b"{", b"[]", b'{"engine": "graph", "queries": 1, "curves": [{"k": 1}]}'):
        with pytest.raises(Corrupt):
            Calibration.of_json(data)


def some_graph() -> HnswIndex:
    """Of two rows: plans ask it for its costs only."""
    none = np.empty(0, np.uint32)
    graph = Graph(np.full((2, 4), NONE, np.uint32), none, none, none.reshape(0, 2), 0, 0)
    return HnswIndex(
        graph, VectorColumn([VectorChunk(np.ones((2, 384), np.float32))], np.arange(2, dtype=np.uint64)), "l2"
    )


GRAPH = some_graph()


def known() -> Calibration:
    """A curve for k = 10 and k = 100 without filter, and one for a fifth of the rows."""
    points = tuple(Point(ef, recall, 0.0, 20.0 * ef) for ef, recall in ((10, 0.8), (40, 0.9), (160, 0.96)))
    hard = tuple(replace(point, recall=point.recall - 0.2, compared=5 * point.compared) for point in points)
    return Calibration("graph", 256, (Curve(10, 1.0, points), Curve(100, 1.0, points[1:]), Curve(10, 0.2, hard)))


def plan(
    ask: Ask, *, rows: int = 10**6, allowed: int = 10**6, calibration: Calibration | None = None
) -> tuple[str, int]:
    found = plan_segment(ask, rows=rows, dimension=384, allowed=allowed, ways=[Way(GRAPH, calibration)])
    assert found.strategy is Strategy.NOTHING or len(found.rejected) == 1
    return str(found.strategy), found.effort


def test_plans_without_calibration() -> None:
    assert plan(Ask(5), allowed=0) == ("nothing", 0)
    assert plan(Ask(0)) == ("nothing", 0)
    assert plan(Ask(5), allowed=SCAN_ROWS) == ("scan", 0)
    assert plan(Ask(5, exact=True)) == ("scan", 0)
    assert plan(Ask(5)) == ("graph", DEFAULT_EF)
    assert plan(Ask(100)) == ("graph", 100)
    assert plan(Ask(5, effort=7)) == ("graph", 7)
    assert plan_segment(Ask(5), rows=100, dimension=384, allowed=100, ways=[]).strategy is Strategy.SCAN


def test_plans_read_the_curve() -> None:
    assert plan(Ask(10, 0.9), calibration=known()) == ("graph", 40)
    assert plan(Ask(10, 0.7), calibration=known()) == ("graph", 10)
    strategy, effort = plan(Ask(10, 0.85), calibration=known())
    assert (strategy, 10 < effort < 40) == ("graph", True)
    assert plan(Ask(10, 0.99), calibration=known()) == ("scan", 0), "nothing measured reaches it"
    assert plan(Ask(50, 0.9), calibration=known())[1] == 50, "at least k, by the curve of the next larger k"
    hard = plan(Ask(10, 0.65), allowed=200_000, calibration=known())[1]
    between = plan(Ask(10, 0.65), allowed=500_000, calibration=known())[1]
    assert 10 < between < hard, "between the shares that were measured"
    assert plan(Ask(10, 0.75), allowed=999_000, calibration=known())[1] in (10, 11), "a few deleted rows cost little"
    assert plan(Ask(10, 0.85), allowed=500_000, calibration=known()) == ("scan", 0), (
        "out of reach for the smaller share"
    )
    assert plan(Ask(10, 0.6), allowed=100_000, calibration=known()) == ("scan", 0), "no share so small was measured"


def test_more_than_any_k_that_was_measured() -> None:
    """Three times the effort of k = 100, and three times the rows."""
    assert plan(Ask(300, 0.9), calibration=known()) == ("graph", 300)
    assert plan(Ask(300, 0.95), calibration=known())[1] == 3 * plan(Ask(100, 0.95), calibration=known())[1]
    assert plan(Ask(2_000, 0.9, queries=64), rows=200_000, allowed=200_000, calibration=known()) == ("scan", 0)


def test_a_few_deleted_rows_do_not_turn_the_graph_off() -> None:
    """Though the target is out of reach where half of the rows are allowed."""
    assert plan(Ask(10, 0.95), allowed=999_999, calibration=known())[0] == "graph"
    assert plan(Ask(10, 0.95), allowed=850_000, calibration=known()) == ("scan", 0)


def test_plans_weigh_a_walk_against_a_scan() -> None:
    """The walk for 0.9 compares 800 rows, each of which costs as much as 2.0 of a scan, or 27 of one that many queries share."""
    assert plan(Ask(10, 0.9), rows=1_500, allowed=1_500, calibration=known()) == ("scan", 0)
    assert plan(Ask(10, 0.9), rows=1_700, allowed=1_700, calibration=known()) == ("graph", 40)
    assert plan(Ask(10, 0.9, queries=64), rows=20_000, allowed=20_000, calibration=known()) == ("scan", 0)
    assert plan(Ask(10, 0.9, queries=64), rows=23_000, allowed=23_000, calibration=known()) == ("graph", 40)


def test_rows_here_and_there_are_dearer_to_scan() -> None:
    """A single query reads each of few allowed rows from elsewhere in memory; where queries share that, it hardly counts."""
    points = tuple(Point(ef, 0.9, 0.0, 100.0 * ef) for ef in (40, 80))
    of_all = Calibration("graph", 256, (Curve(10, 1.0, points), Curve(10, 0.1, points)))
    for queries, found in ((1, "graph"), (64, "scan")):
        dense = plan(Ask(10, 0.8, queries=queries), rows=7_000, allowed=7_000, calibration=of_all)
        sparse = plan(Ask(10, 0.8, queries=queries), rows=70_000, allowed=7_000, calibration=of_all)
        assert (dense[0], sparse[0]) == ("scan", found)
    assert plan(Ask(10, effort=40), rows=2_000, allowed=2_000, calibration=known()) == ("graph", 40), "as was asked"


def test_an_effort_that_was_asked_for_has_an_estimate() -> None:
    found = plan_segment(Ask(10, effort=100), rows=10**6, dimension=384, allowed=10**6, ways=[Way(GRAPH, known())])
    assert found.recall == pytest.approx(0.93)
    narrow = plan_segment(Ask(10, effort=100), rows=10**6, dimension=384, allowed=50_000, ways=[Way(GRAPH, known())])
    assert (str(narrow.strategy), narrow.effort, narrow.recall) == ("graph", 100, None), "nothing was measured there"
    low = plan_segment(Ask(1, effort=5), rows=10**6, dimension=384, allowed=10**6, ways=[Way(GRAPH, known())])
    assert low.recall == pytest.approx(0.4)


def test_recall_counts_what_is_as_near() -> None:
    true = Neighbours(np.array([1, 2, 3, 7]), np.array([0.1, 0.2, 0.2, 0.5], np.float32), np.array([3, 1]))
    found = Neighbours(np.array([1, 4, 9]), np.array([0.1, 0.2, 0.6], np.float32), np.array([2, 1]))
    assert recalls_of(found, true, 2).tolist() == [1.0, 0.0], "row 4 is as near as row 2"
    assert recalls_of(found, true, 10).tolist() == [pytest.approx(2 / 3), 0.0]


async def test_a_graph_whose_links_lead_nowhere_is_corrupt() -> None:
    segment = await opened("l2")
    graph = graph_of(segment).graph
    assert Graph.of_tables(graph.to_tables(), ROWS).entry == graph.entry
    wrong = graph.links.copy()
    wrong[5, 0] = ROWS
    gap = graph.links.copy()
    gap[5, 0] = 0xFFFFFFFF
    upper = graph.upper_links.copy()
    upper[0, 0] = len(graph.upper_rows)
    entry = len(graph.upper_rows)
    broken = [{"links": wrong}, {"links": gap}, {"links": graph.links[:-1]}, {"upper_links": upper}, {"entry": entry}]
    broken += [{"upper_links": graph.upper_links[:-1]}, {"upper_rows": graph.upper_rows + np.uint32(ROWS)}]
    for parts in broken:
        with pytest.raises(Corrupt):
            Graph.of_tables(replace(graph, **parts).to_tables(), ROWS)  # type: ignore[arg-type]
    with pytest.raises(Corrupt):
        Graph.of_tables(graph.to_tables()[:2], ROWS)
