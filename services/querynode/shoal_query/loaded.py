"""The shards that a query node has loaded, and the memory that they may take.

Above the budget vectors that are mapped from local disk are let go of, to be read from there again, and where that is not enough shards
are dropped, both least recently used first.
"""

from __future__ import annotations

from collections import OrderedDict

from shoal_core.contracts import Target
from shoal_query.services import Services
from shoal_query.shard import Shard
from shoal_query.usage import Counters

ShardKey = tuple[str, int, int]

_IN_USE_S = 60.0  # since the last read of a shard
_LOOKS = 16  # at the memory used, at least, while it grows from nothing to all that is allowed


def key_of(target: Target) -> ShardKey:
    """What tells shards apart: the collection, the shard's number and how many there are."""
    return (target.collection_id, target.shard, target.shards)


class LoadedShards:
    """See the module. Used from one event loop.

    Args:
        budget_bytes: of segments, tails and what reads made of them.
        reads_per_shrink: how many reads between two looks at that.
        counters: told of shards dropped.

    Attributes:
        shards: least recently read first.
        sizes: in bytes, as of the last look at each.
        crowded: with all of their vectors, the shards in use would not fit.
    """

    def __init__(self, services: Services, budget_bytes: int, reads_per_shrink: int, counters: Counters) -> None:
        self._services = services
        self._budget_bytes = budget_bytes
        self._reads_per_shrink = reads_per_shrink
        self._counters = counters
        self.shards: OrderedDict[ShardKey, Shard] = OrderedDict()
        self.sizes: dict[ShardKey, int] = {}
        self.crowded = False
        self._touched: set[ShardKey] = set()  # read since the last look
        self._reads_since_shrink = 0

    def in_use(self) -> list[Shard]:
        """Those read of late."""
        since = self._services.clock.monotonic() - _IN_USE_S
        return [shard for shard in list(self.shards.values()) if shard.read_at >= since]

    def open(self, target: Target) -> Shard:
        """The shard, for a read that begins; nothing is loaded yet if it is new."""
        key = key_of(target)
        shard = self.shards.get(key)
        if shard is None:
            shard = self.shards[key] = Shard(target, self._services)
        self.shards.move_to_end(key)
        shard.read_at = self._services.clock.monotonic()
        return shard

    async def read(self, key: ShardKey) -> None:
        """A read of a shard is over: keep within the budget.

        Adding up is not for every read, nor for shards that nobody read: sizes change slowly, and with reads.
        """
        self._touched.add(key)
        self._reads_since_shrink += 1
        if self._reads_since_shrink >= self._reads_per_shrink or self._has_grown(key):
            await self._shrink(key)

    async def drop(self, key: ShardKey, shard: Shard) -> None:
        """Let go of a shard, unless another read was faster."""
        if self.shards.get(key) is not shard:
            return
        del self.shards[key]
        self.sizes.pop(key, None)
        self._counters.dropped_shards += 1
        await shard.close()

    async def drop_idle(self, max_age_ms: int) -> int:
        """Drop shards that were not read for so long, which hold blocks of versions that may be gone; how many went."""
        since = self._services.clock.monotonic() - max_age_ms / 1000
        dropped = 0
        for key, shard in list(self.shards.items()):
            if shard.read_at < since and not shard.is_loading:  # now: dropping the one before took a while
                await self.drop(key, shard)
                dropped += 1
        for shard in self.shards.values():
            shard.forget_past(since)
        return dropped

    async def close(self) -> None:
        """Let go of all of them."""
        shards = list(self.shards.values())
        self.shards.clear()
        self.sizes.clear()
        self._touched.clear()
        for shard in shards:
            await shard.close()

    async def _shrink(self, keep: ShardKey) -> None:
        self._reads_since_shrink = 0
        self._touched &= self.shards.keys()
        self.sizes |= {key: self.shards[key].look() for key in self._touched}
        self._touched = {key for key in self._touched if self.shards[key].is_loading}
        total = sum(self.sizes.values())
        self._notice_crowding(total)
        for key, shard in list(self.shards.items()):
            if total <= self._budget_bytes:
                return
            await shard.release()
            if self.shards.get(key) is shard:
                total -= self.sizes.get(key, 0)
                self.sizes[key] = shard.look()
                total += self.sizes[key]
        for key, shard in list(self.shards.items()):
            if total <= self._budget_bytes or key == keep:
                return
            if not shard.is_loading:  # it would only be loaded again
                total -= self.sizes.get(key, 0)
                await self.drop(key, shard)

    def _has_grown(self, key: ShardKey) -> bool:
        """Whether a shard is new, or has more of its vectors in memory, by so much that it should be looked at."""
        shard = self.shards.get(key)
        if shard is None:
            return False
        grown = shard.grown_bytes if key in self.sizes else shard.touched_bytes + shard.unread_bytes
        return grown * _LOOKS > self._budget_bytes

    def _notice_crowding(self, total: int) -> None:
        """Whether the shards in use would fit with all of their vectors. ``total``: what is in memory."""
        crowded = total + sum(shard.unread_bytes for shard in self.in_use()) > self._budget_bytes
        if self.crowded and not crowded:
            for shard in self.shards.values():
                shard.read_ahead()
        self.crowded = crowded
