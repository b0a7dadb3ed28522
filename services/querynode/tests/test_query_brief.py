"""Brief searches run on the event loop: which these are, that answers are the same, and what sends them to threads again."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from shoal_core.consistency import Consistency, ReadLevel, as_of
from shoal_core.contracts import CollectionRef, Include, QueryRequest, Target
from shoal_core.errors import DimensionMismatch
from shoal_core.filters import parse_where
from shoal_core.records import ID
from shoal_query import brief
from shoal_query.execute import DISTANCE
from shoal_query.node import Node, NodeSettings
from shoal_testing.direct import DirectSystem, InlineExecutor
from shoal_testing.strategies import Op, from_row_table, to_operation_batch

EVERYTHING = Include(documents=True, metadatas=True, embeddings=True, distances=True, uris=True)
INDEX_ONLY = Consistency(ReadLevel.INDEX_ONLY)


def put(name: str, value: float, document: str | None = None) -> Op:
    return ("upsert", name, (value, 0.0), document, None, None)


class CountingExecutor(InlineExecutor):
    """Counts what was handed over."""

    def __init__(self) -> None:
        self.submitted = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.submitted += 1
        return super().submit(fn, *args, **kwargs)


class Bench:
    """A collection of 20 points on a line, compacted, and a node that has searched it once."""

    def __init__(self) -> None:
        self.system = DirectSystem()
        self.executor = CountingExecutor()
        self.ref: CollectionRef
        self.target: Target

    async def start(self, **settings: Any) -> Bench:
        self.ref = await self.system.create()
        self.target = Target(self.ref.id, 1, "l2", 0, 1)
        await self.write(*(put(f"r{number}", float(number), "text") for number in range(20)))
        await self.system.compact(self.ref)
        self.node = self.new_node(**settings)
        await self.node.query(self.request())
        return self

    def new_node(self, **settings: Any) -> Node:
        return Node("node", replace(self.system.node.services, executor=self.executor), NodeSettings(**settings))

    @property
    def shard(self) -> Any:
        [shard] = self.node.loaded.shards.values()
        return shard

    def request(self, k: int = 3, queries: int = 1, **more: Any) -> QueryRequest:
        vectors = np.array([[float(number), 0.0] for number in range(queries)], dtype=np.float32)
        return QueryRequest(self.target, vectors, k, **{"include": EVERYTHING} | more)

    async def write(self, *operations: Op) -> None:
        await self.system.append(self.ref, [to_operation_batch(list(operations), 2)])

    async def handed_over(self, request: QueryRequest) -> int:
        """How often work was handed to a thread for it."""
        before = self.executor.submitted
        await self.node.query(request)
        return self.executor.submitted - before


async def test_a_brief_search_needs_no_thread() -> None:
    bench = await Bench().start()
    assert await bench.handed_over(bench.request()) == 0
    answer = await bench.node.query(bench.request())
    assert answer.rows.column(ID).to_pylist() == ["r0", "r1", "r2"]
    assert answer.rows.column(DISTANCE).to_pylist() == [0.0, 1.0, 4.0]
    assert bench.node.services.queue_time.recent_mean_ms() == 0.0


async def test_the_first_search_of_a_segment_goes_to_a_thread() -> None:
    """It makes what searches need of every row."""
    bench = await Bench().start()
    bench.node = bench.new_node()
    await bench.node.query(replace(bench.request(), k=0))
    assert await bench.handed_over(bench.request()) > 0
    assert await bench.handed_over(bench.request()) == 0


@pytest.mark.parametrize(
    "other",
    [
        lambda bench: bench.request(where=parse_where({"key": {"$gte": 1}})),
        lambda bench: bench.request(ids=("r1",)),
        lambda bench: bench.request(explain=True),
        lambda bench: bench.request(k=101),
        lambda bench: bench.request(k=20, queries=6),
    ],
    ids=["filter", "ids", "explained", "many rows", "many rows of several queries"],
)
async def test_what_is_not_reckoned_goes_to_a_thread(other: Callable[[Bench], QueryRequest]) -> None:
    bench = await Bench().start()
    assert await bench.handed_over(other(bench)) > 0


async def test_none_is_brief_where_the_settings_say_so() -> None:
    bench = await Bench().start(brief_search_us=0)
    assert await bench.handed_over(bench.request()) > 0


async def test_a_long_tail_goes_to_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the search was brief before the tail was known."""
    bench = await Bench().start()
    monkeypatch.setattr("shoal_query.brief.costs.scan_row", lambda dimension, *, shared, share=1.0: 1_000.0)
    few = [put(f"t{number}", float(number)) for number in range(40)]
    await bench.write(*few)
    assert await bench.handed_over(bench.request()) == 1, "only the fold"
    assert await bench.handed_over(bench.request()) == 0
    await bench.write(*few)
    assert await bench.handed_over(bench.request()) == 2, "the fold, and the search of what came with it"


async def test_deletions_count_as_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = await Bench().start()
    monkeypatch.setattr("shoal_query.brief.costs.scan_row", lambda dimension, *, shared, share=1.0: 5_000.0)
    await bench.write(*(("delete", f"r{number}", None, None, None, None) for number in range(15)))
    await bench.node.query(bench.request())
    assert await bench.handed_over(bench.request()) > 0


async def test_segments_of_which_little_is_live_go_to_a_thread() -> None:
    bench = await Bench().start()
    await bench.write(*(("delete", f"r{number}", None, None, None, None) for number in range(15)))
    await bench.system.compact(bench.ref)
    await bench.node.query(bench.request())
    assert await bench.handed_over(bench.request()) > 0


async def test_large_records_go_to_a_thread() -> None:
    """Whether in the tail or in a segment, and however well they are stored."""
    bench = await Bench().start()
    await bench.write(put("large", 1.0, "x" * 1_000_000))
    await bench.node.query(bench.request())
    assert await bench.handed_over(bench.request()) > 0
    await bench.system.compact(bench.ref)
    bench.node = bench.new_node()
    await bench.node.query(bench.request())
    assert await bench.handed_over(bench.request()) > 0
    bench.node = bench.new_node()
    await bench.node.query(bench.request(include=Include(distances=True)))
    assert await bench.handed_over(bench.request(include=Include(distances=True))) == 0, "none of it is fetched"


async def test_vectors_that_may_be_on_disk_go_to_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = await Bench().start()
    monkeypatch.setattr(type(bench.shard), "unread_bytes", 1)
    assert await bench.handed_over(bench.request()) > 0
    monkeypatch.undo()
    bench.node.loaded.crowded = True
    assert await bench.handed_over(bench.request()) > 0


async def test_earlier_versions_are_searched_in_a_thread() -> None:
    bench = await Bench().start()
    await bench.write(put("later", 1.0))
    await bench.system.compact(bench.ref)
    bench.node = bench.new_node()
    for _ in range(2):
        await bench.node.query(bench.request())
        await bench.node.query(bench.request(consistency=as_of(20)))
    assert await bench.handed_over(bench.request(consistency=as_of(20))) == 1
    assert await bench.handed_over(bench.request(consistency=as_of(21))) == 0


@pytest.mark.parametrize("used", [(brief.LONGEST_S * 1.01, 0), (0.0, 1)], ids=["processor time", "a disk"])
async def test_what_took_longer_than_reckoned_sends_searches_to_threads_for_a_while(used: tuple[float, int]) -> None:
    bench = await Bench().start()
    readings = iter([(0.0, 0), used])
    bench.shard.brief.used = lambda: next(readings)
    assert await bench.handed_over(bench.request()) == 0
    bench.shard.brief.used = lambda: (0.0, 0)
    assert await bench.handed_over(bench.request()) > 0
    await bench.system.clock.advance(brief.PAUSE_S + 0.1)
    assert await bench.handed_over(bench.request()) == 0


async def test_a_longer_search_needs_one_thread_where_nothing_is_waited_for() -> None:
    bench = await Bench().start(brief_search_us=0)
    assert await bench.handed_over(bench.request(consistency=INDEX_ONLY)) == 1


async def test_the_dimension_may_be_known_only_with_the_tail() -> None:
    system = DirectSystem()
    ref = await system.create()
    target = Target(ref.id, 1, "l2", 0, 1)
    await system.append(ref, [to_operation_batch([put("a", 1.0)], 2)])
    for settings in (NodeSettings(), NodeSettings(brief_search_us=0)):
        node = Node("node", system.node.services, settings)
        with pytest.raises(DimensionMismatch):
            await node.query(QueryRequest(target, np.zeros((1, 3), np.float32), 1))


async def test_answers_are_the_same_as_through_threads() -> None:
    """At every state of a collection that is written, overwritten, emptied in part and compacted now and then."""
    bench = await Bench().start()
    through_threads = bench.new_node(brief_search_us=0)
    random = np.random.default_rng(7)
    at_once = 0
    for step in range(60):
        name, value = f"r{random.integers(30)}", float(random.integers(25))
        await bench.write(put(name, value) if step % 3 else ("delete", name, None, None, None, None))
        if step % 15 == 14:
            await bench.system.compact(bench.ref, merge=step % 30 == 29)
        request = bench.request(k=int(random.integers(1, 12)), queries=int(random.integers(1, 4)))
        await bench.node.query(request)  # folds
        at_once += not await bench.handed_over(request)
        found, true = [await node.query(request) for node in (bench.node, through_threads)]
        assert from_row_table(found.rows.drop_columns([DISTANCE])) == from_row_table(true.rows.drop_columns([DISTANCE]))
        assert found.rows.column(DISTANCE).to_pylist() == true.rows.column(DISTANCE).to_pylist()
        assert found.row_counts.tolist() == true.row_counts.tolist()
        assert (found.served_at.offset, found.recall) == (true.served_at.offset, true.recall)
    assert at_once > 30, f"{at_once} of 60"
