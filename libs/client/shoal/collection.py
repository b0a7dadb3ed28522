"""A collection, from sync code: every verb of `AsyncCollection`, run on the client's background thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

from shoal._conditional import ConditionalWrite
from shoal._consistency import Freshness
from shoal._prepare import Where
from shoal._results import GetResult, QueryResult
from shoal._searches import SearchLike, SearchResult
from shoal._writes import Writes
from shoal_core import contracts
from shoal_core.consistency import STRONG
from shoal_core.contracts import AttachedFunction, CountAnswer, IndexingStatus
from shoal_core.schema import Schema


class Collection(Writes):
    """A handle on one collection; by id, so it survives a rename. Made by `Client`, usable by many threads at once."""

    def conditional(self, *, outcomes: bool = False) -> ConditionalWrite:
        """Reads of one snapshot, and at the end of the block one atomic write on condition that nothing read has changed.

            with films.conditional() as txn:
                [film] = txn.get(ids=["jaws"])
                txn.update(ids=["jaws"], metadatas=[{"seen": film.metadata["seen"] + 1}])

        The end of the block raises `errors.WriteConflict` if any record read was written since, and `errors.StaleRead` if that can
        no longer be told: run the block again. A block that raises writes nothing. It may read 10,000 records.

        Args:
            outcomes: also look up what became of each record: ``txn.result.outcomes`` after the block.
        """
        return ConditionalWrite(self._loop, self._collection.conditional(outcomes=outcomes))

    # --- reads

    def get(
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
        return self._run(
            lambda: self._collection.get(
                ids,
                where,
                where_document,
                limit,
                offset,
                include,
                consistency=consistency,
                explain=explain,
                allow_scan=allow_scan,
                cursor=cursor,
            )
        )

    def pages(
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
    ) -> Iterator[GetResult]:
        """What one `get` would give, in pages of ``limit`` records from one snapshot. Empty pages are left out.

        Raises `errors.OffsetExpired` when the snapshot is no longer retained.

        Args:
            offset: so many records are left out before the first page.
        """
        cursor = ""
        while True:
            page = self.get(
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

    def query(
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
        return self._run(
            lambda: self._collection.query(
                query_embeddings,
                query_texts,
                n_results,
                ids,
                where,
                where_document,
                include,
                exact=exact,
                ef=ef,
                recall=recall,
                consistency=consistency,
                explain=explain,
                allow_scan=allow_scan,
            )
        )

    @overload
    def search(
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
    def search(
        self,
        searches: Sequence[SearchLike],
        *,
        exact: bool = ...,
        recall: float = ...,
        consistency: Freshness = ...,
        explain: bool = ...,
        allow_scan: bool = ...,
    ) -> list[SearchResult]: ...

    def search(
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

            films.search(shoal.Search(where={"year": {"$gte": 2000}}, rank=shoal.Knn("a lost fish"), limit=10))

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

        async def run() -> SearchResult | list[SearchResult]:
            return await self._collection.search(
                searches, exact=exact, recall=recall, consistency=consistency, explain=explain, allow_scan=allow_scan
            )

        return self._run(run)

    def count(
        self,
        where: Where | None = None,
        where_document: Where | None = None,
        *,
        consistency: Freshness = STRONG,
        allow_scan: bool = False,
    ) -> int:
        """How many records match; all without a filter. Arguments as of `get`."""
        return self._run(
            lambda: self._collection.count(where, where_document, consistency=consistency, allow_scan=allow_scan)
        )

    def count_explained(
        self,
        where: Where | None = None,
        where_document: Where | None = None,
        *,
        consistency: Freshness = STRONG,
        allow_scan: bool = False,
    ) -> CountAnswer:
        """As `count`, with ``served_at`` and ``explain``, the plan and its cost."""
        return self._run(
            lambda: self._collection.count_explained(
                where, where_document, consistency=consistency, allow_scan=allow_scan
            )
        )

    def peek(self, limit: int = 10) -> GetResult:
        """The oldest records with everything."""
        return self._run(lambda: self._collection.peek(limit))

    # --- the collection itself

    def modify(
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
        self._run(lambda: self._collection.modify(name, metadata, schema))

    def fork(self, name: str) -> Collection:
        """A new collection in the same database that has what this one has now, without copying its segments.

        From then on neither sees what is written to the other.

        Raises:
            AlreadyExists: the name is taken.
            FailedPrecondition: there are too many forks of one collection.
            ResourceExhausted: too much of the log is not compacted yet; try again.
        """
        return Collection(self._loop, self._run(lambda: self._collection.fork(name)))

    def fork_count(self) -> int:
        """Forks in the tree that this collection belongs to, at any depth."""
        return self._run(lambda: self._collection.fork_count())

    # --- functions

    def attach_function(
        self, function: str, name: str, output_collection: str, params: contracts.Json | None = None
    ) -> tuple[AttachedFunction, bool]:
        """Attach a function, which from then on follows the collection as it is compacted; and whether this call did it.

            films.attach_function("statistics", "films_stats", "films_statistics")

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
        return self._run(lambda: self._collection.attach_function(function, name, output_collection, params))

    def get_attached_function(self, name: str) -> AttachedFunction:
        """A function of the collection: how far it has come, and whether its last run failed. Raises `NotFound`."""
        return self._run(lambda: self._collection.get_attached_function(name))

    def detach_function(self, name: str, delete_output_collection: bool = False) -> None:
        """End a function. Its output collection stays as it is unless it is to be deleted too. Raises `NotFound`."""
        self._run(lambda: self._collection.detach_function(name, delete_output_collection))

    def indexing_status(self) -> IndexingStatus:
        """How much of the log is in segments."""
        return self._run(lambda: self._collection.indexing_status())

    def wait_until_indexed(
        self, timeout_s: float = 60.0, on_progress: Callable[[IndexingStatus], object] | None = None
    ) -> IndexingStatus:
        """Return once everything written before the call is indexed. Raises `DeadlineExceeded`.

        Args:
            on_progress: called on the client's thread; it must not call the client.
        """
        return self._run(lambda: self._collection.wait_until_indexed(timeout_s, on_progress))
