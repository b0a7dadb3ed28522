"""How often and how many at a time: a state machine over a clock, for any kind of key.

Rates are token buckets in the form of the generic cell rate algorithm (ITU-T I.371): one number per bucket, the time at which it will
be full again. Numbers are whole nanoseconds, rounded so that no window of w seconds ever admits more than burst + w × rate.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from shoal_core.errors import ResourceExhausted
from shoal_core.ports import Clock
from shoal_frontend.access.verbs import Load

BUSY_RETRY_MS = 1_000
_SECOND_NS = 1_000_000_000
_SCANNED = 16  # keys looked at for one that may be forgotten


@dataclass(frozen=True, slots=True)
class Rates:
    """What one key may do; 0 is without limit.

    Attributes:
        read_burst, write_burst: how many at once after a pause; 0: as many as in a second, at least 1.
        concurrent: requests under way at a time.
    """

    reads_per_s: float = 0.0
    read_burst: int = 0
    writes_per_s: float = 0.0
    write_burst: int = 0
    concurrent: int = 0

    def unlimited(self) -> bool:
        """Whether there is nothing to count."""
        return not (self.reads_per_s or self.writes_per_s or self.concurrent)

    def bucket(self, load: Load) -> tuple[int, int]:
        """Nanoseconds per request, and how far ahead of time requests may run; (0, 0) for no limit."""
        per_s, burst = (
            (self.reads_per_s, self.read_burst) if load is Load.READ else (self.writes_per_s, self.write_burst)
        )
        if not per_s:
            return 0, 0
        interval_ns = -int(-_SECOND_NS // per_s)
        return interval_ns, interval_ns * ((burst or max(1, int(per_s))) - 1)


@dataclass(slots=True)
class _State:
    full_at_ns: dict[Load, int] = field(default_factory=dict)
    running: int = 0

    def is_idle(self, now_ns: int) -> bool:
        """Whether a key that was never seen would be treated the same."""
        return not self.running and all(at <= now_ns for at in self.full_at_ns.values())


class Limiter:
    """Counts requests per key.

    Args:
        what: a key is, for messages.
        rates: of a key.
        capacity: keys remembered. One is forgotten only when its buckets are full and nothing of it is under way; while that is
            true of none, keys that are new have to wait.
    """

    def __init__(self, what: str, clock: Clock, rates: Callable[[str], Rates], *, capacity: int = 10_000) -> None:
        self._what = what
        self._clock = clock
        self._rates = rates
        self._capacity = capacity
        self._states: OrderedDict[str, _State] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def enter(self, key: str, load: Load) -> None:
        """Count a request in; `leave` must follow, unless this raises `ResourceExhausted`, which counts nothing.

        After the error's ``retry_after_ms`` the rate admits a request, if no other comes before it.
        """
        rates = self._rates(key)
        if rates.unlimited():
            return
        now_ns = int(self._clock.monotonic() * _SECOND_NS)
        state = self._state(key, now_ns)
        if rates.concurrent and state.running >= rates.concurrent:
            raise ResourceExhausted(
                f"{rates.concurrent} requests of this {self._what} are under way; wait for them",
                retry_after_ms=BUSY_RETRY_MS,
            )
        interval_ns, ahead_ns = rates.bucket(load)
        if interval_ns:
            full_at_ns = max(state.full_at_ns.get(load, now_ns), now_ns)
            wait_ns = full_at_ns - ahead_ns - now_ns
            if wait_ns > 0:
                # A millisecond more than needed: the clock's own floats are coarser than a nanosecond.
                raise ResourceExhausted(
                    f"too many requests of this {self._what}; send fewer", retry_after_ms=wait_ns // 1_000_000 + 1
                )
            state.full_at_ns[load] = full_at_ns + interval_ns
        state.running += 1

    def leave(self, key: str) -> None:
        """The request has ended."""
        state = self._states.get(key)
        if state is not None and state.running:
            state.running -= 1

    def refund(self, key: str, load: Load) -> None:
        """The request shall not have counted against the rate."""
        state = self._states.get(key)
        if state is not None and load in state.full_at_ns:
            state.full_at_ns[load] -= self._rates(key).bucket(load)[0]

    def _state(self, key: str, now_ns: int) -> _State:
        state = self._states.get(key)
        if state is None:
            if len(self._states) >= self._capacity:
                self._forget_one(now_ns)
            state = self._states[key] = _State()
        self._states.move_to_end(key)
        return state

    def _forget_one(self, now_ns: int) -> None:
        oldest = iter(self._states.items())
        for _, (key, state) in zip(range(_SCANNED), oldest, strict=False):
            if state.is_idle(now_ns):
                del self._states[key]
                return
        raise ResourceExhausted(
            f"more than {self._capacity} of this kind are active ({self._what}); try again",
            retry_after_ms=BUSY_RETRY_MS,
        )


def rates_of(default: Rates, overrides: Mapping[str, Rates]) -> Callable[[str], Rates]:
    """The rates of a key: its own, or those of all."""
    return lambda key: overrides.get(key, default)
