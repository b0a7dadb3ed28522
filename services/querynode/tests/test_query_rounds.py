"""Rounds: shared answers that are never older than the ask."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from shoal_core.errors import Unavailable
from shoal_query.rounds import Rounds
from shoal_testing.schedules import Turns, run_quietly, settle


class Server:
    """A head that grows. Its answer is as old as it may be: the head when the request was sent."""

    def __init__(self, seed: int) -> None:
        self.head = 0
        self.turns = Turns(seed)
        self.at_once = 0
        self.most_at_once = 0

    async def send(self) -> int:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        head = self.head
        await self.turns()
        self.at_once -= 1
        return head


class Joining(Rounds[int]):
    """What `Rounds` must not be: an ask takes the answer of a request that is under way."""

    async def ask(self) -> int:
        if self._under_way is not None and not self._under_way.done():
            return await asyncio.shield(self._under_way)
        return await super().ask()


async def _play(seed: int, make: Callable[[Server], Rounds[int]]) -> tuple[Server, Rounds[int]]:
    """Writers and askers in a random order; asserts that no ask misses a write acknowledged before it."""
    server = Server(seed)
    rounds = make(server)
    chance = random.Random(seed)
    turns = Turns(seed + 1)

    async def write() -> None:
        await turns()
        server.head += 1

    async def ask() -> None:
        await turns()
        acknowledged = server.head
        assert await rounds.ask() >= acknowledged

    await asyncio.gather(*(write() if chance.random() < 0.5 else ask() for _ in range(60)))
    return server, rounds


@pytest.mark.parametrize("seed", range(20))
def test_an_ask_never_takes_an_answer_to_an_older_request(seed: int) -> None:
    server, rounds = run_quietly(_play(seed, lambda server: Rounds(server.send)))
    assert server.most_at_once == 1
    assert rounds.sent < 20, "asks share"


def test_joining_a_request_under_way_would_be_noticed() -> None:
    def play_all() -> None:
        for seed in range(20):
            run_quietly(_play(seed, lambda server: Joining(server.send)))

    with pytest.raises(AssertionError):
        play_all()


class Scripted:
    """Requests that end when and how the test says."""

    def __init__(self) -> None:
        self.requests: list[asyncio.Future[int]] = []

    async def send(self) -> int:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.requests.append(future)
        return await future


def test_who_comes_during_a_request_shares_the_next() -> None:
    async def main() -> None:
        script = Scripted()
        rounds = Rounds(script.send)
        first = asyncio.create_task(rounds.ask())
        await settle()
        later = [asyncio.create_task(rounds.ask()) for _ in range(3)]
        await settle()
        assert len(script.requests) == 1, "the second waits for the first"
        script.requests[0].set_result(1)
        assert await first == 1
        await settle()
        assert not any(task.done() for task in later)
        script.requests[1].set_result(2)
        assert await asyncio.gather(*later) == [2, 2, 2]
        assert rounds.sent == 2

    run_quietly(main())


def test_asks_of_the_same_moment_share_one_request() -> None:
    async def main() -> None:
        script = Scripted()
        rounds = Rounds(script.send)
        asks = [asyncio.create_task(rounds.ask()) for _ in range(5)]
        await settle()
        script.requests[0].set_result(7)
        assert await asyncio.gather(*asks) == [7] * 5
        assert rounds.sent == 1

    run_quietly(main())


def test_an_ask_after_the_answer_asks_anew() -> None:
    async def main() -> None:
        script = Scripted()
        rounds = Rounds(script.send)
        for number in range(3):
            ask = asyncio.create_task(rounds.ask())
            await settle()
            script.requests[number].set_result(number)
            assert await ask == number

    run_quietly(main())


def test_a_cancelled_ask_does_not_take_the_answer_from_others() -> None:
    async def main() -> None:
        script = Scripted()
        rounds = Rounds(script.send)
        first, second = asyncio.create_task(rounds.ask()), asyncio.create_task(rounds.ask())
        await settle()
        first.cancel()
        await settle()
        script.requests[0].set_result(5)
        assert await second == 5
        assert first.cancelled()

    run_quietly(main())


@pytest.mark.parametrize("fails", [False, True])
def test_when_all_are_cancelled_the_next_round_works(fails: bool) -> None:
    async def main() -> None:
        script = Scripted()
        rounds = Rounds(script.send)
        asks = [asyncio.create_task(rounds.ask()) for _ in range(2)]
        await settle()
        waiting = [asyncio.create_task(rounds.ask()) for _ in range(2)]
        await settle()
        for task in (*asks, *waiting):
            task.cancel()
        await settle()
        if fails:
            script.requests[0].set_exception(Unavailable("gone"))
        else:
            script.requests[0].set_result(1)
        await settle()
        script.requests[1].set_result(2)  # the round of those who waited was promised already
        await settle()
        last = asyncio.create_task(rounds.ask())
        await settle()
        script.requests[2].set_result(3)
        assert await last == 3

    run_quietly(main())


def test_a_failure_reaches_all_who_wait_and_nobody_else() -> None:
    async def main() -> None:
        script = Scripted()
        rounds = Rounds(script.send)
        asks = [asyncio.create_task(rounds.ask()) for _ in range(3)]
        await settle()
        later = asyncio.create_task(rounds.ask())
        await settle()
        script.requests[0].set_exception(Unavailable("no log node answers"))
        for ask in asks:
            with pytest.raises(Unavailable):
                await ask
        await settle()
        script.requests[1].set_result(4)
        assert await later == 4

    run_quietly(main())
