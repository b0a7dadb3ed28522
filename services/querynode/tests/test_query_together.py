"""Reads that are due in the same turn are served in one go, and get what each would have got alone."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from services.querynode.tests.test_query_brief import EVERYTHING, Bench, put
from shoal_core.contracts import Include, QueryRequest
from shoal_core.errors import InvalidArgument, ShoalError
from shoal_core.records import ID
from shoal_index.planner import Ask
from shoal_query import brief
from shoal_query.execute import Search, Selection, search_segments
from shoal_query.nearest import LARGEST_PORTION, NearestRead
from shoal_query.together import Together


class Numbers:
    """Doubles numbers, and notes which came together; no more than ``portion`` at a time."""

    def __init__(self, portion: int = 12, fails: Exception | None = None) -> None:
        self.served: list[list[int]] = []
        self.portion = portion
        self.fails = fails
        self.together: Together[int, int] = Together(12, lambda items: len(items) <= self.portion, self.serve)

    def serve(self, items: Sequence[int]) -> list[int]:
        self.served.append(list(items))
        if self.fails is not None:
            raise self.fails
        return [2 * item for item in items]

    async def ask(self, *numbers: int) -> list[int]:
        """Under one key for odd ones, and one for even ones."""
        return await asyncio.gather(*(self.together.ask(number % 2, number) for number in numbers))


async def test_what_is_asked_at_once_is_served_in_one_go() -> None:
    numbers = Numbers()
    assert await numbers.ask(*range(7)) == [0, 2, 4, 6, 8, 10, 12]
    assert numbers.served == [[0, 2, 4, 6], [1, 3, 5]]
    assert await numbers.ask(8) == [16]
    assert numbers.served[2:] == [[8]]


@pytest.mark.parametrize("portion", [0, 1, 3, 9, 100])
async def test_what_is_too_much_is_served_in_portions_one_in_a_turn(portion: int) -> None:
    numbers = Numbers(portion)
    asked = asyncio.ensure_future(numbers.ask(*range(0, 40, 2)))
    served = []
    while not asked.done():
        served.append(len(numbers.served))
        await asyncio.sleep(0)
    assert await asked == list(range(0, 80, 4))
    assert [number for group in numbers.served for number in group] == list(range(0, 40, 2))
    assert max(map(len, numbers.served)) <= min(max(portion, 1), 12)
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(served))


async def test_a_failure_is_its_portions_own() -> None:
    numbers = Numbers(fails=InvalidArgument("no"))
    asks = [asyncio.create_task(numbers.together.ask(0, number)) for number in range(3)]
    found = await asyncio.gather(*asks, return_exceptions=True)
    assert [type(error) for error in found] == [InvalidArgument] * 3
    assert len(numbers.served) == 1
    numbers.fails = None
    assert await numbers.ask(1) == [2]


async def test_a_wrong_number_of_answers_is_a_failure() -> None:
    together: Together[int, int] = Together(9, lambda items: True, lambda items: [1])
    found = await asyncio.gather(*(together.ask(0, number) for number in range(3)), return_exceptions=True)
    assert [type(error) for error in found] == [ValueError] * 3


async def test_a_failure_to_tell_what_fits_is_a_failure_too() -> None:
    def fails(items: Sequence[int]) -> bool:
        raise InvalidArgument("no")

    together: Together[int, int] = Together(2, fails, lambda items: [2 * item for item in items])
    found = await asyncio.gather(*(together.ask(0, number) for number in range(3)), return_exceptions=True)
    assert [type(each) for each in found] == [InvalidArgument, InvalidArgument, int]


async def test_nobody_is_served_who_has_gone() -> None:
    """The first of the group too, and between portions."""
    numbers = Numbers(portion=1)
    asks = [asyncio.create_task(numbers.together.ask(0, number)) for number in range(4)]
    await asyncio.sleep(0)
    asks[0].cancel()
    await asyncio.sleep(0)
    assert numbers.served == [[1]]
    asks[2].cancel()
    found = await asyncio.gather(*asks, return_exceptions=True)
    assert [isinstance(found[0], asyncio.CancelledError), found[1], isinstance(found[2], asyncio.CancelledError)] == [
        True,
        2,
        True,
    ]
    assert numbers.served == [[1], [3]]
    gone = asyncio.create_task(numbers.together.ask(0, 5))
    await asyncio.sleep(0)
    gone.cancel()
    assert await numbers.ask(7) == [14]
    assert numbers.served == [[1], [3], [7]]


class Searches:
    """Counts searches of all segments, and the queries of each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queries: list[int] = []
        self.threads: set[int] = set()
        search = search_segments

        def noted(snapshot: Any, selection: Any, wanted: Any) -> Any:
            self.queries.append(len(wanted.vectors))
            self.threads.add(wanted.threads)
            return search(snapshot, selection, wanted)

        monkeypatch.setattr("shoal_query.nearest.search_segments", noted)


def answer_of(answer: Any) -> Any:
    return answer.rows.to_pydict(), answer.row_counts.tolist(), answer.served_at, answer.recall


def request_at(bench: Bench, values: Sequence[float], k: int = 3, include: Include = EVERYTHING) -> QueryRequest:
    vectors = np.array([[value, 0.25] for value in values], dtype=np.float32)
    return QueryRequest(bench.target, vectors, k, include=include)


async def test_reads_that_shared_a_catch_up_are_one_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """With embeddings, tail and deletions; of one query and of several, of which each gets its own rows."""
    bench = await Bench().start()
    await bench.write(put("tail", 4.5), ("delete", "r7", None, None, None, None))
    include = Include(documents=True, metadatas=True, embeddings=True, distances=True)
    requests = [request_at(bench, [float(n), n / 2][: 1 + n % 2], include=include) for n in range(20)]
    await bench.node.query(requests[0])
    alone = [answer_of(await bench.node.query(request)) for request in requests]
    searches = Searches(monkeypatch)
    found = await asyncio.gather(*(bench.node.query(request) for request in requests))
    assert [answer_of(answer) for answer in found] == alone
    assert sum(searches.queries) == 30
    assert max(searches.queries) >= LARGEST_PORTION
    assert searches.threads == {1}, "none is started on the event loop"
    assert len(searches.queries) <= 20 / LARGEST_PORTION + 3
    for answer in found:
        assert answer.rows.num_rows == answer.row_counts.sum()


async def test_reads_that_want_something_else_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = await Bench().start()
    few = Include(distances=True)
    requests = [request_at(bench, [1.0], k, include) for k in (2, 3) for include in (EVERYTHING, few) for _ in range(3)]
    alone = [answer_of(await bench.node.query(request)) for request in requests]
    searches = Searches(monkeypatch)
    found = await asyncio.gather(*(bench.node.query(request) for request in requests))
    assert [answer_of(answer) for answer in found] == alone
    assert sum(searches.queries) == 12
    assert 4 <= len(searches.queries) < 12


async def test_many_are_served_in_portions_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = await Bench().start()
    await bench.node.query(request_at(bench, [0.0], 10))
    before = bench.executor.submitted
    searches = Searches(monkeypatch)
    found = await asyncio.gather(*(bench.node.query(request_at(bench, [float(n)], 10)) for n in range(64)))
    assert [answer.rows.num_rows for answer in found] == [10] * 64
    assert bench.executor.submitted == before
    assert searches.queries == [8] * 8


async def test_reads_that_cease_to_be_brief_go_to_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = await Bench().start()
    before = bench.executor.submitted
    asked = [asyncio.create_task(bench.node.query(request_at(bench, [float(n)]))) for n in range(6)]
    while not bench.node._together._groups:
        await asyncio.sleep(0)
    monkeypatch.setattr(type(bench.shard), "unread_bytes", 1)
    answers = await asyncio.gather(*asked)
    assert [answer.rows.column(ID).to_pylist()[0] for answer in answers] == [f"r{n}" for n in range(6)]
    assert bench.executor.submitted > before


@pytest.mark.parametrize(("times", "paused"), [(3.9, False), (4.1, True)])
async def test_together_they_may_take_some_times_as_long_as_one(times: float, paused: bool) -> None:
    bench = await Bench().start()
    readings = iter([(0.0, 0), (brief.LONGEST_S * times, 0)])
    bench.shard.brief.used = lambda: next(readings)
    await asyncio.gather(*(bench.node.query(request_at(bench, [float(n)])) for n in range(8)))
    bench.shard.brief.used = lambda: (0.0, 0)
    assert (await bench.handed_over(request_at(bench, [1.0])) > 0) is paused


async def test_snapshots_and_wishes_are_not_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads that go on at once, though of different offsets or recalls, or with other efforts."""
    bench = await Bench().start()
    await bench.write(put("early", 1.25))
    await bench.node.query(request_at(bench, [0.0]))
    view = bench.shard.view
    early = view.newest()
    await bench.write(put("late", 1.25))
    await bench.node.query(request_at(bench, [0.0]))
    late = view.newest()
    request = request_at(bench, [1.25])
    searches = Searches(monkeypatch)
    bench.shard.readers += 2  # as if they had waited for the same catch-up

    def read(snapshot: Any, wanted: QueryRequest) -> Any:
        search = Search(wanted.vectors, Ask(wanted.k, wanted.recall or 0.95, wanted.ef, wanted.exact), 2)
        reading = bench.node._begin(bench.shard)
        services, together = bench.node.services, bench.node._together
        return NearestRead(services, bench.shard, wanted, Selection(), search, reading, 160, together).at(snapshot)

    wishes = [replace(request, exact=True), replace(request, recall=0.5), replace(request, ef=7), request]
    asked = [read(snapshot, wish) for snapshot in (early, late, early) for wish in wishes]
    found = [one.answer for one in await asyncio.gather(*asked)]
    assert searches.queries == [2, 2, 2, 2, 1, 1, 1, 1]
    names = [sorted(answer.rows.column(ID).to_pylist()[:2]) for answer in found]
    assert names == [["early", "r1"]] * 4 + [["early", "late"]] * 4 + [["early", "r1"]] * 4
    assert [answer.served_at.offset for answer in found] == [21] * 4 + [22] * 4 + [21] * 4


async def test_each_has_the_columns_that_it_would_have_alone() -> None:
    """A row of the tail has metadata that rows of the segment have not."""
    bench = await Bench().start()
    await bench.write(("upsert", "tail", (40.0, 0.0), "text", None, {"extra": 1}))
    requests = [request_at(bench, [value], 1) for value in (40.0, 3.0, 5.0)]
    await bench.node.query(requests[0])
    alone = [await bench.node.query(request) for request in requests]
    found = await asyncio.gather(*(bench.node.query(request) for request in requests))
    assert [answer.rows.schema for answer in found] == [answer.rows.schema for answer in alone]
    assert [answer.rows.nbytes for answer in found] == [answer.rows.nbytes for answer in alone]


async def test_a_group_is_in_the_traces_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    spans: list[tuple[str, int, Any]] = []

    @contextmanager
    def noted(name: str, askers: Sequence[Any], attributes: Any = None) -> Iterator[None]:
        spans.append((name, len(askers), attributes))
        yield

    monkeypatch.setattr("shoal_query.nearest.shared_span", noted)
    bench = await Bench().start()
    await asyncio.gather(*(bench.node.query(request_at(bench, [float(n)])) for n in range(8)))
    assert spans == [("query together", 8, {"shoal.reads": 8})]


async def test_a_check_of_live_queries_knows_whose_hits_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hits of a group are the first one's, together with the vectors of all."""
    checked: list[tuple[int, int]] = []
    bench = await Bench().start()

    def noted(self: Any, shard: Any, found: Any, selection: Any) -> None:
        [hit] = found.hits
        checked.append((len(found.vectors), len(hit.near.counts)))

    monkeypatch.setattr("shoal_query.node.Node._check_now_and_then", noted)
    monkeypatch.setattr("shoal_index.planner.SegmentPlan.approximate", property(lambda plan: True))
    await asyncio.gather(*(bench.node.query(request_at(bench, [float(n)])) for n in range(8)))
    assert all(vectors == hits for vectors, hits in checked)
    assert sum(vectors for vectors, _ in checked) == 8


async def test_readers_are_counted_to_the_end() -> None:
    bench = await Bench().start()
    wrong = QueryRequest(bench.target, np.zeros((1, 5), dtype=np.float32), 3)
    asked = [bench.node.query(wrong if n % 3 == 0 else request_at(bench, [1.0])) for n in range(9)]
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(each, ShoalError) for each in found) == 3
    assert bench.shard.readers == 0
