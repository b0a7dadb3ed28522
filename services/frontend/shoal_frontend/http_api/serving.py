"""An ASGI application on a port, in the event loop that runs already."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager

import uvicorn

from shoal_core.errors import Unavailable
from shoal_frontend.http_api.gateway import Application

_BACKLOG = 2048


@asynccontextmanager
async def serve(
    app: Application, host: str, port: int, *, drain_s: int = 5, tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Serve while the context is open; gives the port, also when 0 was asked for. Without ``tls`` it is plain text.

    On leaving, requests under way have ``drain_s`` seconds to end. Signals are left to the process.

    Raises:
        Unavailable: the address cannot be had.
    """
    listener = _listen(host, port)
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=drain_s,
        ssl_context_factory=None if tls is None else lambda config, default: tls,
    )
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await _listening(server, running)
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        await asyncio.shield(running)
        listener.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise Unavailable(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another address"
        ) from error


async def _listening(server: _Server, running: asyncio.Task[None]) -> None:
    started = asyncio.create_task(server.started_event.wait())
    try:
        await asyncio.wait({started, running}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        started.cancel()
    if running.done():
        running.result()
        raise Unavailable("the HTTP server ended before it listened")


class _Server(uvicorn.Server):
    """Says when it listens, and leaves signals alone."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.started_event = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.started_event.set()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield
