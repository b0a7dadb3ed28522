"""The query node: the `QueryNode` contract over the shards it has loaded."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from shoal_core.consistency import Consistency, ReadLevel, ServedAt
from shoal_core.contracts import (
    Answer,
    CountAnswer,
    CountRequest,
    GetRequest,
    Json,
    QueryRequest,
    Target,
)
from shoal_core.errors import DimensionMismatch, InvalidArgument, NotFound, SnapshotGone, Unimplemented
from shoal_query.admission import Admission
from shoal_query.execute import (
    Found,
    Search,
    SegmentHits,
    Selection,
    Snapshot,
    count_rows,
    finish_search,
    hydrate,
    search_segments,
    select_rows,
)
from shoal_query.shard import Services, Shard, View

ShardKey = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Bounds of a query node.

    Attributes:
        loaded_bytes: shards are dropped, least recently used first, above this many bytes of segments and tails.
        reads_per_shrink: how many reads between two looks at that.
        threads: of one search call with many vectors.
        staleness_ms: how long reads at index_only and session may go without a read index.
        attempts: how often a strong read takes a new snapshot when its version was replaced under it.
    """

    loaded_bytes: int = 8 << 30
    reads_per_shrink: int = 32
    reads_at_work: int = 64
    reads_waiting: int = 1024
    threads: int = 2
    staleness_ms: int = 5_000
    attempts: int = 5


@dataclass(slots=True)
class Counters:
    """What a query node has done since its start."""

    reads: int = 0
    retaken_snapshots: int = 0
    dropped_shards: int = 0


@dataclass(slots=True)
class Node:
    """One query node. ``name`` appears in explained answers."""

    name: str
    services: Services
    settings: NodeSettings = field(default_factory=NodeSettings)
    counters: Counters = field(default_factory=Counters)
    _shards: OrderedDict[ShardKey, Shard] = field(default_factory=OrderedDict)
    _admission: Admission = field(init=False)
    _reads_since_shrink: int = 0

    def __post_init__(self) -> None:
        self._admission = Admission(self.settings.reads_at_work, self.settings.reads_waiting)

    async def get(self, request: GetRequest, *, encoded: bool = False) -> Answer:
        """See `QueryNode`."""
        selection = Selection(request.where, None if request.ids is None else _id_array(request.ids))
        async with self._reading(request.target) as shard:
            snapshot = await self._snapshot(shard, request.target, request.consistency, request.snapshot_offset)

            def work() -> tuple[Found, pa.Table]:
                found = select_rows(snapshot, selection, request.limit, request.offset)
                return found, hydrate(snapshot, found, request.include, with_origin=request.explain)

            found, rows = await self.services.compute(work)
        explain = self._explain(snapshot, request.target, None) if request.explain else None
        return _answer(rows, found, snapshot, explain)

    async def count(self, request: CountRequest) -> CountAnswer:
        """See `QueryNode`."""
        async with self._reading(request.target) as shard:
            snapshot = await self._snapshot(shard, request.target, request.consistency, request.snapshot_offset)
            total = await self.services.compute(lambda: count_rows(snapshot, Selection(request.where)))
        return CountAnswer(total, _served_at(snapshot))

    async def query(self, request: QueryRequest, *, encoded: bool = False) -> Answer:
        """See `QueryNode`. The segments are searched while the read index and the tail are fetched."""
        selection = Selection(request.where, None if request.ids is None else _id_array(request.ids))
        search = Search(request.vectors, request.k, request.ef, request.exact, self.settings.threads)
        async with self._reading(request.target) as shard:
            for _ in range(self.settings.attempts):
                view = await shard.loaded()
                _check_dimension(request, view, shard)
                try:
                    return await self._search(shard, view, request, selection, search)
                except SnapshotGone:
                    self.counters.retaken_snapshots += 1
                    if request.snapshot_offset and shard.view is view:
                        raise
        raise SnapshotGone(f"the snapshot was replaced {self.settings.attempts} times during the read; try again")

    async def close(self) -> None:
        """Stop all background loading."""
        for shard in self._shards.values():
            await shard.close()
        self._shards.clear()

    async def _search(
        self, shard: Shard, view: View, request: QueryRequest, selection: Selection, search: Search
    ) -> Answer:
        before, pinned = view.newest(), None
        if request.snapshot_offset and before.offset > request.snapshot_offset:
            before = pinned = await self._pinned(shard, view, request.snapshot_offset)
        segments = asyncio.ensure_future(self.services.compute(lambda: search_segments(before, selection, search)))
        try:
            snapshot = pinned or await self._snapshot_of(
                shard, view, request.target, request.consistency, request.snapshot_offset
            )
            _check_dimension(request, view, shard)
            hits = await segments
        finally:
            segments.cancel()

        def finish() -> tuple[Found, pa.Table, list[SegmentHits]]:
            if snapshot.offset < before.offset:  # served without a newer head: search at the offset asked for
                found, current = finish_search(
                    snapshot, 0, search_segments(snapshot, selection, search), selection, search
                )
            else:
                found, current = finish_search(snapshot, before.offset, hits, selection, search)
            return found, hydrate(snapshot, found, request.include, with_origin=request.explain), current

        found, rows, current = await self.services.compute(finish)
        explain = self._explain(snapshot, request.target, current) if request.explain else None
        return _answer(rows, found, snapshot, explain)

    async def _snapshot(self, shard: Shard, target: Target, consistency: Consistency, snapshot_offset: int) -> Snapshot:
        """A snapshot that meets the demand, on the newest view; taken anew when a version replaces it meanwhile."""
        for _ in range(self.settings.attempts):
            view = await shard.loaded()
            try:
                return await self._snapshot_of(shard, view, target, consistency, snapshot_offset)
            except SnapshotGone:
                self.counters.retaken_snapshots += 1
                if snapshot_offset and shard.view is view:
                    raise
        raise SnapshotGone(f"the snapshot was replaced {self.settings.attempts} times during the read; try again")

    async def _snapshot_of(
        self, shard: Shard, view: View, target: Target, consistency: Consistency, snapshot_offset: int
    ) -> Snapshot:
        """The same on a given view."""
        if snapshot_offset:
            return await self._pinned(shard, view, snapshot_offset)
        match consistency.level:
            case ReadLevel.INDEX_ONLY:
                await self._look_now_and_then(shard, target)
                return await view.at(view.version.compacted_offset, shard.dimension, self.services)
            case ReadLevel.SESSION if view.newest().offset >= consistency.offset:
                await self._look_now_and_then(shard, target)
                return view.newest()
            case ReadLevel.BOUNDED if self._is_recent(shard.caught_up_at, consistency.staleness_ms):
                return await view.at(view.raw.through, shard.dimension, self.services)
            case ReadLevel.AS_OF:
                raise Unimplemented("as_of reads are not served yet; read at strong or session", field="consistency")
            case _:
                offset = await shard.newest_offset(target.epoch)
                if offset < consistency.offset:
                    raise InvalidArgument(
                        f"offset {consistency.offset} lies beyond the log's end at {offset}; is the token of this collection?",
                        field="consistency.offset",
                    )
                return await view.at(offset, shard.dimension, self.services)

    async def _look_now_and_then(self, shard: Shard, target: Target) -> None:
        """Reads that need no read index still take one every ``staleness_ms``: it tells of new versions, renames and deletion."""
        if not self._is_recent(shard.looked_at, self.settings.staleness_ms):
            await shard.newest_offset(target.epoch)

    def _is_recent(self, moment: float, staleness_ms: int) -> bool:
        return (self.services.clock.monotonic() - moment) * 1000 <= staleness_ms

    async def _pinned(self, shard: Shard, view: View, offset: int) -> Snapshot:
        await shard.reach(offset)
        return await view.at(offset, shard.dimension, self.services)

    @asynccontextmanager
    async def _reading(self, target: Target) -> AsyncIterator[Shard]:
        """An admitted read of a shard. A collection that is gone takes its shard with it."""
        async with self._admission.admitted():
            self.counters.reads += 1
            key = (target.collection_id, target.shard, target.shards)
            shard = self._shards.get(key)
            if shard is None:
                shard = self._shards[key] = Shard(target, self.services)
            self._shards.move_to_end(key)
            try:
                yield shard
            except NotFound:
                await self._drop(key, shard)
                raise
            await self._shrink(key)

    async def _shrink(self, keep: ShardKey) -> None:
        """Adding up is not for every read: sizes change with loads and with the tail, and both take many reads."""
        self._reads_since_shrink += 1
        if self._reads_since_shrink < self.settings.reads_per_shrink:
            return
        self._reads_since_shrink = 0
        total = sum(shard.size_bytes for shard in self._shards.values())
        for key, shard in list(self._shards.items()):
            if total <= self.settings.loaded_bytes or key == keep:
                return
            if shard.size_bytes:  # one that is being loaded would only be loaded again
                total -= shard.size_bytes
                await self._drop(key, shard)

    async def _drop(self, key: ShardKey, shard: Shard) -> None:
        if self._shards.get(key) is not shard:
            return  # another read was faster
        del self._shards[key]
        self.counters.dropped_shards += 1
        await shard.close()

    def _explain(self, snapshot: Snapshot, target: Target, hits: list[SegmentHits] | None) -> Json:
        segments = []
        for number, view in enumerate(snapshot.version.segments):
            entry: dict[str, object] = {"id": view.ref.id, "tier": view.ref.tier, "rows": view.ref.rows}
            if hits is not None:
                plan = hits[number].plan
                entry |= {"allowed": hits[number].allowed, "strategy": str(plan.strategy), "ef": plan.ef}
            segments.append(entry)
        tail_rows = int(np.count_nonzero(snapshot.frozen.visible(snapshot.offset)))
        tail = {"records": tail_rows, "after": snapshot.version.compacted_offset, "up_to": snapshot.offset}
        shard = {"node": self.name, "shard": target.shard, "version": snapshot.version.version, "tail": tail}
        return {"shards": [{**shard, "segments": segments}]}


def _check_dimension(request: QueryRequest, view: View, shard: Shard) -> None:
    known = shard.dimension if shard.dimension is not None else view.version.dimension
    given = request.vectors.shape[1]
    if known is not None and known != given:
        raise DimensionMismatch(
            f"the collection has embeddings of dimension {known}, the query has {given}", field="query_embeddings"
        )


def _id_array(ids: tuple[str, ...]) -> pa.Array:
    return pa.array(dict.fromkeys(ids), pa.string())


def _served_at(snapshot: Snapshot) -> ServedAt:
    return ServedAt(snapshot.offset, snapshot.version.version)


def _answer(rows: pa.Table, found: Found, snapshot: Snapshot, explain: Json | None) -> Answer:
    return Answer(rows, found.counts.astype(np.uint32), _served_at(snapshot), explain=explain)
