"""The sync client: its thread, closing, forks, many callers; and where clients come from."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shoal
from libs.client.tests.client_support import FakeApi, Words, connection_to
from shoal import _connect, errors
from shoal._connect import open_embedded, parse_addresses
from shoal._loop import LoopThread
from shoal.aio import AsyncClient, AsyncCollection
from shoal_core.contracts import Tenant


def sync_client(*apis: FakeApi) -> shoal.Client:
    return shoal.Client(LoopThread(), AsyncClient(connection_to(*apis)))


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def client(api: FakeApi) -> Iterator[shoal.Client]:
    with sync_client(api) as client:
        yield client


def test_everything_once(client: shoal.Client) -> None:
    films = client.get_or_create_collection("films", space="cosine", dimension=2)
    films.add(ids=["a", "b"], embeddings=[[1, 0], [0, 1]], metadatas=[{"n": 1}, None], documents=["x", None])
    films.upsert(ids=["c"], embeddings=[[1, 1]])
    films.update(ids=["c"], metadatas={"n": [3]})
    assert films.query([1, 0], n_results=1).ids == [["a"]]
    assert films.get(where={"n": 3}).ids == films.get(["c"]).ids == ["c"]
    assert films.peek().ids == ["a", "b", "c"]
    assert films.delete(ids=["b"]).records == 1
    assert films.count() == 2
    assert films.load([{"ids": ["d"], "embeddings": [[1, 1]]}]).records == 1
    assert films.add_batches([{"ids": ["e"], "embeddings": [[1, 1]]}]).records == 1
    films.modify(name="movies", metadata={"x": 1})
    assert (films.name, films.metadata, films.space, films.shards) == ("movies", {"x": 1}, "cosine", 1)
    assert (films.dimension, films.configuration) == (2, {})
    assert films.wait_until_indexed().indexed_offset == films.indexing_status().head_offset == 7
    assert films.id in repr(films)
    attached, created = films.attach_function("statistics", "stats", "films-stats")
    assert (attached.function, attached.output_collection, created) == ("statistics", "films-stats", True)
    assert films.attach_function("statistics", "stats", "films-stats") == (attached, False)
    assert films.get_attached_function("stats") == attached
    films.detach_function("stats", delete_output_collection=True)
    with pytest.raises(errors.NotFound):
        films.get_attached_function("stats")
    assert [found.name for found in client.list_collections()] == ["movies"]
    assert client.get_collection("movies").id == films.id
    assert client.create_collection("other").count() == 0
    assert client.count_collections() == 2
    client.delete_collection("other")
    draft = films.fork("draft")
    assert (draft.name, draft.id != films.id, films.fork_count()) == ("draft", True, 2)
    client.create_tenant("acme")
    client.name_tenant("acme", "a")
    assert client.get_tenant("acme") == Tenant("acme")
    assert client.create_database("db").name == client.get_database("db").name == "db"
    assert len(client.list_databases()) == 2
    client.delete_database("db")
    assert client.status() == {"members": {}}
    assert client.heartbeat() >= 0
    client.reset()
    assert (client.tenant, client.database) == ("default_tenant", "default_database")
    assert "fake" in repr(client)


def test_searches_pages_and_conditional_writes(client: shoal.Client) -> None:
    films = client.create_collection("films", embedding_function=Words(), schema={"bm25": {"b": 0.5}})
    assert films.schema == shoal.Schema(bm25=shoal.Bm25(b=0.5))
    added = films.add(ids=["a", "b", "c"], documents=["x", "x y", "zz"], metadatas={"n": [1, 2, 3]}, outcomes=True)
    assert added.outcomes == ["added"] * 3
    assert [page.ids for page in films.pages(limit=2)] == [["a", "b"], ["c"]]
    one = shoal.Search(rank=shoal.Knn("x"), limit=1)
    assert films.search(one, explain=True).ids == ["a"]
    assert [found.ids for found in films.search([one, {"rank": shoal.Knn("zz").to_json()}])] == [["a"], ["c", "a", "b"]]
    with films.conditional(outcomes=True) as txn:
        [record] = txn.get(["a"])
        assert record.metadata is not None
        txn.update(ids=["a"], metadatas=[{"n": record.metadata["n"] + 1}])
        txn.add(ids=["d"], documents=["w"])
        txn.upsert(ids=["d"], documents=["w w"])
        txn.delete(["c"])
    assert txn.result is not None
    assert txn.result.outcomes == ["updated", "added", "updated", "deleted"]
    assert films.get(consistency=shoal.as_of(added)).ids == ["a", "b", "c"]
    assert films.delete(["a", "x"], outcomes=True, condition=shoal.unless_written_since(txn.result, "a")).records == 2
    assert films.count_explained(allow_scan=True).count == films.count(allow_scan=True) == 2
    films.modify(schema={})
    assert films.schema == shoal.Schema()


def test_a_conflict_or_an_error_ends_a_block(client: shoal.Client, api: FakeApi) -> None:
    films = client.create_collection("films")
    films.add(ids=["a"], embeddings=[[1]])
    sent, txn = len(api.seen("write")), films.conditional()

    def overtaken() -> None:
        with films.conditional() as late:
            late.get("a")
            films.upsert(ids=["a"], embeddings=[[2]])
            late.delete("a")

    def broken() -> None:
        with txn:
            txn.delete("a")
            raise RuntimeError("changed my mind")

    with pytest.raises(errors.WriteConflict):
        overtaken()
    with pytest.raises(RuntimeError, match="changed my mind"):
        broken()
    with pytest.raises(errors.FailedPrecondition, match="has ended"):
        txn.delete("a")
    assert len(api.seen("write")) == sent + 2
    assert films.count() == 1


@pytest.mark.parametrize(
    ("sync", "twin"),
    [
        (shoal.Client, AsyncClient),
        (shoal.Collection, AsyncCollection),
        (shoal.ConditionalWrite, shoal.AsyncConditionalWrite),
    ],
    ids=["client", "collection", "conditional"],
)
def test_the_twins_have_the_same_verbs_and_arguments(sync: type, twin: type) -> None:
    def verbs(cls: type) -> dict[str, Any]:
        members = inspect.getmembers(cls, inspect.isfunction)
        return {name: inspect.signature(member).parameters for name, member in members if name[0] != "_"}

    assert verbs(sync) == verbs(twin)
    assert inspect.signature(shoal.connect).parameters == inspect.signature(shoal.aio.connect).parameters


def test_errors_come_through(client: shoal.Client) -> None:
    with pytest.raises(errors.NotFound, match="nothing"):
        client.get_collection("nothing")


def test_many_threads_at_once(client: shoal.Client) -> None:
    collection = client.create_collection("c")

    def work(worker: int) -> int:
        for number in range(10):
            collection.add(
                ids=[f"{worker}-{number}"], embeddings=np.ones((1, 4), np.float32), metadatas=[{"w": worker}]
            )
        return collection.count(where={"w": worker})

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(work, range(16))) == [10] * 16
    assert collection.count() == 160


def test_a_closed_client_says_so(api: FakeApi) -> None:
    client = sync_client(api)
    collection = client.create_collection("c")
    client.close()
    client.close()
    with pytest.raises(errors.FailedPrecondition, match="closed; connect again"):
        collection.count()
    assert not any(thread.name == "shoal-client" for thread in threading.enumerate())


def test_closing_ends_calls_in_flight(api: FakeApi) -> None:
    client = sync_client(api)
    collection = client.create_collection("c")
    entered = threading.Event()

    async def hang() -> None:
        entered.set()
        await asyncio.Event().wait()

    api.before = hang
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(collection.count)
        assert entered.wait(10)
        client.close()
        with pytest.raises(errors.Unavailable, match="closed during the call"):
            call.result(10)


def test_close_raises_what_the_connection_raises(api: FakeApi) -> None:
    async def close() -> None:
        raise errors.Internal("the disk is gone")

    client = shoal.Client(LoopThread(), AsyncClient(_connect.Connection((api,), "fake", close)))
    with pytest.raises(errors.Internal, match="disk is gone"):
        client.close()
    client.close()


def test_a_dropped_client_ends_its_thread(api: FakeApi) -> None:
    closed = threading.Event()

    async def close() -> None:
        closed.set()

    client = shoal.Client(LoopThread(), AsyncClient(_connect.Connection((api,), "fake", close)))
    reference, thread = weakref.ref(client), client._loop._thread
    del client
    gc.collect()
    assert reference() is None
    assert closed.wait(10)
    thread.join(10)
    assert not thread.is_alive()


def test_a_callback_must_not_call_the_client(client: shoal.Client) -> None:
    collection = client.create_collection("c")
    with pytest.raises(errors.FailedPrecondition, match="own callback"):
        collection.wait_until_indexed(on_progress=lambda _: collection.count())


def test_an_interrupt_cancels_the_call(api: FakeApi, client: shoal.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = client.create_collection("c")
    cancelled, entered = threading.Event(), threading.Event()

    async def hang() -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    api.before = hang

    def interrupted(future: Any, timeout: float | None = None) -> Any:
        assert entered.wait(10)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("concurrent.futures.Future.result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            collection.count()
    assert cancelled.wait(10)


FORKED = """
import os, sys
from libs.client.tests.client_support import FakeApi
from libs.client.tests.test_client_sync import sync_client
from shoal import errors
client = sync_client(FakeApi())
collection = client.create_collection("c")
child = os.fork()
if child == 0:
    try:
        collection.count()
    except errors.FailedPrecondition as error:
        client.close()
        sys.exit(7 if "was forked; connect again" in str(error) else 8)
    sys.exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert collection.count() == 0
"""

AT_EXIT = """
import asyncio
from libs.client.tests.client_support import FakeApi
from shoal import Client
from shoal._connect import Connection
from shoal._loop import LoopThread
from shoal.aio import AsyncClient
async def close():
    print(await asyncio.to_thread(lambda: "closed with threads"))
client = Client(LoopThread(), AsyncClient(Connection((FakeApi(),), "fake", close)))
client.create_collection("c")
"""

LIGHT = """
import sys, shoal
heavy = {"onnxruntime", "tokenizers", "grpc", "google.protobuf", "shoal_wire", "pyarrow.compute", "opentelemetry"}
print(sorted(heavy & set(sys.modules)))
"""


def run_python(code: str) -> str:
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_a_fork_is_detected() -> None:
    run_python(FORKED)


def test_the_exit_of_the_interpreter_closes_while_threads_still_work() -> None:
    assert run_python(AT_EXIT) == "closed with threads\n"


def test_import_is_light() -> None:
    assert run_python(LIGHT) == "[]\n"


# --- where clients come from


def test_addresses() -> None:
    assert parse_addresses("localhost:8000") == ("localhost:8000",)
    assert parse_addresses("a:1, b.example:2 ,a:1,[::1]:3") == ("a:1", "b.example:2", "[::1]:3")
    for text in ("", "localhost", "localhost:", "localhost:0", "localhost:99999", "a:1,", "a b:1", "::1:80"):
        with pytest.raises(errors.InvalidArgument, match="expected host:port, got"):
            parse_addresses(text)
    with pytest.raises(errors.InvalidArgument, match="speaks gRPC"):
        parse_addresses("http://localhost:8000")


@pytest.mark.parametrize("arguments", [{}, {"address": "a:1", "path": "x"}])
def test_connect_needs_one_place(arguments: dict[str, str]) -> None:
    with pytest.raises(errors.InvalidArgument, match="either the address of a frontend or a path"):
        shoal.connect(**arguments)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidArgument, match="timeout_ms"):
        shoal.connect("a:1", timeout_ms=0)


class System:
    """An embedded system that remembers what was done to it."""

    def __init__(self, path: Path, *, broken: bool = False) -> None:
        self.path = path
        self.broken = broken
        self.events: list[str] = []
        self.api = FakeApi()
        LAST.append(self)

    async def start(self) -> None:
        self.events.append("start")
        if self.broken:
            raise errors.Unavailable("no Postgres")

    async def close(self) -> None:
        self.events.append("close")


LAST: list[System] = []


def entry_points_with(*found: EntryPoint) -> Any:
    def entry_points(*, group: str, name: str) -> list[EntryPoint]:
        assert (group, name) == ("shoal.embedded", "default")
        return list(found)

    return entry_points


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[System]:
    point = EntryPoint("default", f"{__name__}:System", "shoal.embedded")
    monkeypatch.setattr(EntryPoint, "load", lambda self: System)
    monkeypatch.setattr(_connect, "entry_points", entry_points_with(point))
    LAST.clear()
    return LAST


def test_a_path_starts_the_system_in_this_process(embedded: list[System]) -> None:
    with shoal.connect(path="~/data") as client:
        client.create_collection("c").add(ids=["a"], embeddings=[[1.0]])
        [system] = embedded
        assert system.path == Path("~/data").expanduser()
        assert system.events == ["start"]
    assert system.events == ["start", "close"]


def test_a_start_that_fails_is_cleaned_up(embedded: list[System]) -> None:
    before = threading.active_count()
    with pytest.raises(errors.Unavailable, match="no Postgres"):
        shoal.connect(path="data", options={"broken": True})
    assert embedded[0].events == ["start", "close"]
    assert threading.active_count() == before


async def test_without_the_package_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_connect, "entry_points", entry_points_with())
    with pytest.raises(errors.FailedPrecondition, match="install shoal-cli"):
        await open_embedded("data", {})
