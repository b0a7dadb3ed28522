"""The ten assumptions that the reference system makes silently: each is made explicit here, and tested."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.logservice.tests.log_support import state_of
from shoal.embedding import CallableEmbedding, Gateway, GatewayLimits, check_vectors, embed_documents, embed_queries
from shoal_cluster.assignment import AssignmentPolicy, ModuloPolicy, RendezvousPolicy, hash64
from shoal_cluster.membership import membership_view
from shoal_cluster.routing import Router
from shoal_core.contracts import CollectionRef, Include
from shoal_core.errors import DimensionMismatch, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from shoal_core.metadata import metadata_columns
from shoal_core.ports import Member
from shoal_core.ranking import Knn, Search, Select, TextQuery
from shoal_core.schema import DOCUMENT_KEY, Analyzer, Bm25, Schema
from shoal_frontend.names import Names
from shoal_index.vector import kernels
from shoal_index.vector.engine import SPACES
from shoal_log.groups import MAIN, Admission, GroupQueue
from shoal_log.heads import CommittedHeads, KnownHeads
from shoal_log.read_index import ReadIndexBatcher
from shoal_query.rounds import Rounds
from shoal_storage.blocks import BlockRef, encode_blob
from shoal_storage.cache import BlockCache
from shoal_testing.direct import DirectSystem
from shoal_testing.memory_objects import MemoryObjectStore
from shoal_testing.strategies import Op, examples, to_operation_batch
from shoal_testing.virtual_clock import SeededRandom, VirtualClock
from shoal_text.analysis import analyze_text
from tests.defects.defect_support import (
    Laid,
    another_database,
    another_node,
    collection,
    compactor_settings,
    every_layout,
    every_sharding,
    graphs_from,
    halves,
    laid_out,
    put,
)

MANY = 3_000
MIB = 1 << 20

# --- 1: what is kept per collection


@dataclass(frozen=True)
class Item:
    """An append that waits."""

    collection_id: str
    cost_bytes: int = 1


def test_assumption_01_questions_leave_nothing_behind_in_the_read_index() -> None:
    """There is no array of locks whose size somebody guessed: what is keyed by collection goes when nobody needs it."""
    batcher: ReadIndexBatcher[int] = ReadIndexBatcher(collections=100, in_flight=2)
    answered = 0
    for number in range(MANY):
        batcher.ask(f"c{number}", number)
        batcher.ask(f"c{number}", -number)
        if number % 7 == 0 and batcher.reserve():
            answered += len(batcher.send().waiters)
            batcher.answered()
    while batcher.reserve():
        answered += len(batcher.send().waiters)
        batcher.answered()
    assert answered == MANY
    assert not batcher._waiting
    assert batcher._free == 2


def test_assumption_01_appends_leave_nothing_behind_in_the_groups() -> None:
    queue: GroupQueue[Item] = GroupQueue(group_items=50, group_size_bytes=1000, lanes=8)
    admission = Admission(items=10, size_bytes=1000, retry_after_ms=1)
    taken = 0
    for number in range(MANY):
        queue.offer(Item(f"c{number}"))
        if number % 20:
            continue
        assert MAIN in queue.startable()
        queue.set_apart(queue.take(MAIN))  # their locks were held elsewhere: each has a lane of its own now
        queue.finish(MAIN)
        while lanes := [lane for lane in queue.startable() if lane != MAIN]:
            for lane in lanes:
                taken += len(queue.take(lane))
                queue.finish(lane)
        queue.finish(MAIN)
    taken += len(queue.take(MAIN)) + sum(len(queue.take(MAIN)) for _ in range(MANY // 50))
    assert taken == MANY
    assert {lane: len(items) for lane, items in queue._waiting.items()} == {MAIN: 0}
    assert not queue._running
    for _ in range(10):
        admission.enter(1)
    with pytest.raises(ResourceExhausted):
        admission.enter(1)
    for _ in range(10):
        admission.leave(1)
    assert (admission.items, admission.size_bytes) == (0, 0)


async def test_assumption_01_known_heads_and_names_are_bounded() -> None:
    known = KnownHeads(50)
    committed = CommittedHeads(fill, 50)
    for number in range(MANY):
        known.learn(state_of(collection_id=f"c{number}"))
        await committed.state(f"c{number}")
    assert len(known.collection_ids) == 50
    assert not committed._fills
    assert len(committed._known.collection_ids) == 50

    system = DirectSystem()
    names = Names(system.catalog, 20)
    refs = [await system.create(f"collection-{number}") for number in range(60)]
    for ref in refs * 2:
        await names.resolve(ref)
        await names.with_collection(ref, lambda collection: asyncio.sleep(0))
        with pytest.raises(NotFound):
            await names.resolve(CollectionRef(ref.tenant, ref.database, id=f"no-{ref.id}"))
    assert len(names._known) == 20


async def fill(collection_id: str) -> Any:
    return state_of(collection_id=collection_id)


async def test_assumption_01_rounds_and_jobs_end() -> None:
    sent = 0

    async def send() -> int:
        nonlocal sent
        sent += 1
        await asyncio.sleep(0)
        return sent

    rounds = Rounds(send)
    await asyncio.gather(*(rounds.ask() for _ in range(MANY)))
    assert rounds._next is None
    assert sent <= 2

    system = DirectSystem(settings=compactor_settings())
    for number in range(30):
        await system.database.write(await system.create(f"collection-{number}"), to_operation_batch([put("a")], 1))
    assert await system.compactor.run_once() == 30
    assert not system.compactor._jobs
    assert not system.compactor._to_merge


# --- 2: what embedding functions return

WRONG: list[tuple[Any, type[Exception]]] = [
    # too few: those after the one that is missing would get the vector of another text
    ([[1.0, 2.0]], InvalidArgument),
    ([[1.0, 2.0]] * 4, InvalidArgument),
    ([[1.0], [2.0], [3.0]], DimensionMismatch),
    ([[1.0, 2.0], [3.0], [4.0, 5.0]], InvalidArgument),
    ([1.0, 2.0, 3.0], InvalidArgument),
    ([[[1.0, 2.0]]] * 3, InvalidArgument),
    ([[1.0, 2.0], [1.0, float("nan")], [1.0, 2.0]], InvalidArgument),
    ([[1.0, 2.0], [1.0, float("-inf")], [1.0, 2.0]], InvalidArgument),
    ([[1.0, 2.0], [1e39, 1.0], [1.0, 2.0]], InvalidArgument),
    (None, InvalidArgument),
    ("abc", InvalidArgument),
    ([], InvalidArgument),
    ([[], [], []], InvalidArgument),
]


@pytest.mark.parametrize(("answer", "error"), WRONG, ids=[str(answer)[:40] for answer, _ in WRONG])
def test_assumption_02_what_an_embedding_function_returns_is_checked(answer: Any, error: type[Exception]) -> None:
    """As many finite vectors of one dimension as there are texts, for queries too, where nobody looked."""
    function = CallableEmbedding("f", None if error is not DimensionMismatch else 2, lambda texts: answer)
    for embed in (embed_documents, embed_queries):
        with pytest.raises(InvalidArgument) as caught:
            embed(function, ["a", "b", "c"])
        assert isinstance(caught.value, error)
    with pytest.raises(error):
        check_vectors(answer, 3, dimension=2, name="f")


@pytest.mark.parametrize(
    "vectors",
    [
        [{"indices": [1], "values": [1.0]}],  # one for two records
        [{"indices": [1], "values": [1.0]}] * 3,
        [{"indices": [1], "values": [1.0]}, {"indices": [1, 2], "values": [1.0]}],
        [{"indices": [1], "values": [1.0]}, {"indices": [1], "values": [float("nan")]}],
        [{"indices": [1], "values": [1.0]}, {"indices": [-1], "values": [1.0]}],
        [{"indices": [1], "values": [1.0]}, {"indices": [2**32], "values": [1.0]}],
        [{"indices": [1], "values": [1.0]}, {"indices": [1, 1], "values": [1.0, 2.0]}],
    ],
    ids=str,
)
async def test_assumption_02_sparse_vectors_are_checked_in_the_client_or_before_they_are_written(vectors: Any) -> None:
    async with collection() as at:
        with pytest.raises(InvalidArgument):
            await write_sparse(at, vectors)
        assert await at.ids() == []


async def write_sparse(at: Laid, vectors: Any) -> None:
    """Two records with these as their sparse vectors, the way the client makes a batch."""
    columns = metadata_columns([{"s": vector} for vector in vectors], 2, deletes=False)
    whole = to_operation_batch([put("a"), put("b")], 1)
    given = dict(zip(whole.schema.names, whole.columns, strict=True))
    await at.database.write(at.ref, pa.record_batch(given | columns))


async def test_assumption_02_sparse_vectors_that_are_right_are_written() -> None:
    async with collection() as at:
        await write_sparse(at, [{"indices": [1], "values": [1.0]}, {"indices": [1, 2], "values": [1.0, 2.0]}])
        assert await at.ids({"s": {"$exists": True}}) == ["a", "b"]


# --- 3: kernels


def test_assumption_03_kernels_are_chosen_where_they_run_and_name_themselves() -> None:
    """The instructions used are those of this CPU, not of the one that built the package, and can be seen."""
    report = kernels.report()
    assert {"blas", "numpy", "arrow", "hnswlib"} <= set(report)
    code = "from shoal_index.vector import kernels; print(kernels.report()['arrow'])"
    plain = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=os.environ | {"ARROW_USER_SIMD_LEVEL": "NONE"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert plain.stdout.strip().startswith(f"{pa.__version__}, none of ")  # what runs, not what was compiled


def test_assumption_03_an_environment_of_another_cpu_is_an_error_and_no_crash() -> None:
    with pytest.raises(FailedPrecondition, match="compiled for another CPU: run make setup here"):
        kernels.check("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    kernels.check()


# --- 4: cosine

DIRECTIONS = np.random.default_rng(7).integers(-7, 8, (40, 4)) + np.array([8, 0, 0, 0])
#: Every step of these is exact in float32, subnormal numbers included.
EXPONENTS = (-149, -140, -126, -100, -66, -60, 0, 20, 58)


async def by_cosine(at: Laid, query: npt.NDArray[np.float32], k: int, *, exact: bool) -> list[tuple[str, float]]:
    answer = await at.database.query(at.ref, query[None], k, exact=exact, include=Include(distances=True))
    return list(zip(answer.rows.column("id").to_pylist(), answer.rows.column("distance").to_pylist(), strict=True))


def scaled(vector: npt.NDArray[np.int64], exponent: int) -> npt.NDArray[np.float32]:
    return np.ldexp(vector.astype(np.float64), exponent).astype(np.float32)


@examples(40)
@given(
    exponents=st.lists(st.sampled_from(EXPONENTS), min_size=40, max_size=40),
    of_query=st.sampled_from(EXPONENTS),
    layout=st.sampled_from(["tail", "mixed", "merged"]),
    shards=st.sampled_from([1, 3]),
)
def test_assumption_04_cosine_does_not_depend_on_length(
    exponents: list[int], of_query: int, layout: str, shards: int
) -> None:
    """From subnormal to nearly too long, bit by bit the distances of vectors of ordinary length; a zero vector is at 1."""
    asyncio.run(check_cosine(exponents, of_query, layout, shards))


async def check_cosine(exponents: Sequence[int], of_query: int, layout: str, shards: int) -> None:
    vectors = [scaled(direction, exponent) for direction, exponent in zip(DIRECTIONS, exponents, strict=True)]
    ops = [put(f"id-{n}", vector.tolist()) for n, vector in enumerate(vectors)] + [put("zero", (0, 0, 0, 0))]
    query = np.array([3, -2, 5, 1])
    wide = DIRECTIONS.astype(np.float64)
    cosines = wide @ query / np.sqrt((wide**2).sum(axis=1) * (query @ query))
    expected = {f"id-{n}": 1 - cosine for n, cosine in enumerate(cosines)} | {"zero": 1.0}
    async with laid_out(layout, halves(ops), shards=shards, dimension=4, space="cosine") as at:
        found = await by_cosine(at, scaled(query, of_query), 41, exact=True)
        assert dict(found) == pytest.approx(expected, abs=1e-7)
        assert [distance for _, distance in found] == sorted(distance for _, distance in found)
        nearest = await by_cosine(at, scaled(query, of_query), 5, exact=True)
        assert nearest == found[:5]
        assert {distance for _, distance in await by_cosine(at, np.zeros(4, np.float32), 41, exact=True)} == {1.0}


@pytest.mark.parametrize("of_query", [-66, 0, 58])
@every_sharding
async def test_assumption_04_a_graph_answers_with_the_same_cosines(
    of_query: int, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Candidates of a graph are measured again: its own float32 distances are never answered."""
    graphs_from(monkeypatch, 3)
    random = np.random.default_rng(3)
    directions = random.integers(-7, 8, (300, 4)) + np.array([8, 0, 0, 0])
    exponents = random.choice([-66, -60, 0, 20, 58], 300)
    ops = [put(f"id-{n}", scaled(*pair).tolist()) for n, pair in enumerate(zip(directions, exponents, strict=True))]
    async with laid_out("merged", halves(ops), shards=shards, dimension=4, space="cosine", graph_rows=10) as at:
        for direction in directions[:20]:
            query = scaled(direction, of_query)
            true = dict(await by_cosine(at, query, 300, exact=True))
            found = await by_cosine(at, query, 20, exact=False)
            assert all(distance == true[key] for key, distance in found)
            assert [distance for _, distance in found] == sorted(true.values())[:20]
        explained = await at.database.query(at.ref, query[None], 20, explain=True)
        plans = {segment["strategy"] for part in (explained.explain or {})["shards"] for segment in part["segments"]}
        assert plans == {"graph"}


# --- 5: assignment

NODES = tuple(Member("querynode", f"node-{i}", f"10.0.0.{i}:7000") for i in range(5))


class Backwards:
    """A policy of somebody's own."""

    def assign(self, key: str, members: Sequence[Member], replicas: int) -> tuple[Member, ...]:
        return tuple(sorted(members, key=lambda member: member.id, reverse=True)[:replicas])


class View:
    """A registry."""

    def view(self) -> Any:
        return membership_view(1, list(NODES))


@pytest.mark.parametrize(
    ("policy", "order"),
    [(RendezvousPolicy(), "31240"), (ModuloPolicy(), "34012"), (Backwards(), "43210")],
    ids=["rendezvous", "modulo", "own"],
)
def test_assumption_05_the_assignment_policy_is_pluggable_and_its_vectors_are_golden(
    policy: AssignmentPolicy, order: str
) -> None:
    """Nodes of two releases must agree; who routes takes whatever policy it is given, in its order."""
    assert hash64("log/c1", "node-0") == 0x307823A798875037
    assert "".join(member.id[-1] for member in policy.assign("log/c1", NODES, 5)) == order
    assert policy.assign("log/c1", NODES[::-1], 2) == policy.assign("log/c1", NODES, 5)[:2]
    registry: Any = View()
    router: Router[str] = Router(
        "querynode", registry, policy, lambda member: member.id, VirtualClock(), SeededRandom()
    )
    assert "".join(member.id[-1] for member in router.candidates("log/c1", 2)) == order


# --- 6: membership tests of caches


@examples(60)
@given(
    steps=st.lists(st.tuples(st.integers(0, 5), st.lists(st.integers(0, 6), max_size=4)), max_size=30),
    on_disk=st.booleans(),
)
def test_assumption_06_asking_whether_a_cache_has_something_changes_nothing(
    steps: list[tuple[int, list[int]]], on_disk: bool
) -> None:
    """Neither the order of eviction, nor counts, nor the disk, nor the store: two caches, of which one is asked all the time."""
    asyncio.run(check_membership(steps, on_disk))


async def check_membership(steps: Sequence[tuple[int, list[int]]], on_disk: bool) -> None:
    store = MemoryObjectStore()
    refs = [await stored(store, number) for number in range(7)]
    touched: list[str] = []
    files: dict[str, bytes] = {}

    def write(path: Path, buffer: pa.Buffer) -> None:
        touched.append(f"write {path.name}")
        files[path.name] = bytes(buffer)

    def read(path: Path) -> pa.Buffer:
        touched.append(f"read {path.name}")
        return pa.py_buffer(files[path.name])

    seen = []
    for asks in (False, True):
        touched.clear()
        gets = store.gets
        capacity = (250, 150) if on_disk else (0, 350)
        cache = BlockCache(
            Path("/nowhere/at/all") if on_disk else None, *capacity, store, write_file=write, map_file=read
        )
        history = []
        for wanted, asked in steps:
            if asks:
                before = (cache.stats(), store.gets, list(touched))
                for number in asked:
                    cache.may_contain(refs[number])
                assert (cache.stats(), store.gets, list(touched)) == before
            await cache.get(refs[wanted])
            history.append(cache.stats())
        found = [cache.may_contain(ref) for ref in refs]
        seen.append((history, list(touched), store.gets - gets, found))
        await cache.close()
    assert seen[0] == seen[1]


async def stored(store: MemoryObjectStore, number: int) -> BlockRef:
    block = encode_blob(bytes([number]) * 100)
    await store.put(f"block-{number}", memoryview(block.data))
    return block.ref(f"block-{number}")


# --- 7: embedding within bounds


@pytest.mark.parametrize(
    ("count", "per_call", "at_once"), [(0, 64, 4), (1, 64, 4), (130, 64, 4), (100, 7, 3), (9, 1, 9)]
)
def test_assumption_07_embedding_is_bounded_and_keeps_the_order(count: int, per_call: int, at_once: int) -> None:
    """Calls of bounded size, a bounded number at once, in any order of their ends: each odd call waits for the one after it."""
    calls = -(-count // per_call)
    lock, inside, most, sizes = threading.Lock(), 0, 0, []
    ended = [threading.Event() for _ in range(calls)]

    def embed(texts: list[str]) -> list[list[float]]:
        nonlocal inside, most
        number = int(texts[0]) // per_call
        with lock:
            inside += 1
            most = max(most, inside)
            sizes.append(len(texts))
        if at_once > 1 and number % 2 == 0 and number + 1 < calls:
            assert ended[number + 1].wait(20)
        with lock:
            inside -= 1
        ended[number].set()
        return [[float(text), 1.0] for text in texts]

    limits = GatewayLimits(texts_per_call=per_call, concurrency=at_once)
    vectors = Gateway(CallableEmbedding("f", 2, embed), limits).embed_documents(
        [str(number) for number in range(count)]
    )
    assert vectors[:, 0].tolist() == list(range(count))
    assert most <= at_once
    assert len(sizes) == calls
    assert all(size <= per_call for size in sizes)


# --- 8: dimensions


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("dimension", [1, 3, 31, 127, 385, 768, 1536])
async def test_assumption_08_distances_are_those_of_float64_in_any_dimension(dimension: int, space: str) -> None:
    """Multiples of a register and odd tails, from the tail and from segments, one query and several."""
    random = np.random.default_rng(dimension)
    vectors = random.standard_normal((20, dimension)).astype(np.float32)
    queries = random.standard_normal((3, dimension)).astype(np.float32)
    wide, asked = vectors.astype(np.float64), queries.astype(np.float64)[:, None]
    products, lengths = (asked * wide).sum(axis=2), np.sqrt((asked**2).sum(axis=2) * (wide**2).sum(axis=1))
    expected = {"l2": ((asked - wide) ** 2).sum(axis=2), "ip": 1 - products, "cosine": 1 - products / lengths}[space]
    ops = [put(f"id-{n:02d}", vector.tolist()) for n, vector in enumerate(vectors)]
    answers = []
    for layout in ("tail", "mixed", "merged"):
        async with laid_out(layout, [ops[:9], ops[9:]], dimension=dimension, space=space) as at:
            batch = await at.database.query(at.ref, queries, 20, include=Include(distances=True))
            singles = [await by_cosine(at, query, 20, exact=True) for query in queries]
            distances = np.array(batch.rows.column("distance").to_pylist()).reshape(3, 20)
            np.testing.assert_allclose(distances, np.sort(expected, axis=1), rtol=1e-6, atol=1e-6)
            answers.append((batch.rows.column("id").to_pylist(), distances.tolist()))
            assert [[distance for _, distance in single] for single in singles] == answers[-1][1]
    assert all(answer == answers[0] for answer in answers[1:])


# --- 9: the local disk


def failing(number: int) -> Callable[..., Any]:
    """A file operation that fails."""

    def fail(path: Path, *content: Any) -> Any:
        raise OSError(number, os.strerror(number), str(path))

    return fail


DISKS: dict[str, dict[str, Any]] = {
    "missing": {},
    "a file in its place": {},
    "corrupt": {},
    "cut short": {},
    "read-only": {"write_file": failing(errno.EROFS)},
    "full": {"write_file": failing(errno.ENOSPC)},
    "failing to read": {"map_file": failing(errno.EIO)},
}


@pytest.mark.parametrize("disk", sorted(DISKS))
async def test_assumption_09_a_bad_disk_cache_never_fails_the_service(disk: str, tmp_path: Path) -> None:
    """Whatever is wrong with the directory is a miss: a node starts with it, and answers as without one."""
    directory = tmp_path / "cache" / "of-this-node"
    ops = [put(f"id-{n}", (n,), text=f"text {n}", metadata={"n": n}) for n in range(40)]
    async with laid_out("merged", halves(ops), shards=2) as at:
        if disk != "missing":
            await read_all(at, BlockCache(directory, MIB, 0, at.system.objects))
        for path in list(directory.iterdir()) if directory.exists() else []:
            if disk == "corrupt":
                path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
            if disk == "cut short":
                path.write_bytes(path.read_bytes()[:-1])
            if disk in ("a file in its place", "read-only", "full"):
                path.unlink()
        if disk == "a file in its place":
            directory.rmdir()
            directory.write_bytes(b"")
        cache = BlockCache(directory, MIB, 0, at.system.objects, **DISKS[disk])
        await cache.start()
        for _ in range(2):
            await read_all(at, cache)
        stats = cache.stats()
        assert stats.misses > 0
        assert (stats.degraded > 0) == (disk != "missing")
        assert (stats.corrupt > 0) == (disk in ("corrupt", "cut short"))


async def read_all(at: Laid, cache: BlockCache) -> None:
    """A new node reads everything through the cache."""
    node = another_node(at.system, cache)
    database = another_database(at.system, node=node)
    answer = await database.get(at.ref, include=Include(documents=True, embeddings=True))
    assert sorted(answer.rows.column("document").to_pylist()) == sorted(f"text {n}" for n in range(40))
    near = await database.query(at.ref, np.array([[7.2]], np.float32), 3)
    assert near.rows.column("id").to_pylist() == ["id-7", "id-8", "id-6"]
    await node.close()
    await cache.close()


# --- 10: BM25

LIBRARY: dict[str, str] = {
    "short": "running water",
    "long": "running running running " + "and then some other words about nothing much " * 4,
    "stem": "he runs",
    "other": "water everywhere",
    "more": "nor any drop to drink",
}
SCHEMAS = {
    "default": Schema(),
    "no length": Schema(bm25=Bm25(k1=5.0, b=0.0)),
    "all length": Schema(bm25=Bm25(k1=1.2, b=1.0)),
    "no stems": Schema(analyzer=Analyzer(language="none")),
    "own stop words": Schema(analyzer=Analyzer(stop_words=("running",))),
    "white space": Schema(analyzer=Analyzer(tokenizer="whitespace", language="none", token_length=5)),
}


def bm25(schema: Schema, query: str) -> dict[str, float]:
    """1 − BM25 of each document that has a term of the query, by the formula, over all documents."""
    documents = {key: Counter(analyze_text(text, schema.analyzer)) for key, text in LIBRARY.items()}
    average = sum(terms.total() for terms in documents.values()) / len(documents)
    k1, b = schema.bm25.k1, schema.bm25.b
    found: dict[str, float] = {}
    for term, weight in Counter(analyze_text(query, schema.analyzer)).items():
        having = {key: terms for key, terms in documents.items() if terms[term]}
        idf = np.log1p((len(documents) - len(having) + 0.5) / (len(having) + 0.5))
        for key, terms in having.items():
            share = terms[term] * (k1 + 1) / (terms[term] + k1 * (1 - b + b * terms.total() / average))
            found[key] = found.get(key, 1.0) - weight * idf * share
    return found


@every_layout
@every_sharding
async def test_assumption_10_bm25_belongs_to_the_collection(layout: str, shards: int) -> None:
    """Parameters, language and statistics are those of the collection, not of the client and not of a shard."""
    orders = {}
    for name, schema in SCHEMAS.items():
        ops: list[Op] = [put(key, text=text) for key, text in LIBRARY.items()]
        async with laid_out(layout, halves(ops), shards=shards, schema=schema) as at:
            search = Search(rank=Knn(TextQuery("running water"), DOCUMENT_KEY), limit=10, select=Select(scores=True))
            [answer] = await at.database.search(at.ref, [search])
            ids, scores = (answer.rows.column(column).to_pylist() for column in ("id", "score"))
            expected = bm25(schema, "running water")
            assert dict(zip(ids, scores, strict=True)) == pytest.approx(expected, abs=1e-9)
            assert ids == sorted(expected, key=expected.__getitem__)
            orders[name] = tuple(ids)
    assert len(set(orders.values())) >= 4, orders
