"""How a sweeper works: dry runs, bounds, turns, failures, and others beside it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import uuid4

import pytest

from shoal_compactor.garbage import GarbageSettings
from shoal_core.contracts import NewCollection
from shoal_core.errors import Unavailable
from shoal_testing.compaction import SteppedJob
from shoal_testing.fake_catalog import DEFAULT_DATABASE, DEFAULT_TENANT
from shoal_testing.garbage import SweptWorld, publish_versions, two_segments
from shoal_testing.schedules import Turns, threads_inline

SETTINGS = GarbageSettings()
RETENTION_S = SETTINGS.version_retention_ms / 1000
DELETED_S = SETTINGS.deleted_retention_ms / 1000
ORPHAN_S = 2 * 15 * 60


async def test_a_dry_run_says_what_would_go_and_deletes_nothing() -> None:
    world = await two_segments()
    orphan = await world.catalog.begin_upload(world.collection.id)
    for key in (f"segments/{world.collection.id}/{orphan}/x", f"log/{world.collection.id}/{orphan}"):
        await world.objects.put(key, b"x")
    deleted, _ = await world.catalog.create_collection(
        NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, "deleted"), get_or_create=False
    )
    await world.objects.put(f"log/{deleted.id}/{uuid4()}", b"x")
    await world.catalog.delete_collection(deleted.id)
    await world.clock.advance(DELETED_S + 1)
    stored = await world.stored()
    sweeper = world.sweeper(dry_run=True)
    plan = await sweeper.sweep()
    assert plan == await sweeper.sweep(dry_run=True)
    assert (plan.dry_run, sweeper.counters.rounds, await world.stored()) == (True, 0, stored)
    assert (await world.catalog.get_version(world.collection.id, 1)).version == 1
    report = await sweeper.sweep(dry_run=False)
    assert sorted(plan.keys) == sorted(set(stored) - set(await world.stored()))
    assert len(plan.keys) == len(set(plan.keys)) == plan.counters.objects
    assert report.keys == []
    assert replace(report.counters, versions=0) == plan.counters
    assert report.counters == sweeper.counters
    assert set(await world.stored()) == await world.needed()


async def test_a_round_is_bounded_and_the_next_ones_do_the_rest() -> None:
    world = await SweptWorld.create()
    await publish_versions(world, 6)
    for _ in range(3):
        orphan = await world.catalog.begin_upload(world.collection.id)
        await world.objects.put(f"segments/{world.collection.id}/{orphan}/x", b"x")
    await world.clock.advance(ORPHAN_S + 1)
    garbage = set(await world.stored()) - await world.needed()
    sweeper = world.sweeper(objects=4, uploads=2, patrol=0)
    rounds = 0
    while left := set(await world.stored()) - await world.needed():
        report = await sweeper.sweep()
        assert 0 < len(left) - len(set(await world.stored()) - await world.needed()) <= 4 + 2
        assert report.counters.versions == 0 or not set(await world.stored()) - await world.needed()
        rounds += 1
    assert rounds >= len(garbage) / 6
    await sweeper.sweep()
    assert sweeper.counters.versions == 5
    await world.check()


async def test_every_collection_has_its_turn() -> None:
    world = await SweptWorld.create()
    made = []
    for number in range(5):
        new = NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, f"c{number}")
        made.append((await world.catalog.create_collection(new, get_or_create=False))[0])
        await world.objects.put(f"segments/{made[-1].id}/{uuid4()}/x", b"x")
    await world.clock.advance(24 * 3600)
    sweeper = world.sweeper(patrol=2)
    for _ in range(3):
        await sweeper.sweep()
    assert await world.stored() == []
    assert sweeper.counters.objects == 5
    for collection in made:
        await world.objects.put(f"segments/{collection.id}/{uuid4()}/x", b"x")
    await world.clock.advance(24 * 3600)
    for _ in range(3):
        await sweeper.sweep()
    assert await world.stored() == []


async def test_the_preferred_sweeper_goes_first() -> None:
    world = await SweptWorld.create()
    await publish_versions(world, 3)
    orphan = await world.catalog.begin_upload(world.collection.id)
    await world.objects.put(f"log/{world.collection.id}/{orphan}", b"x")
    overdue_s = SETTINGS.orphan_age_ms / 1000
    await world.clock.advance(RETENTION_S + overdue_s)
    other = replace(world.sweeper(), mine=lambda collection_id: False)
    await other.sweep()
    assert other.counters.objects == 0
    await world.clock.advance(1)
    await other.sweep()
    assert (other.counters.versions, other.counters.uploads) == (2, 0)
    await world.clock.advance(ORPHAN_S)
    await other.sweep()
    assert other.counters.uploads == 1
    assert set(await world.stored()) == await world.needed()


async def test_a_sweeper_that_dies_at_any_call_leaves_the_rest_to_the_next() -> None:
    async def world_of_garbage() -> SweptWorld:
        world = await two_segments()
        slow = SteppedJob(lambda step: world.flush(step=step))
        await slow.run_to("publish")
        await world.clock.advance(ORPHAN_S + 1)
        return world

    calls: list[str] = []

    async def note(name: str) -> None:
        calls.append(name)

    await (await world_of_garbage()).sweeper(hook=note).sweep()
    assert {"expired_uploads", "delete", "drop_uploads", "garbage_roots", "drop_versions"} <= set(calls)
    for dies_at in range(len(calls)):
        world = await world_of_garbage()
        passed = 0

        async def die(name: str, dies_at: int = dies_at) -> None:
            nonlocal passed
            passed += 1
            if passed > dies_at:
                raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await world.sweeper(hook=die).sweep()
        await world.check()
        await world.sweeper().sweep()
        assert set(await world.stored()) == await world.needed(), calls[dies_at]
        assert await world.catalog.expired_uploads(limit=9) == []
        await world.finish()
        await world.check()


@pytest.mark.parametrize("seed", range(10))
async def test_sweepers_at_once(seed: int) -> None:
    world = await two_segments()
    slow = SteppedJob(lambda step: world.flush(step=step))
    await slow.run_to("publish")
    await world.clock.advance(ORPHAN_S + 1)
    sweepers = [world.sweeper(hook=Turns(seed * 10 + number)) for number in range(3)]
    await asyncio.gather(*(sweeper.sweep() for sweeper in sweepers), world.merge())
    assert sum(sweeper.counters.failures for sweeper in sweepers) == 0
    await world.check()
    await world.clock.advance(ORPHAN_S)
    await world.sweeper().sweep()
    assert set(await world.stored()) == await world.needed()


async def test_failures_are_counted_and_tried_again() -> None:
    world = await two_segments()
    orphan = await world.catalog.begin_upload(world.collection.id)
    await world.objects.put(f"log/{world.collection.id}/{orphan}", b"x")
    await world.clock.advance(ORPHAN_S + 1)
    stored = await world.stored()

    async def refuse(name: str) -> None:
        if name == "delete":
            raise Unavailable("the object store is away")

    sweeper = world.sweeper(hook=refuse)
    await sweeper.sweep()
    assert sweeper.counters.failures == 2  # its orphans, its versions
    assert await world.stored() == stored
    assert [upload.id for upload in await world.catalog.expired_uploads(limit=9)] == [orphan]
    assert (await world.catalog.get_version(world.collection.id, 1)).version == 1
    await replace(sweeper, objects=world.objects).sweep()
    assert set(await world.stored()) == await world.needed()


async def test_it_runs_for_ever() -> None:
    world = await SweptWorld.create()
    away = True

    async def refuse(name: str) -> None:
        if away and name == "expired_uploads":
            raise Unavailable("sysdb is away")

    sweeper = world.sweeper(hook=refuse)
    with threads_inline():
        running = asyncio.create_task(sweeper.run())
        await world.clock.settle()
        await world.clock.advance(SETTINGS.interval_ms / 1000)
        assert (sweeper.counters.rounds, running.done()) == (2, False)
        await publish_versions(world, 2)
        away = False
        await world.clock.advance(ORPHAN_S)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert set(await world.stored()) == await world.needed()
    assert sweeper.counters.versions == 1
