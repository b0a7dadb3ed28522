"""HNSW graphs (Malkov and Yashunin 2016): hnswlib builds them, our own kernel walks them (native/graph.hpp).

A graph is stored as what it adds to the vectors: links, by row number. hnswlib's own format holds a second copy of every vector, can
only be read whole, and its published binding filters by calling Python for every row; see docs/adr/0011-vector-kernels.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import hnswlib
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.errors import Corrupt
from shoal_index.vector import native
from shoal_index.vector.column import VectorColumn
from shoal_index.vector.engine import Capabilities, Mask, Neighbours, Rows, Vectors, neighbours, unit_vectors

M = 16
EF_CONSTRUCTION = 100
GRAPH = "graph"  # the kind of its blocks

_NONE = 0xFFFFFFFF  # ends a list of links that is not full
_ADDED_ROWS = 16_384  # at a time: normalising needs a copy in float64

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
            pa.table({"links": _lists(self.links)}).replace_schema_metadata(head),
            pa.table({"row": pa.array(self.upper_rows), "start": pa.array(self.upper_starts)}),
            pa.table({"links": _lists(self.upper_links)}),
        ]

    @classmethod
    def of_tables(cls, tables: Sequence[pa.Table], rows: int) -> Graph:
        """The inverse of `to_tables` for a segment of ``rows`` rows, without copying. Raises `Corrupt`."""
        try:
            lowest, slots, upper = tables
            head = lowest.schema.metadata
            upper_rows, starts = (slots.column(name).combine_chunks().to_numpy() for name in ("row", "start"))
            links, lists = _matrix(lowest.column("links")), _matrix(upper.column("links"))
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
            and self.entry < (slots if self.levels else rows)
        )
        if not holds:
            raise ValueError("a link leads nowhere")
        if slots:
            lists = np.diff([*self.upper_starts.astype(np.int64), len(self.upper_links)])
            reaches = np.repeat(lists, lists)[:, None] if len(self.upper_links) == lists.sum() else None
            if lists.min() < 1 or reaches is None or lists[self.entry] < self.levels:
                raise ValueError("upper levels are incomplete")
            number = np.arange(len(self.upper_links)) - np.repeat(self.upper_starts.astype(np.int64), lists)
            linked = np.where(self.upper_links == _NONE, 0, self.upper_links)
            if bool(((lists[linked] <= number[:, None]) & (self.upper_links != _NONE)).any()):
                raise ValueError("a link leads to a node that is not on its level")


class HnswIndex:
    """A graph over the vectors of a segment."""

    name = "hnsw"
    capabilities = Capabilities(exact=False, filters=True)

    def __init__(self, graph: Graph, column: VectorColumn, space: str) -> None:
        self.graph = graph
        self._column = column
        self._space = space
        self._handle = native.make_graph(
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

    def search(self, queries: Vectors, k: int, *, effort: int, allowed: Mask | None, threads: int) -> Neighbours:
        """See `VectorIndex`; ``effort`` is ef. Finds fewer than k where the graph leads to no more."""
        return self.search_counting(queries, k, effort=effort, allowed=allowed, threads=threads)[0]

    def search_counting(
        self, queries: Vectors, k: int, *, effort: int, allowed: Mask | None, threads: int
    ) -> tuple[Neighbours, npt.NDArray[np.int64]]:
        """The same, and (q,) how many rows each query was compared with."""
        found, compared = native.search_graph(
            self._column.handle(self._space),
            self._handle,
            queries,
            min(k, self._column.count),
            ef=effort,
            allowed=allowed,
            threads=threads,
        )
        return neighbours(found), compared

    def to_tables(self) -> Mapping[str, Sequence[pa.Table]]:
        """The links."""
        return {GRAPH: self.graph.to_tables()}


class GraphBuilder:
    """Adds rows of a column to a graph, in any order. Not safe for threads; uses several itself."""

    def __init__(
        self, column: VectorColumn, space: str, *, threads: int, m: int = M, ef_construction: int = EF_CONSTRUCTION
    ) -> None:
        self._column = column
        self._space = space
        self._threads = threads
        self._index = hnswlib.Index(space=space, dim=column.dimension)  # type: ignore[call-overload]
        self._index.init_index(max_elements=column.count, ef_construction=ef_construction, M=m)

    def add(self, rows: Rows) -> None:
        """Link rows that are not in the graph yet."""
        for start in range(0, len(rows), _ADDED_ROWS):
            part = rows[start : start + _ADDED_ROWS]
            self._index.add_items(_normal(self._column.gather(part), self._space), part, num_threads=self._threads)

    def graph(self) -> Graph:
        """The graph so far. Rows that were not added have no links, and none leads to them."""
        return _graph_of(self._index.__getstate__()[0], self._column.count)


def _normal(vectors: Vectors, space: str) -> Vectors:
    """For cosine, vectors of length 1: hnswlib's own normalisation is in float32, which loses the direction of short vectors."""
    return unit_vectors(vectors) if space == "cosine" else vectors


def _graph_of(state: Mapping[str, Any], rows: int) -> Graph:
    """The links of hnswlib's state, whose elements are in no order, by their labels: the rows, of which some may be missing."""
    count = int(state["cur_element_count"])
    elements = state["data_level0"].view(np.uint8).reshape(-1, state["size_data_per_element"])[:count]
    at = state["label_offset"]
    label = np.ascontiguousarray(elements[:, at : at + 8]).view(np.uint64).reshape(-1).astype(np.uint32)
    lowest = np.ascontiguousarray(elements[:, : 4 * (state["max_M0"] + 1)]).view(np.uint32)
    links = np.full((rows, state["max_M0"]), _NONE, dtype=np.uint32)
    links[label] = _renamed(lowest, label)
    level = state["element_levels"][:count]
    upper = np.flatnonzero(level > 0)
    slot = np.zeros(count, dtype=np.uint32)
    slot[upper] = np.arange(len(upper))
    lists = state["link_lists"].view(np.uint32).reshape(-1, state["max_M"] + 1)
    starts = (np.cumsum(level[upper]) - level[upper]).astype(np.uint32)
    entry = state["enterpoint_node"]
    levels = int(state["max_level"])
    first = int(slot[entry] if levels else label[entry])
    return Graph(links, label[upper], starts, _renamed(lists, slot), levels, first)


def _renamed(lists: Links, names: Links) -> Links:
    """(lists, width): links of hnswlib's lists, which say in 16 bits how many they have, by their new names."""
    count = lists[:, :1] & 0xFFFF
    links = lists[:, 1:]
    used = np.arange(links.shape[1]) < count
    return np.where(used, names[np.where(used, links, 0)], np.uint32(_NONE))


def _lists(links: Links) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(links.reshape(-1)), links.shape[1])


def _matrix(column: pa.ChunkedArray) -> Links:
    (array,) = column.chunks or [pa.array([], column.type)]
    width = array.type.list_size
    flat = array.values.slice(array.offset * width, len(array) * width).to_numpy()
    return flat.reshape(-1, width)


def _within(links: Links, bound: int) -> bool:
    """Whether each list is of numbers below the bound and then of ends."""
    if links.size == 0:
        return True
    used = links != _NONE
    return bool((used[:, 1:] <= used[:, :-1]).all()) and int(links.max(where=used, initial=0)) < max(bound, 1)
