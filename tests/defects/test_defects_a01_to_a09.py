"""Defects A1 to A9 of the reference system: each test says what went wrong there, and fails if it went wrong here."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from shoal_cluster.assignment import RendezvousPolicy, query_key
from shoal_cluster.membership import membership_view
from shoal_cluster.routing import Router, RoutingSettings, is_transient
from shoal_core.contracts import Include
from shoal_core.errors import DeadlineExceeded, Unavailable
from shoal_core.filters import parse_where
from shoal_core.ports import Member
from shoal_query.shard import Shard
from shoal_testing.blocks import DirectBlocks
from shoal_testing.compaction import CompactionWorld, SteppedJob
from shoal_testing.strategies import Op, from_row_table, to_operation_batch
from shoal_testing.virtual_clock import SeededRandom, VirtualClock
from tests.defects.defect_support import (
    Laid,
    another_database,
    another_node,
    collection,
    every_layout,
    every_sharding,
    graphs_from,
    halves,
    laid_out,
    put,
)

ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": operator.eq,
    "$ne": operator.ne,
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}

# --- A1, A2: numbers

INTS = (-1, 0, 1, 2**32 - 1, 2**32, 2**32 + 1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), -(2**32))
FLOATS = (16777216.0, 16777217.0, -0.5, 0.1, 2.0**53, 5e-324, 1.7976931348623157e308, -(2.0**63), 2.0**63)
NUMBERS = (*INTS, *FLOATS)


@every_layout
@every_sharding
async def test_a01_numbers_keep_their_value_through_compaction(layout: str, shards: int) -> None:
    """Indexes of segments held numbers as uint32 and float32: -1 became 4294967295, 2^32 became 0, 16777217.0 became 16777216.0.

    Filters then answered otherwise as soon as the log was compacted.
    """
    ops = [put(f"id-{n:02d}", metadata={"n": value}) for n, value in enumerate(NUMBERS)]
    async with laid_out(layout, halves(ops), shards=shards) as at:
        values = {record["id"]: record["metadata"]["n"] for record in from_row_table(await rows(at))}
        assert values == {f"id-{n:02d}": value for n, value in enumerate(NUMBERS)}
        assert {key: type(value) for key, value in values.items()} == {
            f"id-{n:02d}": type(value) for n, value in enumerate(NUMBERS)
        }
        for name, compares in ORDERS.items():
            for operand in NUMBERS:
                expected = {key for key, value in values.items() if compares(value, operand)}
                assert set(await at.ids({"n": {name: operand}})) == expected, (name, operand)


async def rows(at: Laid) -> Any:
    """All records with their metadata."""
    return (await at.database.get(at.ref, include=Include(metadatas=True))).rows


MIXED: dict[str, Any] = {
    "int 5": 5,
    "int 6": 6,
    "float 5.5": 5.5,
    "float 4.5": 4.5,
    "text 6": "6",
    "text a": "a",
    "text b": "b",
    "true": True,
    "false": False,
    "ints": [6, 7],
    "texts": ["6", "b"],
}


@every_layout
@every_sharding
@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"$gt": 5}, {"int 6", "float 5.5"}),
        ({"$gte": 5}, {"int 5", "int 6", "float 5.5"}),
        ({"$lt": 5}, {"float 4.5"}),
        ({"$gt": -1}, {"int 5", "int 6", "float 5.5", "float 4.5"}),
        ({"$gt": "6"}, {"text a", "text b"}),
        ({"$lte": "a"}, {"text 6", "text a"}),
        ({"$eq": 1}, set()),  # true is no number
        ({"$eq": True}, {"true"}),
        ({"$in": [6, 5.5]}, {"int 6", "float 5.5"}),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
async def test_a02_ranges_do_not_cross_types(layout: str, shards: int, where: Any, expected: set[str]) -> None:
    """The log was filtered with one order over all types (bools before ints before floats before strings): ``$gt: 5`` also gave
    every float and every string.
    """
    ops = [put(key, metadata={"v": value}) for key, value in MIXED.items()]
    async with laid_out(layout, halves(ops), shards=shards) as at:
        assert set(await at.ids({"v": where})) == expected


# --- A3: replicas


class View:
    """A registry of some query nodes."""

    def __init__(self, count: int) -> None:
        self.members = [Member("querynode", f"node-{n}", f"node-{n}:1") for n in range(count)]

    def view(self) -> Any:
        return membership_view(1, self.members)


async def test_a03_replicas_are_tried_in_the_order_of_the_assignment() -> None:
    """The rendezvous order went through a hash map and was lost: the preferred node was a random one of the replicas, and caches
    were half as warm as they could be.
    """
    registry: Any = View(5)
    policy = RendezvousPolicy()
    clock = VirtualClock()
    settings = RoutingSettings(timeout_ms=50, replicas=5, hedge=False)
    firsts = set()
    for number in range(40):
        key = query_key(f"collection-{number}", number % 3)
        called: list[str] = []

        async def refuse(client: str, called: list[str] = called) -> None:
            called.append(client)
            raise Unavailable(f"{client} is away")

        router: Router[str] = Router(
            "querynode", registry, policy, lambda member: member.id, clock, SeededRandom(number), settings
        )
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await clock.run(router.call(key, refuse, preferred=3, retryable=is_transient))
        expected = [member.id for member in policy.assign(key, registry.members, 5)]
        assert called[:5] == expected
        assert [member.id for member in router.candidates(key, 5)] == expected
        firsts.add(called[0])
    assert len(firsts) == 5


# --- A4: identical vectors


def repeated(count: int = 60) -> list[Op]:
    """As many identical vectors, as many zero ones, and others, shuffled; ids say which."""
    random = np.random.default_rng(4)
    ops = [put(f"same-{n}", (1, 1, 1, 1)) for n in range(count)]
    ops += [put(f"zero-{n}", (0, 0, 0, 0)) for n in range(count)]
    ops += [put(f"other-{n}", (random.standard_normal(4) * 3).tolist()) for n in range(200)]
    return [ops[n] for n in random.permutation(len(ops))]


@every_layout
@every_sharding
@pytest.mark.parametrize("engine", ["scan", "graph"])
async def test_a04_identical_vectors_stay_findable(
    layout: str, shards: int, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster of more identical vectors than its bound could not be split in two, and all but one were dropped from the vector
    index: `get` had them, `query` did not.
    """
    if engine == "graph":
        graphs_from(monkeypatch, 5)
    async with laid_out(
        layout, halves(repeated()), shards=shards, dimension=4, graph_rows=30 if engine == "graph" else 10**9
    ) as at:
        plans = await strategies_of(at)
        assert ("graph" in plans) == (engine == "graph" and layout != "tail"), plans
        for name, vector in (("same", (1.0, 1.0, 1.0, 1.0)), ("zero", (0.0,) * 4)):
            everyone = {f"{name}-{n}" for n in range(60)}
            assert set(await at.near(vector, 60)) == everyone
            assert len(set(await at.near(vector, 7)) & everyone) == 7
            for k in (150, 320, 1000):
                found = await at.near(vector, k)
                assert len(found) == len(set(found)) == min(k, 320)
                assert set(found[:60]) == everyone
            only = {f"{name}-{n}" for n in range(0, 60, 3)}
            assert set(await at.near(vector, 100, where=parse_where({"#id": {"$in": sorted(only)}}))) == only


async def strategies_of(at: Laid) -> set[str]:
    """How the segments are searched."""
    query = np.zeros((1, 4), np.float32)
    answer = await at.database.query(at.ref, query, 60, explain=True)
    parts = (answer.explain or {})["shards"]
    return {str(segment["strategy"]) for part in parts for segment in part["segments"]}


@every_sharding
async def test_a04_identical_vectors_of_unit_length_stay_findable_by_cosine(
    shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, where a zero vector has no direction: it is at 1 from everything."""
    graphs_from(monkeypatch, 5)
    async with laid_out("merged", halves(repeated()), shards=shards, dimension=4, graph_rows=30, space="cosine") as at:
        assert "graph" in await strategies_of(at)
        assert {name.partition("-")[0] for name in await at.near((2.0, 2.0, 2.0, 2.0), 60)} == {"same"}
        assert len(await at.near((1.0, 1.0, 1.0, 1.0), 320)) == 320


# --- A5, A6: what a failure may not look like


class FailOnce:
    """A hook that lets some calls through and fails the next one."""

    def __init__(self, let_through: int) -> None:
        self.let_through = let_through
        self.failed = False

    def __call__(self, key: str) -> None:
        self.let_through -= 1
        if self.let_through == -1:
            self.failed = True
            raise Unavailable("the store is busy")


@every_sharding
async def test_a05_a_transient_error_while_a_version_opens_is_never_an_empty_answer(shards: int) -> None:
    """Any error while a file of the index was opened counted as "there is nothing yet": ids began again at 1 and overwrote what
    was there.
    """
    async with laid_out("merged", halves([put(f"id-{n}", (n,)) for n in range(12)]), shards=shards) as at:
        objects = at.system.objects
        refused = 0
        while True:
            node = another_node(at.system, DirectBlocks(objects))
            database = another_database(at.system, node=node)
            objects.before_get = fault = FailOnce(refused)
            try:
                found = (await database.count(at.ref)).count
            except Unavailable:
                found = (await database.count(at.ref)).count  # and nothing wrong was remembered
            await node.close()
            assert found == 12
            if not fault.failed:
                break
            refused += 1
        assert refused > 3


@every_sharding
async def test_a05_a_flush_that_cannot_read_the_old_version_publishes_nothing(shards: int) -> None:
    """As above, for the writer: a flush needs the old rows that its tail changes, and must not take them for absent."""
    async with laid_out("flushed", halves([put(f"id-{n}", (n,), text="old") for n in range(12)]), shards=shards) as at:
        await at.write(*(put(f"id-{n}", (n + 0.5,), op="update") for n in range(0, 12, 2)))
        version = at.system.catalog.state(at.ref.id).current
        refused = 0
        while at.system.catalog.state(at.ref.id).current == version:
            at.system.objects.before_get = FailOnce(refused)
            try:
                await at.compact()
            except Unavailable:
                assert at.system.catalog.state(at.ref.id).current == version
                refused += 1
        at.system.objects.before_get = None
        assert refused > 3
        records = from_row_table((await at.database.get(at.ref, include=Include(documents=True, embeddings=True))).rows)
        assert [record["document"] for record in records] == ["old"] * 12
        assert {record["id"]: record["embedding"] for record in records} == {
            f"id-{n}": (n + 0.5 * (n % 2 == 0),) for n in range(12)
        }


@pytest.mark.parametrize("call", ["read_tail", "read_index", "backlog", "get_version"])
async def test_a06_a_failing_log_read_does_not_move_the_compaction_offset(call: str) -> None:
    """A failed read of the log of dirty collections was logged and skipped, and the cursor moved on: those collections were not
    compacted before their next write.
    """
    async with collection() as at:
        await at.write(put("a"), put("b"))
        log, catalog, compactor = at.system.log, at.system.catalog, at.system.compactor

        def away(name: str) -> None:
            if name == call:
                raise Unavailable("away")

        log.before = catalog.before = away
        for _ in range(3):
            try:
                await compactor.run_once()
                await compactor.compact(at.ref.id, merge=False)
            except Unavailable:
                pass
            assert call == "read_index" or catalog.state(at.ref.id).current.compacted_offset == 0
        log.before = catalog.before = lambda name: None
        if call != "read_index":  # which a round does without
            [due] = await catalog.backlog(limit=1, min_records=0, min_age_ms=0)
            assert (due.collection.id, due.compacted_offset, due.head_offset) == (at.ref.id, 0, 2)
        await at.system.clock.advance(compactor.settings.longest_retry_ms / 1000)  # it was left alone for a while
        await compactor.run_once()
        assert catalog.state(at.ref.id).current.compacted_offset == 2
        assert await at.ids() == ["a", "b"]


# --- A7, A8: scheduling


async def test_a07_with_more_dirty_collections_than_a_page_the_oldest_come_first_and_all_get_their_turn() -> None:
    """Jobs were sorted by a time that was always 0, so by id: beyond the number of jobs, the same collections waited for ever."""
    async with collection(page=3) as at:
        system = at.system
        refs = [await system.create(f"collection-{n}") for n in range(11)]
        for ref in refs:
            await system.database.write(ref, to_operation_batch([put("first")], 1))
            await system.clock.advance(1)
        done: list[str] = []
        system.compactor.on_published = lambda info: done.append(info.collection_id)
        for number in range(4):
            await system.compactor.run_once()
            for ref in refs[:3]:  # the busiest are never done
                await system.database.write(ref, to_operation_batch([put(f"more-{number}")], 1))
            await system.clock.advance(1)
        assert [ref.id for ref in refs] == list(dict.fromkeys(done))[:11]
        assert done[:11] == [ref.id for ref in refs]


async def test_a08_a_lost_race_is_no_failure() -> None:
    """Who lost the compare-and-set of a version counted a failure of the collection; after five, a healthy collection was given up."""
    world = await CompactionWorld.create()

    def no_renewal(name: str) -> None:
        if name == "renew":
            raise Unavailable("away")

    for number in range(8):
        await world.upsert(f"id-{number}")
        beaten = False

        async def beat(name: str) -> None:
            nonlocal beaten
            if name == "publish" and not beaten:
                beaten = True
                world.catalog.before = no_renewal
                await world.clock.advance(20)  # the lease runs out,
                await world.flush()  # and somebody else publishes first
                world.catalog.before = lambda name: None

        loser = world.compactor(step=beat)
        assert await loser.run_once() == 1
        assert beaten
        assert (loser.counters.lost_races, loser.counters.failures, loser.counters.flushes) == (1, 0, 0)
    await world.upsert("last")
    last = world.compactor()
    assert await last.run_once() == 1
    assert last.counters.flushes == 1
    await world.check()


# --- A9: a retry is a new read


async def test_a09_a_read_that_starts_again_takes_a_new_snapshot() -> None:
    """After NotFound the plan was made anew, but with the offset of the first try, which the new version was past: 412."""
    async with laid_out("flushed", halves([put(f"id-{n}", (n,)) for n in range(9)]), shards=3) as at:
        await at.ids()
        offset, overtaken = 9, True

        async def overtake(name: str) -> None:
            """Between the head and the shards: a newer version is published and loaded, which is past that head."""
            nonlocal offset, overtaken
            if name in ("get", "count", "query") and not overtaken:
                overtaken = True
                compacted = (await at.write(*(put(f"id-{n}", (n,)) for n in range(9)))).token.offset
                await at.compact()
                at.system.log.trim(at.ref.id, compacted)
                offset = (await at.write(put(f"new-{compacted}"))).token.offset
                await at.ids()
                assert {loaded(shard) for shard in at.system.node.loaded.shards.values()} == {compacted}

        database = another_database(at.system, before=overtake)
        for number in range(3):
            overtaken = False
            answer = await database.get(at.ref)
            assert (answer.served_at.offset, answer.rows.num_rows) == (offset, 10 + 3 * number)
            overtaken = False
            counted = await database.count(at.ref)
            assert (counted.served_at.offset, counted.count) == (offset, 11 + 3 * number)
            overtaken = False
            near = await database.query(at.ref, np.zeros((1, 1), np.float32), 100)
            assert (near.served_at.offset, near.rows.num_rows) == (offset, 12 + 3 * number)


def loaded(shard: Shard) -> int:
    """Up to where the version that a shard has loaded goes."""
    return -1 if shard.view is None else shard.view.version.compacted_offset


@every_sharding
async def test_a09_a_read_of_a_collection_that_was_changed_starts_again_at_its_head(shards: int) -> None:
    """The same after a rename: what was known of the collection is looked up again, and the read is of now."""
    async with laid_out("flushed", halves([put(f"id-{n}") for n in range(4)]), shards=shards) as at:
        other = at.system.new_database()
        assert (await other.count(at.ref)).count == 4
        for number in range(3):
            await at.database.modify_collection(at.ref, name=f"renamed-{number}")
            result = await at.write(put(f"new-{number}"))
            await at.compact()
            counted = await other.count(at.ref)
            assert (counted.count, counted.served_at.offset) == (5 + number, result.token.offset)


async def test_a09_a_compaction_whose_version_is_gone_goes_on_from_the_current_one() -> None:
    """A flush that stalls while others publish, and what it began on is swept, lands on the version of the moment."""
    world = await CompactionWorld.create(shards=3)
    await world.upsert(*(f"id-{n}" for n in range(9)))
    await world.flush()
    await world.upsert(*(f"id-{n}" for n in range(9, 12)))
    await world.flush()
    await world.upsert("id-0", "new", value=2.0)
    stalled = SteppedJob(lambda step: world.flush(step=step))
    await stalled.run_to("tombstones")
    before = await world.manifest()
    while await world.merge() is not None:  # the segments that it was about to mark are replaced
        pass
    now = set((await world.manifest()).object_keys())
    await world.objects.delete([key for key in before.object_keys() if key not in now])
    await stalled.run_out()
    manifest = await world.check()
    assert manifest.compacted_offset == world.catalog.state(world.collection.id).head_offset
