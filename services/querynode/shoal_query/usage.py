"""What a query node tells of itself, for metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """What a query node holds and does at one moment.

    Attributes:
        reads, refused_reads: at work or waiting; refused since start, as too many waited.
        loaded_bytes: as of the last look at each shard, see `NodeSettings.loaded_bytes`.
        tail_records, tail_bytes: operations after the versions served, of all shards, and the bytes they take.
        version_age_ms: the longest that a shard which was read of late has known of a newer version than the one it serves.
    """

    reads: int
    refused_reads: int
    shards: int
    loaded_bytes: int
    tail_records: int
    tail_bytes: int
    version_age_ms: float


@dataclass(slots=True)
class Counters:
    """What a query node has done since its start. ``recall_checks``: queries that were asked again exactly."""

    reads: int = 0
    recall_checks: int = 0
    retaken_snapshots: int = 0
    dropped_shards: int = 0
