"""What ``statistics`` costs: whole runs after changes of several sizes, beside counting everything anew.

python -m bench functions [--records 100000] [--distinct]
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_compactor.builtin import statistics_rows
from shoal_compactor.counting import SegmentCounts
from shoal_compactor.flush import FlushSettings, flush
from shoal_compactor.function_settings import FunctionSettings
from shoal_core.contracts import AppendRequest
from shoal_core.records import EMBEDDING, ID, OP, Operation, embedding_array, encode_batch
from shoal_testing.functions import FunctionWorld, values_of

_DIMENSION = 8
_BATCH = 10_000
_CHANGES = (100, 1_000, 10_000)


def main(arguments: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument(
        "--distinct", action="store_true", help="a seventh key, of which every record has its own value"
    )
    chosen = parser.parse_args(arguments)
    asyncio.run(_measure(chosen.records, distinct=chosen.distinct))


async def _measure(records: int, *, distinct: bool) -> None:
    world = await FunctionWorld.create(dimension=_DIMENSION)
    await world.attach()
    runner, random = world.runner(), np.random.default_rng(1)
    await _write(world, np.arange(records), random, distinct)
    manifest = await world.manifest()
    print(f"counting all from the columns: {await _best(lambda: SegmentCounts(world.blocks, 0).of(manifest)):.1f} ms")
    known = SegmentCounts(world.blocks, 64 << 20)
    counts = await known.of(manifest)
    print(f"counting again, nothing changed: {await _best(lambda: known.of(manifest)):.1f} ms")
    began = time.perf_counter()
    rows = statistics_rows(counts, records, FunctionSettings()).num_rows
    print(f"choosing what is listed, {rows} records: {_since(began):.1f} ms")
    began = time.perf_counter()
    await runner.run_due()
    print(f"the first run: {_since(began):.1f} ms")
    for change in _CHANGES:
        await _write(world, random.integers(0, records, change), random, distinct)
        written, began = runner.counters.records, time.perf_counter()
        await runner.run_due()
        took, manifest = _since(began), await world.manifest()
        again = await _best(partial(SegmentCounts(world.blocks, 0).of, manifest), tries=1)
        print(f"a run after {change} replaced: {took:.1f} ms, {runner.counters.records - written} records written;")
        print(f"    counting all instead: {again:.1f} ms")
    found = await world.records()
    began = time.perf_counter()
    values_of(found)
    print(f"a Python loop over the records: {_since(began):.1f} ms")


async def _write(
    world: FunctionWorld, numbers: npt.NDArray[np.int64], random: np.random.Generator, distinct: bool
) -> None:
    made = world.collection
    for start in range(0, len(numbers), _BATCH):
        payload = encode_batch(_batch(numbers[start : start + _BATCH].tolist(), random, distinct))
        await world.log.append(AppendRequest(made.id, made.epoch, made.tenant, payload))
    lease = await world.take_over("flush")
    settings = FlushSettings(graph_rows=10**9)
    publisher = world.publisher()
    flushed: object = True
    while flushed is not None:
        flushed = await flush(
            made,
            lease,
            log=world.log,
            publisher=publisher,
            blocks=world.blocks,
            settings=settings,
            now_ms=world.now_ms,
        )
    await world.catalog.release(lease)


def _batch(numbers: list[int], random: np.random.Generator, distinct: bool) -> pa.RecordBatch:
    rows = len(numbers)
    pairs = random.integers(0, 500, (rows, 2)).tolist()
    columns = {
        OP: pa.array(np.full(rows, Operation.UPSERT, dtype=np.uint8)),
        ID: pa.array([f"id{number}" for number in numbers]),
        EMBEDDING: embedding_array(random.random((rows, _DIMENSION), dtype=np.float32)),
        "m:str:category": pa.array([f"c{value}" for value in random.integers(0, 20, rows).tolist()]),
        "m:str:user": pa.array([f"user-{value}" for value in random.integers(0, 5_000, rows).tolist()]),
        "m:int:year": pa.array(random.integers(1_900, 2_030, rows)),
        "m:float:price": pa.array(np.round(random.random(rows) * 100, 1)),
        "m:bool:active": pa.array(random.random(rows) < 0.3),
        "m:strs:tags": pa.array([[f"t{one}", f"t{other}"] for one, other in pairs], pa.list_(pa.string())),
    }
    if distinct:
        columns["m:str:own"] = pa.array([f"{value:032x}" for value in random.integers(0, 2**62, rows).tolist()])
    return pa.record_batch(columns)


async def _best(work: Callable[[], Awaitable[object]], tries: int = 3) -> float:
    """Milliseconds."""
    took = []
    for _ in range(tries):
        began = time.perf_counter()
        await work()
        took.append(_since(began))
    return min(took)


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000
