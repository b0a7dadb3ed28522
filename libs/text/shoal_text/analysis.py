"""Text → terms: the same for the documents of segments, those of the tail, and queries.

Python's ``re``, ``str.lower`` and Unicode tables decide what a letter, white space and lower case are, because they are what the
BM25 of the reference's Python client means by them; Arrow's own kernels differ ("İ", "Σ" at the end of a word, U+0085, U+001C to
U+001F). They run over many documents at once, joined by line breaks; whatever concerns a token runs over the distinct ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import Stemmer

from shoal_core.errors import InvalidArgument
from shoal_core.records import one_chunk
from shoal_core.schema import Analyzer
from shoal_text.stop_words import STOP_WORDS

NO_LANGUAGE: Final = "none"

# What becomes one space: all that is no part of a token, but for spaces, already one, and line breaks, which part documents.
# Marks that combine are neither letters nor digits: words in scripts that need them are best split by "whitespace".
_GAPS: Final[Mapping[str, re.Pattern[str]]] = MappingProxyType(
    {"words": re.compile(r"[^\w \n]+"), "whitespace": re.compile(r"[^\S \n]+")}
)
# Bytes of text taken together: Python's part of the work holds the interpreter's lock, here for some milliseconds.
_PIECE_BYTES: Final = 128 << 10
_PIECE_WORDS: Final = 8192  # as above, for the stemmer
_TOKENS: Final = pa.dictionary(pa.int32(), pa.string())

Codes = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Analyzed:
    """The terms of n documents in order of documents and, within one, of the text.

    Attributes:
        terms: (d,) string: the distinct ones, ascending by code point.
        codes: (m,) int32: positions in ``terms``.
        rows: (m,) int64: the document that each is of, ascending.
    """

    terms: pa.Array
    codes: Codes
    rows: npt.NDArray[np.int64]


def check_analyzer(analyzer: Analyzer) -> None:
    """Raise `InvalidArgument` for a language that has no stemmer."""
    languages = [NO_LANGUAGE, *Stemmer.algorithms()]
    if analyzer.language not in languages:
        raise InvalidArgument(
            f"{analyzer.language!r} has no stemmer; one of {', '.join(languages)}", field="schema.analyzer.language"
        )


def analyze_column(documents: pa.Array | pa.ChunkedArray, analyzer: Analyzer) -> Analyzed:
    """Terms of a string column; a null has none.

    Text is cut into tokens as `Analyzer.tokenizer` says and put in lower case. Tokens that are stop words or longer than
    ``token_length`` characters are left out, the others become their stems; empty stems are left out.

    Raises:
        InvalidArgument: the analyzer's language is unknown.
    """
    check_analyzer(analyzer)
    column = one_chunk(documents)
    pieces = [_tokens(column[first:last], first, analyzer) for first, last in _pieces(column)]
    tokens = pa.chunked_array([piece for piece, _ in pieces], _TOKENS).unify_dictionaries()
    if not tokens.num_chunks:
        return Analyzed(pa.array([], pa.string()), np.empty(0, np.int32), np.empty(0, np.int64))
    terms, code_of = _terms(tokens.chunk(0).dictionary, analyzer)
    codes = code_of[np.concatenate([chunk.indices.to_numpy() for chunk in tokens.chunks])]
    kept = np.flatnonzero(codes >= 0)
    return Analyzed(terms, codes[kept], np.concatenate([rows for _, rows in pieces])[kept])


def analyze_text(text: str, analyzer: Analyzer) -> list[str]:
    """Terms of a text in its order, as `analyze_column` finds them in a document."""
    analyzed = analyze_column(pa.array([text], pa.string()), analyzer)
    terms: list[str] = analyzed.terms.take(pa.array(analyzed.codes)).to_pylist()
    return terms


def _pieces(column: pa.Array) -> Iterator[tuple[int, int]]:
    """Bounds of consecutive rows with some ``_PIECE_BYTES`` of text each."""
    ends = np.cumsum(pc.binary_length(column).fill_null(0).to_numpy(), dtype=np.int64)
    cuts = np.searchsorted(ends, np.arange(0, ends[-1] if len(ends) else 0, _PIECE_BYTES), side="right")
    bounds = np.unique([0, *cuts, len(column)]).tolist()
    return pairwise(bounds)


def _tokens(documents: pa.Array, first: int, analyzer: Analyzer) -> tuple[pa.DictionaryArray, npt.NDArray[np.int64]]:
    """Tokens and rows of a piece whose first row is ``first``. Empty tokens may be among them."""
    lines = pc.replace_substring(documents.fill_null("").cast(pa.string()), "\n", " ")
    joined = pc.binary_join(pa.ListArray.from_arrays([0, len(lines)], lines), "\n")[0].as_py()
    lower = _GAPS[analyzer.tokenizer].sub(" ", joined).lower()
    tokens = pc.ascii_split_whitespace(pc.split_pattern(pa.array([lower]), "\n").flatten())
    rows = pc.list_parent_indices(tokens).to_numpy() + first
    return tokens.flatten().dictionary_encode(), rows


def _terms(tokens: pa.Array, analyzer: Analyzer) -> tuple[pa.Array, Codes]:
    """The distinct terms of distinct tokens, ascending, and the term of each token or -1."""
    stop_words = STOP_WORDS.get(analyzer.language, ()) if analyzer.stop_words is None else analyzer.stop_words
    stops = pa.array([word.lower() for word in stop_words], pa.string())
    kept = pc.and_not(pc.less_equal(pc.utf8_length(tokens), analyzer.token_length), pc.is_in(tokens, value_set=stops))
    stems = _stems(tokens.filter(kept), analyzer.language)
    encoded = stems.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary)
    rank = np.empty(len(order), dtype=np.int32)
    rank[order.to_numpy()] = np.arange(len(order), dtype=np.int32)
    terms = encoded.dictionary.take(order)
    codes = np.full(len(tokens), -1, dtype=np.int32)
    codes[kept.to_numpy(zero_copy_only=False)] = rank[encoded.indices.to_numpy()]
    empty = int(len(terms) > 0 and terms[0].as_py() == "")  # sorts first, and becomes -1
    return terms[empty:], np.maximum(codes - empty, -1)


def _stems(tokens: pa.Array, language: str) -> pa.Array:
    if language == NO_LANGUAGE:
        return tokens
    # A stemmer is not safe to share between threads, and cheap to make; its cache is of no use to distinct words.
    stem = Stemmer.Stemmer(language, 0).stemWords
    pieces = [tokens.slice(start, _PIECE_WORDS).to_pylist() for start in range(0, len(tokens), _PIECE_WORDS)]
    return pa.chunked_array([stem(words) for words in pieces], pa.string()).combine_chunks()
