"""What was found out about masks of rows, for searches to come with the same ones."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

from shoal_index.vector.engine import Mask

T = TypeVar("T")

_KEPT = 16


class ByMask(Generic[T]):
    """Something made for each mask, kept for as long as the mask is: for those that nobody may write to, and a few at a time.

    Safe for threads, of which several may make it at once.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[weakref.ref[Mask], T]] = {}
        self._lock = Lock()

    def of(self, mask: Mask, make: Callable[[], T]) -> T:
        """What was made for this very array, else ``make()``."""
        kept = self._kept.get(id(mask))
        if kept is not None and kept[0]() is mask:
            return kept[1]
        made = make()
        if not mask.flags.writeable:
            with self._lock:
                kept_still = {key: each for key, each in self._kept.items() if each[0]() is not None}
                self._kept = (kept_still if len(kept_still) < _KEPT else {}) | {id(mask): (weakref.ref(mask), made)}
        return made

    def values(self) -> list[T]:
        """All that is kept."""
        return [made for _, made in self._kept.values()]
