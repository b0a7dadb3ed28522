"""Which segments to merge. Pure decisions over a shard's manifest."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from shoal_storage.manifest import SegmentRef, ShardManifest


@dataclass(frozen=True, slots=True)
class MergePolicy:
    """Size tiers: a flush makes a segment of tier 0; ``fanout`` segments of one tier merge into one of the next.

    A record is thus rewritten about once per tier: log_fanout(records / flush size) times over its life.

    Attributes:
        dead_share: a segment with more than this share of dead rows is rewritten by itself.
        largest_rows: segments with more live rows are not merged further.
    """

    fanout: int = 4
    dead_share: float = 0.4
    largest_rows: int = 2_000_000

    def choose(self, shard: ShardManifest) -> tuple[SegmentRef, ...]:
        """The segments to merge next, smallest tier first, or none."""
        tiers: dict[int, list[SegmentRef]] = defaultdict(list)
        for segment in shard.segments:
            if segment.live <= self.largest_rows:
                tiers[segment.tier].append(segment)
        for tier in sorted(tiers):
            if len(tiers[tier]) >= self.fanout:
                return tuple(tiers[tier])
        worn = [segment for segment in shard.segments if segment.dead > self.dead_share * segment.rows]
        return (max(worn, key=lambda segment: segment.dead),) if worn else ()
