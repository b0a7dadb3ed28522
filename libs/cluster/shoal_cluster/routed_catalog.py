"""`Catalog` over the sysdb members. All are equal; calls that may be repeated go on to the next one on any failure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal_cluster.routing import Router, is_transient, nothing_happened
from shoal_core.contracts import (
    Backlog,
    BorrowedObjects,
    Catalog,
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
from shoal_core.schema import Schema


@dataclass(frozen=True, slots=True)
class RoutedCatalog:
    """See the module and `Catalog`. What must not happen twice is repeated only when it is known not to have happened."""

    router: Router[Catalog]

    async def create_tenant(self, name: str) -> None:
        await self.router.call(name, lambda catalog: catalog.create_tenant(name), retryable=nothing_happened)

    async def get_tenant(self, name: str) -> Tenant:
        return await self.router.call(name, lambda catalog: catalog.get_tenant(name), retryable=is_transient)

    async def name_tenant(self, name: str, resource_name: str) -> None:
        """See `Catalog`. The name that a tenant has already is no error."""
        await self.router.call(name, lambda catalog: catalog.name_tenant(name, resource_name), retryable=is_transient)

    async def create_database(self, tenant: str, name: str) -> Database:
        return await self.router.call(
            tenant, lambda catalog: catalog.create_database(tenant, name), retryable=nothing_happened
        )

    async def get_database(self, tenant: str, name: str) -> Database:
        return await self.router.call(
            tenant, lambda catalog: catalog.get_database(tenant, name), retryable=is_transient
        )

    async def list_databases(self, tenant: str, *, limit: int, offset: int) -> list[Database]:
        return await self.router.call(
            tenant, lambda catalog: catalog.list_databases(tenant, limit=limit, offset=offset), retryable=is_transient
        )

    async def delete_database(self, tenant: str, name: str) -> None:
        await self.router.call(
            tenant, lambda catalog: catalog.delete_database(tenant, name), retryable=nothing_happened
        )

    async def create_collection(self, new: NewCollection, *, get_or_create: bool) -> tuple[Collection, bool]:
        return await self.router.call(
            new.name,
            lambda catalog: catalog.create_collection(new, get_or_create=get_or_create),
            retryable=is_transient if get_or_create else nothing_happened,
        )

    async def get_collection(self, tenant: str, database: str, name: str) -> Collection:
        return await self.router.call(
            name, lambda catalog: catalog.get_collection(tenant, database, name), retryable=is_transient
        )

    async def get_collection_by_id(self, collection_id: str) -> Collection:
        return await self.router.call(
            collection_id, lambda catalog: catalog.get_collection_by_id(collection_id), retryable=is_transient
        )

    async def get_collection_by_resource_name(self, resource_name: str, database: str, name: str) -> Collection:
        return await self.router.call(
            name,
            lambda catalog: catalog.get_collection_by_resource_name(resource_name, database, name),
            retryable=is_transient,
        )

    async def fork_collection(self, collection_id: str, name: str) -> Collection:
        return await self.router.call(
            collection_id, lambda catalog: catalog.fork_collection(collection_id, name), retryable=nothing_happened
        )

    async def count_forks(self, collection_id: str) -> int:
        return await self.router.call(
            collection_id, lambda catalog: catalog.count_forks(collection_id), retryable=is_transient
        )

    async def reset(self) -> None:
        await self.router.call("reset", lambda catalog: catalog.reset(), retryable=nothing_happened)

    async def list_collections(self, tenant: str, database: str, *, limit: int, offset: int) -> list[Collection]:
        return await self.router.call(
            database,
            lambda catalog: catalog.list_collections(tenant, database, limit=limit, offset=offset),
            retryable=is_transient,
        )

    async def count_collections(self, tenant: str, database: str) -> int:
        return await self.router.call(
            database, lambda catalog: catalog.count_collections(tenant, database), retryable=is_transient
        )

    async def modify_collection(
        self,
        collection_id: str,
        *,
        name: str | None = None,
        metadata: Json | None = None,
        configuration: Json | None = None,
        schema: Schema | None = None,
    ) -> Collection:
        return await self.router.call(
            collection_id,
            lambda catalog: catalog.modify_collection(
                collection_id, name=name, metadata=metadata, configuration=configuration, schema=schema
            ),
            retryable=nothing_happened,
        )

    async def delete_collection(self, collection_id: str) -> None:
        await self.router.call(
            collection_id, lambda catalog: catalog.delete_collection(collection_id), retryable=nothing_happened
        )

    async def backlog(self, *, limit: int, min_records: int, min_age_ms: int) -> list[Backlog]:
        return await self.router.call(
            "backlog",
            lambda catalog: catalog.backlog(limit=limit, min_records=min_records, min_age_ms=min_age_ms),
            retryable=is_transient,
        )

    async def claim(self, collection_id: str, kind: str, holder: str, *, ttl_ms: int) -> Lease | None:
        return await self.router.call(
            collection_id,
            lambda catalog: catalog.claim(collection_id, kind, holder, ttl_ms=ttl_ms),
            retryable=nothing_happened,
        )

    async def renew(self, lease: Lease, *, ttl_ms: int) -> None:
        await self.router.call(
            lease.collection_id, lambda catalog: catalog.renew(lease, ttl_ms=ttl_ms), retryable=is_transient
        )

    async def release(self, lease: Lease) -> None:
        await self.router.call(lease.collection_id, lambda catalog: catalog.release(lease), retryable=is_transient)

    async def begin_upload(self, collection_id: str) -> str:
        return await self.router.call(
            collection_id, lambda catalog: catalog.begin_upload(collection_id), retryable=is_transient
        )

    async def publish(self, request: PublishRequest) -> VersionInfo:
        """See `Catalog`. Publishing the same manifest again is the same publish."""
        return await self.router.call(
            request.lease.collection_id, lambda catalog: catalog.publish(request), retryable=is_transient
        )

    async def get_version(self, collection_id: str, version: int | None = None) -> VersionInfo:
        return await self.router.call(
            collection_id, lambda catalog: catalog.get_version(collection_id, version), retryable=is_transient
        )

    async def version_at(self, collection_id: str, offset: int) -> VersionInfo:
        return await self.router.call(
            collection_id, lambda catalog: catalog.version_at(collection_id, offset), retryable=is_transient
        )

    async def expired_uploads(self, *, limit: int) -> list[ExpiredUpload]:
        return await self.router.call(
            "garbage", lambda catalog: catalog.expired_uploads(limit=limit), retryable=is_transient
        )

    async def drop_uploads(self, upload_ids: Sequence[str]) -> None:
        await self.router.call("garbage", lambda catalog: catalog.drop_uploads(upload_ids), retryable=is_transient)

    async def collections_with_garbage(
        self,
        *,
        after: str,
        limit: int,
        version_retention_ms: int,
        deleted_retention_ms: int,
        everything: bool = False,
    ) -> list[GarbageCollection]:
        return await self.router.call(
            "garbage",
            lambda catalog: catalog.collections_with_garbage(
                after=after,
                limit=limit,
                version_retention_ms=version_retention_ms,
                deleted_retention_ms=deleted_retention_ms,
                everything=everything,
            ),
            retryable=is_transient,
        )

    async def garbage_roots(
        self, collection_id: str, upload_ids: Sequence[str], *, version_retention_ms: int
    ) -> GarbageRoots:
        return await self.router.call(
            collection_id,
            lambda catalog: catalog.garbage_roots(collection_id, upload_ids, version_retention_ms=version_retention_ms),
            retryable=is_transient,
        )

    async def borrowed_objects(
        self, collection_id: str, *, version_retention_ms: int, deleted_retention_ms: int
    ) -> BorrowedObjects:
        return await self.router.call(
            collection_id,
            lambda catalog: catalog.borrowed_objects(
                collection_id, version_retention_ms=version_retention_ms, deleted_retention_ms=deleted_retention_ms
            ),
            retryable=is_transient,
        )

    async def needed_payloads(self, keys: Sequence[str]) -> frozenset[str]:
        return await self.router.call("garbage", lambda catalog: catalog.needed_payloads(keys), retryable=is_transient)

    async def drop_versions(self, collection_id: str, *, below: int, version_retention_ms: int) -> int:
        return await self.router.call(
            collection_id,
            lambda catalog: catalog.drop_versions(
                collection_id, below=below, version_retention_ms=version_retention_ms
            ),
            retryable=is_transient,
        )

    async def purge_collection(self, collection_id: str, *, deleted_retention_ms: int, limit: int) -> bool:
        return await self.router.call(
            collection_id,
            lambda catalog: catalog.purge_collection(
                collection_id, deleted_retention_ms=deleted_retention_ms, limit=limit
            ),
            retryable=is_transient,
        )
