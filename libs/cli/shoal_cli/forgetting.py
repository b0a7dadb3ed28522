"""What a process keeps near at hand of deleted data goes with its age."""

from __future__ import annotations

from shoal_core.ports import Clock
from shoal_query.node import Node
from shoal_storage.cache import BlockCache

_LOOKS = 8  # within the age


async def forget_old(clock: Clock, max_age_ms: int, cache: BlockCache, node: Node | None = None) -> None:
    """Drop shards of ``node`` that were not read for so long, and blocks that were loaded longer ago and are not in use.

    Works until cancelled.
    """
    while True:
        await clock.sleep(max_age_ms / 1000 / _LOOKS)
        if node is not None:
            await node.drop_idle(max_age_ms)
        await cache.expire(max_age_ms)
