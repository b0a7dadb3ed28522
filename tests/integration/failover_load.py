"""Writers that keep a history of what each write was said to be, and readers that hold strong reads against it."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field

import numpy as np

from shoal import WriteResult, errors
from shoal.aio import AsyncCollection
from tests.integration.workload import vector_of

BATCH = 3


@dataclass(slots=True)
class History:
    """What was said of every batch.

    Attributes:
        acknowledged: ids, in the order of the acknowledgements.
        written: what the acknowledgements said.
        refused: ids of batches whose error says that they were not written.
        unknown: how often a write's outcome was unknown; its key then resolved it.
        misses: strong reads that lacked what was acknowledged before they began.
        failures: names of the errors of reads and writes.
    """

    acknowledged: list[str] = field(default_factory=list)
    written: list[WriteResult] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    unknown: int = 0
    misses: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    reads: int = 0
    stopping: bool = False


async def write(collection: AsyncCollection, history: History, prefix: str) -> None:
    """Batch after batch until told to stop. A batch in doubt is sent again, with its key, until it is not."""
    number = 0
    while not history.stopping:
        ids = [f"{prefix}-{number + i}" for i in range(BATCH)]
        number += BATCH
        result = await _write_batch(collection, history, ids)
        if result is None:
            history.refused.extend(ids)
            continue
        history.written.append(result)
        history.acknowledged.extend(ids)


async def _write_batch(collection: AsyncCollection, history: History, ids: list[str]) -> WriteResult | None:
    """None if it was not written."""
    key, in_doubt = uuid.uuid4().hex, False
    vectors = np.stack([vector_of(number) for number in range(BATCH)])
    while True:
        try:
            return await collection.upsert(ids, embeddings=vectors, idempotency_key=key)
        except errors.OutcomeUnknown:
            history.failures.append("write: OutcomeUnknown")
            history.unknown += not in_doubt
            in_doubt = True
        except errors.ShoalError as error:
            history.failures.append(f"write: {type(error).__name__}")
            if not in_doubt:
                return None


async def read(collection: AsyncCollection, history: History, seed: int) -> None:
    """Strong reads of the newest acknowledged record and of another one, until told to stop."""
    random = np.random.default_rng(seed)
    while not history.stopping:
        known = len(history.acknowledged)
        if known == 0:
            await asyncio.sleep(0.01)
            continue
        wanted = {history.acknowledged[known - 1], history.acknowledged[int(random.integers(known))]}
        try:
            got = await collection.get(ids=sorted(wanted), include=())
        except errors.ShoalError as error:
            history.failures.append(f"read: {type(error).__name__}")
            continue
        if missing := wanted - set(got.ids):
            history.misses.append(f"{sorted(missing)} of {known}")
        history.reads += 1
