"""The verbs of a sync collection that write, and what is known of it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

import pyarrow as pa

from shoal._load import Batch, LoadOperation, Progress, Source
from shoal._loop import LoopThread
from shoal._prepare import Where
from shoal._results import LoadResult
from shoal._written import WriteResult
from shoal.aio_collection import AsyncCollection
from shoal_core import contracts
from shoal_core.contracts import Condition
from shoal_core.schema import Schema

T = TypeVar("T")


class Writes:
    """See `Collection`."""

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
    def schema(self) -> Schema:
        """Which indexes it keeps and how its text is analysed; as of the last look-up or `modify`."""
        return self._collection.schema

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
        condition: Condition | None = None,
        outcomes: bool = False,
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
            condition: of `shoal.unless_written_since`; see also `conditional`.
            outcomes: also look up what became of each record, see `WriteResult`.

        Raises:
            InvalidArgument: naming the field and row at fault; nothing was written.
            DimensionMismatch: vectors of another dimension than the collection's.
            OutcomeUnknown: no answer in time; send it again with the same ``idempotency_key`` to be sure.
            WriteConflict, StaleRead: the condition does not hold, or can no longer be checked; nothing was written.
            BackPressure: compaction stayed behind until the deadline.
        """
        return self._run(
            lambda: self._collection.add(
                ids,
                embeddings,
                documents,
                metadatas,
                uris,
                table=table,
                idempotency_key=idempotency_key,
                condition=condition,
                outcomes=outcomes,
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
        condition: Condition | None = None,
        outcomes: bool = False,
    ) -> WriteResult:
        """Add records, or merge them into those that exist; takes and raises what `add` does.

        A merge replaces what is given and sets metadata by key; in a list of dicts the value None deletes the key.
        """
        return self._run(
            lambda: self._collection.upsert(
                ids,
                embeddings,
                documents,
                metadatas,
                uris,
                table=table,
                idempotency_key=idempotency_key,
                condition=condition,
                outcomes=outcomes,
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
        condition: Condition | None = None,
        outcomes: bool = False,
    ) -> WriteResult:
        """Merge into records that exist, as `upsert`; an id that does not exist is left out. None leaves a part as it is.

        New documents without embeddings are embedded again. Only where no embedding function was ever chosen and the default
        one does not fit the collection's dimension do the vectors stay.
        """
        return self._run(
            lambda: self._collection.update(
                ids,
                embeddings,
                documents,
                metadatas,
                uris,
                table=table,
                idempotency_key=idempotency_key,
                condition=condition,
                outcomes=outcomes,
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
        condition: Condition | None = None,
        outcomes: bool = False,
        allow_scan: bool = False,
    ) -> WriteResult:
        """Delete by ids, or what matches at one strong snapshot: of the matches none was written since, what matches later stays.

        Args:
            limit: at most so many of the matches. More than 10,000 matches are refused without one: repeat with ``limit=10_000``.
            condition: for ids only; see `add`.
            outcomes: see `add`.
            allow_scan: see `get`.
        """
        return self._run(
            lambda: self._collection.delete(
                ids,
                where,
                where_document,
                limit,
                idempotency_key=idempotency_key,
                condition=condition,
                outcomes=outcomes,
                allow_scan=allow_scan,
            )
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

    def _run(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return self._loop.run(function)
