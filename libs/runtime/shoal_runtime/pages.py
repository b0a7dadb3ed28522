"""A few pages over HTTP for operators: metrics, health. GET and HEAD only, one request per connection, nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shoal_core.errors import Unavailable

_log = logging.getLogger(__name__)

_MAX_HEAD_BYTES = 16 << 10
_TIMEOUT_S = 10
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Page:
    """One answer."""

    body: bytes
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"


class Pages:
    """Serves ``pages``: path → what makes the page. A maker runs on the event loop and must be quick."""

    def __init__(
        self,
        pages: Mapping[str, Callable[[], Page]],
        *,
        max_connections: int = 64,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._pages = dict(pages)
        self._tls = tls
        self._slots = asyncio.Semaphore(max_connections)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen; the port, also when 0 was asked for. Raises `Unavailable` when the address cannot be had."""
        try:
            self._server = await asyncio.start_server(self._accept, host, port, limit=_MAX_HEAD_BYTES, ssl=self._tls)
        except OSError as error:
            raise Unavailable(
                f"cannot listen on {host}:{port}: {error.strerror or error}; choose another address"
            ) from error
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and drop what is open."""
        if self._server is None:
            return
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT_S), self._slots:
                head = await reader.readuntil(b"\r\n\r\n")
                method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
                page = self._page(method, rest)
                writer.write(_response(page, with_body=method != b"HEAD"))
                await writer.drain()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            return  # whoever asked is gone, too slow or no HTTP client
        finally:
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    def _page(self, method: bytes, rest: bytes) -> Page:
        target, _, version = rest.rpartition(b" ")
        if not version.startswith(b"HTTP/1."):
            return Page(b"this is HTTP/1.1\n", 400)
        if method not in (b"GET", b"HEAD"):
            return Page(b"only GET and HEAD\n", 405)
        make = self._pages.get(target.partition(b"?")[0].decode("latin-1"))
        if make is None:
            return Page(f"no such page; there are {' '.join(sorted(self._pages))}\n".encode(), 404)
        try:
            return make()
        except Exception:
            _log.exception("cannot make the page %r", target)
            return Page(b"failed, see the log\n", 500)


def _response(page: Page, *, with_body: bool) -> bytes:
    head = (
        f"HTTP/1.1 {page.status} {_REASONS.get(page.status, 'Status')}\r\n"
        f"Content-Type: {page.content_type}\r\n"
        f"Content-Length: {len(page.body)}\r\n"
        "Cache-Control: no-store\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (page.body if with_body else b"")
