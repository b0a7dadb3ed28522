"""The HTTP gateway beside a genuine Chroma server: the same client, the same data, interleaved rounds in one run.

    make bench ARGS="http [--limit 20000] [--rounds 3] [--cluster] [--profile]"

The client is the published ``chromadb``, in an environment of its own (``--python``), which also holds the server that it is compared
with. Both servers get WordNet's glosses as vectors of 384 dimensions with documents and metadata, and the smallest ``ef_search`` that
reaches the recall target. Ratios are Shoal / Chroma, of medians over the rounds; above 1 Shoal does more. Times on a shared machine
vary, read the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.datasets import WordNet384, wordnet384
from bench.gateway_client import BATCH, K
from bench.wordnet import recall_of
from shoal_cli.up import embedded_server
from shoal_runtime.lifecycle import run
from shoal_runtime.servers.ports import free_ports

TARGET = 0.95
EFFORTS = (10, 16, 24, 32, 48, 64, 100, 128, 200)
TUNING = 200
QUERIES = 300
GETS = 50
ADDED = 5 * BATCH
MAIN = "glosses"
WHERE = {"pos": "verb"}
_START_S = 60
_INDEX_S = 300
_HERE = Path(__file__).parent
_DATABASE = "/api/v2/tenants/default_tenant/databases/default_database/collections"


class Worker:
    """A client process."""

    def __init__(self, python: Path, port: int, data: Path) -> None:
        command = [str(python), "-P", str(_HERE / "gateway_client.py"), str(port), str(data)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer()

    def ask(self, verb: str, *arguments: Any) -> Any:
        """Let it do something and wait for the answer."""
        self.start(verb, *arguments)
        return json.loads(self.answer())

    def start(self, verb: str, *arguments: Any) -> None:
        """Let it do something."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([verb, arguments]) + "\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        """Wait for the answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a client ended with {self._process.wait()}")
        return line

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()


@dataclass
class Peer:
    """One server and its clients. ``restarts``: whether a changed effort takes effect only then."""

    name: str
    command: Callable[[int], Sequence[str]]
    python: Path
    data: Path
    clients: int
    restarts: bool = False
    port: int = 0
    workers: list[Worker] = field(default_factory=list)
    times: dict[str, list[float]] = field(default_factory=dict)
    recall: dict[str, float] = field(default_factory=dict)
    ef: int = 0
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """The server, then the clients."""
        (self.port,) = free_ports(1)
        self._process = subprocess.Popen(self.command(self.port), stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_S
        while not self._beats():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"{self.name} does not answer")
            time.sleep(0.1)
        self.workers = [Worker(self.python, self.port, self.data) for _ in range(self.clients)]

    def stop(self) -> None:
        """All of its processes."""
        for worker in self.workers:
            worker.close()
        self.workers = []
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=_START_S)

    def ask(self, verb: str, *arguments: Any) -> Any:
        """One client does it."""
        return self.workers[0].ask(verb, *arguments)

    def note(self, what: str, value: float) -> None:
        """One round's figure."""
        self.times.setdefault(what, []).append(value)

    def median(self, what: str) -> float:
        """Over the rounds."""
        return statistics.median(self.times[what])

    def cpu_s(self) -> float:
        """Processor seconds that the server and its children have used. Unlike times they do not depend on who else runs."""
        assert self._process is not None
        processes, ticks = [self._process.pid], 0
        while processes:
            folder = Path(f"/proc/{processes.pop()}")
            for task in (folder / "task").iterdir():
                processes += map(int, (task / "children").read_text().split())
            user, system = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
            ticks += int(user) + int(system)
        return ticks / os.sysconf("SC_CLK_TCK")

    def settle(self) -> None:
        """Wait until everything written is indexed, where the server can tell."""
        found = self._json(f"{_DATABASE}/{MAIN}")
        deadline = time.monotonic() + _INDEX_S
        while time.monotonic() < deadline:
            try:
                status = self._json(f"{_DATABASE}/{found['id']}/indexing_status")
            except urllib.error.HTTPError:
                return
            if status["num_unindexed_ops"] == 0:
                break
            time.sleep(0.2)
        time.sleep(3.0)  # merges that follow the last flush

    def _beats(self) -> bool:
        try:
            self._json("/api/v2/heartbeat")
        except (OSError, ValueError):
            return False
        return True

    def _json(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return json.load(answer)


def prepare(data: WordNet384, folder: Path) -> None:
    """What the client processes read."""
    np.save(folder / "base.npy", np.asarray(data.base))
    np.save(folder / "queries.npy", data.queries)
    metadatas = data.meta.select(["pos", "domain", "word_count"]).to_pylist()
    (folder / "records.json").write_text(json.dumps([data.meta.column("text").to_pylist(), metadatas]))


def load(peer: Peer, data: WordNet384) -> None:
    """The collection that is read, and the effort that it needs."""
    peer.ask("create", MAIN)
    started = time.perf_counter()
    peer.ask("add", MAIN, 0, len(data.base))
    loaded = len(data.base) / (time.perf_counter() - started)
    peer.settle()
    print(f"{peer.name}: {len(data.base):,} records loaded at {loaded:,.0f}/s, indexed", flush=True)
    for ef in EFFORTS:
        peer.ask("effort", MAIN, ef)
        if peer.restarts:
            peer.stop()
            peer.start()
        recall = recall_of(peer.ask("found", MAIN, TUNING), data.neighbours[:TUNING])
        peer.ef, peer.recall["query"] = ef, recall
        if recall >= TARGET:
            break
    peer.recall["filtered"] = recall_of(peer.ask("found", MAIN, TUNING, WHERE), _filtered_truth(data))


def _filtered_truth(data: WordNet384) -> Any:
    """The exact neighbours among the rows that match."""
    rows = np.flatnonzero(np.asarray(data.meta.column("pos")) == WHERE["pos"])
    products = data.queries[:TUNING] @ data.base[rows].T
    return rows[np.argsort(-products, axis=1, kind="stable")[:, :K]]


def measure(peer: Peer, number: int) -> None:
    """One round."""
    name = f"round-{number}"
    peer.ask("create", name)
    used = peer.cpu_s()
    times = peer.ask("add", name, 0, ADDED)
    peer.note("add of 1,000, server CPU ms", 1e3 * (peer.cpu_s() - used) / (ADDED / BATCH))
    peer.note("add, records/s", ADDED / sum(times))
    peer.ask("drop", name)
    time.sleep(1.0)
    used = peer.cpu_s()
    times = sorted(peer.ask("query", MAIN, QUERIES))
    peer.note("query, server CPU ms", 1e3 * (peer.cpu_s() - used) / QUERIES)
    peer.note("query, 1 client, QPS", len(times) / sum(times))
    peer.note("query, p50 ms", 1e3 * statistics.median(times))
    peer.note("query, p99 ms", 1e3 * times[int(0.99 * len(times))])
    started = time.perf_counter()
    for at, worker in enumerate(peer.workers):
        worker.start("query", MAIN, QUERIES, None, at * QUERIES)
    for worker in peer.workers:
        worker.answer()
    peer.note(f"query, {len(peer.workers)} clients, QPS", len(peer.workers) * QUERIES / (time.perf_counter() - started))
    times = peer.ask("query", MAIN, GETS, WHERE)
    peer.note("filtered query, QPS", len(times) / sum(times))
    times = peer.ask("get", MAIN, GETS, 100)
    peer.note("get of 100 ids, per s", len(times) / sum(times))


def report(shoal: Peer, chroma: Peer) -> None:
    """The medians of both, side by side."""
    print(f"\n{'':<28}{shoal.name:>12}{chroma.name:>12}{'ratio':>8}")
    for what in shoal.times:
        ours, theirs = shoal.median(what), chroma.median(what)
        ratio = theirs / ours if what.endswith("ms") else ours / theirs
        print(f"{what:<28}{ours:>12,.2f}{theirs:>12,.2f}{ratio:>8.2f}")
    for what, recall in shoal.recall.items():
        print(f"{f'recall@{K}, {what}':<28}{recall:>12.3f}{chroma.recall[what]:>12.3f}")
    print(f"{'ef_search':<28}{shoal.ef:>12}{chroma.ef:>12}", flush=True)


@contextmanager
def folder() -> Iterator[Path]:
    """A temporary one."""
    path = Path(tempfile.mkdtemp(prefix="shoal-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def compare(options: argparse.Namespace, data: WordNet384) -> None:
    """Both servers, in turns."""
    with folder() as path, ExitStack() as stack:
        prepare(data, path)
        common = (options.python, path, options.clients)
        shoal = [str(Path(sys.executable).with_name("shoal")), "up", "--path", str(path / "shoal")]
        if options.cluster:
            shoal += ["--cluster", "1"]
        chroma = [str(options.python.with_name("chroma")), "run", "--path", str(path / "chroma")]
        peers = (
            Peer("Shoal", lambda port: [*shoal, "--grpc", "127.0.0.1:0", "--http", f"127.0.0.1:{port}"], *common),
            Peer("Chroma", lambda port: [*chroma, "--port", str(port)], *common, restarts=True),
        )
        for peer in peers:
            stack.callback(peer.stop)
            peer.start()
            load(peer, data)
        for number in range(options.rounds):
            for peer in peers if number % 2 == 0 else peers[::-1]:
                measure(peer, number)
        report(*peers)


async def profile(options: argparse.Namespace, data: WordNet384) -> None:
    """Where the time of the event loop's thread goes: a query and an add, each by itself."""
    with folder() as path:
        prepare(data, path)
        async with embedded_server(path / "shoal", "127.0.0.1:0", "127.0.0.1:0") as (_, address):
            port = int(address.rpartition(":")[2])
            worker = await asyncio.to_thread(Worker, options.python, port, path)
            try:
                await _profiled(worker, data)
            finally:
                worker.close()


async def _profiled(worker: Worker, data: WordNet384) -> None:
    await asyncio.to_thread(worker.ask, "create", MAIN)
    await asyncio.to_thread(worker.ask, "add", MAIN, 0, len(data.base))
    await asyncio.to_thread(worker.ask, "create", "more")
    await asyncio.sleep(5.0)
    for verb, arguments, requests in (
        ("query", (MAIN, QUERIES), QUERIES),
        ("get", (MAIN, GETS, 100), GETS),
        ("add", ("more", 0, ADDED), ADDED // BATCH),
    ):
        profiler = cProfile.Profile(time.thread_time)  # others may want the processor too
        profiler.enable()
        times = await asyncio.to_thread(worker.ask, verb, *arguments)
        profiler.disable()
        stats = pstats.Stats(profiler)
        busy = 1e3 * sum(own for _, _, own, _, _ in stats.stats.values()) / requests  # type: ignore[attr-defined]
        print(
            f"\n{verb}: {1e3 * statistics.median(times):.2f} ms a request at the client, {busy:.2f} ms in the loop's thread"
        )
        stats.sort_stats("tottime").print_stats(30)


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="bench http", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, default=20_000, help="glosses, queries included; 0 for all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=4, help="processes of concurrent clients")
    parser.add_argument("--cluster", action="store_true", help="compare a local cluster instead of one process")
    parser.add_argument("--profile", action="store_true", help="profile the embedded system instead")
    parser.add_argument(
        "--python",
        type=Path,
        default=Path(".venv-clients/bin/python"),
        help="interpreter of an environment with chromadb",
    )
    options = parser.parse_args(arguments)
    if not options.python.exists():
        parser.error(
            f"{options.python} is not there; make an environment with chromadb and name its interpreter by --python"
        )
    data = wordnet384(_HERE.parent / ".cache", limit=options.limit or None)
    if options.profile:
        run(lambda: profile(options, data))
    else:
        compare(options, data)
