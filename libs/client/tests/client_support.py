"""A public API in memory for the SDK's tests: the oracle's semantics, a record of the calls, failures on demand."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from libs.client.tests.client_search_support import search_rows
from shoal._connect import Connection
from shoal.aio import AsyncClient
from shoal_core.consistency import STRONG, Consistency, ReadLevel, ServedAt, VersionToken
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
    Outcome,
    Tenant,
    WriteResult,
)
from shoal_core.errors import AlreadyExists, NotFound, ShoalError, StaleRead, WriteConflict
from shoal_core.evaluate import evaluate
from shoal_core.filters import Filter
from shoal_core.ranking import Search
from shoal_core.records import (
    CREATED_OFFSET,
    DELETED_KEYS,
    DOCUMENT,
    EMBEDDING,
    ID,
    OP,
    URI_KEY,
    MetadataField,
    Operation,
    dimension_of,
    metadata_fields,
)
from shoal_core.schema import Schema
from shoal_testing.oracle import OracleCollection, OracleState
from shoal_testing.strategies import to_row_table

IDS_ONLY = Include()


@dataclass(slots=True)
class Call:
    """One call of the API: the verb and its arguments by name."""

    verb: str
    arguments: dict[str, Any]


@dataclass(slots=True)
class Stored:
    """A collection, its records, the outcome of every idempotency key, and the offset at which each id was last written."""

    info: Collection
    records: OracleCollection | None = None
    outcomes: dict[str, WriteResult] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)
    trim_floor: int = 0


@dataclass(slots=True)
class Fail:
    """A scripted failure; ``after`` the work was done, like an answer that got lost."""

    error: ShoalError
    after: bool = False


class FakeApi:
    """Implements `PublicApi`. Several of them may share one ``state``, like frontends of one cluster."""

    def __init__(self, state: dict[str, Stored] | None = None) -> None:
        self.state = {} if state is None else state
        self.calls: list[Call] = []
        self.script: deque[Fail | ShoalError] = deque()
        self.down: ShoalError | None = None
        self.indexed: deque[int] = deque()
        self.before: Callable[[], Any] | None = None
        self.databases = {("default_tenant", "default_database")}
        self.functions: dict[tuple[str, str], AttachedFunction] = {}
        self.estimate: float | None = None

    def seen(self, verb: str) -> list[dict[str, Any]]:
        """The arguments of every call of a verb."""
        return [call.arguments for call in self.calls if call.verb == verb]

    async def _do(self, verb: str, work: Callable[[], Any], **arguments: Any) -> Any:
        self.calls.append(Call(verb, arguments))
        if self.before is not None:
            await self.before()
        if self.down is not None:
            raise self.down
        failure = self.script.popleft() if self.script else None
        if isinstance(failure, ShoalError):
            raise failure
        result = work()
        if failure is not None and failure.after:
            raise failure.error
        return result

    def _find(self, ref: CollectionRef) -> Stored:
        for stored in self.state.values():
            info = stored.info
            named = (info.tenant, info.database, info.name) == (ref.tenant, ref.database, ref.name)
            if info.id == ref.id or (not ref.id and named):
                return stored
        raise NotFound(f"collection {ref.name or ref.id} does not exist")

    # --- catalog

    async def create_tenant(self, name: str) -> None:
        await self._do("create_tenant", lambda: None, name=name)

    async def get_tenant(self, name: str) -> Tenant:
        result: Tenant = await self._do("get_tenant", lambda: Tenant(name), name=name)
        return result

    async def name_tenant(self, name: str, resource_name: str) -> None:
        await self._do("name_tenant", lambda: None, name=name, resource_name=resource_name)

    async def get_collection_by_resource_name(self, resource_name: str, database: str, name: str) -> Collection:
        raise NotFound("tenants have no resource names here")

    async def reset(self) -> None:
        await self._do("reset", lambda: None)

    async def fork_collection(self, ref: CollectionRef, name: str) -> Collection:
        def work() -> Collection:
            source = self._find(ref)
            made = replace(source.info, id=f"fork-of-{source.info.id}", name=name)
            self.state[made.id] = replace(source, info=made)
            return made

        result: Collection = await self._do("fork_collection", work, ref=ref, name=name)
        return result

    async def count_forks(self, ref: CollectionRef) -> int:
        result: int = await self._do("count_forks", lambda: 2, ref=ref)
        return result

    async def create_database(self, tenant: str, name: str) -> Database:
        def work() -> Database:
            if (tenant, name) in self.databases:
                raise AlreadyExists(f"database {name} exists")
            self.databases.add((tenant, name))
            return Database(name, tenant, name)

        result: Database = await self._do("create_database", work, tenant=tenant, name=name)
        return result

    async def get_database(self, tenant: str, name: str) -> Database:
        result: Database = await self._do(
            "get_database", lambda: Database(name, tenant, name), tenant=tenant, name=name
        )
        return result

    async def list_databases(self, tenant: str, *, limit: int = 100, offset: int = 0) -> list[Database]:
        def work() -> list[Database]:
            names = sorted(name for owner, name in self.databases if owner == tenant)
            return [Database(name, tenant, name) for name in names[offset : offset + limit]]

        result: list[Database] = await self._do("list_databases", work, tenant=tenant, limit=limit, offset=offset)
        return result

    async def delete_database(self, tenant: str, name: str) -> None:
        await self._do("delete_database", lambda: self.databases.remove((tenant, name)), tenant=tenant, name=name)

    async def create_collection(self, new: NewCollection, *, get_or_create: bool = False) -> tuple[Collection, bool]:
        def work() -> tuple[Collection, bool]:
            for stored in self.state.values():
                if stored.info.name == new.name:
                    if get_or_create:
                        return stored.info, False
                    raise AlreadyExists(f"collection {new.name} exists", field="name")
            info = Collection(
                str(uuid.uuid4()),
                new.tenant,
                new.database,
                new.name,
                1,
                str(uuid.uuid4()),
                new.space,
                new.shards,
                new.dimension,
                new.metadata,
                new.configuration,
                new.schema,
            )
            self.state[info.id] = Stored(info)
            return info, True

        result: tuple[Collection, bool] = await self._do(
            "create_collection", work, new=new, get_or_create=get_or_create
        )
        return result

    async def get_collection(self, ref: CollectionRef) -> Collection:
        result: Collection = await self._do("get_collection", lambda: self._find(ref).info, ref=ref)
        return result

    async def list_collections(
        self, tenant: str, database: str, *, limit: int = 100, offset: int = 0
    ) -> list[Collection]:
        def work() -> list[Collection]:
            return [stored.info for stored in self.state.values()][offset : offset + limit]

        result: list[Collection] = await self._do("list_collections", work, limit=limit, offset=offset)
        return result

    async def count_collections(self, tenant: str, database: str) -> int:
        result: int = await self._do("count_collections", lambda: len(self.state))
        return result

    async def modify_collection(
        self,
        ref: CollectionRef,
        *,
        name: str | None = None,
        metadata: Json | None = None,
        configuration: Json | None = None,
        schema: Schema | None = None,
    ) -> Collection:
        def work() -> Collection:
            stored = self._find(ref)
            stored.info = replace(
                stored.info,
                name=name or stored.info.name,
                metadata=stored.info.metadata if metadata is None else metadata,
                schema=stored.info.schema if schema is None else schema,
                epoch=stored.info.epoch + 1,
            )
            return stored.info

        result: Collection = await self._do(
            "modify_collection", work, ref=ref, name=name, metadata=metadata, schema=schema
        )
        return result

    async def delete_collection(self, ref: CollectionRef) -> None:
        await self._do("delete_collection", lambda: self.state.pop(self._find(ref).info.id), ref=ref)

    # --- records

    async def write(
        self,
        ref: CollectionRef,
        batch: pa.RecordBatch,
        *,
        idempotency_key: str = "",
        condition: Condition | None = None,
        outcomes: bool = False,
    ) -> WriteResult:
        def work() -> WriteResult:
            stored = self._find(ref)
            if idempotency_key not in stored.outcomes:
                _check(stored, condition)
                stored.outcomes[idempotency_key] = _apply(stored, batch)
            result = stored.outcomes[idempotency_key]
            return result if outcomes else replace(result, outcomes=None)

        arguments = {"idempotency_key": idempotency_key, "condition": condition, "outcomes": outcomes}
        result: WriteResult = await self._do("write", work, ref=ref, batch=batch, **arguments)
        return result

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
        def work() -> WriteResult:
            stored = self._find(ref)
            at = _served_at(stored).offset
            chosen = [record["id"] for record in _matching(stored, stored.records, ids, where)][:limit]
            ops = pa.array([int(Operation.DELETE)] * len(chosen), pa.uint8())
            result = _apply(stored, pa.record_batch({OP: ops, ID: pa.array(chosen, pa.string())}))
            return replace(result, outcomes=None, read_offset=at)

        arguments = {"limit": limit, "idempotency_key": idempotency_key, "allow_scan": allow_scan}
        result: WriteResult = await self._do("delete_where", work, ids=ids, where=where, **arguments)
        return result

    async def get(
        self,
        ref: CollectionRef,
        *,
        ids: Sequence[str] | None = None,
        where: Filter | None = None,
        limit: int | None = None,
        offset: int = 0,
        include: Include = IDS_ONLY,
        consistency: Consistency = STRONG,
        explain: bool = False,
        allow_scan: bool = False,
        cursor: str | None = None,
    ) -> Answer:
        def work() -> Answer:
            stored = self._find(ref)
            start, at = (offset, consistency) if not cursor else _opened(cursor)
            state, served_at = _state(stored, at), _served_at(stored, at)
            found = _matching(stored, state, ids, where)[start:]
            page = found if limit is None else found[:limit]
            rows = _rows(stored, page, include)
            following = f"{served_at.offset}:{start + len(page)}" if cursor is not None and len(page) == limit else ""
            counts = np.array([rows.num_rows], np.uint32)
            return Answer(rows, counts, served_at, explain=_plan(explain), cursor=following)

        arguments = {"ids": ids, "where": where, "include": include, "consistency": consistency, "explain": explain}
        arguments |= {"allow_scan": allow_scan, "cursor": cursor}
        result: Answer = await self._do("get", work, limit=limit, offset=offset, **arguments)
        return result

    async def query(
        self,
        ref: CollectionRef,
        vectors: npt.NDArray[np.float32],
        k: int,
        *,
        ids: Sequence[str] | None = None,
        where: Filter | None = None,
        include: Include = IDS_ONLY,
        consistency: Consistency = STRONG,
        ef: int = 0,
        exact: bool = False,
        explain: bool = False,
        allow_scan: bool = False,
        texts: Sequence[str] | None = None,
        recall: float = 0.0,
    ) -> Answer:
        assert texts is None, "the SDK embeds in the client"

        def work() -> Answer:
            stored = self._find(ref)
            state = _state(stored, consistency)
            found = {record["id"]: record for record in _matching(stored, state, ids, where)}
            hits = [] if state is None else state.query(vectors.tolist(), k, ids=list(found))
            tables = [_rows(stored, [found[hit.id] for hit in page], include) for page in hits]
            if include.distances:
                tables = [
                    table.append_column("distance", pa.array([hit.distance for hit in page], pa.float32()))
                    for table, page in zip(tables, hits, strict=True)
                ]
            rows = pa.concat_tables(tables, promote_options="default") if tables else _rows(stored, [], include)
            counts = np.array([len(page) for page in hits] or [0] * len(vectors), np.uint32)
            served_at = _served_at(stored, consistency)
            return Answer(rows, counts, served_at, explain=_plan(explain), recall=self.estimate)

        arguments = {"ids": ids, "where": where, "include": include, "consistency": consistency, "explain": explain}
        arguments["allow_scan"] = allow_scan
        result: Answer = await self._do(
            "query", work, vectors=vectors, k=k, ef=ef, recall=recall, exact=exact, **arguments
        )
        return result

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
        def work() -> list[Answer]:
            return [_searched(self._find(ref), search, consistency, explain) for search in searches]

        arguments = {"consistency": consistency, "exact": exact, "explain": explain, "allow_scan": allow_scan}
        result: list[Answer] = await self._do("search", work, searches=searches, recall=recall, **arguments)
        return result

    async def get_encoded(self, ref: CollectionRef, **arguments: Any) -> Answer:
        """For the gRPC face, which takes an answer as well as its bytes."""
        return await self.get(ref, **arguments)

    async def query_encoded(
        self, ref: CollectionRef, vectors: npt.NDArray[np.float32], k: int, **arguments: Any
    ) -> Answer:
        """See `get_encoded`."""
        return await self.query(ref, vectors, k, **arguments)

    async def count(
        self,
        ref: CollectionRef,
        *,
        where: Filter | None = None,
        consistency: Consistency = STRONG,
        explain: bool = False,
        allow_scan: bool = False,
    ) -> CountAnswer:
        def work() -> CountAnswer:
            stored = self._find(ref)
            found = _matching(stored, _state(stored, consistency), None, where)
            return CountAnswer(len(found), _served_at(stored, consistency), _plan(explain))

        arguments = {"consistency": consistency, "explain": explain, "allow_scan": allow_scan}
        result: CountAnswer = await self._do("count", work, where=where, **arguments)
        return result

    # --- functions

    async def attach_function(self, ref: CollectionRef, new: NewFunction) -> tuple[AttachedFunction, bool]:
        def work() -> tuple[AttachedFunction, bool]:
            source = self._find(ref).info
            known = (source.id, new.name)
            if known in self.functions:
                return self.functions[known], False
            self.functions[known] = AttachedFunction(
                id="f",
                name=new.name,
                function=new.function,
                tenant=source.tenant,
                database=source.database,
                database_id="d",
                input_collection_id=source.id,
                output_collection_id="o",
                output_collection=new.output_collection,
                params=new.params,
            )
            return self.functions[known], True

        result: tuple[AttachedFunction, bool] = await self._do("attach_function", work, ref=ref, new=new)
        return result

    async def get_function(self, ref: CollectionRef, name: str) -> AttachedFunction:
        found: AttachedFunction = await self._do("get_function", lambda: self._function(ref, name), ref=ref, name=name)
        return found

    async def detach_function(self, ref: CollectionRef, name: str, *, delete_output: bool = False) -> None:
        def work() -> None:
            found = self._function(ref, name)
            del self.functions[found.input_collection_id, name]

        await self._do("detach_function", work, ref=ref, name=name, delete_output=delete_output)

    def _function(self, ref: CollectionRef, name: str) -> AttachedFunction:
        found = self.functions.get((self._find(ref).info.id, name))
        if found is None:
            raise NotFound(f"no function {name!r}")
        return found

    async def indexing_status(self, ref: CollectionRef) -> IndexingStatus:
        def work() -> IndexingStatus:
            head = _served_at(self._find(ref)).offset
            return IndexingStatus(head, self.indexed.popleft() if self.indexed else head, 1, 1)

        result: IndexingStatus = await self._do("indexing_status", work, ref=ref)
        return result

    async def status(self) -> Json:
        result: Json = await self._do("status", lambda: {"members": {}})
        return result


def _check(stored: Stored, condition: Condition | None) -> None:
    if condition is None:
        return
    if condition.read_offset < stored.trim_floor:
        raise StaleRead(f"the log is kept from offset {stored.trim_floor} on; read again")
    if any(stored.written.get(name, 0) > condition.read_offset for name in condition.read_ids):
        raise WriteConflict("a record of the read set was written; read again")


def _apply(stored: Stored, batch: pa.RecordBatch) -> WriteResult:
    dimension, info = dimension_of(batch.schema), stored.info
    if stored.info.dimension is None and dimension is not None:
        stored.info = replace(stored.info, dimension=dimension)
    if stored.records is None:
        stored.records = OracleCollection(info.space, stored.info.dimension or 1, info.schema, keep_history=True)
    first = stored.records.head_offset + 1
    rows = operation_rows(batch)
    outcomes = stored.records.write(
        (Operation(operation).name.lower(), row["id"], row["embedding"], row["document"], row["uri"], row["metadata"])
        for operation, row in zip(batch.column(OP).to_pylist(), rows, strict=True)
    )
    stored.written |= {row["id"]: stored.records.head_offset for row in rows}
    return WriteResult(
        VersionToken(info.id, info.incarnation, stored.records.head_offset),
        first,
        batch.num_rows,
        bytes(Outcome[name.upper()] for name in outcomes),
    )


def operation_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of an operation batch as a user would write them: a deleted key is None in the metadata."""
    fields = metadata_fields(batch.schema.names)
    rows = []
    for row in batch.to_pylist():
        metadata: dict[str, Any] = dict.fromkeys(row.get(DELETED_KEYS) or ())
        metadata |= {item.key: row[item.column] for item in fields if row[item.column] is not None}
        uri = metadata.pop(URI_KEY, None)
        known = {"id": row[ID], "embedding": row.get(EMBEDDING), "document": row.get(DOCUMENT), "uri": uri}
        rows.append(known | {"metadata": metadata})
    return rows


def _state(stored: Stored, consistency: Consistency) -> OracleState | None:
    if stored.records is None or consistency.level is not ReadLevel.AS_OF:
        return stored.records
    return stored.records.at(consistency.offset)


def _opened(cursor: str) -> tuple[int, Consistency]:
    """Where the page begins and the snapshot it comes from."""
    at, start = map(int, cursor.split(":"))
    return start, Consistency(ReadLevel.AS_OF, at)


def _plan(explain: bool) -> Json | None:
    return {"plan": "exact"} if explain else None


def _searched(stored: Stored, search: Search, consistency: Consistency, explain: bool) -> Answer:
    start, at = _opened(search.cursor) if search.cursor else (search.offset, consistency)
    state, served_at, scores = _state(stored, at), _served_at(stored, at), None
    records = {record["id"]: record for record in _matching(stored, state, search.ids, search.where)}
    found: list[str] = []
    if state is not None:
        found, scores = search_rows(state, replace(search, offset=start), list(records))
    select = search.select
    include = Include(select.documents, select.metadatas, select.embeddings, keys=select.keys)
    rows = _rows(stored, [records[name] for name in found], include)
    if select.scores and scores is not None:
        rows = rows.append_column("score", scores)
    following = f"{served_at.offset}:{start + len(found)}" if search.limit and len(found) == search.limit else ""
    return Answer(rows, np.array([len(found)], np.uint32), served_at, explain=_plan(explain), cursor=following)


def _matching(
    stored: Stored, state: OracleState | None, ids: Sequence[str] | None, where: Filter | None
) -> list[dict[str, Any]]:
    if state is None or stored.records is None:
        return []
    found = state.get(ids)
    if where is None or not found:
        return found
    keep = evaluate(where, to_row_table(found, stored.records.dimension))
    return [record for record, kept in zip(found, keep, strict=True) if kept]


def _rows(stored: Stored, records: list[dict[str, Any]], include: Include) -> pa.Table:
    if stored.records is None:
        return pa.schema([(ID, pa.string()), (CREATED_OFFSET, pa.uint64())]).empty_table()
    table = to_row_table(records, stored.records.dimension)
    return table.select([name for name in table.column_names if _included(name, include)])


def _included(name: str, include: Include) -> bool:
    metadata = MetadataField.of_column(name)
    if metadata is not None:
        named = metadata.key in include.keys
        return named or (include.uris if metadata.key == URI_KEY else include.metadatas)
    return {EMBEDDING: include.embeddings, DOCUMENT: include.documents}.get(name, name in (ID, CREATED_OFFSET))


def _served_at(stored: Stored, consistency: Consistency = STRONG) -> ServedAt:
    state = _state(stored, consistency)
    return ServedAt(0 if state is None else state.head_offset, 1)


@dataclass(slots=True)
class Words:
    """An embedding function of two components: characters and words; records what it embeds."""

    name: str = "words"
    dimension: int | None = 2
    embedded: list[list[str]] = field(default_factory=list)

    def embed_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.embedded.append(list(texts))
        return np.array([[len(text), len(text.split())] for text in texts], dtype=np.float32).reshape(-1, 2)

    def embed_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return self.embed_documents(texts)


def connection_to(*apis: FakeApi) -> Connection:
    """A connection to these endpoints."""

    async def close() -> None:
        return

    return Connection(apis, "fake", close)


@asynccontextmanager
async def client_of(*apis: FakeApi, **settings: Any) -> AsyncIterator[AsyncClient]:
    """An async client of these endpoints."""
    async with AsyncClient(connection_to(*apis), **settings) as client:
        yield client
