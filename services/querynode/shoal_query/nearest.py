"""A nearest-neighbour read of one shard: at once on the event loop if it is brief, else in a thread while the snapshot is taken.

Brief ones that are due together, and want the same of the same snapshot, are one search of all their vectors: what a read takes beside
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
from shoal_wire.spans import shared_span


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
        if not brief:
            return await self.services.compute(lambda: self._at(snapshot))
        if self.shard.readers < 2:
            return self._here(snapshot)
        ask = replace(self.search.ask, queries=0)
        key = id(snapshot.frozen), snapshot.offset, ask, self.request.include, self.search.vectors.shape[1]
        due = _Due(self, trace.get_current_span())
        return await self.shard.together.ask(key, due, lambda group: _all_at(snapshot, group))

    def _here(self, snapshot: Snapshot) -> Nearest:
        return self.shard.brief.run(lambda: self.services.compute_here(lambda: self._at(snapshot)))

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
        return Nearest(answer, snapshot, current, self.search.vectors)

    def _is_brief(self, snapshot: Snapshot) -> bool:
        """Whether to search on the event loop: not what has to be explained, nor vectors that may have to be read from disk."""
        view = self.shard.view
        newest = view is not None and snapshot.version is view.version  # of others it is not known what was read
        if self.request.explain or not newest or self.shard.unread_bytes:
            return False
        return self.shard.brief.may_run(
            snapshot, self.selection, self.search, self.request.include, within_us=self.brief_us
        )


@dataclass(frozen=True, slots=True)
class _Due:
    """A read that is to be served with others."""

    read: NearestRead
    asker: trace.Span


async def _all_at(snapshot: Snapshot, group: Sequence[_Due]) -> list[Nearest]:
    """Reads that want the same, in one search."""
    first = group[0].read
    if len(group) == 1:
        return [first._here(snapshot)]
    vectors = np.concatenate([due.read.search.vectors for due in group])
    search = replace(first.search, vectors=vectors, ask=replace(first.search.ask, queries=len(vectors)))
    read = replace(first, request=replace(first.request, vectors=vectors), search=search)
    with shared_span("query together", [due.asker for due in group], {"shoal.reads": len(group)}):
        brief = read._is_brief(snapshot)
        found = read._here(snapshot) if brief else await read.services.compute(lambda: read._at(snapshot))
    return _parts(found, [len(due.read.search.vectors) for due in group])


def _parts(found: Nearest, queries: Sequence[int]) -> list[Nearest]:
    """What was found for so many queries each."""
    answer = found.answer
    parts: list[Nearest] = []
    ends = np.cumsum(queries)
    row_ends = np.concatenate([[0], np.cumsum(answer.row_counts, dtype=np.int64)])
    for count, end in zip(queries, ends.tolist(), strict=True):
        start = int(row_ends[end - count])
        rows = answer.rows.slice(start, int(row_ends[end]) - start)
        part = replace(answer, rows=rows, row_counts=answer.row_counts[end - count : end])
        parts.append(Nearest(part, found.snapshot, () if parts else found.hits, found.vectors))
    return parts
