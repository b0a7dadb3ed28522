"""The compactor: finds collections with a backlog, claims them, flushes and merges them under a lease.

Which compactor takes a collection is a preference (rendezvous over the members), the lease decides, and publish checks the lease's
epoch. A collection that its owner leaves alone for too long is anybody's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pyarrow as pa

from shoal_compactor.erasure import ErasureTimes, erasure_times, overdue_collections
from shoal_compactor.flush import FlushResult, FlushSettings, flush
from shoal_compactor.function_settings import FunctionSettings
from shoal_compactor.garbage import GarbageSettings
from shoal_compactor.leases import release, renewing
from shoal_compactor.merge import MergeResult, merge_once
from shoal_compactor.policy import MergePolicy
from shoal_compactor.publish import Publisher, Step, no_step
from shoal_core.contracts import Backlog, Catalog, Collection, Lease, Log, VersionInfo
from shoal_core.errors import Conflict, NotFound, ShoalError, Unavailable
from shoal_core.ports import Clock, ObjectStore
from shoal_index.segment import BlockReader
from shoal_wire.spans import root_span

_log = logging.getLogger(__name__)

FLUSH = "flush"
MERGE = "merge"
_REMEMBERED = 10_000  # failing jobs: the backlog is asked for as many more


@dataclass(frozen=True, slots=True)
class CompactorSettings:
    """How a compactor works.

    Attributes:
        poll_ms: between looks at the backlog.
        min_records, max_age_ms: a collection is flushed when it has so many un-compacted records or an older one.
        orphan_age_ms: a backlog older than this is taken by any compactor.
        lease_ms: a lease is renewed three times within this.
        retry_ms, longest_retry_ms: a collection that cannot be flushed (merged) is not flushed (merged) again for so long, twice
            as long after each further failure.
        parallel_jobs: flushes at a time, and merges at a time.
        erasure_deadline_ms: after a flush found a row replaced or deleted, its bytes are gone from object storage within so long; 0: no
            matter when. See `erasure.erasure_times`.
        garbage: for the sweeper beside it.
        functions: for the runner of attached functions beside it.
    """

    poll_ms: int = 500
    min_records: int = 5_000
    max_age_ms: int = 3_000
    orphan_age_ms: int = 15_000
    lease_ms: int = 15_000
    retry_ms: int = 2_000
    longest_retry_ms: int = 300_000
    parallel_jobs: int = 1
    page: int = 100
    erasure_deadline_ms: int = 7 * 24 * 3_600_000
    flush: FlushSettings = FlushSettings()
    policy: MergePolicy = MergePolicy()
    garbage: GarbageSettings = GarbageSettings()
    functions: FunctionSettings = FunctionSettings()

    def __post_init__(self) -> None:
        self.erasure()

    def erasure(self) -> ErasureTimes | None:
        """None without a deadline. Raises `InvalidArgument` for one that cannot be kept."""
        return erasure_times(self.erasure_deadline_ms, self.garbage)


@dataclass(slots=True)
class Job:
    """A job under way or just ended, for operators."""

    collection_id: str
    kind: str
    stage: str = "running"
    records: int = 0


@dataclass(frozen=True, slots=True)
class Failing:
    """A job that failed so many times in a row, and when it is tried again (monotonic seconds)."""

    failures: int
    retry_at: float


@dataclass(slots=True)
class Counters:
    """What a compactor has done since its start."""

    flushes: int = 0
    merges: int = 0
    records: int = 0
    quarantined: int = 0
    lost_races: int = 0
    failures: int = 0


@dataclass(slots=True)
class Compactor:
    """See the module. ``mine`` says whether this process is the preferred one for a collection id.

    ``on_job`` hears of every flush and merge that was due: its kind, what `_outcome` says, and its milliseconds.
    """

    holder: str
    catalog: Catalog
    log: Log
    objects: ObjectStore
    blocks: BlockReader
    clock: Clock
    mine: Callable[[str], bool]
    settings: CompactorSettings = field(default_factory=CompactorSettings)
    step: Step = no_step
    on_published: Callable[[VersionInfo], None] = lambda info: None
    on_job: Callable[[str, str, float], None] = lambda kind, outcome, duration_ms: None
    counters: Counters = field(default_factory=Counters)
    _jobs: dict[tuple[str, str], Job] = field(default_factory=dict)
    _to_merge: dict[str, Collection] = field(default_factory=dict)
    _failing: dict[tuple[str, str], Failing] = field(default_factory=dict)  # by collection and kind

    async def run(self) -> None:
        """Work until cancelled. A failure of one collection is logged and does not stop the others.

        Flushes do not wait for merges, which may take long.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat(self.flush_due, self.settings.poll_ms))
            group.create_task(self._repeat(self.merge_due, self.settings.poll_ms))
            if (times := self.settings.erasure()) is not None:
                group.create_task(self._repeat(self.erase_due, times.pass_ms))

    async def run_once(self) -> int:
        """One look at the backlog; how many collections were worked on."""
        worked = await self.flush_due()
        await self.merge_due()
        return worked

    async def flush_due(self) -> int:
        """Flush what a look at the backlog shows; how many collections were tried.

        Those that failed lately are passed over and leave their places on the page to others.
        """
        settings = self.settings
        waiting = self._waiting(FLUSH)
        backlog = await self.catalog.backlog(
            limit=settings.page + len(waiting), min_records=settings.min_records, min_age_ms=settings.max_age_ms
        )
        chosen = [item.collection for item in backlog if self._takes(item) and item.collection.id not in waiting]
        await self._work(chosen, FLUSH, self._flush)
        return len(chosen)

    async def merge_due(self) -> None:
        """Merge what was flushed, or found overdue, since the last call, and what could not be merged then and is to be tried again."""
        waiting = self._waiting(MERGE)
        chosen = [collection for name, collection in self._to_merge.items() if name not in waiting]
        self._to_merge = {name: collection for name, collection in self._to_merge.items() if name in waiting}
        await self._work(chosen, MERGE, self._merge_all)

    async def erase_due(self) -> int:
        """Look at every collection of this compactor for rows that have been dead for too long; how many are to be merged for it."""
        found = 0
        erase_before_ms = self._erase_before_ms()
        if erase_before_ms is None:
            return found
        async for collection in overdue_collections(
            self._publisher(), self.mine, self.settings.garbage, erase_before_ms
        ):
            self._to_merge[collection.id] = collection
            found += 1
        return found

    def jobs(self) -> list[Job]:
        """Jobs under way."""
        return list(self._jobs.values())

    async def compact(self, collection_id: str, *, merge: bool) -> VersionInfo:
        """Flush what one collection's log holds now, and do the merges that are due.

        Raises `NotFound`, and `Unavailable` when another compactor is at it.
        """
        collection = await self.catalog.get_collection_by_id(collection_id)
        head = await self.log.read_index(collection.id, collection.epoch)
        while (flushed := await self._flush(collection, must=True)) is not None:
            if flushed.version.compacted_offset >= head.head_offset:
                break  # writes may go on for ever
        while merge and await self._merge(collection, must=True) is not None:
            pass
        return await self.catalog.get_version(collection_id)

    def _waiting(self, kind: str) -> set[str]:
        """Collections whose job failed and is not to be tried yet. What was due long ago and is not seen any more is forgotten."""
        now = self.clock.monotonic()
        longest_s = self.settings.longest_retry_ms / 1000
        self._failing = {job: known for job, known in self._failing.items() if now < known.retry_at + longest_s}
        return {name for (name, of), known in self._failing.items() if of == kind and now < known.retry_at}

    def _failed(self, collection: Collection, kind: str) -> None:
        self.counters.failures += 1
        known = self._failing.pop((collection.id, kind), None)
        failures = known.failures + 1 if known else 1
        pause_ms = min(self.settings.retry_ms * 2 ** min(failures - 1, 30), self.settings.longest_retry_ms)
        self._failing[collection.id, kind] = Failing(failures, self.clock.monotonic() + pause_ms / 1000)
        if len(self._failing) > _REMEMBERED:
            del self._failing[next(iter(self._failing))]  # the one that failed longest ago

    def _takes(self, item: Backlog) -> bool:
        return self.mine(item.collection.id) or item.age_ms > self.settings.orphan_age_ms

    async def _repeat(self, round_: Callable[[], Awaitable[object]], pause_ms: int) -> None:
        while True:
            try:
                await round_()
            except ShoalError as error:
                _log.warning("a round of compaction ended: %s", error)
            except Exception:
                _log.exception("a round of compaction ended")
            await self.clock.sleep(pause_ms / 1000)

    async def _work(
        self, collections: Iterable[Collection], kind: str, job: Callable[[Collection], Awaitable[object]]
    ) -> None:
        gate = asyncio.Semaphore(self.settings.parallel_jobs)

        async def work(collection: Collection) -> None:
            async with gate:
                await self._try(collection, kind, job)

        await asyncio.gather(*(work(collection) for collection in collections))

    async def _try(self, collection: Collection, kind: str, job: Callable[[Collection], Awaitable[object]]) -> None:
        began = self.clock.monotonic()
        with root_span(f"compactor {kind}", {"shoal.collection.id": collection.id}) as span:
            outcome = await self._outcome(collection, kind, job)
            span.set_attribute("shoal.outcome", outcome)
        self.on_job(kind, outcome, (self.clock.monotonic() - began) * 1_000)

    async def _outcome(self, collection: Collection, kind: str, job: Callable[[Collection], Awaitable[object]]) -> str:
        """Try a job: ``done``, ``lost`` (to another compactor), ``gone`` (the collection) or ``failed``."""
        try:
            await job(collection)
            self._failing.pop((collection.id, kind), None)
        except Conflict as error:
            self.counters.lost_races += 1
            _log.info("lost a race over collection %s: %s", collection.id, error)
            return "lost"
        except ShoalError as error:
            if isinstance(error, NotFound) and await self._is_gone(collection):
                return "gone"
            self._failed(collection, kind)
            _log.warning("cannot %s collection %s: %s", kind, collection.id, error)
            return "failed"
        except Exception:
            self._failed(collection, kind)
            _log.exception("cannot %s collection %s", kind, collection.id)
            return "failed"
        return "done"

    async def _is_gone(self, collection: Collection) -> bool:
        """Whether the collection was deleted meanwhile, or else one of its objects is lost."""
        try:
            await self.catalog.get_collection_by_id(collection.id)
        except NotFound:
            return True
        except ShoalError:
            return False
        return False

    async def _flush(self, collection: Collection, *, must: bool = False) -> FlushResult | None:
        async with self._leased(collection, FLUSH, must) as lease:
            if lease is None:
                return None
            result = await self._flush_what_fits(collection, lease)
        if result is None:
            return None
        self._to_merge[collection.id] = collection
        self.counters.flushes += 1
        self.counters.records += result.operations
        self.counters.quarantined += len(result.quarantined)
        if result.quarantined:
            _log.warning("collection %s: operations at offsets %s do not apply", collection.id, result.quarantined[:20])
        self.on_published(result.version)
        return result

    async def _flush_what_fits(self, collection: Collection, lease: Lease) -> FlushResult | None:
        """Flush; what turns out too large for memory or for one Arrow column is tried again with a shorter tail.

        The bounds of a flush are on its tail, but it also loads the old rows that the tail changes.
        """
        settings = self.settings.flush
        while True:
            try:
                return await flush(
                    collection,
                    lease,
                    log=self.log,
                    publisher=self._publisher(),
                    blocks=self.blocks,
                    settings=settings,
                    now_ms=self._now_ms(),
                )
            except (pa.ArrowInvalid, pa.ArrowCapacityError, MemoryError) as error:
                if settings.records <= 1:
                    raise
                settings = replace(
                    settings, records=settings.records // 4 or 1, size_bytes=settings.size_bytes // 4 or 1
                )
                _log.warning(
                    "a flush of collection %s is too large, trying %s records: %s",
                    collection.id,
                    settings.records,
                    error,
                )

    async def _merge_all(self, collection: Collection) -> None:
        try:
            while await self._merge(collection) is not None:
                pass
        except Exception as error:
            if not isinstance(error, NotFound):
                self._to_merge[collection.id] = collection  # an input changed under it, or something is away: try again
            raise

    async def _merge(self, collection: Collection, *, must: bool = False) -> MergeResult | None:
        async with self._leased(collection, MERGE, must) as lease:
            if lease is None:
                return None
            result = await merge_once(
                collection,
                lease,
                policy=self.settings.policy,
                publisher=self._publisher(),
                blocks=self.blocks,
                settings=self.settings.flush,
                now_ms=self._now_ms(),
                erase_before_ms=self._erase_before_ms(),
            )
        if result is not None:
            self.counters.merges += 1
            self.on_published(result.version)
        return result

    def _now_ms(self) -> int:
        return self.clock.time_ns() // 1_000_000

    def _erase_before_ms(self) -> int | None:
        times = self.settings.erasure()
        return None if times is None else self._now_ms() - times.rewrite_after_ms

    def _publisher(self) -> Publisher:
        return Publisher(self.catalog, self.objects, self.step)

    @asynccontextmanager
    async def _leased(self, collection: Collection, kind: str, must: bool) -> AsyncIterator[Lease | None]:
        """Claim, renew while the body runs, release. None (or `Unavailable` if ``must``) when somebody else holds the lease.

        The body is cancelled, and `Fenced` raised, when a newer epoch exists.
        """
        lease = await self.catalog.claim(collection.id, kind, self.holder, ttl_ms=self.settings.lease_ms)
        if lease is None:
            if must:
                raise Unavailable(f"another compactor holds the {kind} lease of {collection.id}; try again")
            yield None
            return
        self._jobs[(collection.id, kind)] = Job(collection.id, kind)
        try:
            async with renewing(self.catalog, lease, self.clock, self.settings.lease_ms):
                yield lease
        finally:
            self._jobs.pop((collection.id, kind), None)  # a job whose lease ran out may have had a successor here
            await release(self.catalog, lease)
