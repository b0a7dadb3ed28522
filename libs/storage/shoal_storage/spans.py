"""Spans of what is asked of Postgres and of the object store, with the OpenTelemetry API alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace

_TRACER = "shoal_storage"
_STATEMENT_LENGTH = 2_000  # characters


@contextmanager
def request_span(name: str, attributes: Mapping[str, str | int]) -> Iterator[trace.Span]:
    """A client span, if the caller is recorded; else nothing is made. Exceptions leave their class only."""
    current = trace.get_current_span()
    if not current.is_recording():
        yield current
        return
    with trace.get_tracer(_TRACER).start_as_current_span(
        name,
        kind=trace.SpanKind.CLIENT,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield span
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            if isinstance(error, Exception):
                span.set_status(trace.StatusCode.ERROR)
            raise


@contextmanager
def statement_span(statement: str) -> Iterator[None]:
    """Of one SQL statement: its text, which is the program's own, without parameters."""
    if not trace.get_current_span().is_recording():
        yield
        return
    text = " ".join(statement.split())[:_STATEMENT_LENGTH]
    operation = text.partition(" ")[0].rstrip(";").upper()
    attributes = {"db.system.name": "postgresql", "db.operation.name": operation, "db.query.text": text}
    with request_span(f"postgres {operation}", attributes):
        yield
