"""A collection, from async code. All of the SDK's logic on records is here; `shoal.collection` wraps it for sync code."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

from shoal._aio_writes import AsyncWrites
from shoal._conditional import AsyncConditionalWrite
from shoal._consistency import Freshness, consistency_for
from shoal._prepare import Where, filter_of, id_list, query_vectors, share, text, whole
from shoal._results import GetResult, QueryResult, get_result, include_of, query_result
from shoal._schema import changed_schema
from shoal._search import Search
from shoal._searches import SearchLike, SearchResult, Texts, read_searches, search_result
from shoal_core import contracts
from shoal_core.consistency import STRONG
from shoal_core.contracts import AttachedFunction, CountAnswer, IndexingStatus
from shoal_core.errors import DeadlineExceeded, InvalidArgument
from shoal_core.schema import Schema

_FIRST_POLL_S = 0.05
_LAST_POLL_S = 1.0


class AsyncCollection(AsyncWrites):
    """A handle on one collection; by id, so it survives a rename. Made by `AsyncClient`, usable by many tasks at once."""

    def conditional(self, *, outcomes: bool = False) -> AsyncConditionalWrite:
        """Reads of one snapshot, and at the end of the block one atomic write on condition that nothing read has changed.

            async with films.conditional() as txn:
                [film] = await txn.get(ids=["jaws"])
                await txn.update(ids=["jaws"], metadatas=[{"seen": film.metadata["seen"] + 1}])

        The end of the block raises `errors.WriteConflict` if any record read was written since, and `errors.StaleRead` if that can
        no longer be told: run the block again. A block that raises writes nothing. It may read 10,000 records.

        Args:
            outcomes: also look up what became of each record: ``txn.result.outcomes`` after the block.
        """
        return AsyncConditionalWrite(self.get, self._batch, self._send, self.dimension, self._limits, outcomes)

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
        allow_scan: bool = False,
        cursor: str | None = None,
    ) -> GetResult:
        """Records by ids and filters, oldest first.

        Args:
            ids: one or several; None for all.
            where: such as ``{"year": {"$gte": 2020}}``, see `shoal_core.filters`.
            where_document: such as ``{"$contains": "fish"}``.
            include: of documents, metadatas, embeddings, uris.
            consistency: `STRONG`, `session`, `bounded`, `as_of` or `INDEX_ONLY`.
            explain: also tell the plan and its cost.
            allow_scan: read all records for a filter on a key whose index the schema turns off, instead of refusing it.
            cursor: ``""`` for a first page whose result shall have a cursor; that cursor for the page after it. See `pages`.
        """
        tree, wanted = filter_of(where, where_document, self._limits), include_of(include)
        chosen, freshness = id_list(ids), consistency_for(self.id, consistency)
        limit = None if limit is None else whole(limit, "limit", least=0)
        offset = whole(offset, "offset", least=0)
        if cursor is not None and not limit:
            raise InvalidArgument("pages need a limit, at least 1", field="limit")
        opened = None if cursor is None else text(cursor, "cursor")
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
                allow_scan=allow_scan,
                cursor=opened,
            )
        )
        return get_result(answer, wanted)

    async def pages(
        self,
        ids: Any = None,
        where: Where | None = None,
        where_document: Where | None = None,
        limit: int = 100,
        offset: int = 0,
        include: Sequence[str] = ("documents", "metadatas"),
        *,
        consistency: Freshness = STRONG,
        allow_scan: bool = False,
    ) -> AsyncIterator[GetResult]:
        """What one `get` would give, in pages of ``limit`` records from one snapshot. Empty pages are left out.

        Raises `errors.OffsetExpired` when the snapshot is no longer retained.

        Args:
            offset: so many records are left out before the first page.
        """
        cursor = ""
        while True:
            page = await self.get(
                ids,
                where,
                where_document,
                limit,
                offset,
                include,
                consistency=consistency,
                allow_scan=allow_scan,
                cursor=cursor,
            )
            if len(page):
                yield page
            cursor = page.cursor
            if not cursor:
                return

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
        recall: float = 0.0,
        consistency: Freshness = STRONG,
        explain: bool = False,
        allow_scan: bool = False,
    ) -> QueryResult:
        """The ``n_results`` nearest records of each vector or text, among those that match.

        Args:
            query_embeddings: vectors (q, dim), or one of (dim,).
            query_texts: instead, texts for the embedding function.
            include: of documents, metadatas, embeddings, uris, distances.
            exact: compare with every record instead of using an approximate index.
            recall: the share of the true nearest that is to be found, on average, such as 0.99; 0 for the collection's.
            ef: effort of a graph search, instead of a recall.
            consistency, explain, allow_scan: see `get`.
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
                recall=share(recall, "recall"),
                exact=exact,
                explain=explain,
                allow_scan=allow_scan,
            )
        )
        return query_result(answer, wanted)

    @overload
    async def search(
        self,
        searches: SearchLike,
        *,
        exact: bool = ...,
        recall: float = ...,
        consistency: Freshness = ...,
        explain: bool = ...,
        allow_scan: bool = ...,
    ) -> SearchResult: ...

    @overload
    async def search(
        self,
        searches: Sequence[SearchLike],
        *,
        exact: bool = ...,
        recall: float = ...,
        consistency: Freshness = ...,
        explain: bool = ...,
        allow_scan: bool = ...,
    ) -> list[SearchResult]: ...

    async def search(
        self,
        searches: SearchLike | Sequence[SearchLike],
        *,
        exact: bool = False,
        recall: float = 0.0,
        consistency: Freshness = STRONG,
        explain: bool = False,
        allow_scan: bool = False,
    ) -> SearchResult | list[SearchResult]:
        """Records ranked by an expression over vectors, sparse vectors and texts; or several such searches of one snapshot.

            await films.search(shoal.Search(where={"year": {"$gte": 2000}}, rank=shoal.Knn("a lost fish"), limit=10))

        Args:
            searches: one, for one result, or a list, for a list of results. Each a `shoal.Search` or its JSON form, see
                `shoal_core.rank_json`, which selects nothing but ids unless told to.
            exact: compare with every record instead of using an approximate index.
            recall: of lists by vectors; see `query`.
            consistency, explain, allow_scan: see `get`. A search with a cursor is of the cursor's snapshot.

        Raises:
            InvalidArgument: naming the place, such as ``searches[0].rank.$sum[1].$knn.limit``.
            FailedPrecondition: a text would need an embedding function that is not known here.
        """
        freshness = consistency_for(self.id, consistency)
        texts, least = Texts(self._embedder, self.schema, self.dimension), share(recall, "recall")
        given = await read_searches(searches, texts, self._limits)
        answers = await self._caller.call(
            lambda api: api.search(
                self._ref,
                given,
                consistency=freshness,
                exact=exact,
                explain=explain,
                allow_scan=allow_scan,
                recall=least,
            )
        )
        results = [search_result(answer, item.select) for answer, item in zip(answers, given, strict=True)]
        return results[0] if isinstance(searches, Search | Mapping) else results

    async def count(
        self,
        where: Where | None = None,
        where_document: Where | None = None,
        *,
        consistency: Freshness = STRONG,
        allow_scan: bool = False,
    ) -> int:
        """How many records match; all without a filter. Arguments as of `get`."""
        answer = await self._count(where, where_document, consistency, explain=False, allow_scan=allow_scan)
        return answer.count

    async def count_explained(
        self,
        where: Where | None = None,
        where_document: Where | None = None,
        *,
        consistency: Freshness = STRONG,
        allow_scan: bool = False,
    ) -> CountAnswer:
        """As `count`, with ``served_at`` and ``explain``, the plan and its cost."""
        return await self._count(where, where_document, consistency, explain=True, allow_scan=allow_scan)

    async def peek(self, limit: int = 10) -> GetResult:
        """The oldest records with everything."""
        return await self.get(limit=limit, include=("documents", "metadatas", "embeddings", "uris"))

    # --- the collection itself

    async def modify(
        self,
        name: str | None = None,
        metadata: contracts.Json | None = None,
        schema: Schema | contracts.Json | None = None,
    ) -> None:
        """Rename, or replace the collection's metadata or its whole schema.

        Indexes that a schema turns on are built as segments are rewritten; until then those records are scanned.

        Raises:
            AlreadyExists: the name is taken.
            InvalidArgument: also for a schema with another analyzer, which is fixed.
        """
        if name is None and metadata is None and schema is None:
            raise InvalidArgument("give a new name, new metadata or a new schema", field="name")
        changed = None if schema is None else changed_schema(self.schema, schema)
        if name is not None:
            text(name, "name")
        info = await self._caller.call(
            lambda api: api.modify_collection(self._ref, name=name, metadata=metadata, schema=changed),
            write=True,
            repeatable=name is None,
        )
        self._info = replace(info, dimension=info.dimension or self._info.dimension)

    async def fork(self, name: str) -> AsyncCollection:
        """A new collection in the same database that has what this one has now, without copying its segments.

        From then on neither sees what is written to the other.

        Raises:
            AlreadyExists: the name is taken.
            FailedPrecondition: there are too many forks of one collection.
            ResourceExhausted: too much of the log is not compacted yet; try again.
        """
        text(name, "name")
        info = await self._caller.call(lambda api: api.fork_collection(self._ref, name), write=True, repeatable=False)
        return AsyncCollection(self._caller, info, self._embedder, self._limits)

    async def fork_count(self) -> int:
        """Forks in the tree that this collection belongs to, at any depth."""
        return await self._caller.call(lambda api: api.count_forks(self._ref))

    # --- functions

    async def attach_function(
        self, function: str, name: str, output_collection: str, params: contracts.Json | None = None
    ) -> tuple[AttachedFunction, bool]:
        """Attach a function, which from then on follows the collection as it is compacted; and whether this call did it.

            await films.attach_function("statistics", "films_stats", "films_statistics")

        Args:
            function: ``record_counter`` or ``statistics``.
            name: unique among those of the collection. Attaching the same again finds what is there.
            output_collection: the name of the collection that is made for what it writes.
            params: of the function; those that there are take none.

        Raises:
            NotFound: no such function.
            AlreadyExists: the name has another function, or there is a collection of the output's name.
            InvalidArgument: the collection is itself the output of a function.
            FailedPrecondition: the collection has too many functions.
        """
        new = contracts.NewFunction(
            text(name, "name"),
            text(function, "function"),
            text(output_collection, "output_collection"),
            {} if params is None else params,
        )
        return await self._caller.call(lambda api: api.attach_function(self._ref, new), write=True, repeatable=True)

    async def get_attached_function(self, name: str) -> AttachedFunction:
        """A function of the collection: how far it has come, and whether its last run failed. Raises `NotFound`."""
        wanted = text(name, "name")
        return await self._caller.call(lambda api: api.get_function(self._ref, wanted))

    async def detach_function(self, name: str, delete_output_collection: bool = False) -> None:
        """End a function. Its output collection stays as it is unless it is to be deleted too. Raises `NotFound`."""
        wanted = text(name, "name")
        await self._caller.call(
            lambda api: api.detach_function(self._ref, wanted, delete_output=delete_output_collection),
            write=True,
            repeatable=False,
        )

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

    async def _count(
        self,
        where: Where | None,
        where_document: Where | None,
        consistency: Freshness,
        *,
        explain: bool,
        allow_scan: bool,
    ) -> CountAnswer:
        tree = filter_of(where, where_document, self._limits)
        freshness = consistency_for(self.id, consistency)
        return await self._caller.call(
            lambda api: api.count(self._ref, where=tree, consistency=freshness, explain=explain, allow_scan=allow_scan)
        )
