"""Schemas, pages, earlier snapshots, explained reads and scans, on the oracle."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

import shoal
from libs.client.tests.client_support import FakeApi, client_of
from shoal import Analyzer, Bm25, Index, Schema, SparseConfig, VectorConfig, errors
from shoal.aio import AsyncClient, AsyncCollection

SCHEMA = Schema(
    off=frozenset({Index.SUBSTRING}),
    keys={"year": {Index.INT: False}},
    analyzer=Analyzer(language="none"),
    bm25=Bm25(b=0.5),
    vector=VectorConfig(m=8),
    sparse={"words": SparseConfig(idf=True)},
)


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
async def client(api: FakeApi) -> AsyncIterator[AsyncClient]:
    async with client_of(api) as client:
        yield client


@pytest.fixture
async def numbers(client: AsyncClient) -> AsyncCollection:
    numbers = await client.create_collection("numbers")
    ids = [f"r{number}" for number in range(10)]
    await numbers.add(ids=ids, embeddings=[[number, 1] for number in range(10)], metadatas={"n": list(range(10))})
    return numbers


# --- schemas


@pytest.mark.parametrize("given", [SCHEMA, SCHEMA.to_json()], ids=["object", "json"])
async def test_a_schema_is_kept(client: AsyncClient, given: Any) -> None:
    created = await client.create_collection("c", schema=given)
    assert created.schema == SCHEMA
    assert (await client.get_collection("c")).schema == SCHEMA
    assert (await client.get_or_create_collection("d", schema=given)).schema == SCHEMA
    assert (await client.create_collection("e")).schema == Schema()


async def test_a_schema_is_changed(client: AsyncClient, api: FakeApi) -> None:
    created = await client.create_collection("c", schema=SCHEMA)
    changed = SCHEMA.to_json() | {"off": ["ranked"]}
    await created.modify(schema=changed)
    assert created.schema.to_json() == changed
    assert created.name == "c"
    await created.modify(metadata={"a": 1})
    assert [call["schema"] for call in api.seen("modify_collection")] == [created.schema, None]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"off": ["ints"]}, "schema.off"),
        ({"vectors": {}}, "schema.vectors"),
        (Schema(vector=VectorConfig(m=1)), "schema.vector.m"),
        ([], "schema"),
    ],
)
async def test_a_bad_schema_never_leaves_the_client(
    client: AsyncClient, numbers: AsyncCollection, api: FakeApi, given: Any, field: str
) -> None:
    api.calls.clear()
    for call in (client.create_collection("c", schema=given), numbers.modify(schema=given)):
        with pytest.raises(errors.InvalidArgument) as caught:
            await call
        assert caught.value.field == field
    with pytest.raises(errors.InvalidArgument, match="fixed when the collection is created"):
        await numbers.modify(schema=SCHEMA)
    assert api.calls == []


# --- pages


async def test_pages_are_of_one_snapshot(numbers: AsyncCollection, api: FakeApi) -> None:
    seen, offsets = [], set()
    async for page in numbers.pages(where={"n": {"$gte": 2}}, limit=3, include=["metadatas"], allow_scan=True):
        seen.append([metadata["n"] for metadata in page.metadatas or []])
        offsets.add(page.served_at.offset)
        await numbers.delete(["r9"])
        await numbers.add(ids=["late"], embeddings=[[0, 0]], metadatas=[{"n": 99}])
    assert seen == [[2, 3, 4], [5, 6, 7], [8, 9]]
    assert offsets == {10}
    calls = api.seen("get")
    assert [(call["limit"], call["allow_scan"]) for call in calls] == [(3, True)] * 3
    assert (calls[0]["cursor"], len({call["cursor"] for call in calls})) == ("", 3)


async def test_pages_leave_no_empty_one(numbers: AsyncCollection) -> None:
    assert [len(page) async for page in numbers.pages(limit=5)] == [5, 5]
    assert [len(page) async for page in numbers.pages(limit=5, offset=8)] == [2]
    assert [page async for page in numbers.pages(where={"n": 77})] == []
    assert [page.ids async for page in numbers.pages(["r3", "x"])] == [["r3"]]


async def test_a_cursor_by_hand(numbers: AsyncCollection) -> None:
    first = await numbers.get(limit=4, cursor="")
    assert first.cursor
    second = await numbers.get(limit=4, cursor=first.cursor)
    assert second.ids == ["r4", "r5", "r6", "r7"]
    assert (await numbers.get(limit=4)).cursor == ""
    for limit in (None, 0):
        with pytest.raises(errors.InvalidArgument, match="pages need a limit"):
            await numbers.get(limit=limit, cursor="")
    with pytest.raises(errors.InvalidArgument, match="limit"):
        _ = [page async for page in numbers.pages(limit=0)]


async def test_pages_of_an_earlier_snapshot(numbers: AsyncCollection) -> None:
    before = await numbers.get(limit=1)
    await numbers.delete(ids=[f"r{number}" for number in range(5)])
    pages = [page.ids async for page in numbers.pages(limit=8, consistency=shoal.as_of(before))]
    assert [len(page) for page in pages] == [8, 2]


# --- earlier snapshots


async def test_as_of_takes_what_reads_return(numbers: AsyncCollection) -> None:
    got, found = await numbers.get(limit=1), await numbers.query([0, 1], n_results=1)
    searched = await numbers.search(shoal.Search(limit=1))
    counted = await numbers.count_explained()
    await numbers.delete(["r0"])
    for moment in (got, found, searched, counted, got.served_at, got.served_at.offset):
        assert await numbers.count(consistency=shoal.as_of(moment)) == 10
    assert await numbers.count() == 9
    then = shoal.as_of(got)
    assert (await numbers.query([0, 1], n_results=1, consistency=then)).ids == [["r0"]]
    assert (await numbers.search(shoal.Search(limit=1), consistency=then)).ids == ["r0"]


async def test_a_token_of_another_collection_is_no_moment(client: AsyncClient, numbers: AsyncCollection) -> None:
    other = await client.create_collection("other")
    written = await other.add(ids=["x"], embeddings=[[1]])
    with pytest.raises(errors.InvalidArgument, match="the token is of collection"):
        await numbers.count(consistency=shoal.as_of(written))
    wrong: list[Any] = ["x", -1, 0.5, True, None, shoal.STRONG]
    for moment in wrong:
        with pytest.raises(errors.InvalidArgument):
            shoal.as_of(moment)


# --- explained reads and scans


async def test_reads_are_explained_when_asked(numbers: AsyncCollection) -> None:
    plan = {"plan": "exact"}
    assert (await numbers.get(explain=True)).explain == plan
    assert (await numbers.query([0, 1], explain=True)).explain == plan
    assert (await numbers.search(shoal.Search(), explain=True)).explain == plan
    counted = await numbers.count_explained(where={"n": {"$lt": 3}})
    assert (counted.count, counted.explain, counted.served_at.offset) == (3, plan, 10)
    assert (await numbers.get()).explain is None


async def test_scans_are_allowed_one_by_one(numbers: AsyncCollection, api: FakeApi) -> None:
    for allow in (False, True):
        arguments: dict[str, Any] = {"allow_scan": True} if allow else {}
        await numbers.get(**arguments)
        await numbers.query([0, 1], **arguments)
        await numbers.search(shoal.Search(), **arguments)
        await numbers.count(**arguments)
        await numbers.count_explained(**arguments)
        await numbers.delete(where={"n": 77}, **arguments)
    for verb in ("get", "query", "search", "delete_where"):
        assert [call["allow_scan"] for call in api.seen(verb)] == [False, True], verb
    assert [call["allow_scan"] for call in api.seen("count")] == [False, False, True, True]
