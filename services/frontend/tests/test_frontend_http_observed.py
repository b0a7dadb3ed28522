"""What a request over HTTP leaves behind: a span, a count by route, an id."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import StatusCode

from services.frontend.tests.frontend_http_support import Site, T, http_of
from shoal_frontend.http_api.gateway import COLLECTION, DATABASE
from shoal_runtime.logs import JsonFormatter, add_trace
from shoal_testing.direct import DirectSystem
from shoal_testing.spans import RecordedSpans, parent_of

CALLER = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}


async def test_a_request_is_a_server_span_below_its_caller(spans: RecordedSpans) -> None:
    site = await Site().start()
    answer = await site.http("GET", f"{T}/collections/{site.id}/count", headers=CALLER)
    span = spans.one(f"GET {COLLECTION}/count")
    assert span.kind is trace.SpanKind.SERVER
    assert parent_of(span) == int("b" * 16, 16)
    assert dict(span.attributes or {}) == {
        "http.request.method": "GET",
        "http.route": f"{COLLECTION}/count",
        "http.response.status_code": 200,
    }
    assert answer.headers["chroma-trace-id"] == "a" * 32


async def test_an_answer_names_the_trace_that_began_with_it(spans: RecordedSpans) -> None:
    site = await Site().start()
    answer = await site.http("GET", f"{T}/collections/{site.id}/count")
    context = spans.one(f"GET {COLLECTION}/count").get_span_context()
    assert context is not None
    assert answer.headers["chroma-trace-id"] == trace.format_trace_id(context.trace_id)


@pytest.mark.parametrize("header", ["", "00-zz", "00-" + "0" * 32 + "-" + "b" * 16 + "-01", "\xff"])
async def test_a_malformed_caller_begins_a_trace(spans: RecordedSpans, header: str) -> None:
    site = await Site().start()
    answer = await site.http("GET", f"{T}/collections/{site.id}/count", headers={"traceparent": header})
    assert answer.status == 200
    assert spans.one(f"GET {COLLECTION}/count").parent is None


class Failing:
    def __getattr__(self, name: str) -> Any:
        raise ZeroDivisionError("what is stored")


async def test_a_defect_is_a_failed_span_that_tells_nothing_and_its_log_line_names_it(spans: RecordedSpans) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(add_trace)
    handler.setFormatter(JsonFormatter("frontend"))
    logging.getLogger("shoal_frontend").addHandler(handler)
    failing: Any = Failing()
    answer = await http_of(failing, DirectSystem())("GET", f"{T}/collections_count", headers=CALLER)
    logging.getLogger("shoal_frontend").removeHandler(handler)
    span = spans.one(f"GET {DATABASE}/collections_count")
    assert answer.status == 500
    assert span.status.status_code is StatusCode.ERROR
    assert "what is stored" not in span.to_json()
    line = json.loads(stream.getvalue())
    context = span.get_span_context()
    assert context is not None
    assert (line["trace_id"], line["span_id"]) == ("a" * 32, trace.format_span_id(context.span_id))


async def test_every_answer_is_told_by_its_route() -> None:
    told: list[tuple[str, str, int]] = []
    system = DirectSystem()
    http = http_of(
        system.database, system, on_answered=lambda method, route, status, ms: told.append((method, route, status))
    )
    made = (await http("POST", f"{T}/collections", {"name": "told"})).json
    await http("GET", f"{T}/collections/{made['id']}/count")
    await http("GET", f"{T}/collections/nothing")
    await http("GET", "/somewhere/else")
    await http("BREW", "/api/v2")
    assert told == [
        ("POST", f"{DATABASE}/collections", 200),
        ("GET", f"{COLLECTION}/count", 200),
        ("GET", f"{DATABASE}/collections/{{collection}}", 404),
        ("GET", "none", 404),
        ("other", "none", 405),
    ]
