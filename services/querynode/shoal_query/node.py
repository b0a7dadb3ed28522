"""The query node: the `QueryNode` contract over the shards it has loaded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pyarrow as pa

from shoal_core.consistency import Consistency, ReadLevel
from shoal_core.contracts import (
    Answer,
    CountAnswer,
    CountRequest,
    DenseLeaf,
    GetRequest,
    Include,
    QueryRequest,
    SearchRequest,
    StatisticsAnswer,
    StatisticsRequest,
    Target,
)
from shoal_core.errors import DimensionMismatch, InvalidArgument, NotFound, ShoalError, SnapshotGone
from shoal_core.filters import Filter
from shoal_index.planner import DEFAULT_RECALL, Ask
from shoal_index.vector import kernels
from shoal_query.admission import Admission
from shoal_query.answers import answer_of, served_at
from shoal_query.execute import (
    Search,
    Selection,
    Snapshot,
    count_rows,
    hydrate,
    select_rows,
)
from shoal_query.explain import Reading, Shown, Stages, explain
from shoal_query.loaded import LoadedShards, key_of
from shoal_query.nearest import Due, Nearest, NearestRead, nearest_together
from shoal_query.ranked import SCORE, search_leaves, statistics
from shoal_query.recall_check import CheckBudget, check_query
from shoal_query.rounds import seen
from shoal_query.services import Services
from shoal_query.shard import Shard, View
from shoal_query.together import Together
from shoal_query.usage import Counters, Usage


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Bounds of a query node.

    Attributes:
        loaded_bytes: of segments, tails and what reads made of them. Above it vectors that are mapped from local disk are let go of,
            to be read from there again, and where that is not enough shards are dropped, both least recently used first.
        reads_per_shrink: how many reads between two looks at that.
        threads: of one search call with many vectors.
        staleness_ms: how long reads that need no read index may go without one.
        attempts: how often a strong read takes a new snapshot when its version was replaced under it.
        recall_check_share: of one core's time for asking queries again exactly; 0 for none.
        brief_search_us: searches that are reckoned to take no longer run on the event loop, without a thread; 0 for none.
    """

    loaded_bytes: int = 8 << 30
    reads_per_shrink: int = 32
    reads_at_work: int = 64
    reads_waiting: int = 1024
    threads: int = 2
    staleness_ms: int = 5_000
    attempts: int = 5
    recall_check_share: float = 0.01
    brief_search_us: int = 160


@dataclass(slots=True)
class Node:
    """One query node. ``name`` appears in explained answers."""

    name: str
    services: Services
    settings: NodeSettings = field(default_factory=NodeSettings)
    counters: Counters = field(default_factory=Counters)
    loaded: LoadedShards = field(init=False)
    _admission: Admission = field(init=False)
    _kernels: Mapping[str, str] = field(default_factory=dict)
    _checks: CheckBudget = field(init=False)
    _checking: set[asyncio.Task[None]] = field(default_factory=set)
    _together: Together[Due, Nearest | None] = field(default_factory=nearest_together)

    def __post_init__(self) -> None:
        self._checks = CheckBudget(self.settings.recall_check_share)
        settings = self.settings
        self.loaded = LoadedShards(self.services, settings.loaded_bytes, settings.reads_per_shrink, self.counters)
        self._admission = Admission(settings.reads_at_work, settings.reads_waiting, self.services.queue_time)

    def observed_recall(self) -> float:
        """The mean over the checks of all shards held; 1 before the first."""
        observed = [shard.observed for shard in self.loaded.shards.values()]
        checks = sum(each.checks for each in observed)
        return 1.0 - sum(each.missed for each in observed) / checks if checks else 1.0

    def usage(self) -> Usage:
        """What is held and under way now."""
        shards = list(self.loaded.shards.values())
        return Usage(
            reads=self._admission.present,
            refused_reads=self._admission.refused,
            shards=len(shards),
            loaded_bytes=sum(list(self.loaded.sizes.values())),
            tail_records=sum(shard.tail_records for shard in shards),
            tail_bytes=sum(shard.tail_bytes for shard in shards),
            version_age_ms=max((shard.version_age_ms for shard in self.loaded.in_use()), default=0.0),
        )

    def kernels(self) -> Mapping[str, str]:
        """`kernels.report` of this process, made at the first call."""
        if not self._kernels:
            self._kernels = kernels.report()
        return self._kernels

    async def get(self, request: GetRequest, *, encoded: bool = False) -> Answer:
        """See `QueryNode`."""
        selection = _selection(request.where, request.ids)
        async with self._reading(request.target) as shard:
            reading = self._begin(shard)
            snapshot = await self._snapshot(shard, request.target, request.consistency, request.snapshot_offset)
            reading.stages.done("snapshot")

            def work() -> Answer:
                found = select_rows(snapshot, selection, request.limit, request.offset, request.after_created)
                reading.stages.done("select")
                rows = hydrate(snapshot, found, request.include, with_origin=request.explain)
                reading.stages.done("fetch")
                return answer_of(shard, reading, rows, found, snapshot, selection, request)

            return await self.services.compute(work)

    async def count(self, request: CountRequest) -> CountAnswer:
        """See `QueryNode`."""
        selection = Selection(request.where)
        async with self._reading(request.target) as shard:
            reading = self._begin(shard)
            snapshot = await self._snapshot(shard, request.target, request.consistency, request.snapshot_offset)
            reading.stages.done("snapshot")

            def work() -> CountAnswer:
                total = count_rows(snapshot, selection)
                reading.stages.done("select")
                shown = explain(Shown(reading, request.target, snapshot, selection)) if request.explain else None
                return CountAnswer(total, served_at(snapshot), shown)

            return await self.services.compute(work)

    async def query(self, request: QueryRequest, *, encoded: bool = False) -> Answer:
        """See `QueryNode`. Segments are searched while the read index and the tail are fetched, if that takes long."""
        selection = _selection(request.where, request.ids)
        async with self._reading(request.target) as shard:
            ask = self._corrected(shard, _ask(request, k=request.k, queries=len(request.vectors)))
            search = Search(request.vectors, ask, self.settings.threads)
            brief_us = self.settings.brief_search_us
            read = NearestRead(
                self.services, shard, request, selection, search, self._begin(shard), brief_us, self._together
            )
            for _ in range(self.settings.attempts):
                view = await shard.loaded()
                _check_dimension(request.vectors.shape[1], view, shard)
                try:
                    found = await self._nearest(read, view)
                except SnapshotGone:
                    self.counters.retaken_snapshots += 1
                    if request.snapshot_offset and shard.view is view:
                        raise
                    continue
                if any(hit.plan.approximate for hit in found.hits) and not ask.paged:
                    self._check_now_and_then(shard, found, selection)
                return found.answer
        raise SnapshotGone(f"the snapshot was replaced {self.settings.attempts} times during the read; try again")

    async def search(self, request: SearchRequest) -> Answer:
        """See `QueryNode`."""
        selection = _selection(request.where, request.ids)
        async with self._reading(request.target) as shard:
            reading = self._begin(shard)
            snapshot = await self._snapshot(shard, request.target, request.consistency, request.snapshot_offset)
            for leaf in request.leaves:
                if isinstance(leaf, DenseLeaf):
                    _check_dimension(len(leaf.vector), await shard.loaded(), shard)
            reading.stages.done("snapshot")

            def work() -> Answer:
                ask = self._corrected(shard, _ask(request, k=0, queries=0))
                ranked = search_leaves(snapshot, selection, request.leaves, ask, threads=self.settings.threads)
                reading.stages.done("rank")
                rows = hydrate(snapshot, ranked.found, Include(), with_origin=request.explain)
                rows = rows.append_column(SCORE, pa.array(ranked.measures))
                reading.stages.done("fetch")
                return answer_of(
                    shard, reading, rows, ranked.found, snapshot, selection, request, ranked.plans, ranked.scans
                )

            return await self.services.compute(work)

    async def statistics(self, request: StatisticsRequest) -> StatisticsAnswer:
        """See `QueryNode`."""
        async with self._reading(request.target) as shard:
            snapshot = await self._snapshot(shard, request.target, request.consistency, request.snapshot_offset)
            found = await self.services.compute(lambda: statistics(snapshot, request.asks))
        return StatisticsAnswer(found, served_at(snapshot))

    async def drop_idle(self, max_age_ms: int) -> int:
        """See `LoadedShards.drop_idle`."""
        return await self.loaded.drop_idle(max_age_ms)

    async def close(self) -> None:
        """Stop all work in the background."""
        for task in self._checking:
            task.cancel()
        await self.loaded.close()

    async def _nearest(self, read: NearestRead, view: View) -> Nearest:
        """The read at a snapshot that meets its demand. The dimension may be known only then."""
        shard, request = read.shard, read.request
        target, consistency, offset = request.target, request.consistency, request.snapshot_offset

        async def known(taking: Awaitable[Snapshot]) -> Snapshot:
            snapshot = await taking
            _check_dimension(request.vectors.shape[1], view, shard)
            return snapshot

        before = view.newest()
        if consistency.level is ReadLevel.AS_OF:
            return await read.at(await known(self._snapshot(shard, target, consistency, offset)))
        if offset and before.offset > offset:
            return await read.at(await known(self._pinned(shard, view, target, offset)))
        return await read.meanwhile(before, lambda: known(self._snapshot_of(shard, view, target, consistency, offset)))

    def _corrected(self, shard: Shard, ask: Ask) -> Ask:
        shard.observed.fade(self.services.clock.monotonic())
        return shard.observed.corrected(replace(ask, paged=True) if self.loaded.crowded else ask)

    def _check_now_and_then(self, shard: Shard, nearest: Nearest, selection: Selection) -> None:
        """Ask one of the queries again exactly, in the background, if there is time to spare for it."""
        clock = self.services.clock
        if not self._checks.begin(clock.monotonic()):
            return
        number = self.counters.recall_checks % len(nearest.vectors)

        async def check() -> None:
            started_at = clock.monotonic()
            try:
                query = nearest.vectors[number : number + 1]
                found = await self.services.compute(
                    lambda: check_query(nearest.snapshot, selection, nearest.hits, query, number)
                )
                for estimated, recall in found:
                    shard.observed.add(estimated, recall)
                self.counters.recall_checks += 1
            finally:
                self._checks.end(clock.monotonic() - started_at)

        task = asyncio.create_task(check())
        self._checking.add(task)
        task.add_done_callback(self._checking.discard)
        task.add_done_callback(seen)

    def _begin(self, shard: Shard) -> Reading:
        return Reading(self.name, self.kernels, Stages(self.services.clock), shard.read, replace(shard.read))

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
        """The same on a given view; of AS_OF on whatever view reaches back."""
        if consistency.level is ReadLevel.AS_OF:
            await self._look_now_and_then(shard, target)
            return await shard.as_of(snapshot_offset or consistency.offset, target.epoch)
        if snapshot_offset:
            return await self._pinned(shard, view, target, snapshot_offset)
        match consistency.level:
            case ReadLevel.INDEX_ONLY:
                await self._look_now_and_then(shard, target)
                return await view.at(view.version.compacted_offset, shard.dimension, self.services)
            case ReadLevel.SESSION if view.newest().offset >= consistency.offset:
                await self._look_now_and_then(shard, target)
                return view.newest()
            case ReadLevel.BOUNDED if self._is_recent(shard.caught_up_at, consistency.staleness_ms):
                return await view.at(view.raw.through, shard.dimension, self.services)
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

    async def _pinned(self, shard: Shard, view: View, target: Target, offset: int) -> Snapshot:
        await self._look_now_and_then(shard, target)  # another's offset does not tell of new versions
        await shard.reach(offset)
        return await view.at(offset, shard.dimension, self.services)

    @asynccontextmanager
    async def _reading(self, target: Target) -> AsyncIterator[Shard]:
        """An admitted read of a shard. A collection that is gone takes its shard with it."""
        async with self._admission.admitted():
            self.counters.reads += 1
            key, shard = key_of(target), self.loaded.open(target)
            shard.readers += 1
            try:
                yield shard
            except NotFound:
                await self.loaded.drop(key, shard)
                raise
            except ShoalError:
                if shard.is_idle:  # there may be any number of collections that cannot be loaded
                    await self.loaded.drop(key, shard)
                raise
            finally:
                shard.readers -= 1
                await self.loaded.read(key)


def _ask(request: QueryRequest | SearchRequest, *, k: int, queries: int) -> Ask:
    return Ask(k, request.recall or DEFAULT_RECALL, request.ef, request.exact, queries)


def _check_dimension(given: int, view: View, shard: Shard) -> None:
    known = shard.dimension if shard.dimension is not None else view.version.dimension
    if known is not None and known != given:
        raise DimensionMismatch(
            f"the collection has embeddings of dimension {known}, the query has {given}", field="query_embeddings"
        )


def _selection(where: Filter | None, ids: tuple[str, ...] | None) -> Selection:
    return Selection(where, None if ids is None else pa.array(dict.fromkeys(ids), pa.string()))
