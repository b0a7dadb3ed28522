"""Building graphs with hnswlib, from nothing or from the graph of a segment that is merged into a larger one.

hnswlib's state, as its binding pickles it, is columns: elements of the lowest level with their links and vectors, the upper levels'
lists, and which element has which label, here its row. Reading a graph out of it and putting one in are the halves of this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import hnswlib
import numpy as np

from shoal_index.vector.column import VectorColumn
from shoal_index.vector.engine import Mask, Rows, Vectors, unit_vectors
from shoal_index.vector.hnsw import NONE, Graph, Links

M = 16
EF_CONSTRUCTION = 100

_ADDED_ROWS = 16_384  # at a time: normalising needs a copy in float64
_LINKED_ROWS = 65_536  # whose lost links are replaced at a time
_ATTEMPTS = 4  # at a replacement for a lost link
_SEED = 7


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

    def start_from(self, graph: Graph, new_row: Rows) -> None:
        """Take the links of a graph over other rows, before anything is added.

        Args:
            new_row: (n,) for each of its rows the one here, or -1 for one that is gone: whoever linked to it is linked to one of its
                neighbours instead.
        """
        state = self._index.__getstate__()[0] | _state_of(graph, new_row)
        stored = np.zeros((state["cur_element_count"], state["size_data_per_element"]), dtype=np.uint8)
        stored[:, : 4 * (state["max_M0"] + 1)] = state["links"].view(np.uint8)
        labels = state["label_lookup_external"]
        at, size = state["offset_data"], 4 * self._column.dimension
        for start in range(0, len(labels), _ADDED_ROWS):
            rows = labels[start : start + _ADDED_ROWS].astype(np.int64)
            vectors = _normal(self._column.gather(rows), self._space)
            stored[start : start + len(rows), at : at + size] = np.ascontiguousarray(vectors).view(np.uint8)
        stored[:, state["label_offset"] :] = labels[:, None].view(np.uint8)
        del state["links"]
        self._index = hnswlib.Index(state | {"data_level0": stored.reshape(-1).view(np.int8)})

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


# --- out of hnswlib


def _graph_of(state: Mapping[str, Any], rows: int) -> Graph:
    """The links of hnswlib's state, whose elements are in no order, by their labels: the rows, of which some may be missing."""
    count = int(state["cur_element_count"])
    elements = state["data_level0"].view(np.uint8).reshape(-1, state["size_data_per_element"])[:count]
    at = state["label_offset"]
    label = np.ascontiguousarray(elements[:, at : at + 8]).view(np.uint64).reshape(-1).astype(np.uint32)
    lowest = np.ascontiguousarray(elements[:, : 4 * (state["max_M0"] + 1)]).view(np.uint32)
    links = np.full((rows, state["max_M0"]), NONE, dtype=np.uint32)
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
    return np.where(used, names[np.where(used, links, 0)], np.uint32(NONE))


# --- into hnswlib


def _state_of(graph: Graph, new_row: Rows) -> dict[str, Any]:
    """What hnswlib's state has of a graph without the rows that are gone, and ``links``: the lowest level's lists."""
    alive = new_row >= 0
    kept = np.flatnonzero(alive)
    element = np.full(len(new_row), NONE, dtype=np.uint32)  # by row of the graph
    element[kept] = np.arange(len(kept))
    links = np.concatenate(
        [
            _counted(_mapped(_relinked(graph, kept[start : start + _LINKED_ROWS], alive), element))
            for start in range(0, len(kept), _LINKED_ROWS)
        ]
    )
    slots = np.flatnonzero(alive[graph.upper_rows])
    slots = slots[np.argsort(element[graph.upper_rows[slots]])]
    height = np.diff([*graph.upper_starts.astype(np.int64), len(graph.upper_links)])[slots]
    level = np.zeros(len(kept), dtype=np.int32)
    level[element[graph.upper_rows[slots]]] = height
    first = graph.upper_starts[slots].astype(np.int64)
    lists = np.repeat(first - (np.cumsum(height) - height), height) + np.arange(height.sum())
    upper = _mapped(graph.upper_links[lists], element[graph.upper_rows])
    return {
        "cur_element_count": len(kept),
        "max_level": int(level.max()),
        "enterpoint_node": int(level.argmax()),
        "ep_added": True,
        "label_lookup_external": new_row[kept].astype(np.uint64),
        "label_lookup_internal": np.arange(len(kept), dtype=np.uint32),
        "element_levels": level,
        "link_lists": _counted(upper).reshape(-1).view(np.int8),
        "links": links,
    }


def _relinked(graph: Graph, rows: Rows, alive: Mask) -> Links:
    """The lists of these rows, with a neighbour of the neighbour in the place of one that is gone, where one is found."""
    links = graph.links[rows]
    used = links != NONE
    lost = used & ~alive[np.where(used, links, 0)]
    at, place = np.nonzero(lost)
    gone = links[at, place]
    links[at, place] = NONE
    random = np.random.default_rng(_SEED)
    for _ in range(_ATTEMPTS):
        if not len(at):
            break
        other = graph.links[gone, random.integers(graph.links.shape[1], size=len(gone))]
        there = other != NONE
        fits = there & alive[np.where(there, other, 0)] & (other != rows[at])
        links[at[fits], place[fits]] = other[fits]
        at, place, gone = at[~fits], place[~fits], gone[~fits]
    return links


def _mapped(links: Links, names: Links) -> Links:
    used = links != NONE
    return np.where(used, names[np.where(used, links, 0)], np.uint32(NONE))


def _counted(links: Links) -> Links:
    """(lists, width + 1) as hnswlib has them: how many, and then so many different links."""
    links = np.sort(links, axis=1)
    links[:, 1:][links[:, 1:] == links[:, :-1]] = NONE
    links = np.sort(links, axis=1)  # the unused ones are the largest
    count = (links != NONE).sum(axis=1, dtype=np.uint32)
    return np.concatenate([count[:, None], np.where(links == NONE, np.uint32(0), links)], axis=1)
