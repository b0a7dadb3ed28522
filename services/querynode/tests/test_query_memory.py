"""A query node with little memory: vectors stay on local disk, what was read of them is let go of, and answers are the same."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shoal_compactor.compactor import CompactorSettings
from shoal_compactor.flush import FlushSettings
from shoal_core.contracts import CollectionRef, CountRequest, NewCollection, QueryRequest, Target
from shoal_core.records import EMBEDDING, ID, OP, embedding_array
from shoal_index import planner
from shoal_query.execute import DISTANCE
from shoal_query.node import Node, NodeSettings
from shoal_storage.cache import BlockCache
from shoal_testing.direct import DirectSystem
from shoal_testing.fakes import DEFAULT_DATABASE, DEFAULT_TENANT
from shoal_testing.resident import resident_bytes

ROWS, DIMENSION, K = 6_000, 512, 10
VECTOR_BYTES = 4 * ROWS * DIMENSION


def points(rows: int, seed: int) -> np.ndarray:
    middles = np.random.default_rng(1).standard_normal((40, DIMENSION))
    random = np.random.default_rng(seed)
    return (middles[random.integers(40, size=rows)] + 0.6 * random.standard_normal((rows, DIMENSION))).astype(
        np.float32
    )


async def loaded(system: DirectSystem, name: str = "large") -> Target:
    made, _ = await system.database.create_collection(NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, name))
    ref = CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, id=made.id)
    columns = {OP: pa.array(np.zeros(ROWS, np.uint8)), ID: pa.array([str(number) for number in range(ROWS)])}
    columns[EMBEDDING] = embedding_array(points(ROWS, 2))
    await system.database.write(ref, pa.record_batch(columns))
    await system.compact(ref)
    return Target(made.id, 1, "l2", 0, 1)


def strategies(explained: Any) -> set[str]:
    [shard] = explained["shards"]
    return {segment["strategy"] for segment in shard["segments"]}


async def test_a_quarter_of_the_vectors_is_enough_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "SCAN_ROWS", 100)
    system = DirectSystem(settings=CompactorSettings(flush=FlushSettings(threads=1, graph_rows=1_000)))
    target = await loaded(system)
    cache = BlockCache(tmp_path, 1 << 30, 0, system.objects)
    lean = Node("lean", replace(system.node.services, blocks=cache), NodeSettings(loaded_bytes=VECTOR_BYTES // 4))
    roomy = Node("roomy", replace(system.node.services, blocks=cache), NodeSettings())
    queries = points(300, 9)
    await lean.query(QueryRequest(target, queries[:1], K))  # after which it knows that not all fits
    found, true = [], []
    for number in range(len(queries)):
        request = QueryRequest(target, queries[number : number + 1], K, explain=True)
        answer = await lean.query(request)
        assert strategies(answer.explain) == {"clusters"}, "they read the fewest vectors"
        found.append(answer.rows.column(ID).to_pylist())
        exact = await roomy.query(replace(request, exact=True))
        true.append(exact.rows.column(ID).to_pylist())
        [shard] = lean.loaded.shards.values()
        await roomy.loaded.shards[next(iter(roomy.loaded.shards))].release()
        assert shard.size_bytes <= VECTOR_BYTES // 4 + VECTOR_BYTES // 16
        if number % 50 == 0:
            await system.clock.advance(5.0)  # which would be time to check a query
            assert resident_bytes(tmp_path) <= VECTOR_BYTES // 2, "near enough by the kernel's own count"
    recall = np.mean([len({*near} & {*far}) / K for near, far in zip(found, true, strict=True)])
    assert recall >= 0.95
    assert lean.counters.dropped_shards == 0, "it gives up vectors, not the shard"
    assert lean.counters.recall_checks == 0, "an exact search would read them all"
    whole = await lean.query(QueryRequest(target, queries[:1], K, exact=True))
    again = await roomy.query(QueryRequest(target, queries[:1], K, exact=True))
    assert whole.rows.column(DISTANCE).to_pylist() == again.rows.column(DISTANCE).to_pylist(), (
        "more than fits is read, and let go of"
    )
    assert next(iter(lean.loaded.shards.values())).size_bytes <= VECTOR_BYTES // 4
    await lean.close()
    await roomy.close()
    await cache.close()
    await system.node.close()


async def test_a_restart_does_not_bring_all_vectors_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that an earlier process left on disk are verified when they are first used, and so read."""
    monkeypatch.setattr(planner, "SCAN_ROWS", 100)
    system = DirectSystem(settings=CompactorSettings(flush=FlushSettings(threads=1, graph_rows=1_000)))
    target = await loaded(system)
    first = BlockCache(tmp_path, 1 << 30, 0, system.objects)
    before = Node("before", replace(system.node.services, blocks=first))
    await before.query(QueryRequest(target, points(1, 9), K))
    await before.close()
    del before
    gc.collect()
    again = BlockCache(tmp_path, 1 << 30, 0, system.objects)
    node = Node("after", replace(system.node.services, blocks=again), NodeSettings(loaded_bytes=VECTOR_BYTES // 2))
    await node.count(CountRequest(target))
    assert again.stats().misses == 0
    assert resident_bytes(tmp_path) <= VECTOR_BYTES * 3 // 4, "the system may map up to 2 MiB around what is read"
    await node.close()
    await system.node.close()


async def test_shards_that_nobody_reads_do_not_crowd_a_node(tmp_path: Path) -> None:
    """Their vectors cost nothing while they lie on disk; what is in memory for good counts once."""
    system = DirectSystem(settings=CompactorSettings(flush=FlushSettings(threads=1, graph_rows=10**9)))
    targets = [await loaded(system, name) for name in ("one", "other")]
    cache = BlockCache(tmp_path, 1 << 30, 0, system.objects)
    settings = NodeSettings(loaded_bytes=round(1.7 * VECTOR_BYTES), reads_per_shrink=1)
    node = Node("node", replace(system.node.services, blocks=cache), settings)
    for target in targets:
        await node.count(CountRequest(target))
    assert node.loaded.crowded
    await system.clock.advance(61.0)
    await node.count(CountRequest(targets[0]))
    assert not node.loaded.crowded
    assert len(node.loaded.shards) == 2
    in_memory = Node(
        "memory", system.node.services, NodeSettings(loaded_bytes=round(1.5 * VECTOR_BYTES), reads_per_shrink=1)
    )
    for _ in range(2):
        await in_memory.count(CountRequest(targets[0]))
    assert not in_memory.loaded.crowded
    await node.close()
    await in_memory.close()
    await system.node.close()
