"""A graph with codes of its links, for a faster walk (SymphonyQG: Gou, Gao, Xu and Long 2025; RaBitQ: Gao and Long 2024).

Beside each node lie codes of one bit a dimension of its neighbours less the node, in one piece. A walk estimates all of them at
once, and measures what it visits. Links and vectors are those of the segment. See native/coded_graph.hpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.errors import Corrupt
from shoal_index.vector import native
from shoal_index.vector.column import VectorColumn
from shoal_index.vector.engine import Mask, Neighbours, Vectors, neighbours, unit_vectors
from shoal_index.vector.hnsw import HnswIndex
from shoal_index.vector.matrices import lists_of, matrix_of

CODED_GRAPH = "coded_graph"  # the kind of its blocks
LARGEST_DIMENSION = 4096  # of what a sum of 16 bits can hold

# Nanoseconds: of a query before it visits anything, and of each row visited. So much, and so much for each dimension.
BEGIN_NS = (12_000.0, 30.0)
VISIT_NS = (920.0, 1.5)

_CHUNK_BYTES = 8 << 20
_SAMPLED = 4_096  # vectors, for the origin

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LinkCodes:
    """Codes of a graph's links.

    Attributes:
        origin: (dim,) float32, near the middle of the vectors, for cosine of those of length 1: a far one would eat the codes'
            few bits.
        chunks: (n_i, bytes) uint8 each: a record for each row. All but the last have the same number of rows, a power of two. A
            record has a block for each 32 links: (pieces, 16) bytes with the signs of 4 dimensions each, those of link j below and
            of j + 16 above, then 32 float32 biases and 32 slopes.
    """

    origin: Floats
    chunks: tuple[npt.NDArray[np.uint8], ...]

    @property
    def size_bytes(self) -> int:
        """Of all of it."""
        return self.origin.nbytes + sum(chunk.nbytes for chunk in self.chunks)

    @property
    def shift(self) -> int:
        """log2 of the rows of a chunk."""
        return (len(self.chunks[0]) - 1).bit_length()

    def to_tables(self) -> list[pa.Table]:
        """The origin, and the chunks."""
        return [pa.table({"origin": self.origin}), *(pa.table({"record": lists_of(chunk)}) for chunk in self.chunks)]

    @classmethod
    def of_tables(cls, tables: Sequence[pa.Table], rows: int, dimension: int, links: int) -> LinkCodes:
        """The inverse of `to_tables` for a graph of ``rows`` rows, so many links wide, without copying. Raises `Corrupt`."""
        try:
            first, *others = tables
            codes = cls(
                first.column("origin").combine_chunks().to_numpy(),
                tuple(matrix_of(table.column("record"), np.uint8) for table in others),
            )
            codes.check(rows, dimension, links)
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupt(f"the codes of a graph cannot be read: {error!r}") from error
        return codes

    def check(self, rows: int, dimension: int, links: int) -> None:
        """Raise `ValueError` unless there is a record of its size for each row. Whatever records say, it leads nowhere."""
        if dimension > LARGEST_DIMENSION or self.origin.dtype != np.float32 or self.origin.shape != (dimension,):
            raise ValueError("the origin is not a vector of this segment")
        if not self.chunks or sum(len(chunk) for chunk in self.chunks) != rows:
            raise ValueError("there is not a record for each row")
        step = 1 << self.shift
        sizes = [len(chunk) for chunk in self.chunks]
        if any(size != step for size in sizes[:-1]) or not 0 < sizes[-1] <= step:
            raise ValueError("the chunks are not of one size")
        size = native.record_bytes(dimension, links)
        if any(chunk.shape[1] != size for chunk in self.chunks):
            raise ValueError(f"a record of {links} links in {dimension} dimensions has {size} bytes")


def code_links(graph: HnswIndex, *, threads: int) -> LinkCodes:
    """Of all links of a graph. Raises `ValueError` above 4,096 dimensions."""
    column, links = graph.column, graph.graph.links.shape[1]
    if column.dimension > LARGEST_DIMENSION:
        raise ValueError(f"links can be coded in at most {LARGEST_DIMENSION} dimensions, not {column.dimension}")
    size = native.record_bytes(column.dimension, links)
    step = 1 << max(_CHUNK_BYTES // size, 1).bit_length() - 1
    chunks = tuple(
        np.zeros((min(step, column.count - start), size), dtype=np.uint8) for start in range(0, column.count, step)
    )
    codes = LinkCodes(_origin(column, graph.space), chunks)
    native.code_graph(
        column.handle(graph.space), graph.handle, codes.origin, chunks, shift=codes.shift, threads=threads
    )
    return codes


def _origin(column: VectorColumn, space: str) -> Floats:
    some = column.gather(np.unique(np.linspace(0, column.count - 1, _SAMPLED).astype(np.int64)))
    vectors = unit_vectors(some) if space == "cosine" else some
    return vectors.mean(axis=0, dtype=np.float64).astype(np.float32)


class CodedGraphIndex:
    """A graph over the vectors of a segment, and the codes of its links."""

    name = CODED_GRAPH

    def __init__(self, codes: LinkCodes, graph: HnswIndex) -> None:
        self.codes = codes
        self._graph = graph
        self._column = graph.column
        self._handle = native.make_coded_graph(
            self._column.count, graph.graph.links.shape[1], codes.origin, codes.chunks, codes.shift
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of the codes; the links are the graph's."""
        return self.codes.size_bytes

    def cost(self, k: int, compared: float, *, shared: bool) -> float:
        """See `VectorIndex`."""
        dimension = self._column.dimension
        return BEGIN_NS[0] + BEGIN_NS[1] * dimension + compared * (VISIT_NS[0] + VISIT_NS[1] * dimension)

    def least_effort(self, k: int) -> int:
        """See `VectorIndex`: a walk finds no more than its ef."""
        return k

    def measured(self, k: int) -> int:
        """See `VectorIndex`; what else is visited on the way is not among them."""
        return k

    def touched(self, k: int, compared: float) -> float:
        """See `VectorIndex`: of each row that is visited the vector, and as much again for its codes."""
        return 2 * compared

    def search(self, queries: Vectors, k: int, *, effort: int, allowed: Mask | None, threads: int) -> Neighbours:
        """See `VectorIndex`; ``effort`` is ef. Finds fewer than k where the graph leads to no more."""
        return self.search_counting(queries, k, effort=effort, allowed=allowed, threads=threads)[0]

    def search_counting(
        self, queries: Vectors, k: int, *, effort: int, allowed: Mask | None, threads: int
    ) -> tuple[Neighbours, npt.NDArray[np.int64]]:
        """The same, and (q,) how many rows each query visited."""
        found, visited = native.search_coded_graph(
            self._column.handle(self._graph.space),
            self._graph.handle,
            self._handle,
            queries,
            min(k, self._column.count),
            ef=effort,
            allowed=allowed,
            threads=threads,
        )
        return neighbours(found), visited

    def to_tables(self) -> Mapping[str, Sequence[pa.Table]]:
        """The codes."""
        return {CODED_GRAPH: self.codes.to_tables()}
