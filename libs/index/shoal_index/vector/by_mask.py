"""What was found out about masks of rows, for searches to come with the same ones."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

from shoal_index.vector.engine import Mask

T = TypeVar("T")

_KEPT = 32


class ByMask(Generic[T]):
    """Something made for each mask that nobody may write to, of a few at a time, the newest. That of a mask that is gone goes when the
    next is made. A read-only view of an array that somebody may write to must not come here.

    Safe for threads, of which several may make it at once.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[weakref.ref[Mask], T]] = {}
        self._lock = Lock()

    def of(self, mask: Mask, make: Callable[[], T]) -> T:
        """What was made for this very array, else ``make()``."""
        if mask.flags.writeable:
            return make()
        kept = self._kept.get(id(mask))
        if kept is not None and kept[0]() is mask:
            return kept[1]
        made = make()
        with self._lock:
            others = [(key, each) for key, each in self._kept.items() if each[0]() is not None and key != id(mask)]
            self._kept = dict([*others[-_KEPT + 1 :], (id(mask), (weakref.ref(mask), made))])
        return made

    def values(self) -> list[T]:
        """All that is kept."""
        return [made for _, made in self._kept.values()]
