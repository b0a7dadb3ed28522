"""Which segments to merge. Pure decisions over a shard's manifest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from shoal_storage.manifest import SegmentRef, ShardManifest

_SIZE_BYTES = 4 << 30
_COLUMN_BYTES = 2**31 - 1  # a string column of one chunk holds no more


@dataclass(frozen=True, slots=True)
class MergePolicy:
    """Size tiers: a flush makes a segment of tier 0; ``fanout`` segments of one tier merge into one of the next.

    A record is thus rewritten about once per tier: log_fanout(records / flush size) times over its life.

    Attributes:
        dead_share: a segment with more than this share of dead rows is rewritten by itself.
        largest_rows: live rows that one merge takes in. Their bytes have a bound too, as a merge needs about three times
            as many in memory.
    """

    fanout: int = 4
    dead_share: float = 0.4
    largest_rows: int = 2_000_000

    def choose(self, shard: ShardManifest, erase_before_ms: int | None = None) -> tuple[SegmentRef, ...]:
        """The segments to merge next, or none: smallest tier first, but for one with a row that died before ``erase_before_ms``
        (Unix time; None: rows may be dead for ever).
        """
        if erase_before_ms is not None:
            overdue = [segment for segment in shard.segments if is_overdue(segment, erase_before_ms)]
            if overdue:
                return (min(overdue, key=lambda segment: segment.dead_since_ms or 0),)
        tiers: dict[int, list[SegmentRef]] = defaultdict(list)
        for segment in shard.segments:
            tiers[segment.tier].append(segment)
        for tier in sorted(tiers):
            fitting = self._fitting(tiers[tier])
            if len(fitting) >= self.fanout:
                return fitting
        worn = [segment for segment in shard.segments if segment.dead > self.dead_share * segment.rows]
        return (max(worn, key=lambda segment: segment.dead),) if worn else ()

    def _fitting(self, segments: Sequence[SegmentRef]) -> tuple[SegmentRef, ...]:
        """As many segments, smallest first, as one merge may take in."""
        chosen = []
        rows = size_bytes = column_bytes = 0
        for segment in sorted(segments, key=lambda segment: segment.live):
            rows += segment.live
            size_bytes += segment.size_bytes
            column_bytes += sum(ref.size_bytes for ref in segment.blocks.get("rows", ()))
            if rows > self.largest_rows or size_bytes > _SIZE_BYTES or column_bytes > _COLUMN_BYTES:
                break
            chosen.append(segment)
        return tuple(chosen)


def is_overdue(segment: SegmentRef, erase_before_ms: int) -> bool:
    """Whether a row of the segment died before ``erase_before_ms``; a time that was not kept counts as before."""
    return segment.dead > 0 and (segment.dead_since_ms or 0) < erase_before_ms
