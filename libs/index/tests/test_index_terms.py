"""The ranked index against BM25 in plain Python, and against itself when segments are merged."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_core.schema import Analyzer
from shoal_index.terms import TermIndex
from shoal_testing.strategies import examples

ANALYZER = Analyzer(language="none", stop_words=("the",))
WORDS = ("a", "b", "cc", "é", "日本", "the", "\U0001f600x", "\uffff", "")
DOCUMENTS = st.lists(st.none() | st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join), max_size=8)
QUERY = ("a", "b", "cc", "missing", "é", "日本")


def column(documents: list[str | None]) -> pa.Array:
    return pa.array(documents, pa.string())


def terms_of(document: str) -> list[str]:
    """Oracle of the analyzer, for the words above."""
    kept = (word.replace("\U0001f600", "").replace("\uffff", "") for word in document.split())
    return [word for word in kept if word and word != "the"]


def assert_same(found: TermIndex, expected: TermIndex) -> None:
    assert found.terms.equals(expected.terms)
    for name in ("occurrences", "lengths"):
        left, right = getattr(found, name), getattr(expected, name)
        assert (left.dtype, left.tolist()) == (right.dtype, right.tolist())
    for name in ("starts", "rows"):
        left, right = getattr(found.postings, name), getattr(expected.postings, name)
        assert (left.dtype, left.tolist()) == (right.dtype, right.tolist())


def oracle_scores(
    documents: list[str | None], query: Counter[str], k1: float, b: float
) -> tuple[list[float], float, dict[int, float]]:
    """Weights of the sorted query terms, mean length, score by row: ADR 0005, one document at a time."""
    bags = {row: Counter(terms_of(text)) for row, text in enumerate(documents) if text is not None}
    total = sum(bag.total() for bag in bags.values())
    average = total / len(bags) if bags else 0.0
    weights = []
    for term in sorted(query):
        n = sum(term in bag for bag in bags.values())
        weights.append(query[term] * math.log(1 + (len(bags) - n + 0.5) / (n + 0.5)))
    scores = {}
    for row, bag in bags.items():
        if not any(term in bag for term in query):
            continue
        scores[row] = sum(
            weight * bag[term] * (k1 + 1) / (bag[term] + k1 * (1 - b + b * bag.total() / average))
            for term, weight in zip(sorted(query), weights, strict=True)
            if term in bag
        )
    return weights, average, scores


@examples(100)
@given(DOCUMENTS, st.lists(st.sampled_from(QUERY), min_size=1, max_size=6), st.sampled_from([0.0, 1.2, 2.0]), st.data())
def test_scores_are_those_of_the_formula(
    documents: list[str | None], asked: list[str], k1: float, data: st.DataObject
) -> None:
    b = data.draw(st.sampled_from([0.0, 0.75, 1.0]))
    index = TermIndex.build(column(documents), ANALYZER)
    weights, average, expected = oracle_scores(documents, Counter(asked), k1, b)
    terms = sorted(set(asked))
    statistics = index.statistics(terms)
    assert statistics.length / max(statistics.records, 1) == average
    idf = np.log(1 + (statistics.records - statistics.frequencies + 0.5) / (statistics.frequencies + 0.5))
    found_weights = idf * np.array([asked.count(term) for term in terms])
    np.testing.assert_allclose(found_weights, weights, rtol=1e-12)

    allowed = data.draw(st.none() | st.lists(st.booleans(), min_size=len(documents), max_size=len(documents)))
    mask = None if allowed is None else np.array(allowed, dtype=bool)
    rows, scores = index.score(terms, found_weights, average_length=average, k1=k1, b=b, allowed=mask)
    assert rows.tolist() == [row for row in sorted(expected) if allowed is None or allowed[row]]
    assert [part.dtype.name for part in (rows, scores)] == ["int64", "float64"]
    np.testing.assert_allclose(scores, [expected[row] for row in rows.tolist()], rtol=1e-12)


@examples(100)
@given(DOCUMENTS, st.data())
def test_statistics_count_live_rows_only(documents: list[str | None], data: st.DataObject) -> None:
    live = data.draw(st.none() | st.lists(st.booleans(), min_size=len(documents), max_size=len(documents)))
    statistics = TermIndex.build(column(documents), ANALYZER).statistics(
        QUERY, None if live is None else np.array(live, dtype=bool)
    )
    kept = [text for row, text in enumerate(documents) if text is not None and (live is None or live[row])]
    assert statistics.records == len(kept)
    assert statistics.length == sum(len(terms_of(text)) for text in kept)
    assert statistics.frequencies.dtype == np.int64
    assert statistics.frequencies.tolist() == [sum(term in terms_of(text) for text in kept) for term in QUERY]


@examples(100)
@given(st.lists(DOCUMENTS, min_size=1, max_size=4), st.data())
def test_a_merged_index_is_the_one_built_of_what_remains(parts: list[list[str | None]], data: st.DataObject) -> None:
    places = [(part, row) for part, documents in enumerate(parts) for row in range(len(documents))]
    kept = data.draw(st.permutations(places)) if places else []
    kept = kept[: data.draw(st.integers(0, len(kept)))]
    new_rows: list[npt.NDArray[np.int64]] = [np.full(len(documents), -1, dtype=np.int64) for documents in parts]
    for new, (part, row) in enumerate(kept):
        new_rows[part][row] = new
    indexes = [TermIndex.build(column(documents), ANALYZER) for documents in parts]
    merged = TermIndex.merge(list(zip(indexes, new_rows, strict=True)), len(kept))
    assert_same(merged, TermIndex.build(column([parts[part][row] for part, row in kept]), ANALYZER))


@examples(50)
@given(DOCUMENTS)
def test_a_table_and_back(documents: list[str | None]) -> None:
    index = TermIndex.build(column(documents), ANALYZER)
    table = index.to_table()
    assert table.num_rows == 1
    assert_same(TermIndex.of_table(table), index)


def test_reading_a_table_copies_nothing() -> None:
    table = TermIndex.build(column(["a b", "b"]), ANALYZER).to_table()
    before = pa.total_allocated_bytes()
    index = TermIndex.of_table(table)
    assert pa.total_allocated_bytes() == before
    assert not index.postings.rows.flags.owndata
    assert not index.lengths.flags.owndata


def test_a_document_scores_the_same_wherever_it_lies() -> None:
    random = np.random.default_rng(0)
    words = [f"w{number}" for number in range(30)]
    documents = [" ".join(random.choice(words, size=random.integers(1, 40))) for _ in range(200)]
    order = random.permutation(len(documents))
    weights = random.random(len(words))

    def score(index: TermIndex, terms: list[str], of_terms: npt.NDArray[np.float64]) -> tuple[Any, Any]:
        return index.score(terms, of_terms, average_length=17.3, k1=1.2, b=0.75)

    whole = TermIndex.build(column(list(documents)), ANALYZER)
    moved = TermIndex.build(column([documents[row] for row in order]), ANALYZER)
    rows, scores = score(whole, sorted(words), weights[np.argsort(words)])
    moved_rows, moved_scores = score(moved, words, weights)
    assert scores[np.searchsorted(rows, order[moved_rows])].tolist() == moved_scores.tolist()
    alone = [score(TermIndex.build(column([text]), ANALYZER), words, weights)[1][0] for text in documents[:20]]
    assert alone == scores[:20].tolist()


def test_shape_of_a_small_index() -> None:
    index = TermIndex.build(pa.chunked_array([column(["b a b", None]), column(["", "the a"])]), ANALYZER)
    assert index.terms.to_pylist() == ["a", "b"]
    assert [index.postings.of(code).tolist() for code in range(2)] == [[0, 3], [0]]
    assert index.occurrences.tolist() == [1, 1, 2]
    assert index.lengths.tolist() == [3, -1, 0, 1]


@pytest.mark.parametrize("documents", [[], [None], [""]])
def test_nothing_to_find(documents: list[str | None]) -> None:
    index = TermIndex.build(column(documents), ANALYZER)
    rows, scores = index.score(["a"], np.ones(1), average_length=0.0, k1=1.2, b=0.75)
    assert (len(rows), len(scores)) == (0, 0)
    assert index.statistics(["a"]).frequencies.tolist() == [0]
    assert index.statistics([]).frequencies.dtype == np.int64
