"""Spans within a process: parents, roots, links of shared work, and what is not told."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, StatusCode, TraceFlags

from shoal_testing.spans import RecordedSpans, id_of, linked_from, parent_of
from shoal_wire.spans import child_span, root_span, shared_span
from shoal_wire.tracing import client_span, end_with


def unrecorded(span_id: int = 7) -> NonRecordingSpan:
    return NonRecordingSpan(SpanContext(5, span_id, is_remote=True, trace_flags=TraceFlags(0)))


def test_a_child_is_the_current_spans(spans: RecordedSpans) -> None:
    with spans.tracer.start_as_current_span("caller") as caller, child_span("work", {"n": 3}) as span:
        assert trace.get_current_span() is span
    assert parent_of(spans.one("work")) == id_of(caller)
    assert dict(spans.one("work").attributes or {}) == {"n": 3}


def test_without_a_recorded_caller_nothing_is_made_and_its_ids_stay(spans: RecordedSpans) -> None:
    with child_span("work"):
        assert not trace.get_current_span().get_span_context().is_valid
    with trace.use_span(unrecorded()), child_span("work"), client_span("service", "Method"):
        assert trace.get_current_span().get_span_context().span_id == 7
    assert spans.all() == []


def test_how_a_call_ended_is_told_without_its_message(spans: RecordedSpans) -> None:
    with spans.tracer.start_as_current_span("call") as span:
        end_with(span, grpc.StatusCode.INTERNAL)
    assert spans.one("call").status.status_code is StatusCode.ERROR
    assert spans.one("call").status.description is None


def test_a_root_begins_a_trace_whatever_is_current(spans: RecordedSpans) -> None:
    with spans.tracer.start_as_current_span("caller") as caller, root_span("job") as job:
        assert job.get_span_context().trace_id != caller.get_span_context().trace_id
    assert spans.one("job").parent is None


def test_shared_work_is_the_first_recorded_askers_and_linked_to_the_others_both_ways(spans: RecordedSpans) -> None:
    first, second, third = (spans.tracer.start_span(name) for name in ("first", "second", "third"))
    with shared_span("commit", [unrecorded(), first, second, second, third]) as commit:
        assert trace.get_current_span() is commit
    for asker in (first, second, third):
        asker.end()
    assert parent_of(spans.one("commit")) == id_of(first)
    assert linked_from(spans.one("commit")) == {id_of(second), id_of(third)}
    assert linked_from(spans.one("first")) == set()
    assert linked_from(spans.one("second")) == linked_from(spans.one("third")) == {id_of(commit)}


def test_an_asker_that_gave_up_is_no_parent(spans: RecordedSpans) -> None:
    gone, there = spans.tracer.start_span("gone"), spans.tracer.start_span("there")
    gone.end()
    with shared_span("commit", [gone, there]):
        pass
    assert parent_of(spans.one("commit")) == id_of(there)
    assert linked_from(spans.one("commit")) == set()


def test_shared_work_that_no_recorded_caller_asked_for_has_the_first_ones_context(spans: RecordedSpans) -> None:
    with spans.tracer.start_as_current_span("earlier"):
        with shared_span("commit", [unrecorded(1), unrecorded(2)]):
            assert trace.get_current_span().get_span_context().span_id == 1
        with shared_span("commit", []):
            assert not trace.get_current_span().get_span_context().is_valid
    assert spans.named("commit") == []


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("a document"), StatusCode.ERROR), (asyncio.CancelledError(), StatusCode.UNSET)]
)
def test_an_exception_leaves_its_class_only(spans: RecordedSpans, error: BaseException, status: StatusCode) -> None:
    with pytest.raises(type(error)), root_span("job"), child_span("work"):
        raise error
    for name in ("job", "work"):
        span = spans.one(name)
        assert dict(span.attributes or {}) == {"error.type": type(error).__name__}
        assert span.status.status_code is status
        assert "a document" not in span.to_json()
