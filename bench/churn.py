"""Rounds of deleting and inserting a tenth of a collection at random: recall and memory with no operator's hand.

    make bench ARGS="churn [--set small|wordnet384] [--rounds 10]"

A frontend, a query node and a compactor in one process over stores in memory, which compacts whatever its policy finds due. After each
round the recall@10 of held-out queries against exact search, at the collection's target, what the query node holds, and the process's
resident memory are printed, the latter without what the stores hold, which never forget: objects and the log. And how many bytes were
written for each byte of vectors that came in.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bench.engines import SETS
from shoal_compactor.compactor import CompactorSettings
from shoal_compactor.flush import FlushSettings
from shoal_core.contracts import CollectionRef, NewCollection
from shoal_core.records import EMBEDDING, ID, OP, Operation, embedding_array
from shoal_runtime.blas import one_blas_thread
from shoal_testing.direct import DirectSystem
from shoal_testing.fakes import DEFAULT_DATABASE, DEFAULT_TENANT

K = 10
SHARE = 0.1
BATCH = 5_000


def batch_of(
    operation: Operation, ids: npt.NDArray[np.int64], vectors: npt.NDArray[np.float32] | None
) -> pa.RecordBatch:
    """Records of these numbers; a deletion has no vectors."""
    columns = {OP: pa.array(np.full(len(ids), operation, np.uint8)), ID: pa.array([str(number) for number in ids])}
    if vectors is not None:
        columns[EMBEDDING] = embedding_array(vectors)
    return pa.record_batch(columns)


async def write(
    system: DirectSystem,
    ref: CollectionRef,
    operation: Operation,
    ids: npt.NDArray[np.int64],
    base: npt.NDArray[np.float32],
) -> None:
    """In batches. Record n is the vector of row n modulo the set's size."""
    for start in range(0, len(ids), BATCH):
        part = ids[start : start + BATCH]
        vectors = None if operation is Operation.DELETE else np.ascontiguousarray(base[part % len(base)])
        await system.database.write(ref, batch_of(operation, part, vectors))


async def recall_of(system: DirectSystem, ref: CollectionRef, queries: npt.NDArray[np.float32]) -> tuple[float, str]:
    """Recall@10 at the collection's target, and how segments were searched."""
    near = await system.database.query(ref, queries, K, explain=True)
    true = await system.database.query(ref, queries, K, exact=True)
    rows = [answer.rows.column(ID).to_numpy(zero_copy_only=False).reshape(len(queries), K) for answer in (near, true)]
    shares = [len({*found} & {*wanted}) / K for found, wanted in zip(*rows, strict=True)]
    assert near.explain is not None
    plans = [f"{s['strategy']} {s['effort']} of {s['live']}" for s in near.explain["shards"][0]["segments"]]
    return statistics.mean(shares), ", ".join(plans)


def resident_bytes() -> int:
    """Of this process, by the kernel's count, after what is free was given back."""
    ctypes.CDLL(None).malloc_trim(0)
    pa.default_memory_pool().release_unused()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def count_writes(system: DirectSystem) -> list[int]:
    """The bytes of every object that is written from now on."""
    written: list[int] = []
    put = system.objects.put

    async def counted(key: str, data: Any, *arguments: Any, **options: Any) -> Any:
        written.append(memoryview(data).nbytes)
        return await put(key, data, *arguments, **options)

    system.objects.put = counted  # type: ignore[method-assign]
    return written


async def run(name: str, rounds: int, cache: Path, count: int) -> None:
    """Print a line for each round."""
    data = SETS[name](cache)
    base, step = np.asarray(data.base), max(1, len(data.queries) // count)
    queries = np.ascontiguousarray(data.queries[::step])
    flush = FlushSettings(graph_rows=min(10_000, len(base) // 3))
    system = DirectSystem(settings=CompactorSettings(min_records=1, flush=flush))
    new = NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, "churn", data.space)
    made, _ = await system.database.create_collection(new)
    ref = CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, id=made.id)
    alive = np.arange(len(base))
    random = np.random.default_rng(1)
    ingested, written = base.nbytes, count_writes(system)
    await write(system, ref, Operation.ADD, alive, base)
    print(
        f"{name}: {base.shape[0]} x {base.shape[1]}; after each round: recall@{K}, segments, held and resident MiB, seconds"
    )
    for number in range(rounds + 1):
        started = time.perf_counter()
        if number:
            gone = random.choice(len(alive), round(SHARE * len(alive)), replace=False)
            fresh = alive[gone] + len(base)  # the same vectors under ids of their own
            await write(system, ref, Operation.DELETE, alive[gone], base)
            await write(system, ref, Operation.ADD, fresh, base)
            alive[gone] = fresh
            ingested += len(fresh) * base.shape[1] * 4
        await system.compact(ref, merge=True)
        seconds = time.perf_counter() - started
        recall, plans = await recall_of(system, ref, queries)
        held = sum(shard.size_bytes for shard in system.node.loaded.shards.values()) / 2**20
        resident = (resident_bytes() - sum(written) - ingested) / 2**20
        print(
            f"{number:3} {recall:.4f}  [{plans}]  {held:.0f} held, {resident:.0f} resident, {seconds:.1f} s, "
            f"{sum(written) / ingested:.2f} bytes written for each that came in"
        )
    await system.node.close()


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench churn", description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(__file__).resolve().parents[1] / ".cache")
    parser.add_argument("--set", choices=[*SETS], default="small")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--queries", type=int, default=300)
    given = parser.parse_args(arguments)
    with one_blas_thread():
        asyncio.run(run(given.set, given.rounds, given.cache, given.queries))
