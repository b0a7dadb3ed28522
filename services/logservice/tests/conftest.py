"""A Postgres for the tests of the log, and collections in it."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.logservice.tests.log_support import World

_BIN = Path("/usr/lib/postgresql/15/bin")


@pytest.fixture(scope="session")
def log_postgres() -> Iterator[str]:
    """DSN of the server's maintenance database, without its name."""
    owner = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="shoal-log-postgres-"))
    data = folder / "data"
    if owner:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    as_owner = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if owner else {}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    subprocess.run(
        [_BIN / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C", "-N"],
        check=True, cwd=folder, stdout=subprocess.DEVNULL, **as_owner,
    )
    settings = {
        "listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder, "max_connections": 200,
        "fsync": os.environ.get("SHOAL_TEST_FSYNC", "off"), "log_min_messages": "fatal",
    }
    server = subprocess.Popen(
        [_BIN / "postgres", "-D", data, *(f"--{name}={value}" for name, value in settings.items())],
        cwd=folder, stderr=subprocess.DEVNULL, **as_owner,
    )
    try:
        deadline = time.monotonic() + 30
        ready = [_BIN / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
        while subprocess.run(ready, check=False).returncode != 0:
            assert server.poll() is None, "Postgres did not start"
            assert time.monotonic() < deadline, "Postgres is not ready"
            time.sleep(0.05)
        yield f"postgresql://postgres@127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(20)
        finally:
            server.kill()
            server.wait()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def world(log_postgres: str) -> AsyncIterator[World]:
    """A fresh database with the schema."""
    world = await World.create(log_postgres)
    yield world
    await world.close()


