"""Building the indexes of a segment, and measuring them on rows that are held out.

In a merge the largest graph is extended, and the largest lists are filled up, instead of built anew, as long as what that gives needs
not much more effort than what was built from nothing did: rows that are gone leave gaps in a graph that are mended only roughly, and
lists were made for other vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from shoal_core.schema import VectorConfig
from shoal_index.planner import DEFAULT_RECALL, Way, worth
from shoal_index.vector.calibrate import (
    FILTERED_QUERIES,
    QUERIES,
    Subject,
    Trial,
    calibrate,
    efforts_between,
    held_out,
    spared,
    trials,
)
from shoal_index.vector.calibration import Calibration, Point, recalls_of
from shoal_index.vector.clusters import ClusterIndex
from shoal_index.vector.clusters_build import build_clusters, extended_clusters
from shoal_index.vector.coded_graph import LARGEST_DIMENSION, CodedGraphIndex, code_links
from shoal_index.vector.column import VectorChunk, VectorColumn
from shoal_index.vector.engine import Rows, VectorIndex, Vectors
from shoal_index.vector.hnsw import HnswIndex
from shoal_index.vector.hnsw_build import GraphBuilder

_K = 10  # for which drift is judged
_DRIFT = 1.5  # times the effort of an index built from nothing
_LEAST_SHARE = 0.5  # of the rows that an index must have to be extended
_EFFORTS = efforts_between(8, 4096, 1.5)  # ef
_LEAST_GRAPH_SHARE = 0.2  # of allowed rows: for fewer a walk visits too many that are not
_WALKED = ((1, 10, 100), QUERIES // 2, FILTERED_QUERIES // 2)  # walks take long, and how long hardly depends on k
_SCANNED = (((10,), QUERIES, FILTERED_QUERIES), ((100,), QUERIES // 4, FILTERED_QUERIES // 4))
_FEWEST_LISTS = 4  # fewer take hardly less time
_REFINES = (2, 4, 8, 16, 32, 64, 128)
_REFINED_RECALL = (0.965, 0.995)  # with all lists scanned, and little or much of them measured
_MORE = 4  # times as many are measured, where little is enough for both


@dataclass(frozen=True, slots=True)
class Old:
    """The indexes of a segment that is merged, and (n,) for each of its rows the row in the output, or -1."""

    ways: Sequence[Way]
    new_row: Rows

    @property
    def kept(self) -> int:
        """How many of its rows the output has."""
        return int(np.count_nonzero(self.new_row >= 0))


@dataclass(frozen=True, slots=True)
class _Job:
    column: VectorColumn
    space: str
    config: VectorConfig
    threads: int
    asked: Rows
    by: Sequence[Trial]
    coded_graphs: bool

    def builder(self) -> GraphBuilder:
        config = self.config
        return GraphBuilder(
            self.column, self.space, m=config.m, ef_construction=config.ef_construction, threads=self.threads
        )

    def graph(self, builder: GraphBuilder) -> HnswIndex:
        return HnswIndex(builder.graph(), self.column, self.space)


def built_ways(
    vectors: Vectors,
    ties: npt.NDArray[np.uint64],
    space: str,
    config: VectorConfig,
    *,
    threads: int,
    coded_graphs: bool = False,
    old: Sequence[Old] = (),
) -> list[Way]:
    """The indexes over (n, dim) vectors and what they reach. Of so few rows that none can be held out, a graph alone, unmeasured.

    Args:
        ties: (n,) see `VectorColumn`.
        coded_graphs: whether the graph's links are coded, where that makes searches faster.
        old: indexes over some of the rows, of which some may be extended.
    """
    column = VectorColumn([VectorChunk(vectors)], ties)
    asked = held_out(column.ties)
    by = trials(column, space, asked, threads=threads) if len(asked) else []
    job = _Job(column, space, config, threads, asked, by, coded_graphs)
    if not len(asked):
        builder = job.builder()
        builder.add(np.arange(column.count))
        return [Way(job.graph(builder))]
    return [*_graph(job, old), *_clusters(job, old)]


# --- graphs


def _graph(job: _Job, old: Sequence[Old]) -> Iterator[Way]:
    base = _largest(old, job, lambda index: isinstance(index, HnswIndex) and _width(index) == 2 * job.config.m)
    if base is not None:
        way, new_row = base
        assert isinstance(way.index, HnswIndex)
        assert way.calibration is not None
        builder = _extended_graph(job, way.index, new_row)
        index = job.graph(builder)
        calibration = _measured_walk(index, job)
        if 0 < calibration.needed <= _DRIFT * way.calibration.reference:
            yield from _whole(job, builder, index, replace(calibration, reference=way.calibration.reference))
            return
    builder = job.builder()
    present = np.ones(job.column.count, dtype=bool)
    present[job.asked] = False
    builder.add(np.flatnonzero(present))
    index = job.graph(builder)
    calibration = _measured_walk(index, job)
    yield from _whole(job, builder, index, replace(calibration, reference=calibration.needed))


def _whole(job: _Job, builder: GraphBuilder, measured: HnswIndex, calibration: Calibration) -> Iterator[Way]:
    """The graph with the rows that were held out, and the codes of its links if without those rows they were worth it."""
    coded = _measured_codes(job, measured, calibration)
    builder.add(job.asked)
    index = job.graph(builder)
    yield Way(index, calibration)
    if coded is not None:
        yield Way(CodedGraphIndex(code_links(index, threads=job.threads), index), coded)


def _measured_codes(job: _Job, graph: HnswIndex, calibration: Calibration) -> Calibration | None:
    """None unless the usual recall is reached for less than the graph alone takes."""
    if not job.coded_graphs or job.column.dimension > LARGEST_DIMENSION:
        return None
    index = CodedGraphIndex(code_links(graph, threads=job.threads), graph)
    found = _measured_walk(index, job)
    cost = _usual_cost(index, found)
    return found if cost < _usual_cost(graph, calibration) else None


def _usual_cost(index: VectorIndex, calibration: Calibration) -> float:
    """Nanoseconds for the usual recall; infinite where it is out of reach."""
    point = calibration.least(_K, 1.0, DEFAULT_RECALL)
    return math.inf if point is None else index.cost(_K, point.compared, shared=False)


def _width(index: HnswIndex) -> int:
    return int(index.graph.links.shape[1])


def _extended_graph(job: _Job, base: HnswIndex, rows: Rows) -> GraphBuilder:
    new_row = np.where(np.isin(rows, job.asked), -1, rows)
    builder = job.builder()
    builder.start_from(base.graph, new_row)
    present = np.zeros(job.column.count, dtype=bool)
    present[job.asked] = present[new_row[new_row >= 0]] = True
    builder.add(np.flatnonzero(~present))
    return builder


def _measured_walk(index: HnswIndex | CodedGraphIndex, job: _Job) -> Calibration:
    return _measured(Subject(index, _EFFORTS, [_WALKED], _enough(index, job), _LEAST_GRAPH_SHARE), job)


# --- clusters


def _clusters(job: _Job, old: Sequence[Old]) -> Iterator[Way]:
    base = _largest(old, job, lambda index: isinstance(index, ClusterIndex))
    if base is not None:
        way, new_row = base
        assert isinstance(way.index, ClusterIndex)
        assert way.calibration is not None
        lists = extended_clusters(
            job.column, job.space, ~spared(job.column.ties), way.index.clusters, new_row, threads=job.threads
        )
        found = _measured_clusters(ClusterIndex(lists, job.column, job.space), job)
        reference, needed = way.calibration.reference, _needed(found)
        if 0 < needed <= _DRIFT * reference:
            yield from _with_reference(found, reference)
            return
    lists = build_clusters(job.column, job.space, ~spared(job.column.ties), threads=job.threads)
    found = _measured_clusters(ClusterIndex(lists, job.column, job.space), job)
    yield from _with_reference(found, _needed(found))


def _with_reference(found: Sequence[Way], reference: int) -> Iterator[Way]:
    for way in found:
        assert way.calibration is not None
        yield Way(way.index, replace(way.calibration, reference=reference))


def _needed(found: Sequence[Way]) -> int:
    """The least effort of any."""
    return min((way.calibration.needed for way in found if way.calibration and way.calibration.needed), default=0)


def _measured_clusters(index: ClusterIndex, job: _Job) -> list[Way]:
    """With so little measured as does for the usual recall, and so much as does for nearly all."""
    lists = len(index.clusters.centroids)
    found: list[Way] = []
    for refine in _refines(index, lists, job):
        variant = index.refining(refine)
        efforts, enough = efforts_between(_FEWEST_LISTS, lists, 2), _enough(variant, job)
        subject = Subject(variant, efforts, _SCANNED, enough, clumping=index.clumping)
        found.append(Way(variant, _measured(subject, job, refine)))
    return found


def _refines(index: ClusterIndex, lists: int, job: _Job) -> list[int]:
    trial, goals, found = job.by[0].with_about(QUERIES // 2), list(_REFINED_RECALL), []
    (case,) = trial.cases
    for refine in _REFINES:
        near = index.refining(refine).search(trial.queries, _K, effort=lists, allowed=case.allowed, threads=job.threads)
        recall = float(recalls_of(near, case.true, _K).mean())
        if recall >= goals[0] or refine == _REFINES[-1]:
            found.append(refine)
            goals = [goal for goal in goals if goal > recall]
        if not goals:
            break
    # Under a filter of one kind codes tell less of which rows are near.
    return found if len(found) > 1 else [*found, min(_MORE * found[0], _REFINES[-1])]


# --- both


def _enough(index: VectorIndex, job: _Job) -> Callable[[int, Point, Trial], bool]:
    rows, dimension = job.column.count, job.column.dimension
    return lambda k, point, trial: not worth(index, k, point, rows=rows, dimension=dimension, allowed=trial.allowed)


def _measured(subject: Subject, job: _Job, refine: int = 1) -> Calibration:
    found = calibrate(subject, job.by, threads=job.threads, refine=refine)
    point = found.least(_K, 1.0, DEFAULT_RECALL)
    return replace(found, needed=0 if point is None else point.effort)


def _largest(old: Sequence[Old], job: _Job, fits: Callable[[VectorIndex], bool]) -> tuple[Way, Rows] | None:
    """The index of the segment with the most rows, if it is of this kind and has most of the rows."""
    largest = max(old, key=lambda each: each.kept, default=None)
    if largest is None or largest.kept < _LEAST_SHARE * job.column.count:
        return None
    way = next((way for way in largest.ways if fits(way.index)), None)
    return (way, largest.new_row) if way and way.calibration and way.calibration.reference else None
