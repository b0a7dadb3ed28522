"""Spans kept in memory, for tests of what is traced."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class RecordedSpans:
    """Every span that ended since the test began. ``tracer`` begins further ones; all of them are recorded."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")

    def all(self) -> list[ReadableSpan]:
        """In the order of their ends."""
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        """Those of one name."""
        return [span for span in self.all() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        """The only one of its name."""
        (span,) = self.named(name)
        return span


def parent_of(span: ReadableSpan) -> int:
    """The id of its parent; 0 for a root."""
    return span.parent.span_id if span.parent else 0


def id_of(span: trace.Span | ReadableSpan) -> int:
    """A span's id."""
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def linked_from(span: ReadableSpan) -> set[int]:
    """The ids of the spans that it has links to."""
    return {link.context.span_id for link in span.links}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordedSpans]:
    """All tracers record, whatever provider the process has."""
    recorded = RecordedSpans()
    monkeypatch.setattr(trace, "get_tracer", recorded.provider.get_tracer)
    yield recorded
    recorded.provider.shutdown()
