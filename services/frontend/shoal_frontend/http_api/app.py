"""The application: all routes, errors as answers, a trace id on each of them."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse
from fastapi.telemetry import TelemetryConfig

from shoal_core.errors import Internal, ShoalError
from shoal_frontend.http_api.bodies import JSON_TYPE, Disconnected, PayloadTooLarge, json_response
from shoal_frontend.http_api.body_error import BodyError
from shoal_frontend.http_api.catalog_routes import CatalogRoutes
from shoal_frontend.http_api.conditional_routes import ConditionalRoutes
from shoal_frontend.http_api.errors import answer_of
from shoal_frontend.http_api.function_routes import FunctionRoutes
from shoal_frontend.http_api.gateway import (
    COLLECTION,
    SESSION,
    Application,
    Gateway,
    Receive,
    Route,
    Scope,
    Send,
)
from shoal_frontend.http_api.observed import ROUTE, TRACE_HEADER, TRACE_ID, Observed
from shoal_frontend.http_api.openapi import body_of, describe, parameters_of
from shoal_frontend.http_api.record_routes import RecordRoutes
from shoal_frontend.http_api.sending import RECALL_HEADER
from shoal_frontend.http_api.system_routes import VERSION, SystemRoutes

RETRY_HEADER = "retry-after"

# FastAPI's own would name tenants and collections, log exceptions with what they quote, and see no route of `_Direct`: see `observed`.
_NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "operation_spans": False}
_WITH_BODY = ("POST", "PUT", "PATCH")
_NOT_JSON = {"error": "ChromaError", "message": "Expected request with `Content-Type: application/json`"}
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")

_OF_COLLECTION = re.compile(COLLECTION.replace("{", "(?P<").replace("}", ">[^/]+)") + "(?P<verb>/.+)")

_log = logging.getLogger(__name__)

Answers: TypeAlias = Callable[[Request], Awaitable[Response]]


def create_app(gateway: Gateway) -> FastAPI:
    """The gateway as an ASGI application, with its description at ``/docs`` and ``/openapi.json``."""
    app = FastAPI(title="Shoal", version=VERSION, redoc_url=None, redirect_slashes=False, telemetry=_NO_TELEMETRY)
    answers = {(route.method, route.path): _add(app, gateway, route) for route in all_routes(gateway)}
    for status in (404, 405):
        app.add_exception_handler(status, _no_route)
    app.add_middleware(_Direct, answers=answers)  # innermost: what is added after it comes before it
    app.add_middleware(Observed, random=gateway.random, clock=gateway.clock, on_answered=gateway.on_answered)
    if gateway.cors_allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=gateway.cors_allow_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[TRACE_HEADER, RETRY_HEADER, RECALL_HEADER],
        )
    describe(app.openapi(), embeds=gateway.embeds)
    return app


def all_routes(gateway: Gateway) -> list[Route]:
    """Everything that is served."""
    parts = (
        SystemRoutes(gateway),
        CatalogRoutes(gateway),
        RecordRoutes(gateway),
        ConditionalRoutes(gateway),
        FunctionRoutes(gateway),
    )
    return [route for part in parts for route in part.routes()]


def _add(app: FastAPI, gateway: Gateway, route: Route) -> Answers:
    async def answered(request: Request) -> Response:
        request.scope[ROUTE] = route.path
        try:
            if not route.is_open:  # before anything of the body is read
                peer = f"{request.client.host}:{request.client.port}" if request.client else ""
                request.scope[SESSION] = await gateway.entrance.admit(request.headers.get, peer)
            if route.method in _WITH_BODY and not _may_be_json(request.headers, gateway.cors_allow_origins):
                return json_response(_NOT_JSON, 415)
            return await route.answer(request)
        except (ShoalError, BodyError) as error:
            return _error_response(request, error)
        except PayloadTooLarge:
            return PlainTextResponse("Payload too large", 413)
        except Disconnected:
            return Response(status_code=400)  # nobody reads it
        except Exception as error:
            _log.exception("a request failed (trace id %s)", request.scope.get(TRACE_ID))
            return json_response(answer_of(Internal(str(error)))[1], 500)

    name = getattr(route.answer, "__name__", "")
    app.add_api_route(
        route.path,
        answered,
        methods=[route.method],
        name=name,
        response_model=None,
        response_class=Response,
        include_in_schema="/v1/" not in route.path,
        operation_id=f"{name}_{route.method.lower()}{len(app.routes)}",
        description=route.answer.__doc__,
        openapi_extra=_described(route),
    )
    return answered


def _may_be_json(headers: Mapping[str, str], origins: Sequence[str]) -> bool:
    """Whether a body may be JSON. Of another type it is not, and without a type only if no page of a foreign origin sends it: browsers
    send both without asking, so that a page from anywhere could write to a server on its reader's own machine.
    """
    content_type, origin = headers.get("content-type", ""), headers.get("origin")
    if content_type:
        kind = content_type.partition(";")[0].strip().lower()
        return kind == JSON_TYPE or (kind.startswith("application/") and kind.endswith("+json"))
    own = origin is None or origin.partition("://")[2] == headers.get("host")
    return own or "*" in origins or origin in origins


def _described(route: Route) -> dict[str, Any]:
    """What FastAPI cannot see, as bodies and paths are read by hand."""
    described: dict[str, Any] = {
        "parameters": [
            *(
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in _PARAMETER.findall(route.path)
            ),
            *parameters_of(route.method, route.path),
        ]
    }
    if route.method in _WITH_BODY:
        described["requestBody"] = body_of(route.method, route.path)
    return described


def _error_response(request: Request, error: ShoalError | BodyError) -> Response:
    status, body = answer_of(error)
    response = json_response(body, status)
    if status >= 500 and status != 501:
        _log.warning("answered %d (trace id %s): %s", status, request.scope.get(TRACE_ID), error)
    if isinstance(error, ShoalError) and error.retry_after_ms > 0:
        response.headers[RETRY_HEADER] = str(-(-error.retry_after_ms // 1000))
    if status == 401:
        response.headers["www-authenticate"] = 'Bearer realm="shoal", Basic realm="shoal", charset="UTF-8"'
    return response


async def _no_route(request: Request, error: Exception) -> Response:
    """Without a body, as in the reference."""
    return Response(status_code=getattr(error, "status_code", 404), headers=getattr(error, "headers", None))


class _Direct:
    """Takes requests about a collection's records straight to their route: finding it among all routes, and what FastAPI prepares
    for routes that declare more, costs as much as a small query.
    """

    def __init__(self, app: Application, answers: Mapping[tuple[str, str], Answers]) -> None:
        self._app = app
        self._answers = {
            (method, path.removeprefix(COLLECTION)): answer
            for (method, path), answer in answers.items()
            if path.startswith(f"{COLLECTION}/") and "{" not in path.removeprefix(COLLECTION)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = _OF_COLLECTION.fullmatch(scope["path"]) if scope["type"] == "http" and not scope["root_path"] else None
        answer = self._answers.get((scope["method"], found["verb"])) if found else None
        if found is None or answer is None:
            await self._app(scope, receive, send)
            return
        scope["path_params"] = found.groupdict()
        response = await answer(Request(scope, receive, send))
        await response(scope, receive, send)
