"""Conditional writes: what a block reads at one snapshot, and the one batch that holds only if that has not changed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any

import pyarrow as pa

from shoal._consistency import as_of
from shoal._loop import LoopThread
from shoal._prepare import Where, WriteInput, delete_batch, id_list, joined_batch
from shoal._results import GetResult
from shoal._written import WriteResult
from shoal_core.consistency import STRONG
from shoal_core.contracts import Condition
from shoal_core.errors import FailedPrecondition, InvalidArgument
from shoal_core.limits import Limits
from shoal_core.records import Operation, dimension_of

Get = Callable[..., Awaitable[GetResult]]
MakeBatch = Callable[[Operation, WriteInput, int | None], Awaitable[pa.RecordBatch]]
Send = Callable[[pa.RecordBatch, str | None, Condition | None, bool], Awaitable[WriteResult]]


class AsyncConditionalWrite:
    """Made by `AsyncCollection.conditional`; usable by several tasks within its block.

    Attributes:
        result: after the block, what the write returned; None if the block wrote nothing.
    """

    def __init__(
        self, get: Get, make_batch: MakeBatch, send: Send, dimension: int | None, limits: Limits, outcomes: bool
    ) -> None:
        self.result: WriteResult | None = None
        self._get = get
        self._make_batch = make_batch
        self._send = send
        self._dimension = dimension
        self._limits = limits
        self._outcomes = outcomes
        self._reading = asyncio.Lock()
        self._snapshot: int | None = None
        self._read_ids: dict[str, None] = {}
        self._batches: list[pa.RecordBatch] = []
        self._ended = False

    async def __aenter__(self) -> AsyncConditionalWrite:
        self._check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._check_open()
        self._ended = True
        if kind is not None or not self._batches:
            return
        condition = None
        if self._snapshot is not None and self._read_ids:
            condition = Condition(self._snapshot, tuple(self._read_ids))
        batch = joined_batch(self._batches, self._limits)
        self.result = await self._send(batch, None, condition, self._outcomes)

    async def get(
        self,
        ids: Any = None,
        where: Where | None = None,
        where_document: Where | None = None,
        limit: int | None = None,
        offset: int = 0,
        include: Sequence[str] = ("documents", "metadatas"),
        *,
        allow_scan: bool = False,
    ) -> GetResult:
        """As `Collection.get`: the first one is strong, the others see the same snapshot. It does not see the block's own writes.

        The write then depends on the records found and on all of ``ids``, existing or not. It does not depend on the filter:
        a record that comes to match it is no conflict unless ``ids`` names it.
        """
        self._check_open()
        asked = id_list(ids)
        async with self._reading:
            consistency = STRONG if self._snapshot is None else as_of(self._snapshot)
            found = await self._get(
                asked,
                where,
                where_document,
                limit,
                offset,
                include,
                consistency=consistency,
                allow_scan=allow_scan,
            )
            self._snapshot = found.served_at.offset
        self._read_ids |= dict.fromkeys((*(asked or ()), *found.ids))
        if len(self._read_ids) > self._limits.batch_records:
            raise InvalidArgument(
                f"the block has read {len(self._read_ids)} records, at most {self._limits.batch_records} can be watched; "
                "read fewer, or read outside of the block what the write does not depend on",
                field="ids",
            )
        return found

    async def add(
        self,
        ids: Any = None,
        embeddings: Any = None,
        documents: Any = None,
        metadatas: Any = None,
        uris: Any = None,
        *,
        table: pa.Table | pa.RecordBatch | None = None,
    ) -> None:
        """Add at the end of the block; takes what `Collection.add` does. Operations apply in the order of their calls."""
        await self._collect(Operation.ADD, WriteInput(ids, embeddings, documents, metadatas, uris, table))

    async def upsert(
        self,
        ids: Any = None,
        embeddings: Any = None,
        documents: Any = None,
        metadatas: Any = None,
        uris: Any = None,
        *,
        table: pa.Table | pa.RecordBatch | None = None,
    ) -> None:
        """Add or merge at the end of the block; see `Collection.upsert`."""
        await self._collect(Operation.UPSERT, WriteInput(ids, embeddings, documents, metadatas, uris, table))

    async def update(
        self,
        ids: Any = None,
        embeddings: Any = None,
        documents: Any = None,
        metadatas: Any = None,
        uris: Any = None,
        *,
        table: pa.Table | pa.RecordBatch | None = None,
    ) -> None:
        """Merge at the end of the block; see `Collection.update`."""
        await self._collect(Operation.UPDATE, WriteInput(ids, embeddings, documents, metadatas, uris, table))

    async def delete(self, ids: Any) -> None:
        """Delete at the end of the block."""
        self._check_open()
        self._batches.append(delete_batch(ids, self._limits))

    async def _collect(self, operation: Operation, given: WriteInput) -> None:
        self._check_open()
        batch = await self._make_batch(operation, given, self._dimension)
        self._dimension = self._dimension or dimension_of(batch.schema)
        self._batches.append(batch)

    def _check_open(self) -> None:
        if self._ended:
            raise FailedPrecondition("the block of this conditional write has ended; begin another one")


class ConditionalWrite:
    """Made by `Collection.conditional`."""

    def __init__(self, loop: LoopThread, write: AsyncConditionalWrite) -> None:
        self._loop = loop
        self._write = write

    @property
    def result(self) -> WriteResult | None:
        """After the block, what the write returned; None if the block wrote nothing."""
        return self._write.result

    def __enter__(self) -> ConditionalWrite:
        self._loop.run(self._write.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run(lambda: self._write.__aexit__(kind, error, trace))

    def get(
        self,
        ids: Any = None,
        where: Where | None = None,
        where_document: Where | None = None,
        limit: int | None = None,
        offset: int = 0,
        include: Sequence[str] = ("documents", "metadatas"),
        *,
        allow_scan: bool = False,
    ) -> GetResult:
        """As `Collection.get`: the first one is strong, the others see the same snapshot. It does not see the block's own writes.

        The write then depends on the records found and on all of ``ids``, existing or not. It does not depend on the filter:
        a record that comes to match it is no conflict unless ``ids`` names it.
        """
        return self._loop.run(
            lambda: self._write.get(ids, where, where_document, limit, offset, include, allow_scan=allow_scan)
        )

    def add(
        self,
        ids: Any = None,
        embeddings: Any = None,
        documents: Any = None,
        metadatas: Any = None,
        uris: Any = None,
        *,
        table: pa.Table | pa.RecordBatch | None = None,
    ) -> None:
        """Add at the end of the block; takes what `Collection.add` does. Operations apply in the order of their calls."""
        self._loop.run(lambda: self._write.add(ids, embeddings, documents, metadatas, uris, table=table))

    def upsert(
        self,
        ids: Any = None,
        embeddings: Any = None,
        documents: Any = None,
        metadatas: Any = None,
        uris: Any = None,
        *,
        table: pa.Table | pa.RecordBatch | None = None,
    ) -> None:
        """Add or merge at the end of the block; see `Collection.upsert`."""
        self._loop.run(lambda: self._write.upsert(ids, embeddings, documents, metadatas, uris, table=table))

    def update(
        self,
        ids: Any = None,
        embeddings: Any = None,
        documents: Any = None,
        metadatas: Any = None,
        uris: Any = None,
        *,
        table: pa.Table | pa.RecordBatch | None = None,
    ) -> None:
        """Merge at the end of the block; see `Collection.update`."""
        self._loop.run(lambda: self._write.update(ids, embeddings, documents, metadatas, uris, table=table))

    def delete(self, ids: Any) -> None:
        """Delete at the end of the block."""
        self._loop.run(lambda: self._write.delete(ids))
