"""The sweeper: what is garbage goes when its time has come and not before, and nothing that anybody may need goes ever."""

from __future__ import annotations

from uuid import uuid4

import pytest

from shoal_compactor.garbage import GarbageSettings
from shoal_core.contracts import AppendRequest, NewCollection
from shoal_core.errors import NotFound, UploadExpired
from shoal_core.records import encode_batch
from shoal_testing.compaction import Crash, SteppedJob
from shoal_testing.fake_catalog import DEFAULT_DATABASE, DEFAULT_TENANT
from shoal_testing.garbage import SweptWorld, publish_versions, two_segments
from shoal_testing.strategies import to_operation_batch

SETTINGS = GarbageSettings()
RETENTION_S = SETTINGS.version_retention_ms / 1000
DELETED_S = SETTINGS.deleted_retention_ms / 1000
REFUSED_S = 15 * 60
ORPHAN_S = 2 * REFUSED_S
FLUSH_STEPS = ["read", "folded", "uploaded", "tombstones", "manifest", "publish", "published"]
MERGE_STEPS = ["merge-read", "merge-built", "merge-uploaded", "tombstones", "manifest", "publish", "published"]


# --- orphans ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "dies_at"), [*(("flush", name) for name in FLUSH_STEPS), *(("merge", name) for name in MERGE_STEPS)]
)
async def test_what_a_crash_leaves_is_swept_after_twice_the_age(job: str, dies_at: str) -> None:
    world = await two_segments()
    before = set(await world.stored())

    async def step(name: str) -> None:
        if name == dies_at:
            raise Crash(name)

    with pytest.raises(Crash):
        await (world.flush(step=step) if job == "flush" else world.merge(step=step))
    orphans = set(await world.stored()) - before - await world.needed()
    assert bool(orphans) == (dies_at not in ("read", "folded", "merge-read", "merge-built", "published"))
    await world.sweeper().sweep()
    await world.clock.advance(ORPHAN_S)
    await world.sweeper().sweep()
    assert orphans <= set(await world.stored())
    await world.clock.advance(0.001)
    await world.sweeper().sweep()
    assert set(await world.stored()) == await world.needed()
    await world.check()
    await world.finish()
    await world.check()


@pytest.mark.parametrize("stalls_at", ["folded", "uploaded", "tombstones", "manifest", "publish"])
async def test_a_slow_publish_is_refused_so_that_swept_objects_are_never_named(stalls_at: str) -> None:
    world = await two_segments()
    version = world.version
    slow = SteppedJob(lambda step: world.flush(step=step))
    await slow.run_to(stalls_at)
    await world.clock.advance(ORPHAN_S + 1)
    assert (await world.sweeper().sweep()).counters.uploads == 1
    with pytest.raises(UploadExpired):
        await slow.run_out()
    assert world.version == version
    await world.check()
    await world.clock.advance(SETTINGS.grace_ms / 1000)
    await world.sweeper().sweep()  # what it put since
    assert set(await world.stored()) == await world.needed()
    await world.finish()
    await world.check()


async def test_a_publish_is_refused_long_before_its_objects_are_swept() -> None:
    world = await two_segments()
    slow = SteppedJob(lambda step: world.flush(step=step))
    await slow.run_to("publish")
    stored = await world.stored()
    await world.clock.advance(REFUSED_S)
    await world.sweeper().sweep()
    assert set(stored) - set(await world.stored()) <= set(stored) - await world.needed()
    with pytest.raises(UploadExpired):
        await slow.run_out()


async def test_a_publish_in_time_finds_its_objects_whatever_the_grace() -> None:
    world = await two_segments()
    slow = SteppedJob(lambda step: world.flush(step=step))
    await slow.run_to("publish")
    await world.clock.advance(REFUSED_S - 1)
    await world.sweeper(grace_ms=0, version_retention_ms=0).sweep()
    assert await slow.run_out() is not None
    await world.check()


@pytest.mark.parametrize("calls", range(1, 12))
async def test_a_publish_at_any_moment_of_a_sweep_keeps_its_objects(calls: int) -> None:
    world = await two_segments()
    flush = SteppedJob(lambda step: world.flush(step=step))
    await flush.run_to("publish")
    sweep = world.sweeping(grace_ms=0, version_retention_ms=0)
    ended = False
    for _ in range(calls):
        ended = ended or await sweep.advance()
    assert await flush.run_out() is not None
    if not ended:
        await sweep.run_out()
    await world.check()
    await world.clock.advance(ORPHAN_S + 1)
    await world.sweeper().sweep()
    assert set(await world.stored()) == await world.needed()


async def test_payloads_of_appends_that_came_to_nothing_are_swept() -> None:
    world = await SweptWorld.create()
    log = f"log/{world.collection.id}"
    failed, acknowledged = await world.catalog.begin_upload(world.collection.id), str(uuid4())
    for name in (failed, acknowledged):
        await world.objects.put(f"{log}/{name}", b"payload")
    world.catalog.payload_keys.add(f"{log}/{acknowledged}")
    await world.clock.advance(ORPHAN_S)
    await world.sweeper().sweep()
    assert await world.stored() == sorted([f"{log}/{failed}", f"{log}/{acknowledged}"])
    await world.clock.advance(1)
    report = await world.sweeper().sweep()
    assert await world.stored() == [f"{log}/{acknowledged}"]
    counters = report.counters
    assert (counters.uploads, counters.objects, counters.size_bytes, counters.failures) == (1, 1, 7, 0)
    assert await world.catalog.expired_uploads(limit=9) == []


async def test_payloads_that_no_entry_names_any_more_are_swept() -> None:
    """As when a log node died between dropping a partition and deleting what it named."""
    world = await SweptWorld.create()
    left, named = (f"log/{world.collection.id}/{uuid4()}" for _ in range(2))
    for key in (left, named):
        await world.objects.put(key, b"payload")
    world.catalog.payload_keys.add(named)
    await world.clock.advance(SETTINGS.grace_ms / 1000 - 0.001)
    assert (await world.sweeper().sweep()).counters.objects == 0
    await world.clock.advance(0.001)
    assert (await world.sweeper().sweep()).counters.objects == 1
    assert await world.stored() == [named]


async def test_orphans_of_a_purged_collection_are_swept() -> None:
    world = await two_segments()
    slow = SteppedJob(lambda step: world.flush(step=step))
    await slow.run_to("folded")
    await world.catalog.delete_collection(world.collection.id)
    await world.clock.advance(DELETED_S)
    await world.sweeper(uploads=0).sweep()
    assert await world.stored() == []
    with pytest.raises(NotFound):
        await slow.run_out()
    assert len(await world.stored()) > 0
    await world.sweeper().sweep()
    assert await world.stored() == []


# --- versions --------------------------------------------------------------------------------------------------------


async def test_a_version_is_kept_for_a_while_after_it_was_replaced() -> None:
    world = await SweptWorld.create()
    await publish_versions(world, 1)
    first = world.version
    await world.clock.advance(24 * 3600)
    await publish_versions(world, 1)
    for pause_s in (0, RETENTION_S - 0.001):
        await world.clock.advance(pause_s)
        await world.sweeper(grace_ms=0).sweep()
        await world.check_version(first)
        assert await world.catalog.get_version(world.collection.id, 1) == first
    await world.clock.advance(0.002)
    report = await world.sweeper().sweep()
    assert report.counters.versions == 1
    assert report.counters.objects > 0
    with pytest.raises(NotFound):
        await world.catalog.get_version(world.collection.id, 1)
    assert set(await world.stored()) == await world.needed()
    await world.check()


async def test_what_a_lost_race_leaves_is_swept_with_its_version() -> None:
    world = await two_segments()
    merge = SteppedJob(lambda step: world.merge(step=step))
    await merge.run_to("publish")
    await world.flush()
    assert await merge.run_out() is not None
    assert len(set(await world.stored()) - await world.needed()) > 0
    await world.clock.advance(RETENTION_S)
    await world.sweeper().sweep()
    assert set(await world.stored()) == await world.needed()
    await world.check()


async def test_young_objects_are_left_alone() -> None:
    world = await SweptWorld.create()
    await publish_versions(world, 3)
    young = f"segments/{world.collection.id}/{uuid4()}/x"
    await world.clock.advance(RETENTION_S)
    await world.objects.put(young, b"x")
    await world.clock.advance(SETTINGS.grace_ms / 1000 - 0.001)
    await world.sweeper().sweep()
    assert set(await world.stored()) == await world.needed() | {young}
    await world.clock.advance(0.001)
    await world.sweeper().sweep()
    assert set(await world.stored()) == await world.needed()


async def test_what_is_not_of_a_compaction_is_nobodys_garbage() -> None:
    world = await SweptWorld.create()
    collection_id = world.collection.id
    foreign = [
        f"segments/{collection_id}/notes",
        f"segments/{collection_id}/by/hand",
        f"segments/{uuid4()}/{uuid4()}/x",
    ]
    for key in foreign:
        await world.objects.put(key, b"x")
    await world.clock.advance(24 * 3600)
    await world.sweeper().sweep()
    assert await world.stored() == sorted(foreign)


async def test_nothing_is_swept_of_a_collection_whose_manifest_is_lost() -> None:
    world = await SweptWorld.create()
    await publish_versions(world, 3)
    await world.clock.advance(RETENTION_S)
    await world.objects.delete([world.version.manifest_key])
    stored = await world.stored()
    report = await world.sweeper().sweep()
    assert await world.stored() == stored
    assert report.counters.failures == 2  # as garbage and on patrol
    assert report.counters.versions == 0


async def test_a_collection_without_garbage_costs_little() -> None:
    world = await SweptWorld.create()
    await publish_versions(world, 1)
    await world.clock.advance(24 * 3600)
    gets = world.objects.gets
    report = await world.sweeper(patrol=0).sweep()
    assert world.objects.gets == gets
    assert report.counters.objects == 0


# --- deleted collections ---------------------------------------------------------------------------------------------


async def test_all_of_a_deleted_collection_goes_after_its_retention() -> None:
    world = await two_segments()
    other, _ = await world.catalog.create_collection(
        NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, "other"), get_or_create=False
    )
    kept = [f"segments/{other.id}/{uuid4()}/x", f"log/{other.id}/{uuid4()}"]
    for key in [*kept, f"log/{world.collection.id}/{uuid4()}"]:
        await world.objects.put(key, b"x")
    stored = await world.stored()
    await world.catalog.delete_collection(world.collection.id)
    await world.clock.advance(DELETED_S - 0.001)
    await world.sweeper(patrol=0).sweep()
    assert await world.stored() == stored
    await world.clock.advance(0.001)
    report = await world.sweeper(patrol=0, log_entries=2).sweep()
    assert await world.stored() == sorted(kept)
    assert report.counters.collections == 1
    with pytest.raises(NotFound):
        world.catalog.any_state(world.collection.id)
    payload = encode_batch(to_operation_batch([("delete", "x", None, None, None, None)], 2))
    with pytest.raises(NotFound):
        await world.log.append(AppendRequest(world.collection.id, 1, DEFAULT_TENANT, payload))
    assert (await world.sweeper().sweep()).counters.collections == 0


async def test_a_deletion_under_a_sweep_stops_it() -> None:
    world = await SweptWorld.create()
    await publish_versions(world, 3)
    await world.clock.advance(RETENTION_S)
    stored = await world.stored()
    job = world.sweeping()
    await job.run_to("garbage_roots")
    await job.advance()
    await world.catalog.delete_collection(world.collection.id)
    report = await job.run_out()
    assert report.counters.failures == 0  # type: ignore[attr-defined]
    assert await world.stored() == stored
