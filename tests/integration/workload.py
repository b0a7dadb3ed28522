"""Writers and readers that remember what was acknowledged, and check that no strong read misses it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import numpy as np

from shoal import errors
from shoal.aio import AsyncClient, AsyncCollection

DIMENSION = 16


def vector_of(number: int) -> np.ndarray:
    """A vector that only this record has."""
    return np.random.default_rng(number).standard_normal(DIMENSION).astype(np.float32)


@dataclass(slots=True)
class Workload:
    """Appends small batches through one client and reads them back through another until told to stop.

    Attributes:
        acknowledged: ids whose write was acknowledged, in order.
        misses: strong reads that lacked a record acknowledged before they began; must stay empty.
    """

    writing: AsyncCollection
    reading: AsyncCollection
    prefix: str = "r"
    acknowledged: list[str] = field(default_factory=list)
    misses: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    reads: int = 0
    stopping: bool = False
    longest_pause_s: float = 0.0

    async def run(self) -> None:
        """Write and read until `stopping`."""
        await asyncio.gather(self._write(), self._read())

    async def _write(self) -> None:
        number = len(self.acknowledged)
        last = time.monotonic()
        while not self.stopping:
            ids = [f"{self.prefix}{number + i}" for i in range(3)]
            vectors = np.stack([vector_of(number + i) for i in range(3)])
            try:
                await self.writing.upsert(ids, embeddings=vectors, documents=ids)
            except errors.ShoalError as error:
                self.failures.append(f"write: {type(error).__name__}: {error}")
                continue  # the same ids again: an upsert may be repeated
            now = time.monotonic()
            self.longest_pause_s = max(self.longest_pause_s, now - last)
            last = now
            self.acknowledged.extend(ids)
            number += 3

    async def _read(self) -> None:
        random = np.random.default_rng(0)
        while not self.stopping:
            known = len(self.acknowledged)
            if known == 0:
                await asyncio.sleep(0.01)
                continue
            pick = known - 1 if self.reads % 2 else int(random.integers(known))
            wanted = self.acknowledged[pick]
            try:
                await self._check(wanted, int(wanted.removeprefix(self.prefix)))
            except errors.ShoalError as error:
                self.failures.append(f"read: {type(error).__name__}: {error}")
            self.reads += 1

    async def _check(self, wanted: str, number: int) -> None:
        if self.reads % 3 == 0:
            found = await self.reading.query(query_embeddings=vector_of(number)[None, :], n_results=1, include=())
            if found.ids[0] != [wanted]:
                self.misses.append(f"query for {wanted} found {found.ids[0]}")
        else:
            got = await self.reading.get(ids=[wanted], include=())
            if got.ids != [wanted]:
                self.misses.append(f"get of {wanted} found {got.ids}")


async def all_present(collection: AsyncCollection, ids: list[str]) -> list[str]:
    """Which of the ids are missing."""
    missing = []
    for start in range(0, len(ids), 5_000):
        part = ids[start : start + 5_000]
        got = await collection.get(ids=part, include=())
        missing.extend(sorted(set(part) - set(got.ids)))
    return missing


async def eventually(condition: object, timeout_s: float, what: str) -> None:
    """Wait until ``condition()`` holds, bounded."""
    for _ in range(int(timeout_s / 0.1)):
        if condition():  # type: ignore[operator]
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")


async def connect(address: str) -> AsyncClient:
    """A client with patience for restarts."""
    from shoal import aio

    return await aio.connect(address, timeout_ms=60_000)
