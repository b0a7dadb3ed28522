"""What a vector engine is, and the distances all of them answer with.

Spaces: ``l2`` is the squared Euclidean distance, ``cosine`` is 1 − cos (a zero vector is at 1 from everything), ``ip`` is 1 − dot.
Smaller is nearer. Engines find candidates; `exact_distances` says how far they are, so that the same vector has the same distance
wherever it lies: in the tail, in any segment, in any position of a block.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

SPACES = ("l2", "cosine", "ip")


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest rows of several queries, nearest first, one query after another.

    Attributes:
        rows: (m,) int64 row numbers.
        distances: (m,) float32.
        counts: (q,) int64 rows of each query.
    """

    rows: Rows
    distances: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int64]


class VectorSource(Protocol):
    """Vectors by row number."""

    @property
    def count(self) -> int: ...

    def chunks(self) -> Iterable[Vectors]:
        """All vectors, as (n_i, dim) float32 pieces in row order."""
        ...

    def squares(self) -> list[npt.NDArray[np.float32]]:
        """Per chunk the (n_i,) squared lengths of its vectors."""
        ...

    def gather(self, rows: Rows) -> Vectors:
        """(len(rows), dim) float32 copy of the rows named."""
        ...


def exact_distances(space: str, query: Vectors, vectors: Vectors) -> npt.NDArray[np.float32]:
    """(n,) float32 distances of ``vectors`` (n, dim) from ``query`` (dim,), summed in float64 row by row."""
    wide = vectors.astype(np.float64)
    target = query.astype(np.float64)
    if space == "l2":
        difference = wide - target
        return np.einsum("ij,ij->i", difference, difference).astype(np.float32)
    products = np.einsum("ij,j->i", wide, target)
    if space == "ip":
        return (1.0 - products).astype(np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", wide, wide)) * np.sqrt(np.dot(target, target))
    cosines = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
    return (1.0 - cosines).astype(np.float32)


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
