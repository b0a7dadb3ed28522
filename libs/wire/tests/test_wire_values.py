"""The small values: JSON, vectors, consistency, targets, tails."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from shoal_core.consistency import Consistency, ReadLevel
from shoal_core.contracts import Head, NewCollection, Tail, TailEntry
from shoal_core.errors import InvalidArgument
from shoal_core.schema import Analyzer, Index, Schema, SparseConfig, VectorConfig
from shoal_wire.codec.catalog import decode_new_collection, decode_schema, encode_new_collection, encode_schema
from shoal_wire.codec.common import (
    decode_array,
    decode_consistency,
    decode_json,
    decode_vectors,
    encode_consistency,
    encode_json,
    encode_vectors,
)
from shoal_wire.codec.log import decode_tail, decode_tail_request, encode_tail, tail_size_bytes
from shoal_wire.codec.reads import decode_target
from shoal_wire.v1 import log_pb2, query_pb2, types_pb2

SCHEMA = Schema(
    off=frozenset({Index.INT, Index.SPARSE}),
    keys={"#document": {Index.SUBSTRING: False}, "ключ": {}},
    analyzer=Analyzer("whitespace", "none", 7, ("the", "é")),
    vector=VectorConfig(m=8),
    sparse={"k": SparseConfig(True, "#document", {"name": "x"}), "plain": SparseConfig()},
)


@pytest.mark.parametrize("value", [None, {}, {"a": [1, "é", None, True, {"b": 0.5}]}, {"n": 2**70}])
def test_json_survives(value: dict[str, object] | None) -> None:
    assert decode_json(encode_json(value, "x"), "x") == value


def test_none_and_the_empty_object_differ() -> None:
    assert (encode_json(None, "x"), encode_json({}, "x")) == ("", "{}")


def test_numpy_values_become_json() -> None:
    assert encode_json({"a": np.int64(1), "b": np.array([0.5], np.float32)}, "x") == '{"a":1,"b":[0.5]}'


@pytest.mark.parametrize("value", [{"a": math.nan}, {"a": object()}, {"a": "\ud800"}, {"a": {1, 2}}])
def test_what_json_cannot_say_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument, match="metadata"):
        encode_json(value, "metadata")


@pytest.mark.parametrize(
    "text", ["{", "[1]", "1", "null", '{"a":NaN}', '{"a":-Infinity}', '{"a":"\\ud800"}', "[" * 100_000, "1" * 10_000]
)
def test_malformed_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="metadata_json"):
        decode_json(text, "metadata_json")


def test_escaped_surrogate_pairs_are_text() -> None:
    assert decode_json('{"a":"\\ud83d\\ude00"}', "x") == {"a": "😀"}


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (2, 3)])
def test_vectors_survive(shape: tuple[int, int]) -> None:
    vectors = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    decoded = decode_vectors(*encode_vectors(vectors))
    assert decoded.shape == shape
    assert decoded.dtype == np.float32
    assert np.array_equal(decoded, vectors)
    assert np.array_equal(decode_vectors(*encode_vectors(vectors[::-1])), vectors[::-1])


@pytest.mark.parametrize(("dimension", "data"), [(0, b"1234"), (2, b"1234"), (3, bytes(13)), (2**32 - 1, b"1234")])
def test_uneven_vectors_are_refused(dimension: int, data: bytes) -> None:
    with pytest.raises(InvalidArgument, match="vectors"):
        decode_vectors(dimension, data)


def test_vectors_have_two_dimensions() -> None:
    with pytest.raises(InvalidArgument, match="shape"):
        encode_vectors(np.zeros(3, np.float32))


@pytest.mark.parametrize("level", list(ReadLevel))
def test_consistency_survives(level: ReadLevel) -> None:
    consistency = Consistency(level, 2**63, 5)
    assert decode_consistency(encode_consistency(consistency)) == consistency


def test_an_unknown_read_level_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="read level 9"):
        decode_consistency(types_pb2.Consistency.FromString(b"\x08\x09"))


@pytest.mark.parametrize(("shard", "shards"), [(0, 0), (1, 1), (7, 3)])
def test_a_shard_that_is_none_is_refused(shard: int, shards: int) -> None:
    with pytest.raises(InvalidArgument, match=r"target\.shard"):
        decode_target(query_pb2.Target(shard=shard, shards=shards))


def test_a_hash_range_is_not_empty_and_everything_by_default() -> None:
    assert decode_tail_request(log_pb2.ReadTailRequest()).hash_range.is_everything
    with pytest.raises(InvalidArgument, match="hash_range"):
        decode_tail_request(log_pb2.ReadTailRequest(hash_range=types_pb2.HashRange(start=2, last=1)))


def test_tails_survive() -> None:
    head = Head("c", 1, "i", 9, 2, 3, None)
    entries = (
        TailEntry(4, 6, pa.py_buffer(b"abc")),
        TailEntry(7, 9, pa.py_buffer(b"d"), np.array([7, 9], np.uint64)),
        TailEntry(10, 10, pa.py_buffer(b"")),
    )
    tail = Tail(head, entries, 9)
    decoded = decode_tail(log_pb2.ReadTailResponse.FromString(encode_tail(tail).SerializeToString()))
    assert (decoded.head, decoded.through_offset, tail_size_bytes(decoded)) == (head, 9, 4)
    assert [bytes(entry.payload) for entry in decoded.entries] == [b"abc", b"d", b""]
    assert decoded.entries[0].offsets is None
    assert decoded.entries[1].offsets is not None
    assert decoded.entries[1].offsets.tolist() == [7, 9]
    assert (decoded.entries[1].first_offset, decoded.entries[1].end_offset) == (7, 9)


def test_offsets_that_are_no_uint64_are_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"entries\.offsets"):
        decode_tail(log_pb2.ReadTailResponse(entries=[log_pb2.TailEntry(offsets=b"123")]))


def test_a_new_collection_has_defaults_where_a_client_says_nothing() -> None:
    new = decode_new_collection(types_pb2.NewCollection(tenant="t", database="d", name="n"))
    assert new == NewCollection("t", "d", "n")
    full = NewCollection("t", "d", "n", "cosine", 4, {"a": 1}, {"b": {"c": 2}}, 3, SCHEMA)
    assert decode_new_collection(encode_new_collection(full)) == full


def test_the_default_schema_is_empty_text() -> None:
    assert encode_schema(Schema()) == ""
    assert decode_schema("", "schema_json") == decode_schema("{}", "schema_json") == Schema()
    assert decode_schema(encode_schema(SCHEMA), "schema_json") == SCHEMA


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("{", "collection.schema_json"),
        ("[]", "collection.schema_json"),
        ("[" * 100_000, "collection.schema_json"),
        ('{"on":[]}', "schema.on"),
        ('{"off":[["int"]]}', "schema.off"),
        ('{"keys":{"a":{"int":1}}}', "schema.keys.a.int"),
        ('{"analyzer":{"tokenizer":[]}}', "schema.analyzer.tokenizer"),
        ('{"bm25":{"k1":1e999}}', "schema.bm25.k1"),
        ('{"sparse":{"k":{"embedding_function":3}}}', "schema.sparse.k.embedding_function"),
    ],
)
def test_malformed_schemas_name_the_place(text: str, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode_new_collection(types_pb2.NewCollection(schema_json=text))
    assert caught.value.field == field


def test_a_function_that_is_not_json_is_not_encoded() -> None:
    with pytest.raises(InvalidArgument, match="schema"):
        encode_schema(Schema(sparse={"k": SparseConfig(embedding_function={"a": object()})}))


@pytest.mark.parametrize("data", [b"", b"\0" * 7, b"\0" * 9])
def test_numbers_are_whole_and_as_many_as_expected(data: bytes) -> None:
    with pytest.raises(InvalidArgument, match="place"):
        decode_array(data, np.float64, "place", 1)
