"""Ingest and query figures on WordNet (116,659 glosses, 384 dimensions, cosine), as ratios to raw hnswlib in the same run.

    make bench [ARGS="--limit 10000"] [ARGS="--profile"]

Raw hnswlib (M 16, ef_construction 100, two threads to build, one to search) in this process is the yardstick: what Shoal adds to it is
durability, documents and metadata, a filter language, and a socket. Every line says what was measured; times on a shared machine vary,
read the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import hnswlib
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bench.datasets import WordNet384, wordnet384
from shoal import aio
from shoal_cli.local_cluster import ClusterPlan, LocalCluster
from shoal_runtime.blas import one_blas_thread
from shoal_runtime.lifecycle import run

K = 10
TARGET = 0.95
BATCH = 1000
IN_FLIGHT = 4
QUERIES = 300
ROUNDS = 3


@dataclass(frozen=True)
class Figures:
    """Of one system: records a second (acknowledged, until indexed), queries a second, ms, recall."""

    acknowledged: float
    indexed: float
    single: float
    p50_ms: float
    p99_ms: float
    batched: float
    recall: float
    ef: int


def recall_of(found: list[list[int]], truth: npt.NDArray[np.int32]) -> float:
    """Share of the true nearest that were found."""
    return sum(len(set(row) & set(true[:K].tolist())) for row, true in zip(found, truth, strict=True)) / (
        K * len(truth)
    )


def measure_raw(data: WordNet384) -> Figures:
    """hnswlib called directly."""
    started = time.perf_counter()
    index = hnswlib.Index(space="cosine", dim=data.base.shape[1])
    index.init_index(max_elements=len(data.base), ef_construction=100, M=16)
    index.add_items(data.base, num_threads=2)
    built = len(data.base) / (time.perf_counter() - started)
    index.set_num_threads(1)
    queries, truth = data.queries[:QUERIES], data.neighbours[:QUERIES]
    for ef in (10, 16, 24, 32, 48, 64, 96, 128, 256):
        index.set_ef(ef)
        recall = recall_of(index.knn_query(queries, k=K)[0].tolist(), truth)
        if recall >= TARGET:
            break
    times = []
    for _ in range(ROUNDS):
        for query in queries:
            started = time.perf_counter()
            index.knn_query(query, k=K)
            times.append(time.perf_counter() - started)
    started = time.perf_counter()
    for _ in range(ROUNDS):
        for start in range(0, QUERIES, 100):
            index.knn_query(queries[start : start + 100], k=K, num_threads=2)
    batched = ROUNDS * QUERIES / (time.perf_counter() - started)
    return _figures(built, built, times, batched, recall, ef)


def _figures(
    acknowledged: float, indexed: float, times: list[float], batched: float, recall: float, ef: int
) -> Figures:
    ordered = sorted(times)
    p99 = ordered[int(0.99 * len(ordered))]
    median = statistics.median(ordered)
    return Figures(acknowledged, indexed, len(times) / sum(times), 1000 * median, 1000 * p99, batched, recall, ef)


async def measure_shoal(client: aio.AsyncClient, data: WordNet384, *, settle: Callable[[], Awaitable[None]]) -> Figures:
    """A collection of one shard through the SDK: documents and metadata in and out."""
    collection = await client.create_collection("bench", space="cosine", shards=1)
    ids = pa.array([str(number) for number in range(len(data.base))])
    texts = data.meta.column("text")
    started = time.perf_counter()
    writing: set[asyncio.Task[object]] = set()
    for start in range(0, len(data.base), BATCH):
        part = slice(start, start + BATCH)
        write = collection.add(
            ids[part].to_pylist(),
            embeddings=data.base[part],
            documents=texts.slice(start, BATCH).to_pylist(),
            metadatas={name: data.meta.column(name).slice(start, BATCH) for name in ("pos", "domain", "word_count")},
        )
        writing.add(asyncio.create_task(write))
        if len(writing) >= IN_FLIGHT:
            _, writing = await asyncio.wait(writing, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.gather(*writing)
    acknowledged = len(data.base) / (time.perf_counter() - started)
    await collection.wait_until_indexed(timeout_s=600)
    indexed = len(data.base) / (time.perf_counter() - started)
    await settle()
    queries, truth = data.queries[:QUERIES], data.neighbours[:QUERIES]

    async def ask(vectors: npt.NDArray[np.float32], ef: int) -> list[list[str]]:
        include = ("documents", "metadatas", "distances")
        return (await collection.query(query_embeddings=vectors, n_results=K, ef=ef, include=include)).ids

    for ef in (10, 16, 24, 32, 48, 64, 96, 128, 256):
        found = [[int(name) for name in row] for row in await ask(queries, ef)]
        recall = recall_of(found, truth)
        if recall >= TARGET:
            break
    times = []
    for _ in range(ROUNDS):
        for query in queries:
            started = time.perf_counter()
            await ask(query[None, :], ef)
            times.append(time.perf_counter() - started)
    started = time.perf_counter()
    for _ in range(ROUNDS):
        for start in range(0, QUERIES, 100):
            await ask(queries[start : start + 100], ef)
    batched = ROUNDS * QUERIES / (time.perf_counter() - started)
    return _figures(acknowledged, indexed, times, batched, recall, ef)


@asynccontextmanager
async def embedded(path: Path) -> AsyncIterator[aio.AsyncClient]:
    """The whole system in this process."""
    async with await aio.connect(path=path / "embedded", timeout_ms=120_000) as client:
        yield client


@asynccontextmanager
async def cluster(path: Path) -> AsyncIterator[aio.AsyncClient]:
    """A local cluster of one query node and one of every other role: on two cores more of them only wait for each other."""
    plan = ClusterPlan(path / "cluster", querynodes=1, frontends=1, logservices=1, compactors=1, sysdbs=1)
    running = LocalCluster(plan)
    await running.start()
    try:
        async with await aio.connect(",".join(running.frontends), timeout_ms=120_000) as client:
            yield client
    finally:
        await running.stop()


async def _settled() -> None:
    await asyncio.sleep(3.0)  # merges that follow the last flush


async def profile_embedded(path: Path, data: WordNet384) -> None:
    """cProfile of the event loop's thread during ingest and queries: calls of the busiest functions, per record or query."""
    profiler = cProfile.Profile()
    async with embedded(path) as client:
        profiler.enable()
        await measure_shoal(client, data, settle=_settled)
        profiler.disable()
    print("\nProfile of the event loop's thread (ingest and queries), by calls:")
    pstats.Stats(profiler).sort_stats("ncalls").print_stats(15)
    print("…and by own time:")
    pstats.Stats(profiler).sort_stats("tottime").print_stats(20)


def report(name: str, figures: Figures, raw: Figures) -> None:
    """One line, absolute and as ratios to the raw library."""
    print(
        f"{name:<10} ingest {figures.acknowledged:>9,.0f}/s acknowledged, {figures.indexed:>7,.0f}/s until indexed "
        f"({figures.indexed / raw.indexed:.2f}x) | one client {figures.single:>7,.0f} q/s ({figures.single / raw.single:.3f}x) "
        f"p50 {figures.p50_ms:.2f} p99 {figures.p99_ms:.2f} ms | batches of 100 {figures.batched:>7,.0f} q/s "
        f"({figures.batched / raw.batched:.2f}x) | recall@10 {figures.recall:.3f} at ef {figures.ef}",
        flush=True,
    )


async def measure(limit: int | None, profile: bool) -> None:
    """Measure and print."""
    data = wordnet384(Path(__file__).parents[1] / ".cache", limit=limit)
    path = Path(tempfile.mkdtemp(prefix="shoal-bench-"))
    print(f"{len(data.base):,} glosses x {data.base.shape[1]}, {QUERIES} queries x {ROUNDS}, recall target {TARGET}")
    try:
        if profile:
            return await profile_embedded(path, data)
        with one_blas_thread():
            raw = measure_raw(data)
        report("hnswlib", raw, raw)
        for name, start in (("embedded", embedded), ("cluster", cluster)):
            async with start(path) as client:
                report(name, await measure_shoal(client, data, settle=_settled), raw)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=None, help="glosses, queries included; all by default")
    parser.add_argument("--profile", action="store_true", help="profile the embedded system instead")
    options = parser.parse_args()
    run(lambda: measure(options.limit, options.profile))
