"""Exact search: every allowed row is compared (native/scan.hpp). A float32 product rounds, so everything within its error bound of the
k-th best is measured in float64, and that decides. Vectors so long that squares overflow are refused before they are stored.
"""

from __future__ import annotations

import numpy as np

from shoal_index.vector import native
from shoal_index.vector.column import VectorChunk, VectorColumn
from shoal_index.vector.engine import Mask, Neighbours, Rows, Vectors, neighbours


def search_exact(
    column: VectorColumn, space: str, queries: Vectors, k: int, *, allowed: Mask | None, threads: int = 1
) -> Neighbours:
    """The ``k`` nearest of each query among the allowed rows.

    Args:
        queries: (q, dim) float32.
        allowed: (n,) bool, or None for all rows.
    """
    found = native.scan(column.handle(space), queries, min(k, column.count), allowed=allowed, threads=threads)
    return neighbours(found)


def nearest_means(vectors: Vectors, means: Vectors, threads: int) -> Rows:
    """(n,) the nearest of the means (m, dim) to each vector, by l2."""
    column = VectorColumn([VectorChunk(means)], np.arange(len(means), dtype=np.uint64))
    return native.scan(column.handle("l2"), vectors, 1, allowed=None, threads=threads).rows[:, 0]
