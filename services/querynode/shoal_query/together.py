"""What is asked for in one turn of the event loop, put together: reads that shared a catch-up go on in the same turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

LARGEST_GROUP = 64


@dataclass(slots=True, eq=False)
class _Group(Generic[T, R]):
    items: list[T] = field(default_factory=list)
    answers: list[asyncio.Future[R]] = field(default_factory=list)


class Together(Generic[T, R]):
    """Gathers items under a key until the turn ends, then has them served in one go."""

    def __init__(self) -> None:
        self._groups: dict[Hashable, _Group[T, R]] = {}
        self._serving: set[asyncio.Task[None]] = set()

    async def ask(self, key: Hashable, item: T, serve: Callable[[Sequence[T]], Awaitable[Sequence[R]]]) -> R:
        """What ``serve`` makes of the item, which it is given with all that came under the key, in their order.

        The first one's ``serve`` is called, in its context, and once begun it ends whoever is cancelled meanwhile. Raises what it
        raises.
        """
        loop = asyncio.get_running_loop()
        group = self._groups.get(key)
        if group is None or len(group.items) >= LARGEST_GROUP:
            group = self._groups[key] = _Group()
            loop.call_soon(self._begin, key, group, serve)
        answer: asyncio.Future[R] = loop.create_future()
        group.items.append(item)
        group.answers.append(answer)
        return await answer

    def _begin(
        self, key: Hashable, group: _Group[T, R], serve: Callable[[Sequence[T]], Awaitable[Sequence[R]]]
    ) -> None:
        if self._groups.get(key) is group:
            del self._groups[key]
        if all(answer.cancelled() for answer in group.answers):
            return
        task = asyncio.create_task(_serve(group, serve))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)


async def _serve(group: _Group[T, R], serve: Callable[[Sequence[T]], Awaitable[Sequence[R]]]) -> None:
    try:
        found = await serve(group.items)
    except asyncio.CancelledError:
        for answer in group.answers:
            answer.cancel()
        raise
    except Exception as error:
        for answer in group.answers:
            if not answer.done():
                answer.set_exception(error)
        return
    for answer, each in zip(group.answers, found, strict=True):
        if not answer.done():
            answer.set_result(each)
