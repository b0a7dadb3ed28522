"""Texts that the frontend embeds: over HTTP and by the public verbs, with a function on real sockets that is told to misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.frontend.tests.frontend_http_support import Site, http_of
from shoal.embedding import Ollama
from shoal.embedding.registry import stored_form
from shoal_core.contracts import CollectionRef, Include, NewCollection
from shoal_core.errors import (
    DimensionMismatch,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    ShoalError,
    Unavailable,
)
from shoal_core.ranking import Knn, Search, Sum, TextQuery
from shoal_core.records import DOCUMENT, EMBEDDING, ID, OP, Operation, embedding_array, one_chunk
from shoal_frontend.embedding import Embedded, EmbeddingSettings, FunctionSettings, ServerEmbedding
from shoal_testing.direct import DirectSystem
from shoal_testing.embedding_stub import DIMENSION, PASSING, EmbeddingStub, Fault, vector_of
from shoal_testing.fakes import DEFAULT_DATABASE, DEFAULT_TENANT
from shoal_testing.strategies import examples

NO_VECTORS = np.zeros((0, 0), np.float32)
ALL = Include(documents=True, embeddings=True)


@dataclass
class World:
    """A frontend that offers one function, which a stub serves."""

    site: Site
    stub: EmbeddingStub

    @property
    def database(self) -> Any:
        return self.site.system.database

    async def create(self, name: str, configuration: Mapping[str, Any] | None = None, **more: Any) -> CollectionRef:
        new = NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, name, configuration=dict(configuration or {}), **more)
        made = (await self.database.create_collection(new))[0]
        self.site.id = made.id
        return CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, id=made.id)

    async def records(self, ref: CollectionRef) -> dict[str, tuple[str | None, list[float]]]:
        """Document and vector by id."""
        rows = (await self.database.get(ref, include=ALL)).rows
        names = rows.column_names
        empty = [None] * rows.num_rows
        columns = (one_chunk(rows.column(c)).to_pylist() if c in names else empty for c in (ID, DOCUMENT, EMBEDDING))
        return {id_: (document, vector) for id_, document, vector in zip(*columns, strict=True)}


@asynccontextmanager
async def world(default: str = "local", **more: Any) -> AsyncIterator[World]:
    async with EmbeddingStub() as stub:
        site = Site()
        function = FunctionSettings("ollama", {"url": stub.url, "model_name": "m"}, texts_per_call=3)
        embedding = ServerEmbedding(EmbeddingSettings({"local": function}, default, **more), site.system.clock)
        system = site.system
        database = replace(system.database, embedding=embedding)
        system.database = database
        site.http = http_of(database, system, embeds=True)
        yield World(site, stub)


def named(model: str = "m") -> dict[str, Any]:
    return {"embedding_function": stored_form(Ollama(model_name=model, url="http://somewhere.else"))}


def batch(operation: Operation, documents: list[str | None], vectors: list[list[float] | None] | None = None) -> Any:
    columns = {
        OP: pa.array(np.full(len(documents), operation, np.uint8)),
        ID: pa.array([f"id{row}" for row in range(len(documents))]),
        DOCUMENT: pa.array(documents, pa.string()),
    }
    if vectors is not None:
        valid = np.array([vector is not None for vector in vectors])
        dense = np.array([vector or [0.0] * DIMENSION for vector in vectors], np.float32)
        columns[EMBEDDING] = embedding_array(dense, valid)
    return pa.record_batch(columns)


def of(*texts: str) -> list[list[float]]:
    return [vector_of(text).tolist() for text in texts]


async def test_text_in_text_out_over_http() -> None:
    async with world() as at:
        ref = await at.create("films", named(), space="cosine")
        texts = [f"text {number}" for number in range(7)]
        added = await at.site.post("add", {"ids": texts, "documents": texts, "metadatas": [{"n": 1}] * 7})
        assert (added.status, added.json) == (201, {})
        assert await at.records(ref) == {text: (text, vector_of(text).tolist()) for text in texts}
        assert sorted(map(len, at.stub.texts)) == [1, 3, 3]
        found = await at.site.post("query", {"query_texts": ["text 5", "text 2"], "n_results": 1})
        assert (found.status, found.json["documents"]) == (200, [["text 5"], ["text 2"]])
        assert (await at.site.post("update", {"ids": ["text 2"], "documents": ["new"]})).status == 200
        assert (await at.site.post("upsert", {"ids": ["u"], "documents": ["u"], "embeddings": [None]})).status == 200
        records = await at.records(ref)
        assert records["text 2"] == ("new", vector_of("new").tolist())
        assert records["u"] == ("u", vector_of("u").tolist())


async def test_vectors_that_came_stay_and_the_others_are_made_in_their_rows() -> None:
    async with world() as at:
        ref = await at.create("ccc", named())
        own = [float(number) for number in range(1, DIMENSION + 1)]
        await at.database.write(ref, batch(Operation.UPSERT, ["a", "b", None, "d"], [None, own, own, None]))
        assert await at.records(ref) == {
            "id0": ("a", vector_of("a").tolist()),
            "id1": ("b", own),
            "id2": (None, own),
            "id3": ("d", vector_of("d").tolist()),
        }
        assert at.stub.texts == [["a", "d"]]
        at.stub.script(Fault.ZERO)
        with pytest.raises(InvalidArgument) as caught:
            await at.database.write(ref, batch(Operation.UPSERT, [None, "e", None, "f"], [own, None, own, None]))
        assert caught.value.field == "documents[3]", "the record's place, not the text's"


@examples(30)
@given(
    given=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=14),
    faults=st.lists(st.sampled_from([*sorted(PASSING), Fault.NONE, Fault.MISSING, Fault.NAN]), max_size=6),
)
def test_rows_never_get_another_rows_vector(given: list[tuple[bool, bool]], faults: list[Fault]) -> None:
    """Some records have documents, some vectors, some both; the service fails now and then."""

    async def run() -> None:
        async with world() as at:
            ref = await at.create("ccc", named())
            own = [1.0] * DIMENSION
            documents = [f"text {row}" if text or not vector else None for row, (text, vector) in enumerate(given)]
            vectors = [own if vector else None for _, vector in given]
            at.stub.script(*faults)
            expected = {
                f"id{row}": (text, own if vector else vector_of(text or "").tolist())
                for row, (text, vector) in enumerate(zip(documents, vectors, strict=True))
            }
            try:
                await at.database.write(ref, batch(Operation.ADD, documents, vectors))
            except (InvalidArgument, Unavailable, ResourceExhausted):
                assert faults
                expected = {}
            assert await at.records(ref) == expected

    asyncio.run(run())


async def test_what_is_wrong_otherwise_costs_nothing() -> None:
    async with world() as at:
        ref = await at.create("ccc", named(), dimension=DIMENSION)
        wrong: list[tuple[Any, str]] = [
            (batch(Operation.ADD, ["a", None]), "embeddings[1]"),
            (batch(Operation.ADD, ["a"]).append_column("what", pa.array([1])), "what"),
            (batch(Operation.ADD, ["a" * (2 << 20)]), "documents[0]"),
            (batch(Operation.ADD, ["a", "b"], [None, [float("nan")] * DIMENSION]), "embeddings[1]"),
        ]
        for item, field in wrong:
            with pytest.raises(InvalidArgument) as caught:
                await at.database.write(ref, item)
            assert caught.value.field == field
        with pytest.raises(InvalidArgument, match="idempotency_key"):
            await at.database.write(ref, batch(Operation.ADD, ["a"]), idempotency_key="k" * 5000)
        for more in ({"k": -1}, {"k": 1, "ids": [""]}, {"k": 10**9}):
            k = more.pop("k")
            with pytest.raises(InvalidArgument):
                await at.database.query(ref, NO_VECTORS, k, texts=["a"], **more)
        with pytest.raises(InvalidArgument, match="either vectors or texts"):
            await at.database.query(ref, np.ones((1, DIMENSION), np.float32), 1, texts=["a"])
        with pytest.raises(InvalidArgument, match="query_texts"):
            await at.database.query(ref, NO_VECTORS, 1, texts=["a"] * 5000)
        assert not at.stub.asked
        assert await at.records(ref) == {}


async def test_which_function_serves_a_collection() -> None:
    async with world(default="") as at:
        await at.database.write(await at.create("same", named()), batch(Operation.ADD, ["a"]))
        at.stub.asked.clear()
        for name, configuration, message in (
            ("model", named("n"), r"'ollama' \(model_name 'n'\), and this server has 'ollama' \(model_name 'm'\)"),
            ("other", {"embedding_function": {"name": "mine"}}, "'mine', and this server has 'ollama'"),
            ("none", {}, "names no embedding function, and this server has no default one"),
            ("legacy", {"embedding_function": {"type": "legacy"}}, "no default one"),
        ):
            ref = await at.create(name, configuration)
            with pytest.raises(InvalidArgument, match=message):
                await at.database.write(ref, batch(Operation.ADD, ["a"]))
            with pytest.raises(InvalidArgument, match=message):
                await at.database.query(ref, NO_VECTORS, 1, texts=["a"])
            await at.database.write(ref, batch(Operation.ADD, ["a"], [[1.0] * DIMENSION]))
            await at.database.write(ref, batch(Operation.UPDATE, ["just text"]))
            assert await at.records(ref) == {"id0": ("just text", [1.0] * DIMENSION)}
        assert not at.stub.asked, "nothing is asked, and nothing made of what a collection stores"


async def test_the_default_serves_those_that_name_none_and_spares_foreign_vectors() -> None:
    async with world() as at:
        ref = await at.create("ccc")
        await at.database.write(ref, batch(Operation.ADD, ["a"]))
        await at.database.write(ref, batch(Operation.UPDATE, ["b"]))
        assert await at.records(ref) == {"id0": ("b", vector_of("b").tolist())}
        with pytest.raises(DimensionMismatch, match=f"dimension {DIMENSION}, expected 2"):
            await at.database.write(await at.create("ddd", dimension=2), batch(Operation.ADD, ["a"]))


async def test_a_tenants_quota() -> None:
    async with world(texts_per_second=2.0, burst_texts=4, characters_per_request=100) as at:
        clock, ref = at.site.system.clock, await at.create("ccc", named())
        await at.database.write(ref, batch(Operation.ADD, ["a"] * 4))
        with pytest.raises(ResourceExhausted, match="2 texts per second") as caught:
            await at.database.query(ref, NO_VECTORS, 1, texts=["a"])
        assert caught.value.retry_after_ms == 500
        refused = await at.site.post("query", {"query_texts": ["a"], "n_results": 1})
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        new = NewCollection("other", DEFAULT_DATABASE, "ccc", configuration=named())
        await at.database.create_tenant("other")
        await at.database.create_database("other", DEFAULT_DATABASE)
        await at.database.create_collection(new)
        other = CollectionRef("other", DEFAULT_DATABASE, "ccc")
        await at.database.write(other, batch(Operation.ADD, ["a"]))
        await clock.advance(0.5)
        await at.database.query(ref, NO_VECTORS, 1, texts=["a"])
        with pytest.raises(InvalidArgument, match="at most 100 are embedded in one request"):
            await at.database.write(ref, batch(Operation.ADD, ["a" * 101]))


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault.UNAUTHORIZED, FailedPrecondition),
        (Fault.NO_MODEL, FailedPrecondition),
        (Fault.BAD_REQUEST, InvalidArgument),
        (Fault.MISSING, InvalidArgument),
        (Fault.WRONG_DIMENSION, DimensionMismatch),
    ],
)
async def test_clients_learn_the_kind_of_failure_and_no_address(fault: Fault, kind: type[ShoalError]) -> None:
    async with world() as at:
        ref = await at.create("ccc", named(), dimension=DIMENSION)
        at.stub.script(fault)
        with pytest.raises(kind) as caught:
            await at.database.write(ref, batch(Operation.ADD, ["a", "b"]))
        assert type(caught.value) is kind
        assert "127.0.0.1" not in str(caught.value)
        assert "'ollama'" in str(caught.value)


async def test_a_lookup_that_is_out_of_date_does_not_embed_twice() -> None:
    async with world(texts_per_second=0.001, burst_texts=1) as at:
        ref = await at.create("ccc", named())
        by_name = CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, "ccc")
        await at.database.write(by_name, batch(Operation.ADD, ["a"], [[1.0] * DIMENSION]))
        await at.site.system.new_database().modify_collection(ref, metadata={"a": 1})  # a new epoch
        await at.database.write(by_name, batch(Operation.UPSERT, ["new"]))
        assert at.stub.texts == [["new"]]


async def test_a_query_that_is_tried_again_does_not_embed_twice() -> None:
    async with world(texts_per_second=0.001, burst_texts=1) as at:
        ref = await at.create("ccc", named())
        by_name = CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, "ccc")
        await at.database.write(by_name, batch(Operation.ADD, ["a"], [[1.0] * DIMENSION]))
        await at.site.system.new_database().modify_collection(ref, metadata={"a": 1})  # a new epoch
        found = await at.database.query(by_name, NO_VECTORS, 1, texts=["a"])
        assert (found.rows.num_rows, at.stub.texts) == (1, [["a"]])


async def test_a_retry_on_a_collection_of_another_function_embeds_anew() -> None:
    async with world() as at:
        ref, plain = await at.create("ccc", named()), await at.create("ddd")
        one, other = [await at.database.get_collection(each) for each in (ref, plain)]
        given = iter(("first", "second"))

        async def make() -> str:
            return next(given)

        made: Embedded[str] = Embedded()
        assert [await made.once(asked, make) for asked in (one, one, other)] == ["first", "first", "second"]


def ranked(*queries: str, key: str = "#embedding") -> dict[str, Any]:
    leaves = [{"$knn": {"query": query, "key": key, "limit": 1, "default": 9.0}} for query in queries]
    return {"rank": {"$sum": leaves}, "select": {"keys": ["#score"]}}


async def test_searches_rank_by_texts_each_embedded_once() -> None:
    async with world() as at:
        await at.create("films", named(), space="cosine")
        texts = [f"text {number}" for number in range(4)]
        await at.site.post("add", {"ids": texts, "documents": texts})
        embedded = len(at.stub.texts)
        body = {"searches": [ranked("text 3"), ranked("text 1", "text 3"), ranked("3", key="#document")]}
        found = await at.site.post("search", body)
        assert found.status == 200, found.body
        assert found.json["ids"] == [["text 3"], ["text 1", "text 3"], ["text 3"]]
        assert found.json["scores"][1] == pytest.approx([9.0, 9.0], abs=1e-5)
        assert at.stub.texts[embedded:] == [["text 3", "text 1"]]


async def test_a_search_whose_text_cannot_be_embedded_says_which() -> None:
    async with world(burst_texts=5, texts_per_second=0.001) as at:
        ref = await at.create("ccc", named())
        plain = await at.create("ddd", named("another"))
        at.stub.script(Fault.ZERO)
        searches = [Search(), Search(rank=Knn(TextQuery("a")))]
        with pytest.raises(InvalidArgument) as caught:
            await at.database.search(ref, searches)
        assert caught.value.field == "searches[1]"
        with pytest.raises(InvalidArgument, match="made with the embedding function") as caught:
            await at.database.search(plain, searches)
        assert caught.value.field == "searches"
        assert await at.database.search(plain, searches[:1]), "without texts it needs no function"
        many = [Search(rank=Sum(tuple(Knn(TextQuery(f"{number}")) for number in range(5))))]
        with pytest.raises(ResourceExhausted):
            await at.database.search(ref, many)


async def test_a_commit_may_bring_documents() -> None:
    async with world() as at:
        ref = await at.create("ccc", named())
        write = {"operation": "upsert", "payload": {"ids": ["a"], "documents": ["text"]}}
        done = await at.site.post("conditional/commit", {"operations": [write]})
        assert done.status == 200, done.body
        document, vector = (await at.records(ref))["a"]
        assert document == "text"
        assert vector == pytest.approx(vector_of("text"))


async def test_off_unless_configured() -> None:
    site = await Site().start()
    missing = await site.post("add", {"ids": ["a"], "documents": ["a"]})
    assert missing.error[2].startswith(
        "Failed to deserialize the JSON body into the target type: missing field `embeddings`"
    )
    texts = await site.post("query", {"query_texts": ["a"]})
    assert (texts.status, "missing field `query_embeddings`" in texts.error[2]) == (422, True)
    ref = CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, id=site.id)
    with pytest.raises(InvalidArgument, match="need an embedding"):
        await site.system.database.write(ref, batch(Operation.ADD, ["a"]))
    with pytest.raises(FailedPrecondition, match="embeds no texts"):
        await site.system.database.query(ref, NO_VECTORS, 1, texts=["a"])


async def test_bodies_without_either_are_wrong_as_before() -> None:
    async with world() as at:
        await at.create("ccc", named())
        for verb, body, field in (
            ("add", {"ids": ["a"]}, "embeddings"),
            ("query", {"n_results": 1}, "query_embeddings"),
        ):
            answer = await at.site.post(verb, body)
            assert (answer.status, f"missing field `{field}`" in answer.error[2]) == (422, True)
        empty = await at.site.post("query", {"query_texts": [], "n_results": 1})
        assert (empty.status, empty.json["ids"]) == (200, [])
        wrong = await at.site.post("query", {"query_texts": [1]})
        assert (wrong.status, wrong.error[2].partition("query_texts[0]")[1]) == (422, "query_texts[0]")


@pytest.mark.parametrize(
    ("functions", "default", "field"),
    [
        ({"a": FunctionSettings("cohere", {})}, "", "embedding_function"),
        ({"a": FunctionSettings("ollama", {"modell": "m"})}, "", "frontend.embedding.functions.a.config.modell"),
        ({"a": FunctionSettings("openai", {"api_key": "x"})}, "", "frontend.embedding.functions.a.config.api_key"),
        ({"a": FunctionSettings("default", {})}, "b", "frontend.embedding.default"),
    ],
)
def test_a_wrong_configuration_stops_the_start(functions: Any, default: str, field: str) -> None:
    with pytest.raises((InvalidArgument, FailedPrecondition)) as caught:
        ServerEmbedding(EmbeddingSettings(functions, default), DirectSystem().clock)
    assert caught.value.field == field


async def test_the_description_says_that_texts_will_do() -> None:
    async with world() as at:
        described = (await at.site.http("GET", "/openapi.json")).json["components"]["schemas"]
        assert described["NewRecords"]["required"] == described["UpsertedRecords"]["required"] == ["ids"]
        assert "query_texts" in described["Query"]["properties"]
    without = (await Site().http("GET", "/openapi.json")).json["components"]["schemas"]
    assert without["NewRecords"]["required"] == ["ids", "embeddings"]
