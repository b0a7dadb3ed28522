"""The public verbs, each once, for gRPC, for HTTP and for callers in the same process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.consistency import STRONG, Consistency, as_of
from shoal_core.contracts import (
    Answer,
    AttachedFunction,
    Catalog,
    Collection,
    CollectionRef,
    Condition,
    CountAnswer,
    CountRequest,
    Database,
    EncodedAnswer,
    Functions,
    GetRequest,
    Include,
    IndexingStatus,
    Json,
    Log,
    NewCollection,
    NewFunction,
    QueryNode,
    QueryRequest,
    Tenant,
    WriteResult,
)
from shoal_core.errors import FailedPrecondition, InvalidArgument, PermissionDenied, Unimplemented
from shoal_core.filters import Filter
from shoal_core.limits import Limits
from shoal_core.ports import Clock, MembershipView, Random
from shoal_core.ranking import Search
from shoal_core.schema import Schema
from shoal_frontend import validate
from shoal_frontend.apart import apart
from shoal_frontend.cursor import Cursor, with_cursor
from shoal_frontend.embedding import Embedded, ServerEmbedding
from shoal_frontend.fanout import Fanout, effort_of, target_of
from shoal_frontend.indexed import check_indexed
from shoal_frontend.names import Names
from shoal_frontend.search import search as run_searches
from shoal_frontend.search_texts import texts_to_embed, with_vectors
from shoal_frontend.validate_filter import check_selection, takes_long
from shoal_frontend.validate_search import check_searched, check_searches, searches_take_long
from shoal_frontend.writes import Writes
from shoal_text.analysis import check_analyzer

_IDS_ONLY = Include()


@dataclass(slots=True)
class DatabaseService:
    """`PublicApi` over the other services.

    ``members`` is the registry's view, for `status`; with a ``clock`` explained reads say how long each stage took here;
    ``allow_reset`` lets callers delete everything; without ``functions`` none can be attached; ``embedding`` makes vectors of texts for
    those who send none.
    """

    catalog: Catalog
    log: Log
    nodes: QueryNode
    random: Random
    members: Callable[[], MembershipView]
    limits: Limits = field(default_factory=Limits)
    cached_names: int = 10_000
    clock: Clock | None = None
    allow_reset: bool = False
    functions: Functions | None = None
    embedding: ServerEmbedding | None = None
    _names: Names = field(init=False)
    _fanout: Fanout = field(init=False)
    _writes: Writes = field(init=False)

    def __post_init__(self) -> None:
        self._names = Names(self.catalog, self.cached_names, self.limits)
        self._fanout = Fanout(self.nodes, self.log, self.catalog, self.clock)
        self._writes = Writes(self.log, self._fanout, self._names, self.random, self.limits, self.embedding)

    # --- tenants and databases

    async def create_tenant(self, name: str) -> None:
        validate.check_tenant_name(name, self.limits)
        await self.catalog.create_tenant(name)

    async def get_tenant(self, name: str) -> Tenant:
        validate.check_names(self.limits, name=name)
        return await self.catalog.get_tenant(name)

    async def name_tenant(self, name: str, resource_name: str) -> None:
        validate.check_names(self.limits, name=name)
        validate.check_resource_name(resource_name, self.limits)
        await self.catalog.name_tenant(name, resource_name)

    async def create_database(self, tenant: str, name: str) -> Database:
        validate.check_name(name, "database.name")
        validate.check_names(self.limits, tenant=tenant)
        return await self.catalog.create_database(tenant, name)

    async def get_database(self, tenant: str, name: str) -> Database:
        validate.check_names(self.limits, tenant=tenant, name=name)
        return await self.catalog.get_database(tenant, name)

    async def list_databases(self, tenant: str, *, limit: int = 100, offset: int = 0) -> list[Database]:
        validate.check_names(self.limits, tenant=tenant)
        validate.check_page(limit, offset, self.limits.page_size)
        return await self.catalog.list_databases(tenant, limit=limit, offset=offset)

    async def delete_database(self, tenant: str, name: str) -> None:
        validate.check_names(self.limits, tenant=tenant, name=name)
        try:
            await self.catalog.delete_database(tenant, name)
        finally:
            self._names.clear()

    # --- collections

    async def create_collection(self, new: NewCollection, *, get_or_create: bool = False) -> tuple[Collection, bool]:
        validate.check_new_collection(new, self.limits)
        check_analyzer(new.schema.analyzer)
        return await self.catalog.create_collection(new, get_or_create=get_or_create)

    async def get_collection(self, ref: CollectionRef) -> Collection:
        return await self._names.resolve(ref)

    async def get_collection_by_resource_name(self, resource_name: str, database: str, name: str) -> Collection:
        validate.check_names(self.limits, resource_name=resource_name, database=database, name=name)
        return await self.catalog.get_collection_by_resource_name(resource_name, database, name)

    async def list_collections(
        self, tenant: str, database: str, *, limit: int = 100, offset: int = 0
    ) -> list[Collection]:
        validate.check_names(self.limits, tenant=tenant, database=database)
        validate.check_page(limit, offset, self.limits.page_size)
        return await self.catalog.list_collections(tenant, database, limit=limit, offset=offset)

    async def count_collections(self, tenant: str, database: str) -> int:
        validate.check_names(self.limits, tenant=tenant, database=database)
        return await self.catalog.count_collections(tenant, database)

    async def modify_collection(
        self,
        ref: CollectionRef,
        *,
        name: str | None = None,
        metadata: Json | None = None,
        configuration: Json | None = None,
        schema: Schema | None = None,
    ) -> Collection:
        if name is not None:
            validate.check_name(name, "name")
        validate.check_collection_metadata(metadata, self.limits)
        validate.check_json({} if configuration is None else configuration, "configuration", self.limits)
        validate.check_schema(Schema() if schema is None else schema, self.limits)
        found = await self._names.resolve(ref)
        self._names.forget(ref)
        return await self.catalog.modify_collection(
            found.id, name=name, metadata=metadata, configuration=configuration, schema=schema
        )

    async def delete_collection(self, ref: CollectionRef) -> None:
        found = await self._names.resolve(ref)
        self._names.forget(ref)
        await self.catalog.delete_collection(found.id)

    async def fork_collection(self, ref: CollectionRef, name: str) -> Collection:
        validate.check_name(name, "name")
        found = await self._names.resolve(ref)
        return await self.catalog.fork_collection(found.id, name)

    async def count_forks(self, ref: CollectionRef) -> int:
        found = await self._names.resolve(ref)
        return await self.catalog.count_forks(found.id)

    async def reset(self) -> None:
        if not self.allow_reset:
            raise PermissionDenied("this system's configuration does not allow to reset it (frontend.allow_reset)")
        try:
            await self.catalog.reset()
        finally:
            self._names.clear()

    # --- functions

    async def attach_function(self, ref: CollectionRef, new: NewFunction) -> tuple[AttachedFunction, bool]:
        validate.check_new_function(new, self.limits)
        found = await self._names.resolve(ref)
        return await self._functions().attach_function(found.id, new, limit=self.limits.functions)

    async def get_function(self, ref: CollectionRef, name: str) -> AttachedFunction:
        validate.check_function_name(name, self.limits)
        found = await self._names.resolve(ref)
        return await self._functions().get_function(found.id, name)

    async def detach_function(self, ref: CollectionRef, name: str, *, delete_output: bool = False) -> None:
        function = await self.get_function(ref, name)
        if delete_output:
            await self.catalog.delete_collection(function.output_collection_id)  # which ends the function, in one step
        else:
            await self._functions().detach_function(function.input_collection_id, name)

    def _functions(self) -> Functions:
        if self.functions is None:
            raise Unimplemented("functions cannot be attached here")
        return self.functions

    # --- writes

    async def write(
        self,
        ref: CollectionRef,
        batch: pa.RecordBatch,
        *,
        idempotency_key: str = "",
        condition: Condition | None = None,
        outcomes: bool = False,
    ) -> WriteResult:
        return await self._writes.write(
            ref, batch, idempotency_key=idempotency_key, condition=condition, outcomes=outcomes
        )

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
        return await self._writes.delete_where(
            ref, ids=ids, where=where, limit=limit, idempotency_key=idempotency_key, allow_scan=allow_scan
        )

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
        allow_scan: bool = False,
        cursor: str | None = None,
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
            allow_scan=allow_scan,
            cursor=cursor,
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
        allow_scan: bool,
        cursor: str | None,
        encoded: bool = True,
    ) -> Answer | EncodedAnswer:
        """`get`, whose answer may be the bytes of the one shard that gave it."""
        await self._check_selection(ids, where)
        validate.check_page(limit, offset, self.limits.get_results)
        validate.check_include(include, self.limits)
        if cursor is not None and not limit:
            raise InvalidArgument("pages need a limit of at least 1", field="limit")
        wanted = None if ids is None else tuple(ids)

        async def read(collection: Collection) -> Answer | EncodedAnswer:
            check_indexed(where, collection.schema, allow_scan=allow_scan)
            request = GetRequest(target_of(collection), consistency, 0, wanted, where, limit, offset, include, explain)
            if cursor is None:
                return await self._fanout.get(collection, request, encoded=encoded)
            return await self._page(collection, request, cursor)

        return await self._names.with_collection(ref, read)

    async def _page(self, collection: Collection, request: GetRequest, cursor: str) -> Answer:
        """One page with the cursor of the next."""
        if cursor:
            at = Cursor.parse(cursor, collection)
            request = replace(request, consistency=as_of(at.offset), after_created=at.position, offset=0)
        answer = await self._fanout.get(collection, replace(request, limit=(request.limit or 0) + 1))
        assert isinstance(answer, Answer)
        return with_cursor(answer, collection, request.limit)

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
        allow_scan: bool = False,
        texts: Sequence[str] | None = None,
        recall: float = 0.0,
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
            allow_scan=allow_scan,
            texts=texts,
            recall=recall,
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
        allow_scan: bool,
        texts: Sequence[str] | None = None,
        recall: float = 0.0,
        encoded: bool = True,
    ) -> Answer | EncodedAnswer:
        """`query`, whose answer may be the bytes of the one shard that gave it."""
        await self._check_selection(ids, where)
        validate.check_page(k, 0, self.limits.query_results, "n_results")
        validate.check_page(ef, 0, self.limits.query_results, "ef")
        validate.check_recall(recall)
        validate.check_include(include, self.limits)
        wanted = None if ids is None else tuple(ids)
        validate.check_query_texts(texts, vectors, self.limits)
        embedded: Embedded[npt.NDArray[np.float32]] = Embedded()

        async def read(collection: Collection) -> Answer | EncodedAnswer:
            if texts is None:
                validate.check_vectors(vectors, collection.dimension, self.limits)
            check_indexed(where, collection.schema, allow_scan=allow_scan)
            asked = vectors
            if texts is not None:
                asked = await embedded.once(collection, partial(self._query_vectors, texts, collection))
            request = QueryRequest(
                target_of(collection),
                asked,
                k,
                consistency,
                ids=wanted,
                where=where,
                include=include,
                ef=effort_of(collection.schema.vector, ef, recall),
                exact=exact,
                explain=explain,
                recall=recall or collection.schema.vector.recall,
            )
            return await self._fanout.query(collection, request, encoded=encoded)

        return await self._names.with_collection(ref, read)

    async def _query_vectors(self, texts: Sequence[str], collection: Collection) -> npt.NDArray[np.float32]:
        if self.embedding is None:
            raise FailedPrecondition(
                "this server embeds no texts (frontend.embedding); send vectors", field="query_texts"
            )
        vectors = await self.embedding.query_vectors(texts, collection)
        validate.check_vectors(vectors, collection.dimension, self.limits)
        return vectors

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
        validate.check_recall(recall)
        check = partial(check_searches, embeds=self.embedding is not None)
        await apart(searches_take_long(searches), check, searches, self.limits)
        embedded: Embedded[list[Search]] = Embedded()

        async def read(collection: Collection) -> list[Answer]:
            check_searched(searches, collection, self.limits, allow_scan=allow_scan)
            asked = await embedded.once(collection, partial(self._with_vectors, searches, collection))
            return await run_searches(
                self._fanout,
                collection,
                asked,
                consistency=consistency,
                exact=exact,
                explain=explain,
                recall=recall,
            )

        return await self._names.with_collection(ref, read)

    async def _with_vectors(self, searches: Sequence[Search], collection: Collection) -> list[Search]:
        texts = texts_to_embed(searches)
        if not texts or self.embedding is None:
            return list(searches)
        vectors = await self.embedding.query_vectors([*texts], collection, field="searches", rows=[*texts.values()])
        validate.check_vectors(vectors, collection.dimension, self.limits)
        return with_vectors(searches, dict(zip(texts, vectors, strict=True)))

    async def count(
        self,
        ref: CollectionRef,
        *,
        where: Filter | None = None,
        consistency: Consistency = STRONG,
        explain: bool = False,
        allow_scan: bool = False,
    ) -> CountAnswer:
        await self._check_selection(None, where)

        async def read(collection: Collection) -> CountAnswer:
            check_indexed(where, collection.schema, allow_scan=allow_scan)
            return await self._fanout.count(
                collection, CountRequest(target_of(collection), consistency, 0, where, explain)
            )

        return await self._names.with_collection(ref, read)

    async def indexing_status(self, ref: CollectionRef) -> IndexingStatus:
        async def read(collection: Collection) -> IndexingStatus:
            head = await self.log.read_index(collection.id, collection.epoch)
            segments = await self._fanout.segments(collection) if head.version else 0
            return IndexingStatus(head.head_offset, head.compacted_offset, head.version, segments)

        return await self._names.with_collection(ref, read)

    async def _check_selection(self, ids: Sequence[str] | None, where: Filter | None) -> None:
        await apart(takes_long(ids, where), check_selection, ids, where, self.limits)

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
