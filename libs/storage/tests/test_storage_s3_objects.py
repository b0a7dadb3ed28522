"""The store in a bucket: the contract against a real S3 server, and what happens when the server is not there."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from shoal_core.errors import FailedPrecondition, InvalidArgument, PermissionDenied, Unavailable
from shoal_core.ports import ObjectStore
from shoal_storage.s3_objects import S3Config, S3ObjectStore, ensure_bucket
from shoal_testing.object_store_contract import ObjectStoreContract, listed

pytestmark = pytest.mark.integration

START_LIMIT_S = 60
PREFIXES = count()


def free_ports(number: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def seaweedfs_command(directory: Path, ports: list[int]) -> list[str]:
    master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc = ports
    binary = Path(sys.executable).parent / "weed"
    return [
        *(str(binary), "-logtostderr=true", "server", f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *(f"-master.port={master}", f"-master.port.grpc={master_grpc}", "-master.telemetry=false"),
        *("-master.electionTimeout=1s", "-master.volumeSizeLimitMB=1024"),
        *(f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}", "-volume.max=0", "-volume.minFreeSpace=1"),
        *("-volume.preStopSeconds=0", "-filer", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}"),
        *(f"-filer.localSocket={directory}/filer.sock", "-s3", f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={directory}/s3.json"),
        *(f"-s3.localSocket={directory}/s3.sock", "-s3.autoCreateBucket=false"),
    ]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Config]:
    """A SeaweedFS on loopback with an empty bucket."""
    directory = Path(tempfile.mkdtemp(prefix="weed-"))
    identity = {"name": "admin", "credentials": [{"accessKey": "key", "secretKey": "secret"}], "actions": ["Admin"]}
    (directory / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = free_ports(8)
    config = S3Config("shoal-test", f"http://127.0.0.1:{ports[6]}", "key", "secret", allow_http=True)
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            seaweedfs_command(directory, ports), stdout=log, stderr=log, env={**os.environ, "TMPDIR": str(directory)}
        )
    try:
        wait_for_bucket(config, process)
        yield config
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        shutil.rmtree(directory)


def wait_for_bucket(config: S3Config, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            ensure_bucket(config)
            asyncio.run(S3ObjectStore(config).put("ready", b"first"))
            return
        except Unavailable:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


class TestS3ObjectStore(ObjectStoreContract):
    @pytest.fixture
    def store(self, server: S3Config) -> ObjectStore:
        return S3ObjectStore(replace(server, prefix=f"case/{next(PREFIXES)}"))


async def test_the_prefix_keeps_stores_apart(server: S3Config) -> None:
    one, other = (S3ObjectStore(replace(server, prefix=f"apart/{name}")) for name in ("one", "other"))
    await one.put("a", b"1")
    await other.put("a", b"2")
    assert bytes(await one.get("a")) == b"1"
    assert await listed(one, "") == ["a"]
    assert await listed(S3ObjectStore(server), "apart/") == ["apart/one/a", "apart/other/a"]


async def test_ensure_bucket_may_be_repeated(server: S3Config) -> None:
    config = replace(server, bucket="another")
    await asyncio.gather(*(asyncio.to_thread(ensure_bucket, config) for _ in range(4)))
    await S3ObjectStore(config).put("a", b"x")


async def test_a_missing_bucket_is_not_a_missing_object(server: S3Config) -> None:
    store = S3ObjectStore(replace(server, bucket="no-such-bucket"))
    with pytest.raises(FailedPrecondition, match="create the bucket"):
        await store.get("a")
    with pytest.raises(FailedPrecondition, match="create the bucket"):
        await store.put("a", b"x")
    with pytest.raises(FailedPrecondition, match="create the bucket"):
        await listed(store, "")


async def test_wrong_credentials_are_denied(server: S3Config) -> None:
    config = replace(server, access_key="nobody")
    with pytest.raises(PermissionDenied):
        await S3ObjectStore(config).get("a")
    with pytest.raises(PermissionDenied):
        await asyncio.to_thread(ensure_bucket, replace(config, bucket="forbidden"))


async def test_a_put_whose_answer_is_cut_off_succeeds(server: S3Config) -> None:
    """A proxy passes the first request on and drops its answer."""
    upstream = int(server.endpoint.rpartition(":")[2])
    answers: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", upstream)
        sending = asyncio.create_task(copy(reader, far_writer))
        try:
            answers.append(await far_reader.read(1 << 16))
            if len(answers) > 1:
                writer.write(answers[-1])
                await copy(far_reader, writer)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await finish(far_writer)

    async with serving(proxy) as port:
        store = S3ObjectStore(replace(server, endpoint=f"http://127.0.0.1:{port}", prefix="cut", retries=0))
        await store.put("a", b"hello" * 1000)
        assert answers[0].startswith(b"HTTP/1.1 200")
        assert bytes(await S3ObjectStore(replace(server, prefix="cut")).get("a")) == b"hello" * 1000


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


async def finish(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


@asynccontextmanager
async def serving(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """A server on loopback; yields its port, and ends its connections with it."""
    connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await handle(reader, writer)
        except (asyncio.CancelledError, OSError, asyncio.IncompleteReadError):
            pass
        finally:
            await finish(writer)

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await listening.wait_closed()


def unreachable(port: int, **settings: int) -> S3Config:
    config = S3Config("bucket", f"http://127.0.0.1:{port}", "key", "secret", allow_http=True)
    return replace(config, **settings)  # type: ignore[arg-type]


async def test_a_dead_server_is_unavailable_within_about_a_second() -> None:
    config = unreachable(free_ports(1)[0])
    store = S3ObjectStore(config)
    started = time.monotonic()
    with pytest.raises(Unavailable):
        await store.get("a")
    with pytest.raises(Unavailable):
        await store.put("a", b"x")
    with pytest.raises(Unavailable):
        await store.delete(["a"])
    with pytest.raises(Unavailable):
        await listed(store, "")
    assert time.monotonic() - started < 8  # four calls and a busy machine
    with pytest.raises(Unavailable):
        await asyncio.to_thread(ensure_bucket, config)


async def test_a_server_that_hangs_is_unavailable() -> None:
    asked = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await asyncio.Event().wait()

    async with serving(hang) as port:
        store = S3ObjectStore(unreachable(port, request_timeout_ms=200))
        with pytest.raises(Unavailable, match=r"'a' within 0\.2 s"):
            await store.put("a", b"x")
        await asyncio.wait_for(asked.wait(), 10)


@pytest.mark.parametrize(
    ("status", "error"),
    [(500, Unavailable), (503, Unavailable), (429, Unavailable), (400, FailedPrecondition), (403, PermissionDenied)],
)
async def test_the_status_decides_whether_to_try_again(status: int, error: type[Exception]) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status} Told\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()

    async with serving(answer) as port:
        store = S3ObjectStore(unreachable(port, retries=1))
        with pytest.raises(error):
            await store.get("a")


def test_http_has_to_be_allowed() -> None:
    with pytest.raises(InvalidArgument, match="allow_http"):
        S3ObjectStore(S3Config("bucket", "http://127.0.0.1:1"))


def test_the_secret_stays_out_of_sight() -> None:
    assert "hush" not in repr(S3Config("bucket", secret_key="hush"))
