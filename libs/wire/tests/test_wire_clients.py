"""Client, channel, servicer: every method passes its arguments and its result through unchanged."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio
import numpy as np
import pyarrow as pa
import pytest

from libs.wire.tests.wire_support import same
from shoal_compactor.service import CompactorServicer
from shoal_core.consistency import Consistency, ReadLevel, ServedAt, VersionToken
from shoal_core.contracts import (
    Access,
    AccessAdmin,
    Answer,
    AppendRequest,
    AppendResult,
    AttachedFunction,
    Backlog,
    BorrowedObjects,
    Catalog,
    Collection,
    CollectionRef,
    Condition,
    CountAnswer,
    CountRequest,
    Database,
    DenseLeaf,
    DueFunction,
    EncodedAnswer,
    ExpiredUpload,
    Functions,
    GarbageCollection,
    GarbageRoots,
    GetRequest,
    HashRange,
    Head,
    Include,
    IndexingStatus,
    Lease,
    Log,
    NewCollection,
    NewFunction,
    PublicApi,
    PublishRequest,
    QueryNode,
    QueryRequest,
    SearchRequest,
    SparseLeaf,
    SparseStatistics,
    Statistics,
    StatisticsAnswer,
    StatisticsRequest,
    Tail,
    TailEntry,
    TailRequest,
    Target,
    Tenant,
    TextLeaf,
    TextStatistics,
    VersionInfo,
    WriteResult,
)
from shoal_core.filters import And, Comparator, Compare, IdIn, Text, TextMatcher
from shoal_core.ranking import Div, GroupBy, Knn, Search, Select, SparseQuery, Sum, TextQuery, Val
from shoal_core.schema import Analyzer, Index, Schema
from shoal_frontend.access.entrance import Entrance
from shoal_frontend.access.gate import Gate
from shoal_frontend.access.grpc_api import AccessAdminServicer
from shoal_frontend.grpc_api import ShoalServicer
from shoal_log.service import LogServicer
from shoal_query.service import QueryServicer
from shoal_sysdb.service import AccessServicer, CatalogServicer, FunctionsServicer
from shoal_testing.virtual_clock import VirtualClock
from shoal_wire.clients import (
    AccessAdminClient,
    AccessClient,
    CatalogClient,
    FunctionsClient,
    LogClient,
    PublicClient,
    QueryClient,
)
from shoal_wire.codec.answers import encode_answer_bytes
from shoal_wire.messages import message_options
from shoal_wire.rpc import Rpc
from shoal_wire.server import method_name
from shoal_wire.v1 import access_pb2, catalog_pb2, compactor_pb2, functions_pb2, log_pb2, query_pb2, shoal_pb2

pytestmark = pytest.mark.integration


class Recorder:
    """Implements any protocol: remembers each call and answers with what it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.result: Any = None

    def __getattr__(self, name: str) -> Any:
        async def method(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            return self.result

        return method


@dataclass(frozen=True)
class Case:
    """One call: the method, its arguments and its result."""

    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


def case(method: str, result: Any, *args: Any, **kwargs: Any) -> Any:
    return pytest.param(Case(method, args, kwargs, result), id=method)


@asynccontextmanager
async def serving(servicer: Any) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server(options=message_options())
    servicer.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=message_options())
    try:
        yield channel
    finally:
        await channel.close()
        await server.stop(None)


def public_servicer(recorder: Any) -> ShoalServicer:
    return ShoalServicer(Entrance(recorder, Gate(VirtualClock())))


def bound(protocol: type, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, defaults among them."""
    arguments = inspect.signature(getattr(protocol, method)).bind(None, *args, **kwargs)
    arguments.apply_defaults()
    return dict(arguments.arguments)


async def passes(protocol: type, servicer: Any, client: Any, call: Case) -> None:
    recorder = Recorder()
    recorder.result = call.result
    async with serving(servicer(recorder)) as channel:
        result = await getattr(client(channel), call.method)(*call.args, **call.kwargs)
    (name, args, kwargs) = recorder.calls[0]
    kwargs = {key: value for key, value in kwargs.items() if key != "encoded"}
    assert name.removesuffix("_encoded") == call.method
    expected = bound(
        protocol, call.method, call.args, {key: value for key, value in call.kwargs.items() if key != "encoded"}
    )
    found = bound(protocol, call.method, args, kwargs)
    assert found.keys() == expected.keys()
    for key in expected.keys() - {"self"}:
        assert same(expected[key], found[key]), key
    assert same(call.result, result)


def verbs(protocol: type) -> set[str]:
    return {name for name, member in vars(protocol).items() if inspect.isfunction(member) and not name.startswith("_")}


DATABASE = Database("1", "t", "größe")
BARE = Collection("id", "t", "d", "n", 1, "i", "l2", 1, None, None, {})
SCHEMA = Schema(frozenset({Index.FLOAT}), {"#document": {Index.RANKED: True}}, Analyzer(stop_words=()))
FULL = Collection("id", "t", "d", "n", 7, "i", "cosine", 4, 384, {"a": [1, "é"]}, {"hnsw": {"m": 16}}, SCHEMA)
NEW = NewCollection("t", "d", "n", "ip", 8, {"a": None}, {"ef": {"name": "x"}}, 5, SCHEMA)
LEASE = Lease("c", "merge", "me", 9)
VERSION = VersionInfo("c", 3, "v/3", 77)
TENANT = Tenant("t")
CATALOG = [
    case("create_tenant", None, "t"),
    case("get_tenant", TENANT, "t"),
    case("get_tenant", Tenant("t", "ресурс"), "t"),
    case("name_tenant", None, "t", "r"),
    case("create_database", DATABASE, "t", "d"),
    case("get_database", DATABASE, "t", "d"),
    case("list_databases", [DATABASE, DATABASE], "t", limit=0, offset=3),
    case("delete_database", None, "t", "d"),
    case("create_collection", (FULL, True), NEW, get_or_create=True),
    case("create_collection", (BARE, False), NewCollection("t", "d", "n"), get_or_create=False),
    case("get_collection", FULL, "t", "d", "n"),
    case("get_collection_by_id", BARE, "id"),
    case("list_collections", [FULL, BARE], "t", "d", limit=5, offset=6),
    case("count_collections", 2**40, "t", "d"),
    case("modify_collection", FULL, "id", name="m", metadata={}, configuration={"a": 1}),
    case("modify_collection", BARE, "id"),
    case("modify_collection", FULL, "id", schema=SCHEMA),
    case("modify_collection", BARE, "id", schema=Schema()),
    case("delete_collection", None, "id"),
    case("get_collection_by_resource_name", FULL, "r", "d", "n"),
    case("fork_collection", FULL, "id", "n"),
    case("count_forks", 2**40, "id"),
    case("reset", None),
    case("backlog", [Backlog(FULL, 9, 3, 2**40, 5, 2)], limit=10, min_records=5, min_age_ms=6),
    case("claim", LEASE, "c", "flush", "me", ttl_ms=500),
    case("claim", None, "c", "flush", "me", ttl_ms=500),
    case("renew", None, LEASE, ttl_ms=400),
    case("release", None, LEASE),
    case("begin_upload", "upload", "c"),
    case("publish", VERSION, PublishRequest(LEASE, 2, "v/3", 77, "upload")),
    case("get_version", VERSION, "c"),
    case("get_version", VERSION, "c", 0),
    case("version_at", VERSION, "c", 2**40),
    case("expired_uploads", [ExpiredUpload("u", "c", 2**40)], limit=7),
    case("drop_uploads", None, ["u", "v"]),
    case("collections_with_garbage", [], after="", limit=1, version_retention_ms=0, deleted_retention_ms=0),
    case(
        "collections_with_garbage",
        [GarbageCollection("c", True, 2**40), GarbageCollection("d", False, 0)],
        after="b",
        limit=9,
        version_retention_ms=2**40,
        deleted_retention_ms=2**41,
        everything=True,
    ),
    case("garbage_roots", GarbageRoots((VERSION,), frozenset({"u"})), "c", ["u", "v"], version_retention_ms=2**40),
    case("garbage_roots", GarbageRoots((), frozenset()), "c", [], version_retention_ms=0),
    case(
        "borrowed_objects",
        BorrowedObjects((VERSION,), frozenset({"log/c/u", "log/c/v"})),
        "c",
        version_retention_ms=2**40,
        deleted_retention_ms=2**41,
    ),
    case("needed_payloads", frozenset({"log/c/u"}), ["log/c/u", "log/c/v"]),
    case("drop_versions", 3, "c", below=2**40, version_retention_ms=5),
    case("purge_collection", True, "c", deleted_retention_ms=2**40, limit=9),
]

HEAD = Head("c", 1, "i", 9, 2, 3, 384)
PAYLOAD = pa.py_buffer(bytes(range(256)))
TAIL = Tail(HEAD, (TailEntry(4, 6, PAYLOAD), TailEntry(7, 9, pa.py_buffer(b"d"), np.array([7, 9], np.uint64))), 9)
RESULT = AppendResult(VersionToken("c", "i", 12), 3, True)
LOG = [
    case("append", RESULT, AppendRequest("c", 1, "t", PAYLOAD)),
    case("append", RESULT, AppendRequest("c", 1, "t", pa.py_buffer(bytes(2 << 20)), "key", Condition(0, ("a", "b")))),
    case("read_index", HEAD, "c", 0),
    case("read_index", Head("c", 1, "i", 0, 0, 0, None), "c", 2**63),
    case("read_tail", TAIL, TailRequest("c", 1, 2)),
    case("read_tail", Tail(HEAD, (), 2), TailRequest("c", 0, 2, 9, HashRange(2**63, 2**64 - 1), 0)),
]

ROWS = pa.table(
    {
        "id": ["a", "b"],
        "created_offset": pa.array([1, 2], pa.uint64()),
        "distance": pa.array([0.5, 1.5], pa.float32()),
        "document": ["x", None],
        "m:str:#uri": [None, "u"],
    }
)
ANSWER = Answer(ROWS, np.array([2, 0], np.uint32), ServedAt(5, 2), False, "limit", {"plan": ["exact"]}, "next", 0.97)
SCORED = Answer(
    pa.table({"id": ["a"], "created_offset": pa.array([1], pa.uint64()), "score": pa.array([-0.125], pa.float64())}),
    np.array([1], np.uint32),
    ServedAt(5, 2),
)
LARGE = Answer(
    pa.table({"id": ["x" * 1000] * 2000, "created_offset": pa.array(range(2000), pa.uint64())}),
    np.array([2000], np.uint32),
    ServedAt(1, 0),
)
COUNT = CountAnswer(2**40, ServedAt(5, 2))
EXPLAINED_COUNT = CountAnswer(3, ServedAt(5, 2), {"plan": ["scan"]})
TARGET = Target("c", 3, "cosine", 1, 4)
WHERE = And((Compare("a", Comparator.GTE, 3), IdIn(("a",), True), Text(TextMatcher.REGEX, "x.*")))
SESSION = Consistency(ReadLevel.SESSION, 12)
INCLUDE = Include(documents=True, embeddings=True, keys=("a", "ключ"))
VECTORS = np.arange(6, dtype=np.float32).reshape(2, 3)
INDICES, WEIGHTS = np.array([1, 2**32 - 1], np.uint32), np.array([0.1, -2.5])
LEAVES = (
    DenseLeaf(VECTORS[0], 10),
    SparseLeaf("k", INDICES, WEIGHTS, 11),
    TextLeaf(("a", "ключ"), WEIGHTS, 12, 3.5, 1.2, 0.75, Analyzer("whitespace", "none", 7, ("the",))),
)
ASKS = (TextStatistics(("a", "b"), Analyzer()), SparseStatistics("k", INDICES))
STATISTICS = StatisticsAnswer((Statistics(2**40, 9, np.array([3, 2**40], np.int64)),), ServedAt(5, 2))
QUERY = [
    case("get", ANSWER, GetRequest(TARGET)),
    case("get", LARGE, GetRequest(TARGET, SESSION, 5, (), WHERE, 0, 2, INCLUDE, True, 2**40)),
    case("query", ANSWER, QueryRequest(TARGET, VECTORS, 3)),
    case("query", ANSWER, QueryRequest(TARGET, VECTORS, 3, SESSION, 5, ("a",), WHERE, INCLUDE, 100, True, True, 0.9)),
    case("count", COUNT, CountRequest(TARGET)),
    case("count", EXPLAINED_COUNT, CountRequest(TARGET, SESSION, 5, WHERE, True)),
    case("search", SCORED, SearchRequest(TARGET, LEAVES, 5)),
    case("search", SCORED, SearchRequest(TARGET, (), 5, SESSION, ("a",), WHERE, True, True, 77, 0.9)),
    case("statistics", STATISTICS, StatisticsRequest(TARGET, ASKS, 5)),
    case("statistics", StatisticsAnswer((), ServedAt(5, 2)), StatisticsRequest(TARGET, (), 5, SESSION)),
]

REF = CollectionRef("t", "d", "n")
BATCH = pa.RecordBatch.from_pydict({"op": pa.array([0, 3], pa.uint8()), "id": ["a", "b"], "m:int:n": [1, None]})
BIG_BATCH = pa.RecordBatch.from_pydict(
    {
        "op": pa.array([0] * 1000, pa.uint8()),
        "id": [str(row) for row in range(1000)],
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(384_000, dtype=np.float32)), 384),
    }
)
WRITTEN = WriteResult(VersionToken("c", "i", 12), 3, 10)
OUTCOMES = WriteResult(VersionToken("c", "i", 12), 3, 2, outcomes=b"\x01\x05")
DELETED = WriteResult(VersionToken("c", "i", 12), 3, 2, read_offset=0)
SEARCHES = [
    Search(),
    Search(
        WHERE,
        ("a",),
        Sum(
            (
                Div(Val(-1), Knn(SparseQuery(INDICES, VECTORS[0, :2]), "k", 5, 1.5, True)),
                Knn(TextQuery("x"), "#document"),
            )
        ),
        GroupBy(("g",), ("#score", "p"), 3, True),
        0,
        2**40,
        Select(True, True, True, True, ("p",)),
        "page",
    ),
]
NEW_FUNCTION = NewFunction("f", "statistics", "out", {"x": [1, None]})
FUNCTION = AttachedFunction("i", "f", "statistics", "t", "d", "di", "in", "oi", "out", {"x": [1, None]}, 7, 2, "why")
FRESH_FUNCTION = AttachedFunction("i", "f", "statistics", "t", "d", "di", "in", "oi", "out", {})
FUNCTIONS = [
    case("attach_function", (FUNCTION, True), "c", NEW_FUNCTION, limit=8),
    case("attach_function", (FRESH_FUNCTION, False), "c", NewFunction("f", "x", "out"), limit=1),
    case("get_function", FUNCTION, "c", "f"),
    case("detach_function", None, "c", "f"),
    case("due_functions", [DueFunction(FUNCTION, 9, 8), DueFunction(FRESH_FUNCTION, 1, 0)], limit=3),
    case("due_functions", [], limit=3, skip=6),
    case("complete_function", None, LEASE, "f", 9),
    case("fail_function", None, LEASE, "f", "why", retry_ms=1, longest_retry_ms=2),
]

PUBLIC = [
    case("attach_function", (FUNCTION, True), REF, NEW_FUNCTION),
    case("get_function", FUNCTION, REF, "f"),
    case("detach_function", None, REF, "f"),
    case("detach_function", None, REF, "f", delete_output=True),
    case("create_tenant", None, "t"),
    case("get_tenant", TENANT, "t"),
    case("name_tenant", None, "t", "r"),
    case("create_database", DATABASE, "t", "d"),
    case("get_database", DATABASE, "t", "d"),
    case("list_databases", [DATABASE], "t"),
    case("list_databases", [], "t", limit=0, offset=1),
    case("delete_database", None, "t", "d"),
    case("create_collection", (FULL, True), NEW),
    case("create_collection", (FULL, False), NEW, get_or_create=True),
    case("get_collection", FULL, CollectionRef("t", "d", id="x")),
    case("list_collections", [FULL, BARE], "t", "d", limit=7),
    case("count_collections", 3, "t", "d"),
    case("modify_collection", FULL, REF, name="", metadata={"a": 1}),
    case("modify_collection", FULL, REF, configuration={}),
    case("modify_collection", FULL, REF, schema=SCHEMA),
    case("modify_collection", BARE, REF, schema=Schema()),
    case("delete_collection", None, REF),
    case("get_collection_by_resource_name", FULL, "r", "d", "n"),
    case("fork_collection", FULL, REF, "n"),
    case("count_forks", 2**40, REF),
    case("reset", None),
    case("write", WRITTEN, REF, BATCH),
    case("write", WRITTEN, REF, BIG_BATCH, idempotency_key="k", condition=Condition(4, ())),
    case("write", OUTCOMES, REF, BATCH, outcomes=True),
    case("delete_where", WRITTEN, REF, ids=None, where=None),
    case("delete_where", DELETED, REF, ids=("a",), where=WHERE, limit=0, idempotency_key="k", allow_scan=True),
    case("get", ANSWER, REF),
    case("get", ANSWER, REF, limit=1, cursor=""),
    case(
        "get",
        LARGE,
        REF,
        ids=(),
        where=WHERE,
        limit=0,
        offset=3,
        include=INCLUDE,
        consistency=SESSION,
        explain=True,
        allow_scan=True,
        cursor="page",
    ),
    case("query", ANSWER, REF, VECTORS, 3),
    case("query", ANSWER, REF, np.zeros((0, 0), np.float32), 3, texts=["a text", "", "東京"]),
    case(
        "query",
        ANSWER,
        REF,
        VECTORS,
        3,
        ids=("a", "b"),
        where=WHERE,
        include=INCLUDE,
        consistency=SESSION,
        ef=9,
        exact=True,
        explain=True,
        allow_scan=True,
        recall=0.99,
    ),
    case("search", [ANSWER, SCORED], REF, SEARCHES),
    case("search", [LARGE], REF, [], consistency=SESSION, exact=True, explain=True, allow_scan=True, recall=0.5),
    case("search", [], REF, SEARCHES * 20),
    case("count", COUNT, REF),
    case("count", EXPLAINED_COUNT, REF, where=WHERE, consistency=SESSION, explain=True, allow_scan=True),
    case("indexing_status", IndexingStatus(9, 8, 7, 6), REF),
    case("status", {"members": {"frontend": 1}, "lag": [0.5]}),
]


@pytest.mark.parametrize("call", CATALOG)
async def test_catalog(call: Case) -> None:
    await passes(Catalog, CatalogServicer, CatalogClient, call)


@pytest.mark.parametrize("call", FUNCTIONS)
async def test_functions(call: Case) -> None:
    await passes(Functions, FunctionsServicer, FunctionsClient, call)


@pytest.mark.parametrize("call", LOG)
async def test_log(call: Case) -> None:
    await passes(Log, LogServicer, LogClient, call)


@pytest.mark.parametrize("call", QUERY)
async def test_query(call: Case) -> None:
    await passes(QueryNode, QueryServicer, QueryClient, call)


@pytest.mark.parametrize("call", PUBLIC)
async def test_public(call: Case) -> None:
    await passes(PublicApi, public_servicer, PublicClient, call)


@pytest.mark.parametrize(
    ("protocol", "cases"),
    [(Catalog, CATALOG), (Functions, FUNCTIONS), (Log, LOG), (QueryNode, QUERY), (PublicApi, PUBLIC)],
)
def test_every_verb_has_a_case(protocol: type, cases: list[Any]) -> None:
    assert {param.values[0].method for param in cases} == verbs(protocol)


def test_the_clients_implement_the_protocols() -> None:
    channel = grpc.aio.insecure_channel
    catalog: type[Catalog] = CatalogClient
    functions: type[Functions] = FunctionsClient
    log: type[Log] = LogClient
    node: type[QueryNode] = QueryClient
    api: type[PublicApi] = PublicClient
    assert channel is not None
    access: type[Access] = AccessClient
    admin: type[AccessAdmin] = AccessAdminClient
    pairs = (
        (catalog, Catalog),
        (functions, Functions),
        (log, Log),
        (node, QueryNode),
        (api, PublicApi),
        (access, Access),
        (admin, AccessAdmin),
    )
    for client, protocol in pairs:
        for verb in verbs(protocol):
            assert inspect.signature(getattr(client, verb)) == inspect.signature(getattr(protocol, verb)), verb


@pytest.mark.parametrize(
    ("file", "service", "servicer"),
    [
        (catalog_pb2, "CatalogService", CatalogServicer),
        (functions_pb2, "FunctionsService", FunctionsServicer),
        (log_pb2, "LogService", LogServicer),
        (query_pb2, "QueryService", QueryServicer),
        (shoal_pb2, "ShoalService", ShoalServicer),
        (compactor_pb2, "CompactorService", CompactorServicer),
        (access_pb2, "AccessService", AccessServicer),
        (access_pb2, "AccessAdminService", AccessAdminServicer),
    ],
)
def test_servicers_take_and_return_what_the_protos_say(file: Any, service: str, servicer: type) -> None:
    for method in file.DESCRIPTOR.services_by_name[service].methods:
        annotations = getattr(servicer, method_name(method.name)).__annotations__
        assert annotations["request"].rpartition(".")[2] == method.input_type.name
        assert annotations["return"] == "bytes" or annotations["return"].rpartition(".")[2] == method.output_type.name


async def test_encoded_answers_pass_through_untouched() -> None:
    data = (
        encode_answer_bytes(ANSWER) + b"\xa2\x06\x03abc"
    )  # a field of a later version, which no decoder would keep in place
    recorder = Recorder()
    recorder.result = EncodedAnswer(data)
    async with serving(QueryServicer(recorder)) as channel:
        client = QueryClient(channel)
        get = await client.get(GetRequest(TARGET), encoded=True)
        query = await client.query(QueryRequest(TARGET, VECTORS, 3), encoded=True)
        decoded = await client.get(GetRequest(TARGET))
    assert get == query == EncodedAnswer(data)
    assert same(decoded, ANSWER)
    assert [kwargs for _, _, kwargs in recorder.calls] == [{"encoded": True}] * 3

    recorder.result = EncodedAnswer(b"\xff not a message")
    async with serving(public_servicer(recorder)) as channel:
        ref = shoal_pb2.GetRequest(collection=shoal_pb2.CollectionRef(name="n"))
        raw = await Rpc("shoal.v1.ShoalService", channel, 5000).send("Get", ref.SerializeToString())
        raw_query = await Rpc("shoal.v1.ShoalService", channel, 5000).send("Query", b"")
    assert raw == raw_query == b"\xff not a message"


async def test_pages_have_a_default_size_for_clients_that_name_none() -> None:
    recorder = Recorder()
    recorder.result = []
    for servicer, service in ((CatalogServicer, "CatalogService"), (public_servicer, "ShoalService")):
        async with serving(servicer(recorder)) as channel:
            for method in ("ListDatabases", "ListCollections"):
                await Rpc(f"shoal.v1.{service}", channel, 5000).send(method, b"")
    assert [kwargs for _, _, kwargs in recorder.calls] == [{"limit": 100, "offset": 0}] * 4


@dataclass
class _Job:
    collection_id: str
    kind: str
    stage: str
    records: int


class _Compactor:
    async def compact(self, collection_id: str, *, merge: bool) -> VersionInfo:
        return VersionInfo(collection_id, 4 + merge, "key", 99)

    def jobs(self) -> list[_Job]:
        return [_Job("c", "flush", "upload", 5)]


async def test_compactor() -> None:
    async with serving(CompactorServicer(_Compactor())) as channel:
        rpc = Rpc("shoal.v1.CompactorService", channel, 5000)
        request = compactor_pb2.CompactRequest(collection_id="c", merge=True)
        version = await rpc.call("Compact", lambda: request, compactor_pb2.CompactResponse.FromString)
        jobs = await rpc.call("ListJobs", compactor_pb2.ListJobsRequest, compactor_pb2.ListJobsResponse.FromString)
    assert (version.version, version.compacted_offset) == (5, 99)
    assert [(job.collection_id, job.kind, job.stage, job.records) for job in jobs.jobs] == [("c", "flush", "upload", 5)]


async def test_a_channel_is_asked_for_at_each_call() -> None:
    recorder = Recorder()
    recorder.result = HEAD
    async with serving(LogServicer(recorder)) as channel:
        asked: list[int] = []

        def source() -> grpc.aio.Channel:
            asked.append(1)
            return channel

        client = LogClient(source)
        await client.read_index("c", 1)
        await client.with_timeout(None).read_index("c", 1)
    assert len(asked) == 2
