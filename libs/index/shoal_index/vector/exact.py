"""Exact search: a matrix product finds candidates, `exact_distances` decides among them.

A float32 matrix product rounds differently from row to row, so everything within its error bound of the k-th best is a candidate.
So is, for cosine, every vector too short for float32 to tell its squared length. Vectors so long that squares overflow are refused
before they are stored.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from shoal_index.vector.engine import (
    Mask,
    Neighbours,
    Rows,
    Vectors,
    VectorSource,
    exact_distances,
    order_by_distance,
    unit_vectors,
)

_BLOCK_SCORES = 4 << 20  # scores held at once
_COPIED_BYTES = 128 << 20  # of vectors copied out at once
_MEASURED_BYTES = 32 << 20  # of vectors in float64 at once
_SHORT = np.float32(1e-30)  # a squared length below this has lost its digits, or all of it
_EPSILON = 1e-5  # relative bound of a float32 dot product's rounding error, generous for any dimension allowed


def search_exact(
    source: VectorSource,
    space: str,
    queries: Vectors,
    k: int,
    *,
    allowed: Mask | None,
    ties: npt.NDArray[np.uint64],
) -> Neighbours:
    """The ``k`` nearest of each query among the allowed rows.

    Args:
        queries: (q, dim) float32.
        allowed: (n,) bool, or None for all rows.
        ties: (n,) uint64 that orders rows of equal distance.
    """
    if allowed is not None:
        rows = np.flatnonzero(allowed)
        if len(rows) < source.count // 2:
            return _search(_Gathered(source, rows), space, queries, k, ties[rows], rows)
    count = source.count
    return _search(source, space, queries, k, ties, np.arange(count), allowed)


class _Gathered:
    """Some rows of a source, copied out: once if they are few, else piece by piece whenever they are asked for."""

    def __init__(self, source: VectorSource, rows: Rows) -> None:
        self._source = source
        self._rows = rows
        step = max(1, _COPIED_BYTES // (4 * source.gather(rows[:0]).shape[1]))
        self._parts = [rows[start : start + step] for start in range(0, len(rows), step)]
        self._copy = source.gather(rows) if len(self._parts) == 1 else None

    @property
    def count(self) -> int:
        return len(self._rows)

    def chunks(self) -> Iterable[Vectors]:
        return map(self._source.gather, self._parts) if self._copy is None else [self._copy]

    def squares(self) -> list[npt.NDArray[np.float32]]:
        if self._copy is not None:
            return [squared_lengths(self._copy)]
        squares = np.concatenate(self._source.squares())  # which a source keeps
        return [squares[part] for part in self._parts]

    def gather(self, rows: Rows) -> Vectors:
        return self._source.gather(self._rows[rows])


def squared_lengths(vectors: Vectors) -> npt.NDArray[np.float32]:
    """(n,) float32 squared Euclidean lengths of (n, dim) vectors."""
    squares: npt.NDArray[np.float32] = np.einsum("ij,ij->i", vectors, vectors)
    return squares


def _search(
    source: VectorSource,
    space: str,
    queries: Vectors,
    k: int,
    ties: npt.NDArray[np.uint64],
    names: Rows,
    allowed: Mask | None = None,
) -> Neighbours:
    if source.count == 0 or k == 0:
        return Neighbours(np.empty(0, np.int64), np.empty(0, np.float32), np.zeros(len(queries), np.int64))
    found_rows, found_distances, counts = [], [], []
    step = max(1, _BLOCK_SCORES // source.count)
    unsure = _too_short(source, allowed) if space == "cosine" else np.empty(0, np.int64)
    for start in range(0, len(queries), step):
        block = queries[start : start + step]
        scores, errors = _scores(source, space, unit_vectors(block) if space == "cosine" else block)
        if allowed is not None:
            scores[:, ~allowed] = np.inf
        scores[:, unsure] = np.inf
        for query, row_scores, error in zip(block, scores, errors, strict=True):
            near = np.concatenate([_candidates(row_scores, k, error), unsure])
            distances = _distances(space, query, source, near)
            best = order_by_distance(distances, ties[near], k)
            found_rows.append(names[near[best]])
            found_distances.append(distances[best])
            counts.append(len(best))
    return Neighbours(np.concatenate(found_rows), np.concatenate(found_distances), np.array(counts, np.int64))


def _candidates(scores: npt.NDArray[np.float32], k: int, error: float) -> Rows:
    finite = np.count_nonzero(scores < np.inf) if scores.max() == np.inf else len(scores)
    if finite <= k:
        return np.flatnonzero(scores < np.inf)
    bound = np.partition(scores, k - 1)[k - 1]
    return np.flatnonzero(scores <= bound + 2 * error)


def _distances(space: str, query: Vectors, source: VectorSource, rows: Rows) -> npt.NDArray[np.float32]:
    """`exact_distances` of rows, some at a time: where many vectors are alike, all of them are candidates."""
    step = max(1, _MEASURED_BYTES // (8 * len(query)))
    parts = (rows[start : start + step] for start in range(0, max(len(rows), 1), step))
    return np.concatenate([exact_distances(space, query, source.gather(part)) for part in parts])


def _too_short(source: VectorSource, allowed: Mask | None) -> Rows:
    """Rows, among the allowed ones, whose direction float32 cannot tell from their squared length."""
    short = np.concatenate([squares < _SHORT for squares in source.squares()])
    return np.flatnonzero(short if allowed is None else short & allowed)


def _scores(source: VectorSource, space: str, queries: Vectors) -> tuple[Vectors, npt.NDArray[np.float64]]:
    """(q, n) float32 scores that order rows as the distance does, and (q,) bounds of their error."""
    scores = np.empty((len(queries), source.count), dtype=np.float32)
    largest = 0.0
    start = 0
    for chunk, squares in zip(source.chunks(), source.squares(), strict=True):
        part = scores[:, start : start + len(chunk)]
        np.matmul(queries, chunk.T, out=part)
        largest = max(largest, float(squares.max(initial=0.0)))
        if space == "l2":
            part *= -2.0
            part += squares
        elif space == "cosine":
            part /= -np.sqrt(np.maximum(squares, _SHORT))
        else:
            np.negative(part, out=part)
        start += len(chunk)
    lengths = np.sqrt(np.einsum("ij,ij->i", queries, queries).astype(np.float64))
    if space == "cosine":
        return scores, np.full(len(queries), _EPSILON)
    scale = lengths * np.sqrt(largest)
    return scores, _EPSILON * (2 * scale + largest if space == "l2" else scale)
