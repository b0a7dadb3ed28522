"""A shard and its views: pinned reads beside new versions, loads that fail, trimmed logs, cancelled readers."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from shoal_compactor.compactor import CompactorSettings
from shoal_compactor.flush import FlushSettings
from shoal_compactor.policy import MergePolicy
from shoal_core.contracts import CollectionRef, Include, Tail, TailRequest, Target
from shoal_core.errors import Corrupt, InvalidArgument, NotFound, OffsetExpired, SnapshotGone, StaleEpoch, Unavailable
from shoal_core.schema import Analyzer
from shoal_query.execute import Selection, Snapshot, hydrate, select_rows
from shoal_query.services import Services
from shoal_query.shard import Shard, View
from shoal_query.tail import Overlay
from shoal_testing.direct import DirectSystem, InlineExecutor, no_thread_use
from shoal_testing.oracle import OracleCollection
from shoal_testing.schedules import Gate, LaterExecutor, hooked, run_quietly, settle, until
from shoal_testing.strategies import Op, from_row_table, to_operation_batch

DIMENSION = 2
EVERYTHING = Include(documents=True, metadatas=True, embeddings=True, uris=True)


def put(name: str, value: float = 0.0, text: str | None = None) -> Op:
    return ("upsert", name, (value, 1.0), text, None, None)


class Bench:
    """One collection of one shard, the oracle's state at each batch end, and hooks on what the shard calls."""

    def __init__(self) -> None:
        settings = CompactorSettings(flush=FlushSettings(graph_rows=10**9, threads=1), policy=MergePolicy(fanout=2))
        self.system = DirectSystem(settings=settings)
        self.oracle = OracleCollection("l2", DIMENSION)
        self.states: dict[int, list[dict[str, Any]]] = {0: []}
        self.before, self.after = Gate(), Gate()
        self.ref: CollectionRef
        self.target: Target

    async def start(self) -> Bench:
        self.ref = await self.system.create()
        self.target = Target(self.ref.id, 1, "l2", 0, 1)
        return self

    def shard(self, executor: Executor | None = None) -> Shard:
        system = self.system
        services = Services(
            hooked(system.catalog, before=self.before, after=self.after),
            hooked(system.log, before=self.before, after=self.after),
            hooked(system.objects, before=self.before, after=self.after),
            system.blocks,
            system.clock,
            executor or InlineExecutor(),
            no_thread_use,
        )
        return Shard(self.target, services)

    async def write(self, *ops: Op) -> int:
        await self.system.database.write(self.ref, to_operation_batch(ops, DIMENSION))
        for op, record_id, embedding, document, uri, metadata in ops:
            self.oracle.apply(op, [record_id], [embedding], [document], [uri], [metadata])
        self.states[self.oracle.head_offset] = [dict(record) for record in self.oracle.get()]
        return self.oracle.head_offset

    async def compact(self, *, trim: bool = False) -> int:
        await self.system.compact(self.ref, merge=True)
        info = await self.system.catalog.get_version(self.ref.id)
        if trim:
            self.system.log.trim(self.ref.id, info.compacted_offset)
        return info.version

    async def strong(self, shard: Shard) -> Snapshot:
        offset = await shard.newest_offset(1)
        return await (await shard.loaded()).at(offset, shard.dimension, shard.services)

    def check(self, snapshot: Snapshot) -> int:
        """The snapshot's records are those of its offset, which is returned."""
        found = select_rows(snapshot, Selection(), None, 0)
        rows = from_row_table(hydrate(snapshot, found, EVERYTHING, with_origin=False))
        expected = [{**record, "updated_offset": None} for record in self.states[snapshot.offset]]
        assert [{**row, "updated_offset": None} for row in rows] == expected
        return snapshot.offset


def play(scenario: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        await scenario(await Bench().start())

    run_quietly(main())


# --- snapshots and views


def test_a_view_serves_every_offset_that_it_reaches_and_no_other() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.write(put("a"), put("b"))
        await bench.compact()
        shard = bench.shard()
        for n in range(6):
            await bench.write(put(f"c{n}"), put("a", n), ("delete", "b", None, None, None, None))
        await shard.newest_offset(1)
        view = await shard.loaded()
        for offset in (20, 5, 2, 14, 8, 17, 11, 20):  # not in the order of folding
            assert bench.check(await view.at(offset, DIMENSION, shard.services)) == offset
        for gone in (0, 1, 21, 10**6):
            with pytest.raises(SnapshotGone):
                await view.at(gone, DIMENSION, shard.services)
        for within in (3, 4, 19):
            with pytest.raises(InvalidArgument, match="batch"):
                await view.at(within, DIMENSION, shard.services)

    play(scenario)


def test_a_pinned_read_on_an_old_view_while_versions_are_published_and_loaded() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.write(put("a", text="first"), put("b"))
        shard = bench.shard()
        pinned: list[tuple[View, int]] = []
        for n in range(5):
            offset = await bench.write(put("a", n), put(f"n{n}"), ("delete", f"n{n - 2}", None, None, None, None))
            assert await shard.newest_offset(1) == offset
            pinned.append((await shard.loaded(), offset))  # reached, not folded
            await bench.write(put(f"m{n}"))
            version = await bench.compact()
            await shard.newest_offset(1)
            await until(lambda version=version: shard.view is not None and shard.view.version.version == version)  # type: ignore[misc]
            for view, at in pinned:
                assert bench.check(await view._apart(at, DIMENSION, shard.services)) == at
        for view, at in pinned:
            assert bench.check(await view.at(at, DIMENSION, shard.services)) == at
        with pytest.raises(SnapshotGone):
            await (await shard.loaded()).at(pinned[0][1], DIMENSION, shard.services)
        assert bench.check(await bench.strong(shard)) == bench.oracle.head_offset

    play(scenario)


def test_raw_entries_go_when_no_view_needs_them() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.write(put("a"))
        shard = bench.shard()
        await bench.strong(shard)
        held: View | None = await shard.loaded()
        assert held is not None
        raw = held.raw
        offsets = []
        for n in range(3):
            offsets.append(await bench.write(put("b", n)))
            await bench.strong(shard)
            await bench.compact()
            await shard.newest_offset(1)
            await settle()
        assert (await shard.loaded()).raw is raw, "the tail is shared, not fetched again"
        assert raw.base == 0, "the first view needs all of it"
        held = None
        gc.collect()
        await bench.write(put("c"))
        await bench.compact()
        await shard.newest_offset(1)
        await settle()
        assert raw.base >= offsets[-1]

    play(scenario)


def test_reads_go_on_while_a_version_loads() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.write(put("a"))
        shard = bench.shard()
        await bench.strong(shard)
        await bench.compact()
        bench.before.closed = {"get_version"}
        for n in range(4):
            offset = await bench.write(put("b", n))
            assert bench.check(await bench.strong(shard)) == offset
            assert (await shard.loaded()).version.version == 0
        assert bench.before.held == ["get_version"], "one load at a time"
        bench.before.open()
        await until(lambda: shard.view is not None and shard.view.version.version == 1)
        assert bench.check(await bench.strong(shard)) == offset

    play(scenario)


def test_a_version_taken_over_during_a_catch_up_has_the_whole_tail() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.write(put("a"))
        shard = bench.shard()
        await bench.strong(shard)
        await bench.write(put("b"))
        await bench.write(put("c"))
        await bench.compact()
        last = await bench.write(put("d"))
        bench.after.closed = {"read_tail"}
        ask = asyncio.create_task(shard.newest_offset(1))
        await bench.after.until_held()
        await shard._load_shared()  # the new version is past the raw tail: it begins one of its own
        bench.after.open()
        assert await ask == last
        view = await shard.loaded()
        assert view.version.compacted_offset == 3
        assert bench.check(await view.at(last, DIMENSION, shard.services)) == last

    play(scenario)


# --- the read index


def test_a_stale_epoch_is_the_askers_own_problem() -> None:
    async def scenario(bench: Bench) -> None:
        offset = await bench.write(put("a"))
        shard = bench.shard()
        answers = await asyncio.gather(*(shard.newest_offset(epoch) for epoch in (1, 2, 1)), return_exceptions=True)
        assert answers[0] == answers[2] == offset
        assert isinstance(answers[1], StaleEpoch)
        assert bench.before.calls.count("read_tail") == 1
        await bench.system.catalog.modify_collection(bench.ref.id, name="other")
        with pytest.raises(StaleEpoch):
            await shard.newest_offset(1)
        assert await shard.newest_offset(2) == offset

    play(scenario)


def test_a_long_tail_comes_in_pages() -> None:
    async def scenario(bench: Bench) -> None:
        for n in range(40):
            await bench.write(put(f"id-{n}", text="x" * 2000))
        read_tail = bench.system.log.read_tail

        async def by_pages(request: Any) -> Any:
            object.__setattr__(request, "max_size_bytes", 10_000)
            return await read_tail(request)

        bench.system.log.read_tail = by_pages  # type: ignore[method-assign]
        shard = bench.shard()
        assert bench.check(await bench.strong(shard)) == 40
        assert bench.before.calls.count("read_tail") > 5
        other = bench.shard()
        await other.reach(30)
        assert bench.check(await (await other.loaded()).at(30, DIMENSION, other.services)) == 30

    play(scenario)


def test_an_answer_that_was_overtaken_does_not_take_the_dimension_away() -> None:
    async def scenario(bench: Bench) -> None:
        shard = bench.shard()
        await shard.loaded()
        bench.after.closed = {"read_tail"}
        ask = asyncio.create_task(shard.newest_offset(1))  # answered before the first write, delivered after it
        await bench.after.until_held()
        bench.after.closed = set()
        offset = await bench.write(put("a"))
        await shard.reach(offset)
        bench.after.open()
        assert await ask == 0
        assert shard.dimension == DIMENSION
        assert bench.check(await (await shard.loaded()).at(offset, shard.dimension, shard.services)) == offset

    play(scenario)


# --- a log that was trimmed


@pytest.mark.parametrize("keep_tail", [False, True])
def test_an_idle_shard_comes_back_after_the_log_was_trimmed(keep_tail: bool) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.write(put("a"), put("b"))
        shard = bench.shard()
        await bench.strong(shard)
        for n in range(3):
            await bench.write(put("a", n), put(f"c{n}"))
            await bench.compact(trim=True)
        if keep_tail:
            await bench.write(put("d"))
        assert bench.check(await bench.strong(shard)) == bench.oracle.head_offset
        assert (await shard.loaded()).version.version >= 3

    play(scenario)


def test_a_pinned_read_after_the_log_was_trimmed() -> None:
    async def scenario(bench: Bench) -> None:
        old = await bench.write(put("a"))
        shard = bench.shard()
        await bench.strong(shard)
        between = await bench.write(put("b"))
        await bench.write(put("c"))
        await bench.compact(trim=True)
        last = await bench.write(put("d"))
        await shard.reach(between)
        view = await shard.loaded()
        for gone in (old, between):
            with pytest.raises(SnapshotGone):
                await view.at(gone, DIMENSION, shard.services)
        await shard.reach(last)
        assert bench.check(await view.at(last, DIMENSION, shard.services)) == last

    play(scenario)


def test_the_log_is_trimmed_once_more_while_the_newer_version_loads() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.write(put("a"))
        shard = bench.shard()
        await bench.strong(shard)
        await bench.write(put("b"))
        await bench.compact(trim=True)
        bench.after.closed = {"get_version"}
        read = asyncio.create_task(bench.strong(shard))
        await bench.after.until_held()  # it will load a version that is about to be out of date
        await bench.write(put("c"))
        await bench.compact(trim=True)
        last = await bench.write(put("d"))
        bench.after.open()
        assert bench.check(await read) == last

    play(scenario)


def test_a_log_that_lost_its_tail_is_an_error_and_not_a_loop() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.write(put("a"))
        shard = bench.shard()
        await shard.loaded()
        bench.system.catalog.state(bench.ref.id).trim_floor = 1
        with pytest.raises(OffsetExpired):
            await shard.newest_offset(1)
        with pytest.raises(OffsetExpired):
            await shard.reach(1)

    play(scenario)


# --- loading


def test_first_reads_share_one_load() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.write(put("a"))
        await bench.compact()
        shard = bench.shard()
        bench.before.closed = {"get_version"}
        loads = [asyncio.create_task(shard.loaded()) for _ in range(5)]
        await bench.before.until_held()
        loads.append(asyncio.create_task(shard.loaded()))
        await settle()
        bench.before.open()
        views = await asyncio.gather(*loads)
        assert len(set(map(id, views))) == 1
        assert bench.before.calls.count("get_version") == 1
        assert bench.before.calls.count("get") == 1

    play(scenario)


def test_a_load_that_fails_fails_all_who_wait_and_is_tried_again() -> None:
    async def scenario(bench: Bench) -> None:
        offset = await bench.write(put("a"))
        await bench.compact()
        bench.system.objects.before_get = _unavailable
        shard = bench.shard()
        results = await asyncio.gather(*(shard.newest_offset(1) for _ in range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [Unavailable] * 3
        bench.system.objects.before_get = None
        assert bench.check(await bench.strong(shard)) == offset

    play(scenario)


@pytest.mark.parametrize("error", [Unavailable("no"), RuntimeError("a defect")])
def test_a_newer_version_that_cannot_be_loaded_does_not_stop_reads(error: Exception) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.write(put("a"))
        shard = bench.shard()
        await bench.strong(shard)
        await bench.compact()

        def fail(key: str) -> None:
            raise error

        bench.system.objects.before_get = fail
        for n in range(3):
            offset = await bench.write(put("b", n))
            assert bench.check(await bench.strong(shard)) == offset
            await settle()
        assert bench.before.calls.count("get") >= 2, "it tries again"
        assert (await shard.loaded()).version.version == 0
        bench.system.objects.before_get = None
        await bench.strong(shard)
        await until(lambda: shard.view is not None and shard.view.version.version == 1)

    play(scenario)


def test_the_age_of_a_version_counts_from_when_a_newer_one_was_heard_of() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.write(put("a"))
        shard = bench.shard()
        assert (shard.version_age_ms, shard.tail_records, shard.tail_bytes) == (0, 0, 0)
        await bench.strong(shard)
        assert (shard.version_age_ms, shard.tail_records) == (0, 1)
        assert shard.tail_bytes > 0
        await bench.compact()
        assert shard.version_age_ms == 0  # nobody told it yet
        bench.before.closed = {"get_version"}
        await bench.write(put("b"))
        await bench.strong(shard)
        await bench.system.clock.advance(3)
        await bench.strong(shard)
        assert (shard.version_age_ms, shard.tail_records) == (3_000, 2)
        bench.before.open()
        await until(lambda: shard.version_age_ms == 0)
        assert shard.tail_records == 1

    play(scenario)


def _unavailable(key: str) -> None:
    raise Unavailable("object storage is away")


def test_a_collection_that_is_gone_is_not_found_and_a_lost_object_is_corrupt() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.write(put("a"))
        await bench.compact()
        info = await bench.system.catalog.get_version(bench.ref.id)
        await bench.system.objects.delete([info.manifest_key])
        with pytest.raises(Corrupt, match="lacks an object"):
            await bench.shard().loaded()
        await bench.system.catalog.delete_collection(bench.ref.id)
        with pytest.raises(NotFound):
            await bench.shard().loaded()

    play(scenario)


def test_a_version_swept_away_while_it_loads_makes_room_for_the_next() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.write(put("a"))
        await bench.compact()
        shard = bench.shard()
        bench.after.closed = {"get_version"}
        load = asyncio.create_task(shard.loaded())
        await bench.after.until_held()
        info = await bench.system.catalog.get_version(bench.ref.id)
        last = await bench.write(put("b"))
        await bench.compact()
        await bench.system.objects.delete([info.manifest_key])
        bench.after.open()
        assert (await load).version.version >= 2
        assert bench.check(await bench.strong(shard)) == last

    play(scenario)


# --- cancelled readers


def test_a_reader_that_is_cancelled_does_not_cancel_the_load_of_others() -> None:
    async def scenario(bench: Bench) -> None:
        offset = await bench.write(put("a"))
        await bench.compact()
        shard = bench.shard()
        bench.before.closed = {"get_version"}
        first, second = asyncio.create_task(bench.strong(shard)), asyncio.create_task(bench.strong(shard))
        await bench.before.until_held()
        first.cancel()
        await settle()
        bench.before.open()
        assert bench.check(await second) == offset
        assert first.cancelled()

    play(scenario)


def test_closing_a_shard_that_loads_tells_its_readers_to_try_again() -> None:
    async def scenario(bench: Bench) -> None:
        shard = bench.shard()
        bench.before.closed = {"get_version"}
        reads = [asyncio.create_task(shard.loaded()) for _ in range(2)]
        await bench.before.until_held()
        await shard.close()
        for read in reads:
            with pytest.raises(Unavailable):
                await read

    play(scenario)


def test_folds_are_one_at_a_time_though_their_readers_are_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    advance = Overlay.advance

    def noted(self: Overlay, entries: Any, to_offset: int, dimension: int | None) -> None:
        started.append(to_offset)
        advance(self, entries, to_offset, dimension)

    monkeypatch.setattr(Overlay, "advance", noted)

    async def scenario(bench: Bench) -> None:
        await bench.write(put("a"))
        # folded twice, the update of the missing record would find one
        offset = await bench.write(("update", "b", (9.0, 9.0), None, None, None), put("b"))
        shard = bench.shard(LaterExecutor(choices=(50,)))
        await shard.newest_offset(1)
        view = await shard.loaded()
        first = asyncio.create_task(view.at(offset, DIMENSION, shard.services))
        await settle(20)
        first.cancel()
        await settle(3)
        second = await view.at(offset, DIMENSION, shard.services)
        assert bench.check(second) == offset
        assert started == [offset], "the fold of the cancelled reader went on and was enough"
        assert np.count_nonzero(second.frozen.visible(offset)) == 2

    play(scenario)


# --- earlier snapshots


def test_earlier_snapshots_come_from_older_versions_of_which_a_few_are_kept() -> None:
    async def scenario(bench: Bench) -> None:
        offsets = []
        for n in range(5):
            offsets.append(await bench.write(put(f"id-{n}", n), put("a", n)))
            offsets.append(await bench.write(put("b", n), ("delete", f"id-{n - 2}", None, None, None, None)))
            await bench.compact()
        shard = bench.shard()
        await bench.strong(shard)
        for offset in (*reversed(offsets), *offsets, *offsets[::3]):
            assert bench.check(await shard.as_of(offset, 1)) == offset
            if offset - 1 not in offsets:
                assert bench.check(await shard.as_of(offset - 1, 1)) == max(
                    [0, *(end for end in offsets if end < offset)]
                )
            assert len(shard._past) <= 2
        with pytest.raises(InvalidArgument, match="beyond the log's end"):
            await shard.as_of(offsets[-1] + 1, 1)

    play(scenario)


def test_an_earlier_snapshot_that_is_gone_has_expired() -> None:
    async def scenario(bench: Bench) -> None:
        old = await bench.write(put("a"))
        await bench.write(put("b"))
        await bench.compact(trim=True)
        shard = bench.shard()
        with pytest.raises(OffsetExpired):
            await shard.as_of(old, 1)
        assert not shard._past
        assert bench.check(await bench.strong(shard)) == 2

    play(scenario)


def test_an_earlier_read_that_is_cancelled_leaves_the_next_one_alone() -> None:
    async def scenario(bench: Bench) -> None:
        old = await bench.write(put("a"))
        await bench.write(put("b"))
        await bench.compact()
        shard = bench.shard()
        await bench.strong(shard)
        bench.before.closed = {"read_tail"}
        reads = [asyncio.create_task(shard.as_of(old, 1)) for _ in range(2)]
        await bench.before.until_held()
        reads[0].cancel()
        await settle()
        bench.before.open()
        assert bench.check(await reads[1]) == old
        assert reads[0].cancelled()

    play(scenario)


# --- memory


def test_segments_that_views_share_count_once() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.write(*(put(f"id-{n}", n, "text " * 50) for n in range(200)))
        await bench.system.compact(bench.ref)
        old = await bench.write(put("a"))
        await bench.write(put("b"))
        await bench.system.compact(bench.ref)
        shard = bench.shard()
        await bench.strong(shard)
        before = shard.size_bytes
        assert bench.check(await shard.as_of(old, 1)) == old
        assert 0 < shard.size_bytes - before < before // 4

    play(scenario)


def test_what_is_made_of_the_tail_counts() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.write(*(put(f"id-{n}", n, f"words of number {n}") for n in range(100)))
        shard = bench.shard()
        await shard.newest_offset(1)
        raw = shard.size_bytes
        snapshot = await bench.strong(shard)
        folded = shard.size_bytes
        assert folded > raw + 100 * 100
        index = snapshot.frozen.parts[0].term_index(Analyzer())
        assert shard.size_bytes == folded + index.size_bytes

    play(scenario)


def test_the_tail_goes_with_the_view_that_was_replaced() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.write(put("a", text="x" * 10_000))
        shard = bench.shard()
        await bench.strong(shard)
        await bench.compact()
        await shard.newest_offset(1)
        await until(lambda: shard.view is not None and shard.view.version.version == 1)
        assert (await shard.loaded()).raw.size_bytes == 0

    play(scenario)


# --- a log or a catalog that misbehaves


def test_a_log_that_ends_below_its_head_is_an_error_and_not_a_loop() -> None:
    async def scenario(bench: Bench) -> None:
        shard = bench.shard()
        await bench.write(put("a"))
        read_tail = bench.system.log.read_tail

        async def nothing(request: TailRequest) -> Tail:
            return replace(await read_tail(request), entries=(), through_offset=request.after_offset)

        bench.system.log.read_tail = nothing  # type: ignore[method-assign]
        async with asyncio.timeout(5):
            for read in (shard.newest_offset(1), shard.reach(1)):
                with pytest.raises(SnapshotGone):
                    await read

    play(scenario)


def test_a_version_that_could_not_be_asked_for_was_not_looked_at() -> None:
    async def scenario(bench: Bench) -> None:
        shard = bench.shard()

        def away(name: str) -> None:
            raise Unavailable("no catalog answers")

        bench.system.catalog.before = away
        with pytest.raises(Unavailable):
            await shard.loaded()
        assert shard.looked_at == float("-inf")
        bench.system.catalog.before = lambda name: None
        await shard.loaded()
        assert shard.looked_at == bench.system.clock.monotonic()

    play(scenario)
