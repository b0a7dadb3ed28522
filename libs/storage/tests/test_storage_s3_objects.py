"""The store in a bucket: the contract against a real S3 server, and what happens when the server is not there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import count

import pytest

from shoal_core.errors import FailedPrecondition, InvalidArgument, PermissionDenied, Unavailable
from shoal_core.ports import ObjectStore
from shoal_runtime.servers import SeaweedServer, free_ports
from shoal_storage.s3_objects import S3Config, S3ObjectStore, ensure_bucket
from shoal_testing.object_store_contract import ObjectStoreContract, listed

pytestmark = pytest.mark.integration

PREFIXES = count()


@pytest.fixture(scope="module")
def server(seaweed_process: SeaweedServer) -> S3Config:
    """An empty bucket of the session's S3 server."""
    access, secret = seaweed_process.access_key, seaweed_process.secret_key
    config = S3Config("shoal-test", seaweed_process.endpoint_url, access, secret, allow_http=True)
    ensure_bucket(config)
    return config


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
