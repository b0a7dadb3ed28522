"""Which embedding function a collection uses, and what it does to input."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from shoal import embedding
from shoal._columns import Given, Vectors, check_dimension
from shoal.embedding.gateway import Gateway, in_gateway
from shoal.embedding.registry import (
    KEY,
    KINDS,
    Function,
    Stored,
    described,
    read_stored,
    rebuild,
    same_function,
    stored_form,
    stored_function,
)
from shoal_core.contracts import Json
from shoal_core.errors import DimensionMismatch, FailedPrecondition, InvalidArgument, ShoalError
from shoal_core.records import Operation, embedding_array

_REBUILT: Final = 64  # functions of collections that a client keeps


@dataclass(frozen=True, slots=True)
class Embedder:
    """A collection's embedding function.

    Attributes:
        function: None if the stored one cannot be made here.
        name: of the function, as stored.
        implicit: nobody chose it: it is the default.
        problem: why there is none.
    """

    function: Gateway | None
    name: str
    implicit: bool = False
    problem: ShoalError | None = None

    async def queries(self, texts: list[str], dimension: int | None, field: str = "query_texts") -> Vectors:
        """Vectors of query texts, (q, dim)."""
        vectors = await self._loaded().aembed_queries(texts, field=field)
        self._check_fits(vectors.shape[1], dimension, field)
        return vectors

    def embeds(self, given: Given, dimension: int | None) -> bool:
        """Whether embeddings are to be made from the documents: these came without, and are not just text."""
        if given.embeddings is not None or given.documents is None:
            return False
        return not (given.operation is Operation.UPDATE and self._cannot_be_meant(dimension))

    async def documents(self, texts: list[str], rows: list[int], dimension: int | None) -> Vectors:
        """A vector of each text, (n, dim); ``rows``: which documents they are. What `with_embeddings` takes."""
        some = await self._loaded().aembed_documents(texts, rows=rows)
        self._check_fits(some.shape[1], dimension, "documents")
        return some

    def _cannot_be_meant(self, dimension: int | None) -> bool:
        """The default was not chosen and does not fit: the collection's vectors come from elsewhere, documents are just text."""
        known = None if self.function is None else self.function.dimension
        return self.implicit and None not in (dimension, known) and dimension != known

    def _loaded(self) -> Gateway:
        if self.function is not None:
            return self.function
        if self.problem is None or "is not built in" in self.problem.message:
            raise FailedPrecondition(
                f"the collection was made with the embedding function {self.name!r}, which is not built in; pass it to "
                "get_collection(embedding_function=...), or give embeddings",
                field=KEY,
            )
        raise type(self.problem)(self.problem.message, field=self.problem.field) from self.problem

    def _check_fits(self, found: int, dimension: int | None, field: str) -> None:
        try:
            check_dimension(found, dimension, field)
        except DimensionMismatch as error:
            raise DimensionMismatch(
                f"the embedding function {self.name!r} makes vectors of dimension {found}, the collection has {dimension}; "
                "give embeddings or the function that the collection's vectors come from",
                field=field,
            ) from error


class Functions:
    """The embedding functions of one client: its own, the default, and those that its collections name.

    Collections with the same stored function share its gateway, and so its bounds.

    Args:
        own: for collections that name no other.
        hosts: see `shoal.embedding.registry.rebuild`.
    """

    def __init__(self, own: Function | None, hosts: Collection[str] = ()) -> None:
        self.own: Final = None if own is None else in_gateway(own)
        self._hosts = frozenset(hosts)
        self._default = Gateway(embedding.default_embedding_function())
        self._rebuilt: OrderedDict[str, Gateway] = OrderedDict()

    def embedder(self, configuration: Json, passed: Function | None) -> Embedder:
        """The embedding function of a collection.

        Args:
            configuration: as stored with the collection.
            passed: by the user for this collection.

        Raises:
            InvalidArgument: ``passed`` is none, or not the stored one.
        """
        stored = stored_function(configuration)
        if passed is not None:
            gateway = in_gateway(passed)
            if stored is not None and not same_function(stored, _stored(gateway)):
                raise InvalidArgument(
                    f"the collection was made with the embedding function {described(stored)}, but {described(_stored(gateway))} "
                    "was passed; vectors of two functions do not compare",
                    field=KEY,
                )
            return Embedder(gateway, gateway.name)
        if stored is None:
            own = self.own
            return (
                Embedder(self._default, self._default.name, implicit=True) if own is None else Embedder(own, own.name)
            )
        try:
            if stored.name in KINDS:
                read_stored(stored)
            for known in (self.own, self._default):
                if known is not None and same_function(stored, _stored(known)):
                    return Embedder(known, stored.name)
            return Embedder(self._rebuild(stored), stored.name)
        except ShoalError as error:  # of no consequence until a text is to be embedded
            return Embedder(None, stored.name, problem=error)

    def _rebuild(self, stored: Stored) -> Gateway:
        key = json.dumps([stored.name, stored.version, stored.config], sort_keys=True)
        if key not in self._rebuilt:
            self._rebuilt[key] = Gateway(rebuild(stored, self._hosts))
        self._rebuilt.move_to_end(key)
        while len(self._rebuilt) > _REBUILT:
            self._rebuilt.popitem(last=False)
        return self._rebuilt[key]


def with_embeddings(given: Given, some: Vectors) -> Given:
    """With the vectors in the rows that have a document."""
    assert given.documents is not None
    valid = np.asarray(given.documents.is_valid())
    if valid.all():
        return replace(given, embeddings=embedding_array(some))
    matrix = np.zeros((len(valid), some.shape[1]), dtype=np.float32)
    matrix[valid] = some
    return replace(given, embeddings=embedding_array(matrix, valid))


def configuration_of(function: Function | None) -> Json:
    """What a new collection stores of its embedding function: opaque data to the server."""
    return {} if function is None else {KEY: stored_form(in_gateway(function).function)}


def _stored(gateway: Gateway) -> Stored:
    stored = stored_function({KEY: stored_form(gateway.function)})
    if stored is None:
        raise InvalidArgument("an embedding function needs a name", field=KEY)
    return stored
