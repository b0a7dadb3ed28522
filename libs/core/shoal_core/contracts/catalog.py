"""What sysdb promises: tenants, databases, collections, versions, leases, garbage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from shoal_core.schema import Schema

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tenant:
    """An owner of databases. ``resource_name``: a second name, unique among all tenants, or None while it has none."""

    name: str
    resource_name: str | None = None


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
        configuration: opaque settings of clients (embedding function); the server never executes any of it.
        schema: which indexes there are, and how text is analysed.
    """

    tenant: str
    database: str
    name: str
    space: str = "l2"
    shards: int = 1
    metadata: Json | None = None
    configuration: Json = field(default_factory=dict)
    dimension: int | None = None
    schema: Schema = field(default_factory=Schema)


@dataclass(frozen=True, slots=True)
class Collection:
    """One collection as the catalog knows it.

    Attributes:
        id: UUID text.
        epoch: catalog epoch; grows with every rename or modification, so caches by name can be refused.
        incarnation: UUID text of its log.
        dimension: None until the first write.
        version, compacted_offset: what had been published when it was looked up.
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
    schema: Schema = field(default_factory=Schema)
    version: int = 0
    compacted_offset: int = 0


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
class BorrowedObjects:
    """What forks of a collection, and forks of those, may still read of its objects.

    Attributes:
        versions: the oldest retained one of each fork. They name objects of the collection among others, and later ones no more
            of them: compactions add only objects of their own collection.
        payload_keys: payloads of the collection's log that entries of other collections name.
    """

    versions: tuple[VersionInfo, ...]
    payload_keys: frozenset[str]


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

    async def get_tenant(self, name: str) -> Tenant:
        """Raises `NotFound`."""
        ...

    async def name_tenant(self, name: str, resource_name: str) -> None:
        """Give a tenant its resource name, once.

        Raises `NotFound`, `AlreadyExists` (it has another one, or another tenant has this one).
        """
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

    async def get_collection_by_resource_name(self, resource_name: str, database: str, name: str) -> Collection:
        """By the resource name of its tenant. Raises `NotFound`."""
        ...

    async def fork_collection(self, collection_id: str, name: str) -> Collection:
        """A new collection in the same database that has what this one has now, and from then on a life of its own.

        It shares the objects of the current version, and gets a copy of the log after it.

        Raises `NotFound`, `AlreadyExists` (name), `FailedPrecondition` (the tree has too many forks), `ResourceExhausted` (too much
        of the log is not compacted; later there is less).
        """
        ...

    async def count_forks(self, collection_id: str) -> int:
        """Live forks in the tree that the collection belongs to, at any depth; the root is none. Raises `NotFound`."""
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
        schema: Schema | None = None,
    ) -> Collection:
        """Replace what is not None; the epoch grows.

        Raises `NotFound`, `AlreadyExists` (name), `InvalidArgument` (see `schema.check_change`).
        """
        ...

    async def delete_collection(self, collection_id: str) -> None:
        """Raises `NotFound`."""
        ...

    async def reset(self) -> None:
        """Delete all tenants, databases and collections, but for an empty default database in the default tenant."""
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

    async def version_at(self, collection_id: str, offset: int) -> VersionInfo:
        """The newest version whose compacted offset is at most ``offset``; version 0 while the log is kept from its start.

        Raises `NotFound` (collection), `OffsetExpired` when what it would need may be gone.
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

    async def borrowed_objects(
        self, collection_id: str, *, version_retention_ms: int, deleted_retention_ms: int
    ) -> BorrowedObjects:
        """What forks may still read of a collection, live or deleted: live forks, and those deleted within the retention."""
        ...

    async def needed_payloads(self, keys: Sequence[str]) -> frozenset[str]:
        """Of these payloads of logs, those that an entry names, or may yet name as their upload has an intent. All of one instant."""
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
