"""Routes about the server itself, and those that it does not serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import Request, Response
from fastapi.responses import PlainTextResponse

from shoal_frontend.http_api.bodies import json_response
from shoal_frontend.http_api.gateway import API, Gateway, Route

VERSION = "1.0.0"

_OLD = {"error": "Unimplemented", "message": "The v1 API is deprecated. Please use /v2 apis"}
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_DEFAULTS = {"user_id": "", "tenant": "default_tenant", "databases": ["default_database"]}


@dataclass(frozen=True, slots=True)
class SystemRoutes:
    """Heartbeat, health, version, identity, reset; and refusals."""

    gateway: Gateway

    def routes(self) -> Sequence[Route]:
        """All of them."""
        return (
            Route("GET", "/health", self.health, is_open=True),
            Route("GET", API, self.heartbeat, is_open=True),
            Route("GET", f"{API}/heartbeat", self.heartbeat, is_open=True),
            Route("GET", f"{API}/healthcheck", self.healthcheck, is_open=True),
            Route("GET", f"{API}/pre-flight-checks", self.pre_flight_checks, is_open=True),
            Route("GET", f"{API}/version", self.version, is_open=True),
            Route("GET", f"{API}/auth/identity", self.identity),
            Route("POST", f"{API}/reset", self.reset),
            *(Route(method, "/api/v1/{rest:path}", self.old, is_open=True) for method in _METHODS),
        )

    async def health(self, request: Request) -> Response:
        """That the process is up; for whoever starts it."""
        return PlainTextResponse("ok\n")

    async def heartbeat(self, request: Request) -> Response:
        """Nanoseconds since 1970."""
        return json_response({"nanosecond heartbeat": self.gateway.clock.time_ns()})

    async def healthcheck(self, request: Request) -> Response:
        """Whether requests can be answered."""
        ready = self.gateway.readiness()
        body = {"is_executor_ready": ready.executor, "is_log_client_ready": ready.log}
        return json_response(body, 200 if ready.executor and ready.log else 503)

    async def pre_flight_checks(self, request: Request) -> Response:
        """What clients may send."""
        return json_response({"max_batch_size": self.gateway.limits.batch_records, "supports_base64_encoding": True})

    async def version(self, request: Request) -> Response:
        """Of the API."""
        return json_response(VERSION)

    async def identity(self, request: Request) -> Response:
        """Who asks: where there is no authentication, nobody in particular. One tenant and database, if the grants name them."""
        if self.gateway.entrance.is_open:
            return json_response(_DEFAULTS)
        who = self.gateway.session_of(request).principal
        return json_response({"user_id": who.id, "tenant": who.tenant(), "databases": who.databases()})

    async def reset(self, request: Request) -> Response:
        """Forget everything, where that is allowed."""
        await self.gateway.api_of(request).reset()
        return json_response(True)

    async def old(self, request: Request) -> Response:
        """Anything of version 1."""
        return json_response(_OLD, 410)
