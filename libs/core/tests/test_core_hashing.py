"""Id hashes: golden vectors, a plain reference, and the cut into shards."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_core.contracts import EVERYTHING, shard_range
from shoal_core.hashing import hash_ids, shard_of
from shoal_testing.strategies import QUICK

WORD = 2**64 - 1
texts = st.lists(st.text(max_size=30), max_size=12)


def mix(value: int) -> int:
    value = (value ^ value >> 33) * 0xFF51AFD7ED558CCD & WORD
    value = (value ^ value >> 33) * 0xC4CEB9FE1A85EC53 & WORD
    return value ^ value >> 33


def reference(text: str) -> int:
    data = text.encode()
    state = 0x9E3779B97F4A7C15
    for start in range(0, len(data), 8):
        state ^= mix(int.from_bytes(data[start : start + 8], "little"))
        state = (state << 29 | state >> 35) & WORD
        state = (state * 0x87C37B91114253D5 + 0x52DCE729) & WORD
    return mix(state ^ len(data))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0x9CA066F1A4AB2EEA),
        ("a", 0x3340DA582CF1D36F),
        ("b", 0xB54F2D3F85705EC6),
        ("abcdefgh", 0x17882240E3E9E989),
        ("abcdefghi", 0x17AF08429A485F31),
        ("abcdefgh\0", 0x725D42CBC25DC620),
        ("é", 0x54CE3417A72295D6),
    ],
)
def test_golden_vectors(text: str, expected: int) -> None:
    assert hash_ids(pa.array([text])).tolist() == [expected] == [reference(text)]


@QUICK
@given(texts=texts)
def test_agrees_with_the_reference(texts: list[str]) -> None:
    hashes = hash_ids(pa.array(texts, pa.string()))
    assert hashes.dtype == np.uint64
    assert hashes.tolist() == [reference(text) for text in texts]
    assert hash_ids(pa.array(texts, pa.large_string())).tolist() == hashes.tolist()


@QUICK
@given(texts=texts, start=st.integers(0, 12), length=st.integers(0, 12))
def test_slices_and_chunks_agree(texts: list[str], start: int, length: int) -> None:
    array = pa.array(texts, pa.string())
    expected = [reference(text) for text in texts]
    assert hash_ids(array.slice(start, length)).tolist() == expected[start : start + length]
    chunked = pa.chunked_array([array.slice(0, start), array.slice(0, 0), array.slice(start)], pa.string())
    assert hash_ids(chunked).tolist() == expected
    assert hash_ids(chunked.slice(start, length)).tolist() == expected[start : start + length]


def test_no_chunks() -> None:
    assert hash_ids(pa.chunked_array([], pa.string())).tolist() == []


@pytest.mark.parametrize("shards", range(1, 8))
def test_shards_cover_the_hash_space_in_order(shards: int) -> None:
    ranges = [shard_range(shard, shards) for shard in range(shards)]
    assert ranges[0].start == 0
    assert ranges[-1].last == WORD
    assert all(left.last + 1 == right.start for left, right in itertools.pairwise(ranges))
    assert [item.is_everything for item in ranges] == [shards == 1] * shards
    borders = np.array([[item.start, item.last] for item in ranges], dtype=np.uint64)
    assert shard_of(borders.reshape(-1), shards).tolist() == [shard for shard in range(shards) for _ in range(2)]


@QUICK
@given(values=st.lists(st.integers(0, WORD), min_size=1, max_size=20), shards=st.integers(1, 64))
def test_shard_of_agrees_with_shard_range(values: list[int], shards: int) -> None:
    found = shard_of(np.array(values, dtype=np.uint64), shards)
    assert found.dtype == np.int64
    for value, shard in zip(values, found.tolist(), strict=True):
        assert shard_range(shard, shards).start <= value <= shard_range(shard, shards).last


def test_everything() -> None:
    assert EVERYTHING.is_everything
    assert not shard_range(0, 2).is_everything
