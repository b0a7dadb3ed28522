"""A collection in a query node that may hold a part of its vectors: recall, what is read, and what is in memory.

    make bench ARGS="memory [--set small|wordnet384] [--share 0.25] [--recall 0.95]"

Two query nodes over one collection, on blocks cached on local disk: one with room for everything, one whose budget is a share of the
vectors' bytes. Asked one query at a time: recall@10 against exact search, microseconds, bytes read from the device for each query
(cold: the system's own cache was emptied before; warm: it was not), and the most that the kernel counted as this process's memory of
those files.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.churn import write
from bench.engine_datasets import EngineData
from bench.engines import SETS, evenly, recall_of
from shoal_compactor.compactor import CompactorSettings
from shoal_compactor.flush import FlushSettings
from shoal_core.contracts import CollectionRef, NewCollection, QueryRequest, Target
from shoal_core.records import ID, Operation
from shoal_query.node import Node, NodeSettings
from shoal_runtime.blas import one_blas_thread
from shoal_storage.cache import BlockCache
from shoal_testing.direct import DirectSystem
from shoal_testing.fakes import DEFAULT_DATABASE, DEFAULT_TENANT
from shoal_testing.resident import resident_bytes

K = 10
_PLACE = Path(__file__).resolve().parents[1] / ".cache"
_LOOK = 20  # queries between two looks at memory


@dataclass
class Round:
    """What one pass over the queries came to."""

    rows: npt.NDArray[np.int64]
    microseconds: float
    read_bytes: float
    most_bytes: int
    strategies: set[str]


def device_bytes() -> int:
    """That this process made the system read from a device."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def empty_system_cache(directory: Path) -> None:
    """Of these files, after they were written out. What is mapped stays; a node lets go of that first."""
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


async def ask(node: Node, target: Target, queries: npt.NDArray[np.float32], recall: float, directory: Path) -> Round:
    """Every query by itself."""
    rows, most, strategies = [], 0, set()
    before, seconds = device_bytes(), 0.0
    for number in range(len(queries)):
        request = QueryRequest(target, queries[number : number + 1], K, recall=recall, explain=number == 0)
        started = time.perf_counter()
        answer = await node.query(request)
        seconds += time.perf_counter() - started
        rows.append([int(name) for name in answer.rows.column(ID).to_pylist()])
        if answer.explain is not None:
            [shard] = answer.explain["shards"]
            strategies |= {segment["strategy"] for segment in shard["segments"]}
        if number % _LOOK == 0:
            most = max(most, resident_bytes(directory))
    read = device_bytes() - before
    return Round(np.array(rows), 1e6 * seconds / len(queries), read / len(queries), most, strategies)


async def loaded(data: EngineData) -> tuple[DirectSystem, Target]:
    """A system with the set in one collection, all of it compacted into one segment."""
    system = DirectSystem(settings=CompactorSettings(flush=FlushSettings(threads=2)))
    new = NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, "memory", space=data.space)
    made, _ = await system.database.create_collection(new)
    ref = CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, id=made.id)
    await write(system, ref, Operation.ADD, np.arange(len(data.base)), data.base)
    await system.compact(ref)
    return system, Target(made.id, 1, data.space, 0, 1)


async def measure(data: EngineData, share: float, recall: float, count: int) -> None:
    """Print the figures of one set."""
    data = evenly(data, max(1, len(data.queries) // count))
    queries = np.ascontiguousarray(data.queries)
    system, target = await loaded(data)
    vector_bytes = data.base.nbytes
    print(f"{data.name}: {len(data.base)} x {data.base.shape[1]}, {vector_bytes / 2**20:.0f} MiB of vectors")
    for name, budget in (("all", 8 << 30), (f"{share:g} of the vectors", int(share * vector_bytes))):
        with tempfile.TemporaryDirectory(dir=_PLACE) as directory:
            path = Path(directory)
            cache = BlockCache(path, 8 << 30, 0, system.objects)
            settings = NodeSettings(loaded_bytes=budget, recall_check_share=0.0)
            node = Node("node", replace(system.node.services, blocks=cache), settings)
            await node.query(QueryRequest(target, queries[:1], K))
            for shard in node.loaded.shards.values():
                await shard.release()
            empty_system_cache(path)
            for temperature in ("cold", "warm"):
                found = await ask(node, target, queries, recall, path)
                print(
                    f"memory for {name:20} {temperature}: recall@{K} {recall_of(found.rows, data.neighbours):.4f} at {recall:g}, "
                    f"{found.microseconds:,.0f} us a query, {found.read_bytes / 1024:,.0f} KiB read for each, at most "
                    f"{found.most_bytes / 2**20:.1f} MiB in memory, by {'/'.join(sorted(found.strategies))}",
                    flush=True,
                )
            await node.close()
            await cache.close()
            del node, cache


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench memory", description=__doc__)
    parser.add_argument("--cache", type=Path, default=_PLACE)
    parser.add_argument("--set", choices=[*SETS], default="small")
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--queries", type=int, default=500)
    given = parser.parse_args(arguments)
    with one_blas_thread():
        asyncio.run(measure(SETS[given.set](given.cache), given.share, given.recall, given.queries))
