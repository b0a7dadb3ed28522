"""Which embedding function a collection uses, and what it does to input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from shoal import embedding
from shoal._columns import Given, Vectors, check_dimension
from shoal.embedding import EmbeddingFunction
from shoal_core.contracts import Json
from shoal_core.errors import DimensionMismatch, FailedPrecondition, InvalidArgument
from shoal_core.records import Operation, embedding_array

_KEY = "embedding_function"
_NAME = "name"
_DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Embedder:
    """A collection's embedding function.

    Attributes:
        function: None if the stored name is not known here.
        name: of the function, as stored.
        implicit: nobody chose it: it is the default.
    """

    function: EmbeddingFunction | None
    name: str
    implicit: bool = False

    def queries(self, texts: list[str], dimension: int | None, field: str = "query_texts") -> Vectors:
        """Vectors of query texts, (q, dim). Blocks."""
        vectors = embedding.embed_queries(self._loaded(), texts, field)
        self._check_fits(vectors.shape[1], dimension, field)
        return vectors

    def embed(self, given: Given, dimension: int | None) -> Given:
        """With embeddings made from the documents, where documents came without embeddings. Blocks."""
        if given.embeddings is not None or given.documents is None:
            return given
        if given.operation is Operation.UPDATE and self._cannot_be_meant(dimension):
            return given
        valid = np.asarray(given.documents.is_valid())
        texts = given.documents.drop_null().to_pylist()
        if not texts:
            return given
        some = embedding.embed_documents(self._loaded(), texts)
        self._check_fits(some.shape[1], dimension, "documents")
        if valid.all():
            return replace(given, embeddings=embedding_array(some))
        matrix = np.zeros((len(valid), some.shape[1]), dtype=np.float32)
        matrix[valid] = some
        return replace(given, embeddings=embedding_array(matrix, valid))

    def _cannot_be_meant(self, dimension: int | None) -> bool:
        """The default was not chosen and does not fit: the collection's vectors come from elsewhere, documents are just text."""
        known = None if self.function is None else self.function.dimension
        return self.implicit and None not in (dimension, known) and dimension != known

    def _loaded(self) -> EmbeddingFunction:
        if self.function is None:
            raise FailedPrecondition(
                f"the collection was made with the embedding function {self.name!r}, which is not built in; pass it to "
                "get_collection(embedding_function=...), or give embeddings",
                field=_KEY,
            )
        return self.function

    def _check_fits(self, found: int, dimension: int | None, field: str) -> None:
        try:
            check_dimension(found, dimension, field)
        except DimensionMismatch as error:
            raise DimensionMismatch(
                f"the embedding function {self.name!r} makes vectors of dimension {found}, the collection has {dimension}; "
                "give embeddings or the function that the collection's vectors come from",
                field=field,
            ) from error


def configuration_of(function: EmbeddingFunction | None) -> Json:
    """What a new collection stores of its embedding function: opaque data to the server."""
    return {} if function is None else {_KEY: {_NAME: check_function(function).name}}


def embedder_for(configuration: Json, passed: EmbeddingFunction | None, fallback: EmbeddingFunction | None) -> Embedder:
    """The embedding function of a collection.

    Args:
        configuration: as stored with the collection.
        passed: by the user for this collection.
        fallback: the client's own.

    Raises:
        InvalidArgument: ``passed`` is none, or not the stored one.
    """
    stored = _stored_name(configuration)
    if passed is not None:
        name = check_function(passed).name
        if stored is not None and _canonical(stored) != _canonical(name):
            raise InvalidArgument(
                f"the collection was made with the embedding function {stored!r}, but {name!r} was passed; vectors of two "
                "functions do not compare",
                field=_KEY,
            )
        return Embedder(passed, name)
    if stored is None:
        if fallback is not None:
            return Embedder(fallback, fallback.name)
        default = embedding.default_embedding_function()
        return Embedder(default, default.name, implicit=True)
    if fallback is not None and _canonical(fallback.name) == _canonical(stored):
        return Embedder(fallback, stored)
    try:
        return Embedder(embedding.by_name(stored), stored)
    except InvalidArgument:
        return Embedder(None, stored)


def check_function(function: EmbeddingFunction) -> EmbeddingFunction:
    """The function, if it is one. Raises `InvalidArgument`."""
    if isinstance(function, type) or not isinstance(function, EmbeddingFunction):
        hint = "; wrap a callable: shoal.embedding.CallableEmbedding(name, dimension, function)"
        raise InvalidArgument(f"{function!r} is no embedding function{hint}", field=_KEY)
    return function


def _stored_name(configuration: Json) -> str | None:
    stored = configuration.get(_KEY)
    name = stored.get(_NAME) if isinstance(stored, Mapping) else None
    return name if isinstance(name, str) and name else None


def _canonical(name: str) -> str:
    return embedding.MiniLM().name if name == _DEFAULT else name
