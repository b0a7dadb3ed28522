"""The real clock, the real randomness, and what a thread really uses."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import time

# Where threads are not told apart, others' faults count too.
_THREAD = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)


def thread_use() -> tuple[float, int]:
    """What this thread has used: seconds of processor time, and pages that it waited for a disk to bring."""
    return time.thread_time(), resource.getrusage(_THREAD).ru_majflt


class SystemClock:
    """`Clock` of this machine and its event loop."""

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return time.monotonic()

    def time_ns(self) -> int:
        """See `Clock.time_ns`."""
        return time.time_ns()

    async def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        await asyncio.sleep(seconds)


class SystemRandom:
    """`Random` of the operating system."""

    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def uniform(self) -> float:
        """See `Random.uniform`."""
        return self._random.random()

    def token(self) -> bytes:
        """See `Random.token`."""
        return os.urandom(16)
