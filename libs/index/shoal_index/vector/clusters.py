"""Clusters: posting lists of 4-bit product-quantised codes, scanned by table look-ups in registers, the best of them measured exactly.

Lists are those of k-means; a code stands for what is left of a vector after its centroid, piece by piece of its dimensions (Jégou,
Douze and Schmid 2011; André, Kermarrec and Le Scouarnec 2015). See native/clusters.hpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.errors import Corrupt
from shoal_index.vector import costs, native
from shoal_index.vector.by_mask import ByMask
from shoal_index.vector.column import VectorColumn
from shoal_index.vector.engine import Mask, Neighbours, Vectors, neighbours
from shoal_index.vector.matrices import lists_of, matrix_of

CLUSTERS = "clusters"  # the kind of its blocks
CODED = 32  # vectors of a block of codes
NONE = 0xFFFFFFFF  # fills up the last block of a list

_SAMPLED_BLOCKS = 256
_FEWEST_BLOCKS = 32
LEAST_REFINED = 10  # neighbours: where fewer are wanted, as many rows are measured as for these

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Clusters:
    """Posting lists.

    Attributes:
        origin: (dim,) float32, for l2: centroids, codes and biases are of vectors less this, as a far origin would eat the codes' few
            bits; else zeros.
        centroids: (lists, dim) float32.
        codebook: (pieces, width, 16) float32: 16 residuals of each piece, column by column.
        starts: (lists + 1,) int64, the first block of each list.
        members: (blocks, 32) uint32 rows, `NONE` at the end of a list.
        codes: (blocks, pieces, 16) uint8: byte j of a piece has the code of vector j below and that of vector j + 16 above.
        biases: (blocks, 32) float32 squared lengths of what the codes stand for, for l2; else None.
    """

    origin: Floats
    centroids: Floats
    codebook: Floats
    starts: npt.NDArray[np.int64]
    members: npt.NDArray[np.uint32]
    codes: npt.NDArray[np.uint8]
    biases: Floats | None

    @property
    def size_bytes(self) -> int:
        """Of all of it."""
        parts = (self.origin, self.centroids, self.codebook, self.starts, self.members, self.codes)
        return sum(part.nbytes for part in parts) + (0 if self.biases is None else self.biases.nbytes)

    def to_tables(self) -> list[pa.Table]:
        """The origin, the centroids, the codebook, where lists start, and the blocks."""
        pieces, width, _ = self.codebook.shape
        blocks = {"members": lists_of(self.members), "codes": lists_of(self.codes.reshape(len(self.codes), -1))}
        if self.biases is not None:
            blocks["biases"] = lists_of(self.biases)
        head = {b"pieces": str(pieces).encode(), b"width": str(width).encode()}
        return [
            pa.table({"origin": self.origin}),
            pa.table({"centroid": lists_of(self.centroids)}).replace_schema_metadata(head),
            pa.table({"codebook": lists_of(self.codebook.reshape(-1, 16))}),
            pa.table({"start": pa.array(self.starts)}),
            pa.table(blocks),
        ]

    @classmethod
    def of_tables(cls, tables: Sequence[pa.Table], rows: int, dimension: int, space: str) -> Clusters:
        """The inverse of `to_tables` for a segment of so many vectors, without copying. Raises `Corrupt`."""
        try:
            origin, centroids, codebook, starts, blocks = tables
            head = centroids.schema.metadata
            pieces, width = int(head[b"pieces"]), int(head[b"width"])
            codes = matrix_of(blocks.column("codes"), np.uint8)
            clusters = cls(
                origin.column("origin").combine_chunks().to_numpy(),
                matrix_of(centroids.column("centroid"), np.float32),
                matrix_of(codebook.column("codebook"), np.float32).reshape(pieces, width, 16),
                starts.column("start").combine_chunks().to_numpy(),
                matrix_of(blocks.column("members"), np.uint32),
                codes.reshape(len(codes), pieces, 16),
                matrix_of(blocks.column("biases"), np.float32) if "biases" in blocks.column_names else None,
            )
            clusters.check(rows, dimension, space)
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupt(f"clusters cannot be read: {error!r}") from error
        return clusters

    def check(self, rows: int, dimension: int, space: str) -> None:
        """Raise `ValueError` unless the lists have each row once and all parts fit: kernels follow them unasked."""
        lists, pieces, width = len(self.centroids), *self.codebook.shape[:2]
        blocks = len(self.members)
        fits = (
            self.origin.shape == (dimension,)
            and self.centroids.shape == (lists, dimension)
            and pieces * width >= dimension
            and self.members.shape == (blocks, CODED)
            and self.codes.shape == (blocks, pieces, 16)
            and (self.biases is not None) == (space == "l2")
            and (self.biases is None or self.biases.shape == (blocks, CODED))
            and {self.origin.dtype, self.centroids.dtype} == {np.dtype(np.float32)}
        )
        if not fits:
            raise ValueError("their parts are not of one size")
        starts = self.starts
        if starts.dtype != np.int64 or starts.shape != (lists + 1,) or starts[0] != 0 or starts[-1] != blocks:
            raise ValueError("the lists do not hold all blocks")
        if bool((np.diff(starts) < 0).any()):
            raise ValueError("the lists are not in order")
        used = self.members != NONE
        ends = np.zeros(blocks, dtype=bool)
        ends[starts[1:][np.diff(starts) > 0] - 1] = True
        if not used[~ends].all() or bool((used[:, 1:] > used[:, :-1]).any()):
            raise ValueError("a list ends before its end")
        members = self.members[used]
        if len(members) != rows or (rows and int(members.max()) >= rows):
            raise ValueError("the lists' members are not the segment's rows")
        if not bool(np.bincount(members, minlength=rows).all()):
            raise ValueError("a row is in two lists")

    def some_members(self) -> npt.NDArray[np.uint32]:
        """(m, 32) members of up to 256 full blocks, evenly chosen."""
        whole = np.flatnonzero(self.members[:, -1] != NONE)
        chosen = (
            whole[np.unique(np.linspace(0, len(whole) - 1, _SAMPLED_BLOCKS).astype(np.int64))] if len(whole) else whole
        )
        return self.members[chosen]

    def list_of_block(self) -> npt.NDArray[np.int64]:
        """(blocks,) the list that each is of."""
        return np.repeat(np.arange(len(self.centroids)), np.diff(self.starts))


class AllowedLists:
    """Which rows of some lists are allowed, as far as searches have looked: see `native.search_clusters`."""

    __slots__ = ("bits", "counts")

    def __init__(self, clusters: Clusters) -> None:
        self.counts = np.full(len(clusters.centroids), -1, dtype=np.int32)
        self.bits = np.empty(len(clusters.members), dtype=np.uint32)

    @property
    def size_bytes(self) -> int:
        """Of both arrays."""
        return int(self.counts.nbytes + self.bits.nbytes)


class ClusterIndex:
    """Posting lists over the vectors of a segment.

    Args:
        refine: rows to measure for each neighbour that is wanted, the best by their codes.
    """

    name = CLUSTERS

    def __init__(self, clusters: Clusters, column: VectorColumn, space: str, refine: int = 1) -> None:
        self.clusters = clusters
        self.refine = refine
        self._column = column
        self._space = space
        self._some_members = clusters.some_members()
        self._all = AllowedLists(clusters)
        self._allowed: ByMask[AllowedLists] = ByMask()
        centroids = clusters.centroids
        squares = np.einsum("ij,ij->i", centroids, centroids) if space == "l2" else None
        self._handle = native.make_clusters(
            column.count,
            clusters.origin if space == "l2" else None,
            centroids,
            squares,
            clusters.codebook,
            clusters.starts,
            clusters.members,
            clusters.codes,
            clusters.biases,
        )

    def refining(self, refine: int) -> ClusterIndex:
        """The same lists, of which more or fewer are measured."""
        other = copy(self)
        other.refine = refine
        return other

    @property
    def size_bytes(self) -> int:
        """Bytes of lists and centroids."""
        return self.clusters.size_bytes

    @property
    def kept_bytes(self) -> int:
        """Bytes of what searches found out about masks."""
        return sum(kept.size_bytes for kept in (self._all, *self._allowed.values()))

    def clumping(self, allowed: Mask) -> float:
        """How much more the share of allowed rows differs from one block to another than it would by lot (the index of dispersion):
        about 1 for rows chosen at random, many times that where vectors of one kind are allowed. Of a sample of the blocks.
        """
        if len(self._some_members) < _FEWEST_BLOCKS:
            return np.inf
        counts = allowed.view(np.uint8)[self._some_members].sum(axis=1, dtype=np.int64)
        share = float(counts.mean()) / CODED
        return float(counts.var()) / (CODED * share * (1.0 - share)) if 0.0 < share < 1.0 else np.inf

    def cost(self, k: int, compared: float, *, shared: bool) -> float:
        """See `VectorIndex`."""
        lists, dimension = self.clusters.centroids.shape
        return (
            lists * costs.rank_centroid(dimension, shared=shared)
            + compared * costs.look_up_code(len(self.clusters.codebook), shared=shared)
            + self.measured(k) * costs.measure_row(dimension)
        )

    def least_effort(self, k: int) -> int:
        """See `VectorIndex`: where the lists have too few, more are scanned."""
        return 1

    def measured(self, k: int) -> int:
        """See `VectorIndex`."""
        return self.refine * max(k, LEAST_REFINED)

    def touched(self, k: int, compared: float) -> float:
        """See `VectorIndex`: codes are compared without it."""
        return self.measured(k)

    def search(self, queries: Vectors, k: int, *, effort: int, allowed: Mask | None, threads: int) -> Neighbours:
        """See `VectorIndex`; ``effort`` is the number of lists to scan, in lists of usual size, of which allowed rows alone count: so
        it hardly depends on how many are allowed, and where. Finds k whenever k are allowed.
        """
        return self.search_counting(queries, k, effort=effort, allowed=allowed, threads=threads)[0]

    def search_counting(
        self, queries: Vectors, k: int, *, effort: int, allowed: Mask | None, threads: int
    ) -> tuple[Neighbours, npt.NDArray[np.int64]]:
        """The same, and (q,) how many codes each query was compared with."""
        k = min(k, self._column.count)
        lists = self._all if allowed is None else self._allowed.of(allowed, lambda: AllowedLists(self.clusters))
        found, compared = native.search_clusters(
            self._column.handle(self._space),
            self._handle,
            queries,
            k,
            probes=effort,
            refined=self.measured(k),
            allowed=allowed,
            allowed_counts=lists.counts,
            allowed_bits=lists.bits,
            threads=threads,
        )
        return neighbours(found), compared

    def to_tables(self) -> Mapping[str, Sequence[pa.Table]]:
        """The lists."""
        return {CLUSTERS: self.clusters.to_tables()}
