"""Answers → JSON, column by column. Embeddings and distances are written from their arrays, with no object per number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shoal_core.contracts import Answer
from shoal_core.ranking import Search, Select
from shoal_core.records import DOCUMENT, EMBEDDING, ID, URI_KEY, Kind, embedding_matrix, metadata_fields, one_chunk
from shoal_frontend.http_api.pieces import (
    SMALL_BYTES,
    Column,
    Pieces,
    Values,
    Weights,
    column_pieces,
    encoded,
    list_pieces,
    nested_pieces,
    object_pieces,
)
from shoal_frontend.http_api.records import SPARSE_MARK, URI_COLUMN

DISTANCE = "distance"
SCORE = "score"

_NUMBER_BYTES = 12  # of a float32 as text, with its comma
_VALUE_BYTES = 24  # of anything else, besides what it has of texts


def get_json(answer: Answer, size_bytes: int, include: Sequence[str], more: Mapping[str, Any] | None = None) -> Pieces:
    """The answer of a get. ``size_bytes``: of its rows; ``include`` is echoed; ``more`` are further members."""
    rows, columns, last = answer.rows, {"ids": _IDS, **_included(include)}, {"include": include, **(more or {})}
    if size_bytes <= SMALL_BYTES:
        return iter((encoded({**{name: _all(rows, column) for name, column in columns.items()}, **last}),))
    members = {name: column_pieces(rows, column) for name, column in columns.items()}
    return object_pieces({**members, **_members(last)})


def query_json(answer: Answer, size_bytes: int, include: Sequence[str]) -> Pieces:
    """The answer of a query: one list per query vector."""
    columns = {"ids": _IDS, **_included(include), "distances": _DISTANCES if "distances" in include else None}
    rows, bounds = answer.rows, [0, *accumulate(answer.row_counts.tolist())]
    if size_bytes <= SMALL_BYTES:
        found = {name: _grouped(_all(rows, column), bounds) for name, column in columns.items()}
        return iter((encoded({**found, "include": include}),))
    members = {name: nested_pieces(rows, bounds, column) for name, column in columns.items()}
    return object_pieces({**members, **_members({"include": include})})


def no_queries_json(include: Sequence[str]) -> bytes:
    """The answer of a query without vectors."""
    names = ("embeddings", "documents", "uris", "metadatas", "distances")
    return encoded({"ids": [], **{name: [] if name in include else None for name in names}, "include": include})


def search_json(answers: Sequence[Answer], searches: Sequence[Search], selected: Sequence[Sequence[str]]) -> Pieces:
    """The answers of searches: per search its columns, or null for those it did not select."""
    parts = [(answer.rows, _selected(search.select)) for answer, search in zip(answers, searches, strict=True)]
    names = ("ids", "documents", "embeddings", "metadatas", "scores")
    members = {name: list_pieces([column_pieces(rows, columns[name]) for rows, columns in parts]) for name in names}
    return object_pieces({**members, **_members({"select": selected})})


def _all(rows: pa.Table, column: Column | None) -> Values | None:
    return None if column is None else column.values(rows)


def _grouped(values: Values | None, bounds: Sequence[int]) -> list[Values] | None:
    return None if values is None else [values[start:end] for start, end in pairwise(bounds)]


def _members(more: Mapping[str, Any]) -> dict[str, list[bytes]]:
    return {name: [encoded(value)] for name, value in more.items()}


def _included(include: Sequence[str]) -> dict[str, Column | None]:
    columns = {"embeddings": _EMBEDDINGS, "documents": _DOCUMENTS, "uris": _URIS, "metadatas": _METADATAS}
    return {name: column if name in include else None for name, column in columns.items()}


def _selected(select: Select) -> dict[str, Column | None]:
    metadatas = _METADATAS_AND_URIS if URI_KEY in select.keys else _METADATAS  # a key like others there
    return {
        "ids": _IDS,
        "documents": _DOCUMENTS if select.documents else None,
        "embeddings": _EMBEDDINGS if select.embeddings else None,
        "metadatas": metadatas if select.metadatas or select.keys else None,
        "scores": _SCORES if select.scores else None,
    }


def _texts(name: str, rows: pa.Table) -> Values:
    if name not in rows.column_names:
        return [None] * rows.num_rows
    found: Values = rows.column(name).to_pylist()
    return found


def _text_weights(name: str, rows: pa.Table) -> Weights:
    weights = np.full(rows.num_rows, _VALUE_BYTES, np.int64)
    return weights + _lengths(rows.column(name)) if name in rows.column_names else weights


def _numbers(name: str, rows: pa.Table) -> Values:
    """What is not a number is written as null."""
    if name not in rows.column_names:
        return [None] * rows.num_rows
    found: Values = one_chunk(rows.column(name)).to_numpy(zero_copy_only=False)
    return found


def _number_weights(rows: pa.Table) -> Weights:
    return np.full(rows.num_rows, _VALUE_BYTES, np.int64)


def _embeddings(rows: pa.Table) -> Values:
    if EMBEDDING not in rows.column_names:
        return [None] * rows.num_rows
    return embedding_matrix(rows.column(EMBEDDING))


def _embedding_weights(rows: pa.Table) -> Weights:
    dimension = rows.schema.field(EMBEDDING).type.list_size if EMBEDDING in rows.column_names else 1
    return np.full(rows.num_rows, dimension * _NUMBER_BYTES, np.int64)


def _metadatas(rows: pa.Table, *, uris: bool = False) -> Values:
    """One object per record, None for a record without metadata."""
    found: list[dict[str, Any] | None] = [None] * rows.num_rows
    for field in metadata_fields(rows.column_names):
        if field.key == URI_KEY and not uris:
            continue
        column = one_chunk(rows.column(field.column))
        present: Sequence[int] = range(len(column))
        if (
            column.null_count or field.kind is Kind.SPARSE
        ):  # which the fields of a struct need to be: they ignore its offset
            present = np.flatnonzero(np.asarray(column.is_valid())).tolist()
            column = column.drop_null()
        if not present:
            continue
        plain = _sparse(column) if field.kind is Kind.SPARSE else column.to_pylist()
        for row, value in zip(present, plain, strict=True):
            metadata = found[row]
            if metadata is None:
                found[row] = {field.key: value}
            else:
                metadata[field.key] = value
    return found


def _metadata_weights(rows: pa.Table) -> Weights:
    weights = np.full(rows.num_rows, _VALUE_BYTES, np.int64)
    for field in metadata_fields(rows.column_names):
        column = rows.column(field.column)
        size = _VALUE_BYTES + len(field.key)
        if field.kind is Kind.STRING:
            weights += size + _lengths(column)
        elif field.kind in (Kind.INT, Kind.FLOAT, Kind.BOOL):
            weights += size
        else:  # lists: their items are taken for equally long
            lists = pc.struct_field(column, "indices") if field.kind is Kind.SPARSE else column
            counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
            weights += size + counts * (_VALUE_BYTES + column.nbytes // max(int(counts.sum()), 1))
    return weights


def _lengths(texts: pa.ChunkedArray) -> Weights:
    """Bytes of each."""
    found: Weights = pc.fill_null(pc.binary_length(texts), 0).to_numpy().astype(np.int64)
    return found


def _sparse(vectors: pa.StructArray) -> list[dict[str, Any]]:
    """With their values as the float32 they are: as floats of Python they would be written with digits nobody gave."""
    indices, values = vectors.field("indices"), vectors.field("values")
    ends = np.cumsum(np.asarray(indices.value_lengths()), dtype=np.int64)
    parts = zip(
        np.split(indices.flatten().to_numpy(), ends[:-1]), np.split(values.flatten().to_numpy(), ends[:-1]), strict=True
    )
    return [{"#type": SPARSE_MARK, "indices": at, "values": amount} for at, amount in parts]


def _text_column(name: str) -> Column:
    return Column(partial(_texts, name), partial(_text_weights, name))


_IDS = _text_column(ID)
_DOCUMENTS = _text_column(DOCUMENT)
_URIS = _text_column(URI_COLUMN)
_EMBEDDINGS = Column(_embeddings, _embedding_weights)
_DISTANCES = Column(partial(_numbers, DISTANCE), _number_weights)
_SCORES = Column(partial(_numbers, SCORE), _number_weights)
_METADATAS = Column(_metadatas, _metadata_weights)
_METADATAS_AND_URIS = Column(partial(_metadatas, uris=True), _metadata_weights)
