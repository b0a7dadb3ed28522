"""Masks of live rows against counting them anew, and that nobody changes what all reads share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from shoal_core.contracts import GetRequest, Target
from shoal_core.filters import parse_where
from shoal_index.vector.engine import Mask
from shoal_index.version import ShardVersion
from shoal_query.execute import LiveMasks, Selection, allowed_rows
from shoal_testing.direct import DirectSystem
from shoal_testing.strategies import Op, to_operation_batch

ROWS = 50


def read_only(mask: Mask) -> Mask:
    mask.flags.writeable = False
    return mask


def version_with(*dead: Any) -> ShardVersion:
    """A version with a segment for each mask of dead rows, or None."""
    segments = [SimpleNamespace(dead=mask, ref=SimpleNamespace(rows=ROWS)) for mask in dead]
    return cast(ShardVersion, SimpleNamespace(segments=segments))


def test_masks_follow_what_is_hidden_forwards_and_back() -> None:
    random = np.random.default_rng(1)
    dead = random.random(ROWS) < 0.3
    version, masks = version_with(None, dead), LiveMasks()
    hidden = random.permutation(ROWS)[:20]
    for until in (0, 3, 3, 11, 20, 7, 0, 20):
        for segment, gone in ((0, np.zeros(ROWS, dtype=bool)), (1, dead)):
            expected = ~gone
            expected[hidden[:until]] = False
            found = masks.of(version, segment, hidden[:until])
            assert (np.ones(ROWS, dtype=bool) if found is None else found).tolist() == expected.tolist()
    assert masks.of(version, 0, hidden[:0]) is None, "every row is live"


def test_what_matches_of_them_is_made_once_while_they_are_the_same() -> None:
    """Of however many segments."""
    count = 40
    version, masks = version_with(*[np.arange(ROWS) < 3] * count), LiveMasks()
    hidden = np.array([30, 40])
    matching = [read_only(np.arange(ROWS) % 2 == number % 2) for number in range(count)]
    made: list[list[Mask]] = []
    for until in (1, 1, 2):
        made.append([])
        for segment in range(count):
            live = masks.of(version, segment, hidden[:until])
            assert live is not None
            made[-1].append(masks.of_matching(segment, live, matching[segment]))
            assert made[-1][segment].tolist() == (live & matching[segment]).tolist()
            assert masks.of_matching(segment, live.copy(), matching[segment]).tolist() == made[-1][segment].tolist()
    first, second, third = made
    assert all(a is b is not c for a, b, c in zip(first, second, third, strict=True))
    with pytest.raises(ValueError, match="read-only"):
        first[0][0] = True
    assert masks.size_bytes == count * 2 * ROWS, "what was made of masks that are no more is gone"


async def test_filters_over_a_segment_with_deletions_are_joined_once() -> None:
    """And what is kept of them counts as the shard's."""
    system = DirectSystem()
    ref = await system.create()
    rows: list[Op] = [
        ("upsert", f"r{number}", (float(number), 0.0), None, None, {"n": number}) for number in range(ROWS)
    ]
    await system.append(ref, [to_operation_batch(rows, 2)])
    await system.compact(ref)
    await system.append(ref, [to_operation_batch([("delete", "r1", None, None, None, None)], 2)])
    request = GetRequest(Target(ref.id, 1, "l2", 0, 1), where=parse_where({"n": {"$gte": 40}}))
    assert (await system.node.get(request)).rows.num_rows == 10
    [shard] = system.node.loaded.shards.values()
    assert shard.view is not None
    snapshot, selection = shard.view.newest(), Selection(request.where)
    mask = allowed_rows(snapshot, 0, selection)
    assert mask is allowed_rows(snapshot, 0, selection)
    before = shard.size_bytes
    other = allowed_rows(snapshot, 0, Selection(parse_where({"n": 7})))
    assert other is not None
    kept = snapshot.version.segments[0].segment.kept_bytes
    assert shard.size_bytes >= before + ROWS
    assert snapshot.masks.size_bytes == 3 * ROWS
    assert kept > 0


@pytest.mark.parametrize("until", [0, 5])
def test_masks_are_made_once_and_nobody_may_write_to_them(until: int) -> None:
    version, masks = version_with(np.arange(ROWS) < 3), LiveMasks()
    hidden = np.arange(10, 10 + until)
    mask = masks.of(version, 0, hidden)
    assert mask is not None
    assert masks.of(version, 0, hidden) is mask
    with pytest.raises(ValueError, match="read-only"):
        mask[0] = True
