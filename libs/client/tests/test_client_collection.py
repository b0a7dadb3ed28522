"""Collections and the catalog through the async client, on the oracle."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import shoal
from libs.client.tests.client_support import FakeApi, Words, client_of
from shoal.aio import AsyncClient, AsyncCollection
from shoal.embedding import CallableEmbedding
from shoal_core import errors
from shoal_core.consistency import Consistency, ReadLevel
from shoal_core.contracts import Tenant
from shoal_core.errors import InvalidArgument
from shoal_testing.virtual_clock import SeededRandom, VirtualClock


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
async def client(api: FakeApi) -> AsyncIterator[AsyncClient]:
    async with client_of(api, clock=VirtualClock(), random=SeededRandom()) as client:
        yield client


@pytest.fixture
async def films(client: AsyncClient) -> AsyncCollection:
    collection = await client.create_collection("films", embedding_function=Words())
    await collection.add(
        ids=["jaws", "nemo", "alien"],
        embeddings=[[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]],
        documents=["a shark", "a fish", None],
        metadatas=[{"year": 1975, "tags": ["sea"]}, {"year": 2003}, None],
        uris=["file:///jaws", None, None],
    )
    return collection


# --- records


async def test_what_was_written_is_read(films: AsyncCollection) -> None:
    got = await films.get(include=["documents", "metadatas", "embeddings", "uris"])
    assert got.ids == ["jaws", "nemo", "alien"]
    assert got.documents == ["a shark", "a fish", None]
    assert got.metadatas == [{"year": 1975, "tags": ["sea"]}, {"year": 2003}, {}]
    assert got.uris == ["file:///jaws", None, None]
    assert got.embeddings is not None
    assert got.embeddings.tolist() == [[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]
    assert (got.served_at.offset, got.complete) == (3, True)
    assert films.dimension == 2


async def test_get_by_ids_filters_and_page(films: AsyncCollection, api: FakeApi) -> None:
    assert (await films.get("nemo")).ids == ["nemo"]
    assert (await films.get(["nemo", "jaws", "nobody"])).ids == ["jaws", "nemo"]
    assert (await films.get([])).ids == []
    assert (await films.get(where={"year": {"$gt": 1980}})).ids == ["nemo"]
    assert (await films.get(where_document={"$contains": "shark"})).ids == ["jaws"]
    both = await films.get(where={"year": {"$exists": True}}, where_document={"$not_contains": "shark"})
    assert both.ids == ["nemo"]
    assert (await films.get(limit=np.int64(1), offset=1)).ids == ["nemo"]  # type: ignore[arg-type]
    assert (await films.get(include=())).documents is None
    assert (await films.peek(2)).ids == ["jaws", "nemo"]


async def test_query(films: AsyncCollection, api: FakeApi) -> None:
    found = await films.query([0.0, 0.0], n_results=2)
    assert found.ids == [["jaws", "alien"]]
    assert found.distances is not None
    assert found.distances[0].tolist() == [0.0, 1.0]
    assert found.documents == [["a shark", None]]
    found = await films.query(
        np.zeros((2, 2)), ids=["nemo", "alien"], where={"year": 2003}, explain=True, ef=7, exact=True
    )
    assert found.ids == [["nemo"], ["nemo"]]
    assert found.explain == {"plan": "exact"}
    call = api.seen("query")[-1]
    assert (call["ef"], call["exact"], call["k"], call["vectors"].dtype) == (7, True, 10, np.float32)
    assert found.recall is None
    api.estimate = 0.97
    assert (await films.query([0.0, 0.0], recall=0.96)).recall == 0.97
    assert api.seen("query")[-1]["recall"] == 0.96
    for wrong in (1, 1.5, -0.1, "x", True):
        with pytest.raises(InvalidArgument) as caught:
            await films.query([0.0, 0.0], recall=wrong)  # type: ignore[arg-type]
        assert caught.value.field == "recall"


async def test_query_by_text(films: AsyncCollection) -> None:
    found = await films.query(query_texts="abc", n_results=1)  # 3 characters, 1 word: nearest to (0, 1) and (3, 4)
    assert found.ids == [["nemo"]] or found.ids == [["alien"]]
    assert len(await films.query(query_texts=["abc", "d e"])) == 2


async def test_update_upsert_and_delete(films: AsyncCollection) -> None:
    await films.update(ids=["jaws", "nobody"], metadatas=[{"year": None, "rank": 1}, {"a": 1}])
    await films.upsert(ids=["nemo", "dory"], embeddings=[[9, 9], [8, 8]], metadatas={"rank": [2, 3]})
    got = await films.get(include=["metadatas", "embeddings"])
    assert got.ids == ["jaws", "nemo", "alien", "dory"]
    assert got.metadatas == [{"tags": ["sea"], "rank": 1}, {"year": 2003, "rank": 2}, {}, {"rank": 3}]
    assert got.embeddings is not None
    assert got.embeddings[[1, 3]].tolist() == [[9, 9], [8, 8]]
    assert (await films.delete("jaws")).records == 1
    assert (await films.delete(where={"rank": {"$gte": 2}}, limit=1)).records == 1
    assert (await films.delete(ids=["alien", "dory"], where={"rank": 3})).records == 1
    assert await films.count() == 1
    assert await films.count(where={"rank": 3}) == 0


async def test_a_table_is_a_batch(films: AsyncCollection) -> None:
    table = pa.table({"id": ["x"], "embedding": [[1.0, 1.0]], "document": ["t"], "uri": ["u"], "year": [1]})
    await films.add(table=table)
    got = await films.get("x", include=["documents", "metadatas", "uris"])
    assert (got.documents, got.metadatas, got.uris) == (["t"], [{"year": 1}], ["u"])
    await films.add(table=table.to_batches()[0])


@pytest.mark.parametrize(
    ("verb", "arguments", "field", "message"),
    [
        ("add", {}, "ids", "give ids, or a table"),
        ("add", {"ids": ["x"], "table": pa.table({"id": ["x"]})}, "table", "not both"),
        ("add", {"table": {"id": ["x"]}}, "table", "Arrow table, got dict"),
        ("add", {"ids": ["x"]}, "embeddings", "add needs embeddings"),
        ("add", {"ids": ["x", "y"], "documents": ["a", None]}, "embeddings[1]", "needs an embedding or a document"),
        ("add", {"ids": ["x"], "embeddings": [[1.0]]}, "embeddings", "dimension 1, the collection has 2"),
        ("delete", {}, "ids", "delete_collection"),
        ("delete", {"ids": ["x"], "limit": 1}, "limit", "needs where"),
        ("delete", {"ids": []}, "ids", "at least one"),
        ("delete", {"where": {"a": 1}, "limit": -1}, "limit", "at least 0"),
        ("get", {"limit": 1.5}, "limit", "whole number"),
        ("get", {"offset": -1}, "offset", "at least 0"),
        ("get", {"ids": [1]}, "ids[0]", "got int"),
        ("get", {"where": {"a": {"$oops": 1}}}, "where.a.$oops", "unknown operator"),
        ("get", {"where": {}}, "where", "exactly one key"),
        ("get", {"include": ["data"]}, "include", "'data'"),
        ("get", {"consistency": "strong"}, "consistency", "shoal.STRONG"),
        ("query", {}, "query_embeddings", "give either"),
        ("query", {"query_embeddings": [[1, 2]], "query_texts": ["a"]}, "query_embeddings", "give either"),
        ("query", {"query_embeddings": [[1, 2]], "n_results": 0}, "n_results", "at least 1"),
        ("query", {"query_embeddings": [[1, 2]], "n_results": True}, "n_results", "whole number"),
        ("query", {"query_embeddings": [[1, 2, 3]]}, "query_embeddings", "dimension 3, the collection has 2"),
        ("query", {"query_texts": []}, "query_texts", "at least one text"),
        ("modify", {}, "name", "a new name, new metadata or a new schema"),
        ("load", {"source": pa.table({"id": ["x"]}), "batch_size": 0}, "batch_size", "at least 1"),
        ("load", {"source": pa.table({"id": ["x"]}), "in_flight": 0}, "in_flight", "at least 1"),
        ("load", {"source": {"ids": ["x"]}}, "source", "got dict"),
        ("load", {"source": [{"id": ["x"]}]}, "source", "got \\['id'\\]"),
        ("load", {"source": [], "operation": "delete"}, "operation", "'delete'"),
    ],
)
async def test_bad_arguments_never_leave_the_client(
    films: AsyncCollection, api: FakeApi, verb: str, arguments: dict[str, Any], field: str, message: str
) -> None:
    api.calls.clear()
    with pytest.raises(errors.InvalidArgument, match=message) as caught:
        await getattr(films, verb)(**arguments)
    assert caught.value.field == field
    assert api.calls == []


# --- consistency


async def test_consistency_reaches_the_api(films: AsyncCollection, api: FakeApi) -> None:
    written = await films.add(ids=["x"], embeddings=[[1, 1]])
    levels: list[Consistency | shoal.Session | shoal.AsOf] = [
        shoal.STRONG,
        shoal.session(written),
        shoal.session(written.token),
        shoal.session(str(written.token)),
        shoal.bounded(500),
        shoal.INDEX_ONLY,
        shoal.as_of(3),
    ]
    for level in levels:
        await films.get(consistency=level)
    session = Consistency(ReadLevel.SESSION, offset=written.token.offset)
    assert [call["consistency"] for call in api.seen("get")] == [
        Consistency(),
        session,
        session,
        session,
        Consistency(ReadLevel.BOUNDED, staleness_ms=500),
        Consistency(ReadLevel.INDEX_ONLY),
        Consistency(ReadLevel.AS_OF, offset=3),
    ]
    await films.count(consistency=shoal.session(written))
    await films.query([0, 0], consistency=shoal.session(written))
    assert api.seen("count")[-1]["consistency"] == api.seen("query")[-1]["consistency"] == session


@pytest.mark.parametrize("name", [5, None, b"name", "\ud800"])
async def test_what_is_no_name_never_leaves_the_client(client: AsyncClient, name: Any) -> None:
    verbs: list[Any] = [
        client.create_collection,
        client.get_collection,
        client.delete_collection,
        client.create_tenant,
        client.get_tenant,
        client.create_database,
        client.get_database,
        client.delete_database,
    ]
    for verb in verbs:
        with pytest.raises(errors.InvalidArgument) as caught:
            await verb(name)
        assert caught.value.field == "name"


async def test_a_session_of_another_collection_is_refused(client: AsyncClient, films: AsyncCollection) -> None:
    other = await client.create_collection("other")
    written = await other.add(ids=["x"], embeddings=[[1]])
    with pytest.raises(errors.InvalidArgument, match="the token is of collection"):
        await films.count(consistency=shoal.session(written))
    refused: list[tuple[Any, Any]] = [(shoal.session, "x"), (shoal.session, 3), (shoal.bounded, -1), (shoal.as_of, 0.5)]
    for make, value in refused:
        with pytest.raises(errors.InvalidArgument):
            make(value)


# --- embedding functions


async def test_documents_are_embedded(client: AsyncClient) -> None:
    words = Words()
    collection = await client.create_collection("c", embedding_function=words)
    assert collection.configuration == {"embedding_function": {"name": "words"}}
    await collection.add(ids=["a", "b"], documents=["x y", "zzz"])
    await collection.update(ids=["a", "b"], documents=[None, "w"])
    await collection.upsert(table=pa.table({"id": ["c"], "document": ["q q q"]}))
    await collection.update(ids=["a"], documents=["kept"], embeddings=[[7, 7]])
    got = await collection.get(include=["embeddings"])
    assert got.embeddings is not None
    assert got.embeddings.tolist() == [[7, 7], [1, 1], [5, 3]]
    assert words.embedded == [["x y", "zzz"], ["w"], ["q q q"]]


async def test_the_stored_function_is_found_again(client: AsyncClient) -> None:
    words, other = Words(), CallableEmbedding("other", 2, lambda texts: [[0, 0] for _ in texts])
    await client.create_collection("c", embedding_function=words)
    with pytest.raises(errors.InvalidArgument, match="'words', but 'other'"):
        await client.get_collection("c", embedding_function=other)
    with pytest.raises(errors.InvalidArgument, match="'words', but 'other'"):
        await client.get_or_create_collection("c", embedding_function=other)
    unknown = await client.get_collection("c")
    with pytest.raises(errors.FailedPrecondition, match="'words', which is not built in"):
        await unknown.query(query_texts="x")
    await unknown.add(ids=["a"], embeddings=[[1, 2]])
    known = await client.get_collection("c", embedding_function=words)
    assert (await known.query(query_texts="x")).ids == [["a"]]
    assert [collection.name for collection in await client.list_collections()] == ["c"]


async def test_the_clients_function_is_the_default(api: FakeApi) -> None:
    words = Words()
    async with client_of(api, embedding_function=words) as client:
        created = await client.create_collection("c")
        await created.add(ids=["a"], documents=["x"])
        again = await client.get_collection("c")
        assert (await again.query(query_texts="x")).ids == [["a"]]
    assert words.embedded == [["x"], ["x"]]
    assert created.configuration == {"embedding_function": {"name": "words"}}


async def test_the_default_function_is_not_forced_on_foreign_vectors(client: AsyncClient) -> None:
    collection = await client.create_collection("c")
    assert collection.configuration == {}
    await collection.add(ids=["a"], embeddings=[[1, 2]])
    await collection.update(ids=["a"], documents=["just text"])
    got = await collection.get(include=["documents", "embeddings"])
    assert got.documents == ["just text"]
    assert got.embeddings is not None
    assert got.embeddings.tolist() == [[1, 2]]


async def test_what_is_no_function_is_refused(client: AsyncClient) -> None:
    for function in (len, Words):
        with pytest.raises(errors.InvalidArgument, match="CallableEmbedding"):
            await client.create_collection("c", embedding_function=function)  # type: ignore[arg-type]
    collection = await client.create_collection("c", embedding_function=Words(dimension=3))
    with pytest.raises(errors.DimensionMismatch, match="dimension 2, expected 3"):
        await collection.add(ids=["a"], documents=["x"])


# --- catalog


async def test_catalog(client: AsyncClient, api: FakeApi) -> None:
    created = await client.create_collection("c", metadata={"a": 1}, space="cosine", shards=2, dimension=3)
    assert (created.name, created.metadata, created.space, created.shards) == ("c", {"a": 1}, "cosine", 2)
    assert created.dimension == 3
    assert "Collection('c'" in repr(created)
    with pytest.raises(errors.AlreadyExists):
        await client.create_collection("c")
    assert (await client.get_or_create_collection("c")).id == created.id
    await created.modify(name="d", metadata={"b": 2})
    assert (created.name, created.metadata) == ("d", {"b": 2})
    assert (await client.get_collection("d")).id == created.id
    assert await created.count() == 0, "a handle survives a rename"
    assert await client.count_collections() == 1
    await client.delete_collection("d")
    with pytest.raises(errors.NotFound):
        await client.get_collection("d")
    with pytest.raises(errors.InvalidArgument, match="one of l2, cosine, ip"):
        await client.create_collection("x", space="dot")
    with pytest.raises(errors.InvalidArgument, match="shards"):
        await client.create_collection("x", shards=0)


async def test_tenants_and_databases(client: AsyncClient, api: FakeApi) -> None:
    await client.create_tenant("acme")
    assert await client.get_tenant("acme") == Tenant("acme")
    assert (await client.create_database("db")).tenant == "default_tenant"
    assert (await client.create_database("db", tenant="acme")).tenant == "acme"
    assert [found.name for found in await client.list_databases()] == ["db", "default_database"]
    assert (await client.get_database("db")).name == "db"
    await client.delete_database("db", tenant="acme")
    assert await client.list_databases(tenant="acme") == []
    assert await client.status() == {"members": {}}
    assert await client.heartbeat() >= 0
    assert "fake" in repr(client)


# --- waiting and loading


async def test_wait_until_indexed(client: AsyncClient, films: AsyncCollection, api: FakeApi) -> None:
    clock = client._caller.clock
    assert isinstance(clock, VirtualClock)
    api.indexed.extend([0, 1, 3])
    seen: list[int] = []
    status = await clock.run(films.wait_until_indexed(on_progress=lambda status: seen.append(status.indexed_offset)))
    assert seen == [0, 1, 3]
    assert status.indexed_offset == 3
    api.indexed.extend([0] * 50)
    with pytest.raises(errors.DeadlineExceeded, match="offset 0 of 3 within 2 s"):
        await clock.run(films.wait_until_indexed(timeout_s=2))


def numbered(count: int, start: int = 0) -> pa.Table:
    ids = [f"r{number}" for number in range(start, start + count)]
    vectors = np.arange(start * 2, (start + count) * 2, dtype=np.float32)
    embeddings = pa.FixedSizeListArray.from_arrays(pa.array(vectors), 2)
    return pa.table({"id": ids, "embedding": embeddings, "number": range(start, start + count)})


async def test_load_cuts_a_table(films: AsyncCollection, api: FakeApi) -> None:
    progress: list[tuple[int, int | None]] = []
    loaded = await films.load(numbered(1050), batch_size=100, on_progress=lambda *done: progress.append(done))
    assert (loaded.records, loaded.batches) == (1050, 11)
    assert loaded.token is not None
    assert loaded.token.offset == 1053
    assert progress[-1] == (1050, 1050)
    assert await films.count(where={"number": {"$gte": 0}}) == 1050
    assert max(call["batch"].num_rows for call in api.seen("write")) == 100


async def test_load_takes_streams(films: AsyncCollection) -> None:
    def parts() -> Iterator[pa.Table | dict[str, Any]]:
        yield numbered(7)
        yield {"ids": ["m"], "embeddings": [[0, 0]]}
        yield numbered(5, start=7).to_batches()[0]

    loaded = await films.load(parts(), batch_size=4, in_flight=2, operation="upsert")
    assert (loaded.records, loaded.batches) == (13, 5)
    table = numbered(3, start=100)
    reader = pa.RecordBatchReader.from_batches(table.schema, table.to_batches())
    assert (await films.add_batches(reader)).batches == 1
    assert (await films.load([])).token is None


async def test_load_keeps_at_most_so_many_in_flight(films: AsyncCollection, api: FakeApi) -> None:
    running, most = 0, 0

    async def watch() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(5):
            await VirtualClock().sleep(0)
        running -= 1

    api.before = watch
    await films.load(numbered(20), batch_size=1, in_flight=3)
    assert 1 < most <= 3


async def test_a_failed_load_says_what_was_written(films: AsyncCollection, api: FakeApi) -> None:
    def parts() -> Iterator[pa.Table]:
        yield numbered(4)
        yield pa.table({"id": ["x", "x"], "embedding": [[1.0, 1.0]] * 2})
        yield numbered(4, start=10)

    with pytest.raises(errors.InvalidArgument, match="'x' occur twice") as caught:
        await films.load(parts(), in_flight=1)
    assert "4 records in 1 batches had been written" in caught.value.__notes__[0]
    assert await films.count(where={"number": {"$gte": 0}}) == 4
