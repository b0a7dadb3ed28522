"""A real Postgres for sysdb's tests: one server per run, one database per test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import pytest

from shoal_sysdb.catalog import CatalogService
from shoal_sysdb.migrate import migrate
from shoal_sysdb.store import Pool, PostgresCatalogStore, open_pool

_BINARIES = Path("/usr/lib/postgresql/15/bin")


@dataclass
class PostgresServer:
    """A throw-away server on loopback that can be killed and started again."""

    folder: Path
    port: int
    user: str | None
    process: subprocess.Popen[bytes] | None = field(default=None)

    def dsn(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        options = ["-c", "listen_addresses=127.0.0.1", "-c", f"port={self.port}", "-c", "unix_socket_directories="]
        self.process = self._spawn(_BINARIES / "postgres", "-D", "data", *options, "-c", "max_connections=200")
        deadline = time.monotonic() + 30
        while not self._answers():
            assert time.monotonic() < deadline, "Postgres did not start"
            time.sleep(0.05)

    def _spawn(self, *command: object) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [str(part) for part in command],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                user=self.user,
                extra_groups=None if self.user is None else [],
            )

    def initialise(self) -> None:
        code = self._spawn(
            _BINARIES / "initdb", "-D", "data", "-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C", "-N"
        ).wait(60)
        assert code == 0, (self.folder / "log").read_text()

    def _answers(self) -> bool:
        async def connect() -> bool:
            try:
                connection = await asyncpg.connect(self.dsn(), timeout=5)
            except (OSError, asyncpg.PostgresError):
                return False
            await connection.close()
            return True

        return asyncio.run(connect())

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    folder = Path(tempfile.mkdtemp(prefix="shoal-sysdb-test-"))
    user = "postgres" if os.getuid() == 0 else None
    if user is not None:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = PostgresServer(folder, port, user)
    try:
        server.initialise()
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture
def mortal_postgres() -> Iterator[PostgresServer]:
    """A server of the test's own, to be killed."""
    with running_postgres() as server:
        yield server


@pytest.fixture
async def empty_dsn(postgres: PostgresServer) -> str:
    """An empty database."""
    name = f"t{uuid.uuid4().hex}"
    connection = await asyncpg.connect(postgres.dsn())
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    return postgres.dsn(name)


@pytest.fixture
async def dsn(empty_dsn: str) -> str:
    """A migrated database."""
    await migrate(empty_dsn)
    return empty_dsn


@pytest.fixture
async def pool(dsn: str) -> AsyncIterator[Pool]:
    pool = await open_pool(dsn, max_size=25)
    yield pool
    await pool.close()


@pytest.fixture
def store(pool: Pool) -> PostgresCatalogStore:
    return PostgresCatalogStore(pool)


@pytest.fixture
def catalog(store: PostgresCatalogStore) -> CatalogService:
    return CatalogService(store)


@pytest.fixture
def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def mortal_dsn(mortal_postgres: PostgresServer) -> str:
    return mortal_postgres.dsn()
