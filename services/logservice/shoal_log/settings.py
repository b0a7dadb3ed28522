"""Limits and times of the log service, with their defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal_core.errors import InvalidArgument
from shoal_core.limits import Limits

_HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class AppendSettings:
    """Of the write path.

    Attributes:
        payload_size_bytes: the largest operation batch, as Arrow IPC.
        inline_limit_bytes: larger payloads become objects, only their id hashes stay in Postgres.
        offload_size_bytes: larger payloads are checked in a thread.
        uploads: objects written at a time.
        group_items, group_size_bytes: of one transaction (bytes that go into Postgres).
        admitted_items, admitted_size_bytes: appends begun and not yet answered; more are refused.
        lanes: transactions in parallel for collections that a lock time-out has set apart.
        attempts: transactions tried for a group when the database fails.
        lock_attempts: lock time-outs after which the items of a collection fail.
        uncompacted_records, uncompacted_size_bytes: back-pressure beyond.
        condition_ids: ids in the read set of a conditional write.
        scan_entries: entries whose id hashes are read at a time for a conditional write.
        max_upload_age_ms: an append refuses an object whose upload began longer ago; the same number as the catalog's.
    """

    payload_size_bytes: int = 48 << 20
    inline_limit_bytes: int = 256 << 10
    offload_size_bytes: int = 256 << 10
    uploads: int = 8
    group_items: int = 512
    group_size_bytes: int = 8 << 20
    admitted_items: int = 4096
    admitted_size_bytes: int = 256 << 20
    admission_retry_ms: int = 100
    lanes: int = 4
    attempts: int = 5
    retry_delay_ms: int = 50
    lock_timeout_ms: int = 1_000
    lock_attempts: int = 3
    uncompacted_records: int = 1_000_000
    uncompacted_size_bytes: int = 2 << 30
    backpressure_retry_ms: int = 1_000
    condition_ids: int = 10_000
    scan_entries: int = 500
    max_upload_age_ms: int = _HOUR_MS // 4

    def __post_init__(self) -> None:
        if self.payload_size_bytes > min(self.uncompacted_size_bytes, self.admitted_size_bytes):
            raise InvalidArgument(
                "is above uncompacted_size_bytes or admitted_size_bytes: the largest batch could never be written",
                field="append.payload_size_bytes",
            )


@dataclass(frozen=True, slots=True)
class TailSettings:
    """Of the read path.

    Attributes:
        size_bytes, entries: of one answer, whatever the request allows.
        page_size_bytes, page_entries: read from Postgres at a time.
        offload_size_bytes: more than this is verified and cut in a thread.
        object_fetches: objects fetched at a time.
        cache_size_bytes: recent entries kept in memory.
        known_heads: collections whose last known head is kept.
        read_index_collections, read_index_statements: collections per read-index statement, and statements in flight.
    """

    size_bytes: int = 48 << 20
    entries: int = 20_000
    page_size_bytes: int = 8 << 20
    page_entries: int = 1000
    offload_size_bytes: int = 256 << 10
    object_fetches: int = 8
    cache_size_bytes: int = 128 << 20
    known_heads: int = 10_000
    read_index_collections: int = 1000
    read_index_statements: int = 2


@dataclass(frozen=True, slots=True)
class TrimSettings:
    """Of partitions and trimming.

    Attributes:
        period_ms, periods_ahead: length of a partition of ``log_entry``, and how many are made ahead of time.
        interval_ms: pause between two rounds of maintenance.
        retention_ms: a partition whose period ended longer ago is dropped once all of it is compacted.
        version_retention_ms: a version replaced this long ago need no longer be replayed from.
        idempotency_retention_ms: outlives the log and the longest retry of a client.
        idempotency_batch: rows deleted per statement.
        partitions_per_round: partitions dropped per round.
    """

    period_ms: int = _HOUR_MS
    periods_ahead: int = 4
    interval_ms: int = 300_000
    retention_ms: int = 24 * _HOUR_MS
    version_retention_ms: int = 24 * _HOUR_MS
    idempotency_retention_ms: int = 7 * 24 * _HOUR_MS
    idempotency_batch: int = 5_000
    idempotency_batches: int = 100
    partitions_per_round: int = 100
    lock_timeout_ms: int = 500

    def __post_init__(self) -> None:
        if self.period_ms < 1000 or self.period_ms % 1000:
            raise InvalidArgument("is not a whole number of seconds", field="trim.period_ms")
        if self.idempotency_retention_ms < self.retention_ms:
            raise InvalidArgument("is below trim.retention_ms", field="trim.idempotency_retention_ms")


@dataclass(frozen=True, slots=True)
class LogSettings:
    """All of it.

    Attributes:
        read_connections: pool of reads; appends have their own of ``append.lanes + 2``.
        idle_transaction_timeout_ms: a log node that froze within a transaction loses its locks after that.
        drain_timeout_ms: how long `LogService.close` lets appends finish.
        require_synchronous_standby: append only over a Postgres that has ``synchronous_standby_names``.
    """

    limits: Limits = field(default_factory=Limits)
    append: AppendSettings = field(default_factory=AppendSettings)
    tail: TailSettings = field(default_factory=TailSettings)
    trim: TrimSettings = field(default_factory=TrimSettings)
    read_connections: int = 4
    acquire_timeout_ms: int = 5_000
    statement_timeout_ms: int = 10_000
    idle_transaction_timeout_ms: int = 5_000
    drain_timeout_ms: int = 5_000
    require_synchronous_standby: bool = False


@dataclass(slots=True)
class LogCounters:
    """What happened since start. Plain numbers; telemetry reads them."""

    appended_batches: int = 0
    appended_records: int = 0
    appended_bytes: int = 0
    groups: int = 0
    statements: int = 0
    replays: int = 0
    write_conflicts: int = 0
    back_pressure: int = 0
    refused_admissions: int = 0
    lock_timeouts: int = 0
    transient_failures: int = 0
    commits_in_doubt: int = 0
    uploads: int = 0
    read_index_asks: int = 0
    read_index_statements: int = 0
    tail_entries_cached: int = 0
    tail_entries_loaded: int = 0
    partitions_dropped: int = 0
    maintenance_failures: int = 0
