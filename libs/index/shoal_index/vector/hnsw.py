"""HNSW graphs (Malkov and Yashunin 2016): hnswlib builds them (`hnsw_build`), our own kernel walks them (native/graph.hpp).

A graph is stored as what it adds to the vectors: links, by row number. hnswlib's own format holds a second copy of every vector, can
only be read whole, and its published binding filters by calling Python for every row; see docs/adr/0011-vector-kernels.md.
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
from shoal_index.vector.engine import Mask, Neighbours, Vectors, neighbours
from shoal_index.vector.matrices import lists_of, matrix_of

GRAPH = "graph"  # the kind of its blocks
NONE = 0xFFFFFFFF  # ends a list of links that is not full

# Nanoseconds that a row takes on a walk, whoever walks beside: so much, and so much for each dimension.
WALK_NS = (165.0, 0.4)

Links = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Graph:
    """Links between rows. Nodes that have upper levels are called by their slots there.

    Attributes:
        links: (n, 2m) neighbours on the lowest level, nearest or not, unused ones at the end.
        upper_rows: (s,) the row of each slot.
        upper_starts: (s,) the number of its first list, that of level 1.
        upper_links: (lists, m) neighbours on an upper level, as slots.
        levels: above the lowest.
        entry: slot where a walk begins; a row where there are no levels.
    """

    links: Links
    upper_rows: Links
    upper_starts: Links
    upper_links: Links
    levels: int
    entry: int

    @property
    def size_bytes(self) -> int:
        """Of all links."""
        return sum(part.nbytes for part in (self.links, self.upper_rows, self.upper_starts, self.upper_links))

    def to_tables(self) -> list[pa.Table]:
        """The lowest level, the slots, and the lists of the upper levels."""
        head = {b"levels": str(self.levels).encode(), b"entry": str(self.entry).encode()}
        return [
            pa.table({"links": lists_of(self.links)}).replace_schema_metadata(head),
            pa.table({"row": pa.array(self.upper_rows), "start": pa.array(self.upper_starts)}),
            pa.table({"links": lists_of(self.upper_links)}),
        ]

    @classmethod
    def of_tables(cls, tables: Sequence[pa.Table], rows: int) -> Graph:
        """The inverse of `to_tables` for a segment of ``rows`` rows, without copying. Raises `Corrupt`."""
        try:
            lowest, slots, upper = tables
            head = lowest.schema.metadata
            upper_rows, starts = (slots.column(name).combine_chunks().to_numpy() for name in ("row", "start"))
            links, lists = (matrix_of(table.column("links"), np.uint32) for table in (lowest, upper))
            graph = cls(links, upper_rows, starts, lists, int(head[b"levels"]), int(head[b"entry"]))
            graph.check(rows)
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupt(f"a graph cannot be read: {error!r}") from error
        return graph

    def check(self, rows: int) -> None:
        """Raise `ValueError` unless every link leads to a row or slot: kernels follow them unasked."""
        slots = len(self.upper_rows)
        holds = (
            len(self.links) == rows
            and _within(self.links, rows)
            and _within(self.upper_links, slots)
            and bool((self.upper_rows < rows).all())
            and 0 <= self.entry < (slots if self.levels else rows)
            and self.levels >= 0
        )
        if not holds:
            raise ValueError("a link leads nowhere")
        if slots:
            lists = np.diff([*self.upper_starts.astype(np.int64), len(self.upper_links)])
            reaches = np.repeat(lists, lists)[:, None] if len(self.upper_links) == lists.sum() else None
            if lists.min() < 1 or reaches is None or lists[self.entry] < self.levels:
                raise ValueError("upper levels are incomplete")
            number = np.arange(len(self.upper_links)) - np.repeat(self.upper_starts.astype(np.int64), lists)
            linked = np.where(self.upper_links == NONE, 0, self.upper_links)
            if bool(((lists[linked] <= number[:, None]) & (self.upper_links != NONE)).any()):
                raise ValueError("a link leads to a node that is not on its level")


class HnswIndex:
    """A graph over the vectors of a segment. ``handle`` is what kernels take of it."""

    name = GRAPH

    def __init__(self, graph: Graph, column: VectorColumn, space: str) -> None:
        self.graph = graph
        self.column = column
        self.space = space
        self.handle = native.make_graph(
            column.count,
            graph.links,
            graph.upper_rows,
            graph.upper_starts,
            graph.upper_links,
            graph.levels,
            graph.entry,
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of the links."""
        return self.graph.size_bytes

    def cost(self, k: int, compared: float, *, shared: bool) -> float:
        """See `VectorIndex`."""
        return compared * (WALK_NS[0] + WALK_NS[1] * self.column.dimension)

    def least_effort(self, k: int) -> int:
        """See `VectorIndex`: a walk finds no more than its ef."""
        return k

    def measured(self, k: int) -> int:
        """See `VectorIndex`; what is visited on the way is not among them."""
        return k

    def touched(self, k: int, compared: float) -> float:
        """See `VectorIndex`: each row is compared by its vector."""
        return compared

    def search(self, queries: Vectors, k: int, *, effort: int, allowed: Mask | None, threads: int) -> Neighbours:
        """See `VectorIndex`; ``effort`` is ef. Finds fewer than k where the graph leads to no more."""
        return self.search_counting(queries, k, effort=effort, allowed=allowed, threads=threads)[0]

    def search_counting(
        self, queries: Vectors, k: int, *, effort: int, allowed: Mask | None, threads: int
    ) -> tuple[Neighbours, npt.NDArray[np.int64]]:
        """The same, and (q,) how many rows each query was compared with."""
        found, compared = native.search_graph(
            self.column.handle(self.space),
            self.handle,
            queries,
            min(k, self.column.count),
            ef=effort,
            allowed=allowed,
            threads=threads,
        )
        return neighbours(found), compared

    def to_tables(self) -> Mapping[str, Sequence[pa.Table]]:
        """The links."""
        return {GRAPH: self.graph.to_tables()}


def _within(links: Links, bound: int) -> bool:
    """Whether each list is of numbers below the bound and then of ends."""
    if links.size == 0:
        return True
    used = links != NONE
    return bool((used[:, 1:] <= used[:, :-1]).all()) and int(links.max(where=used, initial=0)) < max(bound, 1)
