"""Servers that published clients talk to: Shoal as ``shoal up``, and a genuine server of the reference system."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from shoal_runtime.servers.ports import free_ports
from shoal_runtime.servers.process import ServerCommand, ServerProcess

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / ".venv-clients"
SHOAL = Path(sys.executable).with_name("shoal")

_READY_S = 120.0
_STOP_S = 30.0
_PROBE_S = 2.0


@dataclass(frozen=True, slots=True)
class Up:
    """Addresses of a running ``shoal up``."""

    http: str
    grpc: str


@asynccontextmanager
async def shoal_up(directory: Path, *options: str, environment: Mapping[str, str] | None = None) -> AsyncIterator[Up]:
    """``shoal up`` with everything in one process. ``options``: more of the command's."""
    ports = free_ports(2)
    up = Up(*(f"127.0.0.1:{port}" for port in ports))
    command = [str(SHOAL), "up", "--path", str(directory / "data"), "--grpc", up.grpc, "--http", up.http, *options]
    async with _running("shoal", command, directory, ports[0], environment):
        yield up


@asynccontextmanager
async def genuine_server(directory: Path) -> AsyncIterator[str]:
    """A server of the reference system over an empty store; its address."""
    (port,) = free_ports(1)
    settings = {"port": port, "listen_address": "127.0.0.1", "persist_path": str(directory / "store")}
    config = directory / "config.yaml"
    config.write_text(json.dumps(settings))  # any JSON is YAML
    chroma = CLIENTS / "bin" / "chroma"
    assert chroma.exists(), f"{chroma} is missing: make clients"
    async with _running("chroma", [str(chroma), "run", str(config)], directory, port, None):
        yield f"127.0.0.1:{port}"


@asynccontextmanager
async def _running(
    name: str, command: Sequence[str], directory: Path, port: int, environment: Mapping[str, str] | None
) -> AsyncIterator[None]:
    process = ServerProcess(name)
    inherited = {"PATH": os.environ["PATH"], "HOME": str(directory)}
    await process.start(
        ServerCommand(
            argv=tuple(command),
            cwd=directory,
            log_path=directory / f"{name}.log",
            env={**inherited, **(environment or {})},
            stop_timeout_s=_STOP_S,
        )
    )
    try:
        await process.wait_ready(lambda: asyncio.to_thread(_answers, port), _READY_S)
        yield
    finally:
        await process.stop()


def _answers(port: int) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/api/v2/heartbeat", timeout=_PROBE_S) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)  # it is there, and asks who is
