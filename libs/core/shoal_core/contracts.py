"""What the services promise each other, as plain data and protocols.

Each protocol has two implementations: the service itself (called directly when all run in one process) and a client over
gRPC (`shoal_wire.clients`). Both raise `shoal_core.errors`. Offsets count a collection's records from 1; a tail is
``(after, up_to]``; 0 means "before everything".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.consistency import STRONG, Consistency, ServedAt, VersionToken
from shoal_core.filters import Filter

Json = Mapping[str, Any]


# --- catalog (sysdb) -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Database:
    """A namespace of collections within a tenant."""

    id: str
    tenant: str
    name: str


@dataclass(frozen=True, slots=True)
class NewCollection:
    """What a collection is created with.

    Attributes:
        space: ``l2`` (squared), ``cosine`` or ``ip``.
        shards: number of shards, records go to them by hash of id.
        metadata: the user's own keys, or None.
        configuration: opaque settings (embedding function, index parameters); the server never executes any of it.
    """

    tenant: str
    database: str
    name: str
    space: str = "l2"
    shards: int = 1
    metadata: Json | None = None
    configuration: Json = field(default_factory=dict)
    dimension: int | None = None


@dataclass(frozen=True, slots=True)
class Collection:
    """One collection as the catalog knows it.

    Attributes:
        id: UUID text.
        epoch: catalog epoch; grows with every rename or modification, so caches by name can be refused.
        incarnation: UUID text of its log.
        dimension: None until the first write.
    """

    id: str
    tenant: str
    database: str
    name: str
    epoch: int
    incarnation: str
    space: str
    shards: int
    dimension: int | None
    metadata: Json | None
    configuration: Json


@dataclass(frozen=True, slots=True)
class Lease:
    """A claimed job. A hint for others; the epoch is what publish checks.

    Attributes:
        kind: ``flush`` or ``merge``.
        epoch: fencing epoch, grows with every claim.
    """

    collection_id: str
    kind: str
    holder: str
    epoch: int


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One published version. Version 0 has no manifest (``manifest_key`` is empty) and nothing compacted."""

    collection_id: str
    version: int
    manifest_key: str
    compacted_offset: int


@dataclass(frozen=True, slots=True)
class Backlog:
    """A collection with un-compacted records, as a scheduler sees it. ``age_ms``: since the oldest un-compacted append."""

    collection: Collection
    head_offset: int
    compacted_offset: int
    uncompacted_bytes: int
    age_ms: int
    version: int


@dataclass(frozen=True, slots=True)
class PublishRequest:
    """Version ``expected_version`` → ``expected_version + 1``, with the compacted offset, under a lease.

    Attributes:
        upload_id: the upload intent under which the manifest and its new objects were written.
    """

    lease: Lease
    expected_version: int
    manifest_key: str
    compacted_offset: int
    upload_id: str


@dataclass(frozen=True, slots=True)
class ExpiredUpload:
    """An upload intent under which nothing can be named any more. ``overdue_ms``: since when, by the database's clock."""

    id: str
    collection_id: str
    overdue_ms: int


@dataclass(frozen=True, slots=True)
class GarbageRoots:
    """What keeps the objects of a collection, all of one instant.

    Attributes:
        versions: the retained ones, ascending: the current one and those that were current within the retention. Version
            0, which has no objects, is left out.
        uploads: of the uploads asked for, those with an intent: their objects may yet be named.
    """

    versions: tuple[VersionInfo, ...]
    uploads: frozenset[str]


@dataclass(frozen=True, slots=True)
class GarbageCollection:
    """A collection to sweep.

    Attributes:
        deleted: deleted for longer than the retention: nothing of it is needed.
        overdue_ms: since when it has garbage, by the database's clock; 0 for one that is not known to have any.
    """

    collection_id: str
    deleted: bool
    overdue_ms: int


class Catalog(Protocol):
    """sysdb: the catalog, versions and leases. Names are checked by the frontend; uniqueness is checked here."""

    async def create_tenant(self, name: str) -> None:
        """Raises `AlreadyExists`."""
        ...

    async def get_tenant(self, name: str) -> str:
        """Its name. Raises `NotFound`."""
        ...

    async def create_database(self, tenant: str, name: str) -> Database:
        """Raises `NotFound` (tenant), `AlreadyExists`."""
        ...

    async def get_database(self, tenant: str, name: str) -> Database:
        """Raises `NotFound`."""
        ...

    async def list_databases(self, tenant: str, *, limit: int, offset: int) -> list[Database]:
        """In order of name."""
        ...

    async def delete_database(self, tenant: str, name: str) -> None:
        """Deletes its collections too. Raises `NotFound`."""
        ...

    async def create_collection(self, new: NewCollection, *, get_or_create: bool) -> tuple[Collection, bool]:
        """The collection and whether this call created it. Raises `NotFound` (database), `AlreadyExists`."""
        ...

    async def get_collection(self, tenant: str, database: str, name: str) -> Collection:
        """Raises `NotFound`."""
        ...

    async def get_collection_by_id(self, collection_id: str) -> Collection:
        """Raises `NotFound`."""
        ...

    async def list_collections(self, tenant: str, database: str, *, limit: int, offset: int) -> list[Collection]:
        """In order of creation, then id."""
        ...

    async def count_collections(self, tenant: str, database: str) -> int: ...

    async def modify_collection(
        self,
        collection_id: str,
        *,
        name: str | None = None,
        metadata: Json | None = None,
        configuration: Json | None = None,
    ) -> Collection:
        """Replace what is not None; the epoch grows. Raises `NotFound`, `AlreadyExists` (name)."""
        ...

    async def delete_collection(self, collection_id: str) -> None:
        """Raises `NotFound`."""
        ...

    async def backlog(self, *, limit: int, min_records: int, min_age_ms: int) -> list[Backlog]:
        """Collections with at least ``min_records`` un-compacted records or any older than ``min_age_ms``.

        Oldest first, at most one page, fair over tenants: no tenant takes more than its share of ``limit``.
        """
        ...

    async def claim(self, collection_id: str, kind: str, holder: str, *, ttl_ms: int) -> Lease | None:
        """A new lease if none is alive (``FOR UPDATE SKIP LOCKED``), else None."""
        ...

    async def renew(self, lease: Lease, *, ttl_ms: int) -> None:
        """Raises `Fenced` when a newer epoch exists."""
        ...

    async def release(self, lease: Lease) -> None:
        """End the lease if it is still this one."""
        ...

    async def begin_upload(self, collection_id: str) -> str:
        """Record an upload intent, dated by the database's clock; its id prefixes the keys of the objects."""
        ...

    async def publish(self, request: PublishRequest) -> VersionInfo:
        """Compare-and-set of the version together with the compacted offset, in one transaction.

        Raises `Fenced`, `VersionConflict`, `NotFound` (collection gone), `UploadExpired`, `InvalidArgument` (the offset is
        below the current one, above the head or not the end of a batch).
        """
        ...

    async def get_version(self, collection_id: str, version: int | None = None) -> VersionInfo:
        """One version, the current one by default. Raises `NotFound`.

        An old one may be found though its objects are gone, once its retention is over.
        """
        ...

    # Garbage collection. Every call may be repeated, and made by several sweepers at once.

    async def expired_uploads(self, *, limit: int) -> list[ExpiredUpload]:
        """Intents older than twice the age at which append and publish refuse them, oldest first.

        None of them is being used by a transaction, and none ever will be: their objects are orphans.
        """
        ...

    async def drop_uploads(self, upload_ids: Sequence[str]) -> None:
        """Forget expired intents, once their objects are gone. Others are left."""
        ...

    async def collections_with_garbage(
        self,
        *,
        after: str,
        limit: int,
        version_retention_ms: int,
        deleted_retention_ms: int,
        everything: bool = False,
    ) -> list[GarbageCollection]:
        """A page, in order of id from ``after`` (excluded; empty: from the start).

        Collections with a version that was replaced longer ago than its retention, and those deleted longer ago than theirs;
        with ``everything`` the other live ones too.
        """
        ...

    async def garbage_roots(
        self, collection_id: str, upload_ids: Sequence[str], *, version_retention_ms: int
    ) -> GarbageRoots:
        """What keeps the objects of a live collection. Raises `NotFound`, also when it was deleted."""
        ...

    async def drop_versions(self, collection_id: str, *, below: int, version_retention_ms: int) -> int:
        """Forget versions below ``below`` that are not retained, once their objects are gone; how many went."""
        ...

    async def purge_collection(self, collection_id: str, *, deleted_retention_ms: int, limit: int) -> bool:
        """Forget up to ``limit`` log entries of a deleted collection, and with the last of them all else that is known of it.

        True when nothing is left. Its objects must be gone. Raises `FailedPrecondition` while the collection lives, or was
        deleted within the retention.
        """
        ...


# --- log -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HashRange:
    """Id hashes ``start <= hash <= last`` of a shard, unsigned 64-bit, both ends included."""

    start: int
    last: int

    @property
    def is_everything(self) -> bool:
        """Whether every hash is in it."""
        return self.start == 0 and self.last == 2**64 - 1


def shard_range(shard: int, shards: int) -> HashRange:
    """The hash range of shard ``shard`` of ``shards``: equal parts of the 64-bit space, in order."""
    return HashRange((shard << 64) // shards, (((shard + 1) << 64) // shards) - 1)


EVERYTHING = shard_range(0, 1)


@dataclass(frozen=True, slots=True)
class Condition:
    """An optimistic write: fail with `WriteConflict` if any of these ids was written after ``read_offset``."""

    read_offset: int
    read_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AppendRequest:
    """One atomic batch.

    Attributes:
        payload: an operation batch as Arrow IPC (see `records.encode_batch`).
        idempotency_key: a retry with the same key returns the first outcome; empty for none.
    """

    collection_id: str
    epoch: int
    tenant: str
    payload: pa.Buffer
    idempotency_key: str = ""
    condition: Condition | None = None


@dataclass(frozen=True, slots=True)
class AppendResult:
    """Where the batch went: offsets ``first_offset..token.offset``. ``replayed``: an earlier try had already written it."""

    token: VersionToken
    first_offset: int
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Head:
    """The read index of one collection: head offset, catalog epoch and current version, all of one instant."""

    collection_id: str
    epoch: int
    incarnation: str
    head_offset: int
    version: int
    compacted_offset: int
    dimension: int | None


@dataclass(frozen=True, slots=True)
class TailRequest:
    """Ask for the head and the tail in one call.

    Attributes:
        epoch: the catalog epoch the caller believes in; 0 to skip the check (compactor).
        after_offset: entries after this offset; must be the end of a batch.
        up_to_offset: 0 for a fresh head; else entries up to this end of a batch, with no head looked up if it is known.
        hash_range: only records with an id hash in it.
    """

    collection_id: str
    epoch: int
    after_offset: int
    up_to_offset: int = 0
    hash_range: HashRange = EVERYTHING
    max_size_bytes: int = 32 << 20


@dataclass(frozen=True, slots=True)
class TailEntry:
    """One batch of the log, cut to the hash range.

    Attributes:
        first_offset, end_offset: of the whole batch.
        payload: operation batch as Arrow IPC; empty when no record of it is in the range.
        offsets: uint64 offset of each row of the payload; None when they are ``first_offset..end_offset``.
    """

    first_offset: int
    end_offset: int
    payload: pa.Buffer
    offsets: npt.NDArray[np.uint64] | None = None


@dataclass(frozen=True, slots=True)
class Tail:
    """The head and the entries after the offset asked for, in order, without gaps, up to ``through_offset``.

    ``through_offset`` is below the head when ``max_size_bytes`` was reached: ask again from there.
    """

    head: Head
    entries: tuple[TailEntry, ...]
    through_offset: int


class Log(Protocol):
    """logservice."""

    async def append(self, request: AppendRequest) -> AppendResult:
        """Durable when it returns.

        Raises `StaleEpoch`, `NotFound`, `DimensionMismatch`, `WriteConflict`, `StaleRead`, `IdempotencyMismatch`,
        `BackPressure`, `Unavailable` (nothing written), `OutcomeUnknown`.
        """
        ...

    async def read_index(self, collection_id: str, epoch: int) -> Head:
        """The head of an instant after the call began. Raises `StaleEpoch`, `NotFound`, `Unavailable`."""
        ...

    async def read_tail(self, request: TailRequest) -> Tail:
        """Raises `StaleEpoch`, `NotFound`, `OffsetExpired`, `Unavailable`."""
        ...


# --- query node ------------------------------------------------------------------------------------------------------


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


# --- frontend --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CollectionRef:
    """A collection as a user names it: by id (wins) or by name, within a tenant and database."""

    tenant: str
    database: str
    name: str = ""
    id: str = ""


@dataclass(frozen=True, slots=True)
class WriteResult:
    """An accepted batch."""

    token: VersionToken
    first_offset: int
    records: int


@dataclass(frozen=True, slots=True)
class IndexingStatus:
    """How far compaction is: all of the log up to ``head_offset``, indexed up to ``indexed_offset``.

    ``segments`` counts what the query nodes have loaded, which may be a moment behind ``version``.
    """

    head_offset: int
    indexed_offset: int
    version: int
    segments: int


class PublicApi(Protocol):
    """The verbs of the public API, as the SDK calls them; implemented by the frontend's `database` and by its gRPC client."""

    async def create_tenant(self, name: str) -> None: ...

    async def get_tenant(self, name: str) -> str: ...

    async def create_database(self, tenant: str, name: str) -> Database: ...

    async def get_database(self, tenant: str, name: str) -> Database: ...

    async def list_databases(self, tenant: str, *, limit: int = 100, offset: int = 0) -> list[Database]: ...

    async def delete_database(self, tenant: str, name: str) -> None: ...

    async def create_collection(
        self, new: NewCollection, *, get_or_create: bool = False
    ) -> tuple[Collection, bool]: ...

    async def get_collection(self, ref: CollectionRef) -> Collection: ...

    async def list_collections(
        self, tenant: str, database: str, *, limit: int = 100, offset: int = 0
    ) -> list[Collection]: ...

    async def count_collections(self, tenant: str, database: str) -> int: ...

    async def modify_collection(
        self,
        ref: CollectionRef,
        *,
        name: str | None = None,
        metadata: Json | None = None,
        configuration: Json | None = None,
    ) -> Collection: ...

    async def delete_collection(self, ref: CollectionRef) -> None: ...

    async def write(
        self,
        ref: CollectionRef,
        batch: pa.RecordBatch,
        *,
        idempotency_key: str = "",
        condition: Condition | None = None,
    ) -> WriteResult:
        """Append one operation batch (see `records`), atomically."""
        ...

    async def delete_where(
        self,
        ref: CollectionRef,
        *,
        ids: Sequence[str] | None,
        where: Filter | None,
        limit: int | None = None,
        idempotency_key: str = "",
    ) -> WriteResult:
        """Delete what matches at one strong snapshot; records inserted after it stay. ``records`` says how many."""
        ...

    async def get(
        self,
        ref: CollectionRef,
        *,
        ids: Sequence[str] | None = None,
        where: Filter | None = None,
        limit: int | None = None,
        offset: int = 0,
        include: Include = Include(),
        consistency: Consistency = STRONG,
        explain: bool = False,
    ) -> Answer: ...

    async def query(
        self,
        ref: CollectionRef,
        vectors: npt.NDArray[np.float32],
        k: int,
        *,
        ids: Sequence[str] | None = None,
        where: Filter | None = None,
        include: Include = Include(),
        consistency: Consistency = STRONG,
        ef: int = 0,
        exact: bool = False,
        explain: bool = False,
    ) -> Answer: ...

    async def count(
        self, ref: CollectionRef, *, where: Filter | None = None, consistency: Consistency = STRONG
    ) -> CountAnswer: ...

    async def indexing_status(self, ref: CollectionRef) -> IndexingStatus: ...

    async def status(self) -> Json:
        """Members by role, collections with their lag, limits: for `shoal status`."""
        ...
