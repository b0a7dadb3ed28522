"""W3C trace context over gRPC metadata, with the OpenTelemetry API alone: without an SDK all of this does nothing.

Functions rather than interceptors: every call goes through `rpc.Rpc` and every handler through `server.add_service`, so
no channel and no server needs to be built in a special way to be traced.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import grpc
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shoal_wire.spans import child_span

Metadata = tuple[tuple[str, str], ...]

_HEADERS = ("traceparent", "tracestate")

# Codes that are the server's own fault, by the semantic conventions for gRPC servers.
_SERVER_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


def trace_metadata() -> Metadata:
    """The current span as request metadata; empty when nothing is traced."""
    if not trace.get_current_span().get_span_context().is_valid:
        return ()
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())


@contextmanager
def client_span(service: str, method: str) -> Iterator[trace.Span]:
    """A client span ``service/method`` for one attempt at a call, if the caller is recorded: retries and hedges have their own."""
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    with child_span(f"{service}/{method}", attributes, kind=trace.SpanKind.CLIENT) as span:
        yield span


@contextmanager
def server_span(
    tracer: trace.Tracer, service: str, method: str, metadata: Iterable[tuple[str, str | bytes]] | None
) -> Iterator[trace.Span]:
    """A server span ``service/method``, current within the block, child of the span in the caller's metadata if any."""
    carrier = {key: value for key, value in metadata or () if key in _HEADERS and isinstance(value, str)}
    with tracer.start_as_current_span(
        f"{service}/{method}",
        context=TraceContextTextMapPropagator().extract(carrier),
        kind=trace.SpanKind.SERVER,
        attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield span


def end_with(span: trace.Span, code: grpc.StatusCode) -> None:
    """Note how the call ended; not with what message, which may quote what a caller sent."""
    span.set_attribute("rpc.grpc.status_code", code.value[0])
    if code in _SERVER_FAULTS:
        span.set_status(trace.StatusCode.ERROR)
