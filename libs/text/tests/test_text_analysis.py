"""Text analysis: tokens, stems and stop words, and that a column and a single text agree."""

from __future__ import annotations

import re
from importlib import import_module

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_core.errors import InvalidArgument
from shoal_core.schema import Analyzer
from shoal_testing.strategies import examples
from shoal_text import analysis
from shoal_text.analysis import Analyzed, analyze_column, analyze_text, check_analyzer
from shoal_text.stop_words import STOP_WORDS

Stemmer = import_module("Stemmer").Stemmer

PLAIN = Analyzer(language="none")

# Where libraries differ about letters, white space and lower case.
_HARD = "aZ é_1 \n\t\r\x0b\x1c\x1f\x85\xa0\u2028\u3000İIıßẞΣσς'.·-\u0301\u200b\u00adʰ²Ⅷ日ह\u093f😀\x00ǅ𐐀"
TEXTS = st.lists(
    st.text(_HARD, max_size=12) | st.text(max_size=12) | st.sampled_from(["the fox", "running", ""]), max_size=3
).map(" ".join)
ANALYZERS = st.builds(
    Analyzer,
    tokenizer=st.sampled_from(["words", "whitespace"]),
    language=st.sampled_from(["english", "none", "turkish", "greek"]),
    token_length=st.sampled_from([1, 3, 40]),
    stop_words=st.none() | st.just(("A", "fox", "é")),
)


def terms_by_row(analyzed: Analyzed, rows: int) -> list[list[str]]:
    """The terms of each document."""
    terms = analyzed.terms.take(pa.array(analyzed.codes)).to_pylist()
    found: list[list[str]] = [[] for _ in range(rows)]
    for term, row in zip(terms, analyzed.rows.tolist(), strict=True):
        found[row].append(term)
    return found


def expected_terms(text: str, analyzer: Analyzer) -> list[str]:
    """The definition, one text at a time."""
    if analyzer.tokenizer == "words":
        text = re.sub(r"[^\w\s]+", " ", text)
    stop_words = STOP_WORDS.get(analyzer.language, frozenset()) if analyzer.stop_words is None else analyzer.stop_words
    stops = {word.lower() for word in stop_words}
    tokens = [token for token in text.lower().split() if token not in stops and len(token) <= analyzer.token_length]
    if analyzer.language == "none":
        return tokens
    return [stem for stem in Stemmer(analyzer.language).stemWords(tokens) if stem]


@examples(200)
@given(st.lists(TEXTS | st.none(), max_size=6), ANALYZERS, st.integers(1, 3))
def test_a_column_holds_the_terms_of_each_of_its_texts(
    texts: list[str | None], analyzer: Analyzer, pieces: int
) -> None:
    column = pa.array(texts, pa.string())
    size = len(texts) // pieces + 1
    chunked = pa.chunked_array([column[at : at + size] for at in range(0, len(texts), size)], pa.string())
    expected = [[] if text is None else expected_terms(text, analyzer) for text in texts]
    analyzed = analyze_column(chunked, analyzer)
    assert terms_by_row(analyzed, len(texts)) == expected
    assert [[] if text is None else analyze_text(text, analyzer) for text in texts] == expected
    assert analyzed.terms.to_pylist() == sorted({term for terms in expected for term in terms})
    assert (analyzed.codes.dtype.name, analyzed.rows.dtype.name) == ("int32", "int64")


def test_pieces_of_a_column_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["", None, "one two", "", "two three " * 20, "four", None, "one"] * 3
    column = pa.array(texts, pa.string())
    whole = analyze_column(column, Analyzer())
    monkeypatch.setattr(analysis, "_PIECE_BYTES", 8)
    monkeypatch.setattr(analysis, "_PIECE_WORDS", 1)
    cut = analyze_column(column, Analyzer())
    assert cut.terms.equals(whole.terms)
    assert (cut.codes.tolist(), cut.rows.tolist()) == (whole.codes.tolist(), whole.rows.tolist())


def test_large_strings_are_strings() -> None:
    analyzed = analyze_column(pa.array(["a b", None, "b"], pa.large_string()), PLAIN)
    assert analyzed.terms.to_pylist() == ["a", "b"]
    assert analyzed.rows.tolist() == [0, 0, 2]


@pytest.mark.parametrize("language", ["none", *import_module("Stemmer").algorithms()])
def test_every_language_has_terms(language: str) -> None:
    check_analyzer(Analyzer(language=language))
    assert analyze_text("Bücher 17", Analyzer(language=language))[-1] == "17"


def test_a_slice_starts_at_row_0() -> None:
    assert analyze_column(pa.array(["a b", "c d", "e"])[1:], PLAIN).rows.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("The Foxes aren't running!", ["fox", "run"]),
        ("snake_case C++ 3.14", ["snake_cas", "c", "3", "14"]),
        ("a\x85bb\x1cccc\u2028dddd", ["bb", "ccc", "dddd"]),
        ("cafe\u0301", ["cafe"]),
        ("x" * 40 + " " + "x" * 41, ["x" * 40]),
        ("é" * 40 + " " + "é" * 41, ["é" * 40]),
        ("the of and", []),
        ("", []),
    ],
)
def test_english(text: str, terms: list[str]) -> None:
    assert analyze_text(text, Analyzer()) == terms


def test_lower_case_is_that_of_whole_words() -> None:
    assert analyze_text("ΟΔΟΣ ΣΑ İ GROẞ", PLAIN) == ["οδος", "σα", "i\u0307", "groß"]
    assert terms_by_row(analyze_column(pa.array(["ΟΔΟΣ", "Α"]), PLAIN), 2) == [["οδος"], ["α"]]


def test_white_space_alone_parts_tokens() -> None:
    assert analyze_text("C++ e-mail,\u3000Hi!", Analyzer(tokenizer="whitespace", language="none")) == [
        "c++",
        "e-mail,",
        "hi!",
    ]


def test_stop_words_are_compared_before_stemming_and_can_be_given() -> None:
    assert analyze_text("having haves the", Analyzer()) == ["have"]
    assert analyze_text("having the", Analyzer(stop_words=("Having",))) == ["the"]
    assert analyze_text("having the", Analyzer(stop_words=())) == ["have", "the"]
    assert analyze_text("having the", Analyzer(language="none", stop_words=("the",))) == ["having"]
    assert len(STOP_WORDS["english"]) == 179


def test_languages() -> None:
    assert analyze_text("Häuser laufen", Analyzer(language="german")) == ["haus", "lauf"]
    assert analyze_text("Häuser laufen the", PLAIN) == ["häuser", "laufen", "the"]


def test_an_unknown_language_is_named_with_those_that_are_known() -> None:
    with pytest.raises(InvalidArgument, match=r"'klingon' has no stemmer; one of none, .*english") as caught:
        check_analyzer(Analyzer(language="klingon"))
    assert caught.value.field == "schema.analyzer.language"
    with pytest.raises(InvalidArgument):
        analyze_text("x", Analyzer(language="klingon"))
