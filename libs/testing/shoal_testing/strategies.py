"""Hypothesis strategies for records, operations and filters, made so that ids collide and filters match; and their Arrow forms.

An operation is a tuple ``(op, id, embedding, document, uri, metadata)`` as `OracleCollection.apply` takes it; a record is the
oracle's dict. Values come from small pools with the borders in them: int64 and float64 extremes, 2**53 and its neighbours, zeros of
both signs, empty strings and lists.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from shoal_core.records import (
    CREATED_OFFSET,
    DELETED_KEYS,
    DOCUMENT,
    EMBEDDING,
    ID,
    OP,
    UPDATED_OFFSET,
    URI_KEY,
    Kind,
    MetadataField,
    Operation,
    embedding_array,
    metadata_fields,
)

Vector = tuple[float, ...]
Op = tuple[str, str, Vector | None, str | None, str | None, dict[str, Any] | None]
Record = dict[str, Any]
Where = dict[str, Any]


def examples(count: int, **more: Any) -> settings:
    """The profile of a property test: so many examples, the same in every run.

    With ``SHOAL_TEST_DEPTH=n`` in the environment n times as many, others in every run, and how to repeat one that fails.

    Args:
        more: further settings of hypothesis.
    """
    depth = int(os.environ.get("SHOAL_TEST_DEPTH", "0"))
    return settings(
        max_examples=count * max(depth, 1),
        deadline=None,
        derandomize=not depth,
        database=None,
        print_blob=bool(depth),
        suppress_health_check=[HealthCheck.too_slow],  # how fast the machine is, says nothing
        **more,
    )


#: Of most tests.
QUICK = examples(120)

KEYS = ("a", "b", "k:1", "ключ")
INTS = (0, 1, -1, 2, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, 0.5, -1.5, 2.0**53, -(2.0**53), 2.0**63, -(2.0**63), 1.7976931348623157e308, 5e-324)
INFINITIES = (float("inf"), float("-inf"))
STRINGS = ("", "x", "X", "xy", "é", "日本", "\U0001f600", "\uffff", "1")
_TEXT_ALPHABET = "abAé日1 \n"
_PATTERNS = ("a", "^a", "a.b", "[ab]+", "é", "日|b", "", "(?i)B", "^$", "b{2}", r"\s", "[^a]")

# --- values


def ids() -> st.SearchStrategy[str]:
    """Record ids of a few bytes to a few hundred, mostly from a pool of ten."""
    pool = ("a", "b", "ab", "é", "日本語", "12345678", "123456789", "x" * 300, "a\0", " ")
    return st.sampled_from(pool) | st.sampled_from(pool[:3]) | st.text("ab", min_size=1, max_size=2)


def embeddings(dimension: int) -> st.SearchStrategy[Vector]:
    """Finite float32 vectors: zero, identical, of tiny and of large norm, and any."""
    pool = [(value,) * dimension for value in (0.0, 1.0, -1.0, 2.0**-120, 2.0**60)]
    component = st.floats(-(2.0**60), 2.0**60, width=32)
    return st.sampled_from(pool) | st.tuples(*[component] * dimension)


def documents() -> st.SearchStrategy[str | None]:
    """None, empty, one character, non-ASCII, several lines."""
    return st.none() | st.text(_TEXT_ALPHABET, max_size=6)


def scalars(nan: bool = False) -> st.SearchStrategy[Any]:
    """Scalar metadata values; ``nan`` adds not-a-number."""
    pool = [*INTS, *FLOATS, *INFINITIES, *STRINGS, True, False]
    return st.sampled_from([*pool, float("nan")] if nan else pool)


def metadata_values(nan: bool = False) -> st.SearchStrategy[Any]:
    """Scalars, lists of one type (an empty list counts as strings) and sparse vectors."""
    floats = st.sampled_from([*FLOATS, *INFINITIES, *((float("nan"),) if nan else ())])
    lists = [st.sampled_from(INTS), floats, st.sampled_from(STRINGS), st.booleans()]
    return scalars(nan) | scalars(nan) | st.one_of([st.lists(item, max_size=3) for item in lists]) | sparse_vectors()


def sparse_vectors() -> st.SearchStrategy[dict[str, Any]]:
    """Sparse vectors over a few dimensions, so that they overlap; some are empty, some values negative or zero."""
    values = st.sampled_from((0.5, -1.0, 2.25, 0.0))
    entries = st.dictionaries(st.sampled_from((0, 1, 7, 2**31, 2**32 - 1)), values, max_size=4)
    return entries.map(lambda given: {"indices": sorted(given), "values": [given[index] for index in sorted(given)]})


def metadatas(deletes: bool, nan: bool = False) -> st.SearchStrategy[dict[str, Any] | None]:
    """Metadata of up to four keys; with ``deletes`` a value may be None, which deletes the key."""
    values = metadata_values(nan)
    return st.none() | st.dictionaries(st.sampled_from(KEYS), st.none() | values if deletes else values, max_size=4)


# --- operations and rows


def operations(dimension: int, max_size: int = 8) -> st.SearchStrategy[list[Op]]:
    """One batch of mixed operations, some of which lack the embedding they would need."""
    vectors = embeddings(dimension)
    uris = st.none() | st.none() | st.sampled_from(("", "file:///a", "é"))

    def written(ops: tuple[str, ...], embedding: st.SearchStrategy[Vector | None]) -> st.SearchStrategy[Op]:
        return st.tuples(st.sampled_from(ops), ids(), embedding, documents(), uris, metadatas(deletes=True))

    creating = written(("add", "upsert"), vectors)
    merging = written(("update", "upsert", "add"), st.none() | vectors)
    deleting: st.SearchStrategy[Op] = st.tuples(st.just("delete"), ids(), st.none(), st.none(), st.none(), st.none())
    return st.lists(creating | merging | merging | deleting, min_size=1, max_size=max_size)


def records(dimension: int, max_size: int = 12, nan: bool = False) -> st.SearchStrategy[list[Record]]:
    """Live records with distinct ids, in order of ``created_offset``."""
    rows = st.tuples(ids(), embeddings(dimension), documents(), st.none() | st.just("u"), metadatas(False, nan))
    return st.lists(rows, max_size=max_size, unique_by=lambda row: row[0]).map(_as_records)


def _as_records(rows: Iterable[tuple[str, Vector, str | None, str | None, dict[str, Any] | None]]) -> list[Record]:
    return [
        {
            "id": record_id,
            "embedding": embedding,
            "document": document,
            "uri": uri,
            "metadata": metadata or {},
            "created_offset": offset,
            "updated_offset": offset,
        }
        for offset, (record_id, embedding, document, uri, metadata) in enumerate(rows, start=1)
    ]


# --- filters


def wheres(max_leaves: int = 6) -> st.SearchStrategy[Where]:
    """``where`` mappings over the keys and values of `records`."""
    keys = st.sampled_from((*KEYS, "absent"))
    ordered = st.sampled_from([*INTS, *FLOATS, *INFINITIES, *STRINGS])
    pools = ([*INTS, *FLOATS], list(STRINGS), [True, False])
    lists = st.one_of([st.lists(st.sampled_from(pool), min_size=1, max_size=4) for pool in pools])
    operands = st.one_of(
        st.builds(_pair, st.sampled_from(("$eq", "$ne")), scalars()),
        st.builds(_pair, st.sampled_from(("$gt", "$gte", "$lt", "$lte")), ordered),
        st.builds(_pair, st.sampled_from(("$in", "$nin")), lists),
        st.builds(_pair, st.sampled_from(("$contains", "$not_contains")), scalars()),
        st.builds(_pair, st.just("$exists"), st.booleans()),
        scalars(),
    )
    on_id = st.builds(_pair, st.sampled_from(("$eq", "$ne")), ids()) | st.builds(
        _pair, st.sampled_from(("$in", "$nin")), st.lists(ids(), min_size=1, max_size=4)
    )
    leaves = (
        st.builds(_pair, keys, operands)
        | st.builds(_pair, st.just("#id"), on_id | ids())
        | st.builds(_pair, st.just("#document"), _document_leaves())
        | st.builds(_pair, st.just(URI_KEY), st.just("u") | st.builds(_pair, st.just("$exists"), st.booleans()))
    )
    return _trees(leaves, max_leaves)


def where_documents(max_leaves: int = 4) -> st.SearchStrategy[Where]:
    """``where_document`` mappings over the texts of `documents`."""
    return _trees(_document_leaves(), max_leaves)


def _document_leaves() -> st.SearchStrategy[Where]:
    substrings = st.builds(_pair, st.sampled_from(("$contains", "$not_contains")), st.text(_TEXT_ALPHABET, max_size=2))
    return substrings | st.builds(_pair, st.sampled_from(("$regex", "$not_regex")), st.sampled_from(_PATTERNS))


def _trees(leaves: st.SearchStrategy[Where], max_leaves: int) -> st.SearchStrategy[Where]:
    def joined(children: st.SearchStrategy[Where]) -> st.SearchStrategy[Where]:
        return st.builds(_pair, st.sampled_from(("$and", "$or")), st.lists(children, min_size=1, max_size=3))

    return st.recursive(leaves, joined, max_leaves=max_leaves)


def _pair(key: str, value: Any) -> Where:
    return {key: value}


# --- Arrow


def to_operation_batch(ops: Sequence[Op], dimension: int) -> pa.RecordBatch:
    """The operation batch (see `records`) of these operations."""
    columns: dict[str, pa.Array] = {
        OP: pa.array([Operation[op[0].upper()] for op in ops], pa.uint8()),
        ID: pa.array([op[1] for op in ops], pa.string()),
    }
    columns |= _value_columns([op[2] for op in ops], [op[3] for op in ops], dimension)
    metadata = [dict(op[5] or {}) | ({} if op[4] is None else {URI_KEY: op[4]}) for op in ops]
    columns |= _metadata_columns(metadata)
    deleted = [[key for key, value in row.items() if value is None] for row in metadata]
    if any(deleted):
        columns[DELETED_KEYS] = pa.array([keys or None for keys in deleted], pa.list_(pa.string()))
    return pa.record_batch(columns)


def to_row_table(rows: Sequence[Record], dimension: int) -> pa.Table:
    """The row table (see `records`) of these records; columns that no record needs are absent."""
    columns: dict[str, pa.Array] = {ID: pa.array([row["id"] for row in rows], pa.string())}
    for name in (CREATED_OFFSET, UPDATED_OFFSET):
        columns[name] = pa.array([row[name] for row in rows], pa.uint64())
    columns |= _value_columns([row["embedding"] for row in rows], [row["document"] for row in rows], dimension)
    uris = [{} if row["uri"] is None else {URI_KEY: row["uri"]} for row in rows]
    columns |= _metadata_columns([row["metadata"] | uri for row, uri in zip(rows, uris, strict=True)])
    return pa.table(columns)


def from_row_table(table: pa.Table) -> list[Record]:
    """The records of a row table in its order, in the oracle's form; further columns (``distance``) as they are."""
    fields = metadata_fields(table.column_names)
    found = []
    for row in table.to_pylist():
        values = {field.key: value for field in fields if (value := row.pop(field.column)) is not None}
        embedding = row.pop(EMBEDDING, None)
        record = {"id": row.pop(ID), "embedding": None if embedding is None else tuple(embedding)}
        record |= {"document": row.pop(DOCUMENT, None), "uri": values.pop(URI_KEY, None), "metadata": values}
        found.append(record | row)
    return found


def _value_columns(
    vectors: Sequence[Vector | None], texts: Sequence[str | None], dimension: int
) -> dict[str, pa.Array]:
    columns = {}
    valid = np.array([vector is not None for vector in vectors], dtype=bool)
    if valid.any():
        matrix = np.array([vector or (0.0,) * dimension for vector in vectors], dtype=np.float32)
        columns[EMBEDDING] = embedding_array(matrix, valid)
    if any(text is not None for text in texts):
        columns[DOCUMENT] = pa.array(texts, pa.string())
    return columns


def _metadata_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, pa.Array]:
    values: dict[MetadataField, list[Any]] = {}
    for number, row in enumerate(rows):
        for key, value in row.items():
            if value is not None:
                values.setdefault(MetadataField(key, kind_of(value)), [None] * len(rows))[number] = value
    return {field.column: pa.array(column, field.arrow_type) for field, column in sorted(values.items())}


def kind_of(value: Any) -> Kind:
    """The kind of a metadata value; an empty list counts as strings."""
    if isinstance(value, Mapping):
        return Kind.SPARSE
    if isinstance(value, list):
        if not value:
            return Kind.STRINGS
        return Kind(f"{kind_of(value[0])}s")
    if isinstance(value, bool):
        return Kind.BOOL
    if isinstance(value, str):
        return Kind.STRING
    return Kind.INT if isinstance(value, int) else Kind.FLOAT
