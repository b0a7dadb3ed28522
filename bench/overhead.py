"""What one query costs in each layer: the kernel, its segment, a query node, the frontend, the SDK.

    make bench ARGS="overhead [--records 20000] [--queries 200] [--rounds 7] [--together 100]"

An embedded system over glosses of WordNet in 384 dimensions, compacted into one segment, in this process and without sockets. One
query at a time, then several together in one call, then queries one by one of several tasks at once. In every round the layers take
turns; printed are medians over the rounds of a round's median, in microseconds a call, the ratio to the kernel, and the processor time
of all threads. The title says what the planner chose and how hard it looks.

Answers have ids and distances; those *with records* documents and metadata too. Layers from *node* on read strongly, but for one.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench import datasets
from shoal._connect import Connection
from shoal._loop import LoopThread
from shoal.aio import AsyncClient
from shoal.client import Client
from shoal.collection import Collection
from shoal_cli.embedded import EmbeddedSettings, EmbeddedSystem
from shoal_compactor.compactor import CompactorSettings
from shoal_core.consistency import STRONG, Consistency, ReadLevel
from shoal_core.contracts import CollectionRef, Include, QueryRequest, Target
from shoal_index.planner import DEFAULT_RECALL, Ask
from shoal_index.segment import Segment
from shoal_index.vector import native
from shoal_index.vector.clusters import AllowedLists, ClusterIndex
from shoal_index.vector.hnsw import HnswIndex
from shoal_query.node import NodeSettings

K = 10
_PLACE = Path(__file__).resolve().parents[1] / ".cache"
_BATCH = 5_000
_NEVER_MS = 10**12
_WARM = 20
_TASKS = 8

Vectors = npt.NDArray[np.float32]
Layer = Callable[[Vectors], Awaitable[object]]
_IDS = Include(distances=True)
_RECORDS = Include(documents=True, metadatas=True, distances=True)


@dataclass(slots=True)
class Figures:
    """Of one layer, a value for each round: microseconds a call, and of processor time."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


async def measure(layers: Mapping[str, Layer], calls: Sequence[Vectors], rounds: int) -> dict[str, Figures]:
    """All layers in turn, each round beginning with another one."""
    found = {name: Figures() for name in layers}
    names = list(layers)
    for number in range(rounds + 1):  # the first warms up
        first = number % len(names)
        for name in names[first:] + names[:first]:
            layer, taken = layers[name], []
            used = time.process_time()
            for call in calls if number else calls[:_WARM]:
                started = time.perf_counter()
                await layer(call)
                taken.append(time.perf_counter() - started)
            if number:
                found[name].wall.append(1e6 * statistics.median(taken))
                found[name].cpu.append(1e6 * (time.process_time() - used) / len(calls))
    return found


async def measure_at_once(layers: Mapping[str, Layer], calls: Sequence[Vectors], rounds: int) -> dict[str, Figures]:
    """The same, of several tasks that ask at once: the time of all divided by the calls."""

    async def at_once(layer: Layer) -> None:
        left = iter(calls)

        async def one_by_one() -> None:
            for call in left:
                await layer(call)

        await asyncio.gather(*(one_by_one() for _ in range(_TASKS)))

    found = {name: Figures() for name in layers}
    for _ in range(rounds):
        for name, layer in layers.items():
            used, started = time.process_time(), time.perf_counter()
            await at_once(layer)
            found[name].wall.append(1e6 * (time.perf_counter() - started) / len(calls))
            found[name].cpu.append(1e6 * (time.process_time() - used) / len(calls))
    return found


def report(title: str, found: Mapping[str, Figures]) -> None:
    """Medians over the rounds."""
    print(f"\n{title:34}{'us a call':>12}{'ratio':>8}{'CPU us':>12}")
    kernel = statistics.median(next(iter(found.values())).wall)
    for name, figures in found.items():
        wall = statistics.median(figures.wall)
        print(f"{name:34}{wall:12,.0f}{wall / kernel:8.2f}{statistics.median(figures.cpu):12,.0f}", flush=True)


def kernel_of(segment: Segment, ask: Ask, queries: Vectors) -> tuple[Callable[[Vectors], object], str]:
    """The call of the compiled kernel that the plan leads to, and the plan."""
    _, plan = segment.search(queries, ask, allowed=None, threads=1)
    if plan.way < 0:
        return partial(native.scan, segment.vectors.handle(segment.space), k=K, allowed=None, threads=1), "scan"
    index, vectors = segment.ways[plan.way].index, segment.vectors.handle(segment.space)
    said = f"{plan.strategy} {plan.effort}"
    if isinstance(index, HnswIndex):
        search = native.search_graph
        return lambda asked: search(vectors, index.handle, asked, K, ef=plan.effort, allowed=None, threads=1), said
    assert isinstance(index, ClusterIndex)
    lists = AllowedLists(index.clusters)
    search_lists = partial(
        native.search_clusters,
        vectors,
        index._handle,
        k=K,
        probes=plan.effort,
        refined=index.measured(K),
        allowed=None,
        allowed_counts=lists.counts,
        allowed_bits=lists.bits,
        threads=1,
    )
    return search_lists, said


def layers_of(system: EmbeddedSystem, collection: Collection, queries: Vectors) -> tuple[dict[str, Layer], str]:
    """Every layer by its name."""
    [shard] = system.node.loaded.shards.values()
    assert shard.view is not None
    [held] = shard.view.version.segments
    ask = Ask(K, DEFAULT_RECALL, queries=len(queries))
    kernel, plan = kernel_of(held.segment, ask, queries)
    inner = collection._collection
    ref = CollectionRef(inner._info.tenant, inner._info.database, id=inner.id)
    target = Target(inner.id, inner._info.epoch, inner.space, 0, 1)

    async def run_kernel(asked: Vectors) -> object:
        return kernel(asked)

    async def segment(asked: Vectors) -> object:
        return held.segment.search(asked, ask, allowed=None, threads=1)

    def node(include: Include, consistency: Consistency = STRONG) -> Layer:
        return lambda asked: system.node.query(QueryRequest(target, asked, K, consistency, include=include))

    def frontend(include: Include) -> Layer:
        return lambda asked: system.api.query(ref, asked, K, include=include)

    def sdk(*include: str) -> Layer:
        return lambda asked: inner.query(asked, n_results=K, include=include)

    return {
        "kernel": run_kernel,
        "segment": segment,
        "node, index only": node(_IDS, Consistency(ReadLevel.INDEX_ONLY)),
        "node": node(_IDS),
        "frontend": frontend(_IDS),
        "SDK, async": sdk("distances"),
        "node, with records": node(_RECORDS),
        "frontend, with records": frontend(_RECORDS),
        "SDK, async, with records": sdk("documents", "metadatas", "distances"),
    }, plan


def measure_sync(collection: Collection, calls: Sequence[Vectors], rounds: int) -> dict[str, Figures]:
    """The sync SDK, which calls from another thread."""

    def sdk(*include: str) -> Layer:
        async def call(asked: Vectors) -> object:
            return collection.query(asked, n_results=K, include=include)

        return call

    layers = {
        "SDK, sync": sdk("distances"),
        "SDK, sync, with records": sdk("documents", "metadatas", "distances"),
    }
    return asyncio.run(measure(layers, calls, rounds))


async def started(path: Path) -> tuple[EmbeddedSystem, AsyncClient]:
    """A system that compacts when told to, with a client."""
    never = CompactorSettings(min_records=10**9, max_age_ms=_NEVER_MS, orphan_age_ms=_NEVER_MS)
    node = NodeSettings(threads=1, recall_check_share=0.0)
    system = EmbeddedSystem(path, EmbeddedSettings(compactor=never, node=node))
    await system.start()
    return system, AsyncClient(Connection((system.api,), "bench", system.close))


def load(client: Client, base: Vectors) -> Collection:
    """All rows, each with a text and a number."""
    made = client.create_collection("overhead", space="cosine")
    for start in range(0, len(base), _BATCH):
        numbers = range(start, min(start + _BATCH, len(base)))
        made.add(
            ids=[str(number) for number in numbers],
            embeddings=base[numbers.start : numbers.stop],
            documents=[f"document {number} " + "of some words " * 5 for number in numbers],
            metadatas=[{"number": number, "even": number % 2 == 0} for number in numbers],
        )
    return made


def run(path: Path, options: argparse.Namespace) -> None:
    """Everything."""
    data = datasets.wordnet384(options.cache, options.records)
    base, queries = np.asarray(data.base, dtype=np.float32), np.ascontiguousarray(data.queries, dtype=np.float32)
    loop = LoopThread()
    try:
        system, inner = loop.run(lambda: started(path))
        client = Client(loop, inner)
        if client.count_collections() == 0:
            loaded = load(client, base)
            loop.run(lambda: system.compactor.compact(loaded.id, merge=False))
        collection = client.get_collection("overhead")
        collection.query(queries[:1], n_results=K)
        one = [queries[number % len(queries)][None, :] for number in range(options.queries)]
        starts = range(0, len(queries) - options.together + 1, options.together)
        many = [queries[start : start + options.together] for start in starts]
        print(f"{len(base)} x {base.shape[1]}, kernels {native.level()}, k = {K}")
        for title, calls in (("one query", one), (f"{options.together} queries", many)):
            layers, plan = layers_of(system, collection, calls[0])
            found: dict[str, Figures] = loop.run(partial(measure, layers, calls, options.rounds))
            found |= measure_sync(collection, calls, options.rounds)
            report(f"{title}, by {plan}", found)
        layers, _ = layers_of(system, collection, one[0])
        report(f"{_TASKS} tasks, each one query", loop.run(partial(measure_at_once, layers, one, options.rounds)))
    finally:
        loop.close()


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bench overhead", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, default=_PLACE)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=200, help="one by one, in each round")
    parser.add_argument("--together", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--keep", type=Path, help="a data directory that is kept, and not loaded again if it is there")
    options = parser.parse_args(arguments)
    if options.keep is not None:
        run(options.keep, options)
        return
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as directory:
        run(Path(directory), options)
