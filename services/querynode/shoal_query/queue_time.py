"""How long reads wait for their turn: for a place among the reads at work, and for a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from shoal_core.ports import Clock

ADMISSION = "admission"
EXECUTOR = "executor"

_WINDOW_S = 30.0
_STEP_S = 5.0


@dataclass(slots=True)
class _Step:
    """Of one stretch of time: the reads that were admitted in it, and the milliseconds waited."""

    ends_at: float
    reads: int = 0
    waited_ms: float = 0.0


@dataclass(slots=True)
class QueueTime:
    """What the reads of a query node waited, for metrics and for scaling.

    Attributes:
        on_wait: hears of every wait that ended: `ADMISSION` or `EXECUTOR`, and its milliseconds.
    """

    clock: Clock
    on_wait: Callable[[str, float], None] = lambda queue, waited_ms: None
    _steps: deque[_Step] = field(default_factory=deque)

    def waited(self, queue: str, waited_ms: float) -> None:
        """A wait ended. Each read that is admitted has one for admission, and any number of them for threads."""
        now = self.clock.monotonic()
        self.on_wait(queue, waited_ms)
        if not self._steps or self._steps[-1].ends_at <= now:
            self._steps.append(_Step(now + _STEP_S))
            self._forget(now)
        step = self._steps[-1]
        step.reads += queue == ADMISSION
        step.waited_ms += waited_ms

    def recent_mean_ms(self) -> float:
        """Milliseconds waited in all queues together, per read admitted, over the last 30 seconds (in steps of 5); 0 without reads."""
        self._forget(self.clock.monotonic())
        reads = sum(step.reads for step in self._steps)
        return sum(step.waited_ms for step in self._steps) / reads if reads else 0.0

    def _forget(self, now: float) -> None:
        while self._steps and self._steps[0].ends_at <= now - _WINDOW_S + _STEP_S:
            self._steps.popleft()
