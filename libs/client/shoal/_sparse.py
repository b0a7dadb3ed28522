"""Sparse vectors that the client makes of texts, with the function that a collection's schema names for a key."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal._columns import Given
from shoal.embedding.protocol import Side
from shoal.embedding.sparse_functions import sparse_function
from shoal_core.errors import FailedPrecondition
from shoal_core.metadata import column_of
from shoal_core.records import DELETED_KEYS, SPARSE_TYPE, Kind, MetadataField, metadata_key
from shoal_core.schema import DOCUMENT_KEY, Schema


def embed_sparse(given: Given, schema: Schema) -> Given:
    """With vectors for the sparse keys that name a source and a function. Blocks.

    Made for records that have the source's text, and neither set nor delete the key themselves.
    """
    for key, config in schema.sparse.items():
        if config.source_key is None or config.embedding_function is None:
            continue
        source_column = MetadataField(config.source_key, Kind.STRING).column
        source = given.documents if config.source_key == DOCUMENT_KEY else given.metadata.get(source_column)
        if source is not None:
            given = _with_vectors(given, key, source, schema)
    return given


def makes_sparse(schema: Schema) -> bool:
    """Whether writes may run a function for a sparse key."""
    return any(config.source_key is not None for config in schema.sparse.values())


def sparse_queries(texts: list[str], key: str, schema: Schema) -> list[dict[str, Any]]:
    """A vector of each query text. Blocks. Raises what `sparse_vectors` does."""
    made = sparse_vectors(pa.array(texts, pa.string()), key, schema, Side.QUERIES)
    found: list[dict[str, Any]] = made.to_pylist()
    return found


def sparse_vectors(texts: pa.Array, key: str, schema: Schema, side: Side) -> pa.Array:
    """Sparse vectors of texts, null for null, by ``schema.sparse[key].embedding_function``: see `sparse_function`.

    Raises:
        FailedPrecondition: none is stored, or one that is not built in.
        InvalidArgument: its configuration is none of the function's; or what it returned are not as many sparse vectors with
            ascending indices and finite values.
    """
    config = schema.sparse.get(key)
    stored = None if config is None else config.embedding_function
    field = f"schema.sparse.{key}.embedding_function"
    if stored is None:
        raise FailedPrecondition("not set; give sparse vectors instead of texts", field=field)
    made = sparse_function(stored, field).encode(texts, side)
    found = column_of(key, made, len(texts), field)
    return found[_column(key)] if found else pa.nulls(len(texts), SPARSE_TYPE)


def _with_vectors(given: Given, key: str, source: pa.Array, schema: Schema) -> Given:
    count = len(given.ids)
    wanted = np.asarray(source.is_valid()) & ~_mentioned(given, key)
    if not wanted.any():
        return given
    texts = source.take(pa.array(np.arange(count), mask=~wanted))
    made = sparse_vectors(texts, key, schema, Side.DOCUMENTS)
    own = given.metadata.get(_column(key), pa.nulls(count, SPARSE_TYPE))
    chosen = pa.concat_arrays([own, made]).take(pa.array(np.arange(count) + count * wanted))
    return replace(given, metadata={**given.metadata, _column(key): chosen})


def _mentioned(given: Given, key: str) -> npt.NDArray[np.bool_]:
    """Which records set or delete the key."""
    found = np.zeros(len(given.ids), dtype=bool)
    for name, column in given.metadata.items():
        if metadata_key(name) == key:
            found |= np.asarray(column.is_valid())
    deleted = given.metadata.get(DELETED_KEYS)
    if deleted is not None:
        found |= np.array([key in (keys or ()) for keys in deleted.to_pylist()])
    return found


def _column(key: str) -> str:
    return MetadataField(key, Kind.SPARSE).column
