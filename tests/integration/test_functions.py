"""Attached functions in a real cluster, by HTTP: they follow their collection, also when compactors die."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shoal_cli.local_cluster import LocalCluster
from tests.integration.test_http import DATABASE, ask

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

_PATIENCE = 300  # looks, of which each waits a little


def _frontends(cluster: LocalCluster) -> list[str]:
    return [role.http for role in cluster.roles.values() if role.role == "frontend"]


async def _create(address: str, name: str) -> str:
    status, made = await ask(address, "POST", f"{DATABASE}/collections", {"name": name})
    assert status == 200, made
    return f"{DATABASE}/collections/{made['id']}"


async def _attach(address: str, path: str, function: str, name: str) -> str:
    """The path of its output."""
    body = {"name": name, "function_id": function, "output_collection": f"{name}-out", "params": None}
    status, attached = await ask(address, "POST", f"{path}/functions/attach", body)
    assert (status, attached["created"]) == (200, True), attached
    _, output = await ask(address, "GET", f"{DATABASE}/collections/{name}-out")
    return f"{DATABASE}/collections/{output['id']}"


async def _settled(address: str, path: str, name: str, offset: int) -> dict[str, Any]:
    """The function, once it covers the log up to there."""
    for _ in range(_PATIENCE):
        status, found = await ask(address, "GET", f"{path}/functions/{name}")
        if status == 200 and found["attached_function"]["completion_offset"] >= offset:
            return dict(found["attached_function"])
        await asyncio.sleep(0.1)
    raise AssertionError(f"{name} does not reach {offset}: {found}")


async def _records(address: str, output: str) -> dict[str, Any]:
    status, got = await ask(address, "POST", f"{output}/get", {"include": ["metadatas"]})
    assert status == 200, got
    return dict(zip(got["ids"], got["metadatas"], strict=True))


async def test_functions_follow_their_collection(cluster: LocalCluster) -> None:
    one, other = _frontends(cluster)
    path = await _create(one, "followed")
    statistics = await _attach(one, path, "statistics", "followed-statistics")
    ids = [f"id{n}" for n in range(300)]
    body = {"ids": ids, "embeddings": [[1.0, 2.0]] * 300, "metadatas": [{"n": n % 7} for n in range(300)]}
    assert (await ask(other, "POST", f"{path}/add", body))[0] == 201
    found = await _settled(other, path, "followed-statistics", 300)
    assert (found["failures"], found["last_error"]) == (0, "")
    records = await _records(other, statistics)
    assert records.pop("summary::s:total_count")["count"] == 300
    assert {row["value"]: row["count"] for row in records.values()} == {str(n): len(range(n, 300, 7)) for n in range(7)}
    counter = await _attach(other, path, "record_counter", "followed-count")  # what is compacted already counts too
    await _settled(one, path, "followed-count", 300)
    assert (await _records(one, counter))["function_output"]["total_count"] == 300
    assert (await ask(one, "POST", f"{path}/delete", {"where": {"n": 3}}))[0] == 200
    await _settled(one, path, "followed-statistics", 301)
    await _settled(one, path, "followed-count", 301)
    assert "n::i:3" not in await _records(other, statistics)
    left = 300 - len(range(3, 300, 7))
    assert (await _records(one, counter))["function_output"]["total_count"] == left
    detach = f"{path}/attached_functions/followed-statistics/detach"
    assert await ask(one, "POST", detach, {"delete_output": True}) == (200, {"success": True})
    assert (await ask(other, "GET", f"{DATABASE}/collections/followed-statistics-out"))[0] == 404
    assert (await ask(other, "GET", f"{path}/functions/followed-statistics"))[0] == 404
    assert (await ask(one, "DELETE", f"{DATABASE}/collections/followed"))[0] == 200


async def test_a_compactor_that_dies_is_followed_by_another(cluster: LocalCluster) -> None:
    one, _ = _frontends(cluster)
    path = await _create(one, "survivor")
    output = await _attach(one, path, "statistics", "survivor-statistics")
    victims = [role for role in cluster.roles.values() if role.role == "compactor"]
    written = 0
    for turn, victim in enumerate([*victims, *victims]):
        body = {
            "ids": [f"{turn}-{n}" for n in range(500)],
            "embeddings": [[0.0, 1.0]] * 500,
            "metadatas": [{"turn": turn, "n": n} for n in range(500)],
        }
        assert (await ask(one, "POST", f"{path}/add", body))[0] == 201
        written += 500
        victim.kill()  # and it is started again
    await _settled(one, path, "survivor-statistics", written)
    records = await _records(one, output)
    assert records["summary::s:total_count"]["count"] == written
    assert {key: row["count"] for key, row in records.items() if key.startswith("turn::")} == {
        f"turn::i:{turn}": 500 for turn in range(2 * len(victims))
    }
    assert sum(row["count"] for key, row in records.items() if key.startswith("n::")) == written
