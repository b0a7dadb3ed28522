"""Metrics and traces of a process.

Metrics are OpenTelemetry instruments, read as Prometheus text from a registry of this object alone, and sent over OTLP if asked.
Spans get real ids always, so that every log line and every call can name its trace; they are recorded and sent only if an OTLP
endpoint is configured. Nothing leaves the machine by default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final

from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from shoal_runtime.sections import TelemetrySection

METRICS_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
DURATION_BUCKETS_MS: Final = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000)

Attributes = Mapping[str, str | int | float | bool]
Labelled = tuple[float, Attributes]
NO_ATTRIBUTES: Final[Attributes] = MappingProxyType({})


class Telemetry:
    """What one process measures. Instruments of the same name are made once, by whoever owns what they count.

    Names follow Prometheus: ``shoal_rpc_duration_ms``; counters get ``_total`` added.

    Args:
        service: the role, such as ``querynode``; names the resource of traces and metrics.
        instance: the member id.
        settings: whether and where to send traces and metrics.
        processors: further receivers of spans, for tests; spans are then recorded by ``trace_share`` as with an endpoint.
    """

    def __init__(
        self,
        service: str,
        *,
        instance: str = "",
        settings: TelemetrySection | None = None,
        processors: Iterable[SpanProcessor] = (),
    ) -> None:
        settings = settings or TelemetrySection()
        resource = Resource({"service.name": f"shoal-{service}", "service.instance.id": instance})
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        readers = [PrometheusMetricReader(scope_info_enabled=False, registry=self._registry), *_senders(settings)]
        self._meters = MeterProvider(metric_readers=readers, resource=resource, shutdown_on_exit=False)
        self._traces = _tracer_provider(settings, resource, list(processors))
        self._meter: Meter = self._meters.get_meter("shoal")

    def install(self) -> None:
        """Make this the telemetry of the whole process: of `shoal_wire.tracing` and of libraries. Once, by the main program."""
        trace.set_tracer_provider(self._traces)
        metrics.set_meter_provider(self._meters)

    def tracer(self, name: str) -> trace.Tracer:
        """A tracer of this process."""
        return self._traces.get_tracer(name)

    def counter(self, name: str, help_text: str) -> Counter:
        """A number that only grows."""
        return self._meter.create_counter(name, description=help_text)

    def histogram(self, name: str, help_text: str, buckets: Iterable[float] = DURATION_BUCKETS_MS) -> Histogram:
        """A distribution; ``buckets`` are upper bounds in the unit of the name."""
        return self._meter.create_histogram(
            name, description=help_text, explicit_bucket_boundaries_advisory=[float(bound) for bound in buckets]
        )

    def gauge(
        self, name: str, help_text: str, read: Callable[[], float], attributes: Attributes = NO_ATTRIBUTES
    ) -> None:
        """A number that is read when metrics are, maybe in another thread. ``read`` must be quick, change nothing and not raise."""
        self.gauges(name, help_text, lambda: ((read(), attributes),))

    def gauges(self, name: str, help_text: str, read: Callable[[], Iterable[Labelled]]) -> None:
        """As `gauge`, for any number of label sets; those that are absent at a reading are not shown."""
        self._meter.create_observable_gauge(name, [_observer(read)], description=help_text)

    def total(
        self, name: str, help_text: str, read: Callable[[], float], attributes: Attributes = NO_ATTRIBUTES
    ) -> None:
        """A counter that somebody else keeps, read when metrics are. As `gauge`."""
        self.totals(name, help_text, lambda: ((read(), attributes),))

    def totals(self, name: str, help_text: str, read: Callable[[], Iterable[Labelled]]) -> None:
        """As `total`, for any number of label sets."""
        self._meter.create_observable_counter(name, [_observer(read)], description=help_text)

    def render(self) -> bytes:
        """All metrics as Prometheus text (`METRICS_CONTENT_TYPE`)."""
        return generate_latest(self._registry)

    def close(self) -> None:
        """Send the spans still held, then stop. Blocks for at most a few seconds: not for the event loop."""
        self._traces.shutdown()
        self._meters.shutdown()


def _tracer_provider(settings: TelemetrySection, resource: Resource, processors: list[SpanProcessor]) -> TracerProvider:
    if settings.otlp_endpoint:
        exporter = OTLPSpanExporter(settings.otlp_endpoint, insecure=_is_insecure(settings))
        processors.append(BatchSpanProcessor(exporter))
    # Spans that are not recorded still carry ids, so traces connect log lines. Where nobody receives spans, nobody can have them made.
    sampler = ParentBased(TraceIdRatioBased(settings.trace_share)) if processors else ALWAYS_OFF
    provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
    for processor in processors:
        provider.add_span_processor(processor)
    return provider


def _senders(settings: TelemetrySection) -> list[MetricReader]:
    if not (settings.otlp_endpoint and settings.metrics_interval_ms):
        return []
    exporter = OTLPMetricExporter(settings.otlp_endpoint, insecure=_is_insecure(settings))
    return [PeriodicExportingMetricReader(exporter, export_interval_millis=settings.metrics_interval_ms)]


def _is_insecure(settings: TelemetrySection) -> bool:
    return not settings.otlp_endpoint.startswith("https://")


def _observer(read: Callable[[], Iterable[Labelled]]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(value, attributes) for value, attributes in read()]

    return observe
