"""The gRPC faces of the catalog, of credentials and of attached functions: decode, call, encode."""

from __future__ import annotations

import grpc.aio

from shoal_core.contracts import Access, Catalog, Functions
from shoal_wire.codec import access as access_codec
from shoal_wire.codec import catalog as codec
from shoal_wire.codec import functions as functions_codec
from shoal_wire.codec.common import decode_json
from shoal_wire.server import add_service
from shoal_wire.v1 import access_pb2, functions_pb2, types_pb2
from shoal_wire.v1 import catalog_pb2 as pb
from shoal_wire.v1.types_pb2 import Empty

DEFAULT_PAGE = 100


class CatalogServicer:
    """Serves `Catalog` as ``shoal.v1.CatalogService``."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register with a server that has not been started."""
        add_service(server, pb.DESCRIPTOR, "CatalogService", self)

    async def create_tenant(self, request: pb.TenantRequest) -> Empty:
        await self._catalog.create_tenant(request.name)
        return Empty()

    async def get_tenant(self, request: pb.TenantRequest) -> pb.Tenant:
        return codec.encode_tenant(await self._catalog.get_tenant(request.name))

    async def name_tenant(self, request: pb.Tenant) -> Empty:
        await self._catalog.name_tenant(request.name, request.resource_name)
        return Empty()

    async def create_database(self, request: pb.DatabaseRequest) -> types_pb2.Database:
        return codec.encode_database(await self._catalog.create_database(request.tenant, request.name))

    async def get_database(self, request: pb.DatabaseRequest) -> types_pb2.Database:
        return codec.encode_database(await self._catalog.get_database(request.tenant, request.name))

    async def list_databases(self, request: pb.ListDatabasesRequest) -> pb.ListDatabasesResponse:
        limit = request.limit if request.HasField("limit") else DEFAULT_PAGE
        found = await self._catalog.list_databases(request.tenant, limit=limit, offset=request.offset)
        return pb.ListDatabasesResponse(databases=[codec.encode_database(database) for database in found])

    async def delete_database(self, request: pb.DatabaseRequest) -> Empty:
        await self._catalog.delete_database(request.tenant, request.name)
        return Empty()

    async def create_collection(self, request: pb.CreateCollectionRequest) -> pb.CreateCollectionResponse:
        new = codec.decode_new_collection(request.collection)
        collection, created = await self._catalog.create_collection(new, get_or_create=request.get_or_create)
        return pb.CreateCollectionResponse(collection=codec.encode_collection(collection), created=created)

    async def get_collection(self, request: pb.GetCollectionRequest) -> types_pb2.Collection:
        if request.id:
            return codec.encode_collection(await self._catalog.get_collection_by_id(request.id))
        return codec.encode_collection(
            await self._catalog.get_collection(request.tenant, request.database, request.name)
        )

    async def get_collection_by_resource_name(self, request: pb.ResourceNameRequest) -> types_pb2.Collection:
        found = await self._catalog.get_collection_by_resource_name(
            request.resource_name, request.database, request.name
        )
        return codec.encode_collection(found)

    async def fork_collection(self, request: pb.ForkRequest) -> types_pb2.Collection:
        return codec.encode_collection(await self._catalog.fork_collection(request.id, request.name))

    async def count_forks(self, request: pb.CountForksRequest) -> pb.CountForksResponse:
        return pb.CountForksResponse(count=await self._catalog.count_forks(request.id))

    async def reset(self, request: pb.ResetRequest) -> Empty:
        await self._catalog.reset()
        return Empty()

    async def list_collections(self, request: pb.ListCollectionsRequest) -> pb.ListCollectionsResponse:
        limit = request.limit if request.HasField("limit") else DEFAULT_PAGE
        found = await self._catalog.list_collections(
            request.tenant, request.database, limit=limit, offset=request.offset
        )
        return pb.ListCollectionsResponse(collections=[codec.encode_collection(collection) for collection in found])

    async def count_collections(self, request: pb.DatabaseRequest) -> pb.CountCollectionsResponse:
        count = await self._catalog.count_collections(request.tenant, request.name)
        return pb.CountCollectionsResponse(count=count)

    async def modify_collection(self, request: pb.ModifyCollectionRequest) -> types_pb2.Collection:
        collection = await self._catalog.modify_collection(
            request.id,
            name=request.name if request.HasField("name") else None,
            metadata=decode_json(request.metadata_json, "metadata_json"),
            configuration=decode_json(request.configuration_json, "configuration_json"),
            schema=codec.decode_schema(request.schema_json, "schema_json") if request.HasField("schema_json") else None,
        )
        return codec.encode_collection(collection)

    async def delete_collection(self, request: pb.DeleteCollectionRequest) -> Empty:
        await self._catalog.delete_collection(request.id)
        return Empty()

    async def list_backlog(self, request: pb.ListBacklogRequest) -> pb.ListBacklogResponse:
        found = await self._catalog.backlog(
            limit=request.limit, min_records=request.min_records, min_age_ms=request.min_age_ms
        )
        return pb.ListBacklogResponse(backlog=[codec.encode_backlog(backlog) for backlog in found])

    async def claim(self, request: pb.ClaimRequest) -> pb.ClaimResponse:
        lease = await self._catalog.claim(request.collection_id, request.kind, request.holder, ttl_ms=request.ttl_ms)
        return pb.ClaimResponse(lease=None if lease is None else codec.encode_lease(lease))

    async def renew(self, request: pb.RenewRequest) -> Empty:
        await self._catalog.renew(codec.decode_lease(request.lease), ttl_ms=request.ttl_ms)
        return Empty()

    async def release(self, request: pb.Lease) -> Empty:
        await self._catalog.release(codec.decode_lease(request))
        return Empty()

    async def begin_upload(self, request: pb.BeginUploadRequest) -> pb.BeginUploadResponse:
        return pb.BeginUploadResponse(upload_id=await self._catalog.begin_upload(request.collection_id))

    async def publish(self, request: pb.PublishRequest) -> pb.Version:
        return codec.encode_version(await self._catalog.publish(codec.decode_publish(request)))

    async def get_version(self, request: pb.GetVersionRequest) -> pb.Version:
        version = request.version if request.HasField("version") else None
        return codec.encode_version(await self._catalog.get_version(request.collection_id, version))

    async def get_version_at(self, request: pb.GetVersionAtRequest) -> pb.Version:
        return codec.encode_version(await self._catalog.version_at(request.collection_id, request.offset))

    async def list_expired_uploads(self, request: pb.ListExpiredUploadsRequest) -> pb.ListExpiredUploadsResponse:
        found = await self._catalog.expired_uploads(limit=request.limit)
        return pb.ListExpiredUploadsResponse(uploads=[codec.encode_expired_upload(upload) for upload in found])

    async def drop_uploads(self, request: pb.DropUploadsRequest) -> Empty:
        await self._catalog.drop_uploads(request.upload_ids)
        return Empty()

    async def list_garbage(self, request: pb.ListGarbageRequest) -> pb.ListGarbageResponse:
        found = await self._catalog.collections_with_garbage(
            after=request.after,
            limit=request.limit,
            version_retention_ms=request.version_retention_ms,
            deleted_retention_ms=request.deleted_retention_ms,
            everything=request.everything,
        )
        return pb.ListGarbageResponse(collections=[codec.encode_garbage_collection(item) for item in found])

    async def get_garbage_roots(self, request: pb.GetGarbageRootsRequest) -> pb.GarbageRoots:
        roots = await self._catalog.garbage_roots(
            request.collection_id, request.upload_ids, version_retention_ms=request.version_retention_ms
        )
        return codec.encode_garbage_roots(roots)

    async def get_borrowed_objects(self, request: pb.GetBorrowedObjectsRequest) -> pb.BorrowedObjects:
        borrowed = await self._catalog.borrowed_objects(
            request.collection_id,
            version_retention_ms=request.version_retention_ms,
            deleted_retention_ms=request.deleted_retention_ms,
        )
        return codec.encode_borrowed_objects(borrowed)

    async def get_needed_payloads(self, request: pb.PayloadKeys) -> pb.PayloadKeys:
        return pb.PayloadKeys(keys=sorted(await self._catalog.needed_payloads(request.keys)))

    async def drop_versions(self, request: pb.DropVersionsRequest) -> pb.DropVersionsResponse:
        count = await self._catalog.drop_versions(
            request.collection_id, below=request.below, version_retention_ms=request.version_retention_ms
        )
        return pb.DropVersionsResponse(count=count)

    async def purge_collection(self, request: pb.PurgeCollectionRequest) -> pb.PurgeCollectionResponse:
        done = await self._catalog.purge_collection(
            request.collection_id, deleted_retention_ms=request.deleted_retention_ms, limit=request.limit
        )
        return pb.PurgeCollectionResponse(done=done)


class AccessServicer:
    """Serves `Access` as ``shoal.v1.AccessService``."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register with a server that has not been started."""
        add_service(server, access_pb2.DESCRIPTOR, "AccessService", self)

    async def create_credential(self, request: access_pb2.NewCredential) -> access_pb2.Credential:
        new = access_codec.decode_new_credential(request)
        return access_codec.encode_credential(await self._access.create_credential(new))

    async def find_credential(self, request: access_pb2.CredentialRef) -> access_pb2.ValidCredential:
        found = await self._access.find_credential(access_codec.decode_kind(request.kind), request.id)
        return access_codec.encode_valid_credential(found)

    async def list_credentials(self, request: access_pb2.ListCredentialsRequest) -> access_pb2.ListCredentialsResponse:
        found = await self._access.list_credentials(after=request.after, limit=request.limit)
        return access_pb2.ListCredentialsResponse(credentials=[access_codec.encode_credential(item) for item in found])

    async def revoke_credential(self, request: access_pb2.CredentialRef) -> Empty:
        await self._access.revoke_credential(access_codec.decode_kind(request.kind), request.id)
        return Empty()


class FunctionsServicer:
    """Serves `Functions` as ``shoal.v1.FunctionsService``."""

    def __init__(self, functions: Functions) -> None:
        self._functions = functions

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register with a server that has not been started."""
        add_service(server, functions_pb2.DESCRIPTOR, "FunctionsService", self)

    async def attach_function(
        self, request: functions_pb2.AttachFunctionRequest
    ) -> functions_pb2.AttachFunctionResponse:
        new = functions_codec.decode_new_function(request.function)
        attached = await self._functions.attach_function(request.collection_id, new, limit=request.limit)
        return functions_codec.encode_attached(attached)

    async def get_function(self, request: functions_pb2.FunctionRequest) -> functions_pb2.AttachedFunction:
        found = await self._functions.get_function(request.collection_id, request.name)
        return functions_codec.encode_function(found)

    async def detach_function(self, request: functions_pb2.FunctionRequest) -> Empty:
        await self._functions.detach_function(request.collection_id, request.name)
        return Empty()

    async def list_due_functions(
        self, request: functions_pb2.ListDueFunctionsRequest
    ) -> functions_pb2.ListDueFunctionsResponse:
        found = await self._functions.due_functions(limit=request.limit, skip=request.skip)
        return functions_pb2.ListDueFunctionsResponse(functions=[functions_codec.encode_due(item) for item in found])

    async def complete_function(self, request: functions_pb2.CompleteFunctionRequest) -> Empty:
        await self._functions.complete_function(codec.decode_lease(request.lease), request.function_id, request.offset)
        return Empty()

    async def fail_function(self, request: functions_pb2.FailFunctionRequest) -> Empty:
        await self._functions.fail_function(
            codec.decode_lease(request.lease),
            request.function_id,
            request.error,
            retry_ms=request.retry_ms,
            longest_retry_ms=request.longest_retry_ms,
        )
        return Empty()
