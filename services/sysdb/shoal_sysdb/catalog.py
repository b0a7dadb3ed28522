"""sysdb's half of the contract: `shoal_core.contracts.Catalog` on Postgres.

What may be cached elsewhere is fenced here: names by the collection's epoch, jobs by the lease's epoch, versions by
compare-and-set. Every check that decides something runs in the transaction that acts on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from shoal_core.contracts import (
    Backlog,
    BorrowedObjects,
    Collection,
    Database,
    ExpiredUpload,
    GarbageCollection,
    GarbageRoots,
    Json,
    Lease,
    NewCollection,
    PublishRequest,
    Tenant,
    VersionInfo,
)
from shoal_core.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    UploadExpired,
    VersionConflict,
)
from shoal_core.schema import Schema, check_change
from shoal_sysdb.checks import (
    check_new,
    check_offset,
    check_ttl,
    fenced,
    name_taken,
    no_collection,
    no_database,
    no_tenant,
    offset_expired,
    parse_collection_id,
    parse_uuid,
    parse_uuids,
)
from shoal_sysdb.forks import ForkLimits, fork
from shoal_sysdb.names import NameStatements
from shoal_sysdb.store import PostgresCatalogStore
from shoal_sysdb.versions import PublishedVersion, VersionStatements

DEFAULT_TENANT, DEFAULT_DATABASE = "default_tenant", "default_database"

_CREATE_TRIES = 8
_LOWEST_ID = UUID(int=0)


class CatalogService:
    """Implements `Catalog`. Any number of them may share a database.

    Args:
        max_upload_age_ms: publish refuses objects whose upload began longer ago, by the database's clock. Whoever sweeps
            orphans waits twice as long.
        fork_limits: what may be forked.
    """

    def __init__(
        self,
        store: PostgresCatalogStore,
        *,
        max_upload_age_ms: int = 15 * 60 * 1000,
        fork_limits: ForkLimits | None = None,
    ) -> None:
        self._store = store
        self._max_upload_age_ms = max_upload_age_ms
        self._fork_limits = fork_limits or ForkLimits()

    # --- tenants and databases ---------------------------------------------------------------------------------------

    async def create_tenant(self, name: str) -> None:
        """See `Catalog.create_tenant`."""
        async with self._store.transaction() as sql:
            if not await sql.names.insert_tenant(name):
                raise AlreadyExists(f"tenant {name!r} exists", field="name")

    async def get_tenant(self, name: str) -> Tenant:
        """See `Catalog.get_tenant`."""
        async with self._store.session() as sql:
            tenant = await sql.names.find_tenant(name)
        if tenant is None:
            raise no_tenant(name)
        return tenant

    async def name_tenant(self, name: str, resource_name: str) -> None:
        """See `Catalog.name_tenant`. The name that it has already is no error."""
        if not resource_name:
            raise InvalidArgument("is empty", field="resource_name")
        async with self._store.transaction() as sql:
            tenant = await sql.names.lock_tenant(name)
            if tenant is None:
                raise no_tenant(name)
            if tenant.resource_name == resource_name:
                return
            if tenant.resource_name is not None:
                raise AlreadyExists(f"tenant {name!r} has a resource name, which stays", field="resource_name")
            # Says it well; the unique index decides.
            if await sql.names.find_tenant_by_resource_name(resource_name) is not None:
                raise AlreadyExists(f"another tenant has the resource name {resource_name!r}", field="resource_name")
            await sql.names.update_tenant(name, resource_name)

    async def create_database(self, tenant: str, name: str) -> Database:
        """See `Catalog.create_database`."""
        async with self._store.transaction() as sql:
            if not await sql.names.share_tenant(tenant):
                raise no_tenant(tenant)
            database = await sql.names.insert_database(tenant, name)
            if database is None:
                raise AlreadyExists(f"database {name!r} exists in tenant {tenant!r}", field="name")
        return database

    async def get_database(self, tenant: str, name: str) -> Database:
        """See `Catalog.get_database`."""
        async with self._store.session() as sql:
            database = await sql.names.find_database(tenant, name)
        if database is None:
            raise no_database(tenant, name)
        return database

    async def list_databases(self, tenant: str, *, limit: int, offset: int) -> list[Database]:
        """See `Catalog.list_databases`; empty for an unknown tenant."""
        async with self._store.session() as sql:
            return await sql.names.list_databases(tenant, limit, offset)

    async def delete_database(self, tenant: str, name: str) -> None:
        """See `Catalog.delete_database`. All of it or none; the name is free at once."""
        async with self._store.transaction() as sql:
            database_id = await sql.names.lock_database(tenant, name)
            if database_id is None:
                raise no_database(tenant, name)
            await _delete(sql.names, await sql.names.lock_collections_of([database_id]))
            await sql.names.delete_databases([database_id])

    async def reset(self) -> None:
        """See `Catalog.reset`."""
        async with self._store.transaction() as sql:
            tenants = await sql.names.lock_tenants()  # the default one too: what is made in it meanwhile waits
            database_ids = await sql.names.lock_databases()
            await _delete(sql.names, await sql.names.lock_collections_of(database_ids))
            await sql.names.delete_databases(database_ids)
            await sql.names.delete_tenants(tenants, DEFAULT_TENANT)
            await sql.names.insert_tenant(DEFAULT_TENANT)
            await sql.names.insert_database(DEFAULT_TENANT, DEFAULT_DATABASE)

    # --- collections -------------------------------------------------------------------------------------------------

    async def create_collection(self, new: NewCollection, *, get_or_create: bool) -> tuple[Collection, bool]:
        """See `Catalog.create_collection`. An existing collection is returned as it is, whatever ``new`` says."""
        check_new(new)
        if get_or_create:
            async with self._store.session() as sql:
                existing = await sql.names.find_collection(new.tenant, new.database, new.name)
            if existing is not None:
                return existing, False
        for _ in range(_CREATE_TRIES):
            created = await self._try_create(new)
            if created is not None:
                return created, True
            if not get_or_create:
                raise name_taken(new.name, new.database)
            async with self._store.session() as sql:
                existing = await sql.names.find_collection(new.tenant, new.database, new.name)
            if existing is not None:
                return existing, False
            # Who held the name has given it up since.
        raise Unavailable(f"collection {new.name!r} is being created and deleted all the time; try again")

    async def _try_create(self, new: NewCollection) -> Collection | None:
        async with self._store.transaction() as sql:
            database_id = await sql.names.share_database(new.tenant, new.database)
            if database_id is None:
                raise no_database(new.tenant, new.database)
            created = await sql.names.insert_collection(database_id, new)
            if created is not None:
                await sql.names.insert_log_head(UUID(created.id))
        return created

    async def get_collection(self, tenant: str, database: str, name: str) -> Collection:
        """See `Catalog.get_collection`."""
        async with self._store.session() as sql:
            collection = await sql.names.find_collection(tenant, database, name)
        if collection is None:
            raise NotFound(f"no collection {name!r} in database {database!r} of tenant {tenant!r}", field="name")
        return collection

    async def get_collection_by_resource_name(self, resource_name: str, database: str, name: str) -> Collection:
        """See `Catalog.get_collection_by_resource_name`."""
        async with self._store.session() as sql:
            tenant = await sql.names.find_tenant_by_resource_name(resource_name)
            collection = None if tenant is None else await sql.names.find_collection(tenant, database, name)
        if collection is None:
            raise NotFound(f"no collection {resource_name}:{database}:{name}", field="name")
        return collection

    async def get_collection_by_id(self, collection_id: str) -> Collection:
        """See `Catalog.get_collection_by_id`."""
        wanted = parse_collection_id(collection_id)
        async with self._store.session() as sql:
            collection = await sql.names.find_collection_by_id(wanted)
        if collection is None:
            raise no_collection(collection_id)
        return collection

    async def list_collections(self, tenant: str, database: str, *, limit: int, offset: int) -> list[Collection]:
        """See `Catalog.list_collections`; empty for an unknown database."""
        async with self._store.session() as sql:
            return await sql.names.list_collections(tenant, database, limit, offset)

    async def count_collections(self, tenant: str, database: str) -> int:
        """Live collections of a database; 0 for an unknown one."""
        async with self._store.session() as sql:
            return await sql.names.count_collections(tenant, database)

    async def modify_collection(
        self,
        collection_id: str,
        *,
        name: str | None = None,
        metadata: Json | None = None,
        configuration: Json | None = None,
        schema: Schema | None = None,
    ) -> Collection:
        """See `Catalog.modify_collection`."""
        wanted = parse_collection_id(collection_id)
        async with self._store.transaction() as sql:
            collection = await sql.names.lock_collection(wanted)
            if collection is None:
                raise no_collection(collection_id)
            if schema is not None:
                check_change(collection.schema, schema)
            if name is not None and name != collection.name:
                # Says it well and keeps two that swap names from waiting for each other; the unique index decides.
                holder = await sql.names.find_collection(collection.tenant, collection.database, name)
                if holder is not None:
                    raise name_taken(name, collection.database)
            return await sql.names.update_collection(wanted, name, metadata, configuration, schema)

    async def delete_collection(self, collection_id: str) -> None:
        """See `Catalog.delete_collection`. The name is free at once; a new collection of that name has a new id."""
        wanted = parse_collection_id(collection_id)
        async with self._store.transaction() as sql:
            if await sql.names.lock_collection(wanted) is None:
                raise no_collection(collection_id)
            await _delete(sql.names, [wanted])

    async def fork_collection(self, collection_id: str, name: str) -> Collection:
        """See `Catalog.fork_collection`, and `forks` for what is shared and what is copied."""
        wanted = parse_collection_id(collection_id)
        async with self._store.session() as sql:
            source = await sql.names.find_collection_by_id(wanted)
        if source is None:
            raise no_collection(collection_id)
        async with self._store.transaction() as sql:
            if await sql.names.share_database(source.tenant, source.database) is None:
                raise no_collection(collection_id)
            fork_id = await fork(sql.forks, wanted, name, source.database, self._fork_limits)
            made = await sql.names.find_collection_by_id(fork_id)
        if made is None:
            raise no_collection(str(fork_id))
        return made

    async def count_forks(self, collection_id: str) -> int:
        """See `Catalog.count_forks`."""
        wanted = parse_collection_id(collection_id)
        async with self._store.session() as sql:
            count = await sql.forks.count_live(wanted)
        if count is None:
            raise no_collection(collection_id)
        return count

    # --- jobs --------------------------------------------------------------------------------------------------------

    async def backlog(self, *, limit: int, min_records: int, min_age_ms: int) -> list[Backlog]:
        """See `Catalog.backlog`. Tenants take turns at filling the page; the page is oldest first."""
        async with self._store.session() as sql:
            return await sql.versions.backlog(limit, min_records, min_age_ms)

    async def claim(self, collection_id: str, kind: str, holder: str, *, ttl_ms: int) -> Lease | None:
        """See `Catalog.claim`. None for a collection that is gone, too: there is nothing to do there."""
        wanted = parse_collection_id(collection_id)
        check_ttl(ttl_ms)
        async with self._store.session() as sql:
            epoch = await sql.versions.claim_lease(wanted, kind, holder, ttl_ms)
        return None if epoch is None else Lease(str(wanted), kind, holder, epoch)

    async def renew(self, lease: Lease, *, ttl_ms: int) -> None:
        """See `Catalog.renew`. A lease that has run out may be renewed until another claims; a released one may not."""
        wanted = parse_collection_id(lease.collection_id)
        check_ttl(ttl_ms)
        async with self._store.session() as sql:
            if not await sql.versions.renew_lease(wanted, lease.kind, lease.epoch, ttl_ms):
                raise fenced(lease)

    async def release(self, lease: Lease) -> None:
        """See `Catalog.release`."""
        wanted = parse_collection_id(lease.collection_id)
        async with self._store.session() as sql:
            await sql.versions.release_lease(wanted, lease.kind, lease.epoch)

    async def begin_upload(self, collection_id: str) -> str:
        """See `Catalog.begin_upload`. Raises `NotFound`."""
        wanted = parse_collection_id(collection_id)
        async with self._store.session() as sql:
            upload_id = await sql.versions.insert_upload(wanted)
        if upload_id is None:
            raise no_collection(collection_id)
        return upload_id

    # --- versions ----------------------------------------------------------------------------------------------------

    async def publish(self, request: PublishRequest) -> VersionInfo:
        """See `Catalog.publish`. Repeating a publish that has succeeded succeeds, whatever happened since."""
        collection_id = parse_collection_id(request.lease.collection_id)
        if not request.manifest_key:
            raise InvalidArgument("is empty", field="manifest_key")
        async with self._store.transaction() as sql:
            current = await sql.versions.lock_version(collection_id)
            if current is None:
                raise no_collection(request.lease.collection_id)
            head_offset = await sql.versions.lock_log_head(collection_id)
            version = request.expected_version + 1
            done = await sql.versions.find_version(collection_id, version)
            if done is not None and done.info.manifest_key == request.manifest_key:
                return done.info
            if await sql.versions.share_lease_epoch(collection_id, request.lease.kind) != request.lease.epoch:
                raise fenced(request.lease)
            if current != request.expected_version:
                raise VersionConflict(
                    f"the current version is {current}, not {request.expected_version}; rebase the manifest on it"
                )
            await self._take_upload(sql.versions, collection_id, request.upload_id)
            before = await sql.versions.find_version(collection_id, current)
            if before is None:
                raise no_collection(request.lease.collection_id)
            offset = request.compacted_offset
            bytes_there = await _compacted_bytes(sql.versions, collection_id, before, offset, head_offset)
            info = VersionInfo(str(collection_id), version, request.manifest_key, offset)
            await sql.versions.insert_version(collection_id, PublishedVersion(info, bytes_there, age_ms=0))
            if offset != before.info.compacted_offset:
                await sql.versions.advance_backlog(collection_id, offset)
        return info

    async def _take_upload(self, versions: VersionStatements, collection_id: UUID, upload_id: str) -> None:
        upload = parse_uuid(upload_id)
        if upload is None or not await versions.take_upload(upload, collection_id, self._max_upload_age_ms):
            raise UploadExpired(
                f"no upload {upload_id!r} of the last {self._max_upload_age_ms} ms; begin another and upload again",
                field="upload_id",
            )

    async def get_version(self, collection_id: str, version: int | None = None) -> VersionInfo:
        """See `Catalog.get_version`."""
        wanted = parse_collection_id(collection_id)
        async with self._store.session() as sql:
            found = await sql.versions.find_version(wanted, version)
        if found is None:
            gone = no_collection(collection_id)
            raise NotFound(f"no version {version} of collection {collection_id}") if version else gone
        return found.info

    async def version_at(self, collection_id: str, offset: int) -> VersionInfo:
        """See `Catalog.version_at`, and `VersionStatements.version_at` for why it is right."""
        wanted = parse_collection_id(collection_id)
        check_offset(offset)
        async with self._store.session() as sql:
            found = await sql.versions.version_at(wanted, offset)
        if found is None:
            raise no_collection(collection_id)
        if found.info is None:
            raise offset_expired(offset, found.oldest_offset)
        return found.info

    # --- garbage collection ------------------------------------------------------------------------------------------

    async def expired_uploads(self, *, limit: int) -> list[ExpiredUpload]:
        """See `Catalog.expired_uploads`."""
        async with self._store.session() as sql:
            return await sql.garbage.expired_uploads(2 * self._max_upload_age_ms, limit)

    async def drop_uploads(self, upload_ids: Sequence[str]) -> None:
        """See `Catalog.drop_uploads`."""
        async with self._store.session() as sql:
            await sql.garbage.drop_uploads(parse_uuids(upload_ids), 2 * self._max_upload_age_ms)

    async def collections_with_garbage(
        self,
        *,
        after: str,
        limit: int,
        version_retention_ms: int,
        deleted_retention_ms: int,
        everything: bool = False,
    ) -> list[GarbageCollection]:
        """See `Catalog.collections_with_garbage`."""
        start = parse_collection_id(after) if after else _LOWEST_ID
        async with self._store.session() as sql:
            return await sql.garbage.find_collections(
                start, limit, version_retention_ms, deleted_retention_ms, everything
            )

    async def garbage_roots(
        self, collection_id: str, upload_ids: Sequence[str], *, version_retention_ms: int
    ) -> GarbageRoots:
        """See `Catalog.garbage_roots`."""
        wanted = parse_collection_id(collection_id)
        async with self._store.session() as sql:
            found = await sql.garbage.find_roots(wanted, parse_uuids(upload_ids), version_retention_ms)
        if found is None:
            raise no_collection(collection_id)
        return GarbageRoots(tuple(found[0]), frozenset(found[1]))

    async def borrowed_objects(
        self, collection_id: str, *, version_retention_ms: int, deleted_retention_ms: int
    ) -> BorrowedObjects:
        """See `Catalog.borrowed_objects`."""
        wanted = parse_collection_id(collection_id)
        async with self._store.session() as sql:
            versions = await sql.forks.borrowing_versions(wanted, version_retention_ms, deleted_retention_ms)
            payload_keys = await sql.forks.borrowed_payloads(wanted)
        return BorrowedObjects(tuple(versions), frozenset(payload_keys))

    async def needed_payloads(self, keys: Sequence[str]) -> frozenset[str]:
        """See `Catalog.needed_payloads`."""
        async with self._store.session() as sql:
            return frozenset(await sql.garbage.needed_payloads(keys))

    async def drop_versions(self, collection_id: str, *, below: int, version_retention_ms: int) -> int:
        """See `Catalog.drop_versions`."""
        wanted = parse_collection_id(collection_id)
        async with self._store.session() as sql:
            return await sql.garbage.drop_versions(wanted, version_retention_ms, below)

    async def purge_collection(self, collection_id: str, *, deleted_retention_ms: int, limit: int) -> bool:
        """See `Catalog.purge_collection`."""
        wanted = parse_collection_id(collection_id)
        async with self._store.session() as sql:
            age_ms = await sql.garbage.deleted_for(wanted)
            if age_ms is None:
                return True
            if age_ms < deleted_retention_ms:
                raise FailedPrecondition(
                    f"collection {collection_id} lives, or was deleted less than {deleted_retention_ms} ms ago"
                )
            if await sql.garbage.drop_log_entries(wanted, limit) >= limit:
                return False
        async with self._store.transaction() as sql:
            if await sql.garbage.lock_deleted(wanted):
                await sql.garbage.purge(wanted)
        return True


async def _delete(names: NameStatements, collection_ids: list[UUID]) -> None:
    """Delete collections whose rows are locked."""
    await names.lock_log_heads(collection_ids)
    await names.delete_collections(collection_ids)
    await names.forget_backlog(collection_ids)


async def _compacted_bytes(
    versions: VersionStatements, collection_id: UUID, before: PublishedVersion, offset: int, head_offset: int
) -> int:
    """Cumulative bytes of the log at ``offset``. Raises `InvalidArgument` when nothing may be compacted up to there."""
    current = before.info.compacted_offset
    if offset == current:
        return before.compacted_bytes
    if not current < offset <= head_offset:
        raise InvalidArgument(f"{offset} is not within {current}..{head_offset}", field="compacted_offset")
    found = await versions.bytes_at(collection_id, offset)
    if found is None:
        raise InvalidArgument(f"{offset} is not the end of a batch", field="compacted_offset")
    return found
