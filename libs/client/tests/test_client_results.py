"""Results: views, Chroma's habits, Arrow, text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shoal._results import GetResult, QueryResult, Record
from shoal_core.consistency import ServedAt
from shoal_core.contracts import Include
from shoal_core.records import embedding_array

ALL = Include(documents=True, metadatas=True, embeddings=True, distances=True, uris=True)
VECTORS = np.arange(6, dtype=np.float32).reshape(3, 2)


def rows() -> pa.Table:
    return pa.table(
        {
            "id": ["a", "b", "c"],
            "created_offset": pa.array([1, 2, 3], pa.uint64()),
            "document": ["one", None, "three\nlines"],
            "embedding": embedding_array(VECTORS),
            "distance": pa.array([0.0, 0.5, 1.0], pa.float32()),
            "m:int:year": [1999, None, None],
            "m:str:year": [None, "MM", None],
            "m:str:id": [None, None, "own"],
            "m:floats:list": pa.array([[0.5], None, []], pa.list_(pa.float64())),
            "m:str:#uri": ["file:///a", None, None],
        }
    )


def got(include: Include = ALL, table: pa.Table | None = None) -> GetResult:
    return GetResult(rows() if table is None else table, include, ServedAt(7, 2))


def queried(*counts: int, **settings: Any) -> QueryResult:
    return QueryResult(rows(), np.array(counts, np.uint32), ALL, ServedAt(7, 2), **settings)


def test_columns_of_a_get() -> None:
    result = got()
    assert result.ids == result["ids"] == ["a", "b", "c"]
    assert result.documents == ["one", None, "three\nlines"]
    assert result.uris == ["file:///a", None, None]
    assert result.metadatas == [{"year": 1999, "list": [0.5]}, {"year": "MM"}, {"id": "own", "list": []}]
    assert result.embeddings is not None
    np.testing.assert_array_equal(result.embeddings, VECTORS)
    assert len(result) == 3
    assert result.metadatas is result.metadatas, "made once"
    assert set(result.to_dict()) == {"ids", "documents", "metadatas", "embeddings", "uris", "distances"}
    with pytest.raises(KeyError, match="a result has ids"):
        result["data"]


def test_embeddings_share_the_memory_of_the_answer() -> None:
    flat = pa.array(VECTORS.reshape(-1))
    table = pa.table({"id": ["a", "b", "c"], "embedding": pa.FixedSizeListArray.from_arrays(flat, 2)})
    result = got(table=table)
    assert result.embeddings is not None
    assert np.shares_memory(result.embeddings, flat.to_numpy())


def test_what_was_not_included_is_none() -> None:
    result = got(Include())
    columns = (result.documents, result.metadatas, result.embeddings, result.uris, result.distances)
    assert columns == (None,) * 5
    assert result.keys() == ("ids",)
    assert next(iter(result)) == Record("a")


def test_included_columns_that_no_row_has() -> None:
    result = got(table=pa.table({"id": ["a"], "created_offset": [1]}))
    assert (result.documents, result.metadatas, result.uris) == ([None], [{}], [None])
    assert result.embeddings is not None
    assert result.embeddings.shape == (1, 0)


def test_records_one_by_one() -> None:
    first, second, _ = got()
    assert (first.id, first.document, first.uri, first.distance) == ("a", "one", "file:///a", 0.0)
    assert first.metadata == {"year": 1999, "list": [0.5]}
    assert first.embedding is not None
    assert first.embedding.tolist() == [0.0, 1.0]
    assert second.document is None


def test_columns_of_a_query_are_lists_per_query() -> None:
    result = queried(2, 0, 1)
    assert len(result) == 3
    assert result["ids"] == [["a", "b"], [], ["c"]]
    assert result.documents == [["one", None], [], ["three\nlines"]]
    assert result.metadatas is not None
    assert result.metadatas[2] == [{"id": "own", "list": []}]
    assert result.uris == [["file:///a", None], [], [None]]
    assert result.distances is not None
    assert [part.tolist() for part in result.distances] == [[0.0, 0.5], [], [1.0]]
    assert result.embeddings is not None
    assert [part.shape for part in result.embeddings] == [(2, 2), (0, 2), (1, 2)]
    assert "ids" in result.keys()  # noqa: SIM118  a result is no mapping
    with pytest.raises(KeyError):
        result["data"]


def test_one_query_of_several() -> None:
    result = queried(2, 0, 1, complete=False, reason="a shard is down", explain={"plan": "exact"})
    assert result[0].ids == ["a", "b"]
    assert result[-1].ids == ["c"]
    assert [found.ids for found in result] == result.ids
    assert (result[1].complete, result[1].reason, result[1].explain) == (False, "a shard is down", {"plan": "exact"})
    with pytest.raises(IndexError):
        result[3]


def test_to_arrow_names_columns_by_key() -> None:
    table = got().to_arrow()
    names = ["id", "document", "embedding", "uri", "distance"]
    assert sorted(table.column_names) == sorted([*names, "m:int:year", "m:str:year", "m:str:id", "list"])
    assert queried(2, 0, 1).to_arrow().column("query").to_pylist() == [0, 0, 2]
    assert got(Include()).to_arrow().column_names[0] == "id"


def test_text_of_a_result() -> None:
    text = repr(queried(2, 1, complete=False, reason="a shard is down"))
    assert text.splitlines() == [
        "QueryResult: 2 queries at offset 7, version 2, INCOMPLETE: a shard is down",
        "query 0: 2 records",
        "id  document  metadata               embedding  uri        distance",
        "a   one       list=[0.5], year=1999  [0, 1]     file:///a  0",
        "b   –         year=MM                [2, 3]     –          0.5",
        "query 1: 1 record",
        "id  document     metadata         embedding  uri  distance",
        "c   three lines  id=own, list=[]  [4, 5]     –    1",
    ]
    assert repr(got(table=rows().slice(0, 0))) == "GetResult: 0 records at offset 7, version 2"


def test_text_is_cut() -> None:
    table = pa.table({"id": [f"r{number}" for number in range(14)], "document": ["word " * 50] * 14})
    lines = repr(got(Include(documents=True), table)).splitlines()
    assert lines[-1] == "… 4 more"
    assert len(lines) == 13
    assert all(len(line) < 60 for line in lines)
