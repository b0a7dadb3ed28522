"""A process forgets by itself what is old and not in use."""

from __future__ import annotations

import asyncio
from pathlib import Path

from shoal_cli.forgetting import forget_old
from shoal_storage.blocks import encode_blob
from shoal_storage.cache import BlockCache
from shoal_testing.direct import DirectSystem


async def test_blocks_go_within_an_eighth_of_their_age(tmp_path: Path) -> None:
    system = DirectSystem()
    block = encode_blob(b"x")
    ref = block.ref("k")
    await system.objects.put("k", memoryview(block.data))
    cache = BlockCache(tmp_path, 1 << 20, 1 << 20, system.objects, time_ns=system.clock.time_ns)
    await cache.get(ref)
    task = asyncio.create_task(forget_old(system.clock, 80_000, cache, system.node))
    await asyncio.sleep(0)
    await system.clock.advance(75)
    assert cache.may_contain(ref)
    while cache.may_contain(ref) and system.clock.monotonic() < 1_000:  # files are looked at in a thread
        await system.clock.advance(10)
    assert not cache.may_contain(ref)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
