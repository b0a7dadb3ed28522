"""The ``shoal`` command as scripts use it: up until a signal, one process per directory, nothing left after a crash."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

import shoal
from shoal_runtime.servers.ports import free_ports

pytestmark = pytest.mark.integration

SHOAL = Path(sys.executable).with_name("shoal")


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="shoal-command-"))
    yield path
    shutil.rmtree(path)


class Running:
    """A ``shoal up`` in the foreground of a process of its own."""

    def __init__(self, path: Path, *options: str) -> None:
        grpc, http = free_ports(2)
        self.grpc, self.http = f"127.0.0.1:{grpc}", f"127.0.0.1:{http}"
        self.log = path.with_suffix(".out")
        command = [str(SHOAL), "up", "--path", str(path), "--grpc", self.grpc, "--http", self.http, *options]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)

    def wait_ready(self, timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while "Ready" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def family(self) -> list[psutil.Process]:
        return list(psutil.Process(self.process.pid).children(recursive=True))

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        return self.process.wait(60)


def _all_gone(processes: list[psutil.Process], timeout_s: float = 20) -> list[psutil.Process]:
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def _write_and_read(address: str, first: bool) -> None:
    with shoal.connect(address, timeout_ms=60_000) as client:
        things = client.get_or_create_collection("things", space="l2")
        if first:
            things.add(["a", "b"], embeddings=np.eye(2, 8, dtype=np.float32), documents=["one", "two"])
        found = things.query(query_embeddings=np.eye(1, 8, dtype=np.float32), n_results=1)
        assert found.ids == [["a"]]
        assert things.count() == 2


def test_up_serves_until_a_signal_and_again(folder: Path) -> None:
    for how, first in ((signal.SIGTERM, True), (signal.SIGINT, False)):
        up = Running(folder / "data")
        up.wait_ready()
        family = up.family()
        assert family
        _write_and_read(up.grpc, first)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        assert opener.open(f"http://{up.http}/health", timeout=10).read() == b"ok\n"
        assert up.end(how) == 0
        assert _all_gone(family) == []


def test_a_second_process_is_refused(folder: Path) -> None:
    up = Running(folder / "data")
    up.wait_ready()
    second = Running(folder / "data")
    assert second.process.wait(60) == 1
    assert f"in use by process {up.process.pid}" in second.log.read_text()
    assert up.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("options", [(), ("--cluster", "1")], ids=["embedded", "cluster"])
def test_nothing_runs_on_after_kill_9_and_nothing_is_lost(folder: Path, options: tuple[str, ...]) -> None:
    up = Running(folder / "data", *options)
    up.wait_ready()
    _write_and_read(up.grpc, first=True)
    family = up.family()
    assert up.end(signal.SIGKILL) == -signal.SIGKILL
    assert _all_gone(family) == []
    again = Running(folder / "data", *options)
    again.wait_ready()
    _write_and_read(again.grpc, first=False)
    assert again.end(signal.SIGTERM) == 0


def test_help_and_errors_are_readable() -> None:
    told = subprocess.run(
        [str(SHOAL), "up", "--help"], capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "120"}
    )
    assert "--cluster" in told.stdout
    wrong = subprocess.run([str(SHOAL), "serve", "nonsense"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert "frontend, logservice, querynode, compactor, sysdb" in wrong.stderr
    assert "Traceback" not in wrong.stderr
