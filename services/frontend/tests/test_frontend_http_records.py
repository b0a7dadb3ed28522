"""Records over HTTP: forms of embeddings and metadata, pages, filters, searches, and bodies that are wrong."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.frontend.tests.frontend_http_support import Http, Site, T, compact
from shoal_core.contracts import CollectionRef
from shoal_core.errors import InvalidArgument
from shoal_core.records import DELETED_KEYS, DOCUMENT, EMBEDDING, Operation
from shoal_frontend.http_api.bodies import LARGE_BYTES, MAX_BODY_BYTES, parse
from shoal_frontend.http_api.body_error import BodyError
from shoal_frontend.http_api.records import parse_records
from shoal_frontend.http_api.vectors import parse_vectors
from shoal_testing.strategies import examples

NO_BODY = "Failed to deserialize the JSON body into the target type: "


def encoded(*vector: float) -> str:
    return base64.b64encode(np.array(vector, "<f4").tobytes()).decode()


async def site_of_ten(**body: Any) -> Site:
    site = await Site().start(**body)
    added = await site.post(
        "add",
        {
            "ids": [f"id{number}" for number in range(10)],
            "embeddings": [[float(number), 0.5] for number in range(10)],
            "documents": [f"text {number}" if number % 2 else None for number in range(10)],
            "metadatas": [{"n": number, "even": number % 2 == 0} for number in range(10)],
            "uris": [f"file:{number}" if number < 3 else None for number in range(10)],
        },
    )
    assert (added.status, added.json) == (201, {})
    return site


# --- embeddings


def test_base64_and_lists_give_the_same_matrix_of_float32() -> None:
    lists = parse_vectors([[0.1, 2], [-3, 1e-3]], "embeddings")
    texts = parse_vectors([encoded(0.1, 2), encoded(-3, 1e-3)], "embeddings")
    assert lists is not None
    assert texts is not None
    assert lists.matrix.dtype == texts.matrix.dtype == np.float32
    np.testing.assert_array_equal(lists.matrix, texts.matrix)
    assert lists.valid.all()


@pytest.mark.parametrize("row", [[1.0, 2.0], encoded(1.0, 2.0)])
def test_null_rows_of_an_update_are_not_valid(row: Any) -> None:
    found = parse_vectors([None, row, None], "embeddings", nulls=True)
    assert found is not None
    assert found.valid.tolist() == [False, True, False]
    assert found.matrix.tolist() == [[0, 0], [1, 2], [0, 0]]
    assert parse_vectors([None, None], "embeddings", nulls=True) is None


@pytest.mark.parametrize(
    ("rows", "place"),
    [
        ([[1, "2"]], "embeddings[0][1]: invalid type: string"),
        ([[1], [True]], "embeddings[1][0]: invalid type: boolean"),
        ([[1], [None]], "embeddings[1][0]: invalid type: null"),
        ([[1], None], "embeddings[1]: invalid type: null"),
        ([[1], 2], "embeddings[1]: invalid type: integer"),
        ([[[1.0]]], "embeddings[0][0]: invalid type: sequence"),
        ([[1], encoded(1)], "embeddings: some rows are lists"),
        ({}, "embeddings: invalid type: map"),
        (None, "embeddings: invalid type: null"),
    ],
)
def test_what_is_no_vector_is_named(rows: Any, place: str) -> None:
    with pytest.raises(BodyError) as caught:
        parse_vectors(rows, "embeddings")
    assert caught.value.message.startswith(NO_BODY + place)


@pytest.mark.parametrize("text", ["A", "AAA=", "!!!!", "é", "AADgQA==AAAA", ""])
def test_what_is_no_base64_of_float32_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="Validation error: embeddings: "):
        parse_vectors([text], "embeddings")


@pytest.mark.parametrize("rows", [[[1, 2], [1, 2], [3]], [encoded(1), encoded(1, 2)]])
async def test_rows_of_several_lengths_are_refused(rows: Any) -> None:
    site = await site_of_ten()
    expected = (400, "InvalidArgumentError", "Inconsistent dimensions in provided embeddings")
    assert (await site.post("query", {"query_embeddings": rows})).error == expected
    ids = [str(at) for at in range(len(rows))]
    for verb in ("add", "update", "upsert"):
        assert (await site.post(verb, {"ids": ids, "embeddings": rows})).error == expected


async def test_embeddings_come_back_as_the_float32_they_are() -> None:
    site = await Site().start()
    await site.post("add", {"ids": ["a"], "embeddings": [encoded(0.1, 16777216.0)]})
    found = await site.post("get", {"include": ["embeddings"]})
    assert b'"embeddings":[[0.1,16777216.0]]' in found.body


@pytest.mark.parametrize("value", [b"1e300", b"1e30"])
async def test_vectors_too_long_for_float32_are_refused(value: bytes) -> None:
    site = await Site().start()
    for verb, name in (("add", b"embeddings"), ("query", b"query_embeddings")):
        answer = await site.post(verb, b'{"ids":["a"],"' + name + b'":[[' + value + b"]]}")
        assert answer.error[:2] == (400, "InvalidArgumentError")
    assert (await site.post("add", b'{"ids":["a"],"embeddings":[[NaN]]}')).status == 400


async def test_update_changes_only_the_rows_that_have_an_embedding() -> None:
    site = await site_of_ten()
    body = {"ids": ["id1", "id2", "gone"], "embeddings": [None, encoded(7, 7), None]}
    assert (await site.post("update", body)).json == {}
    assert (await site.post("update", {"ids": ["id3"], "embeddings": [None]})).status == 200
    found = (await site.post("get", {"ids": ["id1", "id2"], "include": ["embeddings"]})).json
    assert found["embeddings"] == [[1, 0.5], [7, 7]]
    assert await site.count() == 10


# --- metadata


def records(metadatas: Any, operation: Operation = Operation.UPSERT) -> pa.RecordBatch:
    body = {"ids": ["a"] * len(metadatas), "embeddings": [[1.0]] * len(metadatas), "metadatas": metadatas}
    return parse_records(body, operation).batch


def test_metadata_becomes_typed_columns() -> None:
    batch = records([{"i": 1, "f": 1.0, "l": [1, 2]}, {"i": "x", "b": True}, None])
    assert batch.column("m:int:i").to_pylist() == [1, None, None]
    assert batch.column("m:str:i").to_pylist() == [None, "x", None]
    assert batch.column("m:float:f").to_pylist() == [1.0, None, None]
    assert batch.column("m:ints:l").to_pylist() == [[1, 2], None, None]
    assert batch.column("m:bool:b").to_pylist() == [None, True, None]


def test_empty_lists_are_stored_as_nothing_and_leave_the_rest() -> None:
    batch = records([{"l": [], "k": 1}, {"l": [True]}])
    assert batch.column("m:int:k").to_pylist() == [1, None]
    assert batch.column("m:bools:l").to_pylist() == [None, [True]]


async def test_lists_of_both_kinds_of_numbers_are_floats_whichever_comes_first() -> None:
    site = await Site().start()
    metadatas = [{"l": [1, 2.5]}, {"l": [1.0, 2]}, {"l": [1, 2]}]
    body = {"ids": ["a", "b", "c"], "embeddings": [[1]] * 3, "metadatas": metadatas}
    assert (await site.post("add", body)).status == 201
    found = await site.post("get", {"include": ["metadatas"]})
    assert b'[{"l":[1.0,2.5]},{"l":[1.0,2.0]},{"l":[1,2]}]' in found.body


def test_null_deletes_a_key_of_an_update() -> None:
    for operation in (Operation.UPDATE, Operation.UPSERT):
        assert records([{"k": None, "n": 1}], operation).column(DELETED_KEYS).to_pylist() == [["k"]]
        assert records([{"k": None, "l": []}], operation).column(DELETED_KEYS).to_pylist() == [["k"]]


async def test_null_is_no_value_of_an_add() -> None:
    site = await Site().start()
    problem = "metadatas[0].k: data did not match any variant of untagged enum MetadataValue at line 1 column 55"
    body = {"ids": ["q"], "embeddings": [[1]], "metadatas": [{"k": None}]}
    assert (await site.post("add", body)).error == (422, "ChromaError", NO_BODY + problem)
    assert (await site.post("add", body | {"metadatas": [None]})).status == 201


def test_columns_that_are_null_throughout_are_left_out() -> None:
    body = {"ids": ["a"], "embeddings": [None], "documents": [None], "uris": [None], "metadatas": [None]}
    batch = parse_records(body, Operation.UPDATE).batch
    assert batch is not None
    assert not {DOCUMENT, EMBEDDING} & set(batch.schema.names)
    assert batch.num_columns == 2


@pytest.mark.parametrize(
    "value",
    [{"n": 1}, [1, "a"], [1, True], [[1]], [None], [{}], {"#type": "sparse_vector", "indices": ["a"], "values": [1.0]}],
)
def test_values_of_no_type_are_a_wrong_body(value: Any) -> None:
    with pytest.raises(BodyError, match=r"metadatas\[1\]\.k\.x: data did not match any variant"):
        records([{"fine": 1}, {"k.x": value}])


@pytest.mark.parametrize(
    "metadata", [{"": 1}, {"#k": 1}, {"$k": 1}, {"s": {"indices": [1], "values": [1.0]}}, {"#a": [], "$b": 1}]
)
def test_keys_that_nobody_may_have_name_the_row(metadata: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^Validation error: metadatas: Invalid metadata at index 1$"):
        records([None, metadata])


def test_what_is_no_metadata_is_a_wrong_body() -> None:
    with pytest.raises(BodyError, match=r"metadatas\[1\]: invalid type: integer `3`, expected a map"):
        records([None, 3])


async def test_sparse_vectors_come_back_with_their_mark() -> None:
    site = await Site().start()
    sparse = {"#type": "sparse_vector", "indices": [1, 7], "values": [0.1, 2.0]}
    body = {"ids": ["a", "b"], "embeddings": [[1], [2]], "metadatas": [{"s": sparse | {"tokens": ["x", "y"]}}, None]}
    assert (await site.post("add", body)).status == 201
    assert (await site.post("get", {})).json["metadatas"] == [{"s": sparse}, None]
    assert (await site.post("get", {"ids": ["b"]})).json["metadatas"] == [None]
    query = {"query_embeddings": [[2]], "ids": ["b"]}
    assert (await site.post("query", query)).json["metadatas"] == [[None]]
    search = {"filter": {"#id": {"$in": ["b"]}}, "select": {"keys": ["s", "#metadata"]}}
    assert (await site.post("search", {"searches": [search]})).json["metadatas"] == [[None]]
    falling = {"ids": ["c"], "embeddings": [[1]], "metadatas": [{"s": sparse | {"indices": [7, 1]}}]}
    assert (await site.post("add", falling)).error[:2] == (400, "InvalidArgumentError")


# --- reading


async def test_pages_and_columns_of_a_get() -> None:
    site = await site_of_ten()
    found = (await site.post("get", {"limit": 3, "offset": 2, "include": ["uris", "metadatas"]})).json
    assert found["ids"] == ["id2", "id3", "id4"]
    assert found["uris"] == ["file:2", None, None]
    assert found["metadatas"][1] == {"n": 3, "even": False}  # the uri is none of it
    assert found["documents"] is found["embeddings"] is None
    assert (await site.post("get", {"limit": 0})).json["ids"] == []
    assert (await site.post("get", {"offset": 9, "include": None})).json["include"] == ["documents", "metadatas"]


async def test_ids_and_both_filters_must_all_hold_and_ids_do_not_order() -> None:
    site = await site_of_ten()
    body = {"ids": ["id7", "id3", "id4", "id3"], "where": {"n": {"$lt": 7}}, "where_document": {"$contains": "text"}}
    assert (await site.post("get", body)).json["ids"] == ["id3"]
    assert (await site.post("get", {"ids": ["id7", "id3", "id3"]})).json["ids"] == ["id3", "id7"]


@pytest.mark.parametrize("verb", ["get", "query", "delete"])
@pytest.mark.parametrize("wrong", [{}, {"$foo": "x"}, {"$and": []}, {"$contains": 5}])
async def test_wrong_filters_are_named(verb: str, wrong: Any) -> None:
    site = await Site().start()
    body = {"query_embeddings": [[1]]} if verb == "query" else {}
    for name, message in (("where", "Invalid where clause"), ("where_document", "Invalid where document clause")):
        assert (await site.post(verb, body | {name: wrong})).error == (400, "InvalidArgumentError", message)


async def test_nothing_has_an_empty_id() -> None:
    site = await site_of_ten()
    found = await site.post("get", {"ids": [""]})
    assert (found.status, found.json["ids"]) == (200, [])
    assert (await site.post("get", {"ids": ["", "id3"]})).json["ids"] == ["id3"]
    found = await site.post("query", {"query_embeddings": [[1, 2]], "ids": [""]})
    assert (found.status, found.json["ids"]) == (200, [[]])


async def test_members_of_an_answer_are_in_the_order_of_the_reference() -> None:
    site = await Site().start()
    found = await site.post("get", {})
    assert list(found.json) == ["ids", "embeddings", "documents", "uris", "metadatas", "include"]
    found = await site.post("query", {"query_embeddings": [[1.0]]})
    assert list(found.json) == ["ids", "embeddings", "documents", "uris", "metadatas", "distances", "include"]
    found = await site.post("search", {"searches": [{}]})
    assert list(found.json) == ["ids", "documents", "embeddings", "metadatas", "scores", "select"]


async def test_a_query_takes_base64_and_filters_and_divides_by_vector() -> None:
    site = await site_of_ten()
    body = {
        "query_embeddings": [encoded(8, 0.5), encoded(0, 0.5)],
        "n_results": 2,
        "where": {"even": True},
        "include": ["distances", "metadatas", "uris", "embeddings", "documents"],
    }
    found = (await site.post("query", body)).json
    assert found["ids"] == [["id8", "id6"], ["id0", "id2"]]
    assert found["distances"] == [[0, 4], [0, 4]]
    assert found["uris"] == [[None, None], ["file:0", "file:2"]]
    assert found["embeddings"][1] == [[0, 0.5], [2, 0.5]]
    assert found["metadatas"][0][0] == {"n": 8, "even": True}
    assert found["documents"] == [[None, None], [None, None]]


async def test_ten_results_by_default_and_nothing_in_an_empty_collection() -> None:
    site = await Site().start()
    empty = await site.post("query", {"query_embeddings": [[1.0], [2.0]], "include": ["distances", "embeddings"]})
    assert (empty.json["ids"], empty.json["distances"], empty.json["embeddings"]) == ([[], []], [[], []], [[], []])
    rows = {"ids": [str(at) for at in range(12)], "embeddings": [[float(at)] for at in range(12)]}
    await site.post("add", rows)
    assert len((await site.post("query", {"query_embeddings": [[0]]})).json["ids"][0]) == 10


@pytest.mark.parametrize("compacted", [False, True])
async def test_answers_do_not_depend_on_compaction(compacted: bool) -> None:
    site = await site_of_ten()
    status = {"op_indexing_progress": 0.0, "num_unindexed_ops": 10, "num_indexed_ops": 0, "total_ops": 10}
    if compacted:
        ref = CollectionRef("default_tenant", "default_database", id=site.id)
        await site.system.compact(ref)
        status = {"op_indexing_progress": 1.0, "num_unindexed_ops": 0, "num_indexed_ops": 10, "total_ops": 10}
    at = f"{T}/collections/{site.id}"
    assert (await site.http("GET", f"{at}/indexing_status")).json == status
    assert (await site.http("GET", f"{at}/count?read_level=index_only")).json == (10 if compacted else 0)
    assert (await site.http("GET", f"{at}/count?read_level=index_and_bounded_wal")).json == 10
    found = await site.post("query", {"query_embeddings": [[3, 0.5]], "n_results": 3})
    assert found.json["ids"] == [["id3", "id2", "id4"]]


async def test_nothing_indexed_of_nothing_is_all_of_it() -> None:
    site = await Site().start()
    found = (await site.http("GET", f"{T}/collections/{site.id}/indexing_status")).json
    assert found == {"op_indexing_progress": 1.0, "num_unindexed_ops": 0, "num_indexed_ops": 0, "total_ops": 0}


# --- deleting


async def test_a_delete_counts_what_matched_and_stops_at_its_limit() -> None:
    site = await site_of_ten()
    assert (await site.post("delete", {"where": {"even": True}, "limit": 2})).json == {"deleted": 2}
    assert (await site.post("delete", {"where": {"even": True}, "ids": ["id4", "id5"]})).json == {"deleted": 1}
    assert (await site.post("delete", {"ids": ["id1", "nope"]})).json == {"deleted": 2}
    assert (await site.post("get", {"include": []})).json["ids"] == ["id3", "id5", "id6", "id7", "id8", "id9"]
    assert (await site.post("delete", {"where": {}})).error == (400, "InvalidArgumentError", "Invalid where clause")


async def test_a_delete_of_no_ids_is_refused() -> None:
    site = await site_of_ten()
    problem = "Validation error: ids, where: Either ids or where must be specified"
    assert (await site.post("delete", {"ids": []})).error == (400, "InvalidArgumentError", problem)
    assert (await site.post("delete", {})).json == {"deleted": 0}
    assert await site.count() == 10


# --- searching


async def test_a_search_ranks_filters_and_selects() -> None:
    site = await site_of_ten()
    rank = {"$knn": {"query": [4.0, 0.5], "limit": 5}}
    keys = ["#document", "#score", "n", "n"]
    ranked = {"rank": rank, "filter": {"even": True}, "limit": {"limit": 2, "offset": 0}, "select": {"keys": keys}}
    listed = {"filter": {}, "rank": {}, "group_by": {}, "limit": {"offset": 8}, "select": {"keys": ["#embedding"]}}
    found = await site.post("search", {"searches": [ranked, listed], "read_level": "index_and_wal"})
    assert found.json == {
        "ids": [["id4", "id2"], ["id8", "id9"]],
        "documents": [[None, None], None],
        "embeddings": [None, [[8.0, 0.5], [9.0, 0.5]]],
        "metadatas": [[{"n": 4}, {"n": 2}], None],
        "scores": [[0.0, 4.0], None],
        "select": [["#document", "#score", "n"], ["#embedding"]],
    }


async def test_wrong_searches_name_the_place() -> None:
    site = await site_of_ten()
    missing = await site.post("search", {})
    assert missing.error == (422, "ChromaError", f"{NO_BODY}missing field `searches` at line 1 column 2")
    operator = await site.post("search", {"searches": [{}, {"rank": {"$what": 1}}]})
    assert operator.error == (400, "InvalidArgumentError", "searches[1].rank.$what: unknown operator")
    level = await site.post("search", {"searches": [], "read_level": "now"})
    assert level.status == 422
    assert "unknown variant `now`" in level.json["message"]
    dimension = await site.post("search", {"searches": [{"rank": {"$knn": {"query": [1.0]}}}]})
    assert dimension.error[0] == 400


# --- bodies


def test_positions_count_lines_and_bytes() -> None:
    body = '{\n  "ids": ["é"],\n  "embeddings": [[1]],\n  "documents": ["é", 5]\n}'.encode()
    with pytest.raises(BodyError) as caught:
        parse(body, lambda value: parse_records(value, Operation.ADD))
    assert caught.value.message.endswith(
        "documents[1]: invalid type: integer `5`, expected a string at line 4 column 23"
    )


def test_deep_and_strange_json_is_refused_or_read() -> None:
    with pytest.raises(InvalidArgument, match="Failed to parse the request body as JSON"):
        parse(b"[" * 5000, dict)
    with pytest.raises(BodyError, match="invalid type: sequence, expected an object"):
        parse(b"[" * 900 + b"]" * 900, dict)
    with pytest.raises(InvalidArgument, match="EOF while parsing a value at line 1 column"):
        parse(b"", dict)


async def test_large_bodies_and_answers_are_the_same_as_small_ones() -> None:
    site = await Site().start()
    count, text = 40, "x" * (LARGE_BYTES // 20)
    body = {"ids": [str(at) for at in range(count)], "embeddings": [[at] for at in range(count)]}
    assert (await site.post("add", body | {"documents": [text] * count})).status == 201
    found = (await site.post("get", {})).json
    assert found["documents"] == [text] * count
    assert (await site.post("query", {"query_embeddings": [[1.0]], "n_results": 40})).json["documents"] == [
        [text] * count
    ]
    wrong = await site.post("add", body | {"documents": [text] * count, "metadatas": 5})
    assert wrong.status == 422


async def test_the_estimated_recall_is_a_header() -> None:
    """Bodies are those that clients know."""
    site = await Site().start()
    assert (await site.post("add", {"ids": ["a", "b"], "embeddings": [[1.0], [2.0]]})).status == 201
    answer = await site.post("query", {"query_embeddings": [[1.0]]})
    assert answer.headers["shoal-recall"] == "1.0000", "every record was compared"
    assert "recall" not in answer.json
    knn = {"rank": {"$knn": {"query": [1.0]}}}
    assert (await site.post("search", {"searches": [knn, knn]})).headers["shoal-recall"] == "1.0000"
    assert "shoal-recall" not in (await site.post("get", {})).headers


@pytest.mark.parametrize("declared", [True, False])
async def test_bodies_beyond_the_limit_are_refused(declared: bool) -> None:
    site = await Site().start()
    path = f"{T}/collections/{site.id}/add"
    headers = {"content-length": str(MAX_BODY_BYTES + 1)} if declared else {}
    answer = await site.http("POST", path, b"" if declared else b" " * (MAX_BODY_BYTES + 1), headers=headers)
    assert (answer.status, answer.body) == (413, b"Payload too large")
    assert "chroma-trace-id" in answer.headers


READS = (
    "where",
    "where_document",
    "limit",
    "offset",
    "include",
    "n_results",
    "query_embeddings",
    "searches",
    "read_level",
)
NAMES = st.sampled_from(["ids", "embeddings", "documents", "metadatas", "uris", *READS])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["a", "", "documents", "AACAPw==", "$and", "\x00", "#id"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["k", "$and", "$in", "$regex", "$contains", "#id", "", "$knn", "rank", "#type", "indices"]),
            inner,
            max_size=2,
        )
    ),
    max_leaves=6,
)
LIKELY = st.fixed_dictionaries(
    {"ids": st.sampled_from([["a"], ["a", "b"]]) | VALUES, "embeddings": st.sampled_from([[[1.0]], [[1, 2]]]) | VALUES}
)


@pytest.fixture(scope="module")
def asked() -> Iterator[tuple[asyncio.Runner, Http, str]]:
    """A collection that the examples share."""
    runner = asyncio.Runner()
    site = runner.run(Site().start())
    yield runner, site.http, site.id
    runner.close()


RECORDS = [
    ("POST", f"/collections/{{ID}}/{verb}") for verb in ("add", "update", "upsert", "delete", "get", "query", "search")
]
CATALOG = [("POST", "/collections"), ("PUT", "/collections/{ID}")]
PARTS = st.dictionaries(NAMES, VALUES, max_size=4)
DEFINITION = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["fine", "x", 5]),
        "new_name": st.sampled_from(["other", "", None]),
        "metadata": VALUES,
        "new_metadata": VALUES,
        "get_or_create": st.booleans() | st.none(),
        "configuration": st.dictionaries(st.sampled_from(["hnsw", "spann", "embedding_function"]), VALUES, max_size=2),
        "new_configuration": st.dictionaries(st.sampled_from(["hnsw", "spann"]), VALUES, max_size=2),
        "schema": VALUES | st.dictionaries(st.sampled_from(["defaults", "keys"]), VALUES, max_size=2),
    },
)


@examples(200)
@given(
    asks=st.tuples(st.sampled_from(RECORDS), PARTS | st.builds(lambda likely, more: likely | more, LIKELY, PARTS))
    | st.tuples(st.sampled_from(CATALOG), DEFINITION)
)
def test_no_body_makes_the_server_fail(
    asked: tuple[asyncio.Runner, Http, str], asks: tuple[tuple[str, str], dict[str, Any]]
) -> None:
    runner, http, collection_id = asked
    (method, path), body = asks
    answer = runner.run(http(method, T + path.format(ID=collection_id), compact(body)))
    assert answer.status in (200, 201, 400, 409, 422), answer.body
    if answer.status >= 400:
        assert set(orjson.loads(answer.body)) == {"error", "message"}
