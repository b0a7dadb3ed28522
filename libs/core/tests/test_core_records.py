"""Records as columns: payloads and embedding columns come back as they went in."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_core.errors import Corrupt, NewerFormat
from shoal_core.records import (
    EMBEDDING,
    FORMAT_KEY,
    Kind,
    MetadataField,
    concat_rows,
    decode_batch,
    dimension_of,
    embedding_array,
    embedding_matrix,
    embedding_type,
    empty_rows,
    encode_batch,
    metadata_fields,
)
from shoal_testing.strategies import (
    QUICK,
    Op,
    Record,
    from_row_table,
    operations,
    records,
    to_operation_batch,
    to_row_table,
)

DIMENSION = 3


@QUICK
@given(ops=operations(DIMENSION), start=st.integers(0, 8), length=st.integers(0, 8))
def test_payloads_come_back(ops: list[Op], start: int, length: int) -> None:
    batch = to_operation_batch(ops, DIMENSION)
    batch.validate(full=True)
    for item in (batch, batch.slice(start, length)):
        payload = encode_batch(item)
        for data in (payload, payload.to_pybytes(), memoryview(payload)):
            decoded = decode_batch(data)
            decoded.validate(full=True)
            assert decoded.schema == item.schema
            assert repr(decoded.to_pylist()) == repr(item.to_pylist())


def test_a_payload_is_read_without_copying() -> None:
    batch = to_operation_batch([("add", "a", (1.0, 2.0, 3.0), None, None, None)], DIMENSION)
    payload = encode_batch(batch)
    values = embedding_matrix(decode_batch(payload).column(EMBEDDING))
    assert payload.address <= values.ctypes.data < payload.address + payload.size


def test_a_cut_payload_is_corrupt() -> None:
    payload = encode_batch(to_operation_batch([("add", "a", (1.0,) * 3, "d", "u", {"k": 1})], DIMENSION)).to_pybytes()
    for size in range(len(payload) - 8):  # the last 8 bytes are the end-of-stream mark, which a reader may lack
        with pytest.raises(Corrupt):
            decode_batch(payload[:size])


@pytest.mark.parametrize(
    "payload", [b"", b"\0" * 64, b"not arrow at all", b"\xff\xff\xff\xff\x10\0\0\0" + b"\x07" * 16]
)
def test_garbage_is_corrupt(payload: bytes) -> None:
    with pytest.raises(Corrupt):
        decode_batch(payload)


@QUICK
@given(
    valid=st.lists(st.booleans(), max_size=10),
    dimension=st.integers(1, 4),
    start=st.integers(0, 10),
    length=st.integers(0, 10),
)
def test_embeddings_with_nulls_and_slices(valid: list[bool], dimension: int, start: int, length: int) -> None:
    mask = np.array(valid, dtype=bool)
    vectors = np.arange(len(valid) * dimension, dtype=np.float32).reshape(len(valid), dimension)
    array = embedding_array(vectors, mask)
    array.validate(full=True)
    assert array.type == embedding_type(dimension)
    assert array.is_valid().to_pylist() == valid
    chunked = pa.chunked_array([array.slice(0, start), array.slice(start)], array.type)
    for column, rows in (
        (array, slice(None)),
        (array.slice(start, length), slice(start, start + length)),
        (chunked, slice(None)),
        (chunked.slice(start, length), slice(start, start + length)),
        (pa.chunked_array([], array.type), slice(0, 0)),
    ):
        matrix = embedding_matrix(column)
        assert matrix.dtype == np.float32
        assert matrix.shape == vectors[rows].shape
        assert (matrix[mask[rows]] == vectors[rows][mask[rows]]).all()


def test_embeddings_are_not_copied() -> None:
    vectors = np.ones((4, 2), dtype=np.float32)
    array = embedding_array(vectors)
    assert np.shares_memory(embedding_matrix(array), vectors)
    assert np.shares_memory(embedding_matrix(array.slice(1, 2)), vectors)
    assert np.shares_memory(embedding_matrix(pa.chunked_array([array])), vectors)


def test_embeddings_of_other_layouts_are_converted() -> None:
    vectors = np.arange(12, dtype=np.float64).reshape(3, 4)
    assert embedding_matrix(embedding_array(vectors[:, ::2])).tolist() == vectors[:, ::2].tolist()  # type: ignore[arg-type]


def test_a_column_of_nulls_only() -> None:
    matrix = embedding_matrix(pa.nulls(3, embedding_type(2)))
    assert matrix.dtype == np.float32
    assert matrix.shape == (3, 2)


@QUICK
@given(parts=st.lists(records(DIMENSION), min_size=1, max_size=3))
def test_row_tables_concatenate(parts: list[list[Record]]) -> None:
    tables = [to_row_table(part, DIMENSION) for part in parts]
    expected = [row for part in parts for row in part]
    joined = concat_rows(tables)
    joined.validate(full=True)
    assert repr(canonical(from_row_table(joined))) == repr(canonical(expected))


def canonical(rows: list[Record]) -> list[Record]:
    return [row | {"metadata": sorted(row["metadata"].items())} for row in sorted_fields(rows)]


def sorted_fields(rows: list[Record]) -> list[Record]:
    return [dict(sorted(row.items())) for row in rows]


@pytest.mark.parametrize("dimension", [None, 3])
def test_empty_rows(dimension: int | None) -> None:
    rows = empty_rows(dimension)
    assert (rows.num_rows, dimension_of(rows.schema)) == (0, dimension)
    assert from_row_table(concat_rows([rows, rows])) == []


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("key", ["k", "a:b", "", "m:int:k", "ключ"])
def test_metadata_columns_name_their_field(kind: Kind, key: str) -> None:
    field = MetadataField(key, kind)
    assert MetadataField.of_column(field.column) == field


def test_metadata_fields_are_sorted_and_skip_other_columns() -> None:
    fields = (MetadataField("a", Kind.FLOAT), MetadataField("a", Kind.INT), MetadataField("b", Kind.BOOL))
    assert metadata_fields(["id", "m:bool:b", "document", "m:int:a", "m:float:a"]) == tuple(sorted(fields))


def test_a_payload_of_a_newer_format_is_refused_and_other_metadata_of_it_ignored() -> None:
    batch = pa.record_batch({"op": pa.array([2], pa.uint8()), "id": ["a"]})
    for known in ({}, {b"later": b"x"}, {FORMAT_KEY: b"1"}):
        assert decode_batch(encode_batch(batch.replace_schema_metadata(known))).column("id").to_pylist() == ["a"]
    with pytest.raises(NewerFormat, match=r"newer release wrote this log payload: format 2, .* reads 1; upgrade it"):
        decode_batch(encode_batch(batch.replace_schema_metadata({FORMAT_KEY: b"2"})))
