"""The query node: linearizable reads under random interleavings, levels, bounds, and searching while the read index is asked."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from shoal_compactor.compactor import CompactorSettings
from shoal_compactor.flush import FlushSettings
from shoal_compactor.policy import MergePolicy
from shoal_core.consistency import STRONG, Consistency, ReadLevel
from shoal_core.contracts import (
    Answer,
    AppendRequest,
    CollectionRef,
    CountRequest,
    GetRequest,
    Include,
    QueryRequest,
    Target,
)
from shoal_core.errors import (
    DimensionMismatch,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ShoalError,
    SnapshotGone,
    StaleEpoch,
    Unavailable,
)
from shoal_core.filters import parse_where, parse_where_document
from shoal_core.records import ID, encode_batch
from shoal_query.node import Node, NodeSettings
from shoal_query.services import Services
from shoal_testing.direct import DirectSystem, InlineExecutor, no_thread_use
from shoal_testing.oracle import OracleCollection
from shoal_testing.schedules import Gate, LaterExecutor, Turns, hooked, run_quietly, settle, until
from shoal_testing.strategies import Op, from_row_table, to_operation_batch

DIMENSION = 2
EVERYTHING = Include(documents=True, metadatas=True, embeddings=True, uris=True)


def put(name: str, value: float = 0.0) -> Op:
    return ("upsert", name, (value, 0.0), None, None, None)


def remove(name: str) -> Op:
    return ("delete", name, None, None, None, None)


class Cluster:
    """Query nodes over in-memory services; every batch written is also known to an oracle, by its offset."""

    def __init__(self) -> None:
        settings = CompactorSettings(flush=FlushSettings(graph_rows=10**9, threads=1), policy=MergePolicy(fanout=2))
        self.system = DirectSystem(settings=settings)
        self.before, self.after = Gate(), Gate()
        self.batches: dict[int, Sequence[Op]] = {}
        self.ref: CollectionRef
        self.target: Target

    async def start(self, shards: int = 1, space: str = "l2") -> Cluster:
        self.ref = await self.system.create(shards=shards, space=space)
        self.target = Target(self.ref.id, 1, space, 0, shards)
        return self

    def node(self, settings: NodeSettings | None = None) -> Node:
        """A node whose calls pass the gates."""
        system = self.system
        log = hooked(system.log, before=self.before, after=self.after)
        catalog = hooked(system.catalog, before=self.before, after=self.after)
        services = Services(catalog, log, system.objects, system.blocks, system.clock, InlineExecutor(), no_thread_use)
        return Node("node", services, settings or NodeSettings())

    def slow_node(self, seed: int) -> Node:
        """A node whose every step takes some turns of the event loop."""
        system = self.system
        before, after = Turns(seed), Turns(seed + 1)
        services = Services(
            hooked(system.catalog, before=before, after=after),
            hooked(system.log, before=before, after=after),
            hooked(system.objects, before=before, after=after),
            system.blocks,
            system.clock,
            LaterExecutor(seed),
            no_thread_use,
        )
        return Node(f"node-{seed}", services)

    async def write(self, *ops: Op) -> int:
        payload = encode_batch(to_operation_batch(ops, DIMENSION))
        collection = await self.system.catalog.get_collection_by_id(self.ref.id)
        result = await self.system.log.append(AppendRequest(self.ref.id, collection.epoch, collection.tenant, payload))
        self.batches[result.token.offset] = ops
        return result.token.offset

    async def compact(self, *, trim: bool = False) -> None:
        await self.system.compact(self.ref, merge=True)
        if trim:
            info = await self.system.catalog.get_version(self.ref.id)
            self.system.log.trim(self.ref.id, info.compacted_offset)

    def oracle(self, offset: int, space: str = "l2") -> OracleCollection:
        """The collection at an offset."""
        oracle = OracleCollection(space, DIMENSION)
        for end in sorted(self.batches):
            if end <= offset:
                for op, record_id, embedding, document, uri, metadata in self.batches[end]:
                    oracle.apply(op, [record_id], [embedding], [document], [uri], [metadata])
        assert oracle.head_offset == offset, "a snapshot is at the end of a batch"
        return oracle

    # --- reads that are compared with the oracle at the offset they were served at

    async def get(self, node: Node, consistency: Consistency = STRONG, **fields: Any) -> int:
        request = GetRequest(self.target, consistency, include=EVERYTHING, **fields)
        answer = await node.get(request)
        assert isinstance(answer, Answer)
        wanted = {name: fields[name] for name in ("ids", "limit", "offset") if name in fields}
        expected = copy.deepcopy(self.oracle(answer.served_at.offset).get(**wanted))
        for record in expected:
            del record["updated_offset"]
        assert from_row_table(answer.rows) == expected
        assert answer.row_counts.tolist() == [len(expected)]
        return answer.served_at.offset

    async def count(self, node: Node, consistency: Consistency = STRONG, **fields: Any) -> int:
        answer = await node.count(CountRequest(self.target, consistency, **fields))
        assert answer.count == self.oracle(answer.served_at.offset).count()
        return answer.served_at.offset

    async def query(self, node: Node, consistency: Consistency = STRONG, *, k: int = 3, **fields: Any) -> int:
        vectors = np.array([[0.2, 0.0], [7.0, 1.0]], np.float32)
        include = Include(distances=True)
        answer = await node.query(QueryRequest(self.target, vectors, k, consistency, include=include, **fields))
        assert isinstance(answer, Answer)
        hits = self.oracle(answer.served_at.offset, self.target.space).query(vectors.tolist(), k, fields.get("ids"))
        assert answer.row_counts.tolist() == [len(part) for part in hits]
        flat = [hit for part in hits for hit in part]
        assert answer.rows.column(ID).to_pylist() == [hit.id for hit in flat]
        np.testing.assert_allclose(answer.rows.column("distance").to_pylist(), [hit.distance for hit in flat], 1e-5)
        return answer.served_at.offset

    async def nearest(self, node: Node, k: int, **fields: Any) -> list[str]:
        vectors = np.zeros((1, DIMENSION), np.float32)
        answer = await node.query(QueryRequest(self.target, vectors, k, **fields))
        assert isinstance(answer, Answer)
        return list(answer.rows.column(ID).to_pylist())


def play(scenario: Callable[[Cluster], Coroutine[Any, Any, None]], shards: int = 1, space: str = "l2") -> None:
    async def main() -> None:
        await scenario(await Cluster().start(shards, space))

    run_quietly(main())


# --- linearizability


async def _interleave(cluster: Cluster, seed: int) -> None:
    chance = random.Random(seed)
    turns = Turns(seed, (0, 1, 5, 20, 60))
    nodes = [cluster.slow_node(seed * 10 + n) for n in range(2)]
    acknowledged = 0
    compacting = asyncio.Lock()

    async def write() -> None:
        nonlocal acknowledged
        await turns()
        names = [f"id-{chance.randrange(8)}" for _ in range(chance.randrange(1, 5))]
        ops = [remove(name) if chance.random() < 0.25 else put(name, chance.randrange(9)) for name in names]
        acknowledged = max(acknowledged, await cluster.write(*ops))

    async def compact() -> None:
        await turns()
        async with compacting:
            await cluster.compact(trim=chance.random() < 0.5)

    async def read() -> None:
        await turns()
        node = chance.choice(nodes)
        before = acknowledged
        kind = chance.randrange(6)
        if kind == 0:
            offset = await cluster.count(node)
        elif kind == 1:
            offset = await cluster.get(node, limit=chance.randrange(5), offset=chance.randrange(3))
        elif kind == 2:
            offset = await cluster.get(node, ids=("id-1", "id-2", "none"))
        elif kind == 3:
            offset = await cluster.get(node, Consistency(ReadLevel.SESSION, before))
        elif kind == 4:
            offset = await cluster.query(node, ids=("id-3", "id-4", "id-5", "id-6"))
        else:
            offset = await cluster.query(node)
        assert offset >= before, "a strong read sees what was acknowledged before it"

    async def cancelled() -> None:
        task = asyncio.create_task(read())
        await turns()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def index_only() -> None:
        await turns()
        await cluster.get(chance.choice(nodes), Consistency(ReadLevel.INDEX_ONLY))

    kinds = chance.choices((write, read, compact, cancelled, index_only), (30, 40, 8, 8, 4), k=70)
    await asyncio.gather(*(kind() for kind in kinds))
    for node in nodes:
        assert await cluster.get(node) == max(cluster.batches)
        assert await cluster.query(node) == max(cluster.batches)
        await node.close()


@pytest.mark.parametrize("seed", range(25))
def test_strong_reads_are_exact_and_miss_nothing_in_any_order_of_events(seed: int) -> None:
    play(lambda cluster: _interleave(cluster, seed))


def test_a_strong_read_that_begins_during_another_does_not_share_its_head() -> None:
    async def scenario(cluster: Cluster) -> None:
        node = cluster.node()
        await cluster.write(put("a"))
        await cluster.count(node)
        cluster.after.closed = {"read_tail"}
        first = asyncio.create_task(cluster.count(node))
        await cluster.after.until_held()
        offset = await cluster.write(put("b"))
        second = asyncio.create_task(cluster.count(node))
        await settle()
        assert not second.done()
        cluster.after.open()
        assert await first == 1
        assert await second == offset

    play(scenario)


# --- searching while the read index is asked


@pytest.mark.parametrize("change", ["delete", "move away", "both"])
@pytest.mark.parametrize("space", ["l2", "ip", "cosine"])
def test_rows_replaced_while_the_segments_were_searched_are_dropped_and_refilled(change: str, space: str) -> None:
    async def scenario(cluster: Cluster) -> None:
        node = cluster.node()
        await cluster.write(*(("add", f"id-{n}", (1.0 + n, float(n * n)), None, None, None) for n in range(30)))
        await cluster.compact()
        await cluster.query(node, k=5)
        cluster.before.closed = {"read_tail"}
        reads = [asyncio.create_task(cluster.query(node, k=k)) for k in (1, 5, 29, 40)]
        await cluster.before.until_held()
        await settle()  # all segments are searched
        victims = [f"id-{n}" for n in (0, 1, 2, 3, 4, 28, 29)]
        if change in ("delete", "both"):
            await cluster.write(*(remove(name) for name in victims[:3]))
        if change in ("move away", "both"):
            await cluster.write(*(("update", name, (-50.0, -60.0), None, None, None) for name in victims[3:]))
        cluster.before.open()
        for read in reads:
            assert await read == max(cluster.batches)
        await node.close()

    play(scenario, space=space)


def test_a_row_that_comes_near_meanwhile_is_found() -> None:
    async def scenario(cluster: Cluster) -> None:
        node = cluster.node()
        await cluster.write(*(put(f"id-{n}", n) for n in range(20)))
        await cluster.compact()
        await cluster.query(node)
        cluster.before.closed = {"read_tail"}
        read = asyncio.create_task(cluster.nearest(node, 2))
        await cluster.before.until_held()
        await settle()
        await cluster.write(put("id-0", 100), put("id-19", 0.5), put("new", 0.1))
        cluster.before.open()
        assert await read == ["new", "id-19"]

    play(scenario)


def test_a_version_that_takes_over_during_the_search() -> None:
    async def scenario(cluster: Cluster) -> None:
        node = cluster.node()
        await cluster.write(put("a"), put("b", 1))
        await cluster.query(node)
        await cluster.write(put("c", 2))
        await cluster.compact(trim=True)
        cluster.before.closed = {"get_version"}
        read = asyncio.create_task(cluster.query(node))
        await cluster.before.until_held()  # the log is trimmed: it waits for the new version
        last = await cluster.write(remove("a"), put("d", 3))
        cluster.before.open()
        assert await read == last
        assert node.counters.retaken_snapshots == 1

    play(scenario)


# --- levels


def test_session_reads_are_served_from_what_is_folded() -> None:
    async def scenario(cluster: Cluster) -> None:
        node = cluster.node()
        first = await cluster.write(put("a"))
        await cluster.count(node)
        asked = cluster.before.calls.count("read_tail")
        second = await cluster.write(put("b"))
        session = Consistency(ReadLevel.SESSION, first)
        assert await cluster.get(node, session) == first
        assert await cluster.query(node, session) == first
        assert await cluster.count(node, session) == first
        assert cluster.before.calls.count("read_tail") == asked
        assert await cluster.get(node, Consistency(ReadLevel.SESSION, second)) == second

    play(scenario)


def test_bounded_reads_ask_again_when_the_bound_is_over() -> None:
    async def scenario(cluster: Cluster) -> None:
        node = cluster.node()
        bounded = Consistency(ReadLevel.BOUNDED, staleness_ms=1000)
        first = await cluster.write(put("a"))
        assert await cluster.get(node, bounded) == first
        second = await cluster.write(put("b"))
        await cluster.system.clock.advance(0.9)
        assert await cluster.get(node, bounded) == first
        assert await cluster.query(node, bounded) == first
        await cluster.system.clock.advance(0.2)
        assert await cluster.get(node, bounded) == second
        await cluster.system.clock.advance(5)
        third = await cluster.write(put("c"))
        assert await cluster.count(node, bounded) == third

    play(scenario)


def test_a_bounded_read_is_as_new_as_the_last_head_though_nobody_folded_it() -> None:
    async def scenario(cluster: Cluster) -> None:
        node = cluster.node()
        await cluster.write(put("a"))
        await cluster.count(node)
        second = await cluster.write(put("b"))
        await cluster.system.clock.advance(10)
        stale = replace(cluster.target, epoch=99)
        with pytest.raises(StaleEpoch):
            await node.count(CountRequest(stale))  # it fetched the tail and went away without folding it
        assert await cluster.get(node, Consistency(ReadLevel.BOUNDED, staleness_ms=1000)) == second

    play(scenario)


def test_the_age_of_a_head_counts_from_before_it_was_asked() -> None:
    async def scenario(cluster: Cluster) -> None:
        node = cluster.node()
        first = await cluster.write(put("a"))
        cluster.after.closed = {"read_tail"}
        read = asyncio.create_task(cluster.count(node))
        await cluster.after.until_held()
        second = await cluster.write(put("b"))
        await cluster.system.clock.advance(2)
        cluster.after.open()
        assert await read == first
        assert await cluster.count(node, Consistency(ReadLevel.BOUNDED, staleness_ms=1000)) == second

    play(scenario)


def test_index_only_reads_serve_the_version_alone() -> None:
    async def scenario(cluster: Cluster) -> None:
        node = cluster.node()
        index_only = Consistency(ReadLevel.INDEX_ONLY)
        assert await cluster.get(node, index_only) == 0
        compacted = await cluster.write(put("a"))
        await cluster.compact()
        await cluster.write(put("b"), remove("a"))
        other = cluster.node()
        assert await cluster.get(other, index_only) == compacted
        assert cluster.before.calls.count("read_tail") == 0
        await cluster.query(other)  # the tail is folded, and index_only still does not see it
        assert await cluster.get(other, index_only) == compacted
        assert await cluster.query(other, index_only) == compacted
        assert await cluster.count(other, index_only) == compacted

    play(scenario)


def test_reads_without_a_read_index_hear_of_versions_and_deletion_within_the_bound() -> None:
    async def scenario(cluster: Cluster) -> None:
        node = cluster.node()
        index_only = Consistency(ReadLevel.INDEX_ONLY)
        assert await cluster.get(node, index_only) == 0
        compacted = await cluster.write(put("a"))
        await cluster.compact()
        assert await cluster.get(node, index_only) == 0, "it has not looked since"
        await cluster.system.clock.advance(node.settings.staleness_ms / 1000 + 1)
        await cluster.get(node, index_only)  # looks, and loads beside
        await settle()
        assert await cluster.get(node, index_only) == compacted
        await cluster.system.catalog.delete_collection(cluster.ref.id)
        await cluster.system.clock.advance(node.settings.staleness_ms / 1000 + 1)
        for level in (index_only, Consistency(ReadLevel.SESSION, offset=compacted)):
            with pytest.raises(NotFound):
                await cluster.get(node, level)

    play(scenario)


def test_a_token_of_something_else_is_refused() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.write(put("a"))
        with pytest.raises(InvalidArgument):
            await cluster.get(cluster.node(), Consistency(ReadLevel.SESSION, offset=99))

    play(scenario)


# --- pinned snapshots


def test_pinned_reads_in_any_order() -> None:
    async def scenario(cluster: Cluster) -> None:
        node = cluster.node()
        await cluster.write(put("a"), put("b"))
        await cluster.compact()
        offsets = [await cluster.write(put("a", n), put(f"c{n}", n), remove(f"c{n - 1}")) for n in range(1, 5)]
        for at in (offsets[1], offsets[3], offsets[0], offsets[2], 2):
            for read in (cluster.get, cluster.count, cluster.query):
                assert await read(node, snapshot_offset=at) == at
        with pytest.raises(InvalidArgument):
            await cluster.get(node, snapshot_offset=offsets[0] - 1)
        with pytest.raises(SnapshotGone):
            await cluster.get(node, snapshot_offset=1)

    play(scenario)


def test_a_pinned_read_of_a_node_that_comes_back_late() -> None:
    async def scenario(cluster: Cluster) -> None:
        node = cluster.node()
        old = await cluster.write(put("a"))
        await cluster.query(node)
        await cluster.write(put("b"))
        await cluster.compact(trim=True)
        last = await cluster.write(put("c"))
        for read in (cluster.get, cluster.count, cluster.query):
            assert await read(node, snapshot_offset=last) == last
            with pytest.raises(SnapshotGone):
                await read(node, snapshot_offset=old)

    play(scenario)


@pytest.mark.parametrize("writing", [True, False])
def test_reads_of_several_shards_keep_up_with_versions(writing: bool) -> None:
    """Their offset is the frontend's: no node asks for a head of its own."""

    async def scenario(cluster: Cluster) -> None:
        database, clock = cluster.system.database, cluster.system.clock
        await cluster.write(*(put(f"id-{n}") for n in range(9)))
        assert len((await database.get(cluster.ref)).rows) == 9
        for number in range(6):
            await cluster.write(put("one more", number))
            if not writing:
                await database.get(cluster.ref)  # nobody has to fetch what comes next
            await cluster.compact()
            newest = (await cluster.system.catalog.get_version(cluster.ref.id)).version
            if writing:
                await cluster.write(put("another", number))
            else:
                await clock.advance(cluster.system.node.settings.staleness_ms / 1000 + 1)
            await database.get(cluster.ref)  # hears of it
            await settle()
            answer = await database.get(cluster.ref)
            assert answer.served_at.version == newest
            assert answer.rows.num_rows == 10 + writing

    play(scenario, shards=3)


def test_pages_after_a_record_are_those_of_one_read() -> None:
    async def scenario(cluster: Cluster) -> None:
        node = cluster.node()
        chance = random.Random(4)
        for _ in range(3):
            await cluster.write(*(put(f"id-{chance.randrange(30)}", n) for n in range(12)))
            await cluster.compact()
            await cluster.write(*(remove(f"id-{chance.randrange(30)}") for _ in range(3)))
        await cluster.write(*(put(f"id-{chance.randrange(30)}", n) for n in range(9)))
        ids = tuple(f"id-{n}" for n in range(0, 30, 2))
        where = parse_where({"#id": {"$nin": ["id-3", "id-4"]}})
        for fields in ({}, {"ids": ids}, {"where": where}, {"ids": ids, "where": where}):
            whole = await node.get(GetRequest(cluster.target, **fields))
            assert isinstance(whole, Answer)
            found: list[str] = []
            after = 0
            while True:
                page = await node.get(GetRequest(cluster.target, limit=4, after_created=after, **fields))
                assert isinstance(page, Answer)
                if page.rows.num_rows == 0:
                    break
                found += page.rows.column(ID).to_pylist()
                after = page.rows.column("created_offset").to_pylist()[-1]
            assert found == whole.rows.column(ID).to_pylist()
            assert len(found) > 8

    play(scenario)


# --- edges


@pytest.mark.parametrize("compacted", [False, True])
def test_k_and_pages_at_their_edges(compacted: bool) -> None:
    async def scenario(cluster: Cluster) -> None:
        node = cluster.node()
        await cluster.write(*(put(f"id-{n}", n) for n in range(5)))
        if compacted:
            await cluster.compact()
        for k in (0, 1, 5, 6, 1000):
            await cluster.query(node, k=k)
        for limit in (0, 1, 5, 6, None):
            for offset in (0, 4, 5, 10**12):
                await cluster.get(node, limit=limit, offset=offset)
        for ids in ((), ("nobody",), ("id-1", "id-1", "id-4")):
            await cluster.get(node, ids=ids)
            await cluster.query(node, ids=ids)

    play(scenario)


def test_a_collection_without_writes() -> None:
    async def scenario(cluster: Cluster) -> None:
        node = cluster.node()
        for read in (cluster.get, cluster.count, cluster.query):
            assert await read(node) == 0
        await cluster.write(remove("nobody"), ("update", "nobody", None, "text", None, None))
        for read in (cluster.get, cluster.count, cluster.query):
            assert await read(node) == 2
        await cluster.compact()
        for read in (cluster.get, cluster.count, cluster.query):
            assert await read(cluster.node()) == 2

    play(scenario)


def test_everything_deleted() -> None:
    async def scenario(cluster: Cluster) -> None:
        node = cluster.node()
        await cluster.write(*(put(f"id-{n}", n) for n in range(5)))
        await cluster.compact()
        await cluster.write(*(remove(f"id-{n}") for n in range(5)))
        for at in (node, cluster.node()):
            for read in (cluster.get, cluster.count, cluster.query):
                assert await read(at) == 10
        await cluster.compact()
        for at in (node, cluster.node()):
            for read in (cluster.get, cluster.count, cluster.query):
                assert await read(at) == 10

    play(scenario)


@pytest.mark.parametrize("compacted", [False, True])
def test_a_query_of_another_dimension(compacted: bool) -> None:
    async def scenario(cluster: Cluster) -> None:
        node = cluster.node()
        vectors = np.zeros((1, 3), np.float32)
        assert (await node.query(QueryRequest(cluster.target, vectors, 1))).row_counts.tolist() == [0]
        await cluster.write(put("a"))
        if compacted:
            await cluster.compact()
        for at in (node, cluster.node()):
            for fields in ({}, {"snapshot_offset": 1}, {"consistency": Consistency(ReadLevel.BOUNDED)}):
                with pytest.raises(DimensionMismatch) as caught:
                    await at.query(QueryRequest(cluster.target, vectors, 1, **fields))
                assert caught.value.field == "query_embeddings"

    play(scenario)


def test_a_regular_expression_that_is_none_is_the_callers_error() -> None:
    async def scenario(cluster: Cluster) -> None:
        node = cluster.node()
        await cluster.write(put("a"))
        await cluster.compact()
        await cluster.write(put("b"))
        where = parse_where_document({"$regex": "("})
        with pytest.raises(InvalidArgument):
            await cluster.nearest(node, 1, where=where)
        cluster.before.closed = {"read_tail"}
        read = asyncio.create_task(cluster.nearest(node, 1, where=where))
        await cluster.before.until_held()
        await settle()  # the search has failed, and nobody looks
        cluster.system.log.before = _no_log
        cluster.before.open()
        with pytest.raises(Unavailable):
            await read

    play(scenario)


def _no_log(name: str) -> None:
    raise Unavailable("no log node answers")


def test_a_log_that_is_away_and_comes_back() -> None:
    async def scenario(cluster: Cluster) -> None:
        node = cluster.node()
        offset = await cluster.write(put("a"))
        cluster.system.log.before = _no_log
        results = await asyncio.gather(*(cluster.query(node) for _ in range(4)), return_exceptions=True)
        assert {type(result) for result in results} == {Unavailable}
        cluster.system.log.before = lambda name: None
        assert await cluster.query(node) == offset

    play(scenario)


def test_a_collection_that_is_deleted_takes_its_shard_along() -> None:
    async def scenario(cluster: Cluster) -> None:
        node = cluster.node()
        await cluster.write(put("a"))
        await cluster.count(node)
        await cluster.system.catalog.delete_collection(cluster.ref.id)
        results = await asyncio.gather(*(cluster.count(node) for _ in range(3)), return_exceptions=True)
        assert {type(result) for result in results} == {NotFound}
        assert node.counters.dropped_shards == 1
        with pytest.raises(NotFound):
            await cluster.get(node, Consistency(ReadLevel.INDEX_ONLY))

    play(scenario)


# --- bounds


def test_reads_beyond_the_bound_are_refused_and_the_others_served() -> None:
    async def scenario(cluster: Cluster) -> None:
        node = cluster.node(NodeSettings(reads_at_work=2, reads_waiting=3))
        offset = await cluster.write(put("a"))
        cluster.before.closed = {"get_version"}
        reads = [asyncio.create_task(cluster.count(node)) for _ in range(5)]
        await cluster.before.until_held()
        await settle()
        with pytest.raises(ResourceExhausted) as caught:
            await cluster.count(node)
        assert caught.value.retry_after_ms > 0
        reads[0].cancel()
        reads[4].cancel()
        await settle()
        reads += [asyncio.create_task(cluster.count(node)) for _ in range(2)]
        await settle()
        cluster.before.open()
        results = await asyncio.gather(*reads, return_exceptions=True)
        assert [result for result in results if not isinstance(result, asyncio.CancelledError)] == [offset] * 5
        assert await cluster.count(node) == offset

    play(scenario)


def test_the_longest_unused_shards_go_when_there_are_too_many_bytes() -> None:
    async def scenario(cluster: Cluster) -> None:
        refs = [cluster.ref, await cluster.system.create("second"), await cluster.system.create("third")]
        targets = [Target(ref.id, 1, "l2", 0, 1) for ref in refs]
        for ref in refs:
            batch = to_operation_batch([put(f"id-{n}", n) for n in range(100)], DIMENSION)
            await cluster.system.database.write(ref, batch)
            await cluster.system.compact(ref)
        roomy = cluster.node()
        await roomy.count(CountRequest(targets[0]))
        one = next(iter(roomy.loaded.shards.values())).size_bytes
        node = cluster.node(NodeSettings(loaded_bytes=int(one * 2.5), reads_per_shrink=1))
        for number in (0, 1, 0, 2):
            assert (await node.count(CountRequest(targets[number]))).count == 100
        assert [key[0] for key in node.loaded.shards] == [refs[0].id, refs[2].id]
        assert node.counters.dropped_shards == 1
        assert (await node.count(CountRequest(targets[1]))).count == 100
        tiny = cluster.node(NodeSettings(loaded_bytes=1, reads_per_shrink=1))
        for target in targets:
            assert (await tiny.count(CountRequest(target))).count == 100
        assert len(tiny.loaded.shards) == 1, "the one in use stays"

    play(scenario)


def test_shards_that_are_being_loaded_are_not_dropped_for_room() -> None:
    async def scenario(cluster: Cluster) -> None:
        other = await cluster.system.create("second")
        for ref in (cluster.ref, other):
            await cluster.system.database.write(ref, to_operation_batch([put("a")], DIMENSION))
            await cluster.system.compact(ref)
        node = cluster.node(NodeSettings(loaded_bytes=1, reads_per_shrink=1))
        cluster.after.closed = {"get_version"}
        slow = asyncio.create_task(node.count(_count(other)))
        await cluster.after.until_held()
        cluster.after.closed = set()
        assert (await node.count(_count(cluster.ref))).count == 1
        cluster.after.open()
        assert (await slow).count == 1

    play(scenario)


def test_shards_that_cannot_be_loaded_are_not_kept() -> None:
    async def scenario(cluster: Cluster) -> None:
        refs = [cluster.ref, *[await cluster.system.create(f"more-{n}") for n in range(5)]]
        for ref in refs:
            await cluster.system.database.write(ref, to_operation_batch([put("a")], DIMENSION))
            await cluster.system.compact(ref)
        node = cluster.node(NodeSettings(loaded_bytes=1, reads_per_shrink=1))
        cluster.system.objects.before_get = _no_objects
        for ref in refs:
            with pytest.raises(Unavailable):
                await node.count(_count(ref))
        assert not node.loaded.shards
        assert not node.loaded.sizes

        cluster.before.closed = {"get_version"}
        reads = [asyncio.create_task(node.count(_count(ref))) for ref in refs]
        await settle()
        for read in reads:
            read.cancel()
        await asyncio.gather(*reads, return_exceptions=True)
        cluster.before.open()  # now the loads fail, and nobody is there to see it
        await settle()
        cluster.system.objects.before_get = None
        assert (await node.count(_count(cluster.ref))).count == 1
        assert list(node.loaded.shards) == [(cluster.ref.id, 0, 1)] == list(node.loaded.sizes)

    play(scenario)


def _no_objects(key: str) -> None:
    raise Unavailable("object storage is away")


def _count(ref: CollectionRef) -> CountRequest:
    return CountRequest(Target(ref.id, 1, "l2", 0, 1))


def test_closing_ends_loads_and_a_read_is_told_to_try_again() -> None:
    async def scenario(cluster: Cluster) -> None:
        node = cluster.node()
        cluster.before.closed = {"get_version"}
        read = asyncio.create_task(cluster.count(node))
        await cluster.before.until_held()
        await node.close()
        with pytest.raises(ShoalError) as caught:
            await read
        assert caught.value.retryable

    play(scenario)


def test_explain_tells_where_the_rows_came_from() -> None:
    async def scenario(cluster: Cluster) -> None:
        node = cluster.node()
        await cluster.write(put("a"), put("b", 1))
        await cluster.compact()
        await cluster.write(put("c", 2))
        vectors = np.zeros((1, DIMENSION), np.float32)
        answer = await node.query(QueryRequest(cluster.target, vectors, 3, explain=True))
        assert isinstance(answer, Answer)
        assert answer.rows.column("origin").to_pylist() == [0, 0, 1]
        assert answer.explain is not None
        shard = answer.explain["shards"][0]
        assert shard["tail"] == {"records": 1, "matched": 1, "after": 2, "up_to": 3, "strategy": "scan"}
        assert [(part["rows"], part["live"], part["matched"]) for part in shard["segments"]] == [(2, 2, 2)]
        assert shard["answered"] == {"segments": 2, "tail": 1}
        assert shard["bytes"]["memory"] > 0

    play(scenario)


@pytest.mark.parametrize("compacted", [False, True])
def test_explain_counts_the_bytes_of_filters_and_names_the_kernels(
    compacted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = 0

    def report() -> dict[str, str]:
        nonlocal reports
        reports += 1
        return {"blas": "some"}

    monkeypatch.setattr("shoal_index.vector.kernels.report", report)

    async def scenario(cluster: Cluster) -> None:
        node = cluster.node()
        await cluster.write(*(put(f"id-{n}", n) for n in range(10)))
        if compacted:
            await cluster.compact()
        where = parse_where({"#id": {"$in": ["id-1", "id-2", "none"]}})
        for tree, read_bytes in ((where, 3 * 12), (None, 0)):
            answer = await node.count(CountRequest(cluster.target, where=tree, explain=True))
            assert answer.explain is not None
            (shard,) = answer.explain["shards"]
            assert shard["kernels"] == {"blas": "some"}
            assert shard["matched"] == answer.count == (2 if tree else 10)
            if compacted:
                assert shard["bytes"]["memory"] == read_bytes
                steps = [step for part in shard["segments"] if tree for step in part["filter"]["steps"]]
                assert sum(step["read_bytes"] for step in steps) == read_bytes
            else:
                assert (shard["bytes"]["memory"] > 0) == (tree is not None)
        assert reports == 1

    play(scenario)


def test_nothing_waits_for_ever_when_every_reader_is_cancelled() -> None:
    async def scenario(cluster: Cluster) -> None:
        node = cluster.node()
        await cluster.write(put("a"))
        cluster.before.closed = {"read_tail"}
        reads = [asyncio.create_task(cluster.query(node)) for _ in range(3)]
        await cluster.before.until_held()
        for read in reads:
            read.cancel()
        await asyncio.gather(*reads, return_exceptions=True)
        offset = await cluster.write(put("b"))
        cluster.before.open()
        assert await cluster.query(node) == offset
        await until(lambda: node._admission.present == 0)

    play(scenario)
