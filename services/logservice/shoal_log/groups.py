"""Which appends go into which transaction: a state machine without I/O.

The main lane takes everything queued, over all collections, one group at a time. When a lock did not
come in time, the group's collections are set apart: each has a lane of its own until it is drained, so that one that is
stuck holds up nobody else. A collection is in one lane at a time and its items never overtake each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from shoal_core.errors import ResourceExhausted

MAIN = ""
_KEPT_APART = 256  # collections that stay apart with nothing to do


class Queued(Protocol):
    """An item: which collection, and how many bytes it adds to a transaction."""

    @property
    def collection_id(self) -> str: ...

    @property
    def cost_bytes(self) -> int: ...


T = TypeVar("T", bound=Queued)


class Admission:
    """Counts what has been begun and not answered. Refuses beyond a bound."""

    def __init__(self, *, items: int, size_bytes: int, retry_after_ms: int) -> None:
        self._limits = (items, size_bytes)
        self._retry_after_ms = retry_after_ms
        self.items = 0
        self.size_bytes = 0

    def enter(self, size_bytes: int) -> None:
        """Raises `ResourceExhausted`; else `leave` must follow."""
        if self.items + 1 > self._limits[0] or self.size_bytes + size_bytes > self._limits[1]:
            raise ResourceExhausted(
                f"{self.items} appends of {self.size_bytes} bytes are under way, the limits are {self._limits[0]} and "
                f"{self._limits[1]}; try again",
                retry_after_ms=self._retry_after_ms,
            )
        self.items += 1
        self.size_bytes += size_bytes

    def leave(self, size_bytes: int) -> None:
        """Undo one `enter`."""
        self.items -= 1
        self.size_bytes -= size_bytes


class GroupQueue(Generic[T]):
    """Items waiting for a transaction, in lanes. Bounded by the `Admission` ahead of it."""

    def __init__(self, *, group_items: int, group_size_bytes: int, lanes: int) -> None:
        self._group_items = group_items
        self._group_size_bytes = group_size_bytes
        self._lanes = lanes
        self._waiting: dict[str, deque[T]] = {MAIN: deque()}
        self._running: set[str] = set()

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._waiting.values())

    def offer(self, item: T) -> None:
        """Queue behind everything of its collection."""
        self._lane_of(item.collection_id).append(item)

    def startable(self) -> list[str]:
        """Lanes with work that nobody serves; they count as served from now on, until `finish`."""
        ready = [lane for lane, queue in self._waiting.items() if queue and lane not in self._running]
        free = self._lanes - len(self._running - {MAIN})
        started = [lane for lane in ready if lane == MAIN] + [lane for lane in ready if lane != MAIN][: max(free, 0)]
        self._running.update(started)
        return started

    def take(self, lane: str) -> list[T]:
        """The next group of a lane: all that waits, within the bounds, at least one item if any waits."""
        queue = self._waiting.get(lane, deque())
        group: list[T] = []
        size_bytes = 0
        while queue and len(group) < self._group_items:
            size_bytes += queue[0].cost_bytes
            if group and size_bytes > self._group_size_bytes:
                break
            group.append(queue.popleft())
        return group

    def has_work(self, lane: str) -> bool:
        """Whether `take` would return anything."""
        return bool(self._waiting.get(lane))

    def set_apart(self, group: Sequence[T]) -> None:
        """Put a taken group of the main lane back, each collection into a lane of its own, ahead of what came since."""
        apart = {item.collection_id for item in group}
        since = self._waiting[MAIN]
        self._waiting[MAIN] = deque(item for item in since if item.collection_id not in apart)
        for item in [*group, *(item for item in since if item.collection_id in apart)]:
            self._waiting.setdefault(item.collection_id, deque()).append(item)

    def finish(self, lane: str, *, stuck: bool = False) -> None:
        """Nobody serves the lane any more; it goes behind the others.

        A drained collection is back in the main lane, unless it is ``stuck``: then it stays apart until a group of its own
        succeeds, or every append to it would hold up the main lane again.
        """
        self._running.discard(lane)
        if lane == MAIN or lane not in self._waiting:
            return
        queue = self._waiting.pop(lane)
        if queue or stuck:
            self._waiting[lane] = queue
        idle = [name for name, waiting in self._waiting.items() if name != MAIN and not waiting]
        for name in idle[: max(len(idle) - _KEPT_APART, 0)]:
            if name not in self._running:
                del self._waiting[name]

    def drain(self) -> list[T]:
        """Everything that waits, taken out."""
        items = [item for queue in self._waiting.values() for item in queue]
        self._waiting = {MAIN: deque()}
        return items

    def _lane_of(self, collection_id: str) -> deque[T]:
        return self._waiting.get(collection_id, self._waiting[MAIN])
