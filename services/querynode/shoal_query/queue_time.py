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
        """Milliseconds waited in all queues together, per read admitted, over the last 30 seconds (in steps of 5); 0 without reads.

        Changes nothing: metrics may be read in another thread.
        """
        now = self.clock.monotonic()
        steps = [step for step in self._steps.copy() if not _is_over(step, now)]
        reads = sum(step.reads for step in steps)
        return sum(step.waited_ms for step in steps) / reads if reads else 0.0

    def _forget(self, now: float) -> None:
        while self._steps and _is_over(self._steps[0], now):
            self._steps.popleft()


def _is_over(step: _Step, now: float) -> bool:
    return step.ends_at <= now - _WINDOW_S + _STEP_S
