"""The sections of the configuration that belong to one service each; the frontend's are in `frontend_sections`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from shoal_runtime.sections import Address, Count, Section, Share, SizeBytes, TimeMs

_HOUR_MS = 3_600_000


class ServiceSection(Section):
    """What every service has."""

    listen: Address = ""
    """host:port of the gRPC server; port 0 takes a free one."""
    advertise: Address = ""
    """host:port by which others reach it; empty: the address it listens on."""
    metrics: Address = ""
    """host:port of the page with metrics and health; empty: none."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Share of the work relative to other members of the same role."""


class LogAppendSection(Section):
    """The write path."""

    payload_size_bytes: Count = 48 << 20
    """The largest batch, as the log stores it."""
    inline_limit_bytes: SizeBytes = 256 << 10
    """Larger batches become objects; only the hashes of their ids stay in Postgres."""
    offload_size_bytes: SizeBytes = 256 << 10
    """Larger batches are checked in a thread."""
    uploads: Count = 8
    """Objects written at a time."""
    group_items: Count = 512
    """Batches of one group commit."""
    group_size_bytes: Count = 8 << 20
    """Bytes of one group commit that go into Postgres."""
    admitted_items: Count = 4096
    """Appends begun and not yet answered; more are refused."""
    admitted_size_bytes: Count = 256 << 20
    """Their bytes."""
    admission_retry_ms: TimeMs = 100
    """Hint to a client that was refused."""
    lanes: Count = 4
    """Transactions in parallel for collections that a lock time-out has set apart."""
    attempts: Count = 5
    """Transactions tried for a group when the database fails."""
    retry_delay_ms: TimeMs = 50
    """Pause between them."""
    lock_timeout_ms: Count = 1_000
    """Wait for the row of a collection."""
    lock_attempts: Count = 3
    """Lock time-outs after which the batches of a collection fail."""
    uncompacted_records: Count = 1_000_000
    """Back-pressure: records that may wait for compaction, per collection."""
    uncompacted_size_bytes: Count = 2 << 30
    """Back-pressure: their bytes."""
    backpressure_retry_ms: TimeMs = 1_000
    """Hint to a client under back-pressure."""
    condition_ids: Count = 10_000
    """Ids in the read set of a conditional write."""
    scan_entries: Count = 500
    """Batches whose ids are read at a time for a conditional write."""
    max_upload_age_ms: Count = _HOUR_MS // 4
    """An object whose upload began longer ago is refused; the garbage collector waits twice as long."""


class LogTailSection(Section):
    """The read path."""

    size_bytes: Count = 48 << 20
    """Bytes of one answer, whatever the request allows."""
    entries: Count = 20_000
    """Batches of one answer."""
    page_size_bytes: Count = 8 << 20
    """Bytes read from Postgres at a time."""
    page_entries: Count = 1000
    """Batches read from Postgres at a time."""
    offload_size_bytes: SizeBytes = 256 << 10
    """More than this is verified and cut in a thread."""
    object_fetches: Count = 8
    """Objects fetched at a time."""
    cache_size_bytes: SizeBytes = 128 << 20
    """Recent batches kept in memory."""
    known_heads: Count = 10_000
    """Collections whose last known head is kept."""
    read_index_collections: Count = 1000
    """Collections of one read-index statement."""
    read_index_statements: Count = 2
    """Read-index statements in flight."""


class LogTrimSection(Section):
    """Partitions and trimming."""

    period_ms: Annotated[int, Field(ge=1000, multiple_of=1000)] = _HOUR_MS
    """Length of a partition of the log."""
    periods_ahead: Count = 4
    """Partitions made ahead of time."""
    interval_ms: Count = 300_000
    """Pause between two rounds of maintenance."""
    retention_ms: TimeMs = 24 * _HOUR_MS
    """A partition that ended longer ago is dropped once all of it is compacted."""
    version_retention_ms: TimeMs = 24 * _HOUR_MS
    """A version replaced this long ago need no longer be replayed from."""
    idempotency_retention_ms: TimeMs = 7 * 24 * _HOUR_MS
    """How long the outcome of a write is remembered; longer than the log and than any client retries."""
    idempotency_batch: Count = 5_000
    """Outcomes forgotten per statement."""
    idempotency_batches: Count = 100
    """Statements per round."""
    partitions_per_round: Count = 100
    """Partitions dropped per round."""
    lock_timeout_ms: Count = 500
    """Wait for a lock of maintenance."""


class LogSection(ServiceSection):
    """The log service."""

    listen: Address = "127.0.0.1:8802"
    metrics: Address = "127.0.0.1:9802"
    append: LogAppendSection = LogAppendSection()
    tail: LogTailSection = LogTailSection()
    trim: LogTrimSection = LogTrimSection()
    read_connections: Count = 4
    """Connections for reads; appends have their own."""
    acquire_timeout_ms: TimeMs = 5_000
    """Wait for a free connection."""
    statement_timeout_ms: TimeMs = 10_000
    """A statement that takes longer is cancelled by the server."""
    idle_transaction_timeout_ms: TimeMs = 5_000
    """A log node that froze within a transaction loses its locks after that."""
    drain_timeout_ms: TimeMs = 5_000
    """How long appends may finish at the end."""


class ForkSection(Section):
    """Forks of collections."""

    forks: Count = 256
    """Forks of one collection, and of its forks."""
    tail_size_bytes: Count = 32 << 20
    """Of the log that is not compacted, as far as Postgres holds it; it is copied while appends wait."""
    retry_ms: TimeMs = 1_000
    """Hint to who would copy more."""


class SysdbSection(ServiceSection):
    """The catalog."""

    listen: Address = "127.0.0.1:8801"
    metrics: Address = "127.0.0.1:9801"
    migrate_at_start: bool = True
    """Whether it brings the database to its schema before it serves; otherwise `shoal migrate` has to, or it does not start."""
    fork: ForkSection = ForkSection()


class QuerySection(ServiceSection):
    """The query node."""

    listen: Address = "127.0.0.1:8803"
    metrics: Address = "127.0.0.1:9803"
    loaded_bytes: Count = 8 << 30
    """Above so many bytes of segments and tails vectors that are on local disk are let go of, and then shards are dropped."""
    reads_per_shrink: Count = 32
    """How many reads between two looks at that."""
    reads_at_work: Count = 64
    """Reads at a time."""
    reads_waiting: SizeBytes = 1024
    """Reads that wait for their turn; more are refused."""
    threads: Count = 2
    """Threads of one search with many vectors."""
    staleness_ms: TimeMs = 5_000
    """How long reads at index_only and session may go without hearing of new versions, renames and deletion."""
    attempts: Count = 5
    """How often a strong read takes a new snapshot when its version was replaced under it."""
    recall_check_share: Annotated[float, Field(ge=0.0, le=0.5)] = 0.01
    """Of one core's time, for asking some queries again exactly: their recall is measured, and searches look harder if it is low."""
    brief_search_us: Annotated[int, Field(ge=0, le=1_000)] = 160
    """Searches that are reckoned to take no longer, in microseconds, run at once and without a thread; 0 for none."""


class FlushSection(Section):
    """Bounds of one flush; they bound its memory."""

    records: Count = 200_000
    """Records taken in one flush."""
    size_bytes: Count = 512 << 20
    """Their bytes; the first batch is taken whatever its size."""
    threads: Count = 2
    """For building graphs."""
    graph_rows: SizeBytes = 10_000
    """Segments with more rows get a graph; smaller ones are scanned."""
    coded_graphs: bool = False
    """Whether links of graphs are coded, where that makes searches faster. It takes about as much memory again as the vectors."""


class MergeSection(Section):
    """When segments are merged."""

    fanout: Annotated[int, Field(ge=2)] = 4
    """So many segments of one tier become one of the next."""
    dead_share: Share = 0.4
    """A segment with a larger share of dead rows is rewritten by itself."""
    largest_rows: Count = 2_000_000
    """Segments with more live rows are not merged further."""


class GarbageSection(Section):
    """The sweeper of objects that nothing needs any more."""

    interval_ms: Count = 300_000
    """Between two rounds."""
    version_retention_ms: TimeMs = 900_000
    """A version is kept for so long after it was replaced; query nodes open it within that time."""
    deleted_retention_ms: TimeMs = _HOUR_MS
    """What a deleted collection holds is kept for so long."""
    grace_ms: TimeMs = 900_000
    """No object of a live collection that is younger is swept, by the object store's clock."""
    orphan_age_ms: TimeMs = _HOUR_MS
    """Garbage that its owner left alone for longer is taken by any compactor."""
    uploads: Count = 1_000
    """Abandoned uploads swept per round."""
    collections: Count = 1_000
    """Collections swept per round."""
    patrol: Annotated[int, Field(ge=0)] = 20
    """Collections without known garbage that are looked at all the same, per round."""
    objects: Count = 10_000
    """Objects deleted per collection and round."""
    log_entries: Count = 1_000
    """Log entries of a deleted collection forgotten per statement."""
    dry_run: bool = False
    """Log what would be deleted, and delete nothing."""


class FunctionsSection(Section):
    """The runner of attached functions."""

    poll_ms: Count = 1_000
    """Between two looks for functions that are behind."""
    page: Count = 100
    """Functions per look."""
    parallel_jobs: Count = 1
    """Collections whose functions run at a time."""
    orphan_age_ms: TimeMs = 15_000
    """A function that its owner left behind for longer is run by any compactor."""
    lease_ms: Count = 15_000
    """A lease on the functions of a collection; renewed three times within this."""
    retry_ms: TimeMs = 2_000
    """A function that failed is left alone for so long, twice as long after each further failure."""
    longest_retry_ms: TimeMs = 300_000
    """But for no longer than this."""
    keys: Count = 1_000
    """Metadata keys in the output of `statistics`: those with the most values. The output says how many are left out."""
    values_per_key: Count = 10_000
    """Values listed per key and type: the most frequent. The output says how many are left out."""
    values: Count = 100_000
    """Values listed of all keys together."""
    value_size_bytes: Count = 1_024
    """Longer texts are not listed."""
    batch_records: Count = 5_000
    """Records of one write to an output."""
    batch_size_bytes: Count = 4 << 20
    """And their bytes."""
    cache_size_bytes: SizeBytes = 64 << 20
    """Counts kept of segments, so that only what changed is counted again."""


class CompactorSection(ServiceSection):
    """The compactor."""

    listen: Address = "127.0.0.1:8804"
    metrics: Address = "127.0.0.1:9804"
    poll_ms: Count = 500
    """Between two looks at the backlog."""
    min_records: Count = 5_000
    """A collection is flushed when it has so many un-compacted records,"""
    max_age_ms: TimeMs = 3_000
    """or one that is older than this."""
    orphan_age_ms: TimeMs = 15_000
    """A backlog that its owner left alone for longer is taken by any compactor."""
    retry_ms: TimeMs = 2_000
    """A collection that cannot be compacted is left alone for so long, twice as long after each further failure."""
    longest_retry_ms: TimeMs = 300_000
    """But for no longer than this."""
    lease_ms: Count = 15_000
    """A lease on a collection; renewed three times within this."""
    parallel_jobs: Count = 1
    """Collections worked on at a time."""
    page: Count = 100
    """Collections looked at per poll."""
    erasure_deadline_ms: TimeMs = 7 * 24 * _HOUR_MS
    """What was deleted or replaced is gone from object storage within so long, segments are rewritten for it; 0: when it happens."""
    flush: FlushSection = FlushSection()
    policy: MergeSection = MergeSection()
    garbage: GarbageSection = GarbageSection()
    functions: FunctionsSection = FunctionsSection()
