"""The query language through a real cluster: searches over shards, pages, earlier snapshots, conditional writes, explained reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import shoal
from shoal.aio import AsyncClient, AsyncCollection
from shoal_cli.local_cluster import LocalCluster
from shoal_core.errors import WriteConflict
from tests.integration.workload import connect

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

WORDS = ("river", "stone", "lamp", "forest", "engine", "harbour", "violin", "winter")
COUNT = 240


def _records(start: int, end: int) -> dict[str, Any]:
    random = np.random.default_rng(start)
    numbers = range(start, end)
    return {
        "ids": [f"r{number}" for number in numbers],
        "embeddings": random.integers(-8, 8, (end - start, 4)).astype(np.float32),
        "documents": [
            " ".join(random.choice(WORDS, random.integers(1, 6))) if number % 7 else None for number in numbers
        ],
        "metadatas": [
            {
                "n": number if number % 2 else float(number),
                "group": WORDS[number % 3],
                "tags": [WORDS[number % 5], WORDS[number % 8]],
                "sparse": {"indices": [number % 9, 50], "values": [1.0, (number % 13) / 4]},
            }
            for number in numbers
        ],
    }


async def _filled(client: AsyncClient, name: str, shards: int) -> AsyncCollection:
    schema = {"sparse": {"sparse": {"idf": True}}}
    collection = await client.create_collection(name, space="l2", shards=shards, schema=schema)
    for start in range(0, COUNT, 60):
        await collection.add(**_records(start, start + 60))
        if start == 120:
            await collection.wait_until_indexed(timeout_s=60)
    await collection.delete(where={"n": {"$in": [3, 30, 130]}})
    return collection


def _searches() -> list[shoal.Search]:
    dense = shoal.Knn([1, -2, 3, 0], limit=40, return_rank=True, default=500)
    text = shoal.Knn("rivers and stones", key="#document", limit=40, return_rank=True, default=500)
    sparse = shoal.Knn(
        {"indices": [4, 50], "values": [2.0, 1.0]}, key="sparse", limit=40, return_rank=True, default=500
    )
    where = {"$and": [{"n": {"$gte": 10}}, {"tags": {"$contains": "lamp"}}]}
    return [
        shoal.Search(rank=shoal.rrf([dense, text, sparse]), limit=15),
        shoal.Search(where=where, rank=shoal.Knn("river lamp", key="#document", limit=9), select=["#score", "n"]),
        shoal.Search(
            rank=2 * shoal.Knn([0, 0, 0, 1], limit=100) + shoal.Knn("winter", key="#document", limit=100, default=1.0),
            group_by=shoal.GroupBy("group", shoal.MaxK(["n", "#score"], k=2)),
        ),
        shoal.Search(where={"n": {"$lt": 20}}, limit=7, offset=2),
    ]


def _shown(result: shoal.SearchResult) -> tuple[list[str], list[float]]:
    scores = result["scores"]
    return result.ids, [] if scores is None else list(scores)


async def test_searches_do_not_depend_on_shards_or_compaction(cluster: LocalCluster) -> None:
    client = await connect(",".join(cluster.frontends))
    answers = []
    for shards in (1, 3):
        collection = await _filled(client, f"searched-{shards}", shards)
        fresh = await collection.search(_searches(), exact=True)
        await collection.wait_until_indexed(timeout_s=60)
        answers += [fresh, await collection.search(_searches(), exact=True)]
    first = [_shown(result) for result in answers[0]]
    assert all(ids for ids, _ in first)
    for other in answers[1:]:
        assert [_shown(result) for result in other] == first
    await client.close()


async def test_pages_and_earlier_snapshots_through_two_frontends(cluster: LocalCluster) -> None:
    one, other = await connect(cluster.frontends[0]), await connect(cluster.frontends[1])
    collection = await one.create_collection("paged", shards=3)
    await collection.add(**_records(0, 60))
    twin = await other.get_collection("paged")
    whole = (await collection.get(where={"group": {"$ne": "stone"}})).ids
    found = []
    async for page in collection.pages(where={"group": {"$ne": "stone"}}, limit=7):
        found.extend(page.ids)
        served_at = page.served_at
        await twin.delete(ids=list({found[-1], whole[-1]}))
        await twin.add(**_records(1000 + len(found), 1005 + len(found)))
        await twin.wait_until_indexed(timeout_s=60)
    assert found == whole
    assert (await twin.get(where={"group": {"$ne": "stone"}}, consistency=shoal.as_of(served_at))).ids == whole
    assert await twin.count() > 60
    await one.close()
    await other.close()


async def test_conditional_writes_through_two_frontends(cluster: LocalCluster) -> None:
    one, other = await connect(cluster.frontends[0]), await connect(cluster.frontends[1])
    collection = await one.create_collection("conditional", shards=2)
    await collection.add(**_records(0, 10))
    twin = await other.get_collection("conditional")
    async with collection.conditional(outcomes=True) as write:
        seen = await write.get(ids=["r1", "absent"])
        assert seen.ids == ["r1"]
        await write.update(ids=["r1"], metadatas=[{"n": 7}])
        await write.add(ids=["absent"], embeddings=[[0, 0, 0, 1]])
    assert write.result is not None
    assert write.result.outcomes == ["updated", "added"]

    async def overtaken() -> None:
        async with collection.conditional() as write:
            await write.get(ids=["r2"])
            await twin.update(ids=["r2"], metadatas=[{"n": 8}])
            await write.update(ids=["r2"], metadatas=[{"n": 9}])

    with pytest.raises(WriteConflict):
        await overtaken()
    assert (await collection.get(ids=["r2"], include=("metadatas",)))["metadatas"][0]["n"] == 8
    await one.close()
    await other.close()


async def test_explained_reads_name_nodes_and_costs(cluster: LocalCluster) -> None:
    client = await connect(cluster.frontends[0])
    collection = await client.create_collection("explained", shards=3)
    await collection.add(**_records(0, 200))
    await collection.wait_until_indexed(timeout_s=60)
    counted = await collection.count_explained(where={"n": {"$gte": 100}})
    assert counted.count == 100
    assert counted.explain is not None
    shards = counted.explain["shards"]
    assert len(shards) == 3
    assert sum(shard["matched"] for shard in shards) == 100
    steps = [step for shard in shards for segment in shard["segments"] for step in segment["filter"]["steps"]]
    assert {step["how"] for step in steps} == {"values"}
    assert sum(step["estimated"] for step in steps) == 100
    assert all(shard["milliseconds"]["select"] >= 0 for shard in shards)
    assert sum(sum(shard["bytes"].values()) for shard in shards) > 0
    await client.close()
