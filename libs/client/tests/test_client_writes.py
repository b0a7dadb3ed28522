"""Outcomes, conditions and conditional writes, on the oracle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import shoal
from libs.client.tests.client_support import Fail, FakeApi, Words, client_of
from shoal import errors
from shoal._written import write_result
from shoal.aio import AsyncCollection
from shoal_core import contracts
from shoal_core.consistency import VersionToken
from shoal_core.limits import Limits
from shoal_testing.virtual_clock import SeededRandom


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
async def films(api: FakeApi) -> AsyncIterator[AsyncCollection]:
    async with client_of(api, random=SeededRandom()) as client:
        films = await client.create_collection("films", embedding_function=Words())
        await films.add(
            ids=["jaws", "nemo"], embeddings=[[0, 0], [3, 4]], metadatas=[{"year": 1975, "seen": 1}, {"year": 2003}]
        )
        yield films


# --- outcomes


def test_an_outcome_of_a_later_release_is_named_by_its_number() -> None:
    written = contracts.WriteResult(VersionToken("c", "i", 2), 1, 2, outcomes=bytes([int(contracts.Outcome.ADDED), 99]))
    assert write_result(written).outcomes == ["added", "outcome_99"]


async def test_outcomes_say_what_happened(films: AsyncCollection, api: FakeApi) -> None:
    added = await films.add(ids=["jaws", "alien"], embeddings=[[1, 1], [2, 2]], outcomes=True)
    assert added.outcomes == ["existed", "added"]
    updated = await films.update(ids=["jaws", "nobody"], metadatas=[{"a": 1}, {"a": 1}], outcomes=True)
    assert updated.outcomes == ["updated", "missing"]
    upserted = await films.upsert(ids=["jaws", "dory"], embeddings=[[1, 1], [2, 2]], outcomes=True)
    assert upserted.outcomes == ["updated", "added"]
    assert (await films.delete(["dory", "dory2"], outcomes=True)).outcomes == ["deleted", "missing"]
    assert (added.records, added.first_offset, added.token.offset, added.read_offset) == (2, 3, 4, None)
    assert (await films.add(ids=["x"], embeddings=[[1, 1]])).outcomes is None
    assert [call["outcomes"] for call in api.seen("write")[1:]] == [True] * 4 + [False]


async def test_a_delete_by_filter_names_its_snapshot(films: AsyncCollection, api: FakeApi) -> None:
    deleted = await films.delete(where={"year": {"$gt": 1900}}, allow_scan=True)
    assert (deleted.records, deleted.read_offset, deleted.outcomes) == (2, 2, None)
    assert api.seen("delete_where")[-1]["allow_scan"] is True
    await films.add(ids=["a", "b"], embeddings=[[1, 1], [2, 2]], metadatas={"n": [1, 1]})
    assert (await films.delete(ids=["a", "x"], where={"n": 1}, outcomes=True)).outcomes == ["deleted"]
    assert api.seen("delete_where")[-1]["allow_scan"] is False


async def test_a_result_of_a_write_is_a_moment(films: AsyncCollection) -> None:
    first = await films.update(ids=["jaws"], metadatas=[{"seen": 2}])
    await films.update(ids=["jaws"], metadatas=[{"seen": 3}])
    for moment in (first, first.token, str(first.token), first.token.offset):
        got = await films.get("jaws", consistency=shoal.as_of(moment))
        assert got.metadatas == [{"year": 1975, "seen": 2}]


# --- conditions


async def test_a_condition_holds_until_one_of_its_ids_is_written(films: AsyncCollection, api: FakeApi) -> None:
    got = await films.get(["jaws"])
    unchanged = shoal.unless_written_since(got, ["jaws", "nobody"])
    assert unchanged == shoal.Condition(2, ("jaws", "nobody"))
    await films.update(ids=["nemo"], metadatas=[{"a": 1}])
    written = await films.update(ids=["nemo"], metadatas=[{"a": 1}], condition=unchanged)
    await films.add(ids=["nobody"], embeddings=[[1, 1]])
    writes: list[dict[str, Any]] = [
        {"verb": "add", "ids": ["z"], "embeddings": [[1, 1]]},
        {"verb": "upsert", "ids": ["z"], "embeddings": [[1, 1]]},
        {"verb": "update", "ids": ["nemo"], "metadatas": [{"a": 2}]},
        {"verb": "delete", "ids": ["nemo"]},
    ]
    for arguments in writes:
        with pytest.raises(errors.WriteConflict):
            await getattr(films, arguments.pop("verb"))(condition=unchanged, **arguments)
    assert await films.count() == 3
    await films.delete("nemo", condition=shoal.unless_written_since(written, "nemo"))
    assert await films.count() == 2


@pytest.mark.parametrize(
    ("moment", "ids", "field"),
    [(-1, ["a"], "moment"), (True, ["a"], "moment"), (None, ["a"], "moment"), (1, [], "ids"), (1, [2], "ids[0]")],
)
def test_what_is_no_condition_is_refused(moment: Any, ids: Any, field: str) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        shoal.unless_written_since(moment, ids)
    assert caught.value.field == field


async def test_a_delete_by_filter_takes_no_condition(films: AsyncCollection) -> None:
    with pytest.raises(errors.InvalidArgument, match="depends on its own matches"):
        await films.delete(where={"a": 1}, condition=shoal.unless_written_since(1, "a"))


# --- blocks


async def test_a_block_is_one_batch_on_condition_of_what_it_read(films: AsyncCollection, api: FakeApi) -> None:
    before = len(api.seen("write"))
    async with films.conditional(outcomes=True) as txn:
        [film] = await txn.get(["jaws"])
        assert film.metadata is not None
        await txn.update(ids=["jaws"], metadatas=[{"seen": film.metadata["seen"] + 1, "year": None}])
        assert (await txn.get(["nobody"])).ids == []
        await txn.add(ids=["nobody"], documents=["two words"], uris=["file:///n"])
        await txn.upsert(table=pa.table({"id": ["x"], "embedding": [[5.0, 5.0]], "tags": [["a", "b"]]}))
        await txn.delete(["nemo", "never"])
        assert len(api.seen("write")) == before, "nothing is sent within the block"
        assert txn.result is None
    assert txn.result is not None
    assert txn.result.outcomes == ["updated", "added", "added", "deleted", "missing"]
    (call,) = api.seen("write")[before:]
    assert call["condition"] == shoal.Condition(2, ("jaws", "nobody"))
    assert call["idempotency_key"]
    got = await films.get(include=["documents", "metadatas", "embeddings", "uris"])
    assert got.ids == ["jaws", "nobody", "x"]
    assert got.metadatas == [{"seen": 2}, {}, {"tags": ["a", "b"]}]
    assert (got.documents, got.uris) == ([None, "two words", None], [None, "file:///n", None])
    assert got.embeddings is not None
    np.testing.assert_array_equal(got.embeddings, [[0, 0], [9, 2], [5, 5]])


async def test_reads_of_a_block_are_of_one_snapshot(films: AsyncCollection, api: FakeApi) -> None:
    async with films.conditional() as txn:
        await asyncio.gather(txn.get(["jaws"]), txn.get(["jaws"]))
        await films.update(ids=["nemo"], metadatas=[{"year": 2004}])
        await txn.add(ids=["own"], embeddings=[[1, 1]])
        got = await txn.get(where={"year": {"$gt": 2000}}, include=["metadatas"], limit=5, allow_scan=True)
        assert got.metadatas == [{"year": 2003}]
        assert len(await txn.get()) == 2, "own writes come after the reads"
        txn._batches.clear()
    levels = [call["consistency"] for call in api.seen("get")]
    assert levels == [shoal.STRONG, *[shoal.as_of(2)] * 3]
    assert api.seen("get")[2]["allow_scan"] is True


@pytest.mark.parametrize("written", ["jaws", "nobody", "nemo"])
async def test_a_record_read_and_written_since_is_a_conflict(films: AsyncCollection, written: str) -> None:
    """The ids asked for, whether they exist or not, and those that a filter found."""
    async with films.conditional() as other:
        await other.get(["jaws", "nobody"])
        await other.get(where={"year": 2003})
        await other.add(ids=["new"], embeddings=[[1, 1]])
        await films.upsert(ids=["alien"], embeddings=[[1, 1]], metadatas=[{"year": 2003}])
    assert other.result is not None, "a record that comes to match a filter is no conflict"
    txn = films.conditional()

    async def overtaken() -> None:
        async with txn:
            await txn.get(["jaws", "nobody"])
            await txn.get(where={"year": 2003})
            await txn.add(ids=["newer"], embeddings=[[1, 1]])
            await films.upsert(ids=[written], embeddings=[[1, 1]])

    with pytest.raises(errors.WriteConflict):
        await overtaken()
    assert txn.result is None
    assert (await films.get("newer")).ids == []


async def test_a_block_says_so_when_it_has_read_more_than_can_be_watched(
    films: AsyncCollection, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(films, "_limits", Limits(batch_records=3))
    sent = len(api.seen("write"))
    async with films.conditional() as txn:
        assert len(await txn.get(["nobody"])) == 0
        assert len(await txn.get()) == 2
        with pytest.raises(errors.InvalidArgument, match="has read 4 records, at most 3") as caught:
            await txn.get(["somebody"])
        assert caught.value.field == "ids"
    assert len(api.seen("write")) == sent


@pytest.mark.parametrize("key", [5, b"key", "\ud800"])
async def test_what_is_no_key_never_leaves_the_client(films: AsyncCollection, api: FakeApi, key: Any) -> None:
    sent = len(api.calls)
    writes: list[Callable[[], Any]] = [
        lambda: films.add(ids=["x"], embeddings=[[1, 1]], idempotency_key=key),
        lambda: films.delete(where={"a": 1}, idempotency_key=key),
    ]
    for write in writes:
        with pytest.raises(errors.InvalidArgument) as caught:
            await write()
        assert caught.value.field == "idempotency_key"
    with pytest.raises(errors.InvalidArgument) as caught:
        await films.get(limit=1, cursor=key)
    assert caught.value.field == "cursor"
    assert len(api.calls) == sent


async def test_a_read_older_than_the_log_is_stale(films: AsyncCollection, api: FakeApi) -> None:
    async def late() -> None:
        async with films.conditional() as txn:
            await txn.get(["jaws"])
            await txn.delete("jaws")
            api.state[films.id].trim_floor = 3

    with pytest.raises(errors.StaleRead):
        await late()
    assert await films.count() == 2


async def test_a_block_that_raises_or_only_reads_writes_nothing(films: AsyncCollection, api: FakeApi) -> None:
    sent, txn = len(api.seen("write")), films.conditional()

    async def broken() -> None:
        async with txn:
            await txn.delete("jaws")
            raise RuntimeError("changed my mind")

    with pytest.raises(RuntimeError, match="changed my mind"):
        await broken()
    async with films.conditional() as reader:
        await reader.get()
    assert len(api.seen("write")) == sent
    assert (txn.result, reader.result) == (None, None)
    for call in (txn.get(), txn.add(ids=["a"], embeddings=[[1, 1]]), txn.delete("a"), txn.__aenter__()):
        with pytest.raises(errors.FailedPrecondition, match="has ended"):
            await call


async def test_a_block_that_did_not_read_has_no_condition(films: AsyncCollection, api: FakeApi) -> None:
    async with films.conditional() as txn:
        await txn.delete("jaws")
    async with films.conditional() as txn:
        assert len(await txn.get(where={"year": 1})) == 0
        await txn.delete("nemo")
    assert [call["condition"] for call in api.seen("write")[-2:]] == [None, None]
    assert await films.count() == 0


async def test_an_answer_that_got_lost_is_no_conflict_with_itself(films: AsyncCollection, api: FakeApi) -> None:
    async with films.conditional() as txn:
        await txn.get(["jaws"])
        await txn.delete("jaws")
        api.script.append(Fail(errors.OutcomeUnknown("lost"), after=True))
    assert txn.result is not None
    assert len({call["idempotency_key"] for call in api.seen("write")[-2:]}) == 1


async def test_bad_operations_raise_where_they_are_made(films: AsyncCollection, api: FakeApi) -> None:
    sent = len(api.seen("write"))
    async with films.conditional() as txn:
        with pytest.raises(errors.DimensionMismatch, match="dimension 3, the collection has 2"):
            await txn.add(ids=["a"], embeddings=[[1, 2, 3]])
        with pytest.raises(errors.InvalidArgument, match="needs embeddings"):
            await txn.upsert(ids=["a"])
        with pytest.raises(errors.InvalidArgument, match="at least one"):
            await txn.delete([])
    assert len(api.seen("write")) == sent


async def test_the_first_vectors_of_a_block_fix_its_dimension(api: FakeApi) -> None:
    async with client_of(api) as client:
        new = await client.create_collection("new")
        async with new.conditional() as txn:
            await txn.update(ids=["b"], metadatas=[{"n": 1}])
            await txn.add(ids=["a"], embeddings=[[1, 2, 3]])
            with pytest.raises(errors.DimensionMismatch, match="dimension 2, the collection has 3"):
                await txn.add(ids=["b"], embeddings=[[1, 2]])
        assert new.dimension == 3


async def test_a_block_is_within_the_limits_of_one_batch(api: FakeApi) -> None:
    async with client_of(api, limits=Limits(batch_records=3)) as client:
        collection = await client.create_collection("c")
        txn = collection.conditional()
        await txn.delete(["a", "b"])
        await txn.delete(["c", "d"])
        with pytest.raises(errors.InvalidArgument, match="4 records, at most 3 in one batch; make several of it"):
            await txn.__aexit__(None, None, None)
        assert api.seen("write") == []
