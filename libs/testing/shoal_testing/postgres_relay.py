"""A TCP relay in front of Postgres that fails on request."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit


class PostgresRelay:
    """A TCP relay in front of Postgres that can lose the answer to a COMMIT, the COMMIT itself, or every answer.

    Attributes:
        cut_on: bytes of a request at which the next connection that sends them is cut; empty for never.
        deliver: whether that request still reaches the server.
        cuts: how often that happened.
        refuse: accept no connections.
    """

    def __init__(self, dsn: str) -> None:
        self._url = urlsplit(dsn)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.cut_on = b""
        self.deliver = True
        self.cuts = 0
        self.refuse = False

    @property
    def dsn(self) -> str:
        """Of the database, through here."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        user = f"{self._url.username}:{self._url.password}" if self._url.password else self._url.username
        return self._url._replace(netloc=f"{user}@127.0.0.1:{port}").geturl()

    async def __aenter__(self) -> PostgresRelay:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.refuse:
            writer.transport.abort()
            return
        there_reader, there_writer = await asyncio.open_connection(self._url.hostname, self._url.port)
        try:
            async with asyncio.TaskGroup() as group:
                answers = group.create_task(_relay(there_reader, writer))
                while data := await reader.read(1 << 16):
                    if self.cut_on and self.cut_on in data:
                        self.cut_on = b""
                        self.cuts += 1
                        answers.cancel()
                        await asyncio.wait([answers])
                        writer.transport.abort()
                        if self.deliver:
                            there_writer.write(data)
                            await there_writer.drain()
                            await there_reader.read(1)  # the server has done it
                        break
                    there_writer.write(data)
                    await there_writer.drain()
                answers.cancel()
        except (OSError, ExceptionGroup):
            pass
        finally:
            there_writer.transport.abort()
            writer.transport.abort()


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.transport.abort()
