"""The HTTP gateway of a real cluster: requests as Chroma's clients send them, through two frontends."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from shoal_cli.local_cluster import LocalCluster

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

DATABASE = "/api/v2/tenants/default_tenant/databases/default_database"


async def ask(address: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and JSON body."""
    return await asyncio.to_thread(_ask, address, method, path, body)


def _ask(address: str, method: str, path: str, body: Any) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://{address}{path}", data, {"content-type": "application/json"}, method=method
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=20) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


async def test_a_tour_through_two_frontends(cluster: LocalCluster) -> None:
    one, other = (role.http for role in cluster.roles.values() if role.role == "frontend")
    status, made = await ask(
        one, "POST", f"{DATABASE}/collections", {"name": "over-http", "metadata": {"hnsw:space": "ip"}}
    )
    assert (status, made["configuration_json"]["hnsw"]["space"]) == (200, "ip")
    path = f"{DATABASE}/collections/{made['id']}"
    records = {
        "ids": ["a", "b", "c"],
        "embeddings": [[1, 0], [0, 1], [1, 1]],
        "documents": ["red fish", "blue fish", None],
        "metadatas": [{"n": 1}, {"n": 2.5, "tags": ["x", "y"]}, None],
    }
    assert await ask(one, "POST", f"{path}/add", records) == (201, {})
    status, got = await ask(
        other, "POST", f"{path}/get", {"where": {"n": {"$gte": 1}}, "where_document": {"$contains": "fish"}}
    )
    assert (status, got["ids"], got["metadatas"]) == (200, ["a", "b"], [{"n": 1}, {"n": 2.5, "tags": ["x", "y"]}])
    status, near = await ask(other, "POST", f"{path}/query", {"query_embeddings": [[1, 0.5]], "n_results": 2})
    assert (status, near["ids"], near["distances"]) == (200, [["c", "a"]], [[-0.5, 0.0]])
    search = {
        "rank": {"$knn": {"query": "fish", "key": "#document"}},
        "limit": {"limit": 1},
        "select": {"keys": ["#document"]},
    }
    status, found = await ask(one, "POST", f"{path}/search", {"searches": [search]})
    assert (status, found["ids"], found["documents"]) == (200, [["a"]], [["red fish"]])
    assert await ask(one, "POST", f"{path}/delete", {"where": {"n": 1}}) == (200, {"deleted": 1})
    assert await ask(other, "GET", f"{path}/count") == (200, 2)
    assert await ask(other, "DELETE", f"{DATABASE}/collections/over-http") == (200, {})
    status, refused = await ask(one, "GET", f"{path}/count")
    assert (status, refused["error"]) == (404, "NotFoundError")


async def test_a_fork_through_the_other_frontend(cluster: LocalCluster) -> None:
    """Made while the source is written; what was acknowledged before is in it, and what comes later is not."""
    one, other = (role.http for role in cluster.roles.values() if role.role == "frontend")
    _, made = await ask(one, "POST", f"{DATABASE}/collections", {"name": "forked-source"})
    path = f"{DATABASE}/collections/{made['id']}"
    ids = [f"id{number}" for number in range(6_000)]  # enough to be compacted now and then
    for start in range(0, len(ids), 1_000):
        part = ids[start : start + 1_000]
        await ask(one, "POST", f"{path}/add", {"ids": part, "embeddings": [[1, start]] * len(part)})
    status, fork = await ask(other, "POST", f"{path}/fork", {"new_name": "forked"})
    assert status == 200
    await ask(one, "POST", f"{path}/delete", {"ids": ids[:5]})
    await ask(other, "POST", f"{DATABASE}/collections/{fork['id']}/add", {"ids": ["new"], "embeddings": [[0, 0]]})
    assert await ask(one, "GET", f"{DATABASE}/collections/{fork['id']}/count") == (200, 6_001)
    assert await ask(other, "GET", f"{path}/count") == (200, 5_995)
    assert await ask(other, "GET", f"{path}/fork_count") == (200, {"count": 1})
    assert await ask(one, "DELETE", f"{DATABASE}/collections/forked-source") == (200, {})
    status, found = await ask(
        one, "POST", f"{DATABASE}/collections/{fork['id']}/query", {"query_embeddings": [[0, 0]], "n_results": 1}
    )
    assert (status, found["ids"]) == (200, [["new"]])
