"""The codes of a long tail: answers are the oracle's, rows are coded once, and codes count as memory and go with their tail."""

from __future__ import annotations

import gc
import random
import weakref
from typing import Any

import numpy as np
import pytest

from shoal_compactor.compactor import CompactorSettings
from shoal_compactor.flush import FlushSettings
from shoal_compactor.policy import MergePolicy
from shoal_core.consistency import STRONG, Consistency, ReadLevel
from shoal_core.contracts import (
    Answer,
    CollectionRef,
    DenseLeaf,
    Include,
    QueryRequest,
    SearchRequest,
    Target,
)
from shoal_core.filters import parse_where
from shoal_core.records import ID
from shoal_index.vector import scalar_codes
from shoal_index.vector.engine import SPACES
from shoal_index.vector.scalar_codes import ScalarCodes, code_vectors
from shoal_query import tail
from shoal_query.node import Node
from shoal_query.services import Services
from shoal_query.shard import Shard
from shoal_testing.direct import DirectSystem, InlineExecutor, no_thread_use
from shoal_testing.oracle import OracleCollection
from shoal_testing.schedules import run_quietly, until
from shoal_testing.strategies import Op, to_operation_batch

DIMENSION = 24
LONG = 60  # rows, in these tests


@pytest.fixture(autouse=True)
def coded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tails are long early; how many rows were coded, call by call."""
    counts: list[int] = []

    def counting(vectors: Any, space: str) -> ScalarCodes:
        counts.append(len(vectors))
        return code_vectors(vectors, space)

    monkeypatch.setattr(scalar_codes, "CODED_ROWS", LONG)
    monkeypatch.setattr(tail, "code_vectors", counting)
    return counts


class Collection:
    """One collection, what the oracle makes of every write, and a query node."""

    def __init__(self, space: str, ref: CollectionRef, system: DirectSystem) -> None:
        self.system, self.ref = system, ref
        self.target = Target(ref.id, 1, space, 0, 1)
        self.oracle = OracleCollection(space, DIMENSION)
        self.services = Services(
            system.catalog, system.log, system.objects, system.blocks, system.clock, InlineExecutor(), no_thread_use
        )
        self.node = Node("node", self.services)

    async def write(self, ops: list[Op]) -> int:
        await self.system.database.write(self.ref, to_operation_batch(ops, DIMENSION))
        for op, record_id, embedding, document, uri, metadata in ops:
            self.oracle.apply(op, [record_id], [embedding], [document], [uri], [metadata])
        return self.oracle.head_offset

    async def check(self, queries: list[Any], k: int, *, where: Any = None) -> Any:
        """The answer is the oracle's; what it says of the tail."""
        vectors = np.array(queries, np.float32)
        include = Include(distances=True)
        answer = await self.node.query(
            QueryRequest(self.target, vectors, k, STRONG, where=parse_where(where), include=include, explain=True)
        )
        assert isinstance(answer, Answer)
        hits = self.oracle.query(vectors.tolist(), k, where=where)
        flat = [hit for part in hits for hit in part]
        assert answer.row_counts.tolist() == [len(part) for part in hits]
        assert answer.rows.column(ID).to_pylist() == [hit.id for hit in flat]
        np.testing.assert_allclose(
            answer.rows.column("distance").to_pylist(), [hit.distance for hit in flat], 1e-5, atol=1e-6
        )
        assert answer.explain is not None
        return answer.explain["shards"][0]["tail"]


async def collection(space: str = "l2") -> Collection:
    settings = CompactorSettings(flush=FlushSettings(graph_rows=10**9, threads=1), policy=MergePolicy(fanout=3))
    system = DirectSystem(settings=settings)
    return Collection(space, await system.create(space=space), system)


def put(chance: random.Random, name: str) -> Op:
    return ("upsert", name, tuple(chance.gauss(0, 1) for _ in range(DIMENSION)), None, None, {"n": chance.randrange(4)})


def some(chance: random.Random, count: int) -> list[list[float]]:
    return [[chance.gauss(0, 1) for _ in range(DIMENSION)] for _ in range(count)]


@pytest.mark.parametrize("space", SPACES)
def test_a_long_tail_with_changes_answers_as_the_oracle(space: str, coded: list[int]) -> None:
    async def scenario() -> None:
        chance = random.Random(SPACES.index(space))
        held = await collection(space)
        await held.write([put(chance, f"id-{n}") for n in range(40)])
        await held.system.compact(held.ref)
        for step in range(12):
            names = [f"id-{chance.randrange(200)}" for _ in range(chance.choice((3, 11, 40)))]
            ops: list[Op] = [put(chance, name) for name in names]
            ops += [("delete", f"id-{chance.randrange(200)}", None, None, None, None) for _ in range(4)]
            ops.append(("update", f"id-{chance.randrange(200)}", tuple([0.0] * DIMENSION), None, None, None))
            await held.write(ops)
            for k in (1, 6, 300):
                shown = await held.check(some(chance, 1 + 2 * (step % 2)), k)
                assert shown["strategy"] == ("codes" if shown["records"] >= max(LONG, 10 * k) else "scan")
                assert ("rescored" in shown) == (shown["strategy"] == "codes")
            narrow = await held.check(some(chance, 1), 5, where={"n": {"$eq": 1}})
            assert narrow["strategy"] == ("codes" if narrow["matched"] >= LONG else "scan"), "by what may be answered"
        assert (await held.check(some(chance, 1), 6))["strategy"] == "codes"
        [shard] = held.node.loaded.shards.values()
        frozen = (await shard.loaded()).overlay.frozen
        assert sum(coded) == len(frozen.created), "each row of every state once"
        await held.node.close()

    run_quietly(scenario())


def test_few_rows_of_a_long_tail_are_rescored() -> None:
    async def scenario() -> None:
        chance = random.Random(1)
        held = await collection()
        await held.write([put(chance, f"id-{n}") for n in range(900)])
        shown = await held.check(some(chance, 1), 1)
        assert 1 <= shown["rescored"] < 60
        leaf = DenseLeaf(np.array(some(chance, 1)[0], np.float32), 1)
        answer = await held.node.search(SearchRequest(held.target, (leaf, leaf), 0, explain=True))
        assert isinstance(answer, Answer)
        assert answer.explain is not None
        assert answer.explain["shards"][0]["tail"]["strategy"] == "codes"
        await held.node.close()

    run_quietly(scenario())


def test_codes_count_as_memory_and_go_with_their_tail(coded: list[int]) -> None:
    async def scenario() -> None:
        chance = random.Random(2)
        held = await collection()
        shard = Shard(held.target, held.services)
        await held.write([put(chance, f"id-{n}") for n in range(LONG - 1)])
        await shard.newest_offset(1)
        view = await shard.loaded()
        await view.at(view.raw.through, DIMENSION, held.services)
        assert coded == [], "the tail is short"
        await held.write([put(chance, "last")])
        await shard.newest_offset(1)
        before = shard.size_bytes
        snapshot = await view.at(view.raw.through, DIMENSION, held.services)
        assert sum(coded) == LONG
        codes = [part.codes for part in snapshot.frozen.parts if part.codes is not None]
        assert sum(part.size_bytes for part in codes) == LONG * (32 + 12)
        assert shard.size_bytes - before >= LONG * (32 + 12)
        gone = [weakref.ref(part.codes) for part in codes]
        await held.system.compact(held.ref)
        await shard.newest_offset(1)
        await until(lambda: shard.view is not None and shard.view.version.version == 1)
        del view, snapshot, codes
        gc.collect()
        assert [each() for each in gone] == [None] * len(gone)
        await shard.close()

    run_quietly(scenario())


def test_a_fold_for_one_read_makes_no_codes(coded: list[int]) -> None:
    async def scenario() -> None:
        chance = random.Random(3)
        held = await collection()
        earlier = await held.write([put(chance, f"id-{n}") for n in range(LONG + 5)])
        await held.write([put(chance, f"id-{n}") for n in range(20)])
        shown = await held.check(some(chance, 1), 5)
        assert (shown["strategy"], sum(coded)) == ("codes", LONG + 5), "what one fold overwrites is no row"
        request = QueryRequest(
            held.target, np.zeros((1, DIMENSION), np.float32), 3, Consistency(ReadLevel.AS_OF, earlier), explain=True
        )
        answer = await held.node.query(request)
        assert isinstance(answer, Answer)
        assert answer.explain is not None
        assert answer.explain["shards"][0]["tail"]["strategy"] == "scan"
        assert sum(coded) == LONG + 5
        await held.node.close()

    run_quietly(scenario())
