"""Partitions of ``log_entry`` and old idempotency keys in Postgres.

A partition holds the entries committed in one period. Making one does not block appends (a table of its own, then attached);
dropping one takes an exclusive lock on ``log_entry`` for a moment, last of all, after collection and head rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal_storage.postgres import Connection, Pool, transaction

_LOCK_KEY = int.from_bytes(b"shoallog", "big")

_LIST = """SELECT child.relname AS name FROM pg_inherits
    JOIN pg_class child ON child.oid = inhrelid WHERE inhparent = 'log_entry'::regclass"""

_ENDS = "SELECT collection_id, max(end_offset) AS end_offset FROM {name} GROUP BY collection_id"

_LOCK_COLLECTIONS = "SELECT FROM collection WHERE id = ANY ($1::uuid[]) ORDER BY id FOR NO KEY UPDATE"
_LOCK_HEADS = "SELECT FROM log_head WHERE collection_id = ANY ($1::uuid[]) ORDER BY collection_id FOR NO KEY UPDATE"

# The version that was current a retention time ago is the oldest that may be replayed from: what it holds is not needed. Nor is
# what the oldest version of all holds, once the sweeper has dropped those before it.
_NEEDED = """SELECT count(*) FROM unnest($1::uuid[], $2::bigint[]) AS n (id, end_offset)
    JOIN collection c ON c.id = n.id AND c.deleted_at IS NULL
    WHERE n.end_offset > coalesce(greatest(
        (SELECT max(compacted_offset) FROM collection_version v
        WHERE v.collection_id = c.id AND v.version <= c.version
            AND v.created_at <= clock_timestamp() - make_interval(secs => $3::float8 / 1000)),
        (SELECT min(compacted_offset) FROM collection_version v WHERE v.collection_id = c.id HAVING min(v.version) > 1)
    ), 0)"""

_RAISE_FLOORS = """UPDATE log_head h SET trim_floor = greatest(h.trim_floor, n.end_offset)
    FROM unnest($1::uuid[], $2::bigint[]) AS n (id, end_offset) WHERE h.collection_id = n.id"""

# Entries of forks name payloads of the collections they come from. Only payloads that a fork may name are looked for in the rest of
# the log: it is large.
_KEYS = """WITH named AS (
        SELECT DISTINCT object_key, split_part(object_key, '/', 2)::uuid AS owner FROM {name} WHERE object_key IS NOT NULL
    ), lent AS MATERIALIZED (
        SELECT owner FROM (SELECT DISTINCT owner FROM named) AS owners
        WHERE EXISTS (SELECT FROM collection c WHERE c.ancestors @> ARRAY[owner] AND c.ancestors <> '{{}}')
    )
    SELECT object_key FROM named WHERE owner NOT IN (SELECT owner FROM lent) OR NOT EXISTS (
        SELECT FROM log_entry other WHERE other.object_key = named.object_key AND other.tableoid <> '{name}'::regclass)"""

_FORGET_KEYS = """DELETE FROM idempotency WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM idempotency WHERE created_at < clock_timestamp() - make_interval(secs => $1::float8 / 1000)
    ORDER BY created_at LIMIT $2))"""


@dataclass(frozen=True, slots=True, order=True)
class Period:
    """Seconds of the epoch ``start_s <= t < end_s`` that a partition covers."""

    start_s: int
    end_s: int

    @property
    def name(self) -> str:
        """Of its partition."""
        return f"log_entry_{self.start_s}_{self.end_s}"

    @classmethod
    def of_name(cls, name: str) -> Period | None:
        """The inverse of ``name``; None for a table that is none of ours."""
        parts = name.split("_")
        if len(parts) != 4 or parts[:2] != ["log", "entry"] or not (parts[2].isdigit() and parts[3].isdigit()):
            return None
        return cls(int(parts[2]), int(parts[3]))


@dataclass(frozen=True, slots=True)
class Dropped:
    """A partition that went, and the objects that its entries named and no others do."""

    period: Period
    object_keys: tuple[str, ...]


class PartitionStore:
    """Statements over the pool of appends."""

    def __init__(self, pool: Pool, *, acquire_timeout_ms: int) -> None:
        self._pool = pool
        self._acquire_timeout_ms = acquire_timeout_ms

    async def periods(self) -> tuple[list[Period], int]:
        """The partitions there are, in order, and the time by the database's clock in seconds."""
        async with transaction(self._pool, acquire_timeout_ms=self._acquire_timeout_ms) as connection:
            return await _periods(connection)

    async def create(self, wanted: Sequence[Period]) -> None:
        """Make partitions; those that overlap an existing one are passed over."""
        async with transaction(self._pool, acquire_timeout_ms=self._acquire_timeout_ms) as connection:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK_KEY)
            existing, _ = await _periods(connection)
            for period in wanted:
                if any(period.start_s < other.end_s and other.start_s < period.end_s for other in existing):
                    continue
                await connection.execute(
                    f"""CREATE TABLE {period.name} (LIKE log_entry INCLUDING ALL);
                    ALTER TABLE log_entry ATTACH PARTITION {period.name}
                        FOR VALUES FROM (to_timestamp({period.start_s})) TO (to_timestamp({period.end_s}))"""
                )

    async def drop(self, period: Period, *, version_retention_ms: int, lock_timeout_ms: int) -> Dropped | None:
        """Raise the trim floors to what the partition holds and drop it; None if some of it is still needed.

        Raises `Unavailable` when a lock did not come in time.
        """
        async with transaction(
            self._pool, acquire_timeout_ms=self._acquire_timeout_ms, lock_timeout_ms=lock_timeout_ms
        ) as connection:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK_KEY)
            if await connection.fetchval("SELECT to_regclass($1)", period.name) is None:
                return None
            # Nobody may add to it from here on; readers go on until it is dropped.
            await connection.execute(f"LOCK TABLE {period.name} IN SHARE MODE")
            rows = await connection.fetch(_ENDS.format(name=period.name))
            ids, ends = [row["collection_id"] for row in rows], [row["end_offset"] for row in rows]
            if await connection.fetchval(_NEEDED, ids, ends, version_retention_ms):
                return None
            # Before anybody waits for the locks: what is compacted is not copied by forks, so nobody names these keys from here on.
            keys = await connection.fetch(_KEYS.format(name=period.name))
            await connection.execute(_LOCK_COLLECTIONS, ids)
            await connection.execute(_LOCK_HEADS, ids)
            await connection.execute(_RAISE_FLOORS, ids, ends)
            await connection.execute(f"DROP TABLE {period.name}")
        return Dropped(period, tuple(row["object_key"] for row in keys))

    async def forget_keys(self, *, older_than_ms: int, limit: int) -> int:
        """Delete up to ``limit`` idempotency keys of that age. How many went."""
        async with transaction(self._pool, acquire_timeout_ms=self._acquire_timeout_ms) as connection:
            tag = await connection.execute(_FORGET_KEYS, older_than_ms, limit)
        return int(tag.split()[-1])


async def _periods(connection: Connection) -> tuple[list[Period], int]:
    now_s: int = await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())::bigint")
    names = [row["name"] for row in await connection.fetch(_LIST)]
    return sorted(period for name in names if (period := Period.of_name(name))), now_s
