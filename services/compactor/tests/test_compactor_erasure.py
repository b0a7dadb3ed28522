"""What was deleted or replaced is gone from object storage by the deadline, whether or not anybody writes again, and not by chance."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from shoal_compactor.compactor import Compactor, CompactorSettings
from shoal_compactor.erasure import ErasureTimes, erasure_times, overdue_collections
from shoal_compactor.garbage import GarbageSettings
from shoal_compactor.policy import MergePolicy
from shoal_core.contracts import EVERYTHING, Collection
from shoal_core.errors import InvalidArgument
from shoal_storage.manifest import Manifest, SegmentRef, ShardManifest, decode_manifest, encode_manifest
from shoal_testing.compaction import SteppedJob
from shoal_testing.garbage import SweptWorld
from shoal_testing.schedules import settle

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
DEADLINE_MS = 7 * DAY_MS
ERASED = "the telephone number of ada pepperpot"
REPLACED = "where she lived before"
TRACES = (ERASED, REPLACED, "pepperpot", "020 7946 0018", "erased-id")  # documents, a term, a value of metadata, an id
KEPT = "a large body of salt water"
WIDE = MergePolicy(fanout=9)


# --- when ------------------------------------------------------------------------------------------------------------


def test_a_segment_is_rewritten_in_time_for_what_comes_after() -> None:
    garbage = GarbageSettings(version_retention_ms=15, grace_ms=5, interval_ms=10)
    assert erasure_times(0, garbage) is None
    assert erasure_times(800, garbage) == ErasureTimes(rewrite_after_ms=560, pass_ms=50)
    assert erasure_times(80, garbage) == ErasureTimes(rewrite_after_ms=20, pass_ms=5)
    with pytest.raises(InvalidArgument, match=r"compactor.erasure_deadline_ms: 79 is less than 80"):
        CompactorSettings(erasure_deadline_ms=79, garbage=garbage)


def test_the_segment_with_the_oldest_dead_row_goes_first_and_alone() -> None:
    def segment(name: str, dead: int, since_ms: int | None) -> SegmentRef:
        return SegmentRef(name, 0, 100, dead, 1, {}, dead_since_ms=since_ms)

    def chosen(policy: MergePolicy, *segments: SegmentRef, before_ms: int | None) -> list[str]:
        shard = ShardManifest(0, EVERYTHING, 0, segments)
        return [segment.id for segment in policy.choose(shard, before_ms)]

    old, older, unknown = segment("o", 1, 50), segment("p", 1, 40), segment("u", 1, None)
    whole = segment("w", 0, None)
    assert chosen(WIDE, old, older, whole, before_ms=None) == []
    assert chosen(WIDE, old, older, whole, before_ms=40) == []
    assert chosen(WIDE, old, older, whole, before_ms=41) == ["p"]
    assert chosen(WIDE, old, older, unknown, before_ms=41) == ["u"], "when its rows died was not kept"
    assert chosen(MergePolicy(fanout=2), old, whole, before_ms=51) == ["o"]


async def test_a_segment_tells_since_when_it_has_dead_rows() -> None:
    world = await SweptWorld.create(policy=WIDE)
    await world.upsert("a", "b", "c", "d", "e", "f")
    await world.flush()
    assert [segment.dead_since_ms for segment in (await world.manifest()).shards[0].segments] == [None]
    await world.delete("a")
    await world.flush()
    first_ms = world.now_ms
    await world.clock.advance(60)
    await world.upsert("b", value=2.0)
    await world.flush()
    assert [segment.dead_since_ms for segment in (await world.check()).shards[0].segments] == [first_ms, None]
    world.policy = MergePolicy(fanout=2)
    merge = SteppedJob(lambda step: world.merge(step=step))
    await merge.run_to("merge-built")
    began_ms = world.now_ms
    await world.clock.advance(60)
    await world.delete("c")
    await world.flush()
    await merge.run_out()
    [merged] = (await world.check()).shards[0].segments
    assert (merged.dead, merged.dead_since_ms) == (1, began_ms)


async def test_dead_rows_of_an_earlier_release_are_overdue() -> None:
    """Neither a flush nor a merge of others makes them look younger than they may be."""
    world = await SweptWorld.create(policy=WIDE)
    await world.upsert("a", "b", "c")
    await world.flush()
    await world.delete("a")
    await world.flush()

    manifest, key = await world.manifest(), world.version.manifest_key
    [shard] = manifest.shards
    assert [segment.dead for segment in shard.segments] == [1]
    forgotten = replace(shard, segments=tuple(replace(segment, dead_since_ms=None) for segment in shard.segments))
    await world.objects.delete([key])
    await world.objects.put(key, encode_manifest(replace(manifest, shards=(forgotten,))))
    await world.delete("b")
    await world.flush()
    [segment] = (await world.manifest()).shards[0].segments
    assert (segment.dead, segment.dead_since_ms) == (2, None)


# --- that it is gone -------------------------------------------------------------------------------------------------


async def _written(shards: int = 1) -> SweptWorld:
    """A segment of many rows in which one is deleted, then, and another replaced: too few for a merge to be due."""
    world = await SweptWorld.create(policy=MergePolicy(fanout=4, dead_share=0.4), shards=shards)
    kept = [(f"id{number}", f"{KEPT} {number}", {"phone": "none"}) for number in range(50)]
    records = [*kept, ("erased-id", ERASED, {"phone": "020 7946 0018"}), ("replaced", REPLACED, None)]
    await world.write([("upsert", name, (1.0, 2.0), text, None, metadata) for name, text, metadata in records])
    await world.flush()
    await world.write([("upsert", "replaced", (1.0, 2.0), "nothing to see", None, None)])
    await world.delete("erased-id")
    await world.flush()
    return world


async def _found(world: SweptWorld, text: str) -> list[str]:
    """Keys of the objects that hold the text; no block is compressed."""
    stored = [info.key async for info in world.objects.list("")]
    return [key for key in stored if text.encode() in bytes(await world.objects.get(key))]


async def _work(world: SweptWorld, compactor: Compactor, milliseconds: int) -> None:
    """What compactor and sweeper do within so long, an hour at a time."""
    times = compactor.settings.erasure()
    sweeper, pass_ms = world.sweeper(interval_ms=HOUR_MS), times.pass_ms if times else DAY_MS
    for hour in range(1, milliseconds // HOUR_MS + 1):
        await world.clock.advance(HOUR_MS / 1000)
        if hour % max(1, pass_ms // HOUR_MS) == 0:
            await compactor.erase_due()
        await compactor.run_once()
        await sweeper.sweep()


def _compactor(world: SweptWorld, deadline_ms: int) -> Compactor:
    return world.compactor(erasure_deadline_ms=deadline_ms, garbage=GarbageSettings(interval_ms=HOUR_MS))


async def test_bytes_of_a_deleted_and_of_a_replaced_record_are_gone_by_the_deadline() -> None:
    world = await _written(shards=2)
    assert all([await _found(world, trace) for trace in TRACES])
    await _work(world, _compactor(world, DEADLINE_MS), DEADLINE_MS // 2)
    assert all([await _found(world, trace) for trace in TRACES]), "rewriting costs, so it is not done at once"
    await _work(world, _compactor(world, DEADLINE_MS), DEADLINE_MS - DEADLINE_MS // 2)
    assert [await _found(world, trace) for trace in TRACES] == [[]] * len(TRACES)
    assert await _found(world, KEPT)
    await world.check()


async def test_without_a_deadline_they_stay() -> None:
    world = await _written()
    await _work(world, _compactor(world, 0), 2 * DEADLINE_MS)
    assert await _found(world, ERASED)
    await world.check()


async def test_what_is_dead_in_a_fork_too_is_gone_and_what_lives_there_stays() -> None:
    world = await _written()
    fork = await world.catalog.fork_collection(world.collection.id, "fork")
    source, world.collection = world.collection, fork
    await world.delete("id7")
    await world.flush()
    await _work(world, _compactor(world, DEADLINE_MS), DEADLINE_MS)
    assert await _found(world, ERASED) == []
    assert await _found(world, f"{KEPT} 7"), "it lives in the source"
    world.collection = source
    await world.delete("id7")
    await world.flush()
    await _work(world, _compactor(world, DEADLINE_MS), DEADLINE_MS)
    assert await _found(world, f"{KEPT} 7") == []
    assert await _found(world, f"{KEPT} 8")


async def test_a_compactor_looks_by_itself() -> None:
    world = await _written()
    await world.clock.advance(DEADLINE_MS / 1000)
    compactor = world.compactor()
    running = asyncio.ensure_future(compactor.run())
    await settle()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await compactor.merge_due()
    assert compactor.counters.merges == 1


async def test_a_pass_finds_what_others_left_and_leaves_alone_what_is_others() -> None:
    world = await _written()
    await world.clock.advance(DEADLINE_MS / 1000)
    assert await world.compactor(mine=lambda name: False).erase_due() == 0
    assert await world.compactor(erasure_deadline_ms=0).erase_due() == 0
    compactor = world.compactor()
    assert await compactor.erase_due() == 1
    await compactor.merge_due()
    assert compactor.counters.merges == 1
    assert await compactor.erase_due() == 0
    await world.catalog.delete_collection(world.collection.id)
    assert await compactor.erase_due() == 0


async def test_a_collection_that_cannot_be_read_keeps_no_other_from_its_deadline() -> None:
    """Whatever their order is: each of two in turn is of a later format, and the other one is found."""
    worlds = [await _written() for _ in range(2)]
    good = [bytes(await world.objects.get(world.version.manifest_key)) for world in worlds]
    for broken, whole in ((0, 1), (1, 0)):
        manifests = [*good]
        manifests[broken] = json.dumps({**json.loads(good[broken]), "format": 99}).encode()
        publisher: Any = _TwoCollections(worlds, manifests)
        found = overdue_collections(publisher, lambda name: True, GarbageSettings(), worlds[0].clock.time_ns())
        assert [collection.id async for collection in found] == [str(whole)]


class _TwoCollections:
    """What a pass needs of a publisher and of its catalog, over two worlds as if they were one. Ids are their positions."""

    def __init__(self, worlds: Sequence[SweptWorld], manifests: Sequence[bytes]) -> None:
        self._worlds, self._manifests = worlds, manifests
        self.catalog = self

    async def collections_with_garbage(self, **_: object) -> list[Any]:
        everything = {"version_retention_ms": 0, "deleted_retention_ms": 0, "everything": True}
        items = [
            (await world.catalog.collections_with_garbage(after="", limit=9, **everything))[0]  # type: ignore[arg-type]
            for world in self._worlds
        ]
        return [replace(item, collection_id=str(at)) for at, item in enumerate(items)]

    async def get_collection_by_id(self, collection_id: str) -> Collection:
        return replace(self._worlds[int(collection_id)].collection, id=collection_id)

    async def current(self, collection: Collection) -> Manifest:
        return decode_manifest(memoryview(self._manifests[int(collection.id)]))
