"""The sync client's background thread: one event loop for everything that the client does."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from importlib import import_module
from typing import Any, TypeVar

from shoal_core.errors import FailedPrecondition, Unavailable

T = TypeVar("T")

Cleanup = Callable[[], Awaitable[None]]

_Ready = Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]

_EXIT_TIMEOUT_S = 30.0


class LoopThread:
    """Runs coroutines for any number of threads at once.

    Args:
        name: of the thread.

    Ends by `close`, when the last reference goes, or when the interpreter exits; each runs the clean-ups.
    """

    def __init__(self, name: str = "shoal-client") -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closed = False
        self._cleanups: list[Cleanup] = []
        ready: _Ready = Future()
        self._ended: Future[None] = Future()
        # A daemon, so that a forgotten client does not keep the process alive; `_at_exit` ends it in time.
        self._thread = threading.Thread(
            target=_serve, args=(ready, self._ended, self._cleanups), name=name, daemon=True
        )
        self._thread.start()
        self._loop, self._stop = ready.result()
        self._collected = weakref.finalize(self, _signal, self._loop, self._stop, self._pid)
        self._collected.atexit = False
        _at_exit(weakref.WeakMethod(self.close))

    def on_close(self, cleanup: Cleanup) -> None:
        """Run ``cleanup`` on the loop when it ends."""
        self._cleanups.append(cleanup)

    def run(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of ``function()`` awaited on the loop; blocks the calling thread.

        Raises:
            FailedPrecondition: the client is closed, belongs to the process that this one was forked from, or is called from one
                of its own callbacks.
            Unavailable: the client was closed meanwhile.
        """
        if threading.current_thread() is self._thread:
            raise FailedPrecondition("the client was called from its own callback, which would wait for itself")
        future = self.start(function)
        try:
            return future.result()
        except CancelledError as error:
            raise Unavailable(
                "the client was closed during the call; if it was a write, it may have happened"
            ) from error
        except BaseException:
            future.cancel()  # an interrupt of the waiting thread ends the call too
            raise

    def start(self, function: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """``function()`` on the loop, not waited for; cancelling the future cancels it. Raises as `run` does before it begins."""
        if os.getpid() != self._pid:
            raise FailedPrecondition(
                f"this client belongs to process {self._pid}, from which this one ({os.getpid()}) was forked; connect "
                "again after the fork"
            )
        with self._lock:
            if self._closed:
                raise FailedPrecondition("the client is closed; connect again")
            return asyncio.run_coroutine_threadsafe(function(), self._loop)

    def close(self, timeout_s: float = _EXIT_TIMEOUT_S) -> None:
        """Cancel what runs, run the clean-ups, end the thread; raises what a clean-up raised.

        Again, or in a forked process: nothing.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            first, self._closed = not self._closed, True
        _signal(self._loop, self._stop, self._pid)
        if threading.current_thread() is self._thread:
            return
        self._thread.join(timeout_s)
        if first and self._ended.done():
            self._ended.result()


def _serve(ready: _Ready, ended: Future[None], cleanups: list[Cleanup]) -> None:
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_until_stopped(ready, cleanups))
    except BaseException as error:
        (ended if ready.done() else ready).set_exception(error)
    else:
        ended.set_result(None)


async def _until_stopped(ready: _Ready, cleanups: list[Cleanup]) -> None:
    stop = asyncio.Event()
    ready.set_result((asyncio.get_running_loop(), stop))
    await stop.wait()
    calls = asyncio.all_tasks() - {asyncio.current_task()}
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    while cleanups:
        await cleanups.pop()()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed, else the default."""
    try:
        uvloop = import_module("uvloop")
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _signal(loop: asyncio.AbstractEventLoop, stop: asyncio.Event, pid: int) -> None:
    if os.getpid() == pid:
        with suppress(RuntimeError):  # the loop is closed already
            loop.call_soon_threadsafe(stop.set)


def _at_exit(close: weakref.WeakMethod[Callable[[], None]]) -> None:
    """Close at exit, if it still lives.

    The hook of `threading` runs before thread pools refuse work, the one of `atexit` after: a whole system in this process needs
    its threads to shut down well.
    """

    def run() -> None:
        method = close()
        if method is not None:
            method()

    register: Callable[[Callable[[], None]], Any] = getattr(threading, "_register_atexit", atexit.register)
    try:
        register(run)
    except RuntimeError:  # made during the exit itself
        atexit.register(run)
