"""What a query node works with: the other services, its stores, and threads for what is not for the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import TypeVar

from shoal_core.contracts import Catalog, Log
from shoal_core.ports import Clock, ObjectStore
from shoal_query.queue_time import EXECUTOR, QueueTime
from shoal_storage.cache import MeteredReader
from shoal_wire.spans import child_span

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Services:
    """What a query node works with.

    Attributes:
        thread_use: what the calling thread has used so far: seconds of processor time, and pages that it waited for a disk to bring.
    """

    catalog: Catalog
    log: Log
    objects: ObjectStore
    blocks: MeteredReader
    clock: Clock
    executor: Executor
    thread_use: Callable[[], tuple[float, int]]
    queue_time: QueueTime = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "queue_time", QueueTime(self.clock))

    async def compute(self, work: Callable[[], T]) -> T:
        """Run CPU work off the event loop, in the caller's context: what it logs names the caller's trace."""
        asked_at = self.clock.monotonic()

        def timed() -> tuple[float, T]:
            waited_ms = (self.clock.monotonic() - asked_at) * 1_000
            return waited_ms, work()

        with child_span("query compute") as span:
            run = copy_context().run
            waited_ms, done = await asyncio.get_running_loop().run_in_executor(self.executor, run, timed)
            self.queue_time.waited(EXECUTOR, waited_ms)
            span.set_attribute("shoal.queue_ms", waited_ms)
        return done

    def compute_here(self, work: Callable[[], T]) -> T:
        """Run CPU work on the event loop: such as is known to be over sooner than a thread would take it up."""
        with child_span("query compute"):
            return work()
