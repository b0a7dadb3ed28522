"""The SDK over real gRPC on loopback: the public client, the frontend's face, the oracle behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import numpy as np
import pytest

import shoal
from libs.client.tests.client_support import Fail, FakeApi, Words
from shoal import errors
from shoal._loop import LoopThread
from shoal_frontend.access.entrance import Entrance
from shoal_frontend.access.gate import Gate
from shoal_frontend.grpc_api import ShoalServicer
from shoal_testing.virtual_clock import VirtualClock
from shoal_wire.messages import message_options

pytestmark = pytest.mark.integration

TIMEOUT_MS = 20_000


@asynccontextmanager
async def serving(*apis: FakeApi) -> AsyncIterator[str]:
    """Frontends on loopback; their addresses as `connect` takes them."""
    servers, addresses = [], []
    try:
        for api in apis:
            server = grpc.aio.server(options=message_options())
            ShoalServicer(Entrance(api, Gate(VirtualClock()))).add_to(server)
            addresses.append(f"localhost:{server.add_insecure_port('127.0.0.1:0')}")
            await server.start()
            servers.append(server)
        yield ",".join(addresses)
    finally:
        for server in servers:
            await server.stop(None)


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[shoal.AsyncClient]:
    """A client with time for retries."""
    async with await shoal.aio.connect(address, timeout_ms=TIMEOUT_MS) as client:
        yield client


async def test_everything_over_the_wire() -> None:
    api = FakeApi()
    async with serving(api) as address, await shoal.aio.connect(address, embedding_function=Words()) as client:
        films = await client.create_collection("films", metadata={"a": 1}, dimension=2)
        rows: list[dict[str, Any] | None] = [
            {"year": 2**53 + 1, "score": 0.1, "seen": True, "tags": ["x", "é"], "years": [1, 2]},
            {"year": 1999.0, "sparse": {"indices": [1, 9], "values": [0.5, 2.0]}},
            None,
        ]
        written = await films.add(
            ids=["a", "b", "c"],
            embeddings=np.arange(6, dtype=np.float32).reshape(3, 2),
            documents=["one", None, "日本"],
            metadatas=rows,
            uris=["file:///a", None, None],
        )
        assert written.records == 3
        got = await films.get(
            include=["documents", "metadatas", "embeddings", "uris"], consistency=shoal.session(written)
        )
        assert got.ids == ["a", "b", "c"]
        assert got.documents == ["one", None, "日本"]
        assert got.metadatas == [rows[0], rows[1], {}]
        assert got.uris == ["file:///a", None, None]
        assert got.embeddings is not None
        assert got.embeddings.tolist() == [[0, 1], [2, 3], [4, 5]]
        assert got.served_at.offset == 3
        found = await films.query([[0, 0], [5, 5]], n_results=1, include=["distances"], explain=True)
        assert found.ids == [["a"], ["c"]]
        assert [part.tolist() for part in found.distances or []] == [[1.0], [1.0]]
        assert found.explain == {"plan": "exact"}
        await films.update(ids=["a"], metadatas=[{"year": None}])
        assert (await films.get("a", where={"seen": True}, where_document={"$contains": "on"})).metadatas == [
            {"score": 0.1, "seen": True, "tags": ["x", "é"], "years": [1, 2]}
        ]
        assert (await films.delete(where={"year": {"$gt": 1000}})).records == 1
        assert await films.count() == 2
        assert (await films.wait_until_indexed()).indexed_offset == 5
        loaded = await films.load(
            {"ids": [f"{part}-{n}" for n in range(50)], "documents": ["x"] * 50} for part in range(4)
        )
        assert (loaded.records, loaded.batches) == (200, 4)
        with pytest.raises(errors.NotFound, match="nothing"):
            await client.get_collection("nothing")
        assert (await client.get_collection("films")).metadata == {"a": 1}
        assert [database.name for database in await client.list_databases()] == ["default_database"]
        assert await client.status() == {"members": {}}


async def test_searches_pages_and_conditions_over_the_wire() -> None:
    async with serving(FakeApi()) as address, connected(address) as client:
        schema = shoal.Schema(keys={"n": {shoal.Index.INT: False}}, analyzer=shoal.Analyzer(stop_words=("a",)))
        films = await client.create_collection("films", schema=schema, embedding_function=Words())
        assert (await client.get_collection("films", embedding_function=Words())).schema == schema
        vectors = [{"indices": [1, 5], "values": [1.0, 2.0]}, {"indices": [5], "values": [0.5]}, None]
        added = await films.add(
            ids=["a", "b", "c"],
            documents=["a fish", "a red fish", "none"],
            metadatas=[{"n": n} | ({"s": vector} if vector else {}) for n, vector in enumerate(vectors)],
            outcomes=True,
        )
        assert added.outcomes == ["added"] * 3
        ranks = [shoal.Knn("none"), shoal.Knn("fish", key="#document"), shoal.Knn(vectors[1], key="s", default=9.0)]
        searches = [shoal.Search(rank=rank) for rank in ranks]
        found = await films.search([*searches, shoal.Search(rank=(ranks[0] + ranks[2]) / 2, limit=2)], explain=True)
        assert [result.ids for result in found] == [["c", "a", "b"], ["a", "b"], ["a", "b"], ["a", "c"]]
        assert [(result.scores is not None, result.explain) for result in found] == [(True, {"plan": "exact"})] * 4
        with pytest.raises(errors.WriteConflict):
            await films.delete("b", condition=shoal.unless_written_since(0, ["a"]))
        async with films.conditional(outcomes=True) as txn:
            assert (await txn.get("x")).ids == []
            await txn.add(ids=["x"], documents=["new"])
            await txn.delete("b")
        assert txn.result is not None
        assert txn.result.outcomes == ["added", "deleted"]
        pages = [page.ids async for page in films.pages(limit=2, consistency=shoal.as_of(added))]
        assert pages == [["a", "b"], ["c"]]
        deleted = await films.delete(where={"n": {"$gte": 0}}, allow_scan=True, outcomes=True)
        assert (deleted.outcomes, deleted.read_offset) == (["deleted"] * 2, 5)
        counted = await films.count_explained(allow_scan=True)
        assert (counted.count, counted.explain, counted.served_at.offset) == (1, {"plan": "exact"}, 7)


async def test_failover_over_the_wire() -> None:
    first = FakeApi()
    second = FakeApi(first.state)
    async with serving(first, second) as both, connected(both) as client:
        collection = await client.create_collection("c")
        for api in (first, second):
            api.script.append(Fail(errors.OutcomeUnknown("lost"), after=True))
        result = await collection.add(ids=["a"], embeddings=[[1.0]])
        assert result.token.offset == 1
    async with serving(second) as alive, connected(f"127.0.0.1:9,{alive}") as client:
        collection = await client.get_collection("c")
        for number in range(6):
            await collection.upsert(ids=[f"r{number}"], embeddings=[[1.0]])
        assert await collection.count() == 7


async def test_nobody_there() -> None:
    async with await shoal.aio.connect("127.0.0.1:9", timeout_ms=2_000) as client:
        with pytest.raises(errors.Unavailable) as caught:
            await client.list_collections()
        assert "within 2000 ms" in caught.value.__notes__[0]
        with pytest.raises(errors.Unavailable):
            await client.create_collection("c")


def test_the_sync_client_over_the_wire() -> None:
    """Server and client each on a thread of their own, as they would be on machines of their own."""
    server = LoopThread("server")
    context = serving(FakeApi())
    address = server.run(lambda: context.__aenter__())
    try:
        with shoal.connect(address) as client:
            collection = client.create_collection("c")
            collection.add(ids=["a"], embeddings=np.ones((1, 3), np.float32), metadatas={"n": np.array([1])})
            assert collection.query(np.ones(3), n_results=5).ids == [["a"]]
    finally:
        server.run(lambda: context.__aexit__(None, None, None))
        server.close()
