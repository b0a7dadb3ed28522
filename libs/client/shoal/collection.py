"""A collection, from sync code: every verb of `AsyncCollection`, run on the client's background thread."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from shoal._consistency import Freshness
from shoal._load import Batch, LoadOperation, Progress, Source
from shoal._loop import LoopThread
from shoal._prepare import Where
from shoal._results import GetResult, LoadResult, QueryResult
from shoal.aio_collection import AsyncCollection
from shoal_core import contracts
from shoal_core.consistency import STRONG
from shoal_core.contracts import IndexingStatus, WriteResult

T = TypeVar("T")


class Collection:
    """A handle on one collection; by id, so it survives a rename. Made by `Client`, usable by many threads at once."""

    def __init__(self, loop: LoopThread, collection: AsyncCollection) -> None:
        self._loop = loop
        self._collection = collection

    @property
    def id(self) -> str:
        """UUID text."""
        return self._collection.id

    @property
    def name(self) -> str:
        """As of the last look-up or `modify`."""
        return self._collection.name

    @property
    def metadata(self) -> contracts.Json | None:
        """The collection's own metadata."""
        return self._collection.metadata

    @property
    def configuration(self) -> contracts.Json:
        """Settings as stored."""
        return self._collection.configuration

    @property
    def dimension(self) -> int | None:
        """Of its vectors; None before the first write that this handle knows of."""
        return self._collection.dimension

    @property
    def space(self) -> str:
        """``l2`` (squared), ``cosine`` or ``ip``."""
        return self._collection.space

    @property
    def shards(self) -> int:
        """How many parts its records are spread over."""
        return self._collection.shards

    def __repr__(self) -> str:
        return repr(self._collection)

    # --- writes

    def add(
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
        return self._run(
            lambda: self._collection.add(
                ids, embeddings, documents, metadatas, uris, table=table, idempotency_key=idempotency_key
            )
        )

    def upsert(
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
        return self._run(
            lambda: self._collection.upsert(
                ids, embeddings, documents, metadatas, uris, table=table, idempotency_key=idempotency_key
            )
        )

    def update(
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
        return self._run(
            lambda: self._collection.update(
                ids, embeddings, documents, metadatas, uris, table=table, idempotency_key=idempotency_key
            )
        )

    def delete(
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
        return self._run(
            lambda: self._collection.delete(ids, where, where_document, limit, idempotency_key=idempotency_key)
        )

    def load(
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
            on_progress: called with (records written, total or None) on the client's thread; it must not call the client.
        """
        return self._run(
            lambda: self._collection.load(
                source, operation=operation, batch_size=batch_size, in_flight=in_flight, on_progress=on_progress
            )
        )

    def add_batches(
        self,
        batches: Iterable[Batch],
        *,
        operation: LoadOperation = "add",
        in_flight: int = 4,
        on_progress: Progress | None = None,
    ) -> LoadResult:
        """As `load`, every batch as it comes: none is cut."""
        return self._run(
            lambda: self._collection.add_batches(
                batches, operation=operation, in_flight=in_flight, on_progress=on_progress
            )
        )

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
    ) -> GetResult:
        """Records by ids and filters, oldest first.

        Args:
            ids: one or several; None for all.
            where: such as ``{"year": {"$gte": 2020}}``, see `shoal_core.filters`.
            where_document: such as ``{"$contains": "fish"}``.
            include: of documents, metadatas, embeddings, uris.
            consistency: `STRONG`, `session`, `bounded` or `INDEX_ONLY`; `as_of` is not served yet.
        """
        return self._run(
            lambda: self._collection.get(
                ids, where, where_document, limit, offset, include, consistency=consistency, explain=explain
            )
        )

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
                consistency=consistency,
                explain=explain,
            )
        )

    def count(
        self, where: Where | None = None, where_document: Where | None = None, *, consistency: Freshness = STRONG
    ) -> int:
        """How many records match; all without a filter."""
        return self._run(lambda: self._collection.count(where, where_document, consistency=consistency))

    def peek(self, limit: int = 10) -> GetResult:
        """The oldest records with everything."""
        return self._run(lambda: self._collection.peek(limit))

    # --- the collection itself

    def modify(self, name: str | None = None, metadata: contracts.Json | None = None) -> None:
        """Rename, or replace the collection's metadata. Raises `AlreadyExists` (name)."""
        self._run(lambda: self._collection.modify(name, metadata))

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

    def _run(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return self._loop.run(function)
