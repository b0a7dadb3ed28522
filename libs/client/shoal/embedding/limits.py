"""What bounds the calls of an embedding function: figures, and the small state machines that keep them.

All of it is without I/O: whoever drives it says what time it is (`Clock.monotonic`, seconds).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from email.utils import parsedate_to_datetime
from typing import Final

from shoal_core.errors import InvalidArgument, Unavailable

_MILLISECONDS: Final = 1_000
_OPTIONAL: Final = frozenset({"calls_per_second", "call_timeout_ms", "timeout_ms"})
_MAY_BE_ZERO: Final = frozenset({"first_backoff_ms", "cache_size_bytes"})


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayLimits:
    """Bounds of a `Gateway`. They hold for everything that uses it together.

    Attributes:
        texts_per_call: in one call of the function, at most.
        characters_per_call: of all its texts together; a longer text goes alone.
        concurrency: calls under way at once.
        calls_per_second: by a token bucket; None for no bound.
        burst_calls: how many calls the bucket saves up.
        attempts: of one call, the first included.
        first_backoff_ms: the longest pause before the second attempt; doubled for each further one. The pause itself is
            random between 0 and this ("full jitter"), and no shorter than what Retry-After asks for.
        longest_backoff_ms: but no longer than this.
        call_timeout_ms: of one attempt; None for no bound.
        timeout_ms: of all texts that were given at once, with every wait and every attempt; None for no bound.
        failures_to_open: so many failed attempts on end open the circuit: then nothing is asked any more
        open_ms: for so long; after that one call goes ahead, and decides.
        cache_size_bytes: of the vectors kept by the hash of their text; 0 keeps none, and asks for a text as often as it is given.
        answer_size_bytes: the longest answer of a service.
    """

    texts_per_call: int = 64
    characters_per_call: int = 200_000
    concurrency: int = 4
    calls_per_second: float | None = None
    burst_calls: int = 1
    attempts: int = 5
    first_backoff_ms: int = 250
    longest_backoff_ms: int = 20_000
    call_timeout_ms: int | None = 60_000
    timeout_ms: int | None = 600_000
    failures_to_open: int = 8
    open_ms: int = 10_000
    cache_size_bytes: int = 32 << 20
    answer_size_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.name in _OPTIONAL:
                continue
            if field.name == "calls_per_second":
                if not _is_number(value) or not 0 < value < math.inf:
                    raise InvalidArgument(f"{value!r}; a positive number, or None for no bound", field=field.name)
                continue
            least = 0 if field.name in _MAY_BE_ZERO else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InvalidArgument(f"{value!r}; a whole number from {least}", field=field.name)


# Of functions that run in this process: a model takes all cores anyway, and nothing is lost in between.
LOCAL_LIMITS: Final = GatewayLimits(
    texts_per_call=2048,
    characters_per_call=8 << 20,
    concurrency=1,
    call_timeout_ms=None,
    timeout_ms=None,
)


class TokenBucket:
    """So many units in a second, and a burst saved up at most (the generic cell rate algorithm); pauses on request.

    Args:
        per_second: None for no bound.
        burst: units.
    """

    __slots__ = ("_burst_s", "_free_at", "_interval_s", "_paused_until")

    def __init__(self, per_second: float | None, burst: float = 1.0) -> None:
        self._interval_s = 0.0 if per_second is None else 1 / per_second
        self._burst_s = self._interval_s * burst
        self._free_at = -math.inf
        self._paused_until = -math.inf

    def wait_s(self, now: float, units: float = 1.0) -> float:
        """How long until ``units`` may be taken; 0 if now. More than the burst are granted when the bucket is full."""
        start = self._free_at + min(units * self._interval_s, self._burst_s) - self._burst_s
        return max(start - now, self._paused_until - now, 0.0)

    def take(self, now: float, units: float = 1.0) -> None:
        """Take them, whether or not they are there."""
        self._free_at = max(self._free_at, now) + units * self._interval_s

    def pause(self, until: float) -> None:
        """Grant nothing before."""
        self._paused_until = max(self._paused_until, until)


class CircuitBreaker:
    """Stops asking what does not answer. Closed; after failures on end open; after a while half open, for one call.

    Who is admitted says how it went: `succeeded`, `failed`, or `abandoned` if it did not end.
    """

    __slots__ = ("_failures", "_most", "_open_s", "_open_until", "_trying")

    def __init__(self, failures_to_open: int, open_ms: int) -> None:
        self._most = failures_to_open
        self._open_s = open_ms / _MILLISECONDS
        self._failures = 0
        self._open_until: float | None = None
        self._trying = False

    @property
    def state(self) -> str:
        """``closed``, ``open`` (until the next `admit` after the pause) or ``half-open``."""
        if self._open_until is None:
            return "closed"
        return "half-open" if self._trying else "open"

    def admit(self, now: float, name: str) -> None:
        """Raises `Unavailable` while it is open."""
        if self._open_until is None:
            return
        left_s = self._open_s if self._trying else self._open_until - now
        if left_s > 0:
            raise Unavailable(
                f"embedding function {name!r} failed {self._failures} times on end and is left alone for a while",
                retry_after_ms=max(1, math.ceil(left_s * _MILLISECONDS)),
            )
        self._trying = True

    def succeeded(self) -> None:
        """It answered, be it with a refusal."""
        self._failures = 0
        self._open_until = None
        self._trying = False

    def failed(self, now: float) -> None:
        """It did not answer, or with a failure of its own."""
        self._failures += 1
        if self._trying or self._failures >= self._most:
            self._open_until = now + self._open_s
        self._trying = False

    def abandoned(self) -> None:
        """Nobody waited for the answer."""
        self._trying = False


def backoff_s(limits: GatewayLimits, attempt: int, uniform: float) -> float:
    """The pause after attempt number ``attempt`` (from 1): exponential, with full jitter; ``uniform`` in [0, 1)."""
    most_ms = min(limits.longest_backoff_ms, limits.first_backoff_ms * 2 ** min(attempt - 1, 30))
    return uniform * most_ms / _MILLISECONDS


def retry_after_ms(value: str | None, now_ns: int) -> int:
    """What a Retry-After header asks for: seconds, or a date (RFC 9110, 10.2.3). 0 for none, a past one or nonsense."""
    text = (value or "").strip()
    if text.isascii() and text.isdecimal():
        return int(text[:9]) * _MILLISECONDS
    try:
        until = parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return 0
    return max(0, math.ceil(until * _MILLISECONDS - now_ns / 1_000_000))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
