"""What Shoal asks of an embedding function, and the checks on what comes back.

There are two kinds. A local one (`EmbeddingFunction`) computes: it blocks, and `Gateway` runs it in a thread. A remote one
(`RemoteFunction`) only says what to ask a service and how to read its answer; `Gateway` does the asking. What a collection
stores of either is opaque data to the server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from shoal_core.errors import DimensionMismatch, InvalidArgument

Vectors = NDArray[np.float32]


class Side(StrEnum):
    """What texts are for: to be found, or to find with."""

    DOCUMENTS = "documents"
    QUERIES = "queries"


@runtime_checkable
class EmbeddingFunction(Protocol):
    """Turns texts into vectors of one dimension.

    Calls block; from async code run them in a thread. Models that treat questions and passages alike return the same
    from both methods.
    """

    @property
    def name(self) -> str:
        """What a collection stores to find this function again; see `shoal.embedding.registry`."""
        ...

    @property
    def dimension(self) -> int | None:
        """Components per vector; None if only a call can tell."""
        ...

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """One float32 row per text, shape (len(texts), dimension), in the order of the texts."""
        ...

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """As `embed_documents`, for texts that are searched with."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """One call of a service: a POST of JSON.

    Attributes:
        url: without credentials.
        body: JSON.
        headers: besides those of JSON and of authentication.
    """

    url: str
    body: Mapping[str, Any]
    headers: Mapping[str, str]


@runtime_checkable
class RemoteFunction(Protocol):
    """An embedding function that a service computes; without any I/O. `Gateway` calls the service."""

    @property
    def name(self) -> str:
        """See `EmbeddingFunction.name`."""
        ...

    @property
    def dimension(self) -> int | None:
        """See `EmbeddingFunction.dimension`."""
        ...

    @property
    def url(self) -> str:
        """Of the service."""
        ...

    @property
    def api_key_env_var(self) -> str | None:
        """The environment variable whose value authenticates (as bearer); None for none."""
        ...

    def request(self, texts: Sequence[str], side: Side) -> Request:
        """The call that embeds the texts."""
        ...

    def rows(self, answer: object, count: int) -> object:
        """The vectors in the answer's JSON, in the order of the ``count`` texts. Raises `InvalidArgument` for another answer."""
        ...


@dataclass(frozen=True, slots=True)
class CallableEmbedding:
    """Makes an embedding function of any callable from a list of texts to rows of numbers.

    Attributes:
        name: what a collection stores.
        dimension: components per vector, checked on every call; None accepts any.
        function: list of str → anything numpy reads as shape (n, dimension).
    """

    name: str
    dimension: int | None
    function: Callable[[list[str]], Any]

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """Calls the function once; raises InvalidArgument if its answer does not fit the texts."""
        return self._embed(texts, "documents")

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """Calls the function once; raises InvalidArgument if its answer does not fit the texts."""
        return self._embed(texts, "query_texts")

    def _embed(self, texts: Sequence[str], field: str) -> Vectors:
        check_texts(texts, field)
        if not texts:
            return np.empty((0, self.dimension or 0), dtype=np.float32)
        answer = self.function(list(texts))
        return check_vectors(answer, len(texts), dimension=self.dimension, name=self.name, field=field)


def embed_documents(function: EmbeddingFunction, texts: Sequence[str], field: str = "documents") -> Vectors:
    """The function's vectors for `texts`, shape (n, dimension), checked.

    Raises:
        InvalidArgument: the texts are not strings, or the answer has a wrong count, shape or type, or NaN or infinity.
        DimensionMismatch: the answer's dimension is not the one that the function declares.
    """
    check_texts(texts, field)
    answer = function.embed_documents(texts)
    return check_vectors(answer, len(texts), dimension=function.dimension, name=function.name, field=field)


def embed_queries(function: EmbeddingFunction, texts: Sequence[str], field: str = "query_texts") -> Vectors:
    """As `embed_documents`, for texts that are searched with."""
    check_texts(texts, field)
    answer = function.embed_queries(texts)
    return check_vectors(answer, len(texts), dimension=function.dimension, name=function.name, field=field)


def check_texts(texts: Sequence[str], field: str = "documents") -> None:
    """Raises InvalidArgument unless `texts` is a sequence of strings that can be encoded as UTF-8."""
    if isinstance(texts, str):
        raise InvalidArgument("expected a list of texts, got one text; put it into a list", field=field)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidArgument(f"expected a text, got {type(text).__name__}", field=f"{field}[{row}]")
        if not text.isascii() and _has_lone_surrogate(text):
            raise InvalidArgument(
                "holds a lone surrogate, which UTF-8 cannot encode; clean it", field=f"{field}[{row}]"
            )


def check_vectors(
    answer: object,
    count: int,
    *,
    dimension: int | None,
    name: str,
    field: str = "documents",
    rows: Sequence[int] | None = None,
) -> Vectors:
    """`answer` as a C-contiguous float32 array of shape (count, dimension).

    Args:
        rows: the places of the texts in ``field``, for errors; None if they are 0, 1, 2 …

    Raises:
        InvalidArgument: not numeric, not two-dimensional, not one row per text, without columns, not finite, or a row is zero
            throughout, which no model makes of a text and which has no direction.
        DimensionMismatch: `dimension` is known and differs.
    """
    source = f"embedding function {name!r}"
    try:
        with np.errstate(over="ignore"):  # too large for float32 becomes infinity, which is refused below
            vectors = np.asarray(answer, dtype=np.float32, order="C")
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"{source} returned no matrix of numbers ({error})", field=field) from error
    if not count and not vectors.size:
        return np.empty((0, dimension or 0), dtype=np.float32)
    if vectors.ndim != 2:
        raise InvalidArgument(f"{source} returned {vectors.ndim} axes, expected 2 (texts, components)", field=field)
    if len(vectors) != count:
        raise InvalidArgument(f"{source} returned {len(vectors)} vectors for {count} texts", field=field)
    if dimension is not None and vectors.shape[1] != dimension:
        raise DimensionMismatch(
            f"{source} returned vectors of dimension {vectors.shape[1]}, expected {dimension}", field=field
        )
    if not vectors.shape[1]:
        raise InvalidArgument(f"{source} returned vectors without components", field=field)
    for wrong, problem in (
        (~np.isfinite(vectors).all(axis=1), "NaN or infinity"),
        (~vectors.any(axis=1), "a vector of zeros"),
    ):
        if wrong.any():
            row = int(np.argmax(wrong))
            place = row if rows is None else rows[row]
            raise InvalidArgument(f"{source} returned {problem} for this text", field=f"{field}[{place}]")
    return vectors


def _has_lone_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
