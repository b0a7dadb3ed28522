"""A map bounded by bytes, as caches need it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class _Entry(NamedTuple, Generic[T]):
    value: T
    size_bytes: int
    made_ns: int


class ByteLru(Generic[T]):
    """A map bounded by the bytes its values stand for; `get` and `add` make an entry the most recent one."""

    def __init__(self, capacity_bytes: int) -> None:
        self.size_bytes = 0
        self.evictions = 0
        self._capacity_bytes = capacity_bytes
        self._entries: OrderedDict[str, _Entry[T]] = OrderedDict()

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def fits(self, size_bytes: int) -> bool:
        return size_bytes <= self._capacity_bytes

    def get(self, name: str) -> T | None:
        found = self._entries.get(name)
        if found is None:
            return None
        self._entries.move_to_end(name)
        return found.value

    def replace(self, name: str, value: T) -> None:
        """Change the value of an entry if it is still there."""
        if found := self._entries.get(name):
            self._entries[name] = found._replace(value=value)

    def add(self, name: str, value: T, size_bytes: int, made_ns: int) -> list[str]:
        """Put an entry in and return the names of those that had to go, its own if it is too large for any room."""
        self.remove(name)
        if not self.fits(size_bytes):
            return [name]
        self._entries[name] = _Entry(value, size_bytes, made_ns)
        self.size_bytes += size_bytes
        evicted = []
        while self.size_bytes > self._capacity_bytes:
            oldest, freed = self._entries.popitem(last=False)
            self.size_bytes -= freed.size_bytes
            self.evictions += 1
            evicted.append(oldest)
        return evicted

    def remove(self, name: str) -> None:
        found = self._entries.pop(name, None)
        if found is not None:
            self.size_bytes -= found.size_bytes

    def made_before(self, moment_ns: int) -> list[str]:
        """Names of the entries that were made before a moment."""
        return [name for name, entry in self._entries.items() if entry.made_ns < moment_ns]

    def clear(self) -> None:
        self._entries.clear()
        self.size_bytes = 0
