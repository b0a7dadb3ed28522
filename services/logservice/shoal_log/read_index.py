"""The read index: the head of a collection at an instant after the question. Concurrent questions share one SQL statement.

A question may join only a statement that has not been sent yet: one in flight may have been answered by the database before
an append that its asker already knows of.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from opentelemetry import trace

from shoal_core.errors import Internal, NotFound, ShoalError, Unavailable
from shoal_log.decide import LogState
from shoal_log.settings import LogCounters
from shoal_log.store import LogStore, timed_out
from shoal_wire.spans import shared_span

W = TypeVar("W")


@dataclass(slots=True)
class Statement(Generic[W]):
    """One statement: who waits for each of its collections."""

    waiters: dict[str, list[W]] = field(default_factory=dict)


class ReadIndexBatcher(Generic[W]):
    """Which question goes into which statement: a state machine without I/O.

    Args:
        collections: distinct collections per statement.
        in_flight: statements that may be under way at once.
    """

    def __init__(self, *, collections: int, in_flight: int) -> None:
        self._collections = collections
        self._free = in_flight
        self._waiting: dict[str, list[W]] = {}

    def ask(self, collection_id: str, waiter: W) -> None:
        """Join a statement that has not been sent."""
        self._waiting.setdefault(collection_id, []).append(waiter)

    def reserve(self) -> bool:
        """Whether a statement should be prepared now; if so `send` must follow, as late as possible, then `answered`."""
        if not self._waiting or self._free == 0:
            return False
        self._free -= 1
        return True

    def send(self) -> Statement[W]:
        """What to ask: call it at the moment of sending. Nobody joins this statement any more. May be empty."""
        ids = list(self._waiting)[: self._collections]
        return Statement({id: self._waiting.pop(id) for id in ids})

    def answered(self) -> None:
        """A reserved statement has ended, in whatever way."""
        self._free += 1


@dataclass(frozen=True, slots=True)
class _Asker:
    """Who waits for a head, and within which span."""

    future: asyncio.Future[LogState]
    span: trace.Span


class SharedReadIndex:
    """The read index over Postgres."""

    def __init__(self, store: LogStore, counters: LogCounters, *, collections: int, in_flight: int) -> None:
        self._store = store
        self._counters = counters
        self._batcher: ReadIndexBatcher[_Asker] = ReadIndexBatcher(collections=collections, in_flight=in_flight)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def state(self, collection_id: str) -> LogState:
        """The collection at an instant after this call, dead ones included. Raises `NotFound`, `Unavailable`."""
        if self._closed:
            raise _stopping()
        self._counters.read_index_asks += 1
        future: asyncio.Future[LogState] = asyncio.get_running_loop().create_future()
        self._batcher.ask(collection_id, _Asker(future, trace.get_current_span()))
        self._send_more()
        return await future

    async def close(self) -> None:
        """End what is under way."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while (left := self._batcher.send()).waiters:
            _answer(left, {}, _stopping())

    def _send_more(self) -> None:
        while not self._closed and self._batcher.reserve():
            task = asyncio.get_running_loop().create_task(self._serve())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self) -> None:
        statement: Statement[_Asker] = Statement()
        try:
            found = await self._send(statement)
        except BaseException as error:
            # Without a connection nothing was sent: those who wait for one hear of it now.
            _answer(statement if statement.waiters else self._batcher.send(), {}, _as_error(error))
            if not isinstance(error, Exception):
                raise
        else:
            _answer(statement, found, None)
        finally:
            self._batcher.answered()
            self._send_more()

    async def _send(self, statement: Statement[_Asker]) -> dict[str, LogState]:
        """Fill the statement once there is a connection to send it over, and send it; again if the connection was lost."""
        for tries_left in reversed(range(self._store.read_tries)):
            try:
                async with self._store.reading() as reader:
                    statement.waiters = statement.waiters or self._batcher.send().waiters
                    if not statement.waiters:
                        return {}
                    self._counters.read_index_statements += 1
                    askers = [asker.span for waiting in statement.waiters.values() for asker in waiting]
                    with shared_span("log read index", askers, {"shoal.log.collections": len(statement.waiters)}):
                        return await reader.states(list(statement.waiters))
            except Unavailable as error:
                if not tries_left or timed_out(error):
                    raise
        return {}


def _answer(statement: Statement[_Asker], found: dict[str, LogState], error: ShoalError | None) -> None:
    for collection_id, askers in statement.waiters.items():
        state = found.get(collection_id)
        for future in (asker.future for asker in askers):
            if future.done():
                continue
            if state is not None:
                future.set_result(state)
            elif error is not None:
                future.set_exception(type(error)(error.message))
            else:
                future.set_exception(NotFound(f"no collection {collection_id}", field="collection_id"))


def _as_error(error: BaseException) -> ShoalError:
    if isinstance(error, ShoalError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return _stopping()
    return Internal(f"the read index failed: {error!r}")


def _stopping() -> Unavailable:
    return Unavailable("this log node is shutting down; try another")
