"""Answers → JSON, column by column. Embeddings and distances are written from their arrays, with no object per number."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from shoal_core.contracts import Answer
from shoal_core.ranking import Search
from shoal_core.records import DOCUMENT, EMBEDDING, ID, URI_KEY, Kind, embedding_matrix, metadata_fields, one_chunk
from shoal_frontend.http_api.records import SPARSE_MARK, URI_COLUMN

DISTANCE = "distance"
SCORE = "score"

Column = Sequence[Any] | np.ndarray[Any, Any]


def get_json(answer: Answer, include: Sequence[str]) -> bytes:
    """The answer of a get. ``include`` is echoed."""
    found = {"ids": _texts(answer.rows, ID), **_included(answer.rows, include), "include": include}
    return _encoded(found)


def query_json(answer: Answer, include: Sequence[str]) -> bytes:
    """The answer of a query: one list per query vector."""
    flat = {"ids": _texts(answer.rows, ID), **_included(answer.rows, include)}
    flat["distances"] = _numbers(answer.rows, DISTANCE) if "distances" in include else None
    bounds = np.concatenate([[0], np.cumsum(answer.row_counts, dtype=np.int64)]).tolist()
    found = {
        name: None if column is None else [column[start:end] for start, end in pairwise(bounds)]
        for name, column in flat.items()
    }
    return _encoded(found | {"include": include})


def no_queries_json(include: Sequence[str]) -> bytes:
    """The answer of a query without vectors."""
    names = ("embeddings", "documents", "uris", "metadatas", "distances")
    return _encoded({"ids": [], **{name: [] if name in include else None for name in names}, "include": include})


def search_json(answers: Sequence[Answer], searches: Sequence[Search], selected: Sequence[Sequence[str]]) -> bytes:
    """The answers of searches: per search its columns, or null for those it did not select."""
    found: dict[str, list[Any]] = {name: [] for name in ("ids", "documents", "embeddings", "metadatas", "scores")}
    for answer, search in zip(answers, searches, strict=True):
        rows, select = answer.rows, search.select
        found["ids"].append(_texts(rows, ID))
        found["documents"].append(_texts(rows, DOCUMENT) if select.documents else None)
        found["embeddings"].append(_embeddings(rows) if select.embeddings else None)
        uris = URI_KEY in select.keys  # a key like others there
        found["metadatas"].append(_metadatas(rows, uris=uris) if select.metadatas or select.keys else None)
        found["scores"].append(_numbers(rows, SCORE) if select.scores else None)
    return _encoded({**found, "select": selected})


def _encoded(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _included(rows: pa.Table, include: Sequence[str]) -> dict[str, Column | None]:
    return {
        "embeddings": _embeddings(rows) if "embeddings" in include else None,
        "documents": _texts(rows, DOCUMENT) if "documents" in include else None,
        "uris": _texts(rows, URI_COLUMN) if "uris" in include else None,
        "metadatas": _metadatas(rows) if "metadatas" in include else None,
    }


def _texts(rows: pa.Table, name: str) -> list[str | None]:
    if name not in rows.column_names:
        return [None] * rows.num_rows
    found: list[str | None] = rows.column(name).to_pylist()
    return found


def _numbers(rows: pa.Table, name: str) -> Column:
    """What is not a number is written as null."""
    if name not in rows.column_names:
        return [None] * rows.num_rows
    found: Column = one_chunk(rows.column(name)).to_numpy(zero_copy_only=False)
    return found


def _embeddings(rows: pa.Table) -> Column:
    if EMBEDDING not in rows.column_names:
        return [None] * rows.num_rows
    return embedding_matrix(rows.column(EMBEDDING))


def _metadatas(rows: pa.Table, *, uris: bool = False) -> list[dict[str, Any] | None]:
    """One object per record, None for a record without metadata."""
    found: list[dict[str, Any] | None] = [None] * rows.num_rows
    for field in metadata_fields(rows.column_names):
        if field.key == URI_KEY and not uris:
            continue
        column = one_chunk(rows.column(field.column))
        present = np.flatnonzero(np.asarray(column.is_valid())).tolist()
        if not present:
            continue
        values = column.drop_null()
        plain = _sparse(values) if field.kind is Kind.SPARSE else values.to_pylist()
        for row, value in zip(present, plain, strict=True):
            metadata = found[row]
            if metadata is None:
                found[row] = {field.key: value}
            else:
                metadata[field.key] = value
    return found


def _sparse(vectors: pa.StructArray) -> list[dict[str, Any]]:
    """With their values as the float32 they are: as floats of Python they would be written with digits nobody gave."""
    indices, values = vectors.field("indices"), vectors.field("values")
    ends = np.cumsum(np.asarray(indices.value_lengths()), dtype=np.int64)
    parts = zip(
        np.split(indices.flatten().to_numpy(), ends[:-1]), np.split(values.flatten().to_numpy(), ends[:-1]), strict=True
    )
    return [{"#type": SPARSE_MARK, "indices": at, "values": amount} for at, amount in parts]
