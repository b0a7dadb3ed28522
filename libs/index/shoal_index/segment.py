"""A segment, opened for reading: columns in blocks, vectors, perhaps a graph, and indexes. Immutable and safe for threads.

Rows are in order of ``created_offset``. Which of them are dead is the version's business, not the segment's.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from threading import Lock
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal_core.errors import Corrupt
from shoal_core.filters import Filter
from shoal_core.hashing import hash_ids
from shoal_core.records import (
    CREATED_OFFSET,
    DOCUMENT,
    EMBEDDING,
    ID,
    Kind,
    MetadataField,
    concat_rows,
    embedding_matrix,
    metadata_fields,
    one_chunk,
)
from shoal_core.schema import Analyzer
from shoal_index.filtering import Matching, select_matching
from shoal_index.ids import IdIndex
from shoal_index.indexes import INDEX_KINDS, Indexes
from shoal_index.metadata import ValueIndex
from shoal_index.planner import SCAN_ROWS, Ask, SegmentPlan, Strategy, Way, plan_segment
from shoal_index.sparse import SparseIndex
from shoal_index.terms import TermIndex
from shoal_index.trigrams import TrigramIndex
from shoal_index.vector.by_mask import ByMask
from shoal_index.vector.calibration import Calibration
from shoal_index.vector.clusters import CLUSTERS, ClusterIndex, Clusters
from shoal_index.vector.coded_graph import CODED_GRAPH, CodedGraphIndex, LinkCodes
from shoal_index.vector.column import VectorChunk, VectorColumn
from shoal_index.vector.engine import Mask, Neighbours, Rows, Vectors, no_neighbours
from shoal_index.vector.exact import search_exact
from shoal_index.vector.hnsw import GRAPH, Graph, HnswIndex
from shoal_storage.blocks import BlockRef, decode_block
from shoal_storage.manifest import SegmentRef

CALIBRATION = "calibration"  # the kind of its blocks, one for each way to search
LENGTHS = "lengths"  # the kind of the block with what kernels want to know of the vectors without reading them: `native.lengths`
LENGTH_COLUMNS = ("square", "inverse")

#: Kinds of block to open for a flush, which only looks up rows by id, for a merge, and for reading.
TO_FLUSH = ("ids", "rows", "vectors")
TO_MERGE = (*TO_FLUSH, *INDEX_KINDS, LENGTHS, GRAPH, CLUSTERS, CALIBRATION)
TO_READ = (*TO_MERGE, CODED_GRAPH)

#: Kinds of block that searches read here and there, so that their memory may be let go of where it is scarce.
READ_BY_ROW = ("vectors", CODED_GRAPH)

_KEPT_MATCHINGS = 16
_KEPT_PLANS = 64


class BlockReader(Protocol):
    """Verified blocks by reference."""

    async def get(self, ref: BlockRef) -> pa.Buffer: ...


class Pieces:
    """Rows of tables one after another, taken by row number without joining the tables first. Their columns may differ."""

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        self.tables = tuple(tables)
        self._names = [frozenset(table.schema.names) for table in tables]
        self.starts = np.cumsum([0, *(table.num_rows for table in tables)])

    def split(self, rows: Rows) -> list[tuple[int, Rows, npt.NDArray[np.int64]]]:
        """Per table touched: its number, the rows within it, and their positions in ``rows``."""
        if len(self.tables) == 1:
            return [(0, rows, np.arange(len(rows)))]
        piece = np.searchsorted(self.starts, rows, side="right") - 1
        touched = np.unique(piece)
        return [(int(n), rows[at] - self.starts[n], at) for n in touched for at in [np.flatnonzero(piece == n)]]

    def take(self, rows: Rows, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows, in their order: of all columns, or of those named, one of which every table has; null where one has none."""
        if len(self.tables) == 1:
            return _taken(self._chosen(0, columns), rows)
        parts = self.split(rows) or [(0, rows, rows)]  # of no rows
        taken = [_taken(self._chosen(n, columns), within) for n, within, _ in parts]
        return in_order(taken, [at for _, _, at in parts])

    def _chosen(self, number: int, columns: Sequence[str] | None) -> pa.Table:
        table, present = self.tables[number], self._names[number]
        return table if columns is None else table.select([name for name in columns if name in present])


def _taken(table: pa.Table, rows: Rows) -> pa.Table:
    """`pa.Table.take` without what it does around the same function, which for few rows takes as long."""
    return pc.call_function("take", [table, pa.array(rows)])


def in_order(parts: Sequence[pa.Table], positions: Sequence[npt.NDArray[np.int64]]) -> pa.Table:
    """Rows that were taken part by part, each put at its position: together these are 0 … n − 1."""
    joined = concat_rows(parts)
    at = np.concatenate(positions)
    if bool((at[1:] > at[:-1]).all()):
        return joined
    back = np.empty(len(at), dtype=np.int64)
    back[at] = np.arange(len(at))
    return joined.combine_chunks().take(pa.array(back))


class Segment:
    """One opened segment. ``created`` is the (n,) uint64 column of ``created_offset``, ascending."""

    def __init__(
        self,
        ref: SegmentRef,
        space: str,
        ids: IdIndex,
        pieces: Pieces,
        vectors: VectorColumn,
        ways: Sequence[Way],
        indexes: Indexes,
    ) -> None:
        self.ref = ref
        self.space = space
        self.rows = ref.rows
        self.vectors = vectors
        self.ways = tuple(ways)
        self.indexes = indexes
        self.schema: pa.Schema = pieces.tables[0].schema
        self.fields = metadata_fields(self.schema.names)
        self.created: npt.NDArray[np.uint64] = vectors.ties
        self._ids = ids
        self._pieces = pieces
        self._table = pa.concat_tables(pieces.tables)
        self.row_bytes = self._table.nbytes / max(ref.rows, 1)  # on average, without its vector
        self._matchings: OrderedDict[Filter, Matching] = OrderedDict()
        self._matchings_lock = Lock()
        self._matchings_bytes = 0
        self._built_terms: dict[Analyzer, TermIndex] = {}
        self._built_sparse: dict[str, SparseIndex] = {}
        self._building = Lock()
        self._plans: dict[tuple[Ask, int], SegmentPlan] = {}
        self._looks: ByMask[tuple[int, float]] = ByMask()
        self._clusters = next((way.index for way in self.ways if isinstance(way.index, ClusterIndex)), None)

    @property
    def kept_bytes(self) -> int:
        """Bytes of what reads made and left here: matchings, and indexes that are not stored."""
        terms = sum(index.size_bytes for index in tuple(self._built_terms.values()))
        sparse = sum(index.size_bytes for index in tuple(self._built_sparse.values()))
        looked = 0 if self._clusters is None else self._clusters.kept_bytes
        return self._matchings_bytes + terms + sparse + looked + self.vectors.kept_bytes

    @property
    def values(self) -> Mapping[str, ValueIndex]:
        """Value indexes by the name of their column."""
        return self.indexes.values

    @property
    def trigrams(self) -> TrigramIndex | None:
        """The substring index of the documents."""
        return self.indexes.trigrams

    @property
    def terms(self) -> TermIndex | None:
        """The ranked index of the documents, where it is stored; see `term_index`."""
        return self.indexes.terms

    @property
    def sparse(self) -> Mapping[str, SparseIndex]:
        """Sparse vector indexes by key, where they are stored; see `sparse_index`."""
        return self.indexes.sparse

    def term_index(self, analyzer: Analyzer) -> TermIndex:
        """The stored ranked index of the documents, else one that is built at the first call and kept."""
        if self.terms is not None:
            return self.terms
        with self._building:
            if analyzer not in self._built_terms:
                absent = DOCUMENT not in self.schema.names
                documents = pa.nulls(self.rows, pa.string()) if absent else self._table.column(DOCUMENT)
                self._built_terms[analyzer] = TermIndex.build(documents, analyzer)
            return self._built_terms[analyzer]

    def sparse_index(self, key: str) -> SparseIndex | None:
        """The stored index of a sparse key, else one that is built at the first call and kept; None when no row has the key."""
        if key in self.sparse:
            return self.sparse[key]
        name = MetadataField(key, Kind.SPARSE).column
        if name not in self.schema.names or self._table.column(name).null_count == self.rows:
            return None
        with self._building:
            if key not in self._built_sparse:
                self._built_sparse[key] = SparseIndex.build(self._table.column(name))
            return self._built_sparse[key]

    def locate(self, ids: pa.Array, hashes: npt.NDArray[np.uint64] | None = None) -> Rows:
        """(m,) int64 rows of the ids, or -1."""
        known = hash_ids(ids) if hashes is None else hashes
        return self._ids.locate(ids, known, lambda rows: one_chunk(self._pieces.take(rows, [ID]).column(ID)))

    def take(self, rows: Rows, columns: Sequence[str]) -> pa.Table:
        """The named columns (those it has, ``embedding`` among them) of the rows, in their order."""
        table = self._pieces.take(rows, columns)
        if EMBEDDING not in columns:
            return table
        flat = pa.array(self.vectors.gather(rows).reshape(-1))
        return table.append_column(EMBEDDING, pa.FixedSizeListArray.from_arrays(flat, self.vectors.dimension))

    def columns(self, names: Sequence[str]) -> pa.Table:
        """All rows of the named columns, but for ``embedding``."""
        return self._table.select(names)

    def select(self, tree: Filter) -> Matching:
        """The rows that match the filter, and how they were found. Kept for the most recent filters."""
        with self._matchings_lock:
            if tree in self._matchings:
                self._matchings.move_to_end(tree)
                return self._matchings[tree]
        matching = select_matching(tree, self)
        with self._matchings_lock:
            self._matchings[tree] = matching
            while len(self._matchings) > _KEPT_MATCHINGS:
                self._matchings.popitem(last=False)
            self._matchings_bytes = sum(kept.size_bytes for kept in self._matchings.values())
        return matching

    def matching(self, tree: Filter) -> Mask:
        """(n,) bool: rows that match the filter; callers must not change it."""
        return self.select(tree).mask

    def search(
        self, queries: Vectors, ask: Ask, *, allowed: Mask | None, threads: int
    ) -> tuple[Neighbours, SegmentPlan]:
        """The nearest allowed rows of each query, and how they were found.

        Never answers fewer than k rows of a query when k are allowed.
        """
        plan = self.plan(ask, allowed)
        if plan.strategy is Strategy.NOTHING:
            return no_neighbours(len(queries)), plan
        if plan.strategy is Strategy.SCAN:
            return self.scan(queries, plan.k, allowed=allowed, threads=threads), plan
        index = self.ways[plan.way].index
        found, compared = index.search_counting(queries, plan.k, effort=plan.effort, allowed=allowed, threads=threads)
        self.vectors.touch(len(queries) * index.touched(plan.k, float(compared.sum()) / max(len(queries), 1)))
        return self._completed(found, queries, plan, allowed, threads), plan

    def plan(self, ask: Ask, allowed: Mask | None) -> SegmentPlan:
        """How `search` finds the nearest allowed rows. Made once for searches that want the same."""
        count, clumping = (self.rows, np.inf) if allowed is None else self._looked_at(allowed)
        asked = replace(ask, clumping=clumping) if clumping < np.inf else ask, count
        plan = self._plans.get(asked)
        if plan is None:
            dimension = self.vectors.dimension
            plan = plan_segment(asked[0], rows=self.rows, dimension=dimension, allowed=count, ways=self.ways)
            if len(self._plans) >= _KEPT_PLANS:
                self._plans.clear()
            self._plans[asked] = plan
        return plan

    def scan(self, queries: Vectors, k: int, *, allowed: Mask | None, threads: int) -> Neighbours:
        """The ``k`` nearest of the allowed rows, all of which are compared."""
        self.vectors.touch(self.rows if allowed is None else int(np.count_nonzero(allowed)))
        return search_exact(self.vectors, self.space, queries, k, allowed=allowed, threads=threads)

    def _looked_at(self, allowed: Mask) -> tuple[int, float]:
        """How many rows are allowed, and how clumped where that may matter. Masks that nobody may write to are looked at once."""

        def look() -> tuple[int, float]:
            count = int(np.count_nonzero(allowed))
            if self._clusters is None or not SCAN_ROWS < count < self.rows:
                return count, np.inf
            return count, self._clusters.clumping(allowed)

        return self._looks.of(allowed, look)

    def _completed(
        self, found: Neighbours, queries: Vectors, plan: SegmentPlan, allowed: Mask | None, threads: int
    ) -> Neighbours:
        """With a scan for those queries that a graph led to too few rows: parts of it may not be linked."""
        if len(found.rows) == len(queries) * plan.k:
            return found
        short = np.flatnonzero(found.counts < plan.k)
        exact = self.scan(queries[short], plan.k, allowed=allowed, threads=threads)
        rows = np.empty((len(queries), plan.k), dtype=np.int64)
        distances = np.empty((len(queries), plan.k), dtype=np.float32)
        enough = np.repeat(found.counts == plan.k, found.counts)
        whole = found.counts == plan.k
        rows[whole], distances[whole] = (part[enough].reshape(-1, plan.k) for part in (found.rows, found.distances))
        rows[short], distances[short] = (part.reshape(-1, plan.k) for part in (exact.rows, exact.distances))
        return Neighbours(rows.reshape(-1), distances.reshape(-1), np.full(len(queries), plan.k, dtype=np.int64))


async def open_segment(
    ref: SegmentRef, space: str, blocks: BlockReader, *, kinds: Collection[str] = TO_READ
) -> Segment:
    """Fetch, map and open a segment with these kinds of block. Raises `Corrupt`, `NotFound`, `Unavailable`."""
    refs = [(kind, block) for kind in kinds for block in ref.blocks.get(kind, ())]
    buffers = await asyncio.gather(*(blocks.get(block) for _, block in refs))
    by_kind: dict[str, list[pa.Buffer]] = {kind: [] for kind in kinds}
    for (kind, _), data in zip(refs, buffers, strict=True):
        by_kind[kind].append(data)
    return await asyncio.to_thread(_open, ref, space, by_kind)


def _open(ref: SegmentRef, space: str, data: dict[str, list[pa.Buffer]]) -> Segment:
    measured = data.pop(CALIBRATION, [])
    tables = {kind: [decode_block(part) for part in parts] for kind, parts in data.items()}
    ids = IdIndex.of_table(tables["ids"][0])
    created = np.concatenate([table.column(CREATED_OFFSET).to_numpy() for table in tables["rows"]])
    beside = sum(block.size_bytes for block in ref.blocks.get(CODED_GRAPH, ()))
    vectors = VectorColumn(_chunks(tables), created, beside_bytes=beside)
    calibrations = [Calibration.of_json(part.to_pybytes()) for part in measured]
    ways = _ways(tables, vectors, space, calibrations)
    return Segment(ref, space, ids, Pieces(tables["rows"]), vectors, ways, Indexes.of_tables(tables, ref.rows))


def _chunks(tables: Mapping[str, Sequence[pa.Table]]) -> list[VectorChunk]:
    matrices = [embedding_matrix(table.column(EMBEDDING)) for table in tables["vectors"]]
    if not tables.get(LENGTHS):
        return [VectorChunk(matrix) for matrix in matrices]
    bounds = np.cumsum([len(matrix) for matrix in matrices])[:-1]
    columns = (tables[LENGTHS][0].column(name).combine_chunks().to_numpy() for name in LENGTH_COLUMNS)
    squares, inverses = (np.split(column, bounds) for column in columns)
    return [VectorChunk(*each) for each in zip(matrices, zip(squares, inverses, strict=True), strict=True)]


def _ways(
    tables: Mapping[str, Sequence[pa.Table]], vectors: VectorColumn, space: str, calibrations: Sequence[Calibration]
) -> list[Way]:
    """A way for each calibration; a graph needs none."""
    ways = []
    if tables.get(GRAPH):
        graph = HnswIndex(Graph.of_tables(tables[GRAPH], vectors.count), vectors, space)
        ways.append(Way(graph, next((found for found in calibrations if found.engine == GRAPH), None)))
        ways += _coded_graph(tables, graph, calibrations)
    elif tables.get(CODED_GRAPH):
        raise Corrupt("a segment has codes of a graph's links, and no graph")
    if tables.get(CLUSTERS):
        index = ClusterIndex(
            Clusters.of_tables(tables[CLUSTERS], vectors.count, vectors.dimension, space), vectors, space
        )
        ways += [Way(index.refining(found.refine), found) for found in calibrations if found.engine == CLUSTERS]
    return ways


def _coded_graph(
    tables: Mapping[str, Sequence[pa.Table]], graph: HnswIndex, calibrations: Sequence[Calibration]
) -> list[Way]:
    """None without its calibration: it is there for its speed alone."""
    found = next((found for found in calibrations if found.engine == CODED_GRAPH), None)
    if found is None or not tables.get(CODED_GRAPH):
        return []
    column = graph.column
    codes = LinkCodes.of_tables(tables[CODED_GRAPH], column.count, column.dimension, graph.graph.links.shape[1])
    return [Way(CodedGraphIndex(codes, graph), found)]
