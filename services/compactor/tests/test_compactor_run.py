"""The compactor as a process: whose work it takes, its leases, and what it makes of failures."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import pyarrow as pa
import pytest
from opentelemetry import trace

from shoal_compactor.compactor import Compactor
from shoal_compactor.flush import FlushResult, FlushSettings, flush
from shoal_core.contracts import AppendRequest, Collection, NewCollection, VersionInfo
from shoal_core.errors import Fenced, NotFound, Unavailable
from shoal_runtime.logs import add_trace
from shoal_testing.compaction import LEASE_MS, CompactionWorld
from shoal_testing.contract_stores import upserts
from shoal_testing.fake_catalog import DEFAULT_DATABASE, DEFAULT_TENANT
from shoal_testing.spans import RecordedSpans


@pytest.fixture
async def world() -> CompactionWorld:
    return await CompactionWorld.create()


class Gate:
    """A step hook that stops the job at one step until it is opened."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self, name: str) -> None:
        if name == self.name:
            self.reached.set()
            await self.opened.wait()


async def _another(world: CompactionWorld, name: str) -> Collection:
    new = NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, name)
    made, _ = await world.catalog.create_collection(new, get_or_create=False)
    await world.log.append(AppendRequest(made.id, made.epoch, made.tenant, upserts(["a", "b"])))
    return made


async def _compacted(world: CompactionWorld, collection: Collection) -> int:
    return (await world.catalog.get_version(collection.id)).compacted_offset


def _free(world: CompactionWorld, kind: str = "flush") -> bool:
    """Whether somebody could claim; no claim is made."""
    held = world.catalog._leases.get((world.collection.id, kind))
    return held is None or held.expires_ms <= world.catalog.now_ms()


# --- rounds ----------------------------------------------------------------------------------------------------------


async def test_a_round_flushes_and_merges_what_is_due(world: CompactionWorld) -> None:
    compactor = world.compactor()
    assert await compactor.run_once() == 0
    published: list[VersionInfo] = []
    compactor.on_published = published.append
    for text in "abcd":
        await world.upsert(text)
        assert await compactor.run_once() == 1
    manifest = await world.check()
    assert [segment.tier for segment in manifest.shards[0].segments] == [2]
    counters = compactor.counters
    assert (counters.flushes, counters.merges, counters.records, counters.failures) == (4, 3, 4, 0)
    assert [info.version for info in published] == list(range(1, 8))
    assert compactor.jobs() == []
    assert _free(world)
    assert _free(world, "merge")


async def test_a_flush_waits_for_records_or_age(world: CompactionWorld) -> None:
    compactor = world.compactor(min_records=3, max_age_ms=2000)
    await world.upsert("a", "b")
    assert await compactor.run_once() == 0
    await world.clock.advance(2)
    assert await compactor.run_once() == 1
    await world.upsert("c", "d", "e")
    assert await compactor.run_once() == 1
    await world.check()


async def test_it_takes_its_own_and_after_a_while_what_others_leave(world: CompactionWorld) -> None:
    other = await _another(world, "other")
    await world.upsert("a")
    compactor = world.compactor(mine=lambda collection_id: collection_id == world.collection.id, orphan_age_ms=5000)
    assert await compactor.run_once() == 1
    assert [await _compacted(world, item) for item in (world.collection, other)] == [1, 0]
    await world.clock.advance(5)
    assert await compactor.run_once() == 0
    await world.clock.advance(0.001)
    assert await compactor.run_once() == 1
    assert await _compacted(world, other) == 2


async def test_a_failure_of_one_collection_does_not_stop_the_others(world: CompactionWorld) -> None:
    others = [await _another(world, name) for name in ("other", "third")]
    await world.upsert("a")

    def broken(key: str) -> None:
        if world.collection.id in key:
            raise OSError("no such bucket")

    world.objects.before_put = broken
    compactor = world.compactor()
    assert await compactor.run_once() == 3
    assert [await _compacted(world, item) for item in (world.collection, *others)] == [0, 2, 2]
    assert (compactor.counters.flushes, compactor.counters.failures) == (2, 1)
    assert _free(world)
    world.objects.before_put = None
    assert await compactor.run_once() == 0, "it has its time to recover"
    await world.clock.advance(compactor.settings.retry_ms / 1000)
    assert await compactor.run_once() == 1
    await world.check()


async def test_a_lost_object_is_a_failure_and_a_lost_collection_is_none(world: CompactionWorld) -> None:
    await world.upsert("a")
    await world.flush()
    await world.upsert("a", value=2.0)
    block = (await world.manifest()).shards[0].segments[0].blocks["ids"][0]
    await world.objects.delete([block.key])
    compactor = world.compactor()
    assert await compactor.run_once() == 1
    assert compactor.counters.failures == 1

    async def drop(name: str) -> None:
        if name == "read":
            with contextlib.suppress(NotFound):
                await world.catalog.delete_collection(world.collection.id)

    dropping = world.compactor(step=drop)
    assert await dropping.run_once() == 1
    assert (dropping.counters.failures, dropping.counters.flushes) == (0, 0)


async def test_an_unreachable_catalog_ends_a_round_but_not_the_run(world: CompactionWorld) -> None:
    await world.upsert("a")
    failures = 2

    def unavailable(name: str) -> None:
        nonlocal failures
        if name == "backlog" and failures:
            failures -= 1
            raise Unavailable("down")

    world.catalog.before = unavailable
    compactor = world.compactor(poll_ms=100)
    running = asyncio.ensure_future(compactor.run())
    while compactor.counters.flushes == 0:
        await world.clock.advance(0.1)
    assert failures == 0
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await world.check()


async def test_a_long_merge_does_not_hold_up_flushes(world: CompactionWorld) -> None:
    gate = Gate("merge-built")
    compactor = world.compactor(step=gate, poll_ms=100)
    await world.upsert("a")
    await world.flush()
    running = asyncio.ensure_future(compactor.run())
    await world.upsert("b")
    while not gate.reached.is_set():
        await world.clock.advance(0.1)
    end = await world.upsert("c")
    await world.delete("a", "b")
    while world.version.compacted_offset < end + 2:
        await world.clock.advance(0.1)
    assert [job.kind for job in compactor.jobs()] == ["merge"]
    gate.opened.set()
    while compactor.jobs() or compactor.counters.lost_races == 0:  # its inputs are all dead by now
        await world.clock.advance(0.1)
    await world.check()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_merge_that_lost_its_inputs_is_tried_again(world: CompactionWorld) -> None:
    await world.upsert("a")
    await world.flush()
    await world.upsert("b", "c")
    done = False

    async def interfere(name: str) -> None:
        nonlocal done
        if name == "merge-built" and not done:
            done = True
            await world.delete("a")
            await world.flush()
            await world.upsert("d")
            await world.flush()

    compactor = world.compactor(step=interfere)
    await compactor.run_once()
    assert (compactor.counters.lost_races, compactor.counters.merges) == (1, 0)
    await compactor.merge_due()
    assert (compactor.counters.lost_races, compactor.counters.merges) == (1, 1)
    await world.check()


# --- compact now -----------------------------------------------------------------------------------------------------


async def test_compact_flushes_all_and_merges_if_asked(world: CompactionWorld) -> None:
    world.settings = type(world.settings)(records=1, threads=1)
    compactor = world.compactor()
    for text in "abc":
        await world.upsert(text)
    info = await compactor.compact(world.collection.id, merge=False)
    assert (info.version, info.compacted_offset) == (3, 3)
    assert (await compactor.compact(world.collection.id, merge=True)).version == 4
    assert len((await world.check()).shards[0].segments) == 1
    with pytest.raises(NotFound):
        await compactor.compact("00000000-0000-0000-0000-000000000000", merge=True)


async def test_a_flush_that_is_too_large_takes_a_shorter_tail(
    world: CompactionWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tail may be small and the rows that it changes large."""
    tried: list[int] = []

    async def narrow(*given: Any, settings: FlushSettings, **named: Any) -> FlushResult | None:
        tried.append(settings.records)
        if settings.records > 4:
            raise pa.ArrowInvalid("offset overflow while concatenating arrays")
        return await flush(*given, settings=settings, **named)

    monkeypatch.setattr("shoal_compactor.compactor.flush", narrow)
    for number in range(20):
        await world.upsert("a", value=float(number))
    compactor = world.compactor()
    await compactor.compact(world.collection.id, merge=False)
    assert tried[:2] == [compactor.settings.flush.records, compactor.settings.flush.records // 4]
    assert min(tried) <= 4
    assert await _compacted(world, world.collection) == 20
    await world.check()


async def test_compact_ends_though_writes_go_on(world: CompactionWorld) -> None:
    async def write(name: str) -> None:
        if name == "published":
            await world.upsert("more")

    await world.upsert("a")
    info = await world.compactor(step=write).compact(world.collection.id, merge=False)
    assert info.compacted_offset == 1


async def test_compact_is_refused_while_another_is_at_it(world: CompactionWorld) -> None:
    await world.upsert("a")
    await world.take_over("flush")
    with pytest.raises(Unavailable, match="flush lease"):
        await world.compactor().compact(world.collection.id, merge=False)
    assert await world.compactor().run_once() == 1  # which is no failure


# --- leases ----------------------------------------------------------------------------------------------------------


async def test_of_two_compactors_one_works_and_nobody_fails(world: CompactionWorld) -> None:
    for text in "abc":
        await world.upsert(text)
    pair = [world.compactor("c1"), world.compactor("c2")]
    assert await asyncio.gather(*(compactor.run_once() for compactor in pair)) == [1, 1]
    assert sorted(compactor.counters.flushes for compactor in pair) == [0, 1]
    assert [compactor.counters.failures + compactor.counters.lost_races for compactor in pair] == [0, 0]
    assert (await world.check()).version == 1


async def test_a_lease_is_renewed_while_the_job_runs(world: CompactionWorld) -> None:
    gate = Gate("folded")
    compactor = world.compactor(step=gate)
    await world.upsert("a")
    running = asyncio.ensure_future(compactor.run_once())
    await gate.reached.wait()
    assert [(job.collection_id, job.kind) for job in compactor.jobs()] == [(world.collection.id, "flush")]
    for _ in range(20):
        await world.clock.advance(LEASE_MS / 2000)
        assert not _free(world)
    gate.opened.set()
    assert await running == 1
    assert compactor.counters.flushes == 1
    assert _free(world)
    assert world.clock.next_wake_at() is None  # nobody renews any more


async def _depose(world: CompactionWorld) -> None:
    """Renewals fail until the lease has run out and somebody else has it; then they work again."""

    def unavailable(name: str) -> None:
        if name == "renew":
            raise Unavailable("not now")

    world.catalog.before = unavailable
    await world.clock.advance(LEASE_MS / 1000)
    world.catalog.before = lambda name: None
    assert await world.catalog.claim(world.collection.id, "flush", "rival", ttl_ms=10 * LEASE_MS) is not None


async def _stalled(world: CompactionWorld, start: str) -> tuple[Compactor, Gate, asyncio.Future[object]]:
    gate = Gate("folded")
    compactor = world.compactor(step=gate)
    await world.upsert("a")
    work = compactor.run_once() if start == "run_once" else compactor.compact(world.collection.id, merge=False)
    running: asyncio.Future[object] = asyncio.ensure_future(work)
    await gate.reached.wait()
    return compactor, gate, running


async def test_a_deposed_job_is_ended_and_the_compactor_goes_on(world: CompactionWorld) -> None:
    compactor, _, running = await _stalled(world, "run_once")
    await _depose(world)
    await world.clock.advance(LEASE_MS / 1000)
    assert await running == 1
    assert (compactor.counters.lost_races, compactor.counters.failures, compactor.counters.flushes) == (1, 0, 0)
    assert compactor.jobs() == []
    assert not _free(world)  # the rival's lease was left alone
    assert world.version.version == 0
    await world.clock.advance(20 * LEASE_MS / 1000)
    compactor.step = world.publisher().step
    assert await compactor.run_once() == 1
    assert compactor.counters.flushes == 1
    await world.check()


async def test_a_deposed_job_raises_fenced_and_its_task_is_not_cancelled(world: CompactionWorld) -> None:
    compactor, gate, _ = await _stalled(world, "run_once")
    gate.opened.set()
    while compactor.jobs():
        await asyncio.sleep(0)
    await world.upsert("b")
    second = Gate("folded")
    compactor.step = second

    async def caller() -> str:
        with pytest.raises(Fenced):
            await compactor.compact(world.collection.id, merge=False)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)  # would be cancelled here if a request were left
        return "alive"

    running = asyncio.ensure_future(caller())
    await second.reached.wait()
    await _depose(world)
    await world.clock.advance(LEASE_MS / 1000)
    assert await running == "alive"


@pytest.mark.parametrize("start", ["run_once", "compact"])
async def test_cancellation_from_outside_still_cancels(world: CompactionWorld, start: str) -> None:
    compactor, _, running = await _stalled(world, start)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert compactor.jobs() == []
    assert _free(world)
    assert world.version.version == 0


@pytest.mark.parametrize("first", ["fence", "cancel"])
async def test_cancellation_from_outside_wins_over_a_fence(world: CompactionWorld, first: str) -> None:
    compactor, _, running = await _stalled(world, "compact")

    def cancel(name: str) -> None:
        if name == "renew":
            running.cancel()

    await _depose(world)
    if first == "cancel":
        world.catalog.before = cancel  # then the renewal is fenced, and cancels once more
    else:

        async def both() -> None:
            while not running.cancelling():  # type: ignore[attr-defined]
                await asyncio.sleep(0)
            running.cancel()

        watching = asyncio.ensure_future(both())
    await world.clock.advance(LEASE_MS / 1000)
    with pytest.raises(asyncio.CancelledError):
        await running
    if first == "fence":
        await watching
    assert compactor.jobs() == []


async def test_a_release_that_fails_is_left_to_expiry(world: CompactionWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unavailable(lease: object) -> None:
        raise Unavailable("not now")

    monkeypatch.setattr(world.catalog, "release", unavailable)
    compactor = world.compactor()
    await world.upsert("a")
    await compactor.run_once()
    assert (compactor.counters.flushes, compactor.counters.failures) == (1, 0)
    assert not _free(world)
    await world.clock.advance(LEASE_MS / 1000)
    assert _free(world)


# --- telemetry -------------------------------------------------------------------------------------------------------


async def test_every_job_is_told_and_is_a_trace_of_its_own(world: CompactionWorld, spans: RecordedSpans) -> None:
    told: list[tuple[str, str]] = []
    compactor = world.compactor()
    compactor.on_job = lambda kind, outcome, duration_ms: told.append((kind, outcome))
    await world.upsert("a")
    await compactor.run_once()
    await world.upsert("b")

    def lost(key: str) -> None:
        raise Unavailable("object storage is away")

    world.objects.before_put = lost
    await compactor.flush_due()
    assert told == [("flush", "done"), ("merge", "done"), ("flush", "failed")]
    flushes = spans.named("compactor flush")
    assert all(span.parent is None for span in flushes)
    assert [(span.attributes or {})["shoal.outcome"] for span in flushes] == ["done", "failed"]


async def test_what_a_job_logs_names_its_trace(
    world: CompactionWorld, spans: RecordedSpans, caplog: pytest.LogCaptureFixture
) -> None:
    def lost(key: str) -> None:
        raise Unavailable("object storage is away")

    class Names(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            return add_trace(record)

    caplog.handler.addFilter(Names())
    await world.upsert("a")
    world.objects.before_put = lost
    await world.compactor().flush_due()
    (record,) = [record for record in caplog.records if "cannot flush" in record.message]
    context = spans.one("compactor flush").get_span_context()
    assert context is not None
    assert vars(record)["trace_id"] == trace.format_trace_id(context.trace_id)
