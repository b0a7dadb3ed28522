"""The gRPC face of the public API: decode, call, encode."""

from __future__ import annotations

import grpc.aio

from shoal_core.contracts import Answer, EncodedAnswer
from shoal_core.filters import Filter
from shoal_frontend.access.entrance import Entrance
from shoal_frontend.access.grpc_api import Door
from shoal_frontend.api import Api
from shoal_wire.codec import catalog, common, functions
from shoal_wire.codec.answers import answer_size_bytes, encode_answer_bytes, encode_answers_bytes, encode_count
from shoal_wire.codec.filters import decode_filter, decoding_work
from shoal_wire.codec.log import decode_condition
from shoal_wire.codec.public import decode_ref, encode_indexing_status, encode_write_result
from shoal_wire.codec.ranking import decode_searches
from shoal_wire.codec.records import decode_operations, estimated_size_bytes
from shoal_wire.messages import LARGE_BYTES, sized
from shoal_wire.server import add_service
from shoal_wire.v1 import catalog_pb2, functions_pb2, types_pb2
from shoal_wire.v1 import shoal_pb2 as pb
from shoal_wire.v1.types_pb2 import Empty

DEFAULT_PAGE = 100
_WORK_PER_BYTE = 64  # of searches: between that of vectors, which are wrapped, and that of filters


class ShoalServicer:
    """Serves the API of each call's principal as ``shoal.v1.ShoalService``."""

    def __init__(self, entrance: Entrance) -> None:
        self._door = Door(entrance)

    @property
    def _api(self) -> Api:
        return self._door.session.api

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register with a server that has not been started."""
        add_service(server, pb.DESCRIPTOR, "ShoalService", self, admit=self._door.admit)

    async def create_tenant(self, request: catalog_pb2.TenantRequest) -> Empty:
        await self._api.create_tenant(request.name)
        return Empty()

    async def get_tenant(self, request: catalog_pb2.TenantRequest) -> catalog_pb2.Tenant:
        return catalog.encode_tenant(await self._api.get_tenant(request.name))

    async def name_tenant(self, request: catalog_pb2.Tenant) -> Empty:
        await self._api.name_tenant(request.name, request.resource_name)
        return Empty()

    async def create_database(self, request: catalog_pb2.DatabaseRequest) -> types_pb2.Database:
        return catalog.encode_database(await self._api.create_database(request.tenant, request.name))

    async def get_database(self, request: catalog_pb2.DatabaseRequest) -> types_pb2.Database:
        return catalog.encode_database(await self._api.get_database(request.tenant, request.name))

    async def list_databases(self, request: catalog_pb2.ListDatabasesRequest) -> catalog_pb2.ListDatabasesResponse:
        limit = request.limit if request.HasField("limit") else DEFAULT_PAGE
        found = await self._api.list_databases(request.tenant, limit=limit, offset=request.offset)
        return catalog_pb2.ListDatabasesResponse(databases=[catalog.encode_database(database) for database in found])

    async def delete_database(self, request: catalog_pb2.DatabaseRequest) -> Empty:
        await self._api.delete_database(request.tenant, request.name)
        return Empty()

    async def create_collection(
        self, request: catalog_pb2.CreateCollectionRequest
    ) -> catalog_pb2.CreateCollectionResponse:
        new = catalog.decode_new_collection(request.collection)
        found, created = await self._api.create_collection(new, get_or_create=request.get_or_create)
        return catalog_pb2.CreateCollectionResponse(collection=catalog.encode_collection(found), created=created)

    async def get_collection(self, request: pb.CollectionRef) -> types_pb2.Collection:
        return catalog.encode_collection(await self._api.get_collection(decode_ref(request)))

    async def get_collection_by_resource_name(self, request: catalog_pb2.ResourceNameRequest) -> types_pb2.Collection:
        found = await self._api.get_collection_by_resource_name(request.resource_name, request.database, request.name)
        return catalog.encode_collection(found)

    async def fork_collection(self, request: pb.ForkCollectionRequest) -> types_pb2.Collection:
        return catalog.encode_collection(await self._api.fork_collection(decode_ref(request.collection), request.name))

    async def count_forks(self, request: pb.CollectionRef) -> catalog_pb2.CountForksResponse:
        return catalog_pb2.CountForksResponse(count=await self._api.count_forks(decode_ref(request)))

    async def reset(self, request: catalog_pb2.ResetRequest) -> Empty:
        await self._api.reset()
        return Empty()

    async def list_collections(
        self, request: catalog_pb2.ListCollectionsRequest
    ) -> catalog_pb2.ListCollectionsResponse:
        limit = request.limit if request.HasField("limit") else DEFAULT_PAGE
        found = await self._api.list_collections(request.tenant, request.database, limit=limit, offset=request.offset)
        return catalog_pb2.ListCollectionsResponse(collections=[catalog.encode_collection(item) for item in found])

    async def count_collections(self, request: catalog_pb2.DatabaseRequest) -> catalog_pb2.CountCollectionsResponse:
        count = await self._api.count_collections(request.tenant, request.name)
        return catalog_pb2.CountCollectionsResponse(count=count)

    async def modify_collection(self, request: pb.ModifyRequest) -> types_pb2.Collection:
        schema = request.schema_json if request.HasField("schema_json") else None
        collection = await self._api.modify_collection(
            decode_ref(request.collection),
            name=request.name if request.HasField("name") else None,
            metadata=common.decode_json(request.metadata_json, "metadata_json"),
            configuration=common.decode_json(request.configuration_json, "configuration_json"),
            schema=None if schema is None else catalog.decode_schema(schema, "schema_json"),
        )
        return catalog.encode_collection(collection)

    async def delete_collection(self, request: pb.CollectionRef) -> Empty:
        await self._api.delete_collection(decode_ref(request))
        return Empty()

    async def attach_function(self, request: pb.AttachRequest) -> functions_pb2.AttachFunctionResponse:
        new = functions.decode_new_function(request.function)
        return functions.encode_attached(await self._api.attach_function(decode_ref(request.collection), new))

    async def get_function(self, request: pb.FunctionRef) -> functions_pb2.AttachedFunction:
        found = await self._api.get_function(decode_ref(request.collection), request.name)
        return functions.encode_function(found)

    async def detach_function(self, request: pb.DetachRequest) -> Empty:
        await self._api.detach_function(
            decode_ref(request.collection), request.name, delete_output=request.delete_output
        )
        return Empty()

    async def write(self, request: pb.WriteRequest) -> pb.WriteResponse:
        batch = await sized(estimated_size_bytes(request.records), decode_operations, request.records)
        result = await self._api.write(
            decode_ref(request.collection),
            batch,
            idempotency_key=request.idempotency_key,
            condition=decode_condition(request.condition, request.HasField("condition")),
            outcomes=request.outcomes,
        )
        return encode_write_result(result)

    async def delete_where(self, request: pb.DeleteWhereRequest) -> pb.WriteResponse:
        ids, where = await _selection(request)
        result = await self._api.delete_where(
            decode_ref(request.collection),
            ids=ids,
            where=where,
            limit=request.limit if request.HasField("limit") else None,
            idempotency_key=request.idempotency_key,
            allow_scan=request.allow_scan,
        )
        return encode_write_result(result)

    async def get(self, request: pb.GetRequest) -> bytes:
        ids, where = await _selection(request)
        answer = await self._api.get_encoded(
            decode_ref(request.collection),
            ids=ids,
            where=where,
            limit=request.limit if request.HasField("limit") else None,
            offset=request.offset,
            include=common.decode_include(request.include),
            consistency=common.decode_consistency(request.consistency),
            explain=request.explain,
            allow_scan=request.allow_scan,
            cursor=request.cursor if request.HasField("cursor") else None,
        )
        return await _answer_bytes(answer)

    async def query(self, request: pb.QueryRequest) -> bytes:
        ids, where = await _selection(request)
        answer = await self._api.query_encoded(
            decode_ref(request.collection),
            common.decode_vectors(request.dimension, request.vectors),
            request.k,
            ids=ids,
            where=where,
            include=common.decode_include(request.include),
            consistency=common.decode_consistency(request.consistency),
            ef=request.ef,
            exact=request.exact,
            explain=request.explain,
            allow_scan=request.allow_scan,
            texts=[*request.texts] or None,
            recall=common.decode_recall(request.recall),
        )
        return await _answer_bytes(answer)

    async def search(self, request: pb.SearchRequest) -> bytes:
        searches = await sized(_WORK_PER_BYTE * request.ByteSize(), decode_searches, request.searches)
        answers = await self._api.search(
            decode_ref(request.collection),
            searches,
            consistency=common.decode_consistency(request.consistency),
            exact=request.exact,
            explain=request.explain,
            allow_scan=request.allow_scan,
            recall=common.decode_recall(request.recall),
        )
        size_bytes = sum(answer_size_bytes(answer, LARGE_BYTES) for answer in answers)
        return await sized(size_bytes, encode_answers_bytes, answers)

    async def count(self, request: pb.CountRequest) -> types_pb2.CountAnswer:
        answer = await self._api.count(
            decode_ref(request.collection),
            where=await sized(decoding_work(request.where), _where, request),
            consistency=common.decode_consistency(request.consistency),
            explain=request.explain,
            allow_scan=request.allow_scan,
        )
        return encode_count(answer)

    async def indexing_status(self, request: pb.CollectionRef) -> pb.IndexingStatusResponse:
        return encode_indexing_status(await self._api.indexing_status(decode_ref(request)))

    async def status(self, request: pb.StatusRequest) -> pb.StatusResponse:
        return pb.StatusResponse(status_json=common.encode_json(await self._api.status(), "status"))


async def _selection(
    request: pb.GetRequest | pb.QueryRequest | pb.DeleteWhereRequest,
) -> tuple[tuple[str, ...] | None, Filter | None]:
    """Ids and filter, decoded in a thread if there are many of them."""

    def decode() -> tuple[tuple[str, ...] | None, Filter | None]:
        return common.decode_ids(request.ids, request.HasField("ids")), _where(request)

    return await sized(common.ids_work(len(request.ids.ids)) + decoding_work(request.where), decode)


def _where(request: pb.GetRequest | pb.QueryRequest | pb.CountRequest | pb.DeleteWhereRequest) -> Filter | None:
    return decode_filter(request.where) if request.HasField("where") else None


async def _answer_bytes(answer: Answer | EncodedAnswer) -> bytes:
    if isinstance(answer, EncodedAnswer):
        return answer.data
    return await sized(answer_size_bytes(answer, LARGE_BYTES), encode_answer_bytes, answer)
