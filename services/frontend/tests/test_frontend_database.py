"""The verbs: deletes by filter under concurrent writes, retries with the same key, conditions, and what operators see."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from services.frontend.tests.frontend_support import DIMENSION, Cluster, put
from shoal_core.contracts import (
    AppendRequest,
    CollectionRef,
    Condition,
    IndexingStatus,
    NewCollection,
    Tenant,
    WriteResult,
)
from shoal_core.errors import (
    BackPressure,
    DimensionMismatch,
    IdempotencyMismatch,
    InvalidArgument,
    OutcomeUnknown,
    Unavailable,
    WriteConflict,
)
from shoal_core.filters import parse_where, parse_where_document
from shoal_core.limits import Limits
from shoal_core.ranking import DenseQuery, Knn, Search
from shoal_testing.fakes import DEFAULT_DATABASE, DEFAULT_TENANT
from shoal_testing.schedules import Gate, Turns, run_quietly
from shoal_testing.strategies import Op, to_operation_batch

RED = parse_where({"color": "red"})


def play(scenario: Callable[[Cluster], Coroutine[Any, Any, None]], *, shards: int = 1, **fields: Any) -> None:
    async def main() -> None:
        cluster = await Cluster(**fields).start(shards)
        await scenario(cluster)
        await cluster.close()

    run_quietly(main())


def deleted(cluster: Cluster, result: WriteResult) -> list[str]:
    """The ids that a delete removed."""
    return [op[1] for op in cluster.batches[result.token.offset]] if result.records else []


def colored(*names: str, color: str = "red") -> list[Op]:
    return [put(name, n, color=color) for n, name in enumerate(names)]


# --- delete


@pytest.mark.parametrize("shards", [1, 3])
def test_deleting_by_filter_by_id_and_by_both(shards: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.write(*colored("a", "b", "c", "d"), *colored("e", "f", color="blue"))
        await cluster.compact()
        await cluster.write(*colored("g", "h"), put("doc", text="delete me"))
        database = cluster.database

        async def delete(expected: list[str], **fields: Any) -> None:
            arguments = {"ids": None, "where": None} | fields
            result = await database.delete_where(cluster.ref, **arguments)
            assert deleted(cluster, result) == expected
            assert result.records == len(expected)
            assert await cluster.get() == max(cluster.batches)

        await delete(["a", "g"], ids=["g", "a", "e", "nobody"], where=RED)
        await delete(["b"], where=RED, limit=1)
        await delete([], where=RED, limit=0)
        await delete(["e", "f"], ids=["f", "e", "nobody"], limit=5)
        await delete(["doc"], where=parse_where_document({"$contains": "delete"}))
        await delete([], ids=[])
        await delete([], where=parse_where({"color": "green"}))
        await delete(["h", "nobody"], ids=["h", "nobody", "h"])  # ids alone are deleted unread
        await delete(["c", "d"], where=RED)
        await delete([], where=RED)

    play(scenario, shards=shards)


def test_a_record_that_no_longer_matches_is_not_deleted() -> None:
    gate = Gate("append")

    async def scenario(cluster: Cluster) -> None:
        gate.closed = set()
        await cluster.write(*colored("a", "b"))
        gate.closed = {"append"}
        delete = asyncio.create_task(cluster.database.delete_where(cluster.ref, ids=None, where=RED))
        await gate.until_held()  # it has read
        other = cluster.system.new_database()
        await cluster.write(put("a", 5, color="blue"), database=other)
        await cluster.write(*colored("late"), database=other)
        gate.open()
        result = await delete
        assert deleted(cluster, result) == ["b", "late"], "read again, so the new match goes too"
        assert result.records == 2
        assert await cluster.get() == max(cluster.batches)
        assert gate.calls.count("append") == 3

    play(scenario, log=(gate, Turns(0)))


def test_a_match_written_after_the_read_stays() -> None:
    gate = Gate()

    async def scenario(cluster: Cluster) -> None:
        await cluster.write(*colored("a", "b"))
        gate.closed = {"append"}
        delete = asyncio.create_task(cluster.database.delete_where(cluster.ref, ids=None, where=RED))
        await gate.until_held()
        await cluster.write(*colored("late"), database=cluster.system.new_database())
        gate.open()
        assert deleted(cluster, await delete) == ["a", "b"]
        assert await cluster.get() == max(cluster.batches)
        assert (await cluster.database.count(cluster.ref)).count == 1

    play(scenario, log=(gate, Turns(0)))


def test_a_log_that_was_trimmed_beyond_the_read_is_read_again() -> None:
    gate = Gate()

    async def scenario(cluster: Cluster) -> None:
        await cluster.write(*colored("a", "b"))
        gate.closed = {"append"}
        delete = asyncio.create_task(cluster.database.delete_where(cluster.ref, ids=None, where=RED))
        await gate.until_held()
        await cluster.write(*colored("c"), database=cluster.system.new_database())
        await cluster.compact(trim=True)
        gate.open()
        assert deleted(cluster, await delete) == ["a", "b", "c"]

    play(scenario, log=(gate, Turns(0)))


def test_matches_that_never_hold_still_are_a_conflict() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.write(*colored("a"))
        other = cluster.system.new_database()
        busy = False

        async def touch(name: str) -> None:
            nonlocal busy
            if name == "append" and not busy:
                busy = True
                await cluster.write(put("a", 1, color="red"), database=other)
                busy = False

        cluster.log_hooks = (touch, touch)
        with pytest.raises(WriteConflict):
            await cluster.frontend(7).delete_where(cluster.ref, ids=None, where=RED)
        assert await cluster.get() == max(cluster.batches)

    play(scenario)


@pytest.mark.parametrize("seed", range(10))
def test_deletes_among_writes(seed: int) -> None:
    """A delete removes records that matched at its place in the log, and at least those that matched when it began and stayed."""

    async def scenario(cluster: Cluster) -> None:
        chance = random.Random(seed)
        turns = Turns(seed, (0, 5, 30, 100))
        frontends = [cluster.frontend(number) for number in range(2)]
        names = [f"id-{n}" for n in range(8)]

        async def write() -> None:
            await turns()
            ops = [put(name, 0, color=chance.choice(["red", "blue"])) for name in chance.sample(names, 3)]
            await cluster.write(*ops, database=chance.choice(frontends))

        async def delete() -> None:
            await turns()
            begin = max(cluster.batches, default=0)
            limit = chance.choice([None, None, 2])
            result = await chance.choice(frontends).delete_where(cluster.ref, ids=None, where=RED, limit=limit)
            gone = deleted(cluster, result)
            deletes.append((begin, result, gone, limit))

        async def compact() -> None:
            await turns()
            async with compacting:
                await cluster.compact(trim=True)

        compacting = asyncio.Lock()
        deletes: list[tuple[int, WriteResult, list[str], int | None]] = []
        kinds = chance.choices((write, delete, compact), (25, 12, 4), k=45)
        await asyncio.gather(*(kind() for kind in kinds))
        for begin, result, gone, limit in deletes:
            before = result.token.offset - result.records
            red = {record["id"] for record in cluster.oracle(before).get(where={"color": "red"})}
            assert set(gone) <= red
            if limit is not None:
                assert len(gone) <= limit
                continue
            held = {record["id"] for record in cluster.oracle(begin).get(where={"color": "red"})}
            touched = {op[1] for end, ops in cluster.batches.items() if begin < end <= before for op in ops}
            assert held - touched <= set(gone)
        assert await cluster.get() == max(cluster.batches)

    play(scenario, shards=3, seed=seed)


# --- idempotency


@pytest.mark.parametrize("error", [Unavailable, OutcomeUnknown])
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_same_key_again_is_the_same_write(error: type[Exception], when: str) -> None:
    async def scenario(cluster: Cluster) -> None:
        failures = 1

        def fail(name: str) -> None:
            nonlocal failures
            if name == "append" and failures:
                failures -= 1
                raise error("no answer")

        setattr(cluster.system.log, when, fail)
        batch = to_operation_batch(colored("a", "b"), DIMENSION)
        with pytest.raises(error):
            await cluster.database.write(cluster.ref, batch, idempotency_key="key")
        results = [
            await database.write(cluster.ref, batch, idempotency_key="key")
            for database in (cluster.database, cluster.system.new_database())
        ]
        assert results[0] == results[1]
        assert (results[0].first_offset, results[0].token.offset, results[0].records) == (1, 2, 2)
        assert (await cluster.database.indexing_status(cluster.ref)).head_offset == 2
        with pytest.raises(IdempotencyMismatch):
            await cluster.database.write(
                cluster.ref, to_operation_batch(colored("c"), DIMENSION), idempotency_key="key"
            )

    play(scenario)


def test_writes_without_a_key_of_the_user_get_one_each() -> None:
    keys: list[str] = []

    async def scenario(cluster: Cluster) -> None:
        append = cluster.system.log.append

        async def noted(request: AppendRequest) -> Any:
            keys.append(request.idempotency_key)
            return await append(request)

        cluster.system.log.append = noted  # type: ignore[method-assign]
        database = cluster.frontend(3)
        batch = to_operation_batch(colored("a"), DIMENSION)
        for _ in range(3):
            await database.write(cluster.ref, batch)
        await database.delete_where(cluster.ref, ids=["a"], where=None)
        assert (await database.indexing_status(cluster.ref)).head_offset == 4

    play(scenario)
    assert all(keys)
    assert len(set(keys)) == 4


def test_a_retried_write_keeps_its_key_when_the_name_was_looked_up_again() -> None:
    async def scenario(cluster: Cluster) -> None:
        by_name = CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, "things")
        await cluster.database.write(by_name, to_operation_batch(colored("a"), DIMENSION))
        await cluster.system.catalog.modify_collection(cluster.ref.id, metadata={"a": 1})
        result = await cluster.database.write(
            by_name, to_operation_batch(colored("b"), DIMENSION), idempotency_key="key"
        )
        again = await cluster.system.new_database().write(
            by_name, to_operation_batch(colored("b"), DIMENSION), idempotency_key="key"
        )
        assert again == result

    play(scenario)


@pytest.mark.parametrize("by", ["ids", "filter"])
def test_a_delete_tried_again_deletes_nothing_more(by: str) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.write(*colored("a", "b"))
        fields: dict[str, Any] = {"ids": ["a", "b"], "where": None} if by == "ids" else {"ids": None, "where": RED}
        first = await cluster.database.delete_where(cluster.ref, **fields, idempotency_key="key")
        again = await cluster.database.delete_where(cluster.ref, **fields, idempotency_key="key")
        assert again.token == first.token
        assert (await cluster.database.indexing_status(cluster.ref)).head_offset == 4

    play(scenario)


def test_a_delete_tried_again_after_other_records_came_to_match_says_so() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.write(*colored("a", "b"))
        await cluster.database.delete_where(cluster.ref, ids=None, where=RED, idempotency_key="key")
        await cluster.write(*colored("late"))
        with pytest.raises(IdempotencyMismatch, match="if it was this delete, it stands") as caught:
            await cluster.database.delete_where(cluster.ref, ids=None, where=RED, idempotency_key="key")
        assert caught.value.field == "idempotency_key"
        assert (await cluster.database.count(cluster.ref)).count == 1

    play(scenario)


@pytest.mark.parametrize("shards", [1, 3])
def test_more_matches_than_one_write_can_delete(shards: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.write(*colored(*(f"id-{n}" for n in range(7))))
        small = replace(cluster.database, limits=Limits(batch_records=3))
        for limit in (None, 4, 7):
            with pytest.raises(InvalidArgument, match="more than 3 records match") as caught:
                await small.delete_where(cluster.ref, ids=None, where=RED, limit=limit)
            assert caught.value.field == "limit"
        parts = [await small.delete_where(cluster.ref, ids=None, where=RED, limit=3) for _ in range(4)]
        assert [part.records for part in parts] == [3, 3, 1, 0]
        assert (await cluster.database.count(cluster.ref)).count == 0

    play(scenario, shards=shards)


# --- conditions and pressure


def test_a_conditional_write_sees_writes_to_its_read_set_only() -> None:
    async def scenario(cluster: Cluster) -> None:
        read = await cluster.write(*colored("a", "b"))
        await cluster.write(put("b", 1))
        condition = Condition(read, ("a",))
        assert await cluster.write(put("a", 2), condition=condition) == 4
        with pytest.raises(WriteConflict):
            await cluster.write(put("a", 3), condition=condition)
        with pytest.raises(WriteConflict):
            await cluster.write(put("c", 3), condition=Condition(read, ("b", "x")))
        assert await cluster.get() == 4

    play(scenario)


def test_too_much_that_is_not_compacted_is_refused_until_it_is() -> None:
    async def scenario(cluster: Cluster) -> None:
        cluster.system.log.uncompacted_records = 3
        await cluster.write(*colored("a", "b", "c"))
        with pytest.raises(BackPressure) as caught:
            await cluster.write(put("d"))
        assert caught.value.retry_after_ms > 0
        assert await cluster.get() == 3
        await cluster.compact()
        assert await cluster.write(put("d")) == 4

    play(scenario)


# --- what operators and users see


@pytest.mark.parametrize("shards", [1, 3])
def test_indexing_status(shards: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        names = [f"id-{n}" for n in range(12)]
        status = cluster.database.indexing_status
        assert await status(cluster.ref) == IndexingStatus(0, 0, 0, 0)
        await cluster.write(*colored(*names))
        assert await status(cluster.ref) == IndexingStatus(12, 0, 0, 0)
        await cluster.compact()
        await cluster.write(*colored("more"))
        assert await status(cluster.ref) == IndexingStatus(13, 12, 1, shards)

    play(scenario, shards=shards)


def test_status_tells_members_and_lag() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.write(*colored("a", "b"))
        status = await cluster.database.status()
        assert status["registry"] == {"connected": True, "revision": 1}
        assert list(status["members"]) == ["querynode"]
        [item] = status["backlog"]
        assert (item["collection"], item["head_offset"], item["compacted_offset"]) == ("things", 2, 0)
        assert status["limits"]["batch_records"] == 10_000

    play(scenario)


def test_tenants_databases_and_collections() -> None:
    async def scenario(cluster: Cluster) -> None:
        database = cluster.database
        await database.create_tenant("tenant")
        assert await database.get_tenant("tenant") == Tenant("tenant")
        made = await database.create_database("tenant", "first")
        assert await database.get_database("tenant", "first") == made
        for name in ("one", "two", "three"):
            await database.create_collection(NewCollection("tenant", "first", name, metadata={"n": 1}))
        assert await database.count_collections("tenant", "first") == 3
        page = await database.list_collections("tenant", "first", limit=2, offset=1)
        assert [item.name for item in page] == ["two", "three"]
        ref = CollectionRef("tenant", "first", "two")
        changed = await database.modify_collection(ref, name="second", metadata={"n": 2}, configuration={"c": 1})
        assert (changed.name, changed.metadata, changed.configuration) == ("second", {"n": 2}, {"c": 1})
        assert await database.get_collection(replace(ref, name="second")) == changed
        await database.delete_collection(replace(ref, name="second"))
        assert await database.count_collections("tenant", "first") == 2
        await database.delete_database("tenant", "first")
        assert await database.list_databases("tenant") == []

    play(scenario)


def test_the_first_write_sets_the_dimension_for_everybody() -> None:
    async def scenario(cluster: Cluster) -> None:
        other = cluster.system.new_database()
        await other.get(cluster.ref)  # it remembers the collection without a dimension
        await cluster.write(put("a"))
        with pytest.raises(InvalidArgument) as caught:
            await other.write(cluster.ref, to_operation_batch([("add", "b", (1.0,) * 3, None, None, None)], 3))
        assert caught.value.field == "embeddings"
        assert await cluster.get(database=other) == 1
        third = cluster.system.new_database()
        third._names.learned(cluster.ref, replace(await third.get_collection(cluster.ref), dimension=None))
        with pytest.raises(DimensionMismatch) as caught:
            await third.search(cluster.ref, [Search(rank=Knn(DenseQuery(np.ones(3, np.float32))))])
        assert caught.value.field == "searches[0].rank.$knn.query"

    play(scenario)
