"""What each role tells on its metrics page. Labels are bounded: roles, kinds, routes, codes, never tenants or collections.

`docs/telemetry.md` lists all of it, and a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from shoal_cluster.registry import EtcdRegistry
from shoal_compactor.compactor import FLUSH, MERGE, Compactor
from shoal_compactor.functions import FunctionRunner
from shoal_compactor.garbage import Sweeper
from shoal_core.contracts import Catalog
from shoal_core.ports import Clock, ObjectStore
from shoal_log.lag import LogLag
from shoal_log.log import LogService
from shoal_query.node import Node
from shoal_query.services import Services
from shoal_runtime.measuring import Polled, Shared, watch_event_loop
from shoal_runtime.sections import CacheSection, TelemetrySection
from shoal_runtime.telemetry import Labelled, Telemetry
from shoal_storage.cache import BlockCache
from shoal_storage.observed_objects import ObservedObjectStore
from shoal_storage.postgres import Pool

_ROLES = ("frontend", "logservice", "querynode", "compactor", "sysdb")
_APPENDS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
_LAG_MS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)
_JOB_MS = (100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000, 1_800_000)
_BACKLOG_PAGE = 1_000  # collections


async def watch_process(telemetry: Telemetry, clock: Clock, registry: EtcdRegistry) -> None:
    """Of every role: the members as this process sees them, and how late its event loop is. Runs until cancelled."""
    telemetry.gauges(
        "shoal_members",
        "Members by role, as this process knows them.",
        lambda: [(len(registry.view().of(role)), {"role": role}) for role in _ROLES],
    )
    telemetry.gauge(
        "shoal_registry_connected", "1 while the registry in etcd is watched.", lambda: int(registry.view().connected)
    )
    telemetry.gauge(
        "shoal_registry_registered", "1 while this member's lease is held.", lambda: int(registry.registered)
    )
    lag = telemetry.histogram("shoal_event_loop_lag_ms", "How late the event loop comes back.", _LAG_MS)
    await watch_event_loop(clock, lag.record)


def observed_objects(telemetry: Telemetry, clock: Clock, store: ObjectStore) -> ObjectStore:
    """``store`` with its requests counted and timed."""
    requests = telemetry.counter("shoal_objects_requests", "Requests to object storage, by operation and outcome.")
    durations = telemetry.histogram(
        "shoal_objects_duration_ms", "Duration of requests to object storage, by operation."
    )

    def on_request(operation: str, outcome: str, duration_ms: float) -> None:
        requests.add(1, {"operation": operation, "outcome": outcome})
        durations.record(duration_ms, {"operation": operation})

    return ObservedObjectStore(store, clock, on_request)


def measure_pools(telemetry: Telemetry, pools: Mapping[str, Pool]) -> None:
    """Connections to Postgres."""

    def connections() -> Iterable[Labelled]:
        for name, pool in pools.items():
            idle = pool.get_idle_size()
            yield idle, {"pool": name, "state": "idle"}
            yield pool.get_size() - idle, {"pool": name, "state": "busy"}

    telemetry.gauges("shoal_postgres_connections", "Connections to Postgres, by pool and state.", connections)
    telemetry.gauges(
        "shoal_postgres_connections_limit",
        "The most a pool may have.",
        lambda: [(pool.get_max_size(), {"pool": name}) for name, pool in pools.items()],
    )


def measure_http(telemetry: Telemetry) -> Callable[[str, str, int, float], None]:
    """What the HTTP gateway calls for each answer."""
    requests = telemetry.counter("shoal_http_requests", "HTTP requests that ended, by method, route and status.")
    durations = telemetry.histogram("shoal_http_duration_ms", "Duration of HTTP requests, by method and route.")

    def on_answered(method: str, route: str, status: int, duration_ms: float) -> None:
        requests.add(1, {"method": method, "route": route, "code": str(status)})
        durations.record(duration_ms, {"method": method, "route": route})

    return on_answered


def measure_groups(telemetry: Telemetry) -> Callable[[int, float], None]:
    """What the log calls for each append transaction that committed."""
    sizes = telemetry.histogram("shoal_log_group_appends", "Appends of one transaction.", _APPENDS)
    durations = telemetry.histogram("shoal_log_group_duration_ms", "Duration of append transactions.")

    def on_group(appends: int, duration_ms: float) -> None:
        sizes.record(appends)
        durations.record(duration_ms)

    return on_group


def measure_log(telemetry: Telemetry, log: LogService, settings: TelemetrySection, clock: Clock) -> Polled[LogLag]:
    """The log service; what is returned must be run."""
    count = log.counters
    telemetry.total("shoal_log_records", "Records appended.", lambda: count.appended_records)
    telemetry.total("shoal_log_bytes", "Bytes appended.", lambda: count.appended_bytes)
    telemetry.total("shoal_log_groups", "Append transactions.", lambda: count.groups)
    telemetry.total("shoal_log_replays", "Appends answered from their idempotency key.", lambda: count.replays)
    telemetry.total("shoal_log_write_conflicts", "Conditional writes refused.", lambda: count.write_conflicts)
    telemetry.total("shoal_log_back_pressure", "Appends refused: compaction is behind.", lambda: count.back_pressure)
    telemetry.total(
        "shoal_log_refused", "Appends refused: this node has too many under way.", lambda: count.refused_admissions
    )
    telemetry.total("shoal_log_lock_timeouts", "Groups whose lock did not come in time.", lambda: count.lock_timeouts)
    telemetry.total("shoal_log_failed_tries", "Tries that Postgres failed.", lambda: count.transient_failures)
    telemetry.total("shoal_log_commits_in_doubt", "COMMITs without an answer.", lambda: count.commits_in_doubt)
    telemetry.total("shoal_log_uploads", "Payloads stored as objects.", lambda: count.uploads)
    telemetry.total("shoal_log_read_index_asks", "Questions for a head.", lambda: count.read_index_asks)
    telemetry.total(
        "shoal_log_read_index_statements", "Statements that asked for heads.", lambda: count.read_index_statements
    )
    telemetry.total(
        "shoal_log_maintenance_failures", "Rounds of trimming that failed.", lambda: count.maintenance_failures
    )
    telemetry.gauge("shoal_log_appends_active", "Appends begun and not answered.", lambda: log.admitted[0])
    telemetry.gauge(
        "shoal_log_appends_active_bytes", "Bytes of appends begun and not answered.", lambda: log.admitted[1]
    )
    measure_pools(telemetry, log.pools)
    lag = Polled("log lag", log.lag, clock, settings.measure_interval_ms)

    def gauge(name: str, help_text: str, read: Callable[[LogLag], float]) -> None:
        telemetry.gauges(name, help_text, lambda: () if lag.value is None else ((read(lag.value), {}),))

    gauge("shoal_log_lag_collections", "Collections with un-compacted records.", lambda now: now.collections)
    gauge("shoal_log_lag_records", "Un-compacted records of all collections.", lambda now: now.records)
    gauge(
        "shoal_log_lag_max_records",
        "Un-compacted records of the collection with the most.",
        lambda now: now.max_records,
    )
    gauge("shoal_log_lag_age_ms", "Age of the oldest un-compacted append.", lambda now: now.max_age_ms)
    return lag


def measure_queue(telemetry: Telemetry, services: Services) -> None:
    """What reads of a query node wait."""
    waits = telemetry.histogram("shoal_query_queue_ms", "Waits of reads, by queue: for admission, for a thread.")
    services.queue_time.on_wait = lambda queue, waited_ms: waits.record(waited_ms, {"queue": queue})
    telemetry.gauge(
        "shoal_query_queue_time_ms",
        "Waited in all queues, per read admitted, over the last 30 seconds; 0 without reads.",
        services.queue_time.recent_mean_ms,
    )


def measure_node(telemetry: Telemetry, node: Node) -> None:
    """A query node."""
    count = node.counters
    usage = Shared(node.usage, node.services.clock)
    measure_queue(telemetry, node.services)
    telemetry.total("shoal_reads", "Reads of shards.", lambda: count.reads)
    telemetry.total("shoal_query_refused", "Reads refused: too many wait.", lambda: usage().refused_reads)
    telemetry.total("shoal_recall_checks", "Queries asked again exactly.", lambda: count.recall_checks)
    telemetry.gauge(
        "shoal_recall", "Recall of the queries that were asked again exactly, of late.", node.observed_recall
    )
    telemetry.total("shoal_snapshots_retaken", "Snapshots replaced mid-read.", lambda: count.retaken_snapshots)
    telemetry.total("shoal_query_dropped_shards", "Shards let go of.", lambda: count.dropped_shards)
    telemetry.gauge("shoal_query_active", "Reads at work or waiting.", lambda: usage().reads)
    telemetry.gauge("shoal_query_shards", "Shards held.", lambda: usage().shards)
    telemetry.gauge("shoal_query_loaded_bytes", "Bytes of shards held.", lambda: usage().loaded_bytes)
    telemetry.gauge("shoal_query_loaded_limit_bytes", "What shards may take.", lambda: node.settings.loaded_bytes)
    telemetry.gauge("shoal_tail_records", "Operations after the versions served.", lambda: usage().tail_records)
    telemetry.gauge("shoal_tail_bytes", "Bytes of the tails held.", lambda: usage().tail_bytes)
    telemetry.gauge(
        "shoal_query_version_age_ms",
        "The longest that a shard has known of a newer version than it serves.",
        lambda: usage().version_age_ms,
    )


def measure_cache(telemetry: Telemetry, cache: BlockCache, section: CacheSection, clock: Clock) -> None:
    """The block cache."""
    stats = Shared(cache.stats, clock)
    disk_limit_bytes = section.disk_size_bytes if section.directory else 0
    telemetry.totals(
        "shoal_cache_hits",
        "Blocks found, by where.",
        lambda: [(stats().memory_hits, {"tier": "memory"}), (stats().disk_hits, {"tier": "disk"})],
    )
    telemetry.total("shoal_cache_misses", "Blocks fetched from object storage.", lambda: stats().misses)
    telemetry.total("shoal_cache_joined", "Blocks that another read was fetching.", lambda: stats().joined)
    telemetry.totals(
        "shoal_cache_read_bytes",
        "Bytes of blocks read, by where from.",
        lambda: [
            (stats().memory_bytes_read, {"tier": "memory"}),
            (stats().disk_bytes_read, {"tier": "disk"}),
            (stats().store_bytes_read, {"tier": "store"}),
        ],
    )
    telemetry.gauges(
        "shoal_cache_bytes",
        "Bytes of blocks held, by where.",
        lambda: [(stats().memory_bytes, {"tier": "memory"}), (stats().disk_bytes, {"tier": "disk"})],
    )
    telemetry.gauges(
        "shoal_cache_limit_bytes",
        "What blocks may take, by where.",
        lambda: [(section.memory_size_bytes, {"tier": "memory"}), (disk_limit_bytes, {"tier": "disk"})],
    )
    telemetry.totals(
        "shoal_cache_evictions",
        "Blocks that made room.",
        lambda: [
            (stats().memory_evictions, {"tier": "memory"}),
            (stats().disk_evictions, {"tier": "disk"}),
        ],
    )
    telemetry.total("shoal_cache_degraded", "Failures of the local disk.", lambda: stats().degraded)
    telemetry.total("shoal_cache_corrupt", "Blocks with a wrong checksum.", lambda: stats().corrupt)


@dataclass(frozen=True, slots=True)
class CompactionBacklog:
    """Un-compacted records of the collections that one compactor prefers."""

    collections: int
    records: int
    age_ms: int


async def compaction_backlog(catalog: Catalog, is_mine: Callable[[str], bool]) -> CompactionBacklog:
    """Counted over at most a thousand collections, the oldest of each tenant first. Raises what the catalog raises."""
    found = await catalog.backlog(limit=_BACKLOG_PAGE, min_records=1, min_age_ms=0)
    mine = [item for item in found if is_mine(item.collection.id)]
    return CompactionBacklog(
        len(mine),
        sum(item.head_offset - item.compacted_offset for item in mine),
        max((item.age_ms for item in mine), default=0),
    )


def measure_backlog(
    telemetry: Telemetry, catalog: Catalog, is_mine: Callable[[str], bool], settings: TelemetrySection, clock: Clock
) -> Polled[CompactionBacklog]:
    """Every compactor tells its own share, so that the sum over them is the whole. What is returned must be run."""
    backlog = Polled(
        "compaction backlog", lambda: compaction_backlog(catalog, is_mine), clock, settings.measure_interval_ms
    )

    def gauge(name: str, help_text: str, read: Callable[[CompactionBacklog], float]) -> None:
        telemetry.gauges(name, help_text, lambda: () if backlog.value is None else ((read(backlog.value), {}),))

    gauge("shoal_compaction_backlog_collections", "Collections with a backlog.", lambda now: now.collections)
    gauge(
        "shoal_compaction_backlog_records",
        "Un-compacted records of collections with a backlog.",
        lambda now: now.records,
    )
    gauge("shoal_compaction_backlog_age_ms", "Age of the oldest backlog.", lambda now: now.age_ms)
    return backlog


def measure_compactor(telemetry: Telemetry, compactor: Compactor) -> None:
    """Flushes and merges."""
    count = compactor.counters
    telemetry.total("shoal_compactions", "Flushes published.", lambda: count.flushes)
    telemetry.total("shoal_merges", "Merges published.", lambda: count.merges)
    telemetry.total("shoal_compaction_records", "Operations flushed.", lambda: count.records)
    telemetry.total("shoal_compaction_quarantined", "Operations that do not apply.", lambda: count.quarantined)
    telemetry.total("shoal_compaction_lost_races", "Jobs that another compactor did.", lambda: count.lost_races)
    telemetry.total("shoal_compaction_failures", "Jobs that failed.", lambda: count.failures)
    telemetry.gauges(
        "shoal_compaction_jobs_active",
        "Jobs under way, by kind.",
        lambda: [(sum(job.kind == kind for job in compactor.jobs()), {"kind": kind}) for kind in (FLUSH, MERGE)],
    )
    durations = telemetry.histogram("shoal_compaction_duration_ms", "Jobs, by kind and outcome.", _JOB_MS)
    compactor.on_job = lambda kind, outcome, ms: durations.record(ms, {"kind": kind, "outcome": outcome})


def measure_sweeper(telemetry: Telemetry, sweeper: Sweeper) -> None:
    """Garbage."""
    count = sweeper.counters
    telemetry.total("shoal_swept_objects", "Objects deleted as garbage.", lambda: count.objects)
    telemetry.total("shoal_swept_bytes", "Bytes of objects deleted as garbage.", lambda: count.size_bytes)
    telemetry.total("shoal_sweep_failures", "Collections that could not be swept.", lambda: count.failures)


def measure_functions(telemetry: Telemetry, runner: FunctionRunner) -> None:
    """Attached functions."""
    count = runner.counters
    telemetry.total("shoal_function_runs", "Runs of attached functions.", lambda: count.runs)
    telemetry.total("shoal_function_records", "Records written to outputs of functions.", lambda: count.records)
    telemetry.total("shoal_function_failures", "Runs of attached functions that failed.", lambda: count.failures)
