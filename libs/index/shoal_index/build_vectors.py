"""Building the index of a segment, and measuring it: rows are held out, the index without them is asked for their neighbours, and they
are added.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shoal_core.schema import VectorConfig
from shoal_index.planner import worth
from shoal_index.vector.calibration import Calibration, Point, calibrate, held_out
from shoal_index.vector.column import VectorChunk, VectorColumn
from shoal_index.vector.engine import Mask, Neighbours, Vectors
from shoal_index.vector.hnsw import GraphBuilder, HnswIndex


def built_index(
    vectors: Vectors, ties: npt.NDArray[np.uint64], space: str, config: VectorConfig, *, threads: int
) -> tuple[HnswIndex, Calibration | None]:
    """A graph over (n, dim) vectors and what it reaches; None for so few rows that none can be held out."""
    column = VectorColumn([VectorChunk(vectors)], ties)
    builder = GraphBuilder(column, space, m=config.m, ef_construction=config.ef_construction, threads=threads)
    asked = held_out(column.count)
    present = np.ones(column.count, dtype=bool)
    present[asked] = False
    builder.add(np.flatnonzero(present))
    calibration = (
        _measured(HnswIndex(builder.graph(), column, space), column, space, asked, threads) if len(asked) else None
    )
    builder.add(asked)
    return HnswIndex(builder.graph(), column, space), calibration


def _measured(
    index: HnswIndex, column: VectorColumn, space: str, asked: npt.NDArray[np.int64], threads: int
) -> Calibration:
    def search(queries: Vectors, k: int, effort: int, allowed: Mask | None) -> tuple[Neighbours, npt.NDArray[np.int64]]:
        return index.search_counting(queries, k, effort=effort, allowed=allowed, threads=threads)

    def enough(point: Point, allowed: int) -> bool:
        return not worth(point, allowed)

    return calibrate(index.name, search, column, space, asked, threads=threads, enough=enough)
