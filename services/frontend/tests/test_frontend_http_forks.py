"""Forks, resource names and what is compacted, over HTTP."""

from __future__ import annotations

from services.frontend.tests.frontend_http_support import Answered, Site, T
from shoal_core.contracts import CollectionRef

API = "/api/v2"


async def _fork(site: Site, name: str = "fork", collection: str = "") -> Answered:
    return await site.http("POST", f"{T}/collections/{collection or site.id}/fork", {"new_name": name})


async def _ids(site: Site, collection: str) -> list[str]:
    found = await site.http("POST", f"{T}/collections/{collection}/get", {})
    assert found.status == 200
    return list(found.json["ids"])


async def test_a_fork_is_a_collection_of_its_own() -> None:
    site = await Site().start(metadata={"a": 1}, configuration={"hnsw": {"space": "cosine"}})
    await site.post("add", {"ids": ["a", "b"], "embeddings": [[1, 2], [3, 4]]})
    made = await _fork(site)
    source = (await site.http("GET", f"{T}/collections/coll1")).json
    assert made.status == 200
    assert made.json == source | {"id": made.json["id"], "name": "fork"}
    assert made.json["id"] != site.id
    assert (await site.http("GET", f"{T}/collections/fork")).json == made.json
    fork = made.json["id"]
    await site.http("POST", f"{T}/collections/{fork}/delete", {"ids": ["a"]})
    await site.post("add", {"ids": ["c"], "embeddings": [[5, 6]]})
    assert await _ids(site, fork) == ["b"]
    assert await _ids(site, site.id) == ["a", "b", "c"]
    count = await site.http("GET", f"{T}/collections/{fork}/fork_count")
    assert (count.status, count.json) == (200, {"count": 1})


async def test_what_cannot_be_forked() -> None:
    site = await Site().start()
    unknown = "00000000-0000-4000-8000-000000000000"
    assert (await _fork(site, "coll1")).error == (409, "ChromaError", "Collection [coll1] already exists")
    assert (await _fork(site, collection=unknown)).error == (
        404,
        "NotFoundError",
        f"Collection [{unknown}] does not exist.",
    )
    count = await site.http("GET", f"{T}/collections/{unknown}/fork_count")
    assert count.error[:2] == (404, "NotFoundError")
    status, name, message = (await _fork(site, "a")).error
    assert (status, name) == (400, "InvalidArgumentError")
    assert "Expected a name containing 3-512 characters" in message
    assert (await site.post("fork", {})).error[0] == 422
    assert (await site.post("fork", {"new_name": 1})).error[0] == 422
    assert (await _fork(site, collection="coll1")).error[0] == 400


async def test_a_collection_is_found_by_its_tenants_resource_name() -> None:
    site = await Site().start()
    crn = f"{API}/collections/resource:default_database:coll1"
    assert (await site.http("GET", crn)).error[:2] == (404, "NotFoundError")
    tenant = f"{API}/tenants/default_tenant"
    assert (await site.http("PATCH", tenant, {"resource_name": "resource"})).json == {}
    assert (await site.http("GET", tenant)).json == {"name": "default_tenant", "resource_name": "resource"}
    assert (await site.http("GET", crn)).json["id"] == site.id
    assert (await site.http("PATCH", tenant, {"resource_name": "other"})).status == 409
    assert (await site.http("PATCH", f"{API}/tenants/nobody", {"resource_name": "other"})).error[0] == 404
    for body in ({}, {"resource_name": None}, {"resource_name": 1}):
        assert (await site.http("PATCH", tenant, body)).error[0] == 422
    for name in ("", "a:b", "x" * 513):
        assert (await site.http("PATCH", tenant, {"resource_name": name})).error[0] == 400
    for wrong in ("a:b", "a:b:", "a:b:c:d"):
        assert (await site.http("GET", f"{API}/collections/{wrong}")).error[0] == 400


async def test_a_collection_says_what_is_compacted() -> None:
    site = await Site().start()
    await site.post("add", {"ids": ["a", "b"], "embeddings": [[1, 2], [3, 4]]})
    found = (await site.http("GET", f"{T}/collections/coll1")).json
    assert (found["log_position"], found["version"]) == (0, 0)
    await site.system.compact(CollectionRef("default_tenant", "default_database", id=site.id))
    found = (await site.http("GET", f"{T}/collections/coll1")).json
    assert (found["log_position"], found["version"]) == (2, 1)
