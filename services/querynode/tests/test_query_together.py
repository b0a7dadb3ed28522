"""Reads that are due in the same turn are served in one go, and get what each would have got alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from services.querynode.tests.test_query_brief import EVERYTHING, Bench, put
from shoal_core.contracts import Include, QueryRequest
from shoal_core.errors import InvalidArgument, ShoalError
from shoal_query.execute import search_segments
from shoal_query.together import LARGEST_GROUP, Together

Numbers = Together[int, int]


class Server:
    """Doubles numbers, and notes which came together. ``fails``: with what instead."""

    def __init__(self, fails: BaseException | None = None) -> None:
        self.served: list[list[int]] = []
        self.fails = fails
        self.going_on = asyncio.Event()
        self.going_on.set()

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.served.append(list(items))
        await self.going_on.wait()
        if self.fails is not None:
            raise self.fails
        return [2 * item for item in items]


async def test_what_is_asked_in_one_turn_is_served_in_one_go() -> None:
    together, server = Numbers(), Server()
    found = await asyncio.gather(*(together.ask(number % 2, number, server) for number in range(7)))
    assert found == [0, 2, 4, 6, 8, 10, 12]
    assert server.served == [[0, 2, 4, 6], [1, 3, 5]]
    assert await together.ask(0, 8, server) == 16
    assert server.served[2:] == [[8]]


async def test_groups_have_an_end() -> None:
    together, server = Numbers(), Server()
    count = 2 * LARGEST_GROUP + 3
    assert await asyncio.gather(*(together.ask(0, number, server) for number in range(count))) == [
        2 * number for number in range(count)
    ]
    assert [len(group) for group in server.served] == [LARGEST_GROUP, LARGEST_GROUP, 3]


async def test_a_failure_is_everybodys() -> None:
    together, server = Numbers(), Server(InvalidArgument("no"))
    found = await asyncio.gather(*(together.ask(0, number, server) for number in range(3)), return_exceptions=True)
    assert [type(error) for error in found] == [InvalidArgument] * 3
    assert len(server.served) == 1


async def test_who_is_cancelled_takes_nobody_along() -> None:
    """Before the group is served, the first of it too, and meanwhile."""
    for turns in (1, 3):
        together, server = Numbers(), Server()
        server.going_on.clear()
        asks = [asyncio.create_task(together.ask(0, number, server)) for number in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        asks[0].cancel()
        await asyncio.sleep(0)
        server.going_on.set()
        found = await asyncio.gather(*asks, return_exceptions=True)
        assert [isinstance(found[0], asyncio.CancelledError), *found[1:]] == [True, 2, 4]


async def test_nobody_is_served_who_has_gone() -> None:
    together, server = Numbers(), Server()
    asks = [asyncio.create_task(together.ask(0, number, server)) for number in range(3)]
    await asyncio.sleep(0)
    for ask in asks:
        ask.cancel()
    await asyncio.gather(*asks, return_exceptions=True)
    assert await together.ask(0, 5, server) == 10
    assert server.served == [[5]]


class Searches:
    """Counts searches of all segments, and the queries of each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queries: list[int] = []
        search = search_segments

        def noted(snapshot: Any, selection: Any, wanted: Any) -> Any:
            self.queries.append(len(wanted.vectors))
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
    assert len(searches.queries) <= 3
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


async def test_many_brief_ones_together_go_to_a_thread() -> None:
    bench = await Bench().start()
    await bench.node.query(request_at(bench, [0.0], 10))
    before = bench.executor.submitted
    found = await asyncio.gather(*(bench.node.query(request_at(bench, [float(n)], 10)) for n in range(40)))
    assert [answer.rows.num_rows for answer in found] == [10] * 40
    assert 0 < bench.executor.submitted - before <= 3, "one for all that are due together"


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
