"""A collection, from async code. All of the SDK's logic on records is here; `shoal.collection` wraps it for sync code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from shoal._calls import Caller
from shoal._consistency import Freshness, consistency_for
from shoal._embedder import Embedder
from shoal._load import Batch, LoadOperation, Progress, Source, cut, operation_of, write_all
from shoal._prepare import Where, WriteInput, delete_batch, filter_of, id_list, query_vectors, whole, write_batch
from shoal._results import GetResult, LoadResult, QueryResult, get_result, include_of, query_result
from shoal_core import contracts
from shoal_core.consistency import STRONG
from shoal_core.contracts import CollectionRef, CountAnswer, IndexingStatus, WriteResult
from shoal_core.errors import DeadlineExceeded, InvalidArgument
from shoal_core.limits import Limits
from shoal_core.records import Operation, dimension_of

_FIRST_POLL_S = 0.05
_LAST_POLL_S = 1.0


class AsyncCollection:
    """A handle on one collection; by id, so it survives a rename. Made by `AsyncClient`, usable by many tasks at once."""

    def __init__(self, caller: Caller, info: contracts.Collection, embedder: Embedder, limits: Limits) -> None:
        self._caller = caller
        self._info = info
        self._embedder = embedder
        self._limits = limits
        self._ref = CollectionRef(info.tenant, info.database, id=info.id)

    @property
    def id(self) -> str:
        """UUID text."""
        return self._info.id

    @property
    def name(self) -> str:
        """As of the last look-up or `modify`."""
        return self._info.name

    @property
    def metadata(self) -> contracts.Json | None:
        """The collection's own metadata."""
        return self._info.metadata

    @property
    def configuration(self) -> contracts.Json:
        """Settings as stored."""
        return self._info.configuration

    @property
    def dimension(self) -> int | None:
        """Of its vectors; None before the first write that this handle knows of."""
        return self._info.dimension

    @property
    def space(self) -> str:
        """``l2`` (squared), ``cosine`` or ``ip``."""
        return self._info.space

    @property
    def shards(self) -> int:
        """How many parts its records are spread over."""
        return self._info.shards

    def __repr__(self) -> str:
        return f"Collection({self.name!r}, id={self.id!r}, space={self.space!r}, dimension={self.dimension})"

    # --- writes

    async def add(
        self,
        ids: Any = None,
        embeddings: Any = None,
        documents: Any = None,
        metadatas: Any = None,
        uris: Any = None,
        *,
        table: pa.Table | pa.RecordBatch | None = None,
        idempotency_key: str | None = None,
    ) -> WriteResult:
        """Add records in one atomic batch; an id that exists already stays as it is.

        Args:
            ids: n distinct non-empty strings (list, numpy or Arrow array).
            embeddings: n vectors: an array (n, dim), float32 C-contiguous is not copied; a list; an Arrow list array. Made from
                the documents if left out.
            documents: n texts or None.
            metadatas: n dicts or None, or a dict of columns ``{"year": array of n}``. Values are str, int (64-bit), float, bool,
                lists of one of these, or a sparse vector ``{"indices": [...], "values": [...]}``.
            uris: n texts or None.
            table: instead of all these, an Arrow table with columns ``id``, ``embedding``, ``document``, ``uri``; further ones
                are metadata.
            idempotency_key: repeats a write whose outcome is unknown; made fresh if left out. At most 64 bytes.

        Raises:
            InvalidArgument: naming the field and row at fault; nothing was written.
            DimensionMismatch: vectors of another dimension than the collection's.
            OutcomeUnknown: no answer in time; send it again with the same ``idempotency_key`` to be sure.
            BackPressure: compaction stayed behind until the deadline.
        """
        given = WriteInput(ids, embeddings, documents, metadatas, uris, table)
        return await self._write(Operation.ADD, given, idempotency_key)

    async def upsert(
        self,
        ids: Any = None,
        embeddings: Any = None,
        documents: Any = None,
        metadatas: Any = None,
        uris: Any = None,
        *,
        table: pa.Table | pa.RecordBatch | None = None,
        idempotency_key: str | None = None,
    ) -> WriteResult:
        """Add records, or merge them into those that exist; takes and raises what `add` does.

        A merge replaces what is given and sets metadata by key; in a list of dicts the value None deletes the key.
        """
        given = WriteInput(ids, embeddings, documents, metadatas, uris, table)
        return await self._write(Operation.UPSERT, given, idempotency_key)

    async def update(
        self,
        ids: Any = None,
        embeddings: Any = None,
        documents: Any = None,
        metadatas: Any = None,
        uris: Any = None,
        *,
        table: pa.Table | pa.RecordBatch | None = None,
        idempotency_key: str | None = None,
    ) -> WriteResult:
        """Merge into records that exist, as `upsert`; an id that does not exist is left out. None leaves a part as it is.

        New documents without embeddings are embedded again. Only where no embedding function was ever chosen and the default
        one does not fit the collection's dimension do the vectors stay.
        """
        given = WriteInput(ids, embeddings, documents, metadatas, uris, table)
        return await self._write(Operation.UPDATE, given, idempotency_key)

    async def delete(
        self,
        ids: Any = None,
        where: Where | None = None,
        where_document: Where | None = None,
        limit: int | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> WriteResult:
        """Delete by ids, or what matches at one strong snapshot.

        ``records`` of the result counts the ids given, or the records that matched.

        Args:
            limit: at most so many of the matches.
        """
        tree = filter_of(where, where_document, self._limits)
        key = idempotency_key or self._caller.new_key()
        if tree is not None:
            chosen = id_list(ids)
            limit = None if limit is None else whole(limit, "limit", least=0)
            return await self._caller.call(
                lambda api: api.delete_where(self._ref, ids=chosen, where=tree, limit=limit, idempotency_key=key),
                write=True,
            )
        if limit is not None:
            raise InvalidArgument("a limit needs where or where_document", field="limit")
        if ids is None:
            raise InvalidArgument("give ids, where or where_document; delete_collection() deletes all", field="ids")
        return await self._send(delete_batch(ids, self._limits), key)

    async def load(
        self,
        source: Source,
        *,
        operation: LoadOperation = "add",
        batch_size: int = 1000,
        in_flight: int = 4,
        on_progress: Progress | None = None,
    ) -> LoadResult:
        """Write a large table, or a stream of tables or of ``{"ids": ..., ...}`` mappings, in batches of ``batch_size``.

        Each batch is atomic, the whole is not. Batches in flight may land in any order: for an id that occurs twice, take
        ``in_flight=1``. After an error the same load may be repeated: an add leaves what exists.

        Args:
            source: pulled in a worker thread. Mappings are batches of their own, not cut.
            on_progress: called on the event loop with (records written, total or None).
        """
        batches, total = cut(source, batch_size)
        kind = operation_of(operation)

        async def write(batch: Batch) -> WriteResult:
            given = WriteInput(**batch) if isinstance(batch, Mapping) else WriteInput(table=batch)
            return await self._write(kind, given)

        return await write_all(batches, write, total=total, in_flight=in_flight, on_progress=on_progress)

    async def add_batches(
        self,
        batches: Iterable[Batch],
        *,
        operation: LoadOperation = "add",
        in_flight: int = 4,
        on_progress: Progress | None = None,
    ) -> LoadResult:
        """As `load`, every batch as it comes: none is cut."""
        return await self.load(
            batches,
            operation=operation,
            batch_size=self._limits.batch_records,
            in_flight=in_flight,
            on_progress=on_progress,
        )

    # --- reads

    async def get(
        self,
        ids: Any = None,
        where: Where | None = None,
        where_document: Where | None = None,
        limit: int | None = None,
        offset: int = 0,
        include: Sequence[str] = ("documents", "metadatas"),
        *,
        consistency: Freshness = STRONG,
        explain: bool = False,
    ) -> GetResult:
        """Records by ids and filters, oldest first.

        Args:
            ids: one or several; None for all.
            where: such as ``{"year": {"$gte": 2020}}``, see `shoal_core.filters`.
            where_document: such as ``{"$contains": "fish"}``.
            include: of documents, metadatas, embeddings, uris.
            consistency: `STRONG`, `session`, `bounded` or `INDEX_ONLY`; `as_of` is not served yet.
        """
        tree, wanted = filter_of(where, where_document, self._limits), include_of(include)
        chosen, freshness = id_list(ids), consistency_for(self.id, consistency)
        limit = None if limit is None else whole(limit, "limit", least=0)
        offset = whole(offset, "offset", least=0)
        answer = await self._caller.call(
            lambda api: api.get(
                self._ref,
                ids=chosen,
                where=tree,
                limit=limit,
                offset=offset,
                include=replace(wanted, distances=False),
                consistency=freshness,
                explain=explain,
            )
        )
        return get_result(answer, wanted)

    async def query(
        self,
        query_embeddings: Any = None,
        query_texts: Sequence[str] | str | None = None,
        n_results: int = 10,
        ids: Any = None,
        where: Where | None = None,
        where_document: Where | None = None,
        include: Sequence[str] = ("documents", "metadatas", "distances"),
        *,
        exact: bool = False,
        ef: int = 0,
        consistency: Freshness = STRONG,
        explain: bool = False,
    ) -> QueryResult:
        """The ``n_results`` nearest records of each vector or text, among those that match.

        Args:
            query_embeddings: vectors (q, dim), or one of (dim,).
            query_texts: instead, texts for the embedding function.
            include: of documents, metadatas, embeddings, uris, distances.
            exact: compare with every record instead of using an approximate index.
            ef: effort of a graph search; 0 lets the planner choose.
        """
        tree, wanted = filter_of(where, where_document, self._limits), include_of(include)
        chosen, freshness = id_list(ids), consistency_for(self.id, consistency)
        count, effort = whole(n_results, "n_results", least=1), whole(ef, "ef", least=0)
        vectors = await query_vectors(query_embeddings, query_texts, self._embedder, self.dimension)
        answer = await self._caller.call(
            lambda api: api.query(
                self._ref,
                vectors,
                count,
                ids=chosen,
                where=tree,
                include=wanted,
                consistency=freshness,
                ef=effort,
                exact=exact,
                explain=explain,
            )
        )
        return query_result(answer, wanted)

    async def count(
        self,
        where: Where | None = None,
        where_document: Where | None = None,
        *,
        consistency: Freshness = STRONG,
    ) -> int:
        """How many records match; all without a filter."""
        tree = filter_of(where, where_document, self._limits)
        freshness = consistency_for(self.id, consistency)
        answer: CountAnswer = await self._caller.call(
            lambda api: api.count(self._ref, where=tree, consistency=freshness)
        )
        return answer.count

    async def peek(self, limit: int = 10) -> GetResult:
        """The oldest records with everything."""
        return await self.get(limit=limit, include=("documents", "metadatas", "embeddings", "uris"))

    # --- the collection itself

    async def modify(self, name: str | None = None, metadata: contracts.Json | None = None) -> None:
        """Rename, or replace the collection's metadata. Raises `AlreadyExists` (name)."""
        if name is None and metadata is None:
            raise InvalidArgument("give a new name or new metadata", field="name")
        info = await self._caller.call(
            lambda api: api.modify_collection(self._ref, name=name, metadata=metadata),
            write=True,
            repeatable=name is None,
        )
        self._info = replace(info, dimension=info.dimension or self._info.dimension)

    async def indexing_status(self) -> IndexingStatus:
        """How much of the log is in segments."""
        return await self._caller.call(lambda api: api.indexing_status(self._ref))

    async def wait_until_indexed(
        self, timeout_s: float = 60.0, on_progress: Callable[[IndexingStatus], object] | None = None
    ) -> IndexingStatus:
        """Return once everything written before the call is indexed. Raises `DeadlineExceeded`."""
        clock = self._caller.clock
        deadline = clock.monotonic() + timeout_s
        pause_s, target = _FIRST_POLL_S, None
        while True:
            status = await self.indexing_status()
            if on_progress is not None:
                on_progress(status)
            target = status.head_offset if target is None else target
            if status.indexed_offset >= target:
                return status
            left_s = deadline - clock.monotonic()
            if left_s <= 0:
                raise DeadlineExceeded(
                    f"indexed up to offset {status.indexed_offset} of {target} within {timeout_s:g} s; compaction may be "
                    "behind, raise timeout_s"
                )
            await clock.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _LAST_POLL_S)

    # --- inside

    async def _write(self, operation: Operation, given: WriteInput, idempotency_key: str | None = None) -> WriteResult:
        batch = await write_batch(operation, given, self._embedder, self.dimension, self._limits)
        return await self._send(batch, idempotency_key or self._caller.new_key())

    async def _send(self, batch: pa.RecordBatch, key: str) -> WriteResult:
        result = await self._caller.call(lambda api: api.write(self._ref, batch, idempotency_key=key), write=True)
        if self._info.dimension is None and (dimension := dimension_of(batch.schema)) is not None:
            self._info = replace(self._info, dimension=dimension)
        return result
