"""Writing many batches with several in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import pyarrow as pa

from shoal._results import LoadResult
from shoal._written import WriteResult
from shoal_core.consistency import VersionToken
from shoal_core.errors import InvalidArgument, ShoalError
from shoal_core.records import Operation

LoadOperation: TypeAlias = Literal["add", "upsert", "update"]
Batch: TypeAlias = pa.Table | pa.RecordBatch | Mapping[str, Any]
Source: TypeAlias = pa.Table | pa.RecordBatch | pa.RecordBatchReader | Iterable[Batch]
Progress: TypeAlias = Callable[[int, int | None], object]

_COLUMNS = frozenset({"ids", "embeddings", "documents", "metadatas", "uris"})
_END = object()


def operation_of(name: str) -> Operation:
    """The operation of a load. Raises `InvalidArgument`."""
    if name not in ("add", "upsert", "update"):
        raise InvalidArgument(f"expected 'add', 'upsert' or 'update', got {name!r}", field="operation")
    return Operation[name.upper()]


def cut(source: Source, batch_size: int) -> tuple[Iterator[Batch], int | None]:
    """Batches of at most ``batch_size`` records, and the number of records if known. Mappings pass as they are."""
    if batch_size < 1:
        raise InvalidArgument(f"must be at least 1, not {batch_size}", field="batch_size")
    if isinstance(source, pa.Table | pa.RecordBatch):
        return _slices(source, batch_size), source.num_rows
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise InvalidArgument(
            f"expected an Arrow table, a reader or an iterable of batches, got {type(source).__name__}", field="source"
        )
    return (part for batch in source for part in _slices(batch, batch_size)), None


def _slices(batch: Batch, batch_size: int) -> Iterator[Batch]:
    if isinstance(batch, Mapping):
        if unknown := batch.keys() - _COLUMNS:
            raise InvalidArgument(f"a batch has {', '.join(sorted(_COLUMNS))}; got {sorted(unknown)}", field="source")
        yield batch
    elif isinstance(batch, pa.Table | pa.RecordBatch):
        yield from (batch.slice(start, batch_size) for start in range(0, batch.num_rows, batch_size))
    else:
        raise InvalidArgument(
            f"expected Arrow tables or mappings like {{'ids': ..., 'embeddings': ...}}, got {type(batch).__name__}",
            field="source",
        )


@dataclass(slots=True)
class _Written:
    records: int = 0
    batches: int = 0
    token: VersionToken | None = None

    def count(self, result: WriteResult) -> None:
        self.records += result.records
        self.batches += 1
        if self.token is None or result.token.offset > self.token.offset:
            self.token = result.token


async def write_all(
    batches: Iterator[Batch],
    write: Callable[[Batch], Awaitable[WriteResult]],
    *,
    total: int | None,
    in_flight: int,
    on_progress: Progress | None,
) -> LoadResult:
    """Write every batch, up to ``in_flight`` at once, pulling the next one in a thread.

    The first error cancels what is in flight and is raised with a note of what had been written.
    """
    if in_flight < 1:
        raise InvalidArgument(f"must be at least 1, not {in_flight}", field="in_flight")
    written = _Written()
    running: set[asyncio.Future[WriteResult]] = set()
    try:
        while True:
            batch: Any = await asyncio.to_thread(next, batches, _END)
            if batch is not _END:
                running.add(asyncio.ensure_future(write(batch)))
                if len(running) < in_flight:
                    continue
            if not running:
                break
            finished, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            _collect(finished, written, total, on_progress)
    except BaseException as error:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if isinstance(error, ShoalError):
            error.add_note(f"{written.records} records in {written.batches} batches had been written; others may have")
        raise
    return LoadResult(written.records, written.batches, written.token)


def _collect(
    finished: set[asyncio.Future[WriteResult]], written: _Written, total: int | None, on_progress: Progress | None
) -> None:
    for task in finished:
        if task.exception() is None:
            written.count(task.result())
    for task in finished:
        task.result()
    if on_progress is not None:
        on_progress(written.records, total)
