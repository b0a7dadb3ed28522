"""The read index: who may share a statement, and the committed heads of a process that alone appends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from services.logservice.tests.log_support import state_of
from shoal_log.decide import LogState
from shoal_log.heads import CommittedHeads, KnownHeads, join
from shoal_log.read_index import ReadIndexBatcher


def batcher(*, collections: int = 10, in_flight: int = 1) -> ReadIndexBatcher[str]:
    return ReadIndexBatcher(collections=collections, in_flight=in_flight)


def test_questions_share_a_statement_until_it_is_sent_and_never_after() -> None:
    """``r1`` and ``r2`` ask before the statement is sent; an append commits; ``r3`` asks while it is in flight."""
    index = batcher()
    index.ask("c", "r1")
    assert index.reserve()
    index.ask("c", "r2")
    index.ask("d", "r2")
    sent = index.send()
    assert sent.waiters == {"c": ["r1", "r2"], "d": ["r2"]}
    index.ask("c", "r3")
    assert sent.waiters["c"] == ["r1", "r2"]
    assert not index.reserve()  # one in flight
    index.answered()
    assert index.reserve()
    assert index.send().waiters == {"c": ["r3"]}


def test_statements_are_bounded_in_collections_and_number() -> None:
    index = batcher(collections=2, in_flight=2)
    for name in "abcde":
        index.ask(name, name)
    assert index.reserve()
    assert list(index.send().waiters) == ["a", "b"]
    assert index.reserve()
    assert list(index.send().waiters) == ["c", "d"]
    assert not index.reserve()
    index.answered()
    assert index.reserve()
    assert list(index.send().waiters) == ["e"]


def test_nothing_to_ask_is_no_statement() -> None:
    assert not batcher().reserve()
    index = batcher(in_flight=2)
    index.ask("c", "r")
    assert index.reserve()
    assert index.reserve()
    assert index.send().waiters
    assert not index.send().waiters  # the other one took it


# --- joining ---------------------------------------------------------------------------------------------------------


def test_observations_join_in_any_order() -> None:
    seen = [
        state_of(),
        state_of(head_offset=5, total_bytes=50, set_hash=1, dimension=3),
        state_of(head_offset=3, version=1, compacted_offset=2),
        state_of(epoch=2, trim_floor=2),
    ]
    newest = state_of(
        head_offset=5, total_bytes=50, set_hash=1, dimension=3, version=1, compacted_offset=2, epoch=2, trim_floor=2
    )
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]):
        known = KnownHeads(10)
        for place in order:
            state = known.learn(seen[place])
        assert state == newest
    assert not join(state_of(), state_of(alive=False)).alive


def test_known_heads_are_bounded_and_start_again_with_another_incarnation() -> None:
    known = KnownHeads(2)
    for name in ("a", "b"):
        known.learn(state_of(collection_id=name, head_offset=9))
    known.get("a")
    known.learn(state_of(collection_id="c"))
    assert known.get("b") is None
    assert known.learn(state_of(collection_id="a", head_offset=1, incarnation="other")).head_offset == 1
    known.forget("a")
    assert known.get("a") is None


# --- committed heads -------------------------------------------------------------------------------------------------


class Database:
    """Answers fills when told to, with what it held when the fill was asked."""

    def __init__(self, state: LogState) -> None:
        self.state = state
        self.fills = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def fill(self, _collection_id: str) -> LogState:
        self.fills += 1
        state = self.state
        await self.gate.wait()
        return state


async def started(*awaitables: Awaitable[LogState]) -> list[asyncio.Future[LogState]]:
    futures: list[asyncio.Future[LogState]] = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    await asyncio.sleep(0)
    return futures


async def test_a_collection_is_read_from_the_database_once() -> None:
    database = Database(state_of(head_offset=4))
    heads = CommittedHeads(database.fill, 10)
    assert (await heads.state("c")).head_offset == 4
    heads.committed(state_of(head_offset=6, dimension=2))
    heads.published("c", 3, 5)
    state = await heads.state("c")
    assert (state.head_offset, state.dimension, state.version, state.compacted_offset) == (6, 2, 3, 5)
    assert database.fills == 1


@pytest.mark.parametrize(
    ("happens", "expected"),
    [
        (lambda heads: heads.committed(state_of(head_offset=6)), (6, 0, 0)),
        (lambda heads: heads.published("c", 1, 4), (4, 1, 4)),
        (lambda heads: (heads.published("c", 2, 4), heads.committed(state_of(head_offset=5, version=1))), (5, 2, 4)),
        (lambda heads: heads.committed(state_of(head_offset=2)), (4, 0, 0)),
        (lambda heads: heads.published("c", 1, 7), (7, 1, 7)),
    ],
)
async def test_what_happens_during_a_fill_is_not_lost(
    happens: Callable[[CommittedHeads], object], expected: tuple[int, int, int]
) -> None:
    database = Database(state_of(head_offset=4))
    heads = CommittedHeads(database.fill, 10)
    database.gate.clear()
    readers = await started(heads.state("c"), heads.state("c"))
    happens(heads)
    database.gate.set()
    for state in [*(await asyncio.gather(*readers)), await heads.state("c")]:
        assert (state.head_offset, state.version, state.compacted_offset) == expected


async def test_a_change_of_the_catalog_during_a_fill_makes_it_start_again() -> None:
    database = Database(state_of())
    heads = CommittedHeads(database.fill, 10)
    database.gate.clear()
    (reader,) = await started(heads.state("c"))
    database.state = state_of(epoch=2)
    heads.catalog_changed("c")
    database.gate.set()
    assert (await reader).epoch == 2
    assert (await heads.state("c")).epoch == 2
    assert database.fills == 2


async def test_fills_of_one_collection_are_told_apart() -> None:
    """The second ends first; what changes then must reach the first, not the one that has ended."""
    gates = [asyncio.Event(), asyncio.Event()]
    asked = iter(gates)
    answers = {0: state_of(), 1: state_of(epoch=2)}

    async def fill(_collection_id: str) -> LogState:
        gate = next(asked, None)
        if gate is None:
            return answers[1]
        await gate.wait()
        return answers[0]

    heads = CommittedHeads(fill, 10)
    first, second = await started(heads.state("c"), heads.state("c"))
    gates[1].set()
    assert (await second).epoch == 1
    heads.catalog_changed("c")
    gates[0].set()
    assert (await first).epoch == 2
    assert (await heads.state("c")).epoch == 2


async def test_a_commit_that_is_older_than_a_change_of_the_catalog_does_not_bring_the_old_back() -> None:
    database = Database(state_of())
    heads = CommittedHeads(database.fill, 10)
    await heads.state("c")
    database.state = state_of(epoch=2, head_offset=1)
    heads.catalog_changed("c")
    heads.committed(state_of(epoch=1, head_offset=1))
    assert (await heads.state("c")).epoch == 2
    heads.committed(state_of(epoch=1, head_offset=1))
    assert (await heads.state("c")).epoch == 2


async def test_a_deleted_collection_is_not_remembered() -> None:
    database = Database(state_of(alive=False))
    heads = CommittedHeads(database.fill, 10)
    assert not (await heads.state("c")).alive
    assert not (await heads.state("c")).alive
    assert database.fills == 2


async def test_after_trimming_every_collection_is_read_again() -> None:
    database = Database(state_of())
    heads = CommittedHeads(database.fill, 10)
    await heads.state("c")
    database.state = state_of(trim_floor=3, head_offset=4)
    heads.everything_changed()
    assert (await heads.state("c")).trim_floor == 3
