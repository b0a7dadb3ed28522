"""What is asked for at once, put together: reads that shared a catch-up go on in the same turn of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Together(Generic[T, R]):
    """Gathers items under a key while the loop goes round once, then has them served, all in one go or in portions, one in a turn.

    Args:
        most: items of a portion.
        fits: whether several, up to so many, are one. A single one is always.
        serve: makes an answer of each item of a portion, in their order, at once.
    """

    def __init__(
        self, most: int, fits: Callable[[Sequence[T]], bool], serve: Callable[[Sequence[T]], Sequence[R]]
    ) -> None:
        self._most = most
        self._fits = fits
        self._serve = serve
        self._groups: dict[Hashable, list[tuple[T, asyncio.Future[R]]]] = {}

    async def ask(self, key: Hashable, item: T) -> R:
        """What was made of the item. Raises what `serve` raised for its portion, which runs in the context of the group's first."""
        loop = asyncio.get_running_loop()
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = []
            loop.call_soon(self._begin, key, group)
        answer: asyncio.Future[R] = loop.create_future()
        group.append((item, answer))
        return await answer

    def _begin(self, key: Hashable, group: list[tuple[T, asyncio.Future[R]]]) -> None:
        del self._groups[key]
        self._next_portion(group)

    def _next_portion(self, group: Sequence[tuple[T, asyncio.Future[R]]]) -> None:
        waiting = [each for each in group if not each[1].done()]  # others were cancelled
        if not waiting:
            return
        portion = waiting[: self._most]
        try:
            while len(portion) > 1 and not self._fits([item for item, _ in portion]):
                portion = portion[: (len(portion) + 1) // 2]
            found = self._serve([item for item, _ in portion])
            for (_, answer), each in list(zip(portion, found, strict=True)):
                answer.set_result(each)
        except Exception as error:
            for _, answer in portion:
                answer.set_exception(error)
        if len(portion) < len(waiting):  # after those who were answered, who are awake by then
            asyncio.get_running_loop().call_soon(self._next_portion, waiting[len(portion) :])
