"""A compactor and a sweeper of this release beside those of the next one."""

from __future__ import annotations

import json

from shoal_testing.garbage import SweptWorld


async def test_a_compactor_leaves_what_is_newer_alone_and_so_does_the_sweeper() -> None:
    world = await SweptWorld.create()
    await world.upsert("a", "b")
    await world.flush()
    key = world.version.manifest_key
    manifest = json.loads(bytes(await world.objects.get(key)))
    await world.objects.delete([key])
    await world.objects.put(key, json.dumps({**manifest, "format": 2}).encode())
    await world.upsert("a")
    stored = await world.stored()
    compactor = world.compactor()
    await compactor.run_once()
    assert (compactor.counters.flushes, compactor.counters.failures) == (0, 1)
    await world.clock.advance(7 * 86_400)
    sweeper = world.sweeper()
    await sweeper.sweep()
    assert sweeper.counters.failures == 1
    assert await world.stored() == stored
