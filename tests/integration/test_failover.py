"""kill -9 of the Postgres primary under load, and promotion of its synchronous standby: what clients were told stays true."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from shoal import aio
from shoal.aio import AsyncCollection
from shoal_cli.local_cluster import ClusterPlan, LocalCluster
from shoal_runtime.servers import PostgresPair
from tests.integration.failover_load import BATCH, History, read, write
from tests.integration.workload import all_present, eventually, vector_of

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

NAME = "failover"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cluster() -> AsyncIterator[LocalCluster]:
    """A small cluster whose Postgres has a synchronous standby."""
    path = Path(tempfile.mkdtemp(prefix="shoal-failover-"))
    plan = ClusterPlan(
        path, querynodes=1, compactors=1, sysdbs=1, standby=True, environment={"SHOAL_COMPACTOR__MAX_AGE_MS": "500"}
    )
    running = LocalCluster(plan)
    await running.start()
    try:
        yield running
    finally:
        await running.stop()
        shutil.rmtree(path)


async def test_a_failover_under_load(cluster: LocalCluster) -> None:
    """Twice, there and back. No client and no role is started again."""
    pair = cluster.postgres
    assert isinstance(pair, PostgresPair)
    pids = {role.name: role.pid for role in cluster.roles.values()}
    # Little patience: the test wants to see the errors that a client's own retries would get over.
    clients = [await aio.connect(address, timeout_ms=1_500) for address in cluster.frontends]
    await clients[0].create_collection(NAME, space="l2", shards=1)
    collections = [await client.get_collection(NAME) for client in clients]
    history = History()
    writers = [write(collections[number % 2], history, f"w{number}") for number in range(4)]
    readers = [read(collections[number % 2], history, number) for number in range(2)]
    running = [asyncio.create_task(work) for work in (*writers, *readers)]
    try:
        for kill in (_kill, _kill_while_commits_wait):
            await _goes_on(history, "before the kill")
            await _fail_over_and_go_on(pair, history, kill)
            await pair.rejoin()
            await _goes_on(history, "with the standby back")
    finally:
        history.stopping = True
        await asyncio.gather(*running)
    assert history.unknown > 0
    assert {role.name: role.pid for role in cluster.roles.values()} == pids
    await _check(collections[1], history)
    for client in clients:
        await client.close()


async def _fail_over_and_go_on(
    pair: PostgresPair, history: History, kill: Callable[[PostgresPair], Awaitable[None]]
) -> None:
    old, failures = pair.primary, len(history.failures)
    await kill(pair)
    await eventually(lambda: len(history.failures) > failures, 30, "an error while there is no primary")
    await pair.fail_over()
    assert pair.primary is not old
    await _goes_on(history, "after the promotion")


async def _kill(pair: PostgresPair) -> None:
    pair.primary.kill()


async def _kill_while_commits_wait(pair: PostgresPair) -> None:
    """The primary sends its standby nothing more, so what it commits now is lost with it, and acknowledged to nobody."""
    sender = int(await pair.primary.query("SELECT pid FROM pg_stat_replication"))
    os.kill(sender, signal.SIGSTOP)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    for _ in range(500):
        if await pair.primary.query(waiting) != "0":
            break
        await asyncio.sleep(0.01)
    pair.primary.kill()


async def _goes_on(history: History, when: str) -> None:
    written, reads = len(history.acknowledged), history.reads
    await eventually(lambda: len(history.acknowledged) >= written + 30 * BATCH, 30, f"writes {when}")
    await eventually(lambda: history.reads >= reads + 20, 30, f"reads {when}")


async def _check(collection: AsyncCollection, history: History) -> None:
    """Every acknowledged record is there, no refused one is, and each batch was written once."""
    assert history.misses == []
    assert set(history.failures) <= {f"{verb}: {name}" for verb, name in _EXPECTED}
    assert await all_present(collection, history.acknowledged) == []
    assert await collection.count() == len(history.acknowledged)
    if history.refused:
        assert (await collection.get(ids=history.refused, include=())).ids == []
    last = await collection.upsert(["last"], embeddings=vector_of(0)[None, :])
    assert last.first_offset == len(history.acknowledged) + 1
    first_offsets = sorted(result.first_offset for result in history.written)
    assert first_offsets == list(range(1, len(history.acknowledged) + 1, BATCH))


_EXPECTED = [
    ("write", "Unavailable"),
    ("write", "OutcomeUnknown"),
    ("write", "ResourceExhausted"),
    ("read", "Unavailable"),
    ("read", "DeadlineExceeded"),
]
