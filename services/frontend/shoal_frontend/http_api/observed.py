"""What every HTTP request leaves behind: a server span, a count and a duration by route, an id that its answer and the log name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shoal_core.ports import Clock, Random
from shoal_frontend.http_api.gateway import Application, Message, Receive, Scope, Send

TRACE_HEADER = "chroma-trace-id"
TRACE_ID = "shoal.trace_id"  # in a request's scope
ROUTE = "shoal.route"  # in a request's scope: the path's template
OnAnswered: TypeAlias = Callable[[str, str, int, float], None]

_NO_ROUTE = "none"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CONTEXT_HEADERS = (b"traceparent", b"tracestate")
_GONE = 499  # no answer was begun, as the client went away


class Observed:
    """Around the whole application.

    Args:
        on_answered: hears of every request once its answer has been sent: method, route (the path's template, ``none`` without a
            route), status and milliseconds. Methods that HTTP does not know are ``other``, so that strangers cannot make metrics grow.
    """

    def __init__(self, app: Application, random: Random, clock: Clock, on_answered: OnAnswered) -> None:
        self._app = app
        self._random = random
        self._clock = clock
        self._on_answered = on_answered
        self._tracer = trace.get_tracer("shoal_frontend")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in _METHODS else "other"
        began, status = self._clock.monotonic(), _GONE
        with self._tracer.start_as_current_span(
            method,
            context=TraceContextTextMapPropagator().extract(_carrier(scope["headers"])),
            kind=trace.SpanKind.SERVER,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            trace_id = scope[TRACE_ID] = _id_of(span) or self._random.token().hex()

            async def traced(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                    message["headers"] = [*message["headers"], (TRACE_HEADER.encode(), trace_id.encode())]
                await send(message)

            try:
                await self._app(scope, receive, traced)
            finally:
                route = scope.get(ROUTE, _NO_ROUTE)
                _describe(span, method, route, status)
                self._on_answered(method, route, status, (self._clock.monotonic() - began) * 1_000)


def _carrier(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode(): value.decode("latin-1") for name, value in headers if name in _CONTEXT_HEADERS}


def _id_of(span: trace.Span) -> str:
    """Its trace id, in hexadecimal; empty where nothing traces."""
    context = span.get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


def _describe(span: trace.Span, method: str, route: str, status: int) -> None:
    if not span.is_recording():
        return
    if route != _NO_ROUTE:
        span.update_name(f"{method} {route}")
        span.set_attribute("http.route", route)
    span.set_attribute("http.request.method", method)
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_status(trace.StatusCode.ERROR)
