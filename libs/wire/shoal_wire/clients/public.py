"""`PublicApi` over gRPC."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.consistency import STRONG, Consistency
from shoal_core.contracts import (
    Answer,
    AttachedFunction,
    Collection,
    CollectionRef,
    Condition,
    CountAnswer,
    Database,
    Include,
    IndexingStatus,
    Json,
    NewCollection,
    NewFunction,
    Tenant,
    WriteResult,
)
from shoal_core.filters import Filter
from shoal_core.ranking import Search
from shoal_core.schema import Schema
from shoal_wire.codec import catalog, common, functions
from shoal_wire.codec.answers import decode_answer, decode_answers, decode_count
from shoal_wire.codec.filters import encode_filter, encoding_work
from shoal_wire.codec.log import encode_condition
from shoal_wire.codec.public import decode_indexing_status, decode_write_result, encode_ref
from shoal_wire.codec.ranking import encode_search
from shoal_wire.codec.records import encode_records
from shoal_wire.rpc import DEFAULT_TIMEOUT_MS, ChannelSource, Rpc, parsed
from shoal_wire.v1 import catalog_pb2, functions_pb2, types_pb2
from shoal_wire.v1 import shoal_pb2 as pb

_TENANT = parsed(catalog_pb2.Tenant, catalog.decode_tenant)
_DATABASE = parsed(types_pb2.Database, catalog.decode_database)
_COLLECTION = parsed(types_pb2.Collection, catalog.decode_collection)
_WRITTEN = parsed(pb.WriteResponse, decode_write_result)
_COUNT = parsed(types_pb2.CountAnswer, decode_count)
_NOTHING = types_pb2.Empty.FromString
_FUNCTION = parsed(functions_pb2.AttachedFunction, functions.decode_function)
_ATTACHED = parsed(functions_pb2.AttachFunctionResponse, functions.decode_attached)

_SEARCH_SIZE_BYTES = 32 << 10  # a guess at a search: one long vector


class PublicClient:
    """Implements `PublicApi`; ``token`` says who calls."""

    def __init__(self, channel: ChannelSource, timeout_ms: int | None = DEFAULT_TIMEOUT_MS, *, token: str = "") -> None:
        self._channel = channel
        self._token = token
        self._rpc = Rpc("shoal.v1.ShoalService", channel, timeout_ms, token=token)

    def with_timeout(self, timeout_ms: int | None) -> PublicClient:
        """The same client with another timeout."""
        return PublicClient(self._channel, timeout_ms, token=self._token)

    async def create_tenant(self, name: str) -> None:
        await self._rpc.call("CreateTenant", lambda: catalog_pb2.TenantRequest(name=name), _NOTHING, write=True)

    async def get_tenant(self, name: str) -> Tenant:
        return await self._rpc.call("GetTenant", lambda: catalog_pb2.TenantRequest(name=name), _TENANT)

    async def name_tenant(self, name: str, resource_name: str) -> None:
        await self._rpc.call(
            "NameTenant", lambda: catalog.encode_tenant(Tenant(name, resource_name)), _NOTHING, write=True
        )

    async def create_database(self, tenant: str, name: str) -> Database:
        return await self._rpc.call("CreateDatabase", lambda: _database(tenant, name), _DATABASE, write=True)

    async def get_database(self, tenant: str, name: str) -> Database:
        return await self._rpc.call("GetDatabase", lambda: _database(tenant, name), _DATABASE)

    async def list_databases(self, tenant: str, *, limit: int = 100, offset: int = 0) -> list[Database]:
        return await self._rpc.call(
            "ListDatabases",
            lambda: catalog_pb2.ListDatabasesRequest(tenant=tenant, limit=limit, offset=offset),
            parsed(
                catalog_pb2.ListDatabasesResponse,
                lambda page: [catalog.decode_database(item) for item in page.databases],
            ),
        )

    async def delete_database(self, tenant: str, name: str) -> None:
        await self._rpc.call("DeleteDatabase", lambda: _database(tenant, name), _NOTHING, write=True)

    async def create_collection(self, new: NewCollection, *, get_or_create: bool = False) -> tuple[Collection, bool]:
        return await self._rpc.call(
            "CreateCollection",
            lambda: catalog_pb2.CreateCollectionRequest(
                collection=catalog.encode_new_collection(new), get_or_create=get_or_create
            ),
            parsed(
                catalog_pb2.CreateCollectionResponse,
                lambda answer: (catalog.decode_collection(answer.collection), answer.created),
            ),
            write=True,
        )

    async def get_collection(self, ref: CollectionRef) -> Collection:
        return await self._rpc.call("GetCollection", lambda: encode_ref(ref), _COLLECTION)

    async def get_collection_by_resource_name(self, resource_name: str, database: str, name: str) -> Collection:
        return await self._rpc.call(
            "GetCollectionByResourceName",
            lambda: catalog_pb2.ResourceNameRequest(resource_name=resource_name, database=database, name=name),
            _COLLECTION,
        )

    async def fork_collection(self, ref: CollectionRef, name: str) -> Collection:
        return await self._rpc.call(
            "ForkCollection",
            lambda: pb.ForkCollectionRequest(collection=encode_ref(ref), name=name),
            _COLLECTION,
            write=True,
        )

    async def count_forks(self, ref: CollectionRef) -> int:
        read = catalog_pb2.CountForksResponse.FromString
        return (await self._rpc.call("CountForks", lambda: encode_ref(ref), read)).count

    async def reset(self) -> None:
        await self._rpc.call("Reset", catalog_pb2.ResetRequest, _NOTHING, write=True)

    async def list_collections(
        self, tenant: str, database: str, *, limit: int = 100, offset: int = 0
    ) -> list[Collection]:
        return await self._rpc.call(
            "ListCollections",
            lambda: catalog_pb2.ListCollectionsRequest(tenant=tenant, database=database, limit=limit, offset=offset),
            parsed(
                catalog_pb2.ListCollectionsResponse,
                lambda page: [catalog.decode_collection(item) for item in page.collections],
            ),
        )

    async def count_collections(self, tenant: str, database: str) -> int:
        read = catalog_pb2.CountCollectionsResponse.FromString
        return (await self._rpc.call("CountCollections", lambda: _database(tenant, database), read)).count

    async def modify_collection(
        self,
        ref: CollectionRef,
        *,
        name: str | None = None,
        metadata: Json | None = None,
        configuration: Json | None = None,
        schema: Schema | None = None,
    ) -> Collection:
        return await self._rpc.call(
            "ModifyCollection",
            lambda: pb.ModifyRequest(
                collection=encode_ref(ref),
                name=name,
                metadata_json=None if metadata is None else common.encode_json(metadata, "metadata"),
                configuration_json=None
                if configuration is None
                else common.encode_json(configuration, "configuration"),
                schema_json=None if schema is None else catalog.encode_schema(schema),
            ),
            _COLLECTION,
            write=True,
        )

    async def delete_collection(self, ref: CollectionRef) -> None:
        await self._rpc.call("DeleteCollection", lambda: encode_ref(ref), _NOTHING, write=True)

    async def attach_function(self, ref: CollectionRef, new: NewFunction) -> tuple[AttachedFunction, bool]:
        return await self._rpc.call(
            "AttachFunction",
            lambda: pb.AttachRequest(collection=encode_ref(ref), function=functions.encode_new_function(new)),
            _ATTACHED,
            write=True,
        )

    async def get_function(self, ref: CollectionRef, name: str) -> AttachedFunction:
        return await self._rpc.call(
            "GetFunction", lambda: pb.FunctionRef(collection=encode_ref(ref), name=name), _FUNCTION
        )

    async def detach_function(self, ref: CollectionRef, name: str, *, delete_output: bool = False) -> None:
        await self._rpc.call(
            "DetachFunction",
            lambda: pb.DetachRequest(collection=encode_ref(ref), name=name, delete_output=delete_output),
            _NOTHING,
            write=True,
        )

    async def write(
        self,
        ref: CollectionRef,
        batch: pa.RecordBatch,
        *,
        idempotency_key: str = "",
        condition: Condition | None = None,
        outcomes: bool = False,
    ) -> WriteResult:
        def encode() -> pb.WriteRequest:
            request = pb.WriteRequest(
                collection=encode_ref(ref),
                idempotency_key=idempotency_key,
                condition=encode_condition(condition),
                outcomes=outcomes,
            )
            encode_records(batch, request.records)
            return request

        return await self._rpc.call("Write", encode, _WRITTEN, write=True, size_bytes=batch.nbytes)

    async def delete_where(
        self,
        ref: CollectionRef,
        *,
        ids: Sequence[str] | None,
        where: Filter | None,
        limit: int | None = None,
        idempotency_key: str = "",
        allow_scan: bool = False,
    ) -> WriteResult:
        return await self._rpc.call(
            "DeleteWhere",
            lambda: pb.DeleteWhereRequest(
                collection=encode_ref(ref),
                ids=common.encode_ids(ids),
                where=None if where is None else encode_filter(where),
                limit=limit,
                idempotency_key=idempotency_key,
                allow_scan=allow_scan,
            ),
            _WRITTEN,
            write=True,
            size_bytes=_selection_work(ids, where),
        )

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
        allow_scan: bool = False,
        cursor: str | None = None,
    ) -> Answer:
        return await self._rpc.call(
            "Get",
            lambda: pb.GetRequest(
                collection=encode_ref(ref),
                consistency=common.encode_consistency(consistency),
                ids=common.encode_ids(ids),
                where=None if where is None else encode_filter(where),
                limit=limit,
                offset=offset,
                include=common.encode_include(include),
                explain=explain,
                allow_scan=allow_scan,
                cursor=cursor,
            ),
            decode_answer,
            size_bytes=_selection_work(ids, where),
        )

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
        allow_scan: bool = False,
        texts: Sequence[str] | None = None,
        recall: float = 0.0,
    ) -> Answer:
        def encode() -> pb.QueryRequest:
            dimension, packed = common.encode_vectors(vectors)
            return pb.QueryRequest(
                collection=encode_ref(ref),
                consistency=common.encode_consistency(consistency),
                dimension=dimension,
                vectors=packed,
                k=k,
                ids=common.encode_ids(ids),
                where=None if where is None else encode_filter(where),
                include=common.encode_include(include),
                ef=ef,
                exact=exact,
                explain=explain,
                allow_scan=allow_scan,
                texts=texts,
                recall=recall,
            )

        size_bytes = vectors.nbytes + _selection_work(ids, where)
        return await self._rpc.call("Query", encode, decode_answer, size_bytes=size_bytes)

    async def search(
        self,
        ref: CollectionRef,
        searches: Sequence[Search],
        *,
        consistency: Consistency = STRONG,
        exact: bool = False,
        explain: bool = False,
        allow_scan: bool = False,
        recall: float = 0.0,
    ) -> list[Answer]:
        return await self._rpc.call(
            "Search",
            lambda: pb.SearchRequest(
                collection=encode_ref(ref),
                consistency=common.encode_consistency(consistency),
                searches=[encode_search(search) for search in searches],
                exact=exact,
                explain=explain,
                allow_scan=allow_scan,
                recall=recall,
            ),
            decode_answers,
            size_bytes=sum(_SEARCH_SIZE_BYTES + _selection_work(item.ids, item.where) for item in searches),
        )

    async def count(
        self,
        ref: CollectionRef,
        *,
        where: Filter | None = None,
        consistency: Consistency = STRONG,
        explain: bool = False,
        allow_scan: bool = False,
    ) -> CountAnswer:
        return await self._rpc.call(
            "Count",
            lambda: pb.CountRequest(
                collection=encode_ref(ref),
                consistency=common.encode_consistency(consistency),
                where=None if where is None else encode_filter(where),
                explain=explain,
                allow_scan=allow_scan,
            ),
            _COUNT,
            size_bytes=encoding_work(where),
        )

    async def indexing_status(self, ref: CollectionRef) -> IndexingStatus:
        return await self._rpc.call(
            "IndexingStatus", lambda: encode_ref(ref), parsed(pb.IndexingStatusResponse, decode_indexing_status)
        )

    async def status(self) -> Json:
        return await self._rpc.call(
            "Status",
            pb.StatusRequest,
            parsed(pb.StatusResponse, lambda answer: common.decode_json(answer.status_json, "status_json") or {}),
        )


def _database(tenant: str, name: str) -> catalog_pb2.DatabaseRequest:
    return catalog_pb2.DatabaseRequest(tenant=tenant, name=name)


def _selection_work(ids: Sequence[str] | None, where: Filter | None) -> int:
    return common.ids_work(len(ids or ())) + encoding_work(where)
