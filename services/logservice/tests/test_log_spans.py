"""One transaction for many appends, one statement for many read indexes: every caller's trace finds it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.logservice.tests.log_support import World, request_of
from shoal_log.lag import LogLag
from shoal_testing.spans import RecordedSpans, id_of, linked_from, parent_of

pytestmark = pytest.mark.integration


@pytest.fixture
async def world(fresh_database: str) -> AsyncIterator[World]:
    world = await World.create(fresh_database)
    yield world
    await world.close()


async def test_a_group_is_one_callers_and_linked_to_the_others(world: World, spans: RecordedSpans) -> None:
    node, collection = await world.node(), await world.collection()

    async def append(name: str) -> None:
        with spans.tracer.start_as_current_span(name):
            await node.append(request_of(collection, [name]))

    async with world.holding(collection):
        first = asyncio.create_task(append("a"))
        while not spans.named("postgres BEGIN"):
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(append(name)) for name in "bcd"]  # they wait for the transaction under way
        await asyncio.sleep(0.01)
    await asyncio.gather(first, *others)
    a, b, c, d = (spans.one(name) for name in "abcd")
    alone, shared = spans.named("log commit")
    assert (parent_of(alone), linked_from(alone)) == (id_of(a), set())
    assert (parent_of(shared), linked_from(shared)) == (id_of(b), {id_of(c), id_of(d)})
    assert linked_from(c) == linked_from(d) == {id_of(shared)}
    commits = [parent_of(span) for span in spans.named("postgres COMMIT")]
    assert commits == [id_of(alone), id_of(shared)]
    assert (shared.attributes or {})["shoal.log.appends"] == 3


async def test_a_group_after_an_unrecorded_one_is_not_the_earlier_callers(world: World, spans: RecordedSpans) -> None:
    """The task that commits goes on from group to group: a caller's context must not stay with it."""
    node, collection = await world.node(), await world.collection()

    async def recorded() -> None:
        with spans.tracer.start_as_current_span("recorded"):
            await node.append(request_of(collection, ["a"]))

    async with world.holding(collection):
        first = asyncio.create_task(recorded())
        while not spans.named("postgres BEGIN"):
            await asyncio.sleep(0.001)
        second = asyncio.create_task(node.append(request_of(collection, ["b"])))
        await asyncio.sleep(0.01)
    await asyncio.gather(first, second)
    assert node.counters.groups == 2
    assert parent_of(spans.one("postgres COMMIT")) == id_of(spans.one("log commit"))


async def test_read_indexes_of_one_statement_are_linked(world: World, spans: RecordedSpans) -> None:
    node, collection = await world.node(), await world.collection()

    async def ask(name: str) -> None:
        with spans.tracer.start_as_current_span(name):
            await node.read_index(collection, 1)

    await asyncio.gather(*(ask(name) for name in "abc"))
    shared = spans.named("log read index")
    reached = {parent_of(span) for span in shared} | {asker for span in shared for asker in linked_from(span)}
    assert reached == {id_of(spans.one(name)) for name in "abc"}
    statements = [parent_of(span) for span in spans.named("postgres SELECT")]
    # Besides them, each new session is asked how durable it is.
    assert [parent for parent in statements if parent in {id_of(span) for span in shared}] == [id_of(s) for s in shared]


async def test_the_lag_is_that_of_all_collections(world: World) -> None:
    node, one, other = await world.node(), await world.collection(), await world.collection()
    assert await node.lag() == LogLag(0, 0, 0, 0)
    await node.append(request_of(one, ["a", "b", "c"]))
    await node.append(request_of(other, ["a"]))
    lag = await node.lag()
    assert (lag.collections, lag.records, lag.max_records) == (2, 4, 3)
    assert lag.max_age_ms >= 0
    await world.publish(one)
    assert (await node.lag()).records == 1
    await world.delete(other)
    assert await node.lag() == LogLag(0, 0, 0, 0)
