"""Real Postgres, etcd and S3 for tests: async context managers, and pytest fixtures over one server each per session.

Use the fixtures with ``pytest_plugins = ["shoal_testing.processes"]`` in the root ``conftest.py``:

* ``postgres_dsn`` (session): DSN of the shared server's own database; ``fresh_database`` (test): DSN of a new one.
* ``etcd_endpoint`` (session): ``host:port``; tests keep apart by prefixes of their own.
* ``s3_settings`` (test): `S3Settings` with a bucket of its own on the shared server.

A server starts when a test first asks for it. The bare objects are ``postgres_process``, ``etcd_process`` and
``seaweed_process``; tests that kill a server start one of their own with the context managers.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from shoal_runtime.servers import EtcdServer, PostgresPair, PostgresServer, SeaweedServer


class _Server(Protocol):
    async def start(self) -> None: ...

    async def stop(self) -> None: ...


T = TypeVar("T")
S = TypeVar("S", bound=_Server)


@dataclass(frozen=True, slots=True)
class S3Settings:
    """How to reach one bucket, path-style."""

    endpoint_url: str
    access_key: str
    secret_key: str
    bucket: str
    region: str = "us-east-1"


@asynccontextmanager
async def _running(server: S) -> AsyncIterator[S]:
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def postgres_server(directory: Path) -> AbstractAsyncContextManager[PostgresServer]:
    """A running Postgres whose data lie in ``directory``; stopped at the end."""
    return _running(PostgresServer(directory))


def postgres_pair(directory: Path) -> AbstractAsyncContextManager[PostgresPair]:
    """A running Postgres and its synchronous standby whose data lie in ``directory``; stopped at the end."""
    return _running(PostgresPair(directory))


def etcd_server(directory: Path) -> AbstractAsyncContextManager[EtcdServer]:
    """A running etcd whose data lie in ``directory``; stopped at the end."""
    return _running(EtcdServer(directory))


def seaweed_server(directory: Path) -> AbstractAsyncContextManager[SeaweedServer]:
    """A running S3 server whose data lie in ``directory``; stopped at the end."""
    return _running(SeaweedServer(directory))


def _kept(server: S) -> Iterator[S]:
    """For a fixture of the session."""
    _run(server.start())
    yield server
    _run(server.stop())


@pytest.fixture(scope="session")
def postgres_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """The session's Postgres."""
    yield from _kept(PostgresServer(tmp_path_factory.mktemp("postgres")))


@pytest.fixture(scope="session")
def postgres_dsn(postgres_process: PostgresServer) -> str:
    """DSN of database ``shoal`` of the session's Postgres."""
    return postgres_process.dsn


@pytest.fixture
def fresh_database(postgres_process: PostgresServer) -> Iterator[str]:
    """DSN of a database that only this test knows; dropped afterwards."""
    name = f"test_{uuid.uuid4().hex}"
    yield _run(postgres_process.create_database(name))
    _run(postgres_process.drop_database(name))


@pytest.fixture(scope="session")
def etcd_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """The session's etcd."""
    yield from _kept(EtcdServer(tmp_path_factory.mktemp("etcd")))


@pytest.fixture(scope="session")
def etcd_endpoint(etcd_process: EtcdServer) -> str:
    """``host:port`` of the session's etcd."""
    return etcd_process.endpoint


@pytest.fixture(scope="session")
def seaweed_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    """The session's S3 server."""
    yield from _kept(SeaweedServer(tmp_path_factory.mktemp("seaweedfs")))


@pytest.fixture
def s3_settings(seaweed_process: SeaweedServer) -> Iterator[S3Settings]:
    """A bucket that only this test knows; deleted afterwards."""
    bucket = f"test-{uuid.uuid4().hex}"
    _run(seaweed_process.create_bucket(bucket))
    yield S3Settings(seaweed_process.endpoint_url, seaweed_process.access_key, seaweed_process.secret_key, bucket)
    _run(seaweed_process.delete_bucket(bucket))


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` in a thread with a loop of its own, so that the test's own loop is left as it is."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, work).result()
