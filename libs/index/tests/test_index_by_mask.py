"""What is kept about masks, and for how long."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from shoal_index.vector.by_mask import ByMask
from shoal_index.vector.engine import Mask


def mask_of(value: int, *, writable: bool = False) -> Mask:
    mask = np.arange(8) == value
    mask.flags.writeable = writable
    return mask


def test_what_was_made_is_kept_for_the_same_array_alone() -> None:
    kept: ByMask[object] = ByMask()
    mask, equal = mask_of(3), mask_of(3)
    made = kept.of(mask, object)
    assert kept.of(mask, object) is made
    assert kept.of(equal, object) is not made


def test_nothing_is_kept_of_masks_that_may_change() -> None:
    kept: ByMask[object] = ByMask()
    mask = mask_of(3, writable=True)
    assert kept.of(mask, object) is not kept.of(mask, object)
    assert kept.values() == []
    mask.flags.writeable = False
    made = kept.of(mask, object)
    mask.flags.writeable = True
    assert kept.of(mask, object) is not made


def test_nothing_is_kept_of_masks_that_are_gone() -> None:
    """Also where a new one has come to lie at the same place."""
    kept: ByMask[int] = ByMask()
    for number in range(100):
        assert kept.of(mask_of(number % 8), partial(int, number)) == number
    gc.collect()
    lasting = mask_of(1)
    kept.of(lasting, lambda: -1)
    assert kept.values() == [-1]


def test_threads_that_come_at_once_find_what_one_of_them_made() -> None:
    kept: ByMask[int] = ByMask()
    masks = [mask_of(number % 8) for number in range(20)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: kept.of(masks[number % 20], partial(int, number % 20)), range(2_000)))
    assert found == [number % 20 for number in range(2_000)]
    assert sorted(kept.values()) == list(range(20))


def test_few_are_kept() -> None:
    kept: ByMask[int] = ByMask()
    masks = [mask_of(number % 8) for number in range(50)]
    for number, mask in enumerate(masks):
        kept.of(mask, partial(int, number))
        assert kept.values() == list(range(max(0, number - 31), number + 1)), "the newest"
