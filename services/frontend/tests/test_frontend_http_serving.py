"""The gateway on a real socket of this machine."""

from __future__ import annotations

import asyncio
import json
import signal
import socket

import pytest

from services.frontend.tests.frontend_http_support import T
from shoal_core.errors import Unavailable
from shoal_frontend.access.entrance import Entrance
from shoal_frontend.access.gate import Gate
from shoal_frontend.http_api.app import create_app
from shoal_frontend.http_api.bodies import MAX_BODY_BYTES
from shoal_frontend.http_api.gateway import Gateway
from shoal_frontend.http_api.serving import serve
from shoal_testing.direct import DirectSystem

pytestmark = pytest.mark.integration

HOST = "127.0.0.1"


def gateway() -> Gateway:
    system = DirectSystem()
    return Gateway(Entrance(system.database, Gate(system.clock)), system.clock, system.random)


class Connection:
    """One connection that is kept."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def __call__(self, method: str, path: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
        head = f"{method} {path} HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        await self.writer.drain()
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


async def connected(port: int) -> Connection:
    return Connection(*await asyncio.open_connection(HOST, port))


async def test_it_serves_while_open_and_leaves_signals_alone() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with serve(create_app(gateway()), HOST, 0) as port:
        assert port > 0
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
        http = await connected(port)
        status, headers, body = await http("POST", f"{T}/collections", b'{"name":"things"}')
        assert (status, headers["content-type"]) == (200, "application/json")
        assert len(headers["chroma-trace-id"]) == 32
        assert "server" not in headers
        at = f"{T}/collections/{json.loads(body)['id']}"
        added = b'{"ids":["a"],"embeddings":[[1,2]]}'
        assert (await http("POST", f"{at}/add", added))[::2] == (201, b"{}")
        assert (await http("GET", f"{at}/count"))[::2] == (200, b"1")
        assert (await http("GET", f"{T}/collections/name%20spaced"))[0] == 404
        await http.close()
    with pytest.raises(ConnectionRefusedError):
        await connected(port)


async def test_a_body_that_is_too_large_is_refused_and_the_connection_goes_on() -> None:
    async with serve(create_app(gateway()), HOST, 0) as port:
        http = await connected(port)
        status, _, body = await http("POST", f"{T}/collections", b" " * (MAX_BODY_BYTES + 1))
        assert (status, body) == (413, b"Payload too large")
        assert (await http("GET", "/api/v2/version"))[::2] == (200, b'"1.0.0"')
        await http.close()


async def test_an_address_that_is_taken_is_an_error() -> None:
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(Unavailable, match=f"cannot listen on {HOST}:{port}"):
            async with serve(create_app(gateway()), HOST, port):
                raise AssertionError("unreachable")


async def test_requests_under_way_are_answered_before_it_ends() -> None:
    entered, proceed = asyncio.Event(), asyncio.Event()

    async def reset() -> None:
        entered.set()
        await proceed.wait()

    system = DirectSystem()
    system.catalog.reset = reset  # type: ignore[method-assign]
    system.database.allow_reset = True
    app = create_app(Gateway(Entrance(system.database, Gate(system.clock)), system.clock, system.random))
    async with serve(app, HOST, 0) as port:
        http = await connected(port)
        asked = asyncio.create_task(http("POST", "/api/v2/reset"))
        await entered.wait()
        asyncio.get_running_loop().call_soon(proceed.set)
    assert (await asked)[::2] == (200, b"true")
    await http.close()
