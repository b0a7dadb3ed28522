"""Requests to a genuine reference server and its answers, word for word; differences are at the end, with their reasons."""

from __future__ import annotations

from typing import Any

import orjson

from services.frontend.tests.frontend_http_support import Http, Site, T, http_of
from shoal_testing.direct import DirectSystem

INVALID, MISSING, OTHER = "InvalidArgumentError", "NotFoundError", "ChromaError"
NO_NAME = "Expected a name containing 3-512 characters from [a-zA-Z0-9._-], starting and ending with a character in [a-zA-Z0-9]. Got: "
INCONSISTENT = "Inconsistent number of IDs, embeddings, documents, URIs and metadatas"
NO_BODY = "Failed to deserialize the JSON body into the target type: "
NO_VALUE = "data did not match any variant of untagged enum MetadataValue"
V1 = '{"error":"Unimplemented","message":"The v1 API is deprecated. Please use /v2 apis"}'

Step = tuple[str, str, Any, int, Any]


def failed(error: str, message: str) -> dict[str, str]:
    return {"error": error, "message": message}


def got(ids: list[Any], include: list[str] | None = None, **columns: Any) -> dict[str, Any]:
    names = ("embeddings", "documents", "uris", "metadatas")
    return {"ids": ids, **{name: columns.get(name) for name in names}, "include": include or []}


async def replay(http: Http, steps: list[Step], **places: str) -> None:
    """Ask in order, compare every answer."""
    for method, path, body, status, expected in steps:
        answer = await http(method, path.format(T=T, **places), body)
        found: Any = answer.body.decode()
        if answer.headers.get("content-type") == "application/json":
            found = orjson.loads(answer.body)
        if callable(expected):
            assert answer.status == status, (method, path, body, answer.body)
            assert expected(found), (method, path, body, found)
            continue
        assert (answer.status, found) == (status, expected), (method, path, body)
        assert len(answer.headers["chroma-trace-id"]) == 32


async def test_tenants_and_databases_answer_as_the_reference() -> None:
    system = DirectSystem()
    tenants, databases = "/api/v2/tenants", "/api/v2/tenants/tenant1/databases"
    too_short = 'Validation error: name: Validation error: length [{"min": Number(3), "value": String("ab")}]'
    steps: list[Step] = [
        ("GET", "/api/v2/healthcheck", None, 200, {"is_executor_ready": True, "is_log_client_ready": True}),
        ("POST", tenants, {"name": "ab"}, 400, failed(INVALID, too_short)),
        ("POST", tenants, {"name": "tenant1"}, 200, {}),
        ("POST", tenants, {"name": "tenant1"}, 409, failed(OTHER, "Tenant [tenant1] already exists")),
        ("GET", f"{tenants}/tenant1", None, 200, {"name": "tenant1", "resource_name": None}),
        ("GET", f"{tenants}/nope1", None, 404, failed(MISSING, "Tenant [nope1] not found")),
        ("POST", databases, {"name": "ab"}, 400, failed(INVALID, f"{NO_NAME}ab")),
        ("POST", databases, {"name": "dbone"}, 200, {}),
        ("POST", databases, {"name": "dbone"}, 409, failed(OTHER, "Database [dbone] already exists")),
        ("GET", databases, None, 200, lambda found: [sorted(item) for item in found] == [["id", "name", "tenant"]]),
        (
            "GET",
            f"{databases}/dbone",
            None,
            200,
            lambda found: (found["name"], found["tenant"]) == ("dbone", "tenant1"),
        ),
        (
            "GET",
            f"{databases}/nodb",
            None,
            404,
            failed(MISSING, "Database [nodb] not found. Are you sure it exists?"),
        ),
        ("DELETE", f"{databases}/dbone", None, 200, {}),
        ("DELETE", f"{databases}/dbone", None, 404, failed(MISSING, "Database [dbone] not found")),
        ("GET", "/api/v1/heartbeat", None, 410, orjson.loads(V1)),
        ("GET", "/api/v2/bogus", None, 404, ""),
        ("DELETE", "/api/v2/heartbeat", None, 405, ""),
        ("GET", "/api/v2/heartbeat", None, 200, {"nanosecond heartbeat": system.clock.time_ns()}),
    ]
    await replay(http_of(system.database, system), steps)


async def test_collections_answer_as_the_reference() -> None:
    site = await Site().start(metadata={"a": 1, "f": 1.5, "s": "x", "b": True})
    unknown = "d8efc042-75c3-402f-9584-85c8f40842f0"
    gone = failed(MISSING, f"Collection [{site.id}] does not exist")
    gone_for_records = failed(MISSING, f"Collection [{site.id}] does not exist.")
    no_space = (
        "new_configuration.hnsw.space: unknown field `space`, expected one of `ef_search`, `max_neighbors`, `num_threads`, "
        "`resize_factor`, `sync_threshold`, `batch_size` at line 1 column 37"
    )
    elsewhere = "/api/v2/tenants/default_tenant/databases/nope_db/collections"
    no_id = failed(INVALID, "Collection ID is not a valid UUIDv4")
    steps: list[Step] = [
        ("POST", "{T}/collections", {"name": "coll1"}, 409, failed(OTHER, "Collection [coll1] already exists")),
        ("POST", "{T}/collections", {"name": "a"}, 400, failed(INVALID, f"Validation error: name: {NO_NAME}a")),
        (
            "POST",
            "{T}/collections",
            {"name": "bad name!"},
            400,
            failed(INVALID, f"Validation error: name: {NO_NAME}bad name!"),
        ),
        (
            "POST",
            "{T}/collections",
            {"name": "m1x", "metadata": {}},
            400,
            failed(INVALID, "Validation error: metadata: Metadata cannot be empty"),
        ),
        ("POST", elsewhere, {"name": "coll1"}, 400, failed(INVALID, "Database [nope_db] does not exist")),
        ("GET", "{T}/collections", None, 200, lambda found: [item["id"] for item in found] == [site.id]),
        ("GET", "{T}/collections_count", None, 200, 1),
        ("GET", "{T}/collections/nope", None, 404, failed(MISSING, "Collection [nope] does not exist")),
        (
            "GET",
            f"{T}/collections/by-id/{unknown}",
            None,
            404,
            failed(MISSING, f"Collection [{unknown}] does not exist"),
        ),
        (
            "GET",
            "{T}/collections/by-id/notauuid",
            None,
            400,
            failed(INVALID, "Validation error: collection_id: Invalid collection ID format, expected UUID"),
        ),
        (
            "GET",
            "/api/v2/collections/foo",
            None,
            400,
            failed(
                INVALID,
                "Validation error: crn: CRN must be in the format <tenant_resource_name>:<database_name>:<collection_name> "
                "with non-empty parts",
            ),
        ),
        ("PUT", "{T}/collections/{ID}", {"new_name": "renamed", "new_metadata": {"only": "this"}}, 200, {}),
        ("GET", "{T}/collections/renamed", None, 200, lambda found: found["metadata"] == {"only": "this"}),
        (
            "PUT",
            "{T}/collections/{ID}",
            {"new_metadata": {}},
            400,
            failed(INVALID, "Validation error: new_metadata: Metadata cannot be empty"),
        ),
        ("PUT", "{T}/collections/renamed", {"new_name": "x12"}, 400, no_id),
        ("PUT", "{T}/collections/{ID}", {"new_configuration": {"hnsw": {"ef_search": 200}}}, 200, {}),
        (
            "PUT",
            "{T}/collections/{ID}",
            {"new_configuration": {"hnsw": {"space": "ip"}}},
            422,
            failed(OTHER, f"{NO_BODY}{no_space}"),
        ),
        ("DELETE", "{T}/collections/{ID}", None, 404, gone),
        ("DELETE", "{T}/collections/renamed", None, 200, {}),
        ("DELETE", "{T}/collections/renamed", None, 404, failed(MISSING, "Collection [renamed] does not exist")),
        ("POST", "{T}/collections/{ID}/add", {"ids": ["1"], "embeddings": [[1, 2, 3]]}, 404, gone_for_records),
        ("GET", "{T}/collections/{ID}/count", None, 404, gone_for_records),
        ("POST", "{T}/collections/notauuid/get", {}, 400, no_id),
        (
            "POST",
            "{T}/collections",
            {"name": "both", "configuration": {"hnsw": {}, "spann": {}}},
            400,
            failed(INVALID, "Multiple vector index configurations provided"),
        ),
    ]
    await replay(site.http, steps, ID=site.id)


async def test_records_answer_as_the_reference() -> None:
    site = await Site().start()

    def add(body: Any, status: int = 201, expected: Any = None) -> Step:
        return ("POST", "{C}/add", body, status, expected or {})

    def get(body: Any, expected: Any, status: int = 200) -> Step:
        return ("POST", "{C}/get", body, status, got(expected) if isinstance(expected, list) else expected)

    def where(where: Any, *ids: str) -> Step:
        return get({"where": where, "include": []}, list(ids))

    def where_document(where: Any, *ids: str) -> Step:
        return get({"where_document": where, "include": []}, list(ids))

    def query(body: Any, expected: Any, status: int = 200) -> Step:
        return ("POST", "{C}/query", body, status, expected)

    one = {"tags": ["a", "b"], "k": 1}
    first = {
        "ids": ["1", "2", "3"],
        "embeddings": [[1, 2, 3], [4, 5, 6], [1.5, 2.5, 3.5]],
        "documents": ["hello world", "foo bar", None],
        "metadatas": [{"k": 1, "tags": ["a", "b"]}, {"k": 2.0, "s": "x"}, None],
        "uris": None,
    }
    q = {"ids": ["q"], "embeddings": [[1, 2, 3]]}
    dimension = failed(INVALID, "Collection expecting embedding with dimension of 3, got 2")
    no_where = failed(INVALID, "Invalid where clause")
    no_value = failed(OTHER, f"{NO_BODY}metadatas[0].k: {NO_VALUE} at line 1 column 62")
    default = ["documents", "metadatas", "distances"]
    steps: list[Step] = [
        add(first),
        add({"ids": ["b"], "embeddings": ["AADgQAAAAEEAABBB"]}),
        add({"ids": ["1"], "embeddings": [[9, 9, 9]], "documents": ["dup"]}),
        add({"ids": ["x", "x"], "embeddings": [[9, 9, 9], [8, 8, 8]]}),
        add({"ids": ["d"], "embeddings": [[1, 2]]}, 400, dimension),
        add({"ids": ["d", "e"], "embeddings": [[1, 2, 3]]}, 400, failed(INVALID, INCONSISTENT)),
        add({"ids": [], "embeddings": []}),
        add(
            {"ids": [""], "embeddings": [[1, 2, 3]]},
            400,
            failed(INVALID, "Empty ID, ID must have at least one character"),
        ),
        add(
            {"ids": ["q"], "embeddings": [[]]},
            400,
            failed(INVALID, "Validation error: embeddings: Each embedding must have at least 1 dimension"),
        ),
        add({"ids": ["q"]}, 422, failed(OTHER, f"{NO_BODY}missing field `embeddings` at line 1 column 13")),
        add(
            b"{bad",
            400,
            failed(INVALID, "Failed to parse the request body as JSON: key must be a string at line 1 column 2"),
        ),
        add(
            q | {"metadatas": [{"#k": 1}]},
            400,
            failed(INVALID, "Validation error: metadatas: Invalid metadata at index 0"),
        ),
        add(q | {"metadatas": [{"k": [1, "a"]}]}, 422, no_value),
        add(q | {"metadatas": [{"k": []}]}),
        add(q | {"metadatas": [{"k": {"n": 1}}]}, 422, no_value),
        add(q | {"metadatas": [{}]}),
        ("GET", "{C}/count", None, 200, 6),
        ("GET", "{C}/count?read_level=index_only", None, 200, lambda found: found == 0),  # nothing is compacted yet
        (
            "GET",
            "{C}/count?read_level=bogus",
            None,
            400,
            failed(
                INVALID,
                "Failed to deserialize query string: read_level: unknown variant `bogus`, expected one of `index_and_wal`, "
                "`index_only`, `index_and_bounded_wal`",
            ),
        ),
        get(
            {},
            got(
                ["1", "2", "3", "b", "x", "q"],
                ["documents", "metadatas"],
                documents=["hello world", "foo bar", None, None, None, None],
                metadatas=[one, {"s": "x", "k": 2.0}, None, None, None, None],
            ),
        ),
        get(
            {"ids": ["1", "zz"], "include": ["embeddings", "documents", "metadatas", "uris"]},
            got(
                ["1"],
                ["embeddings", "documents", "metadatas", "uris"],
                embeddings=[[1.0, 2.0, 3.0]],
                documents=["hello world"],
                uris=[None],
                metadatas=[one],
            ),
        ),
        get({"where": {}}, no_where, 400),
        get(
            {"where": {"k": 1}},
            got(["1"], ["documents", "metadatas"], documents=["hello world"], metadatas=[one]),
        ),
        where({"k": 1.0}, "1"),
        where({"k": 2}, "2"),
        where({"k": {"$gt": 0}}, "1", "2"),
        where({"k": {"$gt": 0.5}}, "1", "2"),
        where({"k": {"$ne": 1}}, "2", "3", "b", "x", "q"),
        where({"nokey": {"$nin": ["x"]}}, "1", "2", "3", "b", "x", "q"),
        where({"tags": {"$contains": "a"}}, "1"),
        where({"tags": "a"}),
        where({"s": {"$contains": "x"}}),
        get({"where": {"k": {"$in": []}}}, no_where, 400),
        get({"where": {"k": {"$foo": 1}}}, no_where, 400),
        get({"where": {"a": 1, "b": 2}}, no_where, 400),
        where({"$and": [{"k": 1}]}, "1"),
        get(
            {"where_document": {"$contains": "world"}, "include": ["documents"]},
            got(["1"], ["documents"], documents=["hello world"]),
        ),
        where_document({"$contains": "wo"}, "1"),
        where_document({"$contains": ""}, "1", "2"),
        where_document({"$not_contains": "world"}, "2", "3", "b", "x", "q"),
        where_document({"$regex": "^hel+o"}, "1"),
        get(
            {"where_document": {"$regex": "["}, "include": []},
            lambda found: found["error"] == INVALID and found["message"].startswith("Regex syntax errror: "),
            400,
        ),
        where({"#document": {"$contains": "foo"}}, "2"),
        get({"limit": 1, "offset": 1, "include": []}, ["2"]),
        get(
            {"limit": -1},
            failed(OTHER, f"{NO_BODY}limit: invalid value: integer `-1`, expected u32 at line 1 column 11"),
            422,
        ),
        get(
            {"include": ["bogus"]},
            failed(
                OTHER,
                f"{NO_BODY}include[0]: unknown variant `bogus`, expected one of `distances`, `documents`, `embeddings`, "
                "`metadatas`, `uris` at line 1 column 19",
            ),
            422,
        ),
        get({"include": ["distances"]}, got(["1", "2", "3", "b", "x", "q"], ["distances"])),
        query(
            {"query_embeddings": [[1, 2, 3]], "n_results": 2},
            got([["1", "q"]], default, documents=[["hello world", None]], metadatas=[[one, None]])
            | {"distances": [[0.0, 0.0]]},
        ),
        query(
            {"query_embeddings": [[1, 2, 3], [4, 5, 6]], "n_results": 1, "include": ["distances", "embeddings"]},
            # of the two records at distance 0 ours is the older one: equal distances are in order of creation
            got([["1"], ["2"]], ["distances", "embeddings"], embeddings=[[[1.0, 2.0, 3.0]], [[4.0, 5.0, 6.0]]])
            | {"distances": [[0.0], [0.0]]},
        ),
        query({"query_embeddings": [[1, 2]]}, dimension, 400),
        query({"query_embeddings": []}, got([], default, documents=[], metadatas=[]) | {"distances": []}),
        query(
            {"query_embeddings": [[1, 2, 3]], "n_results": 0},
            got([[]], default, documents=[[]], metadatas=[[]]) | {"distances": [[]]},
        ),
        query(
            {"query_embeddings": [[1, 2, 3]], "ids": ["2"], "include": ["distances"]},
            got([["2"]], ["distances"]) | {"distances": [[27.0]]},
        ),
        query({}, failed(OTHER, f"{NO_BODY}missing field `query_embeddings` at line 1 column 2"), 422),
        (
            "POST",
            "{C}/update",
            {
                "ids": ["1", "nope"],
                "embeddings": [[3, 3, 3], None],
                "metadatas": [{"k": None, "new": 5}, None],
                "documents": ["changed", None],
            },
            200,
            {},
        ),
        ("POST", "{C}/update", {"ids": ["1"]}, 200, {}),
        (
            "POST",
            "{C}/upsert",
            {"ids": ["1", "new"], "embeddings": [[3, 3, 3], [5, 5, 5]], "documents": ["up", None]},
            200,
            {},
        ),
        get(
            {"ids": ["1", "new"], "include": ["embeddings", "documents", "metadatas"]},
            got(
                ["1", "new"],
                ["embeddings", "documents", "metadatas"],
                embeddings=[[3.0, 3.0, 3.0], [5.0, 5.0, 5.0]],
                documents=["up", None],
                metadatas=[{"new": 5, "tags": ["a", "b"]}, None],
            ),
        ),
        ("POST", "{C}/delete", {}, 200, {"deleted": 0}),
        ("POST", "{C}/delete", {"ids": ["nope"]}, 200, {"deleted": 1}),
        ("POST", "{C}/delete", {"ids": ["new"]}, 200, {"deleted": 1}),
        ("POST", "{C}/delete", {"where": {"k": 1}, "limit": 1}, 200, {"deleted": 0}),
        (
            "POST",
            "{C}/delete",
            {"ids": ["1"], "limit": 1},
            400,
            failed(
                INVALID,
                "Validation error: limit, where: limit can only be specified when a where clause is provided",
            ),
        ),
        ("POST", "{C}/delete", {"where_document": {"$contains": "foo"}}, 200, {"deleted": 1}),
        ("POST", "{C}/fork", {"new_name": "forked"}, 501, lambda found: found["error"] == OTHER),
        ("GET", "{C}/fork_count", None, 501, lambda found: found["error"] == OTHER),
        ("POST", "{C}/functions/attach", {"name": "f"}, 501, lambda found: found["error"] == OTHER),
    ]
    await replay(site.http, steps, C=f"{T}/collections/{site.id}")


async def test_members_of_an_answer_are_in_the_order_of_the_reference() -> None:
    site = await Site().start()
    found = await site.post("get", {})
    assert list(found.json) == ["ids", "embeddings", "documents", "uris", "metadatas", "include"]
    found = await site.post("query", {"query_embeddings": [[1.0]]})
    assert list(found.json) == ["ids", "embeddings", "documents", "uris", "metadatas", "distances", "include"]
    found = await site.post("search", {"searches": [{}]})
    assert list(found.json) == ["ids", "documents", "embeddings", "metadatas", "scores", "select"]
