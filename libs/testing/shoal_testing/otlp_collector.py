"""An OpenTelemetry collector on a real socket, that keeps what it receives over OTLP."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc
import grpc.aio
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

SERVER = trace_pb2.Span.SPAN_KIND_SERVER
CLIENT = trace_pb2.Span.SPAN_KIND_CLIENT
_TRACES = "opentelemetry.proto.collector.trace.v1.TraceService"
_METRICS = "opentelemetry.proto.collector.metrics.v1.MetricsService"


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """A span as it arrived. Ids are hexadecimal, ``parent_id`` is empty for a root; ``service`` is the sender's name."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: int
    service: str
    attributes: dict[str, Any]
    linked_traces: tuple[str, ...]
    status: int


class OtlpCollector:
    """``async with OtlpCollector() as collector``: senders use ``collector.endpoint``.

    Attributes:
        spans, metric_names: all that came, in the order in which it came.
    """

    def __init__(self) -> None:
        self.spans: list[ReceivedSpan] = []
        self.metric_names: set[str] = set()
        self.endpoint = ""
        self._server: grpc.aio.Server

    async def __aenter__(self) -> OtlpCollector:
        self._server = grpc.aio.server()
        for service, export in ((_TRACES, self._export_spans), (_METRICS, self._export_metrics)):
            handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(export)
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.stop(None)

    def trace(self, trace_id: str) -> list[ReceivedSpan]:
        """The spans of one trace."""
        return [span for span in self.spans if span.trace_id == trace_id]

    async def _export_spans(self, data: bytes, context: object) -> bytes:
        for resource in trace_service_pb2.ExportTraceServiceRequest.FromString(data).resource_spans:
            service = _attributes(resource.resource.attributes)["service.name"]
            self.spans += [_received(span, service) for scope in resource.scope_spans for span in scope.spans]
        return b""

    async def _export_metrics(self, data: bytes, context: object) -> bytes:
        for resource in metrics_service_pb2.ExportMetricsServiceRequest.FromString(data).resource_metrics:
            self.metric_names |= {metric.name for scope in resource.scope_metrics for metric in scope.metrics}
        return b""


def _received(span: trace_pb2.Span, service: str) -> ReceivedSpan:
    return ReceivedSpan(
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        span.kind,
        service,
        _attributes(span.attributes),
        tuple(link.trace_id.hex() for link in span.links),
        span.status.code,
    )


def _attributes(pairs: Iterable[common_pb2.KeyValue]) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in pairs}
