"""User input → operation batch and answers → user values: all conversions, both ways, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.client.tests.client_support import operation_rows
from shoal._columns import check_complete, query_matrix, read_input, read_table, to_batch, vector_matrix
from shoal._prepare import filter_of
from shoal._results import GetResult, include_of
from shoal_core.consistency import ServedAt
from shoal_core.contracts import Include
from shoal_core.errors import DimensionMismatch, InvalidArgument
from shoal_core.limits import Limits
from shoal_core.records import DELETED_KEYS, EMBEDDING, OP, Operation
from shoal_testing.strategies import QUICK, metadatas, records, to_row_table

VECTORS = [[1.0, 2.0], [3.0, 4.0]]


def batch_of(operation: Operation = Operation.UPDATE, **fields: Any) -> pa.RecordBatch:
    arguments = {"ids": None, "embeddings": None, "documents": None, "metadatas": None, "uris": None} | fields
    return to_batch(read_input(operation, **arguments), Limits())


def same(left: object, right: object) -> bool:
    """Equal, also in type: 1, 1.0 and True are three values."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


def storable(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(storable, value))
    return not isinstance(value, float) or bool(np.isfinite(value))


# --- metadata there and back


@QUICK
@given(st.lists(metadatas(deletes=True), min_size=1, max_size=6))
def test_metadata_survives_the_operation_batch(rows: list[dict[str, Any] | None]) -> None:
    rows = [None if row is None else {key: value for key, value in row.items() if storable(value)} for row in rows]
    batch = batch_of(ids=[str(number) for number in range(len(rows))], metadatas=rows)
    got = [row["metadata"] for row in operation_rows(batch)]
    assert all(map(same, got, [row or {} for row in rows])), (got, rows)
    batch.validate(full=True)


@QUICK
@given(records(3))
def test_rows_of_an_answer_become_what_the_oracle_holds(rows: list[dict[str, Any]]) -> None:
    everything = Include(documents=True, metadatas=True, embeddings=True, uris=True)
    result = GetResult(to_row_table(rows, 3), everything, ServedAt(9, 1))
    assert result.ids == [row["id"] for row in rows]
    assert result.documents == [row["document"] for row in rows]
    assert result.uris == [row["uri"] for row in rows]
    assert result.metadatas is not None
    assert all(map(same, result.metadatas, [row["metadata"] for row in rows]))
    assert [tuple(vector) for vector in result.embeddings.tolist()] == [row["embedding"] for row in rows]  # type: ignore[union-attr]


@QUICK
@given(records(3))
def test_to_arrow_is_read_back_by_add(rows: list[dict[str, Any]]) -> None:
    rows = [row for row in rows if all(map(storable, row["metadata"].values()))]
    if not rows:
        return
    everything = Include(documents=True, metadatas=True, embeddings=True, uris=True)
    table = GetResult(to_row_table(rows, 3), everything, ServedAt(9, 1)).to_arrow()
    got = operation_rows(to_batch(read_table(Operation.ADD, table), Limits()))
    for found, row in zip(got, rows, strict=True):
        assert same(found["metadata"], row["metadata"])
        assert (found["id"], found["document"], found["uri"]) == (row["id"], row["document"], row["uri"])
        assert tuple(found["embedding"]) == row["embedding"]


def test_columnar_metadata_of_every_form() -> None:
    batch = batch_of(
        ids=["a", "b"],
        metadatas={
            "int32": np.array([1, 2], np.int32),
            "half": np.array([0.5, 1.5], np.float16),
            "flag": np.array([True, False]),
            "text": np.array(["x", "y"]),
            "mixed": [1, "one"],
            "gap": [None, 2.5],
            "lists": [[1, 2], None],
            "matrix": np.array([[1, 2], [3, 4]]),
            "arrow": pa.array(["p", None]),
            "words": pa.array(["p", "q"]).dictionary_encode(),
            "chunked": pa.chunked_array([[1], [2]]),
            "large": pa.array([["p"], None], pa.large_list(pa.large_string())),
            "empty": pa.nulls(2),
            "sparse": [{"indices": [1, 7], "values": [0.5, 1]}, None],
        },
    )
    assert [row["metadata"] for row in operation_rows(batch)] == [
        {
            "int32": 1,
            "half": 0.5,
            "flag": True,
            "text": "x",
            "mixed": 1,
            "lists": [1, 2],
            "matrix": [1, 2],
            "arrow": "p",
            "words": "p",
            "chunked": 1,
            "large": ["p"],
            "sparse": {"indices": [1, 7], "values": [0.5, 1.0]},
        },
        {
            "int32": 2,
            "half": 1.5,
            "flag": False,
            "text": "y",
            "mixed": "one",
            "gap": 2.5,
            "matrix": [3, 4],
            "words": "q",
            "chunked": 2,
        },
    ]


def test_numpy_scalars_in_dicts_are_numbers() -> None:
    rows = [{"i": np.int64(3), "f": np.float32(0.5), "b": np.bool_(True), "s": np.str_("x"), "l": np.array([1, 2])}]
    [row] = operation_rows(batch_of(ids=["a"], metadatas=rows))
    assert same(row["metadata"], {"i": 3, "f": 0.5, "b": True, "s": "x", "l": [1, 2]})


def test_none_deletes_a_key_in_update_and_means_nothing_in_add() -> None:
    rows = [{"a": None, "b": 1}, {"b": None, "c": None}]
    update = batch_of(Operation.UPSERT, ids=["x", "y"], metadatas=rows)
    assert update.column(DELETED_KEYS).to_pylist() == [["a"], ["b", "c"]]
    assert DELETED_KEYS not in batch_of(Operation.ADD, ids=["x", "y"], metadatas=rows).schema.names


BAD_METADATA: list[tuple[Any, str, str]] = [
    ([{"a": 1}], "metadatas", "1 entries for 2 ids"),
    ("text", "metadatas", "expected a list"),
    ([{}, 3], "metadatas[1]", "expected a mapping, got int"),
    ([{}, {"": 1}], "metadatas[1]", "non-empty strings"),
    ([{}, {3: 1}], "metadatas[1]", "non-empty strings"),
    ([{}, {"#uri": "x"}], "metadatas[1]", "reserved"),
    ([{"$and": 1}, {}], "metadatas[0]", "reserved"),
    ([{}, {"a": 2**63}], "metadatas[1].a", "64-bit"),
    ([{"a": 1}, {"a": -(2**63) - 1}], "metadatas[1].a", "64-bit"),
    ([{}, {"a": [2**63]}], "metadatas[1].a", "64-bit"),
    ([{"a": 1.0}, {"a": float("nan")}], "metadatas[1].a", "finite"),
    ([{"a": [0.5, float("inf")]}, {}], "metadatas[0].a", "finite"),
    ([{}, {"a": {"b": 1}}], "metadatas[1].a", "nested"),
    ([{}, {"a": [1, "x"]}], "metadatas[1].a", "one type"),
    ([{}, {"a": [1, 2.0]}], "metadatas[1].a", "one type"),
    ([{}, {"a": [None]}], "metadatas[1].a", "one type"),
    ([{}, {"a": [[1]]}], "metadatas[1].a", "one type"),
    ([{}, {"a": []}], "metadatas[1].a", "is empty"),
    ({"a": pa.array([[1], []])}, "metadatas.a[1]", "is empty"),
    ([{}, {"a": b"x"}], "metadatas[1].a", "bytes"),
    ([{}, {"a": object()}], "metadatas[1].a", "object"),
    ([{}, {"a": "\ud800"}], "metadatas[1].a", "encoded"),
    ([{}, {"a\ud800": 1}], "metadatas[1]", "surrogate"),
    ([{}, {"a": {"indices": [1], "values": [1, 2]}}], "metadatas[1].a", "as many values"),
    ([{}, {"a": {"indices": [2, 1], "values": [1, 2]}}], "metadatas[1].a", "ascend"),
    ([{}, {"a": {"indices": [-1], "values": [1]}}], "metadatas[1].a", "32 bits"),
    ([{}, {"a": {"indices": [1], "values": [float("nan")]}}], "metadatas[1].a", "finite"),
    ({"a": [1]}, "metadatas.a", "1 values for 2 ids"),
    ({"a": 3}, "metadatas.a", "expected a column"),
    ({"a": "xy"}, "metadatas.a", "expected a column"),
    ({"#a": [1, 2]}, "metadatas", "reserved"),
    ({"a": np.array([1.0, np.nan])}, "metadatas.a[1]", "finite"),
    ({"a": np.array([1, 2**63], np.uint64)}, "metadatas.a", "int64"),
    ({"a": pa.array([[1], [None]])}, "metadatas.a[1]", "nulls"),
    ({"a": pa.array([1, 2], pa.timestamp("s"))}, "metadatas.a", "no metadata type"),
    ({"a": ["x", object()]}, "metadatas.a[1]", "object"),
]


@pytest.mark.parametrize(("metadata", "field", "message"), BAD_METADATA)
def test_bad_metadata_is_refused_by_place(metadata: Any, field: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as caught:
        batch_of(ids=["x", "y"], metadatas=metadata)
    assert caught.value.field == field


# --- ids, texts, vectors


@pytest.mark.parametrize(
    "ids",
    [
        ["a", "b"],
        ("a", "b"),
        np.array(["a", "b"]),
        np.array(["a", "b"], dtype=object),
        pa.array(["a", "b"]),
        pa.array(["x", "a", "b"], pa.large_string()).slice(1),
        pa.chunked_array([["a"], ["b"]]),
        pa.array(["a", "b"]).dictionary_encode(),
    ],
)
def test_ids_of_every_form(ids: Any) -> None:
    batch = batch_of(Operation.DELETE, ids=ids)
    assert [row["id"] for row in operation_rows(batch)] == ["a", "b"]
    assert batch.column(OP).to_pylist() == [3, 3]
    assert batch.schema.names == ["op", "id"]


@pytest.mark.parametrize(
    ("ids", "field", "message"),
    [
        ([], "ids", "at least one"),
        ("a", "ids", "put it into a list"),
        (3, "ids", "expected a list"),
        (["a", ""], "ids[1]", "empty"),
        (["a", None], "ids[1]", "missing"),
        (["a", 3], "ids[1]", "got int"),
        (["a", b"b"], "ids[1]", "got bytes"),
        (["a", "b", "a", "b"], "ids", "'a', 'b' occur twice"),
        (["a", "\ud800"], "ids[1]", "surrogate"),
        (pa.array([1, 2]), "ids", "array of strings"),
    ],
)
def test_bad_ids_are_refused(ids: Any, field: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as caught:
        batch_of(ids=ids)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "embeddings",
    [
        VECTORS,
        tuple(map(tuple, VECTORS)),
        [np.array(row, np.float32) for row in VECTORS],
        np.array(VECTORS),
        np.array(VECTORS, np.float16),
        np.array(VECTORS, int),
        np.asfortranarray(np.array(VECTORS, np.float32)),
        pa.array(VECTORS, pa.list_(pa.float32(), 2)),
        pa.array([[0, 0], *VECTORS], pa.list_(pa.float32(), 2)).slice(1),
        pa.array(VECTORS, pa.list_(pa.float64(), 2)),
        pa.array(VECTORS),
        pa.chunked_array([VECTORS[:1], VECTORS[1:]]),
    ],
)
def test_embeddings_of_every_form(embeddings: Any) -> None:
    batch = batch_of(Operation.ADD, ids=["a", "b"], embeddings=embeddings)
    assert batch.schema.field(EMBEDDING).type == pa.list_(pa.float32(), 2)
    assert batch.column(EMBEDDING).to_pylist() == VECTORS


def test_float32_is_not_copied() -> None:
    matrix = np.ones((4, 3), np.float32)
    ids = list("abcd")
    column = batch_of(ids=ids, embeddings=matrix).column(EMBEDDING)
    assert column.values.buffers()[1].address == matrix.ctypes.data
    array = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), 3)
    again = to_batch(read_table(Operation.ADD, pa.table({"id": ids, "embedding": array})), Limits()).column(EMBEDDING)
    assert again.values.buffers()[1].address == matrix.ctypes.data


def test_missing_embeddings_stay_null() -> None:
    batch = batch_of(ids=["a", "b", "c"], embeddings=[None, [1, 2], None])
    assert batch.column(EMBEDDING).to_pylist() == [None, [1.0, 2.0], None]
    assert EMBEDDING not in batch_of(ids=["a"], embeddings=[None]).schema.names
    arrow = pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2))
    assert batch_of(ids=["a", "b"], embeddings=arrow).column(EMBEDDING).to_pylist() == [[1.0, 2.0], None]


@pytest.mark.parametrize(
    ("embeddings", "field", "message"),
    [
        ([[1, 2]], "embeddings", "1 entries for 2 ids"),
        ([[1, 2], [3]], "embeddings[1]", "1 numbers, the first has 2"),
        ([[1, 2], 3], "embeddings[1]", "no vector"),
        ([1, 2], "embeddings", "2 axes"),
        ([[], []], "embeddings", "at least one number"),
        ([["1"], ["2"]], "embeddings", "expected numbers"),
        ([[True], [False]], "embeddings", "expected numbers"),
        ("xy", "embeddings", "rows of numbers"),
        ([[1.0], [float("nan")]], "embeddings[1]", "NaN"),
        (np.array([[1.0], [1e300]]), "embeddings[1]", "too large"),
        (pa.array([[1.0, 2.0], [3.0]]), "embeddings[1]", "different length"),
        (pa.array([["a"], ["b"]]), "embeddings", "lists of float32"),
        (pa.array([[1.0, None], [1.0, 2.0]], pa.list_(pa.float32(), 2)), "embeddings[0]", "NaN"),
        (np.ones((2, 2, 2)), "embeddings", "3 axes"),
    ],
)
def test_bad_embeddings_are_refused(embeddings: Any, field: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as caught:
        batch_of(ids=["a", "b"], embeddings=embeddings)
    assert caught.value.field == field


def test_a_new_record_needs_an_embedding() -> None:
    for given_embeddings, field in ((None, "embeddings"), ([None, [1.0]], "embeddings[0]")):
        given_input = read_input(Operation.UPSERT, ["a", "b"], given_embeddings, None, None, None)
        with pytest.raises(InvalidArgument) as caught:
            check_complete(given_input)
        assert caught.value.field == field
    check_complete(read_input(Operation.UPDATE, ["a"], None, None, [{"a": 1}], None))


@pytest.mark.parametrize("name", ["documents", "uris"])
def test_texts(name: str) -> None:
    batch = batch_of(Operation.UPDATE, ids=["a", "b"], **{name: ["x", None]})
    assert [row[name.removesuffix("s")] for row in operation_rows(batch)] == ["x", None]
    for texts, field in ((["x"], name), ("xy", name), (["x", 3], f"{name}[1]"), (["x", "\udc00"], f"{name}[1]")):
        with pytest.raises(InvalidArgument) as caught:
            batch_of(Operation.UPDATE, ids=["a", "b"], **{name: texts})
        assert caught.value.field == field


def test_batches_over_a_limit_are_refused_before_they_are_sent() -> None:
    ids = [str(number) for number in range(11)]
    with pytest.raises(InvalidArgument, match=r"11 records, at most 10.*load"):
        to_batch(read_input(Operation.DELETE, ids, None, None, None, None), Limits(batch_records=10))
    with pytest.raises(InvalidArgument, match="bytes, at most 100"):
        to_batch(read_input(Operation.ADD, ids, np.ones((11, 9)), None, None, None), Limits(batch_size_bytes=100))


def test_tables_need_an_id_and_distinct_names() -> None:
    for table in (pa.table({"ids": ["a"]}), pa.table([["a"], ["b"]], names=["id", "id"])):
        with pytest.raises(InvalidArgument) as caught:
            read_table(Operation.ADD, table)
        assert caught.value.field == "table"
    with pytest.raises(InvalidArgument, match="'n' twice"):
        read_table(Operation.ADD, pa.table({"id": ["a"], "n": [1], "m:int:n": [1]}))
    with pytest.raises(InvalidArgument, match="no metadata type"):
        read_table(Operation.ADD, pa.table({"id": ["a"], "when": pa.array([1], pa.date32())}))
    batch = to_batch(read_table(Operation.ADD, pa.table({"id": ["a"], "m:int:n": [1], "m:odd": ["x"]})), Limits())
    assert operation_rows(batch)[0]["metadata"] == {"n": 1, "m:odd": "x"}


def test_query_vectors() -> None:
    assert query_matrix([1, 2], None).tolist() == [[1.0, 2.0]]
    assert query_matrix(np.ones(3), 3).shape == (1, 3)
    assert query_matrix(np.ones((2, 3), np.float32), 3).shape == (2, 3)
    assert query_matrix(pa.array(VECTORS), 2).tolist() == VECTORS
    matrix = np.ones((2, 3), np.float32)
    assert vector_matrix(matrix, "x") is matrix or np.shares_memory(vector_matrix(matrix, "x"), matrix)
    for vectors in ([], [[1.0], [np.inf]], [[1.0], [1.0, 2.0]], "text", 3, pa.array([[1.0], None])):
        with pytest.raises(InvalidArgument, match="query_embeddings"):
            query_matrix(vectors, None)
    with pytest.raises(DimensionMismatch, match="dimension 2, the collection has 3"):
        query_matrix([[1, 2]], 3)


def test_filters_take_numpy_values() -> None:
    plain = {"$or": [{"n": {"$in": [1, 2]}}, {"flag": True}, {"f": {"$lt": 0.5}}]}
    numpy = {"$or": ({"n": {"$in": np.array([1, 2])}}, {"flag": np.bool_(True)}, {"f": {"$lt": np.float32(0.5)}})}
    assert filter_of(numpy, None, Limits()) == filter_of(plain, None, Limits())
    with pytest.raises(InvalidArgument, match="datetime"):
        filter_of({"when": np.datetime64("2020-01-01T00:00:00")}, None, Limits())
    deep: dict[str, object] = {"n": np.int64(1)}
    for _ in range(5_000):
        deep = {"$and": [deep]}
    with pytest.raises(InvalidArgument, match="nested deeper"):
        filter_of(deep, None, Limits())


def test_include_names_are_checked() -> None:
    assert include_of(["documents", "ids"]) == Include(documents=True)
    assert include_of("uris") == Include(uris=True)
    with pytest.raises(InvalidArgument, match="'data'; one of documents"):
        include_of(["data"])
