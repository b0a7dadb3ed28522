"""Metrics as text, spans that leave only when asked to, and logs that name their trace."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context
from pydantic import SecretStr

from shoal_runtime.logs import configure_logging
from shoal_runtime.sections import TelemetrySection
from shoal_runtime.telemetry import Telemetry


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    telemetry = Telemetry("querynode", instance="q1")
    yield telemetry
    telemetry.close()


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield io.StringIO()
    logging.captureWarnings(False)
    root.handlers[:] = before
    root.setLevel(level)


def lines_of(telemetry: Telemetry) -> list[str]:
    return telemetry.render().decode().splitlines()


def test_instruments_appear_as_prometheus_text(telemetry: Telemetry) -> None:
    telemetry.counter("shoal_appends", "Appends.").add(3, {"kind": "inline"})
    telemetry.histogram("shoal_append_duration_ms", "Time.", buckets=(1, 10)).record(5)
    telemetry.gauge("shoal_tail_records", "Records.", lambda: 7, {"shard": 1})
    telemetry.total("shoal_reads", "Reads.", lambda: 11)
    lines = lines_of(telemetry)
    assert "# HELP shoal_appends_total Appends." in lines
    assert "# TYPE shoal_appends_total counter" in lines
    assert 'shoal_appends_total{kind="inline"} 3.0' in lines
    assert 'shoal_append_duration_ms_bucket{le="1.0"} 0.0' in lines
    assert 'shoal_append_duration_ms_bucket{le="10.0"} 1.0' in lines
    assert 'shoal_append_duration_ms_bucket{le="+Inf"} 1.0' in lines
    assert 'shoal_tail_records{shard="1"} 7.0' in lines
    assert "shoal_reads_total 11.0" in lines
    assert any(line.startswith("target_info{") and 'service_name="shoal-querynode"' in line for line in lines)
    assert any(line.startswith("process_resident_memory_bytes ") for line in lines)


def test_two_telemetries_share_nothing(telemetry: Telemetry) -> None:
    other = Telemetry("compactor")
    other.counter("shoal_flushes", "Flushes.").add(1)
    assert any(line.startswith("shoal_flushes_total") for line in lines_of(other))
    assert not any(line.startswith("shoal_flushes_total") for line in lines_of(telemetry))
    other.close()


def test_spans_have_ids_but_are_not_recorded_without_an_endpoint(telemetry: Telemetry) -> None:
    with telemetry.tracer("test").start_as_current_span("outer") as outer:
        assert outer.get_span_context().is_valid
        assert not outer.is_recording()
        with telemetry.tracer("test").start_as_current_span("inner") as inner:
            assert inner.get_span_context().trace_id == outer.get_span_context().trace_id


@pytest.mark.parametrize(("share", "spans"), [(1.0, 1), (0.0, 0)])
def test_the_share_of_traces_decides_what_is_recorded(share: float, spans: int) -> None:
    exporter = InMemorySpanExporter()
    settings = TelemetrySection(trace_share=share)
    telemetry = Telemetry("frontend", settings=settings, processors=[SimpleSpanProcessor(exporter)])
    with telemetry.tracer("test").start_as_current_span("work"):
        pass
    telemetry.close()
    finished = exporter.get_finished_spans()
    assert len(finished) == spans
    assert all(span.resource.attributes["service.name"] == "shoal-frontend" for span in finished)


def test_a_callers_decision_is_followed() -> None:
    exporter = InMemorySpanExporter()
    settings = TelemetrySection(trace_share=0.0)
    telemetry = Telemetry("frontend", settings=settings, processors=[SimpleSpanProcessor(exporter)])
    sampled = trace.SpanContext(1, 2, is_remote=True, trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED))
    with telemetry.tracer("test").start_as_current_span(
        "work", context=trace.set_span_in_context(trace.NonRecordingSpan(sampled))
    ):
        pass
    telemetry.close()
    assert [span.context.trace_id for span in exporter.get_finished_spans() if span.context] == [1]


def test_json_lines_carry_the_trace(telemetry: Telemetry, log: io.StringIO) -> None:
    configure_logging("INFO", service="querynode", stream=log)
    with telemetry.tracer("test").start_as_current_span("work") as span:
        logging.getLogger("shoal.test").info("loaded %d", 3, extra={"collection": "c1", "dsn": SecretStr("hunter2")})
        logging.getLogger("shoal.test").debug("not shown")
    logging.getLogger("shoal.test").warning("outside")
    inside, outside = (json.loads(line) for line in log.getvalue().splitlines())
    assert inside["message"] == "loaded 3"
    assert (inside["level"], inside["logger"], inside["service"]) == ("INFO", "shoal.test", "querynode")
    assert inside["trace_id"] == trace.format_trace_id(span.get_span_context().trace_id)
    assert inside["span_id"] == trace.format_span_id(span.get_span_context().span_id)
    assert inside["collection"] == "c1"
    assert "hunter2" not in log.getvalue()
    assert inside["time"].endswith("+00:00")
    assert "trace_id" not in outside


def test_json_lines_stay_one_line_each(log: io.StringIO) -> None:
    configure_logging(stream=log)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("shoal.test").exception("failed\nbadly")
    (line,) = log.getvalue().splitlines()
    assert json.loads(line)["message"] == "failed\nbadly"
    assert "ValueError: two\nlines" in json.loads(line)["exception"]


def test_text_for_people_and_warnings_in_the_log(log: io.StringIO) -> None:
    configure_logging("WARNING", as_json=False, stream=log)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)  # catch_warnings puts its own display in place
        warnings.warn("old", UserWarning, stacklevel=1)
        logging.captureWarnings(False)
    assert "WARNING py.warnings" in log.getvalue()


def test_where_nobody_receives_spans_no_caller_can_have_them_made() -> None:
    telemetry = Telemetry("test")
    caller = SpanContext(5, 7, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    context = set_span_in_context(NonRecordingSpan(caller))
    try:
        span = telemetry.tracer("test").start_span("work", context)
        assert not span.is_recording()
        assert span.get_span_context().trace_id == 5  # log lines name the caller's trace all the same
    finally:
        telemetry.close()
