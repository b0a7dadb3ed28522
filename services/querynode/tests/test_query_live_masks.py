"""Masks of live rows against counting them anew, and that nobody changes what all reads share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from shoal_index.version import ShardVersion
from shoal_query.execute import LiveMasks

ROWS = 50


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
    version, masks = version_with(np.arange(ROWS) < 3), LiveMasks()
    hidden = np.array([30, 40])
    matching = np.arange(ROWS) % 2 == 0
    matching.flags.writeable = False
    made = []
    for until in (1, 1, 2):
        live = masks.of(version, 0, hidden[:until])
        assert live is not None
        made.append(masks.of_matching(live, matching))
        assert made[-1].tolist() == (live & matching).tolist()
    assert made[1] is made[0] is not made[2]
    with pytest.raises(ValueError, match="read-only"):
        made[0][0] = True


@pytest.mark.parametrize("until", [0, 5])
def test_masks_are_made_once_and_nobody_may_write_to_them(until: int) -> None:
    version, masks = version_with(np.arange(ROWS) < 3), LiveMasks()
    hidden = np.arange(10, 10 + until)
    mask = masks.of(version, 0, hidden)
    assert mask is not None
    assert masks.of(version, 0, hidden) is mask
    with pytest.raises(ValueError, match="read-only"):
        mask[0] = True
