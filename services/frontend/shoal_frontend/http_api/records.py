"""Records of a JSON body → one operation batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from shoal_core.errors import InvalidArgument
from shoal_core.metadata import Columns, metadata_columns
from shoal_core.records import (
    DELETED_KEYS,
    DOCUMENT,
    EMBEDDING,
    ID,
    OP,
    URI_KEY,
    Kind,
    MetadataField,
    Operation,
    embedding_array,
    metadata_fields,
)
from shoal_frontend.http_api.bodies import items, strings
from shoal_frontend.http_api.body_error import BodyError, member, wrong_type
from shoal_frontend.http_api.vectors import Vectors, parse_vectors

URI_COLUMN = MetadataField(URI_KEY, Kind.STRING).column
SPARSE_MARK = "sparse_vector"

_SCALARS = (str, int, float, bool)
_NO_VALUE = "data did not match any variant of untagged enum MetadataValue"


@dataclass(frozen=True, slots=True)
class Records:
    """What a body asks to write: a batch, or None where it has no ids; ``dimension`` of its embeddings, None without any."""

    batch: pa.RecordBatch | None
    dimension: int | None


def parse_records(body: Mapping[str, Any], operation: Operation, *, embeds: bool = False) -> Records:
    """``{ids, embeddings, documents?, uris?, metadatas?}``; of an update embeddings are optional, and so is each of them. So they are
    if the server ``embeds`` documents; what is missing then is found when the batch is written.

    Raises `BodyError` for wrong types, `InvalidArgument` for wrong values, `DimensionMismatch` for rows of several lengths.
    """
    ids = strings(member(body, "ids", ""), "ids")
    update = operation is Operation.UPDATE
    vectors, rows = _vectors(body, update or (embeds and body.get("documents") is not None))
    columns, lengths = _texts(body)
    if rows is not None:
        lengths.append(rows)
    metadatas = body.get("metadatas")
    if metadatas is not None:
        lengths.append(len(items(metadatas, "metadatas")))
        columns |= _metadata(metadatas, deletes=operation is not Operation.ADD)
    if any(length != len(ids) for length in lengths):
        raise InvalidArgument("Inconsistent number of IDs, embeddings, documents, URIs and metadatas")
    if not ids:
        return Records(None, None)
    if not all(ids):
        raise InvalidArgument("Empty ID, ID must have at least one character")
    head: Columns = {OP: pa.array(np.full(len(ids), operation, dtype=np.uint8)), ID: pa.array(ids, pa.string())}
    if vectors is None:
        return Records(pa.record_batch(head | columns), None)
    head[EMBEDDING] = embedding_array(vectors.matrix, vectors.valid)
    return Records(pa.record_batch(head | columns), vectors.matrix.shape[1])


def _vectors(body: Mapping[str, Any], optional: bool) -> tuple[Vectors | None, int | None]:
    """The embeddings, and how many rows there are of them."""
    given: Any = body.get("embeddings") if optional else member(body, "embeddings", "")
    if optional and given is None:
        return None, None
    return parse_vectors(given, "embeddings", nulls=optional), len(given)


def _texts(body: Mapping[str, Any]) -> tuple[Columns, list[int]]:
    """The columns of documents and uris, without those that are null throughout; and the lengths of what was given."""
    columns: Columns = {}
    lengths = []
    for name, column in (("documents", DOCUMENT), ("uris", URI_COLUMN)):
        if body.get(name) is None:
            continue
        given = strings(body[name], name, nulls=True)
        lengths.append(len(given))
        found = pa.array(given, pa.string())
        if found.null_count < len(found):
            columns[column] = found
    return columns, lengths


# --- metadata


def _metadata(metadatas: Sequence[Any], *, deletes: bool) -> Columns:
    """Typed columns. What needs a second look, or is wrong, is looked at value by value."""
    try:
        columns = metadata_columns(metadatas, len(metadatas), deletes=True)
        wrong_nulls = DELETED_KEYS in columns and not deletes
        if not wrong_nulls and not any(field.kind is Kind.SPARSE for field in metadata_fields(columns)):
            return columns
    except InvalidArgument:
        pass
    plain = [_plain(metadata, row, nulls=deletes) for row, metadata in enumerate(metadatas)]
    for row, metadata in enumerate(metadatas):
        for key, value in (metadata or {}).items():
            unmarked = isinstance(value, dict) and value.get("#type") != SPARSE_MARK
            if not key or key[0] in "#$" or unmarked:
                raise InvalidArgument(f"Validation error: metadatas: Invalid metadata at index {row}")
    return metadata_columns(plain, len(plain), deletes=deletes)


def _plain(metadata: Any, row: int, *, nulls: bool) -> dict[str, Any] | None:
    """Without empty lists, which are stored as nothing, and with lists of one type. Raises `BodyError`, for nulls too unless
    there may be ``nulls``.
    """
    if metadata is None:
        return None
    if not isinstance(metadata, dict):
        raise wrong_type(metadata, "a map", f"metadatas[{row}]")
    return {key: _value(value, key, row, nulls) for key, value in metadata.items() if value != []}


def _value(value: Any, key: str, row: int, nulls: bool) -> Any:
    if (value is None and nulls) or isinstance(value, _SCALARS):
        return value
    if isinstance(value, dict) and _is_sparse(value):
        return {name: value[name] for name in ("#type", "indices", "values") if name in value}
    if isinstance(value, list):
        kinds = set(map(type, value))
        if len(kinds) == 1 and kinds < {str, int, float, bool}:
            return value
        if kinds == {int, float}:
            return [*map(float, value)]
    raise BodyError(_NO_VALUE, f"metadatas[{row}].{key}", path=("metadatas", row, key), spot="around")


def _is_sparse(value: dict[str, Any]) -> bool:
    if not {"indices", "values"} <= value.keys() <= {"#type", "indices", "values", "tokens"}:
        return False
    parts = (value["indices"], value["values"])
    return all(isinstance(part, list) and set(map(type, part)) <= {int, float} for part in parts)
