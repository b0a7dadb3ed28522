"""The public verbs, each once, for gRPC, for HTTP and for callers in the same process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.consistency import STRONG, Consistency, VersionToken
from shoal_core.contracts import (
    Answer,
    AppendRequest,
    Catalog,
    Collection,
    CollectionRef,
    Condition,
    CountAnswer,
    CountRequest,
    Database,
    EncodedAnswer,
    GetRequest,
    Include,
    IndexingStatus,
    Json,
    Log,
    NewCollection,
    QueryNode,
    QueryRequest,
    WriteResult,
)
from shoal_core.errors import InvalidArgument, StaleRead, WriteConflict
from shoal_core.filters import Filter
from shoal_core.limits import Limits
from shoal_core.ports import MembershipView, Random
from shoal_core.records import ID, OP, Operation, encode_batch
from shoal_frontend import validate
from shoal_frontend.fanout import Fanout, target_of
from shoal_frontend.names import Names

_DELETE_ATTEMPTS = 10
_LARGE_BYTES = 256 << 10  # above this, checking and encoding a batch would hold up the event loop

_IDS_ONLY = Include()


@dataclass(slots=True)
class DatabaseService:
    """`PublicApi` over the other services. ``members`` is the registry's view, for `status`."""

    catalog: Catalog
    log: Log
    nodes: QueryNode
    random: Random
    members: Callable[[], MembershipView]
    limits: Limits = field(default_factory=Limits)
    cached_names: int = 10_000
    _names: Names = field(init=False)
    _fanout: Fanout = field(init=False)

    def __post_init__(self) -> None:
        self._names = Names(self.catalog, self.cached_names)
        self._fanout = Fanout(self.nodes, self.log, self.catalog)

    # --- tenants and databases

    async def create_tenant(self, name: str) -> None:
        validate.check_tenant_name(name, self.limits)
        await self.catalog.create_tenant(name)

    async def get_tenant(self, name: str) -> str:
        return await self.catalog.get_tenant(name)

    async def create_database(self, tenant: str, name: str) -> Database:
        validate.check_name(name, "database.name")
        return await self.catalog.create_database(tenant, name)

    async def get_database(self, tenant: str, name: str) -> Database:
        return await self.catalog.get_database(tenant, name)

    async def list_databases(self, tenant: str, *, limit: int = 100, offset: int = 0) -> list[Database]:
        validate.check_page(limit, offset, self.limits.page_size)
        return await self.catalog.list_databases(tenant, limit=limit, offset=offset)

    async def delete_database(self, tenant: str, name: str) -> None:
        await self.catalog.delete_database(tenant, name)

    # --- collections

    async def create_collection(self, new: NewCollection, *, get_or_create: bool = False) -> tuple[Collection, bool]:
        validate.check_new_collection(new, self.limits)
        return await self.catalog.create_collection(new, get_or_create=get_or_create)

    async def get_collection(self, ref: CollectionRef) -> Collection:
        return await self._names.resolve(ref)

    async def list_collections(
        self, tenant: str, database: str, *, limit: int = 100, offset: int = 0
    ) -> list[Collection]:
        validate.check_page(limit, offset, self.limits.page_size)
        return await self.catalog.list_collections(tenant, database, limit=limit, offset=offset)

    async def count_collections(self, tenant: str, database: str) -> int:
        return await self.catalog.count_collections(tenant, database)

    async def modify_collection(
        self,
        ref: CollectionRef,
        *,
        name: str | None = None,
        metadata: Json | None = None,
        configuration: Json | None = None,
    ) -> Collection:
        if name is not None:
            validate.check_name(name, "name")
        validate.check_collection_metadata(metadata, self.limits)
        validate.check_json({} if configuration is None else configuration, "configuration", self.limits)
        found = await self._names.resolve(ref)
        self._names.forget(ref)
        return await self.catalog.modify_collection(found.id, name=name, metadata=metadata, configuration=configuration)

    async def delete_collection(self, ref: CollectionRef) -> None:
        found = await self._names.resolve(ref)
        self._names.forget(ref)
        await self.catalog.delete_collection(found.id)

    # --- writes

    async def write(
        self,
        ref: CollectionRef,
        batch: pa.RecordBatch,
        *,
        idempotency_key: str = "",
        condition: Condition | None = None,
    ) -> WriteResult:
        validate.check_idempotency_key(idempotency_key, self.limits)
        # A key of our own makes the retries between here and the log safe.
        key = idempotency_key or self.random.token().hex()

        def prepared(dimension: int | None) -> pa.Buffer:
            validate.check_batch(batch, dimension, self.limits)
            return encode_batch(batch)

        async def append(collection: Collection) -> WriteResult:
            if batch.nbytes > _LARGE_BYTES:
                payload = await asyncio.to_thread(prepared, collection.dimension)
            else:
                payload = prepared(collection.dimension)
            return await self._append(collection, payload, batch.num_rows, key, condition)

        return await self._names.with_collection(ref, append)

    async def _append(
        self, collection: Collection, payload: pa.Buffer, records: int, key: str, condition: Condition | None
    ) -> WriteResult:
        request = AppendRequest(collection.id, collection.epoch, collection.tenant, payload, key, condition)
        result = await self.log.append(request)
        return WriteResult(result.token, result.first_offset, records)

    async def delete_where(
        self,
        ref: CollectionRef,
        *,
        ids: Sequence[str] | None,
        where: Filter | None,
        limit: int | None = None,
        idempotency_key: str = "",
    ) -> WriteResult:
        """See `PublicApi`. Ids alone are deleted unread; a filter is read at a strong snapshot and deleted on condition that
        none of its matches was written since, else it is read again.
        """
        if ids is None and where is None:
            raise InvalidArgument("give ids, a filter or both; nothing deletes everything", field="where")
        validate.check_selection(ids, where, self.limits)
        validate.check_page(limit, 0, self.limits.get_results)
        validate.check_idempotency_key(idempotency_key, self.limits)
        if where is None and limit is None and ids:
            return await self.write(ref, _deletions(tuple(dict.fromkeys(ids))), idempotency_key=idempotency_key)
        wanted = None if ids is None else tuple(ids)

        async def delete(collection: Collection) -> WriteResult:
            # What was read and what is written must be one collection: the name may pass to another in between.
            answer = await self._fanout.get(
                collection, GetRequest(target_of(collection), ids=wanted, where=where, limit=limit)
            )
            assert isinstance(answer, Answer)
            found = tuple(answer.rows.column(ID).to_pylist())
            at = answer.served_at.offset
            if not found:
                return WriteResult(VersionToken(collection.id, collection.incarnation, at), at, 0)
            return await self._delete(collection, ids=found, read_at=at, key=idempotency_key)

        for _ in range(_DELETE_ATTEMPTS):
            try:
                return await self._names.with_collection(ref, delete)
            except (WriteConflict, StaleRead):
                continue
        raise WriteConflict(f"the matches changed during each of {_DELETE_ATTEMPTS} tries; try again")

    async def _delete(self, collection: Collection, ids: tuple[str, ...], read_at: int, key: str) -> WriteResult:
        payload = encode_batch(_deletions(ids))
        key = key or self.random.token().hex()
        return await self._append(collection, payload, len(ids), key, Condition(read_at, ids))

    # --- reads

    async def get(
        self,
        ref: CollectionRef,
        *,
        ids: Sequence[str] | None = None,
        where: Filter | None = None,
        limit: int | None = None,
        offset: int = 0,
        include: Include = _IDS_ONLY,
        consistency: Consistency = STRONG,
        explain: bool = False,
    ) -> Answer:
        answer = await self.get_encoded(
            ref,
            ids=ids,
            where=where,
            limit=limit,
            offset=offset,
            include=include,
            consistency=consistency,
            explain=explain,
            encoded=False,
        )
        assert isinstance(answer, Answer)
        return answer

    async def get_encoded(
        self,
        ref: CollectionRef,
        *,
        ids: Sequence[str] | None,
        where: Filter | None,
        limit: int | None,
        offset: int,
        include: Include,
        consistency: Consistency,
        explain: bool,
        encoded: bool = True,
    ) -> Answer | EncodedAnswer:
        """`get`, whose answer may be the bytes of the one shard that gave it."""
        validate.check_selection(ids, where, self.limits)
        validate.check_page(limit, offset, self.limits.get_results)
        wanted = None if ids is None else tuple(ids)

        async def read(collection: Collection) -> Answer | EncodedAnswer:
            request = GetRequest(target_of(collection), consistency, 0, wanted, where, limit, offset, include, explain)
            return await self._fanout.get(collection, request, encoded=encoded)

        return await self._names.with_collection(ref, read)

    async def query(
        self,
        ref: CollectionRef,
        vectors: npt.NDArray[np.float32],
        k: int,
        *,
        ids: Sequence[str] | None = None,
        where: Filter | None = None,
        include: Include = _IDS_ONLY,
        consistency: Consistency = STRONG,
        ef: int = 0,
        exact: bool = False,
        explain: bool = False,
    ) -> Answer:
        answer = await self.query_encoded(
            ref,
            vectors,
            k,
            ids=ids,
            where=where,
            include=include,
            consistency=consistency,
            ef=ef,
            exact=exact,
            explain=explain,
            encoded=False,
        )
        assert isinstance(answer, Answer)
        return answer

    async def query_encoded(
        self,
        ref: CollectionRef,
        vectors: npt.NDArray[np.float32],
        k: int,
        *,
        ids: Sequence[str] | None,
        where: Filter | None,
        include: Include,
        consistency: Consistency,
        ef: int,
        exact: bool,
        explain: bool,
        encoded: bool = True,
    ) -> Answer | EncodedAnswer:
        """`query`, whose answer may be the bytes of the one shard that gave it."""
        validate.check_selection(ids, where, self.limits)
        validate.check_page(k, 0, self.limits.query_results, "n_results")
        wanted = None if ids is None else tuple(ids)

        async def read(collection: Collection) -> Answer | EncodedAnswer:
            validate.check_vectors(vectors, collection.dimension, self.limits)
            request = QueryRequest(
                target_of(collection), vectors, k, consistency, 0, wanted, where, include, ef, exact, explain
            )
            return await self._fanout.query(collection, request, encoded=encoded)

        return await self._names.with_collection(ref, read)

    async def count(
        self, ref: CollectionRef, *, where: Filter | None = None, consistency: Consistency = STRONG
    ) -> CountAnswer:
        validate.check_selection(None, where, self.limits)
        return await self._names.with_collection(
            ref,
            lambda collection: self._fanout.count(
                collection, CountRequest(target_of(collection), consistency, 0, where)
            ),
        )

    async def indexing_status(self, ref: CollectionRef) -> IndexingStatus:
        async def read(collection: Collection) -> IndexingStatus:
            head = await self.log.read_index(collection.id, collection.epoch)
            shards = 0
            if head.version:
                request = GetRequest(target_of(collection), limit=0, explain=True)
                explained = [
                    await self.nodes.get(replace(request, target=target_of(collection, shard)))
                    for shard in range(collection.shards)
                ]
                parts = [
                    part
                    for answer in explained
                    if isinstance(answer, Answer)
                    for part in (answer.explain or {})["shards"]
                ]
                shards = sum(len(part["segments"]) for part in parts)
            return IndexingStatus(head.head_offset, head.compacted_offset, head.version, shards)

        return await self._names.with_collection(ref, read)

    async def status(self) -> Json:
        view = self.members()
        backlog = await self.catalog.backlog(limit=self.limits.page_size, min_records=1, min_age_ms=0)
        return {
            "registry": {"connected": view.connected, "revision": view.revision},
            "members": {role: [asdict(member) for member in members] for role, members in view.members.items()},
            "backlog": [
                {
                    "collection": item.collection.name,
                    "id": item.collection.id,
                    "database": item.collection.database,
                    "tenant": item.collection.tenant,
                    "head_offset": item.head_offset,
                    "compacted_offset": item.compacted_offset,
                    "uncompacted_bytes": item.uncompacted_bytes,
                    "age_ms": item.age_ms,
                    "version": item.version,
                }
                for item in backlog
            ],
            "limits": asdict(self.limits),
        }


def _deletions(ids: Sequence[str]) -> pa.RecordBatch:
    operations = np.full(len(ids), Operation.DELETE, dtype=np.uint8)
    return pa.record_batch({OP: pa.array(operations), ID: pa.array(ids, pa.string())})
