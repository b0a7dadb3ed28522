"""What is asked of Postgres and of the object store: spans where the caller is recorded, durations always."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.trace import StatusCode

from shoal_core.errors import NotFound
from shoal_storage.observed_objects import ObservedObjectStore
from shoal_storage.postgres import connected, open_pool, transaction
from shoal_storage.spans import statement_span
from shoal_testing.memory_objects import MemoryObjectStore
from shoal_testing.spans import RecordedSpans, id_of, parent_of
from shoal_testing.virtual_clock import VirtualClock


def test_a_statement_is_named_by_its_first_word_and_told_without_its_spaces(spans: RecordedSpans) -> None:
    with spans.tracer.start_as_current_span("caller") as caller:
        with statement_span("\n  select a\n   FROM b WHERE c = $1"):
            pass
        with statement_span("BEGIN; SET LOCAL lock_timeout = 5"):
            pass
    select, begin = spans.one("postgres SELECT"), spans.one("postgres BEGIN")
    assert dict(select.attributes or {}) == {
        "db.system.name": "postgresql",
        "db.operation.name": "SELECT",
        "db.query.text": "select a FROM b WHERE c = $1",
    }
    assert select.kind is trace.SpanKind.CLIENT
    assert parent_of(select) == parent_of(begin) == id_of(caller)


def test_without_a_recorded_caller_a_statement_is_no_span(spans: RecordedSpans) -> None:
    with statement_span("SELECT 1"):
        pass
    assert spans.all() == []


@pytest.mark.integration
async def test_statements_over_a_pool_tell_their_text_and_no_value(spans: RecordedSpans, fresh_database: str) -> None:
    pool = await open_pool(fresh_database, application_name="test", max_size=1)
    async with connected(pool) as connection:  # nobody's
        await connection.execute("CREATE TABLE named (name text)")
    assert spans.all() == []
    with spans.tracer.start_as_current_span("caller") as caller:
        async with transaction(pool) as connection:
            await connection.execute("INSERT INTO named VALUES ($1)", "a secret")
            assert await connection.fetchval("SELECT count(*) FROM named WHERE name = $1", "a secret") == 1
            assert len(await connection.fetchrow("SELECT name FROM named") or ()) == 1
            assert len(await connection.fetch("SELECT FROM named")) == 1
    await pool.close()
    names = [span.name for span in spans.all()]
    assert names == [f"postgres {word}" for word in ("BEGIN", "INSERT", "SELECT", "SELECT", "SELECT", "COMMIT")] + [
        "caller"
    ]
    assert all(parent_of(span) == id_of(caller) for span in spans.all()[:-1])
    assert not any("a secret" in span.to_json() for span in spans.all())


async def test_requests_for_objects_are_timed_and_are_spans_of_who_asks(spans: RecordedSpans) -> None:
    clock, heard = VirtualClock(), list[tuple[str, str, float]]()

    class Slow(MemoryObjectStore):
        async def get(self, key: str) -> memoryview:
            await clock.sleep(0.25)
            return await super().get(key)

    store = ObservedObjectStore(Slow(), clock, lambda *told: heard.append(told))
    with spans.tracer.start_as_current_span("caller") as caller:
        await store.put("a/b", b"content of an object")
        assert bytes(await clock.run(store.get("a/b"))) == b"content of an object"
    assert bytes(await clock.run(store.get_range("a/b", 0, 7))) == b"content"
    with pytest.raises(NotFound):
        await clock.run(store.get("nothing"))
    assert [item.key async for item in store.list("a/")] == ["a/b"]
    await store.delete(["a/b"])
    outcomes = [("put", "ok"), ("get", "ok"), ("get_range", "ok"), ("get", "NotFound"), ("delete", "ok")]
    assert [told[:2] for told in heard] == outcomes
    assert heard[1][2] == 250
    got = spans.one("objects get")
    assert parent_of(got) == parent_of(spans.one("objects put")) == id_of(caller)
    assert dict(got.attributes or {}) == {"shoal.object.key": "a/b", "shoal.object.size_bytes": 20}
    assert not any("content" in span.to_json() for span in spans.all())


async def test_a_request_that_fails_is_a_failed_span(spans: RecordedSpans) -> None:
    store = ObservedObjectStore(MemoryObjectStore(), VirtualClock(), lambda *told: None)
    with spans.tracer.start_as_current_span("caller"), pytest.raises(NotFound):
        await store.get("nothing")
    got = spans.one("objects get")
    assert got.status.status_code is StatusCode.ERROR
    assert (got.attributes or {})["error.type"] == "NotFound"
