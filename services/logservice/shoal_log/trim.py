"""Partitions ahead of time, and trimming: dropping those whose entries nobody needs any more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal_core.errors import Unavailable
from shoal_log.settings import LogCounters, TrimSettings
from shoal_log.trim_store import Dropped, PartitionStore, Period


@dataclass(frozen=True, slots=True)
class TrimReport:
    """What a round of trimming did.

    Attributes:
        dropped: partitions that went.
        object_keys: objects that only entries of these named; nobody reads them any more.
        forgotten_keys: idempotency keys past their retention.
        busy: partitions that wait for the next round because a lock did not come in time.
    """

    dropped: tuple[Period, ...]
    object_keys: tuple[str, ...]
    forgotten_keys: int
    busy: int


def missing_periods(existing: Sequence[Period], now_s: int, period_s: int, ahead: int) -> list[Period]:
    """Periods to add so that all time from ``now_s`` to ``ahead`` whole periods later is covered.

    They end at multiples of ``period_s`` and fit between existing ones, whose length may have been another.
    """
    until = (now_s // period_s + ahead + 1) * period_s
    added: list[Period] = []
    at = now_s // period_s * period_s
    while at < until:
        covering = [period for period in existing if period.start_s <= at < period.end_s]
        if covering:
            at = covering[0].end_s
            continue
        ends = [period.start_s for period in existing if period.start_s > at]
        end = min([(at // period_s + 1) * period_s, *ends])
        added.append(Period(at, end))
        at = end
    return added


def expired_periods(existing: Sequence[Period], now_s: int, retention_ms: int) -> list[Period]:
    """Those that ended longer ago than the retention, oldest first."""
    return sorted(period for period in existing if (now_s - period.end_s) * 1000 >= retention_ms)


class Trimmer:
    """Keeps the partitions of ``log_entry``."""

    def __init__(self, store: PartitionStore, settings: TrimSettings, counters: LogCounters) -> None:
        self._store = store
        self._settings = settings
        self._counters = counters

    async def ensure_partitions(self) -> int:
        """Make the partitions of the present and the near future. How many were missing. Raises `Unavailable`."""
        existing, now_s = await self._store.periods()
        missing = missing_periods(existing, now_s, self._settings.period_ms // 1000, self._settings.periods_ahead)
        if missing:
            await self._store.create(missing)
        return len(missing)

    async def trim(self) -> TrimReport:
        """Drop partitions and forget keys. Safe on any number of nodes at once. Raises `Unavailable`, `OutcomeUnknown`."""
        # First of all: what fails after a partition was dropped would lose the names of its objects.
        forgotten_keys = await self._forget_keys()
        existing, now_s = await self._store.periods()
        old = expired_periods(existing, now_s, self._settings.retention_ms)
        dropped: list[Dropped] = []
        busy = 0
        for period in old:
            if len(dropped) >= self._settings.partitions_per_round:
                break
            try:
                gone = await self._store.drop(
                    period,
                    version_retention_ms=self._settings.version_retention_ms,
                    lock_timeout_ms=self._settings.lock_timeout_ms,
                )
            except Unavailable:
                busy += 1
                continue
            if gone is not None:
                dropped.append(gone)
        self._counters.partitions_dropped += len(dropped)
        return TrimReport(
            dropped=tuple(gone.period for gone in dropped),
            object_keys=tuple(key for gone in dropped for key in gone.object_keys),
            forgotten_keys=forgotten_keys,
            busy=busy,
        )

    async def _forget_keys(self) -> int:
        total = 0
        for _ in range(self._settings.idempotency_batches):
            gone = await self._store.forget_keys(
                older_than_ms=self._settings.idempotency_retention_ms, limit=self._settings.idempotency_batch
            )
            total += gone
            if gone < self._settings.idempotency_batch:
                break
        return total
