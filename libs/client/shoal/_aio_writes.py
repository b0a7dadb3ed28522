"""The verbs of an async collection that write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from shoal._aio_handle import AsyncHandle
from shoal._load import Batch, LoadOperation, Progress, Source, cut, operation_of, write_all
from shoal._prepare import Where, WriteInput, delete_batch, filter_of, id_list, text, whole, write_batch
from shoal._results import LoadResult
from shoal._written import WriteResult, write_result
from shoal_core.contracts import Condition
from shoal_core.errors import InvalidArgument
from shoal_core.filters import Filter
from shoal_core.records import Operation, dimension_of


class AsyncWrites(AsyncHandle):
    """See `AsyncCollection`."""

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
        given = WriteInput(ids, embeddings, documents, metadatas, uris, table)
        return await self._write(Operation.ADD, given, idempotency_key, condition, outcomes)

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
        condition: Condition | None = None,
        outcomes: bool = False,
    ) -> WriteResult:
        """Add records, or merge them into those that exist; takes and raises what `add` does.

        A merge replaces what is given and sets metadata by key; in a list of dicts the value None deletes the key.
        """
        given = WriteInput(ids, embeddings, documents, metadatas, uris, table)
        return await self._write(Operation.UPSERT, given, idempotency_key, condition, outcomes)

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
        condition: Condition | None = None,
        outcomes: bool = False,
    ) -> WriteResult:
        """Merge into records that exist, as `upsert`; an id that does not exist is left out. None leaves a part as it is.

        New documents without embeddings are embedded again. Only where no embedding function was ever chosen and the default
        one does not fit the collection's dimension do the vectors stay.
        """
        given = WriteInput(ids, embeddings, documents, metadatas, uris, table)
        return await self._write(Operation.UPDATE, given, idempotency_key, condition, outcomes)

    async def delete(
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
        tree = filter_of(where, where_document, self._limits)
        if tree is not None:
            if condition is not None:
                raise InvalidArgument("a delete by filter depends on its own matches; give ids", field="condition")
            found = await self._delete_where(ids, tree, limit, idempotency_key, allow_scan)
            return replace(found, outcomes=["deleted"] * found.records) if outcomes else found
        if limit is not None:
            raise InvalidArgument("a limit needs where or where_document", field="limit")
        if ids is None:
            raise InvalidArgument("give ids, where or where_document; delete_collection() deletes all", field="ids")
        return await self._send(delete_batch(ids, self._limits), idempotency_key, condition, outcomes)

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

    # --- inside

    async def _write(
        self,
        operation: Operation,
        given: WriteInput,
        idempotency_key: str | None = None,
        condition: Condition | None = None,
        outcomes: bool = False,
    ) -> WriteResult:
        batch = await self._batch(operation, given, self.dimension)
        return await self._send(batch, idempotency_key, condition, outcomes)

    async def _batch(self, operation: Operation, given: WriteInput, dimension: int | None) -> pa.RecordBatch:
        return await write_batch(operation, given, self._embedder, dimension, self._limits, self.schema)

    async def _send(
        self,
        batch: pa.RecordBatch,
        idempotency_key: str | None = None,
        condition: Condition | None = None,
        outcomes: bool = False,
    ) -> WriteResult:
        key = text(idempotency_key or self._caller.new_key(), "idempotency_key")
        result = await self._caller.call(
            lambda api: api.write(self._ref, batch, idempotency_key=key, condition=condition, outcomes=outcomes),
            write=True,
        )
        if self._info.dimension is None and (dimension := dimension_of(batch.schema)) is not None:
            self._info = replace(self._info, dimension=dimension)
        return write_result(result)

    async def _delete_where(
        self, ids: Any, tree: Filter, limit: int | None, idempotency_key: str | None, allow_scan: bool
    ) -> WriteResult:
        key, chosen = text(idempotency_key or self._caller.new_key(), "idempotency_key"), id_list(ids)
        limit = None if limit is None else whole(limit, "limit", least=0)
        result = await self._caller.call(
            lambda api: api.delete_where(
                self._ref, ids=chosen, where=tree, limit=limit, idempotency_key=key, allow_scan=allow_scan
            ),
            write=True,
        )
        return write_result(result)
