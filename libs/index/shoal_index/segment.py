"""A segment, opened for reading: columns in blocks, an id index, vectors and perhaps a graph. Immutable and safe for threads.

Rows are in order of ``created_offset``. Which of them are dead is the version's business, not the segment's.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.evaluate import columns_of, evaluate
from shoal_core.filters import Filter
from shoal_core.hashing import hash_ids
from shoal_core.records import CREATED_OFFSET, EMBEDDING, ID, embedding_matrix
from shoal_index.ids import IdIndex
from shoal_index.planner import SegmentPlan, Strategy, deepen, plan_segment
from shoal_index.vector.engine import (
    Mask,
    Neighbours,
    Rows,
    Vectors,
    exact_distances,
    order_by_distance,
)
from shoal_index.vector.exact import search_exact, squared_lengths
from shoal_index.vector.hnsw import Graph
from shoal_storage.blocks import BlockRef, decode_block
from shoal_storage.manifest import SegmentRef

_CACHED_MASKS = 16


class BlockReader(Protocol):
    """Verified blocks by reference."""

    async def get(self, ref: BlockRef) -> pa.Buffer: ...


class Pieces:
    """Rows of tables one after another, taken by row number without joining the tables first."""

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        self.tables = tuple(tables)
        self.starts = np.cumsum([0, *(table.num_rows for table in tables)])

    def split(self, rows: Rows) -> list[tuple[int, Rows, npt.NDArray[np.int64]]]:
        """Per table touched: its number, the rows within it, and their positions in ``rows``."""
        if len(self.tables) == 1:
            return [(0, rows, np.arange(len(rows)))]
        piece = np.searchsorted(self.starts, rows, side="right") - 1
        touched = np.unique(piece)
        return [(int(n), rows[at] - self.starts[n], at) for n in touched for at in [np.flatnonzero(piece == n)]]

    def take(self, rows: Rows, columns: Sequence[str]) -> pa.Table:
        """The named columns of the rows, in their order."""
        parts = self.split(rows)
        taken = [self.tables[n].select(columns).take(pa.array(within)) for n, within, _ in parts]
        if len(taken) == 1:
            return taken[0]
        if not taken:
            return self.tables[0].select(columns).slice(0, 0)
        back = np.empty(len(rows), dtype=np.int64)
        back[np.concatenate([at for _, _, at in parts])] = np.arange(len(rows))
        return pa.concat_tables(taken).combine_chunks().take(pa.array(back))


class VectorPieces:
    """The vectors of a segment, mapped from its blocks."""

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        self._chunks = [embedding_matrix(table.column(EMBEDDING)) for table in tables]
        self._starts = np.cumsum([0, *(len(chunk) for chunk in self._chunks)])
        self._squares: list[npt.NDArray[np.float32]] | None = None

    @property
    def count(self) -> int:
        return int(self._starts[-1])

    def chunks(self) -> list[Vectors]:
        return self._chunks

    def squares(self) -> list[npt.NDArray[np.float32]]:
        if self._squares is None:
            self._squares = [squared_lengths(chunk) for chunk in self._chunks]
        return self._squares

    def gather(self, rows: Rows) -> Vectors:
        if len(self._chunks) == 1:
            return self._chunks[0][rows]
        out = np.empty((len(rows), self._chunks[0].shape[1]), dtype=np.float32)
        piece = np.searchsorted(self._starts, rows, side="right") - 1
        for n in np.unique(piece):
            at = piece == n
            out[at] = self._chunks[n][rows[at] - self._starts[n]]
        return out


class Segment:
    """One opened segment. ``created`` is the (n,) uint64 column of ``created_offset``, ascending."""

    def __init__(
        self,
        ref: SegmentRef,
        space: str,
        ids: IdIndex,
        pieces: Pieces,
        vectors: VectorPieces,
        graph: Graph | None,
    ) -> None:
        self.ref = ref
        self.space = space
        self.rows = ref.rows
        self.vectors = vectors
        self.graph = graph
        self.schema: pa.Schema = pieces.tables[0].schema
        self.created: npt.NDArray[np.uint64] = np.concatenate(
            [table.column(CREATED_OFFSET).to_numpy() for table in pieces.tables]
        )
        self._ids = ids
        self._pieces = pieces
        self._masks: OrderedDict[Filter, Mask] = OrderedDict()
        self._masks_lock = Lock()

    def locate(self, ids: pa.Array, hashes: npt.NDArray[np.uint64] | None = None) -> Rows:
        """(m,) int64 rows of the ids, or -1."""
        known = hash_ids(ids) if hashes is None else hashes
        return self._ids.locate(ids, known, lambda rows: _chunk(self._pieces.take(rows, [ID]), ID))

    def take(self, rows: Rows, columns: Sequence[str]) -> pa.Table:
        """The named columns (those it has, ``embedding`` among them) of the rows, in their order."""
        table = self._pieces.take(rows, [name for name in columns if name in self.schema.names])
        if EMBEDDING not in columns:
            return table
        flat = pa.array(self.vectors.gather(rows).reshape(-1))
        dimension = self.vectors.chunks()[0].shape[1]
        return table.append_column(EMBEDDING, pa.FixedSizeListArray.from_arrays(flat, dimension))

    def matching(self, tree: Filter) -> Mask:
        """(n,) bool: rows that match the filter. Kept for the most recent filters; callers must not change it."""
        with self._masks_lock:
            if tree in self._masks:
                self._masks.move_to_end(tree)
                return self._masks[tree]
        columns = sorted(columns_of(tree, self.schema) | {ID})
        mask = evaluate(tree, pa.concat_tables([table.select(columns) for table in self._pieces.tables]))
        with self._masks_lock:
            self._masks[tree] = mask
            while len(self._masks) > _CACHED_MASKS:
                self._masks.popitem(last=False)
        return mask

    def search(
        self, queries: Vectors, k: int, *, allowed: Mask | None, ef: int, exact: bool, threads: int
    ) -> tuple[Neighbours, SegmentPlan]:
        """The ``k`` nearest allowed rows of each query: exactly, or through the graph with at least this effort.

        Never answers fewer than k rows of a query when k are allowed.
        """
        count = self.rows if allowed is None else int(np.count_nonzero(allowed))
        plan = plan_segment(rows=self.rows, allowed=count, has_graph=self.graph is not None, k=k, ef=ef, exact=exact)
        while plan.strategy is Strategy.GRAPH:
            found = self._search_graph(queries, min(k, count), plan, allowed, threads)
            if found is not None:
                return found, plan
            plan = deepen(plan, rows=self.rows)
        if plan.strategy is Strategy.NOTHING:
            nothing = Neighbours(np.empty(0, np.int64), np.empty(0, np.float32), np.zeros(len(queries), np.int64))
            return nothing, plan
        return search_exact(self.vectors, self.space, queries, k, allowed=allowed, ties=self.created), plan

    def _search_graph(
        self, queries: Vectors, wanted: int, plan: SegmentPlan, allowed: Mask | None, threads: int
    ) -> Neighbours | None:
        """The graph's answer, or None when a query got fewer than ``wanted`` allowed rows."""
        assert self.graph is not None
        labels = self.graph.search(queries, plan.fetch, ef=plan.ef, threads=threads)
        if labels is None:
            return None
        rows, distances = [], []
        for query, near in zip(queries, labels, strict=True):
            kept = near if allowed is None else near[allowed[near]]
            if len(kept) < wanted:
                return None
            exact = exact_distances(self.space, query, self.vectors.gather(kept))
            best = order_by_distance(exact, self.created[kept], wanted)
            rows.append(kept[best])
            distances.append(exact[best])
        counts = np.full(len(queries), wanted, dtype=np.int64)
        return Neighbours(np.concatenate(rows), np.concatenate(distances), counts)


async def open_segment(ref: SegmentRef, space: str, blocks: BlockReader, *, with_graph: bool = True) -> Segment:
    """Fetch, map and open a segment; compaction needs no graph. Raises `Corrupt`, `NotFound`, `Unavailable`."""
    kinds = ("ids", "rows", "vectors", "graph") if with_graph else ("ids", "rows", "vectors")
    refs = [(kind, block) for kind in kinds for block in ref.blocks.get(kind, ())]
    buffers = await asyncio.gather(*(blocks.get(block) for _, block in refs))
    by_kind: dict[str, list[pa.Buffer]] = {kind: [] for kind in kinds}
    for (kind, _), data in zip(refs, buffers, strict=True):
        by_kind[kind].append(data)
    return await asyncio.to_thread(_open, ref, space, by_kind)


def _open(ref: SegmentRef, space: str, data: dict[str, list[pa.Buffer]]) -> Segment:
    ids = IdIndex.of_table(decode_block(data["ids"][0]))
    pieces = Pieces([decode_block(part) for part in data["rows"]])
    vectors = VectorPieces([decode_block(part) for part in data["vectors"]])
    dimension = vectors.chunks()[0].shape[1]
    graph = Graph(data["graph"][0], space, dimension, ref.rows) if data.get("graph") else None
    return Segment(ref, space, ids, pieces, vectors, graph)


def _chunk(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
