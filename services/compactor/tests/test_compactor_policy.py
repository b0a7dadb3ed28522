"""Which segments are merged, and what that costs over a collection's life."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shoal_compactor.policy import MergePolicy
from shoal_core.contracts import EVERYTHING
from shoal_storage.blocks import BlockRef
from shoal_storage.manifest import SegmentRef, ShardManifest


def _segment(name: str, *, tier: int = 0, rows: int = 10, dead: int = 0, size_bytes: int = 100) -> SegmentRef:
    return SegmentRef(name, tier, rows, dead, size_bytes, {})


def _shard(*segments: SegmentRef) -> ShardManifest:
    return ShardManifest(0, EVERYTHING, 0, segments)


def _chosen(policy: MergePolicy, *segments: SegmentRef) -> str:
    return "".join(sorted(segment.id for segment in policy.choose(_shard(*segments))))


def test_a_full_tier_is_merged_the_lowest_first() -> None:
    policy = MergePolicy(fanout=3)
    low = [_segment(name) for name in "abc"]
    high = [_segment(name, tier=1) for name in "xyz"]
    assert _chosen(policy) == ""
    assert _chosen(policy, *low[:2], *high[:2]) == ""
    assert _chosen(policy, *low[:2], *high) == "xyz"
    assert _chosen(policy, *high, *low) == "abc"
    assert _chosen(policy, *low, _segment("d")) == "abcd"


def test_a_worn_segment_goes_alone_after_full_tiers() -> None:
    policy = MergePolicy(fanout=3, dead_share=0.4)
    worn, worse = _segment("w", dead=5), _segment("v", tier=4, rows=100, dead=41)
    assert _chosen(policy, _segment("a", dead=4)) == ""
    assert _chosen(policy, _segment("a"), worn, worse) == "v"
    assert _chosen(policy, _segment("a"), _segment("b"), worn) == "abw"


def test_a_merge_takes_in_no_more_than_it_may() -> None:
    policy = MergePolicy(fanout=3, largest_rows=100)
    big = [_segment(name, rows=60) for name in "xyz"]
    assert _chosen(policy, *big) == ""
    assert _chosen(policy, *big, _segment("a"), _segment("b")) == "abx"
    heavy = [_segment(name, size_bytes=2 << 30) for name in "abc"]
    assert _chosen(policy, *heavy) == ""
    assert _chosen(policy, *(replace(segment, size_bytes=1 << 30) for segment in heavy)) == "abc"


def test_columns_of_strings_stay_below_what_arrow_can_hold() -> None:
    rows = {"rows": (BlockRef("k", 1 << 30, "0" * 32),)}
    segments = [replace(_segment(name, size_bytes=1 << 30), blocks=rows) for name in "abc"]
    assert _chosen(MergePolicy(fanout=2), *segments) == ""
    half = {"rows": (BlockRef("k", 1 << 29, "0" * 32),)}
    assert _chosen(MergePolicy(fanout=2), *(replace(segment, blocks=half) for segment in segments)) == "abc"


@pytest.mark.parametrize(("fanout", "rewrites"), [(4, 3), (8, 2), (2, 6)])
def test_a_row_is_rewritten_once_per_tier(fanout: int, rewrites: int) -> None:
    policy = MergePolicy(fanout=fanout)
    flushes, rows_each, rewritten = 64, 10, 0
    shard, widest = _shard(), 0
    for number in range(flushes):
        shard = replace(shard, segments=(*shard.segments, _segment(f"f{number}", rows=rows_each)))
        while inputs := policy.choose(shard):
            rows = sum(segment.live for segment in inputs)
            rewritten += rows
            kept = tuple(segment for segment in shard.segments if segment not in inputs)
            output = _segment(f"m{rewritten}", tier=1 + max(segment.tier for segment in inputs), rows=rows)
            shard = replace(shard, segments=(output, *kept))
        widest = max(widest, len(shard.segments))
    assert sum(segment.rows for segment in shard.segments) == flushes * rows_each
    assert rewritten == rewrites * flushes * rows_each
    assert widest <= (fanout - 1) * (rewrites + 1)
