"""Reads at earlier offsets, pages of one snapshot, outcomes of writes and explained reads, while writes and compactions go on."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from services.frontend.tests.frontend_support import DIMENSION, Cluster, put, remove
from shoal_core.consistency import Consistency, ReadLevel, as_of
from shoal_core.contracts import Answer, Include, Outcome
from shoal_core.errors import InvalidArgument, NotFound, OffsetExpired, Unavailable
from shoal_core.filters import parse_where
from shoal_frontend.database import DatabaseService
from shoal_testing.oracle import OracleCollection
from shoal_testing.schedules import run_quietly
from shoal_testing.strategies import Op, to_operation_batch

NAMES = [f"n{number}" for number in range(12)]


def play(scenario: Callable[[Cluster], Coroutine[Any, Any, None]], *, shards: int = 1, **fields: Any) -> None:
    async def main() -> None:
        cluster = await Cluster(**fields).start(shards)
        await scenario(cluster)
        await cluster.close()

    run_quietly(main())


def batches(seed: int, count: int = 8) -> list[list[Op]]:
    """Batches of upserts and deletes of few ids, with a number that tells them apart."""
    chance = random.Random(seed)
    return [
        [
            remove(name) if chance.random() < 0.2 else put(name, chance.random(), n=chance.randrange(5))
            for name in chance.sample(NAMES, chance.randrange(1, 5))
        ]
        for _ in range(count)
    ]


def ids_of(answer: Answer) -> list[str]:
    names: list[str] = answer.rows.column("id").to_pylist()
    return names


async def written(cluster: Cluster, *ops: Op, **fields: Any) -> Any:
    return await cluster.database.write(cluster.ref, to_operation_batch(ops, DIMENSION), **fields)


def _apply(oracle: OracleCollection, ops: list[Op]) -> None:
    for op, name, embedding, document, uri, metadata in ops:
        oracle.apply(op, [name], [embedding], [document], [uri], [metadata])


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_every_earlier_offset_stays_readable_through_compactions(shards: int, seed: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        chance = random.Random(seed)
        oracle = OracleCollection("l2", DIMENSION)
        states: dict[int, list[str]] = {}
        where = {"n": {"$gte": 2}}
        for ops in batches(seed):
            await cluster.write(*ops)
            _apply(oracle, ops)
            states[oracle.head_offset] = [record["id"] for record in oracle.get(where=where)]
            if chance.random() < 0.5:
                await cluster.compact()
        fresh = cluster.system.new_node("fresh")
        restarted = DatabaseService(
            cluster.system.catalog, cluster.system.log, fresh, cluster.system.random, cluster.database.members
        )
        ends = sorted(states)
        for database in (cluster.database, restarted):
            for offset in chance.sample(range(1, ends[-1] + 1), ends[-1]):
                end = max((other for other in ends if other <= offset), default=0)
                expected = states.get(end, [])
                got = await database.get(cluster.ref, where=parse_where(where), consistency=as_of(offset))
                assert (ids_of(got), got.served_at.offset) == (expected, end)
                count = await database.count(cluster.ref, where=parse_where(where), consistency=as_of(offset))
                assert count.count == len(expected)
                near = await database.query(
                    cluster.ref,
                    np.zeros((1, DIMENSION), np.float32),
                    100,
                    where=parse_where(where),
                    consistency=as_of(offset),
                )
                assert sorted(ids_of(near)) == sorted(expected)
        await fresh.close()

    play(scenario, shards=shards)


@pytest.mark.parametrize("shards", [1, 3])
def test_an_offset_beyond_the_log_is_refused(shards: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.write(put("a"))
        for consistency in (as_of(2), Consistency(ReadLevel.SESSION, 2)):
            with pytest.raises(InvalidArgument, match="beyond the log's end at 1") as caught:
                await cluster.database.get(cluster.ref, consistency=consistency)
            assert caught.value.field == "consistency.offset"

    play(scenario, shards=shards)


@pytest.mark.parametrize("shards", [1, 3])
def test_what_is_no_longer_kept_is_expired(shards: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.write(put("a"))
        await cluster.compact()
        await cluster.write(put("b"))
        await cluster.compact()
        manifest = (await cluster.system.catalog.get_version(cluster.ref.id, 1)).manifest_key
        await cluster.system.objects.delete([manifest])
        fresh = cluster.system.new_node("fresh")
        cluster.nodes.nodes = [fresh]
        with pytest.raises(OffsetExpired):
            await cluster.database.get(cluster.ref, consistency=as_of(1))
        assert ids_of(await cluster.database.get(cluster.ref, consistency=as_of(2))) == ["a", "b"]
        await fresh.close()

    play(scenario, shards=shards)


def test_earlier_reads_of_a_deleted_collection_are_refused() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.write(put("a"))
        await cluster.compact()
        await cluster.write(put("b"))
        await cluster.database.get(cluster.ref, consistency=as_of(1))
        await cluster.frontend(1).delete_collection(cluster.ref)
        await cluster.system.clock.advance(60.0)
        with pytest.raises(NotFound):
            await cluster.database.get(cluster.ref, consistency=as_of(1))

    play(scenario)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("size", [1, 3, 5, 12])
def test_pages_are_of_one_snapshot(shards: int, size: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.write(*(put(name, n, n=n % 3) for n, name in enumerate(NAMES)))
        where = parse_where({"n": {"$ne": 1}})
        whole = ids_of(await cluster.database.get(cluster.ref, where=where))
        pages, cursor = [], ""
        while True:
            answer = await cluster.database.get(
                cluster.ref, where=where, limit=size, cursor=cursor, include=Include(metadatas=True)
            )
            pages.append(ids_of(answer))
            if not answer.cursor:
                break
            cursor = answer.cursor
            await cluster.write(remove(NAMES[len(pages) % 12]), put(f"late-{len(pages)}", n=0))
            if len(pages) % 2:
                await cluster.compact()
        assert [name for page in pages for name in page] == whole
        assert all(len(page) == size for page in pages[:-1])
        assert pages[-1], "no cursor where nothing follows"

    play(scenario, shards=shards)


def test_cursors_open_only_their_collection() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.write(put("a"), put("b"))
        cursor = (await cluster.database.get(cluster.ref, limit=1, cursor="")).cursor
        other = await cluster.system.create("other")
        for text, match in (
            (cursor, "another collection"),
            ("nonsense", "not a cursor"),
            ("WzJd", "not a cursor"),
            ("WzNd", "of another release"),
        ):
            with pytest.raises(InvalidArgument, match=match):
                await cluster.database.get(other, limit=1, cursor=text)
        with pytest.raises(InvalidArgument, match="limit"):
            await cluster.database.get(cluster.ref, cursor=cursor)

    play(scenario)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_write_says_what_became_of_each_record(shards: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        first = await written(cluster, put("a"), put("b"), outcomes=True)
        assert list(first.outcomes) == [Outcome.ADDED, Outcome.ADDED]
        await cluster.compact()
        mixed: list[Op] = [
            ("add", "a", (0.0, 0.0), None, None, None),
            put("b"),
            ("update", "nobody", None, "x", None, None),
            remove("a"),
            remove("a"),
            ("add", "a", (0.0, 0.0), None, None, None),
        ]
        result = await written(cluster, *mixed, outcomes=True, idempotency_key="once")
        expected = [
            Outcome.EXISTED,
            Outcome.UPDATED,
            Outcome.MISSING,
            Outcome.DELETED,
            Outcome.MISSING,
            Outcome.ADDED,
        ]
        assert list(result.outcomes) == expected
        await cluster.write(remove("b"))
        again = await written(cluster, *mixed, outcomes=True, idempotency_key="once")
        assert again == result  # of the first time, not of now
        assert (await written(cluster, put("c"))).outcomes is None

    play(scenario, shards=shards)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_write_stands_whose_outcomes_cannot_be_looked_up(shards: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.write(put("a"))

        async def gone(name: str) -> None:
            raise Unavailable("no query node")

        cluster.nodes.before = gone
        result = await written(cluster, put("a"), put("b"), outcomes=True)
        assert (result.outcomes, result.token.offset) == (None, 3)

    play(scenario, shards=shards)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_delete_by_filter_names_its_snapshot(shards: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.write(put("a", n=1), put("b", n=2))
        result = await cluster.database.delete_where(cluster.ref, ids=None, where=parse_where({"n": 1}))
        assert (result.read_offset, result.records) == (2, 1)
        nothing = await cluster.database.delete_where(cluster.ref, ids=None, where=parse_where({"n": 1}))
        assert (nothing.read_offset, nothing.records) == (3, 0)

    play(scenario, shards=shards)


@pytest.mark.parametrize("shards", [1, 3])
def test_explained_reads_add_up(shards: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.write(*(put(name, n, n=n) for n, name in enumerate(NAMES)))
        await cluster.compact()
        await cluster.write(put("late", 0.5, n=3), put("n3", 7.0, n=30))
        where = parse_where({"n": {"$lt": 6}})
        got = await cluster.database.get(cluster.ref, where=where, explain=True, include=Include(metadatas=True))
        count = await cluster.database.count(cluster.ref, where=where, explain=True)
        query = np.zeros((1, DIMENSION), np.float32)
        near = await cluster.database.query(cluster.ref, query, 3, where=where, explain=True)
        for answer, answered in ((got, 6), (count, 0), (near, None)):
            assert answer.explain is not None
            parts = answer.explain["shards"]
            assert sorted(part["shard"] for part in parts) == list(range(shards))
            assert sum(part["matched"] for part in parts) == 6
            segments = [segment for part in parts for segment in part["segments"]]
            assert sum(segment["matched"] for segment in segments) == 5
            assert all(segment["filter"]["steps"] for segment in segments)
            assert all(part["milliseconds"].keys() >= {"snapshot"} for part in parts)
            assert all(part["bytes"].keys() == {"memory", "cache", "disk", "store"} for part in parts)
            if answered is not None:
                assert sum(sum(part["answered"].values()) for part in parts) == answered
        assert near.explain is not None
        plans = [segment for part in near.explain["shards"] for segment in part["segments"]]
        assert all(plan["strategy"] in ("scan", "nothing") for plan in plans)
        assert any(plan["rejected"] for plan in plans)

    play(scenario, shards=shards)
