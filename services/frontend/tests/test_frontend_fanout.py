"""Fan-out: one snapshot for a whole read, exact merges, ids to their owners only."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.frontend.tests.frontend_support import Cluster, Nodes, Read, put, remove
from shoal_core.consistency import Consistency, ReadLevel, ServedAt
from shoal_core.contracts import Answer, EncodedAnswer, GetRequest, Include
from shoal_core.errors import (
    DimensionMismatch,
    InvalidArgument,
    NotFound,
    OffsetExpired,
    ShoalError,
    SnapshotGone,
    Unavailable,
)
from shoal_core.filters import parse_where_document
from shoal_core.hashing import hash_ids, shard_of
from shoal_core.ranking import DenseQuery, Knn, Search, TextQuery
from shoal_frontend.database import DatabaseService
from shoal_frontend.fanout import target_of
from shoal_testing.schedules import Gate, Turns, hooked, run_quietly, settle
from shoal_testing.strategies import examples

SHARDS = 4
SPANNING = [f"id-{n}" for n in range(12)]
IDS_ONLY = Include()


def play(scenario: Callable[[Cluster], Coroutine[Any, Any, None]], *, shards: int = SHARDS, **fields: Any) -> None:
    async def main() -> None:
        cluster = await Cluster(**fields).start(shards)
        await scenario(cluster)
        await cluster.close()

    run_quietly(main())


def owners(names: list[str], shards: int = SHARDS) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for name, shard in zip(names, shard_of(hash_ids(pa.array(names)), shards).tolist(), strict=True):
        found.setdefault(shard, []).append(name)
    return found


def test_the_ids_used_here_span_all_shards() -> None:
    assert len(owners(SPANNING)) == SHARDS


# --- one snapshot


async def _interleave(cluster: Cluster, seed: int) -> None:
    """Batches that each mark records of all shards, among versions, loads, trimmed logs and reads of every shape."""
    chance = random.Random(seed)
    turns = Turns(seed, (0, 1, 10, 50, 150))
    frontends = [cluster.frontend(number) for number in range(2)]
    acknowledged = 0
    batches = 0
    compacting = asyncio.Lock()

    async def write() -> None:
        nonlocal acknowledged, batches
        await turns()
        batches += 1
        mark = batches
        gone = chance.sample(SPANNING, chance.choice([0, 0, 1, 4]))
        ops = [
            remove(name) if name in gone else put(name, chance.randrange(9), text=f"batch {mark}", mark=mark)
            for name in SPANNING
        ]
        ops += [put(f"new-{mark}-{n}", chance.randrange(9), mark=mark) for n in range(chance.randrange(6))]
        acknowledged = max(acknowledged, await cluster.write(*ops, database=chance.choice(frontends)))

    async def compact() -> None:
        await turns()
        async with compacting:
            await cluster.compact(merge=chance.random() < 0.5, trim=chance.random() < 0.5)

    async def read() -> None:
        await turns()
        before = acknowledged
        database = chance.choice(frontends)
        where = {"mark": {"$gte": chance.randrange(max(batches, 1))}}
        some = chance.sample(SPANNING, 3)
        shapes: list[Read] = [
            lambda: cluster.get(database=database),
            lambda: cluster.get(database=database, include=IDS_ONLY),
            lambda: cluster.get(database=database, limit=chance.randrange(20), offset=chance.randrange(8)),
            lambda: cluster.get(database=database, ids=[*some, "nobody"], limit=chance.choice([None, 2])),
            lambda: cluster.get(database=database, where=where),
            lambda: cluster.count(database=database),
            lambda: cluster.count(database=database, where=where),
            lambda: cluster.query(database=database, k=chance.randrange(20)),
            lambda: cluster.query(database=database, ids=some),
            lambda: cluster.query(database=database, where=where, include=IDS_ONLY),
        ]
        offset = await chance.choice(shapes)()
        assert offset >= before, "a strong read sees what was acknowledged before it"

    async def cancelled() -> None:
        task = asyncio.create_task(read())
        await turns()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    kinds = chance.choices((write, read, compact, cancelled), (22, 40, 8, 6), k=60)
    await asyncio.gather(*(kind() for kind in kinds))
    for database in frontends:
        last = max(cluster.batches)
        assert [await cluster.get(database=database), await cluster.query(database=database)] == [last, last]


@pytest.mark.parametrize("seed", range(20))
def test_every_read_is_of_one_snapshot_whatever_happens_meanwhile(seed: int) -> None:
    play(lambda cluster: _interleave(cluster, seed), seed=seed, nodes=3)


def test_shards_that_take_their_own_heads_would_be_noticed() -> None:
    async def scenario(cluster: Cluster, seed: int) -> None:
        cluster.nodes.change = lambda request: replace(request, snapshot_offset=0)
        await _interleave(cluster, seed)

    def play_all() -> None:
        for seed in range(10):
            play(lambda cluster, seed=seed: scenario(cluster, seed), seed=seed, nodes=3)  # type: ignore[misc]

    with pytest.raises(AssertionError):
        play_all()


class Replaced(Nodes):
    """Nodes that have a newer version than the first few snapshots asked for."""

    def __init__(self, cluster: Cluster, times: int) -> None:
        super().__init__(cluster.backends)
        self.times = times
        self.offsets: set[int] = set()

    async def _node(self, name: str, request: Any) -> Any:
        self.calls.append((name, request))
        self.offsets.add(request.snapshot_offset)
        if len(self.offsets) <= self.times:
            raise SnapshotGone("a newer version is loaded")
        return self.nodes[0]


@pytest.mark.parametrize("times", [1, 5])
def test_a_snapshot_that_is_gone_is_taken_anew(times: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.write(*(put(name) for name in SPANNING))

        async def write_on(name: str) -> None:
            if name == "read_index":
                await cluster.write(put("more"), database=writer)

        writer = cluster.database
        for read in (cluster.get, cluster.count, cluster.query):
            nodes = Replaced(cluster, times)
            reader = DatabaseService(
                cluster.system.catalog,
                hooked(cluster.system.log, before=write_on),
                nodes,
                cluster.system.random,
                cluster.system._view,
            )
            assert await read(database=reader) == max(nodes.offsets)
            assert len(nodes.offsets) == times + 1

    play(scenario)


def test_a_snapshot_that_is_always_gone_is_given_up() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.write(put("a"))
        nodes = Replaced(cluster, 10**6)
        reader = DatabaseService(
            cluster.system.catalog, cluster.system.log, nodes, cluster.system.random, cluster.system._view
        )
        with pytest.raises(SnapshotGone):
            await cluster.get(database=reader)

    play(scenario)


@pytest.mark.parametrize("read", ["get", "query"])
def test_the_second_phase_is_of_the_same_snapshot(read: str) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.write(*(put(name, n, text="old", mark=1) for n, name in enumerate(SPANNING)))
        await cluster.compact()
        first = await cluster.write(put(SPANNING[0], 0.5, text="old", mark=2))
        gate = Gate()
        cluster.nodes.before = gate
        if read == "get":
            await cluster.get(limit=5)
            gate.calls.clear()
            asked = asyncio.create_task(cluster.get(limit=5))
            await settle_until(gate, ["get"] * SHARDS)
        else:
            gate.closed = {"get"}
            asked = asyncio.create_task(cluster.query())
        await gate.until_held()
        assert not asked.done()
        names = [name for n, name in enumerate(SPANNING) if n % 2]
        await cluster.write(*(remove(name) for name in names[:3]))
        await cluster.write(*(put(name, 3, text="new", mark=3) for name in SPANNING))
        gate.open()
        assert await asked == first

    play(scenario)


async def settle_until(gate: Gate, calls: list[str]) -> None:
    """Close the gate for the second phase: after the calls of the first."""
    while gate.calls != calls:
        await asyncio.sleep(0)
    gate.closed = {"get"}


@pytest.mark.parametrize("trim", [False, True])
def test_a_version_published_between_the_phases(trim: bool) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.write(*(put(name, n, text="old") for n, name in enumerate(SPANNING)))
        await cluster.query()
        gate = Gate("get")
        cluster.nodes.before = gate
        asked = asyncio.create_task(cluster.query())
        await gate.until_held()
        last = await cluster.write(*(put(name, 3, text="new") for name in SPANNING[:6]), remove(SPANNING[7]))
        await cluster.compact(trim=trim)
        for node in cluster.backends:  # they load the newer version, which cannot serve the snapshot of the first phase
            for shard in node.loaded.shards.values():
                await shard.newest_offset(1)
        await settle(300)
        gate.open()
        assert await asked == last
        assert sorted({request.snapshot_offset for _, request in cluster.nodes.calls}) == [12, last]

    play(scenario)


# --- failures


@pytest.mark.parametrize("error", [Unavailable, NotFound, DimensionMismatch, OffsetExpired])
def test_the_failure_of_one_shard_is_the_failure_of_the_read(error: type[ShoalError]) -> None:
    class Failing(Nodes):
        async def _node(self, name: str, request: Any) -> Any:
            await settle(request.target.shard * 10)
            if request.target.shard == 1:
                raise error("shard 1 fails")
            if request.target.shard > 1:
                await asyncio.Event().wait()  # it would never answer: it must be cancelled
            return self.nodes[0]

    async def scenario(cluster: Cluster) -> None:
        await cluster.write(*(put(name) for name in SPANNING))
        failing = Failing(cluster.backends)
        database = DatabaseService(
            cluster.system.catalog, cluster.system.log, failing, cluster.system.random, cluster.system._view
        )
        for read in (cluster.get, cluster.count, cluster.query):
            with pytest.raises(error, match="shard 1 fails"):
                await read(database=database)
        for rank in (Knn(TextQuery("x"), "#document"), Knn(DenseQuery(np.zeros(2, np.float32)))):
            with pytest.raises(error, match="shard 1 fails"):
                await database.search(cluster.ref, [Search(rank=rank), Search()])
        await settle()
        assert len(asyncio.all_tasks()) == 1, "nothing is left running"

    play(scenario)


# --- levels


def test_index_only_reads_are_of_the_version_on_all_shards() -> None:
    async def scenario(cluster: Cluster) -> None:
        index_only = Consistency(ReadLevel.INDEX_ONLY)
        reads = (cluster.get, cluster.count, cluster.query)
        assert [await read(consistency=index_only) for read in reads] == [0, 0, 0]
        first = await cluster.write(*(put(name) for name in SPANNING))
        assert [await read(consistency=index_only) for read in reads] == [0, 0, 0]
        await cluster.compact()
        await cluster.write(*(put(name, 5) for name in SPANNING))
        await cluster.get()
        assert [await read(consistency=index_only) for read in reads] == [first] * 3
        await cluster.compact(trim=True)
        assert [await read(consistency=index_only) for read in reads] == [2 * first] * 3

    play(scenario)


@pytest.mark.parametrize("shards", [1, SHARDS])
def test_session_and_bounded_reads(shards: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        offset = await cluster.write(*(put(name) for name in SPANNING))
        for consistency in (Consistency(ReadLevel.SESSION, offset), Consistency(ReadLevel.BOUNDED, staleness_ms=100)):
            for read in (cluster.get, cluster.count, cluster.query):
                assert await read(consistency=consistency) == offset

    play(scenario, shards=shards)


# --- ids and empty reads


def test_ids_are_asked_of_their_owners_only() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.write(*(put(name, n) for n, name in enumerate(SPANNING)))
        wanted = [SPANNING[0], SPANNING[5], SPANNING[0], "nobody"]
        expected = {(shard, tuple(names)) for shard, names in owners([*dict.fromkeys(wanted)]).items()}
        for read in (cluster.get, cluster.query):
            cluster.nodes.calls.clear()
            await read(ids=wanted, include=IDS_ONLY)
            asked = {(request.target.shard, request.ids) for _, request in cluster.nodes.calls}
            assert asked == expected
        cluster.nodes.calls.clear()
        for read in (cluster.get, cluster.query):
            await read(ids=[])
        assert cluster.nodes.calls == []

    play(scenario)


def test_an_empty_collection_asks_no_node() -> None:
    async def scenario(cluster: Cluster) -> None:
        for read in (cluster.get, cluster.count, cluster.query):
            assert await read() == 0
        assert cluster.nodes.calls == []
        answer = await cluster.database.query(cluster.ref, np.zeros((3, 2), np.float32), 5)
        assert answer.row_counts.tolist() == [0, 0, 0]

    play(scenario)


def test_the_second_phase_asks_only_shards_that_won() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.write(*(put(name, n, text=name) for n, name in enumerate(SPANNING)))
        cluster.nodes.calls.clear()
        await cluster.query([(0.0, 0.0)], 1)
        assert len(cluster.nodes.targets("query")) == SHARDS
        [second] = cluster.nodes.targets("get")
        assert second.shard == next(iter(owners([SPANNING[0]])))
        cluster.nodes.calls.clear()
        await cluster.query([(0.0, 0.0)], 1, include=Include(distances=True))
        assert cluster.nodes.targets("get") == []
        cluster.nodes.calls.clear()
        await cluster.query([(0.0, 0.0)], 0)
        assert cluster.nodes.targets("get") == []

    play(scenario)


# --- merges


@st.composite
def contents(draw: st.DrawFn) -> list[tuple[str, float]]:
    """Records at few places, so that many are equally far."""
    names = draw(st.lists(st.integers(0, 40), min_size=1, max_size=25, unique=True))
    return [(f"id-{name}", float(draw(st.integers(0, 3)))) for name in names]


@examples(40)
@given(
    records=contents(),
    compacted=st.integers(0, 25),
    shards=st.sampled_from([2, 3, 7]),
    space=st.sampled_from(["l2", "ip", "cosine"]),
    k=st.sampled_from([0, 1, 2, 5, 30]),
    limit=st.sampled_from([0, 1, 3, 30, None]),
    offset=st.sampled_from([0, 1, 4, 30]),
)
def test_merges_are_exact(
    records: Any, compacted: int, shards: int, space: str, k: int, limit: int | None, offset: int
) -> None:
    async def main() -> None:
        cluster = await Cluster().start(shards, space)
        batches = [records[:compacted], records[compacted:]]
        for part in batches:
            if part:
                await cluster.write(*(put(name, value, text=name, n=int(value)) for name, value in part))
                if part is batches[0]:
                    await cluster.compact()
        await cluster.get(limit=limit, offset=offset)
        await cluster.get(limit=limit, offset=offset, where={"n": {"$gte": 1}}, include=IDS_ONLY)
        some = [name for name, _ in records[::2]]
        await cluster.get(ids=some, limit=limit, offset=offset)
        await cluster.count(where={"n": 2})
        vectors = [(0.0, 1.0), (1.5, 0.0), (3.0, -2.0)]
        await cluster.query(vectors, k)
        await cluster.query(vectors, k, ids=some, where={"n": {"$lt": 3}})
        await cluster.query(vectors[:1], k, include=IDS_ONLY)
        await cluster.close()

    run_quietly(main())


def test_one_shard_answers_for_itself() -> None:
    class Encoded(Nodes):
        async def get(self, request: Any, *, encoded: bool = False) -> Answer | EncodedAnswer:
            return EncodedAnswer(b"get") if encoded else await super().get(request)

        async def query(self, request: Any, *, encoded: bool = False) -> Answer | EncodedAnswer:
            return EncodedAnswer(b"query") if encoded else await super().query(request)

    async def scenario(cluster: Cluster) -> None:
        await cluster.write(put("a"))
        gate = Gate()
        nodes = Encoded(cluster.backends)
        database = DatabaseService(
            cluster.system.catalog,
            hooked(cluster.system.log, before=gate),
            nodes,
            cluster.system.random,
            cluster.system._view,
        )
        collection = await cluster.system.catalog.get_collection_by_id(cluster.ref.id)
        fanout = database._fanout
        answer = await fanout.get(collection, GetRequest(target_of(collection)), encoded=True)
        assert answer == EncodedAnswer(b"get")
        assert await cluster.get(database=database) == 1
        assert gate.calls == [], "the node reads the head itself, while it searches"

    play(scenario, shards=1)


def test_answers_of_shards_are_explained_together() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.write(*(put(name, n) for n, name in enumerate(SPANNING)))
        await cluster.compact()
        await cluster.write(put(SPANNING[0], 5))
        answer = await cluster.database.query(
            cluster.ref, np.zeros((1, 2), np.float32), 20, include=Include(documents=True), explain=True
        )
        assert answer.explain is not None
        assert [part["shard"] for part in answer.explain["shards"]] == list(range(SHARDS))
        assert answer.served_at == ServedAt(13, 1)
        assert sorted(answer.rows.column("origin").to_pylist()) == [0] * 11 + [1]

    play(scenario)


def test_a_bad_regular_expression_is_the_callers_error_on_any_number_of_shards() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.write(*(put(name, text="x") for name in SPANNING))
        where = parse_where_document({"$regex": "("})
        with pytest.raises(InvalidArgument):
            await cluster.database.get(cluster.ref, where=where)
        with pytest.raises(InvalidArgument):
            await cluster.database.query(cluster.ref, np.zeros((1, 2), np.float32), 1, where=where)

    play(scenario)
