"""Trigrams: candidates never miss a document, exact ones are the documents, and merging is the same as building anew."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_core.filters import TextMatcher
from shoal_index import trigrams
from shoal_index.trigrams import TrigramIndex
from shoal_storage.blocks import decode_block, encode_block
from shoal_testing.strategies import examples

Documents = Sequence[str | None]

WORDS = ("ab", "abc", "bca", "é", "日本語", "\U0001f600", "", " ", "aaaa", "zebra", "cab\nbac")
DOCUMENTS = st.lists(st.none() | st.lists(st.sampled_from(WORDS), max_size=5).map("".join), max_size=80)
PATTERNS = st.lists(st.sampled_from(("a", "b", "c", "é", "日", "\U0001f600", "zeb", "\n")), min_size=1, max_size=5).map(
    "".join
)
REGEXES = st.sampled_from(
    (
        "ab.",
        "(ab|bc)a?",
        "zebra|本",
        "^ab",
        "a+b",
        "[ab]c",
        "zeb.*ab",
        "é$",
        "本語|\U0001f600",
        "(?i)ZEB",
        "q",
        "bca.*bca",
        "",
    )
)


def plain(index: TrigramIndex) -> list[dict[str, Any]]:
    return list(index.to_table().to_pylist())


def true_rows(documents: Documents, pattern: str, *, regex: bool) -> list[int]:
    match = pc.match_substring_regex if regex else pc.match_substring
    found = match(pa.array(documents, pa.string()), pattern).to_pylist()
    return [row for row, matches in enumerate(found) if matches]


@given(DOCUMENTS, PATTERNS)
@examples(250)
def test_substring_candidates_miss_nothing_and_exact_ones_are_the_answer(
    documents: list[str | None], pattern: str
) -> None:
    found = TrigramIndex.build(pa.array(documents, pa.string())).candidates(TextMatcher.CONTAINS, pattern)
    expected = true_rows(documents, pattern, regex=False)
    if found is None:
        assert len(pattern.encode()) > 3
        return
    rows = found.rows.tolist()
    assert found.exact == (len(pattern.encode()) <= 3)
    assert rows == sorted(set(rows))
    assert found.count == len(rows)
    assert set(expected) <= set(rows)
    assert not found.exact or rows == expected


def test_several_trigrams_narrow_the_candidates_of_many_rows() -> None:
    rng = random.Random(5)
    often = ["stone", "tonic", "ostrich", "bone", "together", "canoe", "nest", "stoic"]
    seldom = ["prelude", "reluct", "interlude", "prel", "udes"]
    texts = [" ".join([*rng.sample(often, 2), *rng.sample(seldom, int(n % 9 == 0))]) for n in range(5000)]
    index = TrigramIndex.build(pa.array(texts))
    for pattern in ("stone", "tone can", "prelude", "relu", "interlude", "e prel", "stone rel"):
        found = index.candidates(TextMatcher.CONTAINS, pattern)
        expected = set(true_rows(texts, pattern, regex=False))
        assert found is not None
        assert expected <= set(found.rows.tolist())
        assert found.count <= 1.5 * len(expected) + 32
    for pattern in ("ton.*(prel|inter)u?", "(st|to).* relu", "prel.*(ude|nothing)"):
        found = index.candidates(TextMatcher.REGEX, pattern)
        assert found is not None
        assert set(true_rows(texts, pattern, regex=True)) <= set(found.rows.tolist())
        assert found.count < 500


@given(DOCUMENTS, REGEXES)
@examples(250)
def test_regex_candidates_miss_nothing(documents: list[str | None], pattern: str) -> None:
    index = TrigramIndex.build(pa.array(documents, pa.string()))
    found = index.candidates(TextMatcher.REGEX, pattern)
    if found is not None:
        assert not found.exact
        assert 2 * found.count <= len(documents)
        assert set(true_rows(documents, pattern, regex=True)) <= set(found.rows.tolist())


@given(DOCUMENTS, st.randoms(use_true_random=False), st.integers(1, 3))
@examples(300)
def test_merged_and_stored_equals_built(documents: list[str | None], shuffle: random.Random, count: int) -> None:
    new_row = list(range(len(documents)))
    shuffle.shuffle(new_row)
    left_behind = {row for row in new_row if shuffle.random() < 0.3}
    kept = sorted(set(new_row) - left_behind)
    parts = []
    for n in range(count):
        rows = sorted(new_row[n::count])
        part = TrigramIndex.build(pa.array([documents[row] for row in rows], pa.string()))
        moved = np.array([kept.index(row) if row in kept else -1 for row in rows], dtype=np.int64)
        parts.append((part, moved))
    merged = TrigramIndex.merge(parts, len(kept))
    built = TrigramIndex.build(pa.array([documents[row] for row in kept], pa.string()))
    assert plain(merged) == plain(built)
    assert plain(TrigramIndex.of_table(decode_block(encode_block(built.to_table()).data))) == plain(built)


def test_chunks_slices_and_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text {n} " * (n % 5) if n % 3 else None for n in range(200)]
    whole = plain(TrigramIndex.build(pa.array(texts)))
    for kind in (pa.string(), pa.large_string()):
        longer = pa.array(["before", *texts, "after"], kind)
        chunks = pa.chunked_array([longer.slice(1, 50), longer.slice(51, 0), longer.slice(51, 150)])
        assert plain(TrigramIndex.build(longer.slice(1, 200))) == whole
        assert plain(TrigramIndex.build(chunks)) == whole
    monkeypatch.setattr(trigrams, "_BATCH_BYTES", 100)
    assert plain(TrigramIndex.build(pa.array(texts))) == whole


def test_null_slots_with_bytes_behind_them_have_no_trigrams() -> None:
    offsets, data = pa.py_buffer(np.array([0, 3, 6], dtype=np.int32)), pa.py_buffer(b"abcxyz")
    texts = pa.Array.from_buffers(pa.string(), 2, [pa.py_buffer(b"\x01"), offsets, data])
    assert texts.to_pylist() == ["abc", None]
    assert plain(TrigramIndex.build(texts)) == plain(TrigramIndex.build(pa.array(["abc", None])))


@pytest.mark.parametrize("matcher", [TextMatcher.CONTAINS, TextMatcher.NOT_CONTAINS])
def test_substrings_that_follow_from_nothing(matcher: TextMatcher) -> None:
    index = TrigramIndex.build(pa.array(["abc", None, "", "abcd"] + ["abcdef"] * 100))
    assert index.candidates(matcher, "") is None  # of every document: of no use
    assert index.candidates(matcher, "abcde") is None  # of most documents
    absent = index.candidates(matcher, "abcx")
    assert absent is not None
    assert absent.count == 0
    short = index.candidates(matcher, "abc")
    assert short is not None
    assert short.exact
    assert short.count == 102


def test_negated_matchers_have_the_candidates_of_the_positive_ones() -> None:
    index = TrigramIndex.build(pa.array(["some zebra", "zebras", None] + ["other"] * 20))
    for negated, positive, pattern in (
        (TextMatcher.NOT_CONTAINS, TextMatcher.CONTAINS, "zebra"),
        (TextMatcher.NOT_REGEX, TextMatcher.REGEX, "z.b|zeb[r]a"),
    ):
        found, same = index.candidates(negated, pattern), index.candidates(positive, pattern)
        assert found is not None
        assert same is not None
        assert found.rows.tolist() == same.rows.tolist() == [0, 1]


def test_trigrams_of_many_rows_are_bitmaps_and_size_stays_small() -> None:
    common = [f"the same words in all of them, and {n:05}" for n in range(5000)]
    index = TrigramIndex.build(pa.array(common))
    assert len(index.frequent) > 20
    assert index.postings.counts().max() * 32 <= 5000
    assert index.to_table().nbytes < 2 * sum(map(len, common))
    for pattern in ("the", "001", "and 0004", "4", "00"):
        found = index.candidates(TextMatcher.CONTAINS, pattern)
        assert found is not None
        rows = true_rows(common, pattern, regex=False)
        assert set(rows) <= set(found.rows.tolist())
        assert not found.exact or found.rows.tolist() == rows


def test_stored_arrays_are_not_copied() -> None:
    data = encode_block(TrigramIndex.build(pa.array(["abc", "abcd"] * 50)).to_table()).data
    index = TrigramIndex.of_table(decode_block(data))
    arrays = (index.codes, index.postings.starts, index.postings.rows, index.frequent, index.bitmaps)
    for array in arrays:
        at = array.__array_interface__["data"][0]
        assert array.size == 0 or data.address <= at < data.address + data.size


@pytest.mark.parametrize("texts", [[], [None, None], ["", ""]])
def test_nothing_to_find(texts: list[str | None]) -> None:
    index = TrigramIndex.of_table(TrigramIndex.build(pa.array(texts, pa.string())).to_table())
    for matcher, pattern in ((TextMatcher.CONTAINS, "a"), (TextMatcher.CONTAINS, "abcd"), (TextMatcher.REGEX, "ab|cd")):
        found = index.candidates(matcher, pattern)
        assert found is not None
        assert found.count == 0
    assert plain(TrigramIndex.merge([], len(texts))) == plain(index)
    assert plain(TrigramIndex.merge([(index, np.arange(len(texts)))], len(texts))) == plain(index)
