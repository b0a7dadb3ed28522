"""Training clusters and coding vectors: k-means over a sample, and k-means of 16 in each piece of the residuals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal_index.vector import native
from shoal_index.vector.clusters import CODED, NONE, Clusters, Floats
from shoal_index.vector.column import VectorColumn
from shoal_index.vector.engine import Mask, Rows, unit_vectors
from shoal_index.vector.exact import nearest_means

_LISTS = 3.0  # times the square root of the number of vectors
_SAMPLED = 48  # vectors a list to train on
_CODED_SAMPLE = 16_384  # vectors to train the codebook on
_ROUNDS = 8  # of k-means
_CODE_ROUNDS = 10
_LONG, _SHORT = 4.0, 8.0  # times as long as usual, or as short, and a list is given up
_PIECE_STEP = 4  # pieces are filled up to a multiple of it
_NARROW = 128  # up to so many dimensions a piece has 2, else 4
_MOST_PIECES = 256
_AT_ONCE = 16_384  # rows
_SEED = 11


@dataclass(frozen=True, slots=True)
class _Source:
    """Vectors as they are coded.

    Attributes:
        origin: (dim,) see `Clusters`.
        trained: (n,) rows that anything may be made from.
    """

    column: VectorColumn
    space: str
    origin: Floats
    trained: Mask
    threads: int

    def take(self, rows: Rows) -> Floats:
        vectors = self.column.gather(rows)
        if self.space == "l2":
            return vectors - self.origin
        return unit_vectors(vectors) if self.space == "cosine" else vectors


def build_clusters(column: VectorColumn, space: str, trained: Mask, *, threads: int) -> Clusters:
    """Clusters over all vectors of a column.

    Args:
        trained: (n,) rows that centroids and codebook may be made from: a sample of them is.
    """
    random = np.random.default_rng(_SEED)
    lists = max(1, round(_LISTS * np.sqrt(column.count)))
    sampled = np.sort(random.permutation(np.flatnonzero(trained))[: _SAMPLED * lists])
    origin = np.zeros(column.dimension, dtype=np.float32)
    if space == "l2":
        origin = column.gather(sampled).mean(axis=0, dtype=np.float64).astype(np.float32)
    source = _Source(column, space, origin, trained, threads)
    sample = source.take(sampled)
    centroids = _means(sample, lists, random, threads)
    sample = sample[random.permutation(len(sample))[:_CODED_SAMPLE]]
    residuals = sample - centroids[nearest_means(sample, centroids, threads)]
    return _filled(source, centroids, _codebook(residuals, random, threads), None)


def extended_clusters(
    column: VectorColumn, space: str, trained: Mask, old: Clusters, new_row: Rows, *, threads: int
) -> Clusters:
    """The lists of another column with the vectors of this one, under the same codebook. Lists that have become far too long are split,
    very short ones are given up.

    Args:
        trained: see `build_clusters`.
        new_row: (n,) for each row of the other its row here, or -1 for one that is gone: its code is kept as it is.
    """
    source = _Source(column, space, old.origin, trained, threads)
    return _filled(source, old.centroids, old.codebook, (old, new_row))


def _means(vectors: Floats, count: int, random: np.random.Generator, threads: int) -> Floats:
    """(count, dim) means of Lloyd's algorithm; one that nobody is near begins again beside the largest."""
    means = vectors[random.permutation(len(vectors))[:count]].copy()
    for _ in range(_ROUNDS):
        owner = nearest_means(vectors, means, threads)
        sizes = np.bincount(owner, minlength=count)
        order = np.argsort(owner, kind="stable")
        used = np.flatnonzero(sizes)
        starts = (np.cumsum(sizes) - sizes)[used]
        means[used] = np.add.reduceat(vectors[order], starts, axis=0) / sizes[used, None].astype(np.float32)
        empty = np.flatnonzero(sizes == 0)
        largest = np.argsort(-sizes, kind="stable")[: len(empty)]
        means[empty] = means[largest] * np.float32(1.001) + np.float32(1e-6)
    return means


def _codebook(residuals: Floats, random: np.random.Generator, threads: int) -> Floats:
    """(pieces, width, 16) means of each piece of the residuals (n, dim); beyond the dimension there are zeros."""
    count, dimension = residuals.shape
    width = 2 if dimension <= _NARROW else 4
    while -(-dimension // width) > _MOST_PIECES:
        width *= 2
    pieces = -(-dimension // (width * _PIECE_STEP)) * _PIECE_STEP
    padded = np.zeros((count, pieces * width), dtype=np.float32)
    padded[:, :dimension] = residuals
    chosen = padded.reshape(count, pieces, width)[random.integers(count, size=(pieces, 16)), np.arange(pieces)[:, None]]
    book = np.ascontiguousarray(chosen.transpose(0, 2, 1))
    nothing = np.zeros((1, dimension), dtype=np.float32), np.zeros(count, dtype=np.int64)
    for _ in range(_CODE_ROUNDS):
        codes, _ = native.code_vectors(residuals, nothing[1], nothing[0], book, threads=threads)
        for piece in range(pieces):
            sizes = np.bincount(codes[:, piece], minlength=16)
            used = sizes > 0
            for axis in range(width):
                sums = np.bincount(codes[:, piece], weights=padded[:, piece * width + axis], minlength=16)
                book[piece, axis, used] = sums[used] / sizes[used]
    return book


def _filled(source: _Source, centroids: Floats, codebook: Floats, old: tuple[Clusters, Rows] | None) -> Clusters:
    """The lists of these centroids with all rows, some of which are coded already."""
    count = source.column.count
    owner = np.full(count, -1, dtype=np.int64)
    codes = np.zeros((count, len(codebook)), dtype=np.uint8)
    squares = np.zeros(count, dtype=np.float32)
    if old is not None:
        _take_over(*old, owner, codes, squares)
    missing = np.flatnonzero(owner < 0)
    _assign(source, missing, centroids, owner)
    if old is not None:
        centroids, moved = _balanced(source, centroids, owner)
        missing = np.union1d(missing, moved)
    for start in range(0, len(missing), _AT_ONCE):
        rows = missing[start : start + _AT_ONCE]
        codes[rows], squares[rows] = native.code_vectors(
            source.take(rows), owner[rows], centroids, codebook, threads=source.threads
        )
    return _listed(source.origin, centroids, codebook, owner, codes, squares if source.space == "l2" else None)


def _assign(source: _Source, rows: Rows, centroids: Floats, owner: npt.NDArray[np.int64]) -> None:
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        owner[part] = nearest_means(source.take(part), centroids, source.threads)


def _balanced(source: _Source, centroids: Floats, owner: npt.NDArray[np.int64]) -> tuple[Floats, Rows]:
    """Centroids of which none has far more or far fewer rows than usual, and the rows that changed their list. ``owner`` is updated.

    A list that is too long is divided by k-means of its own; whose list is gone goes to the nearest there is. Vectors that are alike
    stay together, however many.
    """
    sizes = np.bincount(owner, minlength=len(centroids))
    usual = np.sqrt(source.column.count) / _LISTS
    gone = (sizes > _LONG * usual) | (sizes < usual / _SHORT)
    same = centroids, np.empty(0, dtype=np.int64)
    if not gone.any():
        return same
    random = np.random.default_rng(_SEED)
    parts = [centroids[~gone]]
    members = np.split(np.argsort(owner, kind="stable"), np.cumsum(sizes)[:-1])
    for number in np.flatnonzero(gone & (sizes > usual)):
        rows = members[number][source.trained[members[number]]]
        count = min(round(sizes[number] / usual), len(rows))
        some = source.take(np.sort(random.permutation(rows)[: _SAMPLED * count]))
        parts.append(np.unique(_means(some, count, random, source.threads), axis=0) if count else centroids[[number]])
    balanced = np.concatenate(parts)
    if not len(balanced):
        return same
    moved = np.flatnonzero(gone[owner])
    names = np.cumsum(~gone) - 1
    owner[:] = names[owner]
    _assign(source, moved, balanced, owner)
    return balanced, moved


def _take_over(
    old: Clusters, new_row: Rows, owner: npt.NDArray[np.int64], codes: npt.NDArray[np.uint8], squares: Floats
) -> None:
    """Put in what is known of rows that another column has."""
    members = old.members.reshape(-1)
    place = np.flatnonzero(members != NONE)
    here = new_row[members[place]]
    place, here = place[here >= 0], here[here >= 0]
    owner[here] = np.repeat(old.list_of_block(), CODED)[place]
    block, slot = np.divmod(place, CODED)
    packed = old.codes[block, :, slot % 16]
    codes[here] = np.where((slot < 16)[:, None], packed & 15, packed >> 4)
    if old.biases is not None:
        squares[here] = old.biases.reshape(-1)[place]


def _listed(
    origin: Floats,
    centroids: Floats,
    codebook: Floats,
    owner: npt.NDArray[np.int64],
    codes: npt.NDArray[np.uint8],
    squares: Floats | None,
) -> Clusters:
    """The posting lists in whole blocks."""
    sizes = np.bincount(owner, minlength=len(centroids))
    blocks = -(-sizes // CODED)
    starts = np.concatenate([[0], np.cumsum(blocks)]).astype(np.int64)
    order = np.argsort(owner, kind="stable")
    within = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    place = np.repeat(starts[:-1] * CODED, sizes) + within
    members = np.full(int(starts[-1]) * CODED, NONE, dtype=np.uint32)
    members[place] = order
    flat = np.zeros((len(members), codes.shape[1]), dtype=np.uint8)
    flat[place] = codes[order]
    nibbles = flat.reshape(-1, CODED, codes.shape[1]).transpose(0, 2, 1)
    packed = np.ascontiguousarray(nibbles[:, :, :16] | nibbles[:, :, 16:] << 4)
    biases: Floats | None = None
    if squares is not None:
        biases = np.zeros((len(members) // CODED, CODED), dtype=np.float32)
        biases.reshape(-1)[place] = squares[order]
    return Clusters(origin, centroids, codebook, starts, members.reshape(-1, CODED), packed, biases)
