"""Recall as a promise: what calibration measures is what new queries get, and plans follow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from libs.index.tests.test_index_segment import Blocks, graph_of, row_table
from shoal_core.errors import Corrupt
from shoal_core.records import EMBEDDING, embedding_array
from shoal_index import build_vectors
from shoal_index.build import build_segment
from shoal_index.planner import DEFAULT_EF, SCAN_ROWS, Ask, Strategy, Way, plan_segment
from shoal_index.segment import Segment, open_segment
from shoal_index.vector import costs
from shoal_index.vector.calibrate import FILTERED_QUERIES, QUERIES, Case, Subject, Trial, calibrate, held_out, trials
from shoal_index.vector.calibration import BY_LOT, Calibration, Curve, Point, recalls_of
from shoal_index.vector.clusters import ClusterIndex
from shoal_index.vector.column import VectorChunk, VectorColumn
from shoal_index.vector.engine import SPACES, Mask, Neighbours, Vectors
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
    """From anyhow down to by lot; walks tell but these two apart."""
    segment = await opened("l2")
    for way in segment.ways:
        assert way.calibration is not None
        levels = [c.clumping for c in way.calibration.curves if (c.k, c.share) == (10, 0.5)]
        assert levels == sorted(levels, reverse=True)
        assert (levels[0], levels[-1]) == (np.inf, BY_LOT)
        assert len(levels) == (2 if way.strategy is Strategy.GRAPH else 4)


async def test_there_is_always_a_way_that_measures_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_vectors, "_REFINED_RECALL", (0.1, 0.2))  # so that the least is enough for both
    segment = await opened("l2")
    assert [way.index.refine for way in segment.ways if isinstance(way.index, ClusterIndex)] == [2, 8]


class Mostly:
    """Finds all but so many of 10 true neighbours, by the lowest allowed row; one more effort misses one less."""

    name = "graph"
    size_bytes = 0

    def __init__(self, missed: dict[int, int]) -> None:
        self.missed = missed
        self.asked: list[int] = []

    def cost(self, k: int, compared: float, *, shared: bool) -> float:
        return compared

    def least_effort(self, k: int) -> int:
        return 1

    def measured(self, k: int) -> int:
        return k

    def touched(self, k: int, compared: float) -> float:
        return compared

    def search(self, queries: Vectors, k: int, *, effort: int, allowed: Mask | None, threads: int) -> Neighbours:
        return self.search_counting(queries, k, effort=effort, allowed=allowed, threads=threads)[0]

    def search_counting(
        self, queries: Vectors, k: int, *, effort: int, allowed: Mask | None, threads: int
    ) -> tuple[Neighbours, npt.NDArray[np.int64]]:
        assert allowed is not None
        self.asked.append(len(queries))
        first = int(np.argmax(allowed))
        found = k - max(0, self.missed[first] - (effort - 1))
        rows = np.tile(np.arange(first, first + found), len(queries))
        near = Neighbours(rows, (rows - first).astype(np.float32), np.full(len(queries), found))
        return near, np.full(len(queries), effort * (first + 1))

    def to_tables(self) -> dict[str, list[Any]]:
        return {}


def tried(share: float, firsts: Sequence[int], queries: int) -> Trial:
    """Cases that allow 100 rows from one on, of which the first are the nearest, in their order."""
    cases = []
    for first in firsts:
        mask = np.zeros(1_000, dtype=bool)
        mask[first : first + 100] = True
        rows = np.tile(np.arange(first, first + 10), queries)
        cases.append(Case(mask, Neighbours(rows, (rows - first).astype(np.float32), np.full(queries, 10))))
    return Trial(share, np.zeros((queries, 2), np.float32), tuple(cases))


def test_a_level_has_the_worst_of_the_cases_that_are_not_more_clumped() -> None:
    """The case from row 0 is by lot and misses 1 of 10; those from 200 and 400, of clumping 3 and 7, miss 4 and 2."""
    clumping = {0: 1.1, 200: 3.0, 400: 7.0}
    index = Mostly({0: 1, 200: 4, 400: 2})
    subject = Subject(
        index,
        (1, 2),
        [((10,), 64, 16)],
        lambda *_: False,
        clumping=lambda mask: clumping[int(np.argmax(mask))],
    )
    trials = [tried(1.0, [0], 64), tried(0.5, [0, 400, 200], 64), tried(0.05, [0, 400, 200], 64)]
    found = calibrate(subject, trials, threads=1)
    told = {(c.share, c.clumping): [(p.effort, round(p.recall, 6), p.compared) for p in c.points] for c in found.curves}
    by_lot, worst = [(1, 0.9, 1.0), (2, 1.0, 2.0)], [(1, 0.6, 401.0), (2, 0.7, 802.0)]
    assert told == {
        (1.0, np.inf): by_lot,
        (0.5, np.inf): worst,
        (0.5, 3.0): [(1, 0.6, 201.0), (2, 0.7, 402.0)],
        (0.5, BY_LOT): by_lot,
        (0.05, np.inf): worst,
        (0.05, BY_LOT): by_lot,
    }, "of so few rows it is not told how clumped they are"
    assert index.asked[:2] == [64, 64]
    assert set(index.asked[2:]) == {16}
    two = calibrate(replace(subject, clumping=None), trials, threads=1)
    assert {(c.share, c.clumping) for c in two.curves if c.share == 0.5} == {(0.5, np.inf), (0.5, BY_LOT)}


def test_many_rows_are_held_out_where_there_are_many() -> None:
    assert len(held_out(np.arange(100_000, dtype=np.uint64))) == QUERIES
    assert len(held_out(np.arange(8_000, dtype=np.uint64))) == 400
    column = VectorColumn([VectorChunk(mixture(21_000, 3))], np.arange(21_000, dtype=np.uint64))
    by = trials(column, "l2", held_out(column.ties), threads=2)
    assert [len(trial.queries) for trial in by if trial.share == 1.0] == [QUERIES]
    assert {len(trial.queries) for trial in by if trial.share < 1.0} == {FILTERED_QUERIES}
    assert all(len(case.true.counts) == len(trial.queries) for trial in by for case in trial.cases)
    few = trials(column, "l2", held_out(column.ties)[:100], threads=2)
    assert {len(trial.queries) for trial in few} == {100}
    assert len(few[0].with_about(40).queries) == 50


def test_plans_take_the_curve_for_what_is_allowed() -> None:
    """And keep a reserve for whatever is not by lot."""
    levels = ((np.inf, 64), (4.0, 32), (BY_LOT, 16))
    curves = [
        Curve(10, share, (Point(effort, 0.95, 0.0, 1.0),), clumping)
        for share in (1.0, 0.5)
        for clumping, effort in levels
    ]
    calibration = Calibration("graph", 256, tuple(curves))
    asked = [Ask(10, 0.93, clumping=clumping) for clumping in (np.inf, 4.1, 4.0, 1.7, 1.5)]
    assert [plan(ask, allowed=500_000, calibration=calibration)[1] for ask in asked] == [64, 64, 32, 32, 16]
    hard = [Ask(10, 0.95, clumping=clumping) for clumping in (4.0, 1.5)]
    assert [plan(ask, allowed=500_000, calibration=calibration)[0] for ask in hard] == ["scan", "graph"]


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
    assert plan(Ask(10, effort=40), rows=2_000, allowed=2_000, calibration=known()) == ("graph", 40), "as was asked"


@pytest.mark.parametrize("dimension", [2, 384, 1_536, 4_096])
def test_rows_here_and_there_are_never_cheaper(dimension: int) -> None:
    found = [costs.scan_row(dimension, shared=False, share=share) for share in (1.0, 0.5, 0.1, 0.0)]
    assert found == pytest.approx(sorted(found))
    assert found[0] > costs.scan_row(dimension, shared=True)


def test_rows_here_and_there_are_dearer_to_scan() -> None:
    """A single query reads each of few allowed rows from elsewhere in memory; where queries share that, it hardly counts."""
    points = tuple(Point(ef, 0.9, 0.0, 100.0 * ef) for ef in (40, 80))
    of_all = Calibration("graph", 256, (Curve(10, 1.0, points), Curve(10, 0.1, points)))
    for queries, found in ((1, "graph"), (64, "scan")):
        dense = plan(Ask(10, 0.8, queries=queries), rows=7_000, allowed=7_000, calibration=of_all)
        sparse = plan(Ask(10, 0.8, queries=queries), rows=70_000, allowed=7_000, calibration=of_all)
        assert (dense[0], sparse[0]) == ("scan", found)


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
