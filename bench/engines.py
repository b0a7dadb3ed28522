"""Vector engines: recall against exact ground truth at each target and filter, and speed beside raw engines in the same run.

    make bench ARGS="engines [--set small|wordnet384|glove100|synth1m] [--queries 500] [--rounds 5]
        [--cells all r1 f1 ...] [--coded-graphs]"

One segment, opened from its blocks in memory, no sockets. *Raw* is hnswlib called directly with the same effort: its published binding
over its own copy of the vectors. *Best* of a filtered cell is the fastest of the single strategies that reach the same recall: rows
copied out once and compared by BLAS; hnswlib, if nothing is filtered; faiss' clusters with 4-bit codes, a bitmap and exact
rescoring, where faiss is installed (it is not a dependency: ``pip install faiss-cpu``). All on one thread, medians of its processor
time over several rounds, taken in turns. Ratios above 1 mean that Shoal is faster. With ``--coded-graphs`` the segment has codes of
its graph's links, and its ways are compared with each other instead (`engine_ways`).
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bench import engine_datasets
from bench.engine_datasets import EngineData
from bench.engine_ways import print_ways
from bench.filters import Memory
from shoal_core.records import CREATED_OFFSET, EMBEDDING, ID, UPDATED_OFFSET, embedding_array
from shoal_index.build import build_segment
from shoal_index.planner import Ask, Strategy
from shoal_index.segment import Segment, open_segment
from shoal_runtime.blas import one_blas_thread

K = 10
TARGETS = (0.90, 0.95, 0.99)
SETS = {
    "small": engine_datasets.small,
    "wordnet384": engine_datasets.wordnet384,
    "glove100": engine_datasets.glove100,
    "synth1m": engine_datasets.synth1m,
}

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]
Search = Callable[[npt.NDArray[np.float32]], Rows]


@dataclass(frozen=True)
class Cell:
    """One filter: which rows pass (None for all), and the true neighbours of each query (q, at least K), -1 where there are fewer."""

    name: str
    allowed: Mask | None
    true: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Peer:
    """A raw engine: its name, and its search at the least effort for a recall in a cell; None where it cannot."""

    name: str
    at: Callable[[Cell, float], Search | None]


def cells(data: EngineData) -> Iterator[Cell]:
    """No filter, and each filter of the set."""
    yield Cell("all", None, data.neighbours)
    for name, case in data.filters.items():
        case.mask.flags.writeable = False  # as masks of filters are; what is to be known of them is looked at once
        yield Cell(name, case.mask, case.neighbours)


def evenly(data: EngineData, step: int) -> EngineData:
    """The set with every so many queries, with what belongs to them."""
    filters = {name: replace(case, neighbours=case.neighbours[::step]) for name, case in data.filters.items()}
    return replace(data, queries=data.queries[::step], neighbours=data.neighbours[::step], filters=filters)


def recall_of(found: Rows, true: npt.NDArray[np.int32]) -> float:
    """Mean over the queries of the share of the true nearest that were found."""
    shares = []
    for row, best in zip(found.tolist(), true[:, :K].tolist(), strict=True):
        wanted = {number for number in best if number >= 0}
        shares.append(len(wanted & set(row)) / len(wanted))
    return statistics.mean(shares)


def in_turns(rounds: int, *works: Callable[[], object]) -> list[float]:
    """The median seconds of each, of this thread on a processor: what else runs on the machine counts little.

    Every other round goes backwards: what comes after another finds in the caches what that has read.
    """
    taken: list[list[float]] = [[] for _ in works]
    for number in range(rounds):
        turns = list(zip(taken, works, strict=True))
        for times, work in turns if number % 2 == 0 else reversed(turns):
            started = time.thread_time()
            work()
            times.append(time.thread_time() - started)
    return [statistics.median(times) for times in taken]


async def segment_of(data: EngineData, *, coded_graphs: bool = False) -> tuple[Segment, float]:
    """A segment over the set, and the seconds that building took."""
    rows = len(data.base)
    offsets = pa.array(np.arange(1, rows + 1, dtype=np.uint64))
    table = pa.table(
        {
            ID: [f"{number}" for number in range(rows)],
            CREATED_OFFSET: offsets,
            UPDATED_OFFSET: offsets,
            EMBEDDING: embedding_array(np.asarray(data.base)),
        }
    )
    started = time.perf_counter()
    built = build_segment(
        table,
        data.space,
        segment_id="s",
        tier=0,
        prefix="bench",
        threads=2,
        graph_rows=1_000,
        coded_graphs=coded_graphs,
    )
    seconds = time.perf_counter() - started
    memory = Memory({ref.key: block.data for ref, block in built.objects})
    return await open_segment(built.ref, data.space, memory), seconds


def one_by_one(search: Search, queries: npt.NDArray[np.float32]) -> list[Rows]:
    """Every query in a call of its own."""
    return [search(queries[number : number + 1]) for number in range(len(queries))]


def shoal_search(segment: Segment, cell: Cell, recall: float, *, single: bool = False) -> Search:
    """The segment's search as a query node calls it."""

    def together(queries: npt.NDArray[np.float32]) -> Rows:
        near, _ = segment.search(queries, Ask(K, recall, queries=len(queries)), allowed=cell.allowed, threads=1)
        return near.rows.reshape(len(queries), -1)

    def each(queries: npt.NDArray[np.float32]) -> Rows:
        return np.concatenate(one_by_one(together, queries))

    return each if single else together


def raw_graph(data: EngineData) -> Any:
    """hnswlib with the same parameters, over its own copy of the vectors."""
    index = hnswlib.Index(space=data.space, dim=data.base.shape[1])
    index.init_index(max_elements=len(data.base), ef_construction=100, M=16)
    index.add_items(np.asarray(data.base), num_threads=2)
    index.set_num_threads(1)
    return index


def peers(data: EngineData, index: Any, queries: npt.NDArray[np.float32]) -> list[Peer]:
    """What cells are measured beside."""

    def graph(cell: Cell, recall: float) -> Search | None:
        if cell.allowed is not None:
            return None
        for ef in (10, 14, 20, 28, 40, 56, 80, 112, 160, 224, 320, 448, 640, 900, 1280):
            index.set_ef(ef)
            if recall_of(index.knn_query(queries, k=K)[0], cell.true[: len(queries)]) >= recall:
                return lambda asked: index.knn_query(asked, k=K)[0]
        return None

    def copied(cell: Cell, recall: float) -> Search | None:
        def search(asked: npt.NDArray[np.float32]) -> Rows:
            rows = np.arange(len(data.base)) if cell.allowed is None else np.flatnonzero(cell.allowed)
            part = np.asarray(data.base) if cell.allowed is None else np.asarray(data.base)[rows]
            scores = asked @ part.T
            if data.space == "l2":
                scores = 2 * scores - np.einsum("ij,ij->i", part, part)
            elif data.space == "cosine":
                scores /= np.sqrt(np.einsum("ij,ij->i", part, part))
            k = min(K, len(rows))
            best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
            return rows[np.take_along_axis(best, order, axis=1)]

        return None if cell.allowed is None else search

    found = [Peer("hnswlib", graph), Peer("copy + BLAS", copied)]
    try:
        from bench.faiss_peer import clusters
    except ImportError:
        print("faiss is not installed: no clusters beside the cells")
        return found
    return [*found, Peer("faiss IVF-PQ4fs", clusters(data, queries, recall_of))]


def measure(data: EngineData, count: int, rounds: int, names: Sequence[str]) -> None:
    """Print the figures of one set: of the cells named, or of all if none is."""
    step = max(1, len(data.queries) // count)  # queries are in an order, such as by frequency
    data = evenly(data, step)
    queries = np.ascontiguousarray(data.queries)
    segment, seconds = asyncio.run(segment_of(data))
    assert segment.ways
    rows = len(data.base)
    print(f"\n{data.name}: {rows} x {data.base.shape[1]}, {data.space}; built and calibrated in {seconds:.1f} s")
    index = None
    if not names or "all" in names:
        started = time.perf_counter()
        index = raw_graph(data)
        print(f"hnswlib alone: {time.perf_counter() - started:.1f} s")
    for way in {way.strategy: way for way in segment.ways}.values():
        print(f"{way.strategy}: {way.index.size_bytes / rows:.0f} bytes a row")
    if index is not None:
        print_raw(data, segment, index, queries, rounds)
    beside = peers(data, index, queries)
    print(
        f"{'cell':5} {'target':6} {'recall':6} {'plan':>10} {'batch us':>9} {'single us':>9}  best single strategy, batch and single"
    )
    for cell in cells(data):
        if names and cell.name not in names:
            continue
        for target in TARGETS:
            print_cell(segment, cell, target, queries, beside, rounds)


def measure_ways(data: EngineData, count: int, rounds: int, names: Sequence[str]) -> None:
    """Print how the ways of one set's segment compare, in the cells named, or where all rows and where half of them are allowed."""
    data = evenly(data, max(1, len(data.queries) // count))
    queries = np.ascontiguousarray(data.queries)
    segment, seconds = asyncio.run(segment_of(data, coded_graphs=True))
    rows = len(data.base)
    print(f"\n{data.name}: {rows} x {data.base.shape[1]}, {data.space}; built and calibrated in {seconds:.1f} s")
    for way in {way.strategy: way for way in segment.ways}.values():
        print(f"{way.strategy}: {way.index.size_bytes / rows:.0f} bytes a row")
    chosen = [cell for cell in cells(data) if cell.name in (names or ("all", "f50", "r50"))]
    print_ways(
        segment,
        queries,
        K,
        TARGETS,
        [(cell.name, cell.allowed, partial(recall_of, true=cell.true)) for cell in chosen],
        rounds,
    )


def print_raw(data: EngineData, segment: Segment, index: Any, queries: npt.NDArray[np.float32], rounds: int) -> None:
    """The graph without filter: Shoal's search beside the raw engine at the same effort."""
    cell = Cell("all", None, data.neighbours)
    for target in TARGETS:
        _, plan = segment.search(queries, Ask(K, target, queries=len(queries)), allowed=None, threads=1)
        if plan.strategy is not Strategy.GRAPH:
            continue
        index.set_ef(plan.effort)
        ours, each = shoal_search(segment, cell, target), shoal_search(segment, cell, target, single=True)
        raw = recall_of(index.knn_query(queries, k=K)[0], cell.true[: len(queries)])
        batch, raw_batch, single, raw_single = in_turns(
            rounds,
            partial(ours, queries),
            partial(index.knn_query, queries, k=K),
            partial(each, queries),
            partial(one_by_one, partial(index.knn_query, k=K), queries),
        )
        print(
            f"target {target}: ef {plan.effort}, recall {recall_of(ours(queries), cell.true[: len(queries)]):.4f} "
            f"(estimated {plan.recall:.4f}, hnswlib {raw:.4f}); batch {raw_batch / batch:.2f} x hnswlib, "
            f"single {raw_single / single:.2f} x hnswlib ({1e6 * single / len(queries):.0f} us)"
        )


def print_cell(
    segment: Segment,
    cell: Cell,
    target: float,
    queries: npt.NDArray[np.float32],
    beside: Sequence[Peer],
    rounds: int,
) -> None:
    """One line: recall, time, and the fastest peer at the recall that was reached."""
    count = len(queries)
    ours, each = shoal_search(segment, cell, target), shoal_search(segment, cell, target, single=True)
    near, plan = segment.search(queries, Ask(K, target, queries=count), allowed=cell.allowed, threads=1)
    expected = min(K, int(np.count_nonzero(cell.true[0] >= 0)))
    assert (near.counts == expected).all(), "fewer than k rows though k are allowed"
    reached = recall_of(ours(queries), cell.true[:count])
    flag = " " if reached >= target - 0.01 else "!"
    searches = {peer.name: search for peer in beside if (search := peer.at(cell, min(reached, target))) is not None}
    few = queries[: max(count // 10, 1)]
    rates: dict[str, list[float]] = {}
    for name, search in searches.items():
        peer = beside[[p.name for p in beside].index(name)]
        search = peer.at(cell, min(reached, target))  # sets its effort again
        assert search is not None
        rates[name] = in_turns(
            rounds,
            partial(ours, queries),
            partial(search, queries),
            partial(each, few),
            partial(one_by_one, search, few),
        )
    batch = statistics.median([times[0] for times in rates.values()]) / count
    single = statistics.median([times[2] for times in rates.values()]) / len(few)
    best = min(rates, key=lambda name: rates[name][1])
    best_single = min(rates, key=lambda name: rates[name][3])
    print(
        f"{cell.name:5} {target:6} {reached:.4f}{flag}{plan.strategy!s:>7} {plan.effort:>4} {1e6 * batch:>7.1f} {1e6 * single:>9.1f}"
        f"  {best} {rates[best][1] / rates[best][0]:.2f}; {best_single} {rates[best_single][3] / rates[best_single][2]:.2f}"
    )


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench engines", description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(__file__).resolve().parents[1] / ".cache")
    parser.add_argument("--set", choices=[*SETS], nargs="*", default=["small"])
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--cells", nargs="*", default=[], help="those to measure: all, r50, f50, r10, …; every one by default"
    )
    parser.add_argument("--coded-graphs", action="store_true")
    given = parser.parse_args(arguments)
    work = measure_ways if given.coded_graphs else measure
    with one_blas_thread():
        for name in given.set:
            work(SETS[name](given.cache), given.queries, given.rounds, given.cells)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
