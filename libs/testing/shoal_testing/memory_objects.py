"""Objects in memory, with faults on demand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

from shoal_core.errors import AlreadyExists, NotFound
from shoal_core.ports import ObjectInfo
from shoal_storage.object_rules import (
    ObjectData,
    as_views,
    check_key,
    check_prefix,
    check_range,
    create_once,
    range_past_end,
)

T = TypeVar("T")
Hook = Callable[[str], None]

_PUT_ATTEMPTS = 3


class MemoryObjectStore:
    """An `ObjectStore` whose objects live as long as it does; held to the same contract cases as the real ones.

    The hooks are called with the object's key and may raise. `Unavailable` from ``before_put`` is a put that never arrived,
    from ``after_put`` one whose answer got lost: the store resolves both as the S3 one does. Anything else they raise
    passes to the caller as it is, such as a simulated crash before or after the object became durable.

    Attributes:
        before_put, after_put: around the moment at which an object comes into being; not called if the key is taken.
        before_get: before a whole object or a range is read.
        puts, gets: how many were asked of the store, retries and reading back included.
        time_ns: the clock for `ObjectInfo.modified_ns`.
    """

    def __init__(
        self,
        *,
        before_put: Hook | None = None,
        after_put: Hook | None = None,
        before_get: Hook | None = None,
        time_ns: Callable[[], int] | None = None,
    ) -> None:
        self.before_put = before_put
        self.after_put = after_put
        self.before_get = before_get
        self.puts = 0
        self.gets = 0
        self._time_ns = time_ns or (lambda: 0)
        self._objects: dict[str, tuple[bytes, int]] = {}

    async def put(self, key: str, data: ObjectData) -> None:
        """See `ObjectStore.put`."""
        check_key(key)
        views = as_views(data)
        content = b"".join(views)

        async def create() -> None:
            self.puts += 1
            if key in self._objects:
                raise AlreadyExists(f"object {key!r} exists")
            _call(self.before_put, key)
            self._objects[key] = (content, self._time_ns())
            _call(self.after_put, key)

        await create_once(key, views, create=create, read=lambda: self.get(key), attempts=_PUT_ATTEMPTS)

    async def get(self, key: str) -> memoryview:
        """See `ObjectStore.get`."""
        check_key(key)
        self.gets += 1
        _call(self.before_get, key)
        found = self._objects.get(key)
        if found is None:
            raise NotFound(f"no object {key!r}")
        return memoryview(found[0])

    async def get_range(self, key: str, start: int, length: int) -> memoryview:
        """See `ObjectStore.get_range`. Raises `InvalidArgument` if the object is shorter."""
        check_range(start, length)
        whole = await self.get(key)
        if start + length > whole.nbytes:
            raise range_past_end(key, start, length)
        return whole[start : start + length]

    async def delete(self, keys: Sequence[str]) -> None:
        """See `ObjectStore.delete`."""
        for key in keys:
            self._objects.pop(check_key(key), None)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """See `ObjectStore.list`; the objects at the moment of the first step."""
        check_prefix(prefix)
        for key, (content, modified_ns) in sorted(self._objects.items()):
            if key.startswith(prefix):
                yield ObjectInfo(key, len(content), modified_ns)

    def corrupt(self, key: str) -> None:
        """Flip one bit in the middle of an object, as a failing disk would."""
        content, modified_ns = self._objects[key]
        damaged = bytearray(content)
        damaged[len(damaged) // 2] ^= 1
        self._objects[key] = (bytes(damaged), modified_ns)


def _call(hook: Hook | None, key: str) -> None:
    if hook is not None:
        hook(key)
