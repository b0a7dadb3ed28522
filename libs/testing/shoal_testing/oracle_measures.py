"""The oracle's measures of a record by a query: dense distances, 1 - dot product of sparse vectors, 1 - BM25.

A measure carries what an engine's own arithmetic may change: how far its value may be off, and the ``grounds`` it stands on. Records
with equal grounds measure the same in any arithmetic; the others may swap where their values are closer than their errors.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import Stemmer

from shoal_core.schema import Analyzer, Schema

Json = Mapping[str, Any]
Record = dict[str, Any]

_FLOAT32_ERROR = 1e-5  # of one distance, relative to what it is summed of
_FLOAT64_ERROR = 1e-9


class Measured(NamedTuple):
    """One record by one query. ``exact``: small whole numbers, which float32 sums without rounding in any order."""

    value: float
    error: float
    grounds: Hashable
    exact: bool


def distance(space: str, left: Sequence[float], right: Sequence[float]) -> float:
    """Distance of two vectors: squared L2, ``1 - cos`` (1.0 if either is zero) or ``1 - dot``."""
    if space == "l2":
        return math.fsum((a - b) ** 2 for a, b in zip(left, right, strict=True))
    if space == "ip":
        return 1.0 - _dot(left, right)
    norms = math.sqrt(_dot(left, left)) * math.sqrt(_dot(right, right))
    return 1.0 if norms == 0.0 else 1.0 - _dot(left, right) / norms


def measure_dense(space: str, query: Sequence[float], embedding: Sequence[float]) -> Measured:
    """By distance."""
    query, embedding = tuple(query), tuple(embedding)
    value = distance(space, query, embedding)
    if space == "cosine":
        return Measured(value, _FLOAT32_ERROR, (query, embedding), exact=False)
    if all(number.is_integer() and abs(number) <= 256 for number in (*query, *embedding)):
        return Measured(value, 0.0, value, exact=True)
    norms = _dot(query, query) + _dot(embedding, embedding)
    return Measured(value, _FLOAT32_ERROR * (1.0 + norms), (query, embedding), exact=False)


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


# --- sparse vectors


def measure_sparse(records: Sequence[Record], key: str, query: Json, *, idf: bool) -> dict[str, Measured]:
    """By id, every record that has a sparse vector at ``key``."""
    vectors = {record["id"]: _sparse(record["metadata"].get(key)) for record in records}
    present = {record_id: vector for record_id, vector in vectors.items() if vector is not None}
    weights = dict(_sparse(query) or {})
    if idf:
        having = Counter(index for vector in present.values() for index in vector)
        weights = {index: value * _idf(len(present), having[index]) for index, value in weights.items()}
    found = {}
    for record_id, vector in present.items():
        products = {index: weights[index] * value for index, value in vector.items() if index in weights}
        value = 1.0 - math.fsum(products.values())
        exact = not idf and all((number * 16).is_integer() and abs(number) < 2**20 for number in products.values())
        error = 0.0 if exact else _FLOAT64_ERROR * (1.0 + math.fsum(abs(number) for number in products.values()))
        grounds: Hashable = value if exact else tuple(sorted((index, vector[index]) for index in products))
        found[record_id] = Measured(value, error, grounds, exact)
    return found


def _sparse(value: Any) -> dict[int, float] | None:
    if not isinstance(value, Mapping):
        return None
    return dict(zip(value["indices"], map(float, value["values"]), strict=True))


# --- text


@lru_cache(maxsize=8192)
def terms_of(text: str, analyzer: Analyzer) -> tuple[str, ...]:
    """The terms of a text, in order."""
    if analyzer.tokenizer == "words":
        text = re.sub(r"[^\w\s]+", " ", text)
    if analyzer.stop_words is None and analyzer.language != "none":
        raise ValueError("give the stop words: the list of a language is not written twice")
    stop_words = analyzer.stop_words or ()
    tokens = [
        token for token in text.lower().split() if token not in stop_words and len(token) <= analyzer.token_length
    ]
    if analyzer.language == "none":
        return tuple(tokens)
    return tuple(Stemmer.Stemmer(analyzer.language).stemWords(tokens))


def measure_text(records: Sequence[Record], query: str, schema: Schema) -> dict[str, Measured]:
    """By id, every record whose document has at least one term of the query."""
    documents = {
        record["id"]: Counter(terms_of(record["document"], schema.analyzer))
        for record in records
        if record["document"] is not None
    }
    wanted = Counter(terms_of(query, schema.analyzer))
    having = {term: sum(term in document for document in documents.values()) for term in wanted}
    lengths = {record_id: document.total() for record_id, document in documents.items()}
    average = sum(lengths.values()) / len(documents) if documents else 0.0
    k1, b = schema.bm25.k1, schema.bm25.b
    found = {}
    for record_id, document in documents.items():
        shared = [term for term in wanted if document[term]]
        if not shared:
            continue
        score = math.fsum(
            wanted[term]
            * _idf(len(documents), having[term])
            * (document[term] * (k1 + 1.0))
            / (document[term] + k1 * (1.0 - b + b * lengths[record_id] / average))
            for term in shared
        )
        grounds = (lengths[record_id], *((term, document[term]) for term in shared))
        found[record_id] = Measured(1.0 - score, _FLOAT64_ERROR * (1.0 + score), grounds, exact=False)
    return found


def _idf(records: int, having: int) -> float:
    return math.log(1.0 + (records - having + 0.5) / (having + 0.5))
