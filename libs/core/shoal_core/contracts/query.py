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


@dataclass(frozen=True, slots=True)
class Include:
    """Which columns an answer carries besides ids."""

    documents: bool = False
    metadatas: bool = False
    embeddings: bool = False
    distances: bool = False
    uris: bool = False


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


@dataclass(frozen=True, slots=True)
class CountRequest:
    """How many records match."""

    target: Target
    consistency: Consistency = STRONG
    snapshot_offset: int = 0
    where: Filter | None = None


@dataclass(frozen=True, slots=True)
class QueryRequest:
    """The k nearest of each query vector.

    Attributes:
        vectors: (q, dim) float32.
        ef: effort of a graph search; 0 for the default.
        exact: scan instead of using an approximate index.
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


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows of one or several queries, in columns.

    Attributes:
        rows: a row table: ``id`` and ``created_offset`` always; ``distance`` float32, ``document``, ``embedding``, metadata as
            included; ``origin`` uint8 (0 segment, 1 tail) when explained. Rows of the queries follow each other.
        row_counts: (q,) uint32, rows of each query; one element for a get.
        complete: False when fewer rows came back than match; ``reason`` says why.
        explain: the plan and its cost, or None.
    """

    rows: pa.Table
    row_counts: npt.NDArray[np.uint32]
    served_at: ServedAt
    complete: bool = True
    reason: str = ""
    explain: Json | None = None


@dataclass(frozen=True, slots=True)
class EncodedAnswer:
    """An `Answer` as its protobuf bytes, passed on without decoding when one shard answered."""

    data: bytes


@dataclass(frozen=True, slots=True)
class CountAnswer:
    """How many records match at the snapshot."""

    count: int
    served_at: ServedAt


class QueryNode(Protocol):
    """querynode: one shard at one snapshot.

    All raise `StaleEpoch`, `NotFound`, `SnapshotGone` (only a version newer than the snapshot is loaded), `OffsetExpired`,
    `DimensionMismatch`, `Unavailable`. ``encoded`` allows the gRPC client to return the bytes as they came.
    """

    async def get(self, request: GetRequest, *, encoded: bool = False) -> Answer | EncodedAnswer: ...

    async def query(self, request: QueryRequest, *, encoded: bool = False) -> Answer | EncodedAnswer: ...

    async def count(self, request: CountRequest) -> CountAnswer: ...
