"""`Catalog` over gRPC."""

from __future__ import annotations

from collections.abc import Sequence

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
from shoal_core.schema import Schema
from shoal_wire.codec import catalog as codec
from shoal_wire.codec.common import encode_json
from shoal_wire.rpc import DEFAULT_TIMEOUT_MS, ChannelSource, Rpc, parsed
from shoal_wire.v1 import catalog_pb2 as pb
from shoal_wire.v1 import types_pb2

_TENANT = parsed(pb.Tenant, codec.decode_tenant)
_DATABASE = parsed(types_pb2.Database, codec.decode_database)
_COLLECTION = parsed(types_pb2.Collection, codec.decode_collection)
_VERSION = parsed(pb.Version, codec.decode_version)
_NOTHING = types_pb2.Empty.FromString


class CatalogClient:
    """Implements `Catalog`."""

    def __init__(self, channel: ChannelSource, timeout_ms: int | None = DEFAULT_TIMEOUT_MS) -> None:
        self._channel = channel
        self._rpc = Rpc("shoal.v1.CatalogService", channel, timeout_ms)

    def with_timeout(self, timeout_ms: int | None) -> CatalogClient:
        """The same client with another timeout."""
        return CatalogClient(self._channel, timeout_ms)

    async def create_tenant(self, name: str) -> None:
        await self._rpc.call("CreateTenant", lambda: pb.TenantRequest(name=name), _NOTHING, write=True)

    async def get_tenant(self, name: str) -> Tenant:
        return await self._rpc.call("GetTenant", lambda: pb.TenantRequest(name=name), _TENANT)

    async def name_tenant(self, name: str, resource_name: str) -> None:
        await self._rpc.call(
            "NameTenant", lambda: codec.encode_tenant(Tenant(name, resource_name)), _NOTHING, write=True
        )

    async def create_database(self, tenant: str, name: str) -> Database:
        return await self._rpc.call(
            "CreateDatabase", lambda: pb.DatabaseRequest(tenant=tenant, name=name), _DATABASE, write=True
        )

    async def get_database(self, tenant: str, name: str) -> Database:
        return await self._rpc.call("GetDatabase", lambda: pb.DatabaseRequest(tenant=tenant, name=name), _DATABASE)

    async def list_databases(self, tenant: str, *, limit: int, offset: int) -> list[Database]:
        return await self._rpc.call(
            "ListDatabases",
            lambda: pb.ListDatabasesRequest(tenant=tenant, limit=limit, offset=offset),
            parsed(pb.ListDatabasesResponse, lambda page: [codec.decode_database(item) for item in page.databases]),
        )

    async def delete_database(self, tenant: str, name: str) -> None:
        await self._rpc.call(
            "DeleteDatabase", lambda: pb.DatabaseRequest(tenant=tenant, name=name), _NOTHING, write=True
        )

    async def create_collection(self, new: NewCollection, *, get_or_create: bool) -> tuple[Collection, bool]:
        return await self._rpc.call(
            "CreateCollection",
            lambda: pb.CreateCollectionRequest(
                collection=codec.encode_new_collection(new), get_or_create=get_or_create
            ),
            parsed(
                pb.CreateCollectionResponse,
                lambda answer: (codec.decode_collection(answer.collection), answer.created),
            ),
            write=True,
        )

    async def get_collection(self, tenant: str, database: str, name: str) -> Collection:
        return await self._rpc.call(
            "GetCollection",
            lambda: pb.GetCollectionRequest(tenant=tenant, database=database, name=name),
            _COLLECTION,
        )

    async def get_collection_by_id(self, collection_id: str) -> Collection:
        return await self._rpc.call("GetCollection", lambda: pb.GetCollectionRequest(id=collection_id), _COLLECTION)

    async def get_collection_by_resource_name(self, resource_name: str, database: str, name: str) -> Collection:
        return await self._rpc.call(
            "GetCollectionByResourceName",
            lambda: pb.ResourceNameRequest(resource_name=resource_name, database=database, name=name),
            _COLLECTION,
        )

    async def fork_collection(self, collection_id: str, name: str) -> Collection:
        return await self._rpc.call(
            "ForkCollection", lambda: pb.ForkRequest(id=collection_id, name=name), _COLLECTION, write=True
        )

    async def count_forks(self, collection_id: str) -> int:
        answer = await self._rpc.call(
            "CountForks", lambda: pb.CountForksRequest(id=collection_id), pb.CountForksResponse.FromString
        )
        return answer.count

    async def reset(self) -> None:
        await self._rpc.call("Reset", pb.ResetRequest, _NOTHING, write=True)

    async def list_collections(self, tenant: str, database: str, *, limit: int, offset: int) -> list[Collection]:
        return await self._rpc.call(
            "ListCollections",
            lambda: pb.ListCollectionsRequest(tenant=tenant, database=database, limit=limit, offset=offset),
            parsed(
                pb.ListCollectionsResponse, lambda page: [codec.decode_collection(item) for item in page.collections]
            ),
        )

    async def count_collections(self, tenant: str, database: str) -> int:
        answer = await self._rpc.call(
            "CountCollections",
            lambda: pb.DatabaseRequest(tenant=tenant, name=database),
            pb.CountCollectionsResponse.FromString,
        )
        return answer.count

    async def modify_collection(
        self,
        collection_id: str,
        *,
        name: str | None = None,
        metadata: Json | None = None,
        configuration: Json | None = None,
        schema: Schema | None = None,
    ) -> Collection:
        return await self._rpc.call(
            "ModifyCollection",
            lambda: pb.ModifyCollectionRequest(
                id=collection_id,
                name=name,
                metadata_json=None if metadata is None else encode_json(metadata, "metadata"),
                configuration_json=None if configuration is None else encode_json(configuration, "configuration"),
                schema_json=None if schema is None else codec.encode_schema(schema),
            ),
            _COLLECTION,
            write=True,
        )

    async def delete_collection(self, collection_id: str) -> None:
        await self._rpc.call(
            "DeleteCollection", lambda: pb.DeleteCollectionRequest(id=collection_id), _NOTHING, write=True
        )

    async def backlog(self, *, limit: int, min_records: int, min_age_ms: int) -> list[Backlog]:
        return await self._rpc.call(
            "ListBacklog",
            lambda: pb.ListBacklogRequest(limit=limit, min_records=min_records, min_age_ms=min_age_ms),
            parsed(pb.ListBacklogResponse, lambda page: [codec.decode_backlog(item) for item in page.backlog]),
        )

    async def claim(self, collection_id: str, kind: str, holder: str, *, ttl_ms: int) -> Lease | None:
        return await self._rpc.call(
            "Claim",
            lambda: pb.ClaimRequest(collection_id=collection_id, kind=kind, holder=holder, ttl_ms=ttl_ms),
            parsed(
                pb.ClaimResponse,
                lambda answer: codec.decode_lease(answer.lease) if answer.HasField("lease") else None,
            ),
            write=True,
        )

    async def renew(self, lease: Lease, *, ttl_ms: int) -> None:
        await self._rpc.call(
            "Renew", lambda: pb.RenewRequest(lease=codec.encode_lease(lease), ttl_ms=ttl_ms), _NOTHING, write=True
        )

    async def release(self, lease: Lease) -> None:
        await self._rpc.call("Release", lambda: codec.encode_lease(lease), _NOTHING, write=True)

    async def begin_upload(self, collection_id: str) -> str:
        answer = await self._rpc.call(
            "BeginUpload",
            lambda: pb.BeginUploadRequest(collection_id=collection_id),
            pb.BeginUploadResponse.FromString,
            write=True,
        )
        return answer.upload_id

    async def publish(self, request: PublishRequest) -> VersionInfo:
        return await self._rpc.call("Publish", lambda: codec.encode_publish(request), _VERSION, write=True)

    async def get_version(self, collection_id: str, version: int | None = None) -> VersionInfo:
        return await self._rpc.call(
            "GetVersion", lambda: pb.GetVersionRequest(collection_id=collection_id, version=version), _VERSION
        )

    async def version_at(self, collection_id: str, offset: int) -> VersionInfo:
        return await self._rpc.call(
            "GetVersionAt", lambda: pb.GetVersionAtRequest(collection_id=collection_id, offset=offset), _VERSION
        )

    async def expired_uploads(self, *, limit: int) -> list[ExpiredUpload]:
        return await self._rpc.call(
            "ListExpiredUploads",
            lambda: pb.ListExpiredUploadsRequest(limit=limit),
            parsed(
                pb.ListExpiredUploadsResponse,
                lambda page: [codec.decode_expired_upload(item) for item in page.uploads],
            ),
        )

    async def drop_uploads(self, upload_ids: Sequence[str]) -> None:
        await self._rpc.call("DropUploads", lambda: pb.DropUploadsRequest(upload_ids=upload_ids), _NOTHING, write=True)

    async def collections_with_garbage(
        self,
        *,
        after: str,
        limit: int,
        version_retention_ms: int,
        deleted_retention_ms: int,
        everything: bool = False,
    ) -> list[GarbageCollection]:
        return await self._rpc.call(
            "ListGarbage",
            lambda: pb.ListGarbageRequest(
                after=after,
                limit=limit,
                version_retention_ms=version_retention_ms,
                deleted_retention_ms=deleted_retention_ms,
                everything=everything,
            ),
            parsed(
                pb.ListGarbageResponse,
                lambda page: [codec.decode_garbage_collection(item) for item in page.collections],
            ),
        )

    async def garbage_roots(
        self, collection_id: str, upload_ids: Sequence[str], *, version_retention_ms: int
    ) -> GarbageRoots:
        return await self._rpc.call(
            "GetGarbageRoots",
            lambda: pb.GetGarbageRootsRequest(
                collection_id=collection_id, upload_ids=upload_ids, version_retention_ms=version_retention_ms
            ),
            parsed(pb.GarbageRoots, codec.decode_garbage_roots),
        )

    async def borrowed_objects(
        self, collection_id: str, *, version_retention_ms: int, deleted_retention_ms: int
    ) -> BorrowedObjects:
        return await self._rpc.call(
            "GetBorrowedObjects",
            lambda: pb.GetBorrowedObjectsRequest(
                collection_id=collection_id,
                version_retention_ms=version_retention_ms,
                deleted_retention_ms=deleted_retention_ms,
            ),
            parsed(pb.BorrowedObjects, codec.decode_borrowed_objects),
        )

    async def needed_payloads(self, keys: Sequence[str]) -> frozenset[str]:
        answer = await self._rpc.call("GetNeededPayloads", lambda: pb.PayloadKeys(keys=keys), pb.PayloadKeys.FromString)
        return frozenset(answer.keys)

    async def drop_versions(self, collection_id: str, *, below: int, version_retention_ms: int) -> int:
        answer = await self._rpc.call(
            "DropVersions",
            lambda: pb.DropVersionsRequest(
                collection_id=collection_id, below=below, version_retention_ms=version_retention_ms
            ),
            pb.DropVersionsResponse.FromString,
            write=True,
        )
        return answer.count

    async def purge_collection(self, collection_id: str, *, deleted_retention_ms: int, limit: int) -> bool:
        answer = await self._rpc.call(
            "PurgeCollection",
            lambda: pb.PurgeCollectionRequest(
                collection_id=collection_id, deleted_retention_ms=deleted_retention_ms, limit=limit
            ),
            pb.PurgeCollectionResponse.FromString,
            write=True,
        )
        return answer.done
