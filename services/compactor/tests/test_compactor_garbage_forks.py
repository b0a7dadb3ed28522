"""The sweeper over trees of forks: its bounds are on what it deletes and reads, and what is lent out uses up neither."""

from __future__ import annotations

from uuid import uuid4

import pytest

from shoal_compactor.garbage import GarbageSettings
from shoal_core.errors import NotFound
from shoal_testing.garbage import SweptWorld, publish_versions, two_segments

SETTINGS = GarbageSettings()
RETENTION_S = SETTINGS.version_retention_ms / 1000


async def test_what_is_lent_does_not_stand_before_what_is_garbage() -> None:
    world = await SweptWorld.create(shards=2)
    await publish_versions(world, 2)
    await world.catalog.fork_collection(world.collection.id, "fork")
    lent = {world.version.manifest_key, *(await world.manifest()).object_keys()}
    await publish_versions(world, 8)
    while await world.merge() is not None:
        pass
    await world.clock.advance(RETENTION_S)
    bound = len(lent - await world.needed())
    assert bound > 2
    for _ in range(30):
        assert (await world.sweeper(objects=bound).sweep()).counters.failures == 0
    assert set(await world.stored()) == await world.needed() | lent
    with pytest.raises(NotFound):
        await world.catalog.get_version(world.collection.id, world.version.version - 1)
    await world.check()


async def test_payloads_that_are_needed_do_not_stand_before_those_that_are_not() -> None:
    world = await SweptWorld.create()
    keys = sorted(f"log/{world.collection.id}/{uuid4()}" for _ in range(5))
    for key in keys:
        await world.objects.put(key, b"payload")
    world.catalog.payload_keys.update(keys[:3])
    await world.clock.advance(SETTINGS.grace_ms / 1000)
    assert (await world.sweeper(objects=1).sweep()).counters.objects == 1
    assert await world.stored() == keys[:3] + keys[4:]
    await world.sweeper(objects=3).sweep()
    assert await world.stored() == keys[:3]


async def test_a_sweep_reads_one_manifest_of_each_fork() -> None:
    """However many versions the forks have made within the retention: later ones name no more of what they began with."""
    world = await SweptWorld.create()
    await publish_versions(world, 2)
    source = world.collection
    for number in range(3):
        fork = await world.catalog.fork_collection(source.id, f"fork{number}")
    await world.clock.advance(RETENTION_S)
    world.collection = fork
    await publish_versions(world, 5)
    sweeper = world.sweeper(patrol=0)
    sweeper.mine = lambda collection_id: collection_id == source.id
    gets = world.objects.gets
    report = await sweeper.sweep()
    assert (report.counters.failures, report.counters.versions) == (0, 1)
    assert world.objects.gets - gets == 1  # all of them began with the version that the source has
    await world.check()


@pytest.mark.parametrize("deleted", [False, True])
@pytest.mark.parametrize("calls", range(1, 14))
async def test_a_fork_at_any_moment_of_a_sweep_keeps_its_objects(calls: int, deleted: bool) -> None:
    """With no retention at all; the fork of a fork shares what only the first fork has from the source."""
    world = await two_segments()
    first = await world.catalog.fork_collection(world.collection.id, "first")
    while await world.merge() is not None:
        pass
    if deleted:
        await world.catalog.delete_collection(world.collection.id)
    sweep = world.sweeping(grace_ms=0, version_retention_ms=0, deleted_retention_ms=0)
    ended = False
    for _ in range(calls):
        ended = ended or await sweep.advance()
    second = await world.catalog.fork_collection(first.id, "second")
    forks = [second]
    if not deleted:
        await world.flush()
        forks.append(await world.catalog.fork_collection(world.collection.id, "of what has just been flushed"))
        await world.upsert("id1", "id13", "new", value=3.0)
        await world.flush()
        while await world.merge() is not None:  # and is replaced at once
            pass
    await world.catalog.delete_collection(first.id)
    if not ended:
        await sweep.run_out()
    for _ in range(2):
        sweeper = world.sweeper(grace_ms=0, version_retention_ms=0, deleted_retention_ms=0)
        assert (await sweeper.sweep()).counters.failures == 0
    for fork in forks:
        await world.check_version(await world.catalog.get_version(fork.id))
