"""A nearest-neighbour read of one shard: at once on the event loop if it is brief, else in a thread while the snapshot is taken.

Brief ones that are due at once, and want the same of the same snapshot, are one search of all their vectors: what a read takes beside
comparing vectors is several times as long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from opentelemetry import trace

from shoal_core.contracts import Answer, QueryRequest
from shoal_index.vector.engine import Vectors
from shoal_query.answers import answer_of
from shoal_query.execute import (
    Found,
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
from shoal_query.tail_search import TailScan
from shoal_query.together import Together
from shoal_wire.spans import shared_span

LARGEST_PORTION = 8  # reads that are searched together: fetching their rows is not reckoned


@dataclass(frozen=True, slots=True)
class Nearest:
    """What a read came to.

    Attributes:
        hits: of each segment at the snapshot; none where another read has them.
        vectors: (q, dim) those that they are of, of other reads too.
    """

    answer: Answer
    snapshot: Snapshot
    hits: Sequence[SegmentHits]
    vectors: Vectors


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
    together: Together[Due, Nearest | None]

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
        if brief and self.shard.readers < 2:
            return self._here(snapshot)
        if brief:
            ask = replace(self.search.ask, queries=0)
            key = id(snapshot.frozen), snapshot.offset, ask, self.request.include, self.search.vectors.shape[1]
            found = await self.together.ask(key, Due(self, snapshot, trace.get_current_span()))
            if found is not None:
                return found
        return await self.services.compute(lambda: self._at(snapshot))

    def _here(self, snapshot: Snapshot) -> Nearest:
        return self.shard.brief.run(lambda: self.services.compute_here(lambda: self._on_one_thread()._at(snapshot)))

    def _on_one_thread(self) -> NearestRead:
        return self if self.search.threads == 1 else replace(self, search=replace(self.search, threads=1))

    def _at(self, snapshot: Snapshot) -> Nearest:
        hits = search_segments(snapshot, self.selection, self.search)
        self.reading.stages.done("search")
        return self._with_tail(snapshot, snapshot.offset, hits)

    def _with_tail(self, snapshot: Snapshot, searched_at: int, hits: Sequence[SegmentHits]) -> Nearest:
        found, current, scan = finish_search(snapshot, searched_at, hits, self.selection, self.search)
        self.reading.stages.done("tail")
        return Nearest(self._answer(snapshot, found, current, scan), snapshot, current, self.search.vectors)

    def _answer(self, snapshot: Snapshot, found: Found, hits: Sequence[SegmentHits], scan: TailScan) -> Answer:
        request = self.request
        rows = hydrate(snapshot, found, request.include, with_origin=request.explain)
        self.reading.stages.done("fetch")
        plans = [[hit.plan for hit in hits]]
        return answer_of(self.shard, self.reading, rows, found, snapshot, self.selection, request, plans, [scan])

    def _is_brief(self, snapshot: Snapshot, *, reads: int = 1) -> bool:
        """Whether to search on the event loop, for so many reads: not what has to be explained, nor vectors that may have to be read
        from disk.
        """
        view = self.shard.view
        newest = view is not None and snapshot.version is view.version  # of others it is not known what was read
        if self.request.explain or not newest or self.shard.unread_bytes:
            return False
        return self.shard.brief.may_run(
            snapshot, self.selection, self.search, self.request.include, within_us=self.brief_us, reads=reads
        )


@dataclass(frozen=True, slots=True)
class Due:
    """A brief read that may be served with others, of the same snapshot."""

    read: NearestRead
    snapshot: Snapshot
    asker: trace.Span


def nearest_together() -> Together[Due, Nearest | None]:
    """Serves brief reads that want the same by one search of all their vectors, of which each fetches its own rows. None for a read
    that has ceased to be brief.
    """
    return Together(LARGEST_PORTION, _are_brief, _search_once)


def _are_brief(due: Sequence[Due]) -> bool:
    return _joined(due)._is_brief(due[0].snapshot, reads=len(due))


def _joined(due: Sequence[Due]) -> NearestRead:
    """The first read with the vectors of all."""
    first = due[0].read
    vectors = np.concatenate([each.read.search.vectors for each in due])
    search = replace(first.search, vectors=vectors, ask=replace(first.search.ask, queries=len(vectors)), threads=1)
    return replace(first, search=search)


def _search_once(due: Sequence[Due]) -> Sequence[Nearest | None]:
    first, snapshot = due[0].read, due[0].snapshot
    if len(due) == 1:
        return [first._here(snapshot) if first._is_brief(snapshot) else None]
    with shared_span("query together", [each.asker for each in due], {"shoal.reads": len(due)}):
        reads = [each.read for each in due]
        return first.shard.brief.run(lambda: _each_of(_joined(due), snapshot, reads), reads=len(reads))


def _each_of(joined: NearestRead, snapshot: Snapshot, reads: Sequence[NearestRead]) -> list[Nearest]:
    hits = search_segments(snapshot, joined.selection, joined.search)
    found, current, scan = finish_search(snapshot, snapshot.offset, hits, joined.selection, joined.search)
    answers, first = [], 0
    for read in reads:
        last = first + len(read.search.vectors)
        answer = read._answer(snapshot, found.of_queries(first, last), current, scan)
        # Whoever is asked again to see what it missed is one of all.
        answers.append(Nearest(answer, snapshot, () if first else current, joined.search.vectors))
        first = last
    return answers
