"""A real cluster under use and under fire: recall, visibility, kill -9 of every kind of process, snapshots over shards."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from shoal import QueryResult
from shoal.aio import AsyncCollection
from shoal_cli.local_cluster import LocalCluster, RoleProcess
from tests.integration.workload import DIMENSION, Workload, all_present, connect, eventually, vector_of

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

K = 10
AT_LEAST = 0.95 - 0.01  # recall: the default target, less three standard errors of 500 queries
_INDEXES = {"graph", "clusters"}


async def test_recall_of_twenty_thousand(cluster: LocalCluster, glosses: npt.NDArray[np.float32]) -> None:
    client = await connect(",".join(cluster.frontends))
    collection = await client.create_collection("recall", space="cosine", shards=1)
    ids = [str(number) for number in range(len(glosses))]
    for start in range(0, len(glosses), 1000):
        part = slice(start, start + 1000)
        await collection.add(
            ids[part], embeddings=glosses[part], metadatas={"third": np.arange(start, start + 1000) % 3}
        )
    await collection.wait_until_indexed(timeout_s=120)
    assert await collection.count() == len(glosses)
    random = np.random.default_rng(3)
    picks = random.choice(len(glosses), 500, replace=False)
    # As far from records as records are from one another, and no farther: recall was measured for such queries.
    queries = glosses[picks] + 0.02 * random.standard_normal((500, glosses.shape[1])).astype(np.float32)
    truth = np.argsort(-(queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ glosses.T, axis=1)[:, :K]
    await _until_there_is_an_index(collection, glosses)
    together = await collection.query(query_embeddings=queries, n_results=K, include=("distances",))
    assert _recall(together.ids, truth) >= AT_LEAST
    # So many queries may share one scan. A few of them walk, as the one above did.
    few = [
        await collection.query(query_embeddings=part, n_results=K, include=("distances",), explain=True)
        for part in np.split(queries, 125)
    ]
    assert _recall([ids for found in few for ids in found.ids], truth) >= AT_LEAST
    assert all(_INDEXES & _strategies(found) for found in few)
    filtered = await collection.query(
        query_embeddings=queries[:20], n_results=K, where={"third": 1}, include=("metadatas",)
    )
    assert all(record["third"] == 1 for row in filtered["metadatas"] for record in row)
    assert all(len(row) == K for row in filtered.ids)
    await client.close()
    await _check_the_report(cluster.frontends[0], len(glosses))


def _recall(found: Sequence[Sequence[str]], truth: npt.NDArray[np.int64]) -> float:
    hits = sum(len({int(i) for i in row} & set(true.tolist())) for row, true in zip(found, truth, strict=True))
    return hits / truth.size


async def _check_the_report(address: str, records: int) -> None:
    """What `shoal recall` prints of the collection above: how it is searched, and that records get what was asked for."""
    command = [sys.executable, "-m", "shoal_cli", "recall", "recall", "--address", address, "--sample", "60"]
    told = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    assert "Measured now" in told.stdout
    told = await asyncio.to_thread(subprocess.run, [*command, "--json"], capture_output=True, text=True, check=True)
    report = json.loads(told.stdout)
    assert (report["records"], report["sampled"]) == (records, 60)
    steps = [step for step in report["curve"] if step["k"] == K]
    assert [step["recall"] for step in steps] == [0.9, 0.95, 0.99]
    assert any(s["strategy"] in _INDEXES and s["effort"] > 0 for step in steps for s in step["segments"])
    for target, recall in report["measured"].items():
        assert recall >= float(target) - 0.05
    command[4] = "nothing-of-this-name"
    wrong = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert (wrong.returncode, "NotFound" in wrong.stderr) == (1, True)


async def _until_there_is_an_index(collection: AsyncCollection, glosses: npt.NDArray[np.float32]) -> None:
    """Small segments are scanned. Rewriting one record makes another one, until merges have made one with an index."""
    for _ in range(40):
        if _INDEXES & _strategies(await collection.query(query_embeddings=glosses[:1], n_results=K, explain=True)):
            return
        await collection.upsert(["0"], embeddings=glosses[:1])
        await collection.wait_until_indexed(timeout_s=60)
    raise AssertionError("no merge made a segment with an index")


def _strategies(found: QueryResult) -> set[str]:
    assert found.explain is not None
    return {segment["strategy"] for shard in found.explain["shards"] for segment in shard["segments"]}


async def test_the_next_read_of_another_frontend_sees_a_write(cluster: LocalCluster) -> None:
    """1,000 of 1,000."""
    first, second = [await connect(address) for address in cluster.frontends]
    writing = await first.create_collection("visible", space="l2", shards=1)
    reading = await second.get_collection("visible")
    seen = 0
    for number in range(1000):
        await writing.upsert([f"v{number}"], embeddings=vector_of(number)[None, :])
        if number % 2:
            got = await reading.get(ids=[f"v{number}"], include=())
            seen += got.ids == [f"v{number}"]
        else:
            near = await reading.query(query_embeddings=vector_of(number)[None, :], n_results=1, include=())
            seen += near.ids[0] == [f"v{number}"]
    assert seen == 1000
    await first.close()
    await second.close()


async def test_a_read_over_shards_sees_whole_batches(cluster: LocalCluster) -> None:
    """Every batch spans all shards; readers look while batches are appended and versions are published."""
    first, second = [await connect(address) for address in cluster.frontends]
    writing = await first.create_collection("whole", space="l2", shards=3)
    reading = await second.get_collection("whole")
    size, batches = 30, 120
    stop = asyncio.Event()

    async def write() -> None:
        for batch in range(batches):
            ids = [f"b{batch}-{i}" for i in range(size)]
            vectors = np.full((size, DIMENSION), batch, np.float32)
            await writing.add(ids, embeddings=vectors, metadatas={"batch": np.full(size, batch)})
            await asyncio.sleep(0.05)
        stop.set()

    torn: list[str] = []
    reads = 0

    async def read() -> None:
        nonlocal reads
        while not stop.is_set():
            got = await reading.get(include=("metadatas",))
            counts = (
                np.bincount([record["batch"] for record in got["metadatas"]], minlength=1) if got.ids else np.zeros(1)
            )
            if not np.isin(counts, (0, size)).all():
                torn.append(f"get at {got.served_at}: {counts[-3:]}")
            count = await reading.count()
            if count % size:
                torn.append(f"count {count}")
            near = await reading.query(
                query_embeddings=np.full((1, DIMENSION), 1e6, np.float32), n_results=size, include=("metadatas",)
            )
            if len({record["batch"] for record in near["metadatas"][0]}) > 1:
                torn.append(f"query at {near.served_at}")
            reads += 1

    await asyncio.gather(write(), read(), read())
    assert torn == []
    assert reads > 20
    assert await reading.count() == size * batches
    await first.close()
    await second.close()


@pytest.mark.parametrize("role", ["querynode", "logservice", "compactor", "frontend", "sysdb"])
async def test_kill_one_of_each_kind(cluster: LocalCluster, role: str) -> None:
    """kill -9 during writes and reads: nothing acknowledged is lost or missed, and service goes on by itself."""
    every = ",".join(cluster.frontends)
    first, second = await connect(every), await connect(every)
    writing = await first.create_collection(f"fault-{role}", space="l2", shards=2)
    load = Workload(writing, await second.get_collection(f"fault-{role}"))
    running = asyncio.create_task(load.run())
    try:
        for number in range(2):
            await _kill_and_go_on(cluster, load, cluster.find(f"{role}-{number}"))
    finally:
        load.stopping = True
        await running
    assert load.misses == []
    assert await all_present(load.reading, load.acknowledged) == []
    assert [failure for failure in load.failures if "OutcomeUnknown" not in failure] == []
    await first.close()
    await second.close()


async def _kill_and_go_on(cluster: LocalCluster, load: Workload, victim: RoleProcess) -> None:
    """Kill under load; writes and reads must go on, and the process must come back into the registry."""
    written = len(load.acknowledged)
    await eventually(lambda: len(load.acknowledged) >= written + 60, 60, "writes before the kill")
    old = victim.pid
    victim.kill()
    before, reads = len(load.acknowledged), load.reads
    await eventually(lambda: len(load.acknowledged) >= before + 30, 60, f"writes after the kill of {victim.name}")
    await eventually(lambda: load.reads >= reads + 10, 60, f"reads after the kill of {victim.name}")
    await eventually(lambda: victim.process.is_running and victim.pid != old, 60, f"{victim.name} started again")
    await cluster.wait_for_members()


async def test_kill_everything(cluster: LocalCluster) -> None:
    """kill -9 of every role and of Postgres, etcd and the S3 server under load: nothing acknowledged is lost."""
    every = ",".join(cluster.frontends)
    client = await connect(every)
    collection = await client.create_collection("everything", space="l2", shards=2)
    load = Workload(collection, collection)
    running = asyncio.create_task(load.run())
    await eventually(lambda: len(load.acknowledged) >= 300, 60, "writes before the kill")
    for server in (cluster.postgres, cluster.etcd, cluster.s3):
        server.kill()
    for role in cluster.roles.values():
        role.kill()
    load.stopping = True
    await cluster.restart_servers()
    await cluster.wait_for_members()
    await running
    fresh = await connect(every)
    reading = await fresh.get_collection("everything")
    assert await all_present(reading, load.acknowledged) == []
    recall = await fresh.get_collection("recall")
    assert await recall.count() == 20_000
    await reading.upsert(["after"], embeddings=vector_of(0)[None, :])
    assert (await reading.get(ids=["after"], include=())).ids == ["after"]
    assert load.misses == []
    await client.close()
    await fresh.close()
