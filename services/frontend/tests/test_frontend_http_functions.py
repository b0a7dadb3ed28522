"""Attached functions over HTTP: shapes, errors, and what a client that reads statistics finds."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from services.frontend.tests.frontend_http_support import Answered, Site, T, http_of
from shoal_core.contracts import NewCollection
from shoal_frontend.database import DatabaseService


async def _site() -> Site:
    return await Site().start()


async def _attach(
    site: Site, name: str = "fn", function: str = "statistics", output: str = "out", **more: Any
) -> Answered:
    body = {"name": name, "function_id": function, "output_collection": output, "params": None, **more}
    return await site.post("functions/attach", body)


async def _function(site: Site, name: str = "fn") -> Any:
    answer = await site.http("GET", f"{T}/collections/{site.id}/functions/{name}")
    return answer.json["attached_function"] if answer.status == 200 else answer.error


async def _run(site: Site) -> None:
    await site.system.compactor.compact(site.id, merge=True)
    await site.system.new_runner().run_due()


async def _records(site: Site, name: str) -> dict[str, Any]:
    made = (await site.http("GET", f"{T}/collections/{name}")).json
    got = await site.http("POST", f"{T}/collections/{made['id']}/get", {"include": ["metadatas", "embeddings"]})
    assert all(vector == [0.0] for vector in got.json["embeddings"])
    return dict(zip(got.json["ids"], got.json["metadatas"], strict=True))


async def test_a_function_is_attached_runs_and_is_detached() -> None:
    site = await _site()
    attached = await _attach(site)
    function_id = attached.json["attached_function"]["id"]
    assert str(UUID(function_id)) == function_id
    rendered = {"id": function_id, "name": "fn", "function_name": "statistics"}
    assert (attached.status, attached.json) == (200, {"attached_function": rendered, "created": True})
    assert (await _attach(site, params={})).json == {"attached_function": rendered, "created": False}
    output = (await site.http("GET", f"{T}/collections/out")).json
    found = await _function(site)
    database = (await site.http("GET", T)).json
    assert found == rendered | {
        "input_collection_id": site.id,
        "output_collection": "out",
        "output_collection_id": output["id"],
        "params": {},
        "tenant_id": "default_tenant",
        "database_id": database["id"],
        "completion_offset": 0,
        "min_records_for_invocation": 1,
        "failures": 0,
        "last_error": "",
    }
    await site.post(
        "add", {"ids": ["a", "b"], "embeddings": [[1], [2]], "metadatas": [{"n": 1.5, "t": True}, {"t": False}]}
    )
    await _run(site)
    assert (await _function(site))["completion_offset"] == 2
    records = await _records(site, "out")
    assert records["summary::s:total_count"] == {
        "key": "summary",
        "type": "str",
        "value": "total_count",
        "count": 2,
        "completion_offset": 2,
    }
    assert records["t::b:true"] == {"key": "t", "type": "bool", "value": "true", "count": 1}
    assert records["n::f:1.5000000000000000e0"]["value"] == "1.5000000000000000e0"
    detached = await site.http(
        "POST", f"{T}/collections/{site.id}/attached_functions/fn/detach", {"delete_output": False}
    )
    assert (detached.status, detached.json) == (200, {"success": True})
    assert await _function(site) == (404, "NotFoundError", "Attached Function [fn] does not exist")
    assert len(await _records(site, "out")) == 4


async def test_a_count_of_records() -> None:
    site = await _site()
    await _attach(site, function="record_counter")
    await site.post("add", {"ids": ["a", "b", "c"], "embeddings": [[1], [2], [3]]})
    await site.post("delete", {"ids": ["b"]})
    await _run(site)
    assert await _records(site, "out") == {"function_output": {"total_count": 2, "completion_offset": 4}}


async def test_a_fork_has_no_functions_and_may_get_its_own() -> None:
    site = await _site()
    await _attach(site)
    await site.post("add", {"ids": ["a", "b"], "embeddings": [[1], [2]], "metadatas": [{"n": 1}, {"n": 2}]})
    await _run(site)
    forked = (await site.post("fork", {"new_name": "forked"})).json["id"]
    path = f"{T}/collections/{forked}"
    assert (await site.http("GET", f"{path}/functions/fn")).status == 404
    body = {"name": "fn", "function_id": "statistics", "output_collection": "forked-out"}
    assert (await site.http("POST", f"{path}/functions/attach", body)).json["created"]
    await site.http("POST", f"{path}/delete", {"ids": ["a"]})
    await site.system.compactor.compact(forked, merge=False)
    await site.system.new_runner().run_due()
    assert set(await _records(site, "forked-out")) == {"n::i:2", "summary::s:total_count"}
    assert set(await _records(site, "out")) == {"n::i:1", "n::i:2", "summary::s:total_count"}


async def test_detaching_may_take_the_output_along_and_deleting_it_detaches() -> None:
    site = await _site()
    await _attach(site, "one", output="out1")
    await _attach(site, "two", "record_counter", output="out2")
    path = f"{T}/collections/{site.id}/attached_functions"
    assert (await site.http("POST", f"{path}/one/detach", {"delete_output": True})).json == {"success": True}
    assert (await site.http("GET", f"{T}/collections/out1")).status == 404
    again = await site.http("POST", f"{path}/one/detach", {"delete_output": True})
    assert again.error == (404, "NotFoundError", "Attached Function [one] does not exist")
    assert (await _function(site, "two"))["output_collection"] == "out2"
    await site.http("DELETE", f"{T}/collections/out2")
    assert (await _function(site, "two"))[0] == 404
    assert (await _attach(site, "two", output="out2")).json["created"]


async def test_what_is_refused() -> None:
    site = await _site()
    assert (await _attach(site, function="nonexistent_function")).error[2].startswith("function not found")
    exists = (409, "ChromaError", "Output collection [coll1] already exists")
    assert (await _attach(site, output="coll1")).error == exists
    for params in ({"x": 1}, [1], "x", 0):
        refused = await _attach(site, params=params)
        message = "params must be empty - no functions currently accept parameters"
        assert refused.error == (400, "InvalidArgumentError", message)
    await _attach(site)
    other = await _attach(site, output="other")
    message = "collection already has an attached function: name=fn, function=statistics, output_collection=out"
    assert other.error == (409, "ChromaError", message)
    output = (await site.http("GET", f"{T}/collections/out")).json["id"]
    body = {"name": "f", "function_id": "statistics", "output_collection": "chained"}
    chained = await site.http("POST", f"{T}/collections/{output}/functions/attach", body)
    assert chained.error == (400, "InvalidArgumentError", "collection: cannot attach function to an output collection")
    nowhere = str(UUID(int=1, version=4))
    missing = await site.http("POST", f"{T}/collections/{nowhere}/functions/attach", body)
    assert missing.error == (404, "NotFoundError", f"Input collection [{nowhere}] does not exist")
    for name, status in (("", 400), ("x" * 1025, 400), ("x" * 600, 200)):
        assert (await _attach(site, name, output=f"out-{len(name)}")).status == status
    assert (await _attach(site, "bad-output", output="o")).status == 400
    for missing_field in ("name", "function_id", "output_collection"):
        answer = await site.post(
            "functions/attach", {key: value for key, value in body.items() if key != missing_field}
        )
        assert (answer.status, f"`{missing_field}`" in answer.json["message"]) == (422, True)
    for n in range(6):
        assert (await _attach(site, f"more{n}", output=f"more{n}")).status == 200
    assert (await _attach(site, "more", output="more")).status == 412


async def test_another_input_is_refused_as_these_functions_have_one() -> None:
    site = await _site()
    await _attach(site)
    path = f"{T}/collections/{site.id}/attached_functions"
    answer = await site.http("POST", f"{path}/fn/add_input", {"input_collection_id": site.id})
    message = "multiple input collections are only supported for async attached functions"
    assert answer.error == (400, "InvalidArgumentError", message)
    assert (await site.http("POST", f"{path}/no/add_input", {"input_collection_id": site.id})).status == 404
    assert (await site.http("POST", f"{path}/fn/add_input", {})).status == 422


async def test_functions_are_within_their_tenant_and_database() -> None:
    site = await _site()
    await _attach(site)
    await site.http("POST", "/api/v2/tenants", {"name": "other"})
    await site.http("POST", "/api/v2/tenants/other/databases", {"name": "default_database"})
    other = f"/api/v2/tenants/other/databases/default_database/collections/{site.id}"
    body = {"name": "f", "function_id": "statistics", "output_collection": "stolen"}
    for method, path, sent in (
        ("POST", "functions/attach", body),
        ("GET", "functions/fn", None),
        ("POST", "attached_functions/fn/detach", {"delete_output": True}),
        ("POST", "attached_functions/fn/add_input", {"input_collection_id": site.id}),
    ):
        assert (await site.http(method, f"{other}/{path}", sent)).status == 404
    assert (await _function(site))["name"] == "fn"
    assert (await site.http("GET", f"{T}/collections_count")).json == 2


async def test_without_functions_there_are_none() -> None:
    site = await _site()
    system = site.system
    api = DatabaseService(system.catalog, system.log, system.node, system.random, system.database.members)
    made, _ = await api.create_collection(NewCollection("default_tenant", "default_database", "plain"))
    http = http_of(api, system)
    body = {"name": "f", "function_id": "statistics", "output_collection": "out"}
    answer = await http("POST", f"{T}/collections/{made.id}/functions/attach", body)
    assert answer.error == (501, "ChromaError", "functions cannot be attached here")


@pytest.mark.parametrize("name", ["a b", "ü", "%"])
async def test_names_in_paths(name: str) -> None:
    site = await _site()
    assert (await _attach(site, name)).status == 200
    assert (await _function(site, name))["name"] == name
