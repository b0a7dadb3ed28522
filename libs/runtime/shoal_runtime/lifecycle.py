"""Running a process: the event loop, signals, and background tasks that cannot fail unseen."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")

_log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``main()`` to its end on a fresh uvloop event loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


@contextlib.asynccontextmanager
async def stop_signals() -> AsyncIterator[asyncio.Event]:
    """An event that SIGINT or SIGTERM sets, within the block. A second signal then acts as usual: it ends the process."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        _log.info("%s: stopping; once more ends the process at once", number.name)
        stop.set()
        _restore(loop)

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield stop
    finally:
        _restore(loop)


def _restore(loop: asyncio.AbstractEventLoop) -> None:
    for number in _SIGNALS:
        loop.remove_signal_handler(number)


class Background:
    """Tasks that run as long as the process. One that ends by an exception is logged and remembered, never restarted.

    ``async with Background() as background`` cancels and awaits them at the end. `failed` is set by the first crash: the
    owner decides, usually by draining and exiting, as a process that lost a part should be replaced.
    """

    def __init__(self) -> None:
        self.failed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._crashes: list[tuple[str, BaseException]] = []

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` in the background."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def crashes(self) -> list[tuple[str, BaseException]]:
        """What went wrong so far: (name of the task, exception)."""
        return list(self._crashes)

    async def close(self) -> None:
        """Cancel everything and wait for it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def __aenter__(self) -> Background:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            return
        self._crashes.append((task.get_name(), error))
        _log.critical("the background task %s crashed", task.get_name(), exc_info=error)
        self.failed.set()
