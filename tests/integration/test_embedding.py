"""Text in, text out: the SDK in sync and async code, HTTP and gRPC with embedding in the frontend, words and meaning by rank fusion."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest

import shoal
from shoal.embedding import Bm25, Gateway, MiniLM
from shoal_cli.local_cluster import LocalCluster
from shoal_core.contracts import CollectionRef, Include
from shoal_core.records import DOCUMENT, ID, OP, Operation
from shoal_wire.v1 import shoal_pb2 as pb
from tests.compat.servers import shoal_up
from tests.integration.test_http import DATABASE, ask

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

DOCUMENTS = {
    "salt": "a large body of salt water",
    "nail": "a tool for driving nails",
    "loaf": "bread is baked from flour",
    "moon": "it circles the earth once a month",
}
IDS, TEXTS = [*DOCUMENTS], [*DOCUMENTS.values()]
QUESTIONS = {"the ocean": "salt", "a hammer": "nail", "a satellite": "moon"}


async def test_in_sync_code(cluster: LocalCluster) -> None:
    def tour() -> None:
        with shoal.connect(cluster.frontends[0]) as client:
            things = client.create_collection("text-sync", space="cosine", embedding_function=MiniLM())
            assert things.configuration["embedding_function"]["name"] == "default"
            things.add(ids=IDS, documents=TEXTS)
            again = client.get_collection("text-sync")
            found = again.query(query_texts=[*QUESTIONS], n_results=1)
            assert found.documents == [[DOCUMENTS[wanted]] for wanted in QUESTIONS.values()]

    await asyncio.to_thread(tour)


async def test_in_async_code(cluster: LocalCluster) -> None:
    async with await shoal.aio.connect(",".join(cluster.frontends)) as client:
        things = await client.create_collection("text-async", space="cosine", embedding_function=Gateway(MiniLM()))
        await things.add(ids=IDS, documents=TEXTS)
        found = await things.query(query_texts=[*QUESTIONS], n_results=1)
        assert found.documents == [[DOCUMENTS[wanted]] for wanted in QUESTIONS.values()]
        await things.update(ids=["loaf"], documents=["a satellite of the earth"])
        assert (await things.query(query_texts="a satellite", n_results=1)).ids == [["loaf"]]


async def test_over_http_with_embedding_in_the_frontend(cluster: LocalCluster) -> None:
    one, other = (role.http for role in cluster.roles.values() if role.role == "frontend")
    known = {"type": "known", "name": "default", "config": {}}  # as Chroma's clients store it
    body = {"name": "text-http", "configuration": {"embedding_function": known, "hnsw": {"space": "cosine"}}}
    status, made = await ask(one, "POST", f"{DATABASE}/collections", body)
    assert status == 200, made
    path = f"{DATABASE}/collections/{made['id']}"
    assert await ask(one, "POST", f"{path}/add", {"ids": IDS, "documents": TEXTS}) == (201, {})
    status, found = await ask(other, "POST", f"{path}/query", {"query_texts": [*QUESTIONS], "n_results": 1})
    assert status == 200, found
    assert found["documents"] == [[DOCUMENTS[wanted]] for wanted in QUESTIONS.values()]
    near: dict[str, Any] = {"$knn": {"query": "a satellite", "return_rank": True, "default": 100}}
    words: dict[str, Any] = {
        "$knn": {"query": "nails month", "key": "#document", "limit": 2, "return_rank": True, "default": 100}
    }
    searched: dict[str, Any] = {
        "searches": [
            {"rank": near, "limit": {"limit": 1}},
            {"rank": {"$rrf": {"ranks": [near, words]}}, "limit": {"limit": 2}, "select": {"keys": ["#document"]}},
        ]
    }
    status, found = await ask(other, "POST", f"{path}/search", searched)
    assert status == 200, found
    assert found["ids"] == [["moon"], ["moon", "nail"]], "by meaning, then by meaning and words"
    assert found["documents"][1] == [DOCUMENTS["moon"], DOCUMENTS["nail"]]
    async with await shoal.aio.connect(cluster.frontends[0]) as client:  # and by the SDK, which reads what was stored
        things = await client.get_collection("text-http")
        got = await things.get(ids=IDS, include=["embeddings"])
        assert got.embeddings is not None
        expected = await Gateway(MiniLM()).aembed_documents([DOCUMENTS[id_] for id_ in got.ids])
        np.testing.assert_allclose(got.embeddings, expected, atol=1e-5)
        assert (await things.query(query_texts="the ocean", n_results=1)).ids == [["salt"]]
    body = {"name": "text-http-none"}
    status, made = await ask(one, "POST", f"{DATABASE}/collections", body)
    path = f"{DATABASE}/collections/{made['id']}"
    status, refused = await ask(one, "POST", f"{path}/add", {"ids": IDS, "documents": TEXTS})
    assert (status, "no default one" in refused["message"]) == (400, True)


async def test_over_http_with_embedding_in_one_process(tmp_path: Path) -> None:
    functions = '{"small": {"kind": "default", "config": {}}}'
    environment = {
        "SHOAL_FRONTEND__EMBEDDING__FUNCTIONS": functions,
        "SHOAL_FRONTEND__EMBEDDING__DEFAULT": "small",
    }
    async with shoal_up(tmp_path, environment=environment) as up:
        _, made = await ask(up.http, "POST", f"{DATABASE}/collections", {"name": "text-up"})
        path = f"{DATABASE}/collections/{made['id']}"
        assert await ask(up.http, "POST", f"{path}/add", {"ids": IDS, "documents": TEXTS}) == (201, {})
        status, found = await ask(up.http, "POST", f"{path}/query", {"query_texts": [*QUESTIONS], "n_results": 1})
        assert (status, found["ids"]) == (200, [[wanted] for wanted in QUESTIONS.values()])


async def test_over_grpc_with_embedding_in_the_frontend(cluster: LocalCluster) -> None:
    async with await shoal.aio.connect(cluster.frontends[0]) as client:
        things = await client.create_collection("text-grpc", space="cosine", embedding_function=MiniLM())
        ref = CollectionRef("default_tenant", "default_database", id=things.id)
        (api,) = client._connection.endpoints
        batch = pa.record_batch(
            {
                OP: pa.array(np.full(len(IDS), Operation.ADD, np.uint8)),
                ID: pa.array(IDS),
                DOCUMENT: pa.array(TEXTS),
            }
        )
        await api.write(ref, batch)
        none: Any = np.zeros((0, 0), np.float32)
        answer = await api.query(ref, none, 1, texts=[*QUESTIONS], include=Include(documents=True))
        assert answer.rows.column(ID).to_pylist() == [*QUESTIONS.values()]
    async with grpc.aio.insecure_channel(cluster.frontends[0]) as channel:
        query = channel.unary_unary(
            "/shoal.v1.ShoalService/Query",
            request_serializer=pb.QueryRequest.SerializeToString,
            response_deserializer=lambda data: data,
        )
        request = pb.QueryRequest(collection=pb.CollectionRef(id=ref.id), k=1, texts=["the ocean"])
        request.collection.tenant, request.collection.database = ref.tenant, ref.database
        assert b"salt" in await query(request)


async def test_words_and_meaning_by_rank_fusion(cluster: LocalCluster) -> None:
    """Dense vectors by the default function, sparse ones by BM25 in the client, and BM25 of the server: fused by rank."""
    async with await shoal.aio.connect(cluster.frontends[0]) as client:
        sparse = {
            "source_key": "#document",
            "embedding_function": {"name": "chroma_bm25", "config": Bm25().to_config()},
        }
        things = await client.create_collection(
            "text-hybrid", space="cosine", embedding_function=MiniLM(), schema={"sparse": {"bm25": sparse}}
        )
        await things.add(ids=[*IDS, "month"], documents=[*TEXTS, "salaries are paid each month"])
        near = shoal.Knn("the moon and its phases", limit=5, return_rank=True, default=100)
        for words in (
            shoal.Knn("month", key="bm25", limit=2, return_rank=True, default=100),
            shoal.Knn("month", key="#document", limit=2, return_rank=True, default=100),
        ):
            found = await things.search(
                shoal.Search(rank=shoal.rrf([near, words]), limit=2, select=["#document", "#score"])
            )
            assert sorted(found.ids) == ["month", "moon"]
            assert found.ids[0] == "moon"
            assert found.documents is not None
            assert found.documents[0] == DOCUMENTS["moon"]
