"""What a query node promises: reads of one shard at one snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.consistency import STRONG, Consistency, ServedAt
from shoal_core.contracts.catalog import Json
from shoal_core.contracts.log import HashRange, shard_range
from shoal_core.filters import Filter
from shoal_core.schema import Analyzer


@dataclass(frozen=True, slots=True)
class Include:
    """Which columns an answer carries besides ids. ``keys``: single metadata keys, where not all ``metadatas`` are wanted."""

    documents: bool = False
    metadatas: bool = False
    embeddings: bool = False
    distances: bool = False
    uris: bool = False
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """One shard of one collection, as the frontend believes it to be."""

    collection_id: str
    epoch: int
    space: str
    shard: int
    shards: int

    @property
    def hash_range(self) -> HashRange:
        """Its id hashes."""
        return shard_range(self.shard, self.shards)


@dataclass(frozen=True, slots=True)
class GetRequest:
    """Records by ids and filter, in order of ``created_offset``.

    Attributes:
        snapshot_offset: serve exactly this offset; 0: take the read index.
        ids: None for all.
        after_created: only records created after this offset; 0 for all.
    """

    target: Target
    consistency: Consistency = STRONG
    snapshot_offset: int = 0
    ids: tuple[str, ...] | None = None
    where: Filter | None = None
    limit: int | None = None
    offset: int = 0
    include: Include = Include()
    explain: bool = False
    after_created: int = 0


@dataclass(frozen=True, slots=True)
class CountRequest:
    """How many records match."""

    target: Target
    consistency: Consistency = STRONG
    snapshot_offset: int = 0
    where: Filter | None = None
    explain: bool = False


@dataclass(frozen=True, slots=True)
class QueryRequest:
    """The k nearest of each query vector.

    Attributes:
        vectors: (q, dim) float32.
        ef: effort of a graph search; 0 for what the recall needs.
        exact: scan instead of using an approximate index.
        recall: to reach on average: the share of the true nearest that are found; 0 for the default.
    """

    target: Target
    vectors: npt.NDArray[np.float32]
    k: int
    consistency: Consistency = STRONG
    snapshot_offset: int = 0
    ids: tuple[str, ...] | None = None
    where: Filter | None = None
    include: Include = Include()
    ef: int = 0
    exact: bool = False
    explain: bool = False
    recall: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class DenseLeaf:
    """The ``k`` nearest by a vector (dim,) float32."""

    vector: npt.NDArray[np.float32]
    k: int


@dataclass(frozen=True, slots=True, eq=False)
class SparseLeaf:
    """The ``k`` records with the smallest 1 − Σ query value · record value, among those that have the metadata ``key``.

    Attributes:
        indices: (n,) uint32, ascending.
        values: (n,) float64, already weighted.
    """

    key: str
    indices: npt.NDArray[np.uint32]
    values: npt.NDArray[np.float64]
    k: int


@dataclass(frozen=True, slots=True, eq=False)
class TextLeaf:
    """The ``k`` records with the smallest 1 − BM25 among those whose document has any of the terms.

    Attributes:
        terms: n distinct terms, ascending, as the analyzer makes them.
        weights: (n,) float64: inverse document frequency over the collection times occurrences in the query.
        average_length: terms per document over the collection.
    """

    terms: tuple[str, ...]
    weights: npt.NDArray[np.float64]
    k: int
    average_length: float
    k1: float
    b: float
    analyzer: Analyzer


Leaf = DenseLeaf | SparseLeaf | TextLeaf


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """Several ranked lists over the records that match one filter. The answer has a float64 column ``score``: each leaf's measure.

    Rows of the leaves follow each other; within one, ascending by measure, then by ``created_offset``. `Answer.row_counts` has
    one number per leaf.

    Attributes:
        ef, recall: of dense leaves; see `QueryRequest`.
    """

    target: Target
    leaves: tuple[Leaf, ...]
    snapshot_offset: int
    consistency: Consistency = STRONG
    ids: tuple[str, ...] | None = None
    where: Filter | None = None
    exact: bool = False
    explain: bool = False
    ef: int = 0
    recall: float = 0.0


@dataclass(frozen=True, slots=True)
class TextStatistics:
    """Asks for documents, their lengths and how many have each of ``terms``."""

    terms: tuple[str, ...]
    analyzer: Analyzer


@dataclass(frozen=True, slots=True, eq=False)
class SparseStatistics:
    """Asks for records with the metadata ``key`` and how many have each of ``indices`` (n,) uint32."""

    key: str
    indices: npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class StatisticsRequest:
    """What inverse document frequencies are made of, for one shard at exactly ``snapshot_offset``."""

    target: Target
    asks: tuple[TextStatistics | SparseStatistics, ...]
    snapshot_offset: int
    consistency: Consistency = STRONG


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """The answer to one ask. It adds up over shards.

    Attributes:
        records: those that have a document, or the sparse key.
        length: terms in all documents; 0 for a sparse key.
        frequencies: (n,) int64 records that have each term or index.
    """

    records: int
    length: int
    frequencies: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StatisticsAnswer:
    """One `Statistics` per ask, in order."""

    statistics: tuple[Statistics, ...]
    served_at: ServedAt


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows of one or several queries, in columns.

    Attributes:
        rows: a row table: ``id`` and ``created_offset`` always; ``distance`` float32, ``score`` float64, ``document``,
            ``embedding``, metadata as included; ``origin`` uint8 (0 segment, 1 tail) when explained. Rows of the queries follow
            each other.
        row_counts: (q,) uint32, rows of each query; one element for a get.
        complete: False when fewer rows came back than match; ``reason`` says why.
        explain: the plan and its cost, or None.
        cursor: opens the next page, of the same snapshot; empty when there is none or it was not asked for.
        recall: of a search of vectors: the share of the true nearest that it is estimated to have found, of the part where that is
            smallest; None where nothing was measured.
    """

    rows: pa.Table
    row_counts: npt.NDArray[np.uint32]
    served_at: ServedAt
    complete: bool = True
    reason: str = ""
    explain: Json | None = None
    cursor: str = ""
    recall: float | None = None


@dataclass(frozen=True, slots=True)
class EncodedAnswer:
    """An `Answer` as its protobuf bytes, passed on without decoding when one shard answered."""

    data: bytes


@dataclass(frozen=True, slots=True)
class CountAnswer:
    """How many records match at the snapshot."""

    count: int
    served_at: ServedAt
    explain: Json | None = None


class QueryNode(Protocol):
    """querynode: one shard at one snapshot.

    All raise `StaleEpoch`, `NotFound`, `SnapshotGone` (only a version newer than the snapshot is loaded), `OffsetExpired` (the
    snapshot is older than what is kept), `DimensionMismatch`, `Unavailable`. ``encoded`` allows the gRPC client to return the
    bytes as they came.
    """

    async def get(self, request: GetRequest, *, encoded: bool = False) -> Answer | EncodedAnswer: ...

    async def query(self, request: QueryRequest, *, encoded: bool = False) -> Answer | EncodedAnswer: ...

    async def count(self, request: CountRequest) -> CountAnswer: ...

    async def search(self, request: SearchRequest) -> Answer: ...

    async def statistics(self, request: StatisticsRequest) -> StatisticsAnswer: ...
