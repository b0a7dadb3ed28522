"""Exact search: every allowed row is compared (native/scan.hpp). A float32 product rounds, so everything within its error bound of the
k-th best is measured in float64, and that decides. Vectors so long that squares overflow are refused before they are stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from shoal_index.vector import native
from shoal_index.vector.column import VectorColumn
from shoal_index.vector.engine import Capabilities, Mask, Neighbours, Vectors, neighbours


class ExactIndex:
    """All vectors of a source, compared one by one. Nothing is stored of it; its effort means nothing."""

    name = "exact"
    capabilities = Capabilities(exact=True, filters=True)
    size_bytes = 0

    def __init__(self, column: VectorColumn, space: str) -> None:
        self._column = column
        self._space = space

    def search(self, queries: Vectors, k: int, *, effort: int = 0, allowed: Mask | None, threads: int) -> Neighbours:
        """The ``k`` nearest allowed rows of each query; see `VectorIndex`."""
        return search_exact(self._column, self._space, queries, k, allowed=allowed, threads=threads)

    def to_tables(self) -> Mapping[str, Sequence[pa.Table]]:
        """Nothing."""
        return {}


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
