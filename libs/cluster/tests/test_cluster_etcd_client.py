"""The thin client against a real etcd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

import pytest

from shoal_cluster.etcd.client import EtcdClient, WatchBatch
from shoal_core.errors import NotFound, OffsetExpired, Unavailable
from shoal_runtime.servers import EtcdServer

pytestmark = pytest.mark.integration


@pytest.fixture
async def client(etcd: EtcdServer) -> AsyncIterator[EtcdClient]:
    client = EtcdClient([etcd.endpoint], timeout_ms=1_000)
    yield client
    await client.close()


async def take(client: EtcdClient, start_revision: int, events: int) -> list[WatchBatch]:
    """Watch until so many events came."""
    batches: list[WatchBatch] = []
    async with asyncio.timeout(10), contextlib.aclosing(client.watch(b"k/", start_revision)) as watch:
        async for batch in watch:
            batches.append(batch)
            if sum(len(b.events) for b in batches) >= events:
                break
    return batches


async def test_put_get_delete(client: EtcdClient) -> None:
    first = await client.put(b"k/1", b"one")
    await client.put(b"l", b"other")
    second = await client.put(b"k/2", b"two")
    snapshot = await client.get_prefix(b"k/")
    assert [(p.key, p.value, p.mod_revision) for p in snapshot.pairs] == [
        (b"k/1", b"one", first),
        (b"k/2", b"two", second),
    ]
    assert snapshot.revision == second
    assert snapshot.cluster_id != 0
    assert await client.delete(b"k/1") == second + 1
    await client.delete(b"k/absent")
    assert [p.key for p in (await client.get_prefix(b"k/")).pairs] == [b"k/2"]


async def test_lease(client: EtcdClient) -> None:
    lease = await client.lease_grant(5)
    assert lease.ttl_s == 5
    await client.put(b"k/1", b"x", lease.id)
    assert await client.lease_keepalive(lease.id) == 5
    await client.lease_revoke(lease.id)
    await client.lease_revoke(lease.id)
    assert (await client.get_prefix(b"k/")).pairs == ()
    assert await client.lease_keepalive(lease.id) == 0
    with pytest.raises(NotFound):
        await client.put(b"k/1", b"x", lease.id)


async def test_watch_from_a_revision_sees_history_then_now(client: EtcdClient) -> None:
    first = await client.put(b"k/1", b"a")
    await client.delete(b"k/1")
    batches = await take(client, first, 2)
    assert batches[0].created
    events = [event for batch in batches for event in batch.events]
    assert [(e.key, e.value, e.mod_revision - first) for e in events] == [(b"k/1", b"a", 0), (b"k/1", None, 1)]
    assert batches[-1].resume_at == first + 2


async def test_watch_resumed_over_kill_loses_nothing(client: EtcdClient, etcd: EtcdServer) -> None:
    """Killed while it catches up: etcd sends a thousand revisions at a time, under a header that is far ahead."""
    start = await client.put(b"k/0", b"")
    patient = EtcdClient([etcd.endpoint], timeout_ms=60_000)  # so many at once wait for a disk that others use too
    for _ in range(10):
        await asyncio.gather(*(patient.put(b"k/1", b"") for _ in range(250)))
    await patient.close()
    count = 2_501
    seen: list[int] = []
    resume_at, killed = start, False
    async with asyncio.timeout(30):
        while len(seen) < count:
            with contextlib.suppress(Unavailable):
                async with contextlib.aclosing(client.watch(b"k/", resume_at)) as watch:
                    async for batch in watch:
                        resume_at = batch.resume_at
                        seen += [event.mod_revision for event in batch.events]
                        if seen and not killed:
                            assert len(seen) < count
                            killed = True
                            etcd.kill()
                            await etcd.start()
                        if len(seen) >= count:
                            break
            await asyncio.sleep(0.05)
    assert seen == list(range(start, start + count))


async def test_compacted_revisions_raise(client: EtcdClient) -> None:
    first = await client.put(b"k/1", b"a")
    last = await client.put(b"k/1", b"b")
    await client.compact(last)
    with pytest.raises(OffsetExpired, match="compact"):
        await take(client, first, 1)
    with pytest.raises(OffsetExpired):
        await client.compact(first)


async def test_dead_and_frozen_servers_are_unavailable(client: EtcdClient, etcd: EtcdServer) -> None:
    await client.put(b"k/1", b"a")
    for end in (signal.SIGSTOP, signal.SIGKILL):
        os.kill(etcd.pid, end)
        with pytest.raises(Unavailable):
            await client.get_prefix(b"k/")
        with pytest.raises(Unavailable):
            await client.lease_keepalive(1)
        with pytest.raises(Unavailable):
            await take(client, 0, 1)
    await etcd.stop()
    await etcd.start()
    async with asyncio.timeout(5):
        while True:
            with contextlib.suppress(Unavailable):
                assert len((await client.get_prefix(b"k/")).pairs) == 1
                return
            await asyncio.sleep(0.05)


async def test_an_open_watch_notices_a_frozen_server(client: EtcdClient, etcd: EtcdServer) -> None:
    async with contextlib.aclosing(client.watch(b"k/")) as watch:
        assert (await anext(watch)).created
        os.kill(etcd.pid, signal.SIGSTOP)
        with pytest.raises(Unavailable):
            async with asyncio.timeout(12):
                await anext(watch)
    os.kill(etcd.pid, signal.SIGCONT)


async def test_one_dead_endpoint_of_two_does_not_matter(etcd: EtcdServer) -> None:
    client = EtcdClient([etcd.endpoint, "127.0.0.1:1"], timeout_ms=1_000)
    try:
        for i in range(10):
            await client.put(b"k/%d" % i, b"")
        assert len((await client.get_prefix(b"k/")).pairs) == 10
    finally:
        await client.close()
