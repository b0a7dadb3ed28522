"""Building the index of a segment, and measuring it: rows are held out, the index without them is asked for their neighbours, and they
are added.

In a merge the largest graph is extended instead of built anew, as long as what that gives needs not much more effort than a graph built
from nothing did: rows that are gone leave gaps that are mended only roughly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from shoal_core.schema import VectorConfig
from shoal_index.planner import DEFAULT_RECALL, worth
from shoal_index.vector.calibration import Calibration, Point, calibrate, held_out
from shoal_index.vector.column import VectorChunk, VectorColumn
from shoal_index.vector.engine import Mask, Neighbours, Rows, Vectors
from shoal_index.vector.hnsw import Graph, HnswIndex
from shoal_index.vector.hnsw_build import GraphBuilder

_K = 10  # for which drift is judged
_DRIFT = 1.5  # times the effort of a graph built from nothing
_LEAST_SHARE = 0.5  # of the rows that a graph must have to be extended


@dataclass(frozen=True, slots=True)
class OldGraph:
    """The graph of a segment that is merged: its measure, and (n,) for each of its rows the row in the output, or -1."""

    graph: Graph
    calibration: Calibration
    new_row: Rows


@dataclass(frozen=True, slots=True)
class _Job:
    column: VectorColumn
    space: str
    config: VectorConfig
    threads: int

    def builder(self) -> GraphBuilder:
        config = self.config
        return GraphBuilder(
            self.column, self.space, m=config.m, ef_construction=config.ef_construction, threads=self.threads
        )

    def index(self, builder: GraphBuilder) -> HnswIndex:
        return HnswIndex(builder.graph(), self.column, self.space)


def built_index(
    vectors: Vectors,
    ties: npt.NDArray[np.uint64],
    space: str,
    config: VectorConfig,
    *,
    threads: int,
    old: Sequence[OldGraph] = (),
) -> tuple[HnswIndex, Calibration | None]:
    """A graph over (n, dim) vectors and what it reaches; None for so few rows that none can be held out.

    Args:
        ties: (n,) see `VectorColumn`.
        old: graphs over some of the rows, of which one may be extended.
    """
    job = _Job(VectorColumn([VectorChunk(vectors)], ties), space, config, threads)
    asked = held_out(job.column.count)
    base = _worth_extending(old, job)
    if base is not None and len(asked):
        index, calibration = _extended(job, base, asked)
        if 0 < calibration.needed <= _DRIFT * base.calibration.reference:
            return index, replace(calibration, reference=base.calibration.reference)
    return _built(job, asked)


def _built(job: _Job, asked: Rows) -> tuple[HnswIndex, Calibration | None]:
    builder = job.builder()
    builder.add(_others(asked, job.column.count))
    if not len(asked):
        return job.index(builder), None
    calibration = _measured(job.index(builder), job, asked)
    builder.add(asked)
    return job.index(builder), replace(calibration, reference=calibration.needed)


def _extended(job: _Job, base: OldGraph, asked: Rows) -> tuple[HnswIndex, Calibration]:
    new_row = np.where(np.isin(base.new_row, asked), -1, base.new_row)
    builder = job.builder()
    builder.start_from(base.graph, new_row)
    present = np.zeros(job.column.count, dtype=bool)
    present[asked] = present[new_row[new_row >= 0]] = True
    builder.add(np.flatnonzero(~present))
    calibration = _measured(job.index(builder), job, asked)
    builder.add(asked)
    return job.index(builder), calibration


def _worth_extending(old: Sequence[OldGraph], job: _Job) -> OldGraph | None:
    """The graph with the most rows, if it has most of the rows and is of the collection's present width."""
    largest = max(old, key=lambda each: int(np.count_nonzero(each.new_row >= 0)), default=None)
    if largest is None or largest.graph.links.shape[1] != 2 * job.config.m:
        return None
    share = np.count_nonzero(largest.new_row >= 0) / job.column.count
    return largest if share >= _LEAST_SHARE and largest.calibration.reference else None


def _others(rows: Rows, count: int) -> Rows:
    mask = np.ones(count, dtype=bool)
    mask[rows] = False
    return np.flatnonzero(mask)


def _measured(index: HnswIndex, job: _Job, asked: Rows) -> Calibration:
    def search(queries: Vectors, k: int, effort: int, allowed: Mask | None) -> tuple[Neighbours, npt.NDArray[np.int64]]:
        return index.search_counting(queries, k, effort=effort, allowed=allowed, threads=job.threads)

    def enough(point: Point, allowed: int) -> bool:
        return not worth(point, allowed)

    found = calibrate(index.name, search, job.column, job.space, asked, threads=job.threads, enough=enough)
    point = found.least(_K, 1.0, DEFAULT_RECALL)
    return replace(found, needed=0 if point is None else point.effort)
