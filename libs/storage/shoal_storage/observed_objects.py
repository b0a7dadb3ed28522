"""An object store whose requests are timed, and spans where their callers are recorded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from opentelemetry import trace

from shoal_core.ports import Clock, ObjectInfo, ObjectStore
from shoal_storage.spans import request_span

OnRequest: TypeAlias = Callable[[str, str, float], None]


class ObservedObjectStore:
    """An `ObjectStore` around another one.

    Args:
        on_request: hears of every request that ended: the operation, ``ok`` or the class of its error, and its milliseconds.
    """

    def __init__(self, store: ObjectStore, clock: Clock, on_request: OnRequest) -> None:
        self._store = store
        self._clock = clock
        self._on_request = on_request

    async def put(self, key: str, data: bytes | memoryview | Sequence[bytes | memoryview]) -> None:
        """See `ObjectStore.put`."""
        with self._observed("put", key):
            await self._store.put(key, data)

    async def get(self, key: str) -> memoryview:
        """See `ObjectStore.get`."""
        with self._observed("get", key) as span:
            found = await self._store.get(key)
            span.set_attribute("shoal.object.size_bytes", found.nbytes)
            return found

    async def get_range(self, key: str, start: int, length: int) -> memoryview:
        """See `ObjectStore.get_range`."""
        with self._observed("get_range", key) as span:
            span.set_attribute("shoal.object.size_bytes", length)
            return await self._store.get_range(key, start, length)

    async def delete(self, keys: Sequence[str]) -> None:
        """See `ObjectStore.delete`."""
        with self._observed("delete", "") as span:
            span.set_attribute("shoal.object.count", len(keys))
            await self._store.delete(keys)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """See `ObjectStore.list`. Not timed: how long it takes is up to whoever takes the items."""
        async for item in self._store.list(prefix):
            yield item

    @contextmanager
    def _observed(self, operation: str, key: str) -> Iterator[trace.Span]:
        began, outcome = self._clock.monotonic(), "ok"
        attributes = {"shoal.object.key": key} if key else {}
        try:
            with request_span(f"objects {operation}", attributes) as span:
                yield span
        except BaseException as error:
            outcome = type(error).__name__
            raise
        finally:
            self._on_request(operation, outcome, (self._clock.monotonic() - began) * 1_000)
