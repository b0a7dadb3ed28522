"""Orders of events: calls between services that wait, work that is done later, all of it decided by a seed or by the test."""

from __future__ import annotations

import asyncio
import gc
import inspect
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any, TypeVar, cast
from unittest import mock

T = TypeVar("T")
Hook = Callable[[str], Awaitable[None]]


async def no_hook(name: str) -> None:
    """Go on at once."""


def hooked(inner: T, *, before: Hook = no_hook, after: Hook = no_hook) -> T:
    """``inner`` with both hooks awaited, by the method's name, around each of its coroutine methods."""
    return cast(T, _Hooked(inner, before, after))


class _Hooked:
    def __init__(self, inner: Any, before: Hook, after: Hook) -> None:
        self._inner, self._before, self._after = inner, before, after

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if not inspect.iscoroutinefunction(method):
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            await self._before(name)
            result = await method(*args, **kwargs)
            await self._after(name)
            return result

        return call


class Turns:
    """A hook that waits for some turns of the event loop: often none, at times many."""

    def __init__(self, seed: int, choices: tuple[int, ...] = (0, 0, 1, 3, 10, 40)) -> None:
        self._random = random.Random(seed)
        self._choices = choices

    async def __call__(self, name: str = "") -> None:
        for _ in range(self._random.choice(self._choices)):
            await asyncio.sleep(0)


class Gate:
    """A hook that holds the calls of chosen methods until the test lets them go."""

    def __init__(self, *names: str) -> None:
        self.closed = set(names)
        self.held: list[str] = []
        self.calls: list[str] = []
        self._open = asyncio.Event()

    async def __call__(self, name: str) -> None:
        self.calls.append(name)
        if name in self.closed:
            self.held.append(name)
            await self._open.wait()

    def open(self) -> None:
        """Let go what is held and everything after it."""
        self.closed.clear()
        self._open.set()

    async def until_held(self, count: int = 1) -> None:
        """Return when so many calls are held."""
        await until(lambda: len(self.held) >= count)


async def until(condition: Callable[[], bool], turns: int = 100_000) -> None:
    """Run the event loop until the condition holds; a bound for what never comes."""
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come to this")


async def settle(turns: int = 100) -> None:
    """Run the event loop for a while."""
    for _ in range(turns):
        await asyncio.sleep(0)


class LaterExecutor(Executor):
    """Does work on the event loop some turns later. As in a thread, work once submitted is done though nobody waits any more."""

    def __init__(self, seed: int = 0, choices: tuple[int, ...] = (0, 1, 5, 20)) -> None:
        self._random = random.Random(seed)
        self._choices = choices

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()

        def turn(left: int) -> None:
            if left > 0:
                asyncio.get_running_loop().call_soon(turn, left - 1)
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        asyncio.get_running_loop().call_soon(turn, self._random.choice(self._choices))
        return future


@contextmanager
def threads_inline() -> Iterator[None]:
    """Within: `asyncio.to_thread` works on the event loop, so that a seed decides the order of everything."""

    async def to_thread(work: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        await asyncio.sleep(0)
        return work(*args, **kwargs)

    with mock.patch("asyncio.to_thread", to_thread):
        yield


def run_quietly(main: Coroutine[Any, Any, T], timeout_s: float = 60.0) -> T:
    """`asyncio.run` within a bound; fails also for what the event loop would only have logged, such as exceptions nobody retrieved."""
    complaints: list[dict[str, Any]] = []

    async def body() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with asyncio.timeout(timeout_s):
            result = await main
        await settle(10)
        gc.collect()
        await settle(10)
        return result

    with threads_inline():
        result = asyncio.run(body())
    assert not complaints, complaints
    return result
