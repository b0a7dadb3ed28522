"""What a vector engine is, and the distances all of them answer with.

Spaces: ``l2`` is the squared Euclidean distance, ``cosine`` is 1 − cos (a zero vector is at 1 from everything), ``ip`` is 1 − dot.
Smaller is nearer. Engines find candidates by whatever they keep; how far those are is summed in float64 in one fixed order
(native/vectors.hpp), so that the same vector has the same distance wherever it lies: in the tail, in any segment, in any position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_index.vector import native

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

SPACES = native.SPACES


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest rows of several queries, nearest first, equal ones by their ties, one query after another.

    Attributes:
        rows: (m,) int64 row numbers.
        distances: (m,) float32.
        counts: (q,) int64 rows of each query.
    """

    rows: Rows
    distances: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int64]


class VectorIndex(Protocol):
    """The vectors of one segment, ready to be searched. Immutable and safe for threads."""

    @property
    def name(self) -> str:
        """Of the engine."""
        ...

    @property
    def size_bytes(self) -> int:
        """Bytes of memory beside the vectors."""
        ...

    def cost(self, k: int, compared: float, *, shared: bool) -> float:
        """What a query for ``k`` that compares so much takes, in nanoseconds; ``shared``: together with others (`costs`)."""
        ...

    def least_effort(self, k: int) -> int:
        """That can find ``k``."""
        ...

    def measured(self, k: int) -> int:
        """Rows whose distance is computed exactly to find ``k``."""
        ...

    def touched(self, k: int, compared: float) -> float:
        """Rows whose vectors are read for that."""
        ...

    def search(self, queries: Vectors, k: int, *, effort: int, allowed: Mask | None, threads: int) -> Neighbours:
        """Up to ``k`` near rows of each query.

        Args:
            queries: (q, dim) float32.
            effort: how hard to look, in the engine's own measure: more finds more of the true nearest, and takes longer.
            allowed: (n,) rows that may be answered; None for all.
            threads: to use at most.
        """
        ...

    def search_counting(
        self, queries: Vectors, k: int, *, effort: int, allowed: Mask | None, threads: int
    ) -> tuple[Neighbours, npt.NDArray[np.int64]]:
        """The same, and (q,) how much each query was compared with, in the engine's own measure."""
        ...

    def to_tables(self) -> Mapping[str, Sequence[pa.Table]]:
        """What is stored of it, by kind of block."""
        ...


def no_neighbours(queries: int) -> Neighbours:
    """Of so many queries, nothing."""
    return Neighbours(np.empty(0, np.int64), np.empty(0, np.float32), np.zeros(queries, np.int64))


def neighbours(found: native.Nearest) -> Neighbours:
    """What a kernel found, one query after another."""
    if found.total == found.rows.size:
        return Neighbours(found.rows.reshape(-1), found.distances.reshape(-1), found.counts)
    filled = np.arange(found.rows.shape[1]) < found.counts[:, None]
    return Neighbours(found.rows[filled], found.distances[filled], found.counts)


def exact_distances(space: str, query: Vectors, vectors: Vectors) -> npt.NDArray[np.float32]:
    """(n,) float32 distances of ``vectors`` (n, dim) from ``query`` (dim,), summed in float64 row by row."""
    return native.distances(space, query, vectors)


def unit_vectors(vectors: Vectors) -> Vectors:
    """(n, dim) float32 vectors of the same directions and length 1, by way of float64. Zero stays zero."""
    wide = vectors.astype(np.float64)
    lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide))[:, None]
    return np.divide(wide, lengths, out=np.zeros_like(wide), where=lengths > 0).astype(np.float32)


def order_by_distance(
    distances: npt.NDArray[np.floating[Any]], ties: npt.NDArray[np.uint64], k: int
) -> npt.NDArray[np.int64]:
    """Positions of the ``k`` smallest distances (or other measures), nearest first, equal ones by ascending ``ties``."""
    if len(distances) > 4 * k > 0:
        bound = np.partition(distances, k - 1)[k - 1]
        near = np.flatnonzero(distances <= bound)
        return near[np.lexsort((ties[near], distances[near]))[:k]]
    return np.lexsort((ties, distances))[:k]
