"""Operation batches and answers survive the wire; hostile columns raise `InvalidArgument` and nothing else."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from libs.wire.tests.wire_support import same
from shoal_core.consistency import ServedAt
from shoal_core.contracts import Answer
from shoal_core.errors import Corrupt, Internal, InvalidArgument
from shoal_core.limits import Limits
from shoal_core.records import (
    ARROW_TYPES,
    CREATED_OFFSET,
    DELETED_KEYS,
    DOCUMENT,
    EMBEDDING,
    ID,
    OP,
    UPDATED_OFFSET,
    Kind,
    MetadataField,
    embedding_type,
)
from shoal_testing.strategies import QUICK, examples
from shoal_wire.codec.answers import (
    answer_size_bytes,
    decode_answer,
    decode_answers,
    encode_answer,
    encode_answer_bytes,
    encode_answers_bytes,
)
from shoal_wire.codec.records import decode_operations, decode_rows, encode_records, estimated_size_bytes
from shoal_wire.v1 import types_pb2 as pb

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
FLOAT32 = st.floats(width=32, allow_nan=False)
_SCALARS = {
    Kind.INT: st.integers(-(2**63), 2**63 - 1),
    Kind.FLOAT: st.floats(allow_nan=False),
    Kind.BOOL: st.booleans(),
    Kind.STRING: TEXT,
}
_SPARSE = st.lists(st.tuples(st.integers(0, 2**32 - 1), FLOAT32), max_size=4).map(
    lambda pairs: {"indices": [index for index, _ in pairs], "values": [value for _, value in pairs]}
)
VALUES = {
    **_SCALARS,
    Kind.INTS: st.lists(_SCALARS[Kind.INT], max_size=4),
    Kind.FLOATS: st.lists(_SCALARS[Kind.FLOAT], max_size=4),
    Kind.BOOLS: st.lists(_SCALARS[Kind.BOOL], max_size=4),
    Kind.STRINGS: st.lists(TEXT, max_size=4),
    Kind.SPARSE: _SPARSE,
}


def _column(draw: st.DrawFn, values: st.SearchStrategy, kind: pa.DataType, rows: int) -> pa.Array:
    nullable = draw(st.booleans())
    items = draw(st.lists(st.none() | values if nullable else values, min_size=rows, max_size=rows))
    return pa.array(items, kind)


@st.composite
def shared_columns(draw: st.DrawFn, rows: int) -> dict[str, pa.Array]:
    """The columns that operation batches and answers have in common, each there or not."""
    columns: dict[str, pa.Array] = {}
    if draw(st.booleans()):
        dimension = draw(st.integers(1, 4))
        vector = st.lists(FLOAT32, min_size=dimension, max_size=dimension)
        columns[EMBEDDING] = _column(draw, vector, embedding_type(dimension), rows)
    if draw(st.booleans()):
        columns[DOCUMENT] = _column(draw, TEXT, pa.string(), rows)
    fields = st.tuples(st.sampled_from(["#uri", "a", "b:c", "ключ"]), st.sampled_from(list(Kind)))
    for key, kind in draw(st.lists(fields, max_size=4, unique=True)):
        columns[MetadataField(key, kind).column] = _column(draw, VALUES[kind], ARROW_TYPES[kind], rows)
    return columns


@st.composite
def operation_batches(draw: st.DrawFn) -> pa.RecordBatch:
    """Operation batches of up to 20 rows, many of them slices that begin in the middle of their buffers."""
    rows = draw(st.integers(0, 20))
    columns = {
        OP: pa.array(draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows)), pa.uint8()),
        ID: pa.array(draw(st.lists(TEXT, min_size=rows, max_size=rows)), pa.string()),
        **draw(shared_columns(rows)),
    }
    if draw(st.booleans()):
        columns[DELETED_KEYS] = _column(draw, st.lists(TEXT, max_size=3), pa.list_(pa.string()), rows)
    start = draw(st.integers(0, rows))
    return pa.RecordBatch.from_pydict(columns).slice(start, draw(st.integers(0, rows - start)))


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    counts = draw(st.lists(st.integers(0, 5), max_size=4))
    rows = sum(counts)
    columns = {
        ID: pa.array(draw(st.lists(TEXT, min_size=rows, max_size=rows)), pa.string()),
        CREATED_OFFSET: pa.array(draw(st.lists(st.integers(0, 2**64 - 1), min_size=rows, max_size=rows)), pa.uint64()),
    }
    if draw(st.booleans()):
        columns["distance"] = pa.array(draw(st.lists(FLOAT32, min_size=rows, max_size=rows)), pa.float32())
    if draw(st.booleans()):
        columns["score"] = pa.array(
            draw(st.lists(st.floats(allow_nan=False), min_size=rows, max_size=rows)), pa.float64()
        )
    if draw(st.booleans()):
        columns["origin"] = pa.array(draw(st.lists(st.integers(0, 1), min_size=rows, max_size=rows)), pa.uint8())
    columns |= draw(shared_columns(rows))
    explain = draw(st.none() | st.dictionaries(TEXT, st.integers(0, 2**40) | TEXT, max_size=2))
    served_at = ServedAt(draw(st.integers(0, 2**64 - 1)), draw(st.integers(0, 2**64 - 1)))
    table = pa.table(columns)
    if rows > 1 and draw(st.booleans()):
        table = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    return Answer(table, np.array(counts, np.uint32), served_at, draw(st.booleans()), draw(TEXT), explain, draw(TEXT))


def _lists(array: pa.Array | pa.ChunkedArray, name: str) -> list[object]:
    values = array.to_pylist()
    return [value or [] for value in values] if name == DELETED_KEYS else values


def _said(array: pa.Array, name: str) -> bool:
    """Whether a column says anything; one of empty lists of deleted keys does not."""
    return any(_lists(array, name)) if name == DELETED_KEYS else array.null_count < len(array)


@QUICK
@given(operation_batches())
def test_operation_batches_survive(batch: pa.RecordBatch) -> None:
    data = encode_records(batch).SerializeToString()
    decoded = decode_operations(pb.RecordColumns.FromString(data))
    decoded.validate(full=True)
    expected = [name for name in batch.schema.names if name in (OP, ID) or _said(batch[name], name)]
    assert decoded.schema.names == expected
    assert decoded.num_rows == batch.num_rows
    for name in expected:
        assert decoded[name].type == batch[name].type
        assert _lists(decoded[name], name) == _lists(batch[name], name)


@QUICK
@given(answers())
def test_answers_survive(answer: Answer) -> None:
    decoded = decode_answer(encode_answer_bytes(answer))
    decoded.rows.validate(full=True)
    assert decoded.rows.schema.equals(answer.rows.schema)
    assert decoded.rows.to_pydict() == answer.rows.to_pydict()
    assert decoded.row_counts.dtype == np.uint32
    assert decoded.row_counts.tolist() == answer.row_counts.tolist()
    assert (decoded.served_at, decoded.complete) == (answer.served_at, answer.complete)
    assert (decoded.reason, decoded.explain, decoded.cursor) == (answer.reason, answer.explain, answer.cursor)


@QUICK
@given(st.lists(answers(), max_size=3))
def test_answers_of_several_searches_survive(several: list[Answer]) -> None:
    assert same(decode_answers(encode_answers_bytes(several)), several)


@QUICK
@given(st.binary(max_size=60), st.integers(0, 200), answers())
def test_torn_answers_of_searches_are_corrupt(noise: bytes, cut: int, answer: Answer) -> None:
    for data in (noise, encode_answers_bytes([answer])[:cut] + noise):
        try:
            for decoded in decode_answers(data):
                decoded.rows.validate(full=True)
        except Corrupt:
            continue


def test_scores_of_another_length_are_corrupt() -> None:
    with pytest.raises(Corrupt, match=r"rows\.scores"):
        decode_answer(pb.ReadAnswer(rows=pb.RecordColumns(ids=["a"], created_offsets=bytes(8), scores=bytes(4))))


def test_one_operation_for_all_takes_one_byte() -> None:
    batch = pa.RecordBatch.from_pydict({OP: pa.array([2, 2, 2], pa.uint8()), ID: ["a", "b", "c"]})
    message = encode_records(batch)
    assert message.operations == b"\x02"
    assert decode_operations(message)[OP].to_pylist() == [2, 2, 2]


def test_memory_under_nulls_is_not_sent() -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([1, 2, 7, 8], pa.float32()), 2, mask=pa.array([False, True]))
    numbers = pa.Array.from_buffers(pa.int64(), 2, [pa.py_buffer(b"\1"), pa.py_buffer(np.array([5, 9]).tobytes())])
    batch = pa.RecordBatch.from_pydict(
        {OP: pa.array([1, 1], pa.uint8()), ID: ["a", "b"], EMBEDDING: vectors, "m:int:n": numbers}
    )
    message = encode_records(batch)
    assert np.frombuffer(message.embeddings, np.float32).tolist() == [1, 2, 0, 0]
    assert np.frombuffer(message.metadata[0].numbers, np.int64).tolist() == [5, 0]
    assert message.metadata[0].validity == b"\1"


def test_decoding_copies_nothing() -> None:
    data = np.arange(8, dtype=np.float32).tobytes()
    message = pb.RecordColumns(ids=["a", "b"], operations=b"\0", dimension=4, embeddings=data)
    values = decode_operations(message)[EMBEDDING].values
    assert values.buffers()[1].size == len(data)
    assert values.to_pylist() == list(range(8))


def test_updated_offsets_stay_behind_and_strange_columns_are_refused() -> None:
    rows = pa.table({ID: ["a"], CREATED_OFFSET: pa.array([1], pa.uint64()), UPDATED_OFFSET: pa.array([1], pa.uint64())})
    assert decode_rows(encode_records(rows)).column_names == [ID, CREATED_OFFSET]
    with pytest.raises(Internal, match="strange"):
        encode_records(rows.append_column("strange", pa.array([1])))


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1, None]], ARROW_TYPES[Kind.INTS]),
        pa.array([[None]], ARROW_TYPES[Kind.STRINGS]),
        pa.array([{"indices": [1, 2], "values": [0.5]}], ARROW_TYPES[Kind.SPARSE]),
        pa.array([{"indices": [None], "values": [0.5]}], ARROW_TYPES[Kind.SPARSE]),
    ],
)
def test_uneven_lists_are_not_encoded(column: pa.Array) -> None:
    kind = next(kind for kind, kind_type in ARROW_TYPES.items() if kind_type == column.type)
    batch = pa.RecordBatch.from_pydict({OP: pa.array([0], pa.uint8()), ID: ["a"], f"m:{kind}:x": column})
    with pytest.raises(InvalidArgument, match=r"metadata\.x"):
        encode_records(batch)


def _valid() -> pb.RecordColumns:
    batch = pa.RecordBatch.from_pydict(
        {
            OP: pa.array([0, 1, 2], pa.uint8()),
            ID: ["a", "b", "c"],
            EMBEDDING: pa.array([[1, 2], None, [3, 4]], embedding_type(2)),
            DOCUMENT: ["x", None, "z"],
            "m:int:i": pa.array([1, None, 3], pa.int64()),
            "m:bool:b": pa.array([True, None, False]),
            "m:str:s": pa.array(["1", None, "3"]),
            "m:ints:l": pa.array([[1, 2], None, []], ARROW_TYPES[Kind.INTS]),
            "m:sparse:v": pa.array([{"indices": [1], "values": [0.5]}, None, None], ARROW_TYPES[Kind.SPARSE]),
            DELETED_KEYS: pa.array([["k"], [], ["l", "m"]], pa.list_(pa.string())),
        }
    )
    return encode_records(batch)


def _offsets(*values: int) -> bytes:
    return np.array(values, np.int32).tobytes()


def _sparse(**parts: bytes) -> dict[str, object]:
    return {"kind": "sparse", **parts}


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("records.operations", {"operations": b""}),
        ("records.operations", {"operations": b"\0\0"}),
        ("records.operations", {"operations": b"\0\0\x04"}),
        ("records.dimension", {"dimension": 0}),
        ("records.dimension", {"dimension": 2**32 - 1}),
        ("records.embeddings", {"dimension": 2**31 - 1}),
        ("records.embeddings", {"embeddings": b""}),
        ("records.embeddings", {"embeddings": bytes(23)}),
        ("records.embedding_validity", {"embedding_validity": b"\1\1"}),
        ("records.documents", {"documents": ["a"]}),
        ("records.document_validity", {"document_validity": b"\1\1"}),
        ("records.deleted_key_offsets", {"deleted_key_offsets": b""}),
        ("records.deleted_key_offsets", {"deleted_key_offsets": _offsets(0, 1, 1, 2)}),
        ("records.deleted_key_offsets", {"deleted_key_offsets": _offsets(0, 3, 1, 3)}),
        ("records.deleted_key_offsets", {"deleted_keys": []}),
        ("records.metadata[0].kind", {"metadata": {"kind": "INT"}}),
        ("records.metadata[0].numbers", {"metadata": {"numbers": bytes(16)}}),
        ("records.metadata[0].validity", {"metadata": {"validity": bytes(2)}}),
        ("records.metadata[0].numbers", {"metadata": {"kind": "bool", "numbers": b"\0\1\2"}}),
        ("records.metadata[0].strings", {"metadata": {"kind": "str"}}),
        ("records.metadata[0].numbers", {"metadata": {"kind": "ints", "numbers": bytes(7)}}),
        ("records.metadata[0].list_offsets", {"metadata": {"kind": "ints", "list_offsets": _offsets(0, 1, 2)}}),
        ("records.metadata[0].list_offsets", {"metadata": {"kind": "ints", "list_offsets": _offsets(0, 4, 1, 3)}}),
        ("records.metadata[0].list_offsets", {"metadata": {"kind": "ints", "list_offsets": _offsets(0, -1, 1, 3)}}),
        ("records.metadata[0].list_offsets", {"metadata": {"kind": "ints", "list_offsets": _offsets(1, 1, 1, 3)}}),
        ("records.metadata[0].list_offsets", {"metadata": {"kind": "ints", "list_offsets": _offsets(0, 1, 1, 4)}}),
        ("records.metadata[0].sparse_indices", {"metadata": {"kind": "sparse", "sparse_indices": bytes(4)}}),
        (
            "records.metadata[0].numbers",
            {"metadata": _sparse(numbers=b"12345", sparse_indices=bytes(4), list_offsets=_offsets(0, 1, 1, 1))},
        ),
    ],
)
def test_the_field_at_fault_is_named(field: str, changes: dict[str, object]) -> None:
    message = _valid()
    nested = changes.get("metadata")
    target: Message = message.metadata[0] if nested else message
    for key, value in (nested if isinstance(nested, dict) else changes).items():
        target.ClearField(key)
        getattr(target, key).extend(value) if isinstance(value, list) else setattr(target, key, value)
    with pytest.raises(InvalidArgument) as caught:
        decode_operations(message)
    assert caught.value.field == field


def test_columns_of_the_same_key_and_kind_are_refused() -> None:
    message = _valid()
    message.metadata.append(message.metadata[0])
    with pytest.raises(InvalidArgument, match="a second int column"):
        decode_operations(message)


def test_work_is_bounded_before_it_is_done() -> None:
    limits = Limits(batch_records=2, metadata_keys=1)
    with pytest.raises(InvalidArgument, match="3 records, at most 2"):
        decode_operations(_valid(), limits)
    with pytest.raises(InvalidArgument, match=r"records\.metadata"):
        decode_operations(_valid(), Limits(metadata_keys=1))


MUTATIONS = st.binary(max_size=40) | st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5).map(lambda v: _offsets(*v))
_BYTES = ["operations", "embeddings", "embedding_validity", "document_validity", "deleted_key_offsets"]
_METADATA_BYTES = ["validity", "numbers", "list_offsets", "sparse_indices"]


@st.composite
def hostile_columns(draw: st.DrawFn) -> pb.RecordColumns:
    """Valid columns with one to four of their fields replaced."""
    message = encode_records(draw(operation_batches())) if draw(st.booleans()) else _valid()
    for _ in range(draw(st.integers(1, 4))):
        match draw(st.sampled_from(["bytes", "dimension", "strings", "metadata", "kind"])):
            case "bytes":
                setattr(message, draw(st.sampled_from(_BYTES)), draw(MUTATIONS))
            case "dimension":
                message.dimension = draw(st.integers(0, 2**32 - 1))
            case "strings":
                strings = getattr(message, draw(st.sampled_from(["ids", "documents", "deleted_keys"])))
                strings[:] = draw(st.lists(TEXT, max_size=5))
            case "metadata" if message.metadata:
                setattr(
                    draw(st.sampled_from(message.metadata)), draw(st.sampled_from(_METADATA_BYTES)), draw(MUTATIONS)
                )
            case "kind" if message.metadata:
                draw(st.sampled_from(message.metadata)).kind = draw(st.sampled_from([*Kind, "", "vector"]))
    return message


@examples(200)
@given(hostile_columns())
def test_hostile_columns_raise_invalid_argument_or_decode_to_sound_arrays(message: pb.RecordColumns) -> None:
    try:
        batch = decode_operations(message)
    except InvalidArgument:
        return
    batch.validate(full=True)
    batch.to_pylist()


@QUICK
@given(st.binary(max_size=60), st.integers(0, 200))
def test_torn_and_random_bytes_do_no_harm(noise: bytes, cut: int) -> None:
    for data in (noise, _valid().SerializeToString()[:cut] + noise):
        try:
            decode_operations(pb.RecordColumns.FromString(data)).validate(full=True)
        except (DecodeError, InvalidArgument):
            continue


@QUICK
@given(hostile_columns())
def test_broken_answers_are_corrupt(message: pb.RecordColumns) -> None:
    try:
        decoded = decode_answer(pb.ReadAnswer(rows=message, row_counts=[len(message.ids)]))
    except Corrupt:
        return
    decoded.rows.validate(full=True)


def test_an_answer_whose_counts_do_not_add_up_is_corrupt() -> None:
    rows = pa.table({ID: ["a"], CREATED_OFFSET: pa.array([1], pa.uint64())})
    message = encode_answer(Answer(rows, np.array([2], np.uint32), ServedAt(1, 1)))
    with pytest.raises(Corrupt, match="1 rows"):
        decode_answer(message)
    with pytest.raises(Corrupt, match="cannot be read"):
        decode_answer(b"\xff\xff")


def test_sizes_are_estimated_without_reading_strings() -> None:
    message = pb.RecordColumns(ids=["a"] * 1000, dimension=384, documents=["d"] * 1000)
    assert 1_500_000 < estimated_size_bytes(message) < 2_500_000
    rows = pa.table({ID: ["a" * 100] * 100})
    answer = Answer(rows.slice(0, 1), np.array([1], np.uint32), ServedAt(1, 1))
    assert answer_size_bytes(answer, 1 << 20) > 10_000
    assert answer_size_bytes(answer, 1000) < 200
