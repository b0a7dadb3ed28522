"""Heads in memory: the last known ones, and the committed ones of a process that alone appends.

Everything about a collection's log only ever grows, so two observations of it are joined field by field, in any order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from shoal_log.decide import LogState


def join(one: LogState, other: LogState) -> LogState:
    """The newest of two observations of one collection (one incarnation)."""
    newer_version = one if one.version >= other.version else other
    newer_head = one if one.head_offset >= other.head_offset else other
    return replace(
        newer_head,
        epoch=max(one.epoch, other.epoch),
        alive=one.alive and other.alive,
        dimension=one.dimension if one.dimension is not None else other.dimension,
        version=newer_version.version,
        compacted_offset=newer_version.compacted_offset,
        compacted_bytes=newer_version.compacted_bytes,
        trim_floor=max(one.trim_floor, other.trim_floor),
    )


class KnownHeads:
    """The last known state of recently used collections. Never an answer to "what is the head now?"."""

    def __init__(self, collections: int) -> None:
        self._collections = collections
        self._states: OrderedDict[str, LogState] = OrderedDict()

    def get(self, collection_id: str) -> LogState | None:
        """What is known, if anything."""
        if collection_id in self._states:
            self._states.move_to_end(collection_id)
        return self._states.get(collection_id)

    def learn(self, state: LogState) -> LogState:
        """Add an observation; returns what is known now."""
        known = self._states.get(state.collection_id)
        if known is not None and known != state and known.incarnation == state.incarnation:
            state = join(known, state)
        self._states[state.collection_id] = state
        self._states.move_to_end(state.collection_id)
        while len(self._states) > self._collections:
            self._states.popitem(last=False)
        return state

    def forget(self, collection_id: str) -> None:
        """Drop what is known."""
        self._states.pop(collection_id, None)

    def clear(self) -> None:
        """Drop everything that is known."""
        self._states.clear()

    @property
    def collection_ids(self) -> list[str]:
        """Of which something is known."""
        return list(self._states)


@dataclass(slots=True, eq=False)
class _Fill:
    """A read of the database under way, and what happened meanwhile."""

    commits: list[LogState]
    publishes: list[tuple[int, int]]
    outdated: bool = False


class CommittedHeads:
    """The read index of a process that holds the data directory exclusively and is its only appender.

    Such a process knows every commit, so the committed head in memory is the read index. A collection is filled from the
    database on first use; what commits or is published during the fill is joined to its answer.

    Args:
        fill: the shared read index over the database.
    """

    def __init__(self, fill: Callable[[str], Awaitable[LogState]], collections: int) -> None:
        self._fill = fill
        self._known = KnownHeads(collections)
        self._fills: dict[str, list[_Fill]] = {}

    async def state(self, collection_id: str) -> LogState:
        """See `SharedReadIndex.state`."""
        while (state := self._known.get(collection_id)) is None:
            state = await self._try_fill(collection_id)
            if state is not None:
                return state
        return state

    def committed(self, state: LogState) -> None:
        """A transaction of this process committed, and this is how it left the collection. Call it before answering.

        Joined to what is known; it does not make a collection known, as it may be older than a `catalog_changed`.
        """
        for fill in self._fills.get(state.collection_id, ()):
            fill.commits.append(state)
        if self._known.get(state.collection_id) is not None:
            self._known.learn(state)

    def published(self, collection_id: str, version: int, compacted_offset: int) -> None:
        """A publish committed. Call it before answering."""
        for fill in self._fills.get(collection_id, ()):
            fill.publishes.append((version, compacted_offset))
        known = self._known.get(collection_id)
        if known is not None:
            self._known.learn(_with_version(known, version, compacted_offset))

    def catalog_changed(self, collection_id: str) -> None:
        """A collection was renamed, modified or deleted, or a commit's outcome is unknown: ask the database again."""
        for fill in self._fills.get(collection_id, ()):
            fill.outdated = True
        self._known.forget(collection_id)

    def everything_changed(self) -> None:
        """Ask the database again for every collection: logs were trimmed."""
        for collection_id in [*self._fills, *self._known.collection_ids]:
            self.catalog_changed(collection_id)

    async def _try_fill(self, collection_id: str) -> LogState | None:
        fill = _Fill([], [])
        fills = self._fills.setdefault(collection_id, [])
        fills.append(fill)
        try:
            state = await self._fill(collection_id)
        finally:
            fills.remove(fill)
            if not fills:
                self._fills.pop(collection_id, None)
        if fill.outdated:
            return None
        for commit in fill.commits:
            state = join(state, commit) if commit.incarnation == state.incarnation else state
        for version, compacted_offset in fill.publishes:
            state = _with_version(state, version, compacted_offset)
        return self._known.learn(state) if state.alive else state


def _with_version(state: LogState, version: int, compacted_offset: int) -> LogState:
    if version <= state.version:
        return state
    # A commit whose outcome this process does not know may have been compacted: the head is never below what is.
    head_offset = max(state.head_offset, compacted_offset)
    return replace(state, version=version, compacted_offset=compacted_offset, head_offset=head_offset)
