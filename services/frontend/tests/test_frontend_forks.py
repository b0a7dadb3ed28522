"""Forks of any part of a tree at any moment: each collection answers like an oracle of its own, whatever happens to the others."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shoal_compactor.compactor import CompactorSettings
from shoal_compactor.flush import FlushSettings
from shoal_compactor.garbage import GarbageSettings, Sweeper
from shoal_compactor.policy import MergePolicy
from shoal_core.contracts import CollectionRef, Include
from shoal_testing.direct import DirectSystem
from shoal_testing.fakes import DEFAULT_DATABASE, DEFAULT_TENANT
from shoal_testing.oracle import OracleCollection
from shoal_testing.strategies import examples, from_row_table, to_operation_batch

RETENTION_S = 3600.0
IDS = [f"id{n}" for n in range(8)]
EVERYTHING = Include(documents=True, metadatas=True, embeddings=True)

Move = tuple[str, int, int]
moves = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "write", "compact", "merge", "fork", "fork", "delete", "sweep", "wait"]),
        st.integers(0, 9),
        st.integers(0, 2**16),
    ),
    max_size=30,
)


@dataclass
class Known:
    """A live collection and what it should have."""

    ref: CollectionRef
    oracle: OracleCollection


class Forest:
    """Collections, of which some are forks of others, over fakes and objects that are really swept."""

    def __init__(self) -> None:
        flush = FlushSettings(graph_rows=10**9, threads=1)
        self.system = DirectSystem(settings=CompactorSettings(flush=flush, policy=MergePolicy(fanout=2)))
        self.trees: list[Known] = []
        self.count = 0

    def sweeper(self) -> Sweeper:
        ms = int(RETENTION_S * 1000)
        garbage = GarbageSettings(version_retention_ms=ms, deleted_retention_ms=ms, grace_ms=0)
        return Sweeper(self.system.catalog, self.system.objects, self.system.clock, lambda _: True, garbage)

    async def move(self, what: str, which: int, value: int) -> None:
        if not self.trees:
            ref = await self.system.create(self._name(), shards=1 + which % 2)
            self.trees.append(Known(ref, OracleCollection("l2", 2)))
        known = self.trees[which % len(self.trees)]
        match what:
            case "write":
                await self.write(known, value)
            case "compact" | "merge":
                await self.system.compact(known.ref, merge=what == "merge")
            case "fork":
                made = await self.system.database.fork_collection(known.ref, self._name())
                ref = CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, id=made.id)
                self.trees.append(Known(ref, copy.deepcopy(known.oracle)))
            case "delete":
                await self.system.database.delete_collection(known.ref)
                self.trees.remove(known)
            case "sweep":
                assert (await self.sweeper().sweep()).counters.failures == 0
            case "wait":
                await self.system.clock.advance(RETENTION_S / 2)

    async def write(self, known: Known, value: int) -> None:
        name, kind = IDS[value % len(IDS)], ("add", "update", "upsert", "delete")[value // 8 % 4]
        vector = None if kind == "delete" else (float(value), float(value % 7))
        text = None if kind == "delete" else f"text {value}"
        metadata: dict[str, Any] | None = None if kind == "delete" else {"n": value}
        batch = to_operation_batch([(kind, name, vector, text, None, metadata)], 2)
        await self.system.database.write(known.ref, batch)
        known.oracle.apply(kind, [name], [vector], [text], [None], [metadata])

    async def check(self) -> None:
        """Every live collection has what its oracle has, as a node that has nothing loaded reads it."""
        fresh = self.system.new_node("fresh")
        self.system.node, before = fresh, self.system.node
        database = self.system.new_database()
        for known in self.trees:
            answer = await database.get(known.ref, include=EVERYTHING)
            expected = known.oracle.get()
            assert [row["id"] for row in from_row_table(answer.rows)] == [record["id"] for record in expected]
            for row, record in zip(from_row_table(answer.rows), expected, strict=True):
                assert (row["document"], row["metadata"]) == (record["document"], record["metadata"])
                np.testing.assert_array_equal(np.float32(row["embedding"]), np.float32(record["embedding"]))
        await fresh.close()
        self.system.node = before

    async def everything_goes(self) -> None:
        """When all collections are deleted and all time has passed nothing is left."""
        for known in self.trees:
            await self.system.database.delete_collection(known.ref)
        for _ in range(3 + self.count):  # a tree goes from its leaves to its root
            await self.system.clock.advance(RETENTION_S)
            assert (await self.sweeper().sweep()).counters.failures == 0
        assert [info.key async for info in self.system.objects.list("")] == []
        assert self.system.catalog._states == {}

    def _name(self) -> str:
        self.count += 1
        return f"tree{self.count}"


@examples(60)
@given(moves)
def test_forks_live_and_die_apart(script: list[Move]) -> None:
    async def play() -> None:
        forest = Forest()
        for what, which, value in script:
            await forest.move(what, which, value)
        await forest.check()
        await forest.everything_goes()

    asyncio.run(play())


async def test_a_fork_outlives_its_source_and_what_the_source_merged_away() -> None:
    forest = Forest()
    for value in (16, 17, 18):
        await forest.move("write", 0, value)
        await forest.move("compact", 0, 0)
    await forest.move("fork", 0, 0)
    await forest.move("write", 0, 19)
    await forest.move("merge", 0, 0)
    for _ in range(3):
        await forest.move("wait", 0, 0)
    before = len([info async for info in forest.system.objects.list("")])
    await forest.move("sweep", 0, 0)
    await forest.check()
    await forest.move("delete", 0, 0)
    for _ in range(3):
        await forest.move("wait", 0, 0)
    await forest.move("sweep", 0, 0)
    assert 0 < len([info async for info in forest.system.objects.list("")]) < before
    await forest.check()
    await forest.everything_goes()
