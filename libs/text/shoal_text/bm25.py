"""BM25 as an embedding function: documents become sparse vectors whose products with a query's approximate the ranking.

Chroma's clients call it ``chroma_bm25``; the vectors are those of its Python client, number for number. (Its Rust client measures
tokens in bytes and so leaves out other ones.) No statistics of the collection are needed: the mean length is a constant. Queries
by BM25 proper, with the statistics, are a matter of the ranked index.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import mmh3
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.errors import InvalidArgument
from shoal_core.records import SPARSE_TYPE
from shoal_core.schema import Analyzer
from shoal_text.analysis import analyze_column

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class SparseColumn:
    """Vectors of n documents, null where the document is.

    Attributes:
        vectors: (n,) of `SPARSE_TYPE`: ascending uint32 indices and float32 values.
        tokens: (n,) lists of strings, one for each index, if they were asked for; of tokens with the same index the first.
    """

    vectors: pa.StructArray
    tokens: pa.ListArray | None


@dataclass(frozen=True, slots=True)
class Bm25Function:
    """Robertson and Zaragoza's BM25 (2009) without inverse document frequencies, over hashed English stems.

    Attributes:
        k, b: how fast occurrences saturate, and how much length counts.
        avg_doc_length: tokens of a document of average length.
        token_max_length: longer tokens, in characters, are left out.
        stopwords: instead of the English ones; None for those.
        include_tokens: whether the stems come along.
    """

    NAME: ClassVar[str] = "chroma_bm25"

    k: float = 1.2
    b: float = 0.75
    avg_doc_length: float = 256.0
    token_max_length: int = 40
    stopwords: tuple[str, ...] | None = None
    include_tokens: bool = False

    def __post_init__(self) -> None:
        for name, least in (("k", 0.0), ("b", 0.0), ("avg_doc_length", math.ulp(0.0)), ("token_max_length", 0.0)):
            value = getattr(self, name)
            if not _is_number(value) or not least <= value < math.inf:
                raise InvalidArgument(f"{value!r}; a positive number{'' if least else ' or 0'}", field=name)
        if self.b > 1:
            raise InvalidArgument(f"{self.b!r}; from 0 to 1 is allowed", field="b")
        if self.stopwords is not None and not all(isinstance(word, str) for word in self.stopwords):
            raise InvalidArgument("expected strings", field="stopwords")
        if not isinstance(self.include_tokens, bool):
            raise InvalidArgument("expected true or false", field="include_tokens")

    @classmethod
    def from_config(cls, config: Json) -> Self:
        """The function that `to_config` tells of; what is not named is as by default. Raises `InvalidArgument` naming the member."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(config) - set(known))
        if unknown:
            raise InvalidArgument(f"unknown; one of {', '.join(known)}", field=unknown[0])
        stopwords = config.get("stopwords")
        if stopwords is not None and not isinstance(stopwords, list | tuple):
            raise InvalidArgument("expected a list of strings", field="stopwords")
        return cls(**{**config, "stopwords": None if stopwords is None else tuple(stopwords)})

    def to_config(self) -> dict[str, Any]:
        """As JSON, with the names that Chroma's clients store; own stop words only if there are any."""
        config = {field.name: getattr(self, field.name) for field in fields(self)}
        stopwords = config.pop("stopwords")
        return config if stopwords is None else config | {"stopwords": list(stopwords)}

    def encode(self, documents: pa.Array | pa.ChunkedArray) -> SparseColumn:
        """Vectors of a string column.

        Index is the absolute value of a term's signed 32-bit MurmurHash3 (seed 0); terms with the same one count as one.
        Value is tf·(k + 1) / (tf + k·(1 − b + b·length / avg_doc_length)), length being the document's terms.
        """
        analyzed = analyze_column(
            documents, Analyzer(token_length=int(self.token_max_length), stop_words=self.stopwords)
        )
        hashes = _hashes(analyzed.terms)
        # Of each row and index: the place of its first term, and how many there are.
        keys = (analyzed.rows.astype(np.uint64) << np.uint64(32)) | hashes[analyzed.codes]
        pairs, first, counts = np.unique(keys, return_index=True, return_counts=True)
        rows = (pairs >> np.uint64(32)).astype(np.int64)
        lengths = np.bincount(analyzed.rows, minlength=len(documents))
        values = self._values(counts.astype(np.float64), lengths[rows].astype(np.float64))
        offsets = np.searchsorted(rows, np.arange(len(documents) + 1)).astype(np.int32)
        parts = [
            pa.ListArray.from_arrays(offsets, pa.array(part))
            for part in (pairs.astype(np.uint32), values.astype(np.float32))
        ]
        vectors = pa.StructArray.from_arrays(parts, fields=list(SPARSE_TYPE), mask=_nulls(documents))
        if not self.include_tokens:
            return SparseColumn(vectors, None)
        labels = analyzed.terms.take(pa.array(analyzed.codes[first]))
        return SparseColumn(vectors, pa.ListArray.from_arrays(offsets, labels, mask=_nulls(documents)))

    def _values(self, counts: npt.NDArray[np.float64], lengths: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return counts * (self.k + 1) / (counts + self.k * (1 - self.b + self.b * lengths / self.avg_doc_length))


def _hashes(terms: pa.Array) -> npt.NDArray[np.uint64]:
    """(d,) hashes from 0 to 2³¹."""
    signed = np.fromiter(map(mmh3.hash, terms.to_pylist()), dtype=np.int64, count=len(terms))
    return np.abs(signed).astype(np.uint64)


def _nulls(documents: pa.Array | pa.ChunkedArray) -> pa.Array:
    return pa.array(np.asarray(documents.is_null()))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
