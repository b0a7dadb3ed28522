"""A nearest-neighbour read of one shard: at once on the event loop if it is brief, else in a thread while the snapshot is taken."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from shoal_core.contracts import Answer, QueryRequest
from shoal_query.answers import answer_of
from shoal_query.execute import (
    Search,
    SegmentHits,
    Selection,
    Snapshot,
    finish_search,
    hydrate,
    search_segments,
)
from shoal_query.explain import Reading
from shoal_query.rounds import seen
from shoal_query.services import Services
from shoal_query.shard import Shard


@dataclass(frozen=True, slots=True)
class Nearest:
    """What a read came to.

    Attributes:
        hits: of each segment at the snapshot.
    """

    answer: Answer
    snapshot: Snapshot
    hits: Sequence[SegmentHits]


@dataclass(frozen=True, slots=True)
class NearestRead:
    """One read under way. ``brief_us``: see `NodeSettings.brief_search_us`."""

    services: Services
    shard: Shard
    request: QueryRequest
    selection: Selection
    search: Search
    reading: Reading
    brief_us: int

    async def at(self, snapshot: Snapshot) -> Nearest:
        """At a snapshot that is taken."""
        self.reading.stages.done("snapshot")
        return await self._whole(snapshot, brief=self._is_brief(snapshot))

    async def meanwhile(self, before: Snapshot, snapshot_of: Callable[[], Awaitable[Snapshot]]) -> Nearest:
        """At a snapshot that is yet to be taken: what takes long begins at the one ``before``, and is corrected."""
        if self._is_brief(before):
            snapshot = await snapshot_of()
            self.reading.stages.done("snapshot")
            still = snapshot.frozen is before.frozen or self._is_brief(snapshot)  # a long tail may have come
            return await self._whole(snapshot, brief=still)
        taken: list[Snapshot] = []  # none yet
        searching = asyncio.ensure_future(self.services.compute(lambda: self._begin(before, taken)))
        searching.add_done_callback(seen)
        try:
            snapshot = await snapshot_of()
            self.reading.stages.done("snapshot")
            taken.append(snapshot)
            hits, found = await searching
        finally:
            searching.cancel()
        if found is not None:
            return found
        return await self.services.compute(lambda: self._finish(before, hits, snapshot))

    def _begin(self, before: Snapshot, taken: Sequence[Snapshot]) -> tuple[list[SegmentHits], Nearest | None]:
        """Search the segments, and do the rest too if the snapshot was taken meanwhile: so it needs no other thread."""
        hits = search_segments(before, self.selection, self.search)
        return hits, self._finish(before, hits, taken[0]) if taken else None

    def _finish(self, before: Snapshot, hits: Sequence[SegmentHits], snapshot: Snapshot) -> Nearest:
        if snapshot.offset < before.offset:  # served without a newer head, at the offset asked for
            return self._at(snapshot)
        self.reading.stages.done("search")
        return self._with_tail(snapshot, before.offset, hits)

    async def _whole(self, snapshot: Snapshot, *, brief: bool) -> Nearest:
        if brief:
            return self.shard.brief.run(lambda: self.services.compute_here(lambda: self._at(snapshot)))
        return await self.services.compute(lambda: self._at(snapshot))

    def _at(self, snapshot: Snapshot) -> Nearest:
        hits = search_segments(snapshot, self.selection, self.search)
        self.reading.stages.done("search")
        return self._with_tail(snapshot, snapshot.offset, hits)

    def _with_tail(self, snapshot: Snapshot, searched_at: int, hits: Sequence[SegmentHits]) -> Nearest:
        request, stages = self.request, self.reading.stages
        found, current, scan = finish_search(snapshot, searched_at, hits, self.selection, self.search)
        stages.done("tail")
        rows = hydrate(snapshot, found, request.include, with_origin=request.explain)
        stages.done("fetch")
        plans = [[hit.plan for hit in current]]
        answer = answer_of(self.shard, self.reading, rows, found, snapshot, self.selection, request, plans, [scan])
        return Nearest(answer, snapshot, current)

    def _is_brief(self, snapshot: Snapshot) -> bool:
        """Whether to search on the event loop: not what has to be explained, nor vectors that may have to be read from disk."""
        view = self.shard.view
        newest = view is not None and snapshot.version is view.version  # of others it is not known what was read
        if self.request.explain or not newest or self.shard.unread_bytes:
            return False
        return self.shard.brief.may_run(
            snapshot, self.selection, self.search, self.request.include, within_us=self.brief_us
        )
