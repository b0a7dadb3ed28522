"""How attached functions run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FunctionSettings:
    """Turns, and bounds of what a function writes.

    Attributes:
        poll_ms: between looks for functions that are behind.
        page: functions per look.
        parallel_jobs: input collections whose functions run at a time.
        orphan_age_ms: a function that its preferred runner left behind for longer is run by any.
        lease_ms: a lease is renewed three times within this.
        retry_ms, longest_retry_ms: a function that failed is not run again for so long, twice as long after each further failure.
        keys: metadata keys in the output of ``statistics``, those that occur most often.
        values_per_key, values: values listed per key and type, the most frequent, and of all together.
        value_size_bytes: longer texts are not listed.
        batch_records, batch_size_bytes: of one write to an output; a record more is taken whatever its size.
        cache_size_bytes: counts kept of segments, which change little from run to run.
    """

    poll_ms: int = 1_000
    page: int = 100
    parallel_jobs: int = 1
    orphan_age_ms: int = 15_000
    lease_ms: int = 15_000
    retry_ms: int = 2_000
    longest_retry_ms: int = 300_000
    keys: int = 1_000
    values_per_key: int = 10_000
    values: int = 100_000
    value_size_bytes: int = 1_024
    batch_records: int = 5_000
    batch_size_bytes: int = 4 << 20
    cache_size_bytes: int = 64 << 20
