"""The golden transcript against the HTTP gateway: the listed answers differ, as listed, and no others."""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp, Message

from shoal_frontend.http_api.app import create_app
from shoal_frontend.http_api.gateway import Gateway
from shoal_testing.direct import DirectSystem
from tests.compat.golden import exchanges, listed, replay, row


class Caller:
    """Sends requests to an application in this process."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def send(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """One request: status and body of the answer."""
        path, _, query = path.partition("?")
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(b"host", b"test"), (b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def answer(message: Message) -> None:
            sent.append(message)

        await self._app(scope, receive, answer)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


async def _reset() -> None:
    """There is nothing to forget."""


def gateway() -> ASGIApp:
    """The gateway over a whole system in this process."""
    system = DirectSystem()
    return create_app(Gateway(system.database, system.clock, system.random, reset=_reset))


async def test_answers_differ_as_listed_and_no_others() -> None:
    found = await replay(Caller(gateway()).send)
    assert "\n".join(map(row, found)) == "\n".join(map(row, listed()))


def test_the_transcript_is_whole() -> None:
    every = list(exchanges())
    assert [exchange.number for exchange in every] == list(range(1, 118))
    assert {exchange.status for exchange in every} == {200, 201, 400, 404, 405, 409, 410, 422, 500, 501}
