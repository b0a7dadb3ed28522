"""Spans of work within a process, with the OpenTelemetry API alone.

Attributes name what was worked on and how much of it, never parameters, documents, metadata or credentials. Exceptions leave their
class only: a message may quote what a caller sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind

Attributes = Mapping[str, str | int | float | bool]

_TRACER = "shoal"


@contextmanager
def child_span(
    name: str, attributes: Attributes | None = None, *, kind: SpanKind = SpanKind.INTERNAL
) -> Iterator[Span]:
    """A child of the current span, current within the block.

    Where the current span is not recorded there is none, and the block has the caller's: its ids go on in calls and logs.
    """
    current = trace.get_current_span()
    if not current.is_recording():
        yield current
        return
    with _started(name, attributes, kind=kind) as span:
        yield span


@contextmanager
def root_span(name: str, attributes: Attributes | None = None) -> Iterator[Span]:
    """The first span of a new trace, current within the block: for work that nobody asked for. Recorded by the sampler's decision."""
    with _started(name, attributes, context=Context()) as span:
        yield span


@contextmanager
def shared_span(name: str, askers: Sequence[Span], attributes: Attributes | None = None) -> Iterator[Span]:
    """One span for work that serves many callers, current within the block.

    It is a child of the first asker that is recorded, so that one trace has the whole story. Links lead from it to the other
    recorded askers and from each of them to it, so that their traces find it too. ``askers`` are the spans current where it was
    asked for. If none is recorded no span is made, and the block has the first asker's context.
    """
    recorded = list(dict.fromkeys(span for span in askers if span.is_recording()))
    if not recorded and askers and trace.get_current_span() is askers[0]:
        yield askers[0]
        return
    if not recorded:
        with trace.use_span(askers[0] if askers else trace.INVALID_SPAN, record_exception=False):
            yield trace.get_current_span()
        return
    first, *others = recorded
    with _started(name, attributes, context=trace.set_span_in_context(first), linked=others) as span:
        for other in others:
            other.add_link(span.get_span_context(), {"shoal.shared": name})
        yield span


@contextmanager
def _started(
    name: str,
    attributes: Attributes | None,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    context: Context | None = None,
    linked: Sequence[Span] = (),
) -> Iterator[Span]:
    with trace.get_tracer(_TRACER).start_as_current_span(
        name,
        context,
        kind,
        attributes,
        links=[Link(span.get_span_context()) for span in linked],
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield span
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            if isinstance(error, Exception):  # who is cancelled, such as the slower of two hedged calls, did not fail
                span.set_status(trace.StatusCode.ERROR)
            raise
