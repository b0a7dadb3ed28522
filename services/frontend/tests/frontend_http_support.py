"""The HTTP gateway over the whole system in one process, asked without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from shoal_frontend.access.entrance import Entrance
from shoal_frontend.access.gate import Gate
from shoal_frontend.api import Api
from shoal_frontend.http_api.app import create_app
from shoal_frontend.http_api.gateway import Application, Gateway, Message
from shoal_testing.direct import DirectSystem

T = "/api/v2/tenants/default_tenant/databases/default_database"


@dataclass(frozen=True)
class Answered:
    """One answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def error(self) -> tuple[int, str, str]:
        """Status, name and message."""
        return self.status, self.json["error"], self.json["message"]


class Http:
    """Requests to an ASGI application. Bodies are plain data, written without spaces, or bytes as they are."""

    def __init__(self, app: Application) -> None:
        self.app = app

    async def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        connected: bool = True,
    ) -> Answered:
        data = body if isinstance(body, bytes) else b"" if body is None else compact(body)
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "scheme": "http",
            "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        sent: list[Message] = []
        part = {"type": "http.request", "body": data, "more_body": False}
        parts = iter([part if connected else {"type": "http.disconnect"}])

        async def receive() -> Message:
            for part in parts:
                return part
            await asyncio.Event().wait()  # the client stays connected
            raise AssertionError("unreachable")

        async def send(message: Message) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        start, *rest = sent
        found = {name.decode(): value.decode() for name, value in start["headers"]}
        return Answered(start["status"], found, b"".join(part.get("body", b"") for part in rest))


def compact(value: Any) -> bytes:
    """JSON without spaces, so that columns in messages are those of the reference's transcript."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def http_of(api: Api, system: DirectSystem, **more: Any) -> Http:
    """The gateway over these verbs, open to everybody."""
    return Http(create_app(Gateway(Entrance(api, Gate(system.clock)), system.clock, system.random, **more)))


class Site:
    """A system, its gateway and a collection in it."""

    def __init__(self) -> None:
        self.system = DirectSystem()
        self.http = http_of(self.system.database, self.system)
        self.id = ""

    async def start(self, name: str = "coll1", **body: Any) -> Site:
        """With a collection."""
        made = await self.http("POST", f"{T}/collections", {"name": name, **body})
        assert made.status == 200, made.body
        self.id = made.json["id"]
        return self

    async def post(self, verb: str, body: Any) -> Answered:
        """To the collection."""
        return await self.http("POST", f"{T}/collections/{self.id}/{verb}", body)

    async def count(self) -> Any:
        """Of its records."""
        return (await self.http("GET", f"{T}/collections/{self.id}/count")).json
