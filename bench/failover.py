"""What a synchronous standby costs an append, and how long appends pause when the primary is killed and the standby promoted.

python -m bench failover [--appends 64] [--failovers 5]

Log service in this process, two real Postgres servers on one disk: the standby's syncs compete with the primary's.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from shoal_core.contracts import AppendRequest, Collection, NewCollection
from shoal_core.errors import OutcomeUnknown, Unavailable
from shoal_core.records import EMBEDDING, ID, OP, Operation, embedding_array, encode_batch
from shoal_runtime.servers import PostgresPair
from shoal_testing.postgres_stores import PostgresStores, postgres_stores

_DIMENSION = 384
_ROUNDS = 12
_TOGETHER = 32
_TENANT, _DATABASE = "bench", "bench"
_STANDBYS = "synchronous_standby_names"


def main(arguments: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--appends", type=int, default=64, help="of each kind and round")
    parser.add_argument("--failovers", type=int, default=5)
    chosen = parser.parse_args(arguments)
    asyncio.run(_measure(chosen.appends, chosen.failovers))


async def _measure(appends: int, failovers: int) -> None:
    with tempfile.TemporaryDirectory(prefix="shoal-failover-") as directory:
        pair = PostgresPair(Path(directory))
        await pair.start()
        try:
            async with postgres_stores(pair.dsn) as stores:
                load = _Load(stores, await _collection(stores))
                await _compare(pair, load, appends)
                for number in range(failovers):
                    await _fail_over(pair, load)
                    if number + 1 < failovers:
                        await pair.rejoin()
        finally:
            await pair.stop()


async def _collection(stores: PostgresStores) -> Collection:
    catalog = stores.stores.catalog
    await catalog.create_tenant(_TENANT)
    await catalog.create_database(_TENANT, _DATABASE)
    return (await catalog.create_collection(NewCollection(_TENANT, _DATABASE, "bench"), get_or_create=False))[0]


class _Load:
    """Appends of one record each, numbered through."""

    def __init__(self, stores: PostgresStores, collection: Collection) -> None:
        self._log = stores.stores.log
        self._collection = collection
        self._numbers: Iterator[int] = itertools.count()
        self._vector = embedding_array(np.zeros((1, _DIMENSION), np.float32))

    async def append(self) -> float:
        """One; returns its milliseconds."""
        number = next(self._numbers)
        columns = {
            OP: pa.array([int(Operation.UPSERT)], pa.uint8()),
            ID: pa.array([f"{number}"], pa.string()),
            EMBEDDING: self._vector,
        }
        payload = encode_batch(pa.record_batch(columns))
        request = AppendRequest(self._collection.id, self._collection.epoch, _TENANT, payload, f"key-{number}", None)
        began = time.perf_counter()
        await self._log.append(request)
        return (time.perf_counter() - began) * 1_000

    async def stream(self, appends: int) -> list[float]:
        """One after the other."""
        return [await self.append() for _ in range(appends)]


async def _compare(pair: PostgresPair, load: _Load, appends: int) -> None:
    """With the standby waited for and without, in turns: what else the machine does meets both."""
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(_ROUNDS):
        for standby in ("", pair.primary.upstream("b").name):
            await pair.primary.configure({_STANDBYS: standby})
            await load.stream(10)  # every session has read the new setting
            for writers in (1, _TOGETHER):
                streams = await asyncio.gather(*(load.stream(appends // writers) for _ in range(writers)))
                times.setdefault((standby, writers), []).extend(itertools.chain.from_iterable(streams))
    for (standby, writers), taken in times.items():
        p50, p99 = np.percentile(taken, [50, 99])
        print(f"{'synchronous' if standby else 'alone':12} {writers:3} writers: p50 {p50:6.2f} ms, p99 {p99:6.2f} ms")


async def _fail_over(pair: PostgresPair, load: _Load) -> None:
    acknowledged: list[float] = []
    unknown = 0
    stop = asyncio.Event()

    async def write() -> None:
        nonlocal unknown
        while not stop.is_set():
            try:
                await load.append()
            except (Unavailable, OutcomeUnknown) as error:
                unknown += isinstance(error, OutcomeUnknown)
            else:
                acknowledged.append(time.perf_counter())

    writers = [asyncio.create_task(write()) for _ in range(8)]
    await asyncio.sleep(1)
    killed_at = time.perf_counter()
    pair.primary.kill()
    await pair.fail_over()
    promoted_at = time.perf_counter()
    while acknowledged[-1] < promoted_at:
        await asyncio.sleep(0.005)
    stop.set()
    await asyncio.gather(*writers)
    first = next(at for at in acknowledged if at > promoted_at)
    print(
        f"fenced and promoted {promoted_at - killed_at:.2f} s after the kill, first acknowledgement after "
        f"{first - killed_at:.2f} s, {unknown} unknown"
    )
