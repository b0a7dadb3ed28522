"""What telemetry costs: the same cluster with the same data, without telemetry, with metrics, and with traces.

    make bench ARGS="telemetry [--rounds 3] [--queries 600] [--records 20000]"

One process of each role over real Postgres, etcd and S3. For each mode and round the roles are started anew over the data of the first
start; the order of the modes turns from round to round. ``off`` has no OpenTelemetry SDK at work at all (``OTEL_SDK_DISABLED``);
``metrics`` is the default, with every page read once in five seconds; the others also send that share of the traces to a collector on
this machine that takes and forgets them. One client over HTTP with one connection, one request at a time.

Processor time is that of the four roles that serve, their threads for sending spans included, without what they use while nobody asks,
which has a row of its own; it depends less on who else uses the machine than times do. Figures are medians over the rounds; ratios are
to ``off``.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shoal_cli.local_cluster import ClusterPlan, LocalCluster

DIMENSION = 128
BATCH = 1_000
K = 10
_WARM = 100
_COLLECTIONS = "/api/v2/tenants/default_tenant/databases/default_database/collections"
_MODES = ("off", "metrics", "traces, 1 %", "traces, 100 %")
_INDEX_S = 120.0
_SCRAPE_S = 5.0
_IDLE_S = 10.0


@dataclass(slots=True)
class Figures:
    """Of one mode: a value for each round."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def note(self, what: str, value: float) -> None:
        """One round's."""
        self.values.setdefault(what, []).append(value)

    def median(self, what: str) -> float:
        """Over the rounds."""
        return statistics.median(self.values[what])


class Client:
    """One connection to the HTTP gateway."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._connection = http.client.HTTPConnection(host, int(port), timeout=30)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of an answer."""
        data = None if body is None else json.dumps(body)
        self._connection.request(method, path, data, {"content-type": "application/json"})
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {content!r}")
        return json.loads(content)


def environment_of(mode: str, endpoint: str) -> dict[str, str]:
    """Settings of the roles."""
    if mode == "off":
        return {"OTEL_SDK_DISABLED": "true"}
    if mode == "metrics":
        return {}
    share = "1" if mode == "traces, 100 %" else "0.01"
    return {"SHOAL_TELEMETRY__OTLP_ENDPOINT": endpoint, "SHOAL_TELEMETRY__TRACE_SHARE": share}


def plan_of(path: Path, environment: dict[str, str]) -> ClusterPlan:
    """One of each role."""
    return ClusterPlan(path, querynodes=1, frontends=1, logservices=1, compactors=1, sysdbs=1, environment=environment)


def cpu_s(cluster: LocalCluster) -> float:
    """Processor seconds that the roles have used which serve; how much a compactor does is up to when it does it."""
    ticks = 0
    for role in cluster.roles.values():
        if role.role == "compactor":
            continue
        user, system = Path(f"/proc/{role.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        ticks += int(user) + int(system)
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def scraped(cluster: LocalCluster, *, reading: bool) -> Iterator[None]:
    """Every metrics page is read once a second."""
    stop = threading.Event()

    def read() -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while not stop.wait(_SCRAPE_S):
            for role in cluster.roles.values():
                with opener.open(f"http://{role.metrics}/metrics", timeout=10) as page:
                    page.read()

    thread = threading.Thread(target=read)
    if reading:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if reading:
            thread.join()


def idle_cpu(cluster: LocalCluster, figures: Figures) -> float:
    """Processor seconds used in a second while nobody asks."""
    used = cpu_s(cluster)
    time.sleep(_IDLE_S)
    found = (cpu_s(cluster) - used) / _IDLE_S
    figures.note("idle, CPU ms per s", 1e3 * found)
    return found


def timed(cluster: LocalCluster, figures: Figures, what: str, calls: Sequence[Callable[[], Any]], idle: float) -> None:
    """Rate, median and processor time of some calls, after a few of them that do not count."""
    for call in calls[:_WARM]:
        call()
    used, started, times = cpu_s(cluster), time.perf_counter(), []
    for call in calls[_WARM:]:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    figures.note(f"{what}, per s", len(times) / sum(times))
    figures.note(f"{what}, p50 ms", 1e3 * statistics.median(times))
    spent = cpu_s(cluster) - used - idle * (time.perf_counter() - started)
    figures.note(f"{what}, CPU ms", 1e3 * spent / len(times))


def load(client: Client, vectors: np.ndarray) -> str:
    """The path of a collection of them, compacted."""
    made = client.ask("POST", _COLLECTIONS, {"name": "telemetry"})
    path = f"{_COLLECTIONS}/{made['id']}"
    for start in range(0, len(vectors), BATCH):
        part = vectors[start : start + BATCH]
        ids = [str(start + row) for row in range(len(part))]
        body = {"ids": ids, "embeddings": part.tolist(), "documents": [f"document {id_}" for id_ in ids]}
        client.ask("POST", f"{path}/add", body)
    deadline = time.monotonic() + _INDEX_S
    while client.ask("GET", f"{path}/indexing_status")["num_unindexed_ops"] and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(5.0)  # merges that follow the last flush
    return path


def measure(cluster: LocalCluster, address: str, path: str, figures: Figures, options: argparse.Namespace) -> None:
    """One round of one mode."""
    client = Client(address)
    queries = np.random.default_rng(1).standard_normal((options.queries + _WARM, DIMENSION)).round(4).tolist()

    def query(vector: list[float]) -> Callable[[], Any]:
        body = {"query_embeddings": [vector], "n_results": K}
        return lambda: client.ask("POST", f"{path}/query", body)

    def write(vector: list[float]) -> Callable[[], Any]:
        body = {"ids": ["written"], "embeddings": [vector]}
        return lambda: client.ask("POST", f"{written}/upsert", body)

    made = client.ask("POST", _COLLECTIONS, {"name": "telemetry-writes", "get_or_create": True})
    written = f"{_COLLECTIONS}/{made['id']}"
    idle = idle_cpu(cluster, figures)
    client = Client(address)
    timed(cluster, figures, "queries", [query(vector) for vector in queries], idle)
    timed(cluster, figures, "writes", [write(vector) for vector in queries[: _WARM + options.queries // 2]], idle)


async def run_all(options: argparse.Namespace, path: Path, endpoint: str) -> dict[str, Figures]:
    """All rounds of all modes."""
    vectors = np.random.default_rng(0).standard_normal((options.records, DIMENSION)).astype(np.float32).round(4)
    found = {mode: Figures() for mode in _MODES}
    collection = ""
    for number in range(options.rounds):
        for mode in _MODES[number % len(_MODES) :] + _MODES[: number % len(_MODES)]:
            cluster = LocalCluster(plan_of(path, environment_of(mode, endpoint)))
            await cluster.start()
            try:
                address = cluster.find("frontend-0").http
                collection = collection or await asyncio.to_thread(load, Client(address), vectors)
                with scraped(cluster, reading=mode != "off"):
                    await asyncio.to_thread(measure, cluster, address, collection, found[mode], options)
            finally:
                await cluster.stop()
            print(f"round {number + 1}, {mode}: done", flush=True)
    return found


def report(found: dict[str, Figures]) -> None:
    """Medians, and ratios to the first mode."""
    print(f"\n{'':<20}" + "".join(f"{mode:>24}" for mode in found))
    first = next(iter(found.values()))
    for what in first.values:
        cells = (
            f"{each.median(what):>14,.2f} ({each.median(what) / first.median(what):.3f})" for each in found.values()
        )
        print(f"{what:<20}" + "".join(f"{cell:>24}" for cell in cells))


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="bench telemetry", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--queries", type=int, default=600, help="of each round, and half as many writes")
    parser.add_argument("--records", type=int, default=20_000)
    options = parser.parse_args(arguments)
    path = Path(tempfile.mkdtemp(prefix="shoal-bench-"))
    command = [sys.executable, "-m", "bench.telemetry_sink"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sink:
        try:
            assert sink.stdout is not None
            report(asyncio.run(run_all(options, path, sink.stdout.readline().strip())))
        finally:
            sink.terminate()
            shutil.rmtree(path, ignore_errors=True)
