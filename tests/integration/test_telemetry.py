"""A small cluster that sends to a collector: one trace over every hop, and every metric that is named anywhere."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import ssl
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

import shoal
from shoal_cli import certificates
from shoal_cli.local_cluster import ClusterPlan, LocalCluster
from shoal_testing.otlp_collector import CLIENT, SERVER, OtlpCollector, ReceivedSpan
from tests.deploy import telemetry_files as files

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

DATABASE = "/api/v2/tenants/default_tenant/databases/default_database"
COLLECTION = "/api/v2/tenants/{tenant}/databases/{database}/collections/{collection}"
SECRET = "a document that is nobody else's business"
CALLER = "1" * 16
WRITE, LARGE_WRITE, COLD_QUERY = "a" * 32, "b" * 32, "c" * 32
# What the telemetry of a process is slow with by default, as nobody waits for it.
EAGER = {
    "SHOAL_TELEMETRY__TRACE_SHARE": "1",
    "SHOAL_TELEMETRY__METRICS_INTERVAL_MS": "500",
    "SHOAL_TELEMETRY__MEASURE_INTERVAL_MS": "200",
    "SHOAL_COMPACTOR__MAX_AGE_MS": "200",
    "OTEL_BSP_SCHEDULE_DELAY": "100",
}
_WAIT_S = 60.0


class Reach:
    """HTTP over TLS, without proxies."""

    def __init__(self, ca_file: Path) -> None:
        self.ca_file = ca_file
        secure = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca_file))
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), secure)

    def get(self, address: str, path: str) -> str:
        """The body of a page. Blocks."""
        with self._opener.open(f"https://{address}{path}", timeout=20) as response:
            return str(response.read().decode())

    async def ask(self, address: str, path: str, body: Any, trace_id: str = "") -> tuple[Any, dict[str, str]]:
        """POST; JSON and headers of the answer."""
        traceparent = {"traceparent": f"00-{trace_id}-{CALLER}-01"} if trace_id else {}
        request = urllib.request.Request(
            f"https://{address}{DATABASE}/{path}",
            json.dumps(body).encode(),
            {"content-type": "application/json", **traceparent},
        )
        return await asyncio.to_thread(self._open, request)

    def _open(self, request: urllib.request.Request) -> tuple[Any, dict[str, str]]:
        with self._opener.open(request, timeout=20) as response:
            return json.loads(response.read()), dict(response.headers)


@dataclass(frozen=True, slots=True)
class World:
    """A cluster over TLS after a write, a large write, a flush of both and the first query. ``headers``: of that query's answer."""

    cluster: LocalCluster
    collector: OtlpCollector
    reach: Reach
    headers: dict[str, str]

    @property
    def pages(self) -> dict[str, str]:
        """The metrics pages, by role."""
        return {role.role: self.reach.get(role.metrics, "/metrics") for role in self.cluster.roles.values()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    path = Path(tempfile.mkdtemp(prefix="shoal-telemetry-"))
    async with OtlpCollector() as collector:
        environment = {**EAGER, "SHOAL_TELEMETRY__OTLP_ENDPOINT": collector.endpoint}
        one_each = {"frontends": 1, "logservices": 1, "querynodes": 1, "compactors": 1, "sysdbs": 1}
        directory = path / "certificates"
        certificates.make(directory, "shoal.internal", [], 1)
        plan = ClusterPlan(path / "data", environment=environment, certificates=directory, **one_each)  # type: ignore[arg-type]
        cluster = LocalCluster(plan)
        await cluster.start()
        try:
            reach = Reach(directory / "ca.crt")
            yield World(cluster, collector, reach, await used(cluster, reach))
        finally:
            await cluster.stop()
            shutil.rmtree(path)


async def used(cluster: LocalCluster, reach: Reach) -> dict[str, str]:
    """Write, wait for the flush without reading, query."""
    address = cluster.find("frontend-0").http
    made, _ = await reach.ask(address, "collections", {"name": "traced"})
    path = f"collections/{made['id']}"
    await reach.ask(address, f"{path}/add", {"ids": ["a"], "embeddings": [[1, 0]], "documents": [SECRET]}, WRITE)
    rows = range(2_000)
    large = {
        "ids": [f"id{n}" for n in rows],
        "embeddings": [[n, 1] for n in rows],
        "documents": [SECRET * 5] * len(rows),
    }
    await reach.ask(address, f"{path}/add", large, LARGE_WRITE)
    log = cluster.find("logservice-0").metrics
    await until(lambda: files.value(reach.get(log, "/metrics"), "shoal_log_lag_records") == 0)
    query = {"query_embeddings": [[1, 0]], "n_results": 2}
    found, headers = await reach.ask(address, f"{path}/query", query, COLD_QUERY)
    assert found["ids"][0][0] == "a"
    return headers


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(int(_WAIT_S / 0.1)):
        if await asyncio.to_thread(holds):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("it did not come to hold")


async def trace_of(world: World, trace_id: str) -> list[ReceivedSpan]:
    """A trace that is whole: the span of the frontend, which ends last, has arrived, and every parent that is no caller's."""

    def is_whole() -> bool:
        spans = world.collector.trace(trace_id)
        known = {span.span_id for span in spans} | {CALLER}
        return any(span.parent_id == CALLER for span in spans) and all(span.parent_id in known for span in spans)

    await until(is_whole)
    return world.collector.trace(trace_id)


Hop = tuple[str, str, int]


def chains(spans: Iterable[ReceivedSpan]) -> set[tuple[Hop, ...]]:
    """Of every span the way to it from the trace's first: services, names and kinds."""
    by_id = {span.span_id: span for span in spans}

    def way(span: ReceivedSpan) -> tuple[Hop, ...]:
        parent = by_id.get(span.parent_id)
        hop = (span.service.removeprefix("shoal-"), span.name, span.kind)
        return (*(way(parent) if parent else ()), hop)

    return {way(span) for span in by_id.values()}


def call(method: str, caller: str, callee: str) -> tuple[Hop, Hop]:
    """A call between services: both of its spans."""
    return (caller, f"shoal.v1.{method}", CLIENT), (callee, f"shoal.v1.{method}", SERVER)


async def test_a_cold_query_is_one_trace_over_every_hop(world: World) -> None:
    ways = chains(await trace_of(world, COLD_QUERY))
    request = ("frontend", f"POST {COLLECTION}/query", SERVER)
    query = (request, *call("QueryService/Query", "frontend", "querynode"))
    tail = (*query, ("querynode", "query catch up", 1), *call("LogService/ReadTail", "querynode", "logservice"))
    assert (*tail, ("logservice", "log read index", 1), ("logservice", "postgres SELECT", CLIENT)) in ways
    assert (
        *query,
        *call("CatalogService/GetVersion", "querynode", "sysdb"),
        ("sysdb", "postgres SELECT", CLIENT),
    ) in ways
    assert (*query, ("querynode", "objects get", CLIENT)) in ways
    assert (*query, ("querynode", "query compute", 1)) in ways
    assert all(way[0] == request for way in ways)


async def test_the_first_span_is_the_callers_child_and_the_answer_names_the_trace(world: World) -> None:
    spans = await trace_of(world, COLD_QUERY)
    (first,) = [span for span in spans if span.parent_id == CALLER]
    assert first.attributes["http.route"] == f"{COLLECTION}/query"
    assert first.attributes["http.response.status_code"] == 200
    assert world.headers["chroma-trace-id"] == COLD_QUERY


async def test_a_write_is_one_trace_down_to_commit(world: World) -> None:
    ways = chains(await trace_of(world, WRITE))
    append = (
        ("frontend", f"POST {COLLECTION}/add", SERVER),
        *call("LogService/Append", "frontend", "logservice"),
    )
    for operation in ("SELECT", "WITH", "COMMIT"):
        assert (*append, ("logservice", "log commit", 1), ("logservice", f"postgres {operation}", CLIENT)) in ways
    assert not any(hop[1].startswith("objects") for way in ways for hop in way)


async def test_a_large_write_has_its_object_too(world: World) -> None:
    spans = await trace_of(world, LARGE_WRITE)
    ways = chains(spans)
    append = (("frontend", f"POST {COLLECTION}/add", SERVER), *call("LogService/Append", "frontend", "logservice"))
    assert (*append, ("logservice", "objects put", CLIENT)) in ways
    assert (*append, ("logservice", "log commit", 1), ("logservice", "postgres COMMIT", CLIENT)) in ways
    (put,) = [span for span in spans if span.name == "objects put"]
    assert put.attributes["shoal.object.key"].startswith("log/")


async def test_a_flush_is_a_trace_of_its_own(world: World) -> None:
    def flush() -> list[ReceivedSpan]:
        roots = [span for span in world.collector.spans if span.name == "compactor flush"]
        return world.collector.trace(roots[0].trace_id) if roots else []

    await until(lambda: bool(flush()))
    ways = chains(flush())
    root = ("compactor", "compactor flush", 1)
    assert all(way[0] == root for way in ways)
    assert (root, *call("LogService/ReadTail", "compactor", "logservice")) in ways
    assert (root, ("compactor", "objects put", CLIENT)) in ways
    assert (root, *call("CatalogService/Publish", "compactor", "sysdb"), ("sysdb", "postgres COMMIT", CLIENT)) in ways


async def test_a_blocking_client_passes_its_trace_on_over_grpc(world: World) -> None:
    caller = SpanContext(
        int("d" * 32, 16), int(CALLER, 16), is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)
    )

    def count() -> int:
        credentials = shoal.tls_credentials(world.reach.ca_file)
        with shoal.connect(world.cluster.frontends[0], credentials=credentials) as client:
            collection = client.get_collection("traced")
            with trace.use_span(NonRecordingSpan(caller)):
                return collection.count()

    assert await asyncio.to_thread(count) == 2_001
    ways = chains(await trace_of(world, "d" * 32))
    first = ("frontend", "shoal.v1.ShoalService/Count", SERVER)
    assert (first, *call("QueryService/Count", "frontend", "querynode")) in ways


async def test_no_span_tells_what_is_stored_or_how_to_get_at_it(world: World) -> None:
    await trace_of(world, LARGE_WRITE)
    text = "\n".join(f"{span.name} {span.attributes}" for span in world.collector.spans)
    assert "INSERT INTO log_entry" in text
    for secret in (SECRET, world.cluster.s3.secret_key, "id1999", "traced"):
        assert secret not in text


async def test_every_metric_of_dashboard_and_rules_is_exported(world: World) -> None:
    there = {name for page in world.pages.values() for name in files.series(page)}
    recorded = {rule["record"] for rule in files.rules("record")}
    named = {name for expression in files.expressions() for name in files.metrics_of(expression)}
    assert named - recorded - there == set()


async def test_the_page_about_telemetry_has_every_metric_and_no_other(world: World) -> None:
    await until(lambda: files.value(world.pages["compactor"], "shoal_compaction_backlog_records") >= 0)
    there = {name: kind for page in world.pages.values() for name, kind in files.exported(page).items()}
    assert files.documented() == there


async def test_the_page_about_telemetry_names_the_right_roles(world: World) -> None:
    rows = re.findall(r"^\| `(shoal_\w+)` \| \w+ \| [^|]* \| ([^|]*) \|", files.PAGE.read_text(), re.MULTILINE)
    pages = {role: files.exported(page).keys() for role, page in world.pages.items()}
    assert len(rows) > 60
    for name, roles in rows:
        if not name.startswith("shoal_rpc_"):  # there once a process was called
            assert roles == "all" or sorted(roles.split(", ")) == sorted(r for r in pages if name in pages[r]), name


async def test_metrics_say_what_happened(world: World) -> None:
    pages = world.pages
    assert files.value(pages["logservice"], "shoal_log_records_total") == 2_001
    assert files.value(pages["logservice"], "shoal_log_uploads_total") == 1
    assert files.value(pages["logservice"], "shoal_log_lag_age_ms") == 0
    assert files.value(pages["compactor"], "shoal_compaction_backlog_records") == 0
    assert files.value(pages["compactor"], "shoal_compaction_records_total") == 2_001
    assert files.value(pages["querynode"], "shoal_query_shards") == 1
    assert files.value(pages["querynode"], "shoal_query_queue_ms_count") > 0
    assert files.value(pages["frontend"], "shoal_members") == 5
    for page in pages.values():
        assert files.value(page, "shoal_registry_connected") == files.value(page, "shoal_registry_registered") == 1
    assert f'route="{COLLECTION}/query"' in pages["frontend"]


async def test_metrics_come_over_otlp_too(world: World) -> None:
    await until(lambda: {"shoal_http_requests", "shoal_query_queue_time_ms"} <= world.collector.metric_names)


async def test_every_line_of_a_log_is_json(world: World) -> None:
    for role in world.cluster.roles.values():
        lines = role.command.log_path.read_text().splitlines()
        assert all(json.loads(line)["service"] == role.role for line in lines if line.startswith("{"))
        assert not [line for line in lines if '"level": "ERROR"' in line]
