"""The log in Postgres: statements of the append transaction and of reads. With `trim_store` and `lag` the only module that knows SQL.

Locks, in every transaction of every service: collection rows in ascending id, ``log_head`` rows in ascending id, then the rest
(intents, ``log_entry``). The lock on a collection's row is held by whoever appends to, publishes or deletes it, so every
statement that follows sees it as it will stay until the end of the transaction.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import asyncpg

from shoal_core.errors import Internal, Unavailable
from shoal_log.batches import hashes_from_bytes, hashes_to_bytes
from shoal_log.decide import Entry, Key, LogState, Plan, Recorded, Scanned
from shoal_log.lag import LAG, LogLag
from shoal_log.settings import LogCounters, LogSettings
from shoal_storage.postgres import Connection, Pool, close_pool, connected, open_pool, transaction

Row: TypeAlias = Any  # a record of the driver

_STATE = """SELECT c.id, c.tenant, c.epoch, c.incarnation, c.deleted_at IS NULL AS alive, c.dimension, c.version,
        coalesce(v.compacted_offset, 0) AS compacted_offset, coalesce(v.compacted_bytes, 0) AS compacted_bytes,
        h.head_offset, h.total_bytes, h.set_hash, h.trim_floor
    FROM log_head h
    JOIN collection c ON c.id = h.collection_id
    LEFT JOIN collection_version v ON v.collection_id = c.id AND v.version = c.version
    WHERE h.collection_id = ANY ($1::uuid[])"""

_LOCK_COLLECTIONS = "SELECT id FROM collection WHERE id = ANY ($1::uuid[]) ORDER BY id FOR NO KEY UPDATE"

_LOCK_HEADS = f"{_STATE} ORDER BY h.collection_id FOR NO KEY UPDATE OF h"

_RECORDED = """SELECT i.tenant, i.collection_id, i.key, i.digest, i.first_offset, i.end_offset
    FROM unnest($1::text[], $2::uuid[], $3::text[]) AS asked (tenant, collection_id, key)
    JOIN idempotency i USING (tenant, collection_id, key)"""

_SCANNED = """SELECT e.collection_id, e.end_offset, e.id_hashes
    FROM unnest($1::uuid[], $2::bigint[]) AS asked (collection_id, after_offset)
    JOIN log_entry e ON e.collection_id = asked.collection_id AND e.end_offset > asked.after_offset"""

_SCAN_PAGE = """SELECT end_offset, id_hashes FROM log_entry
    WHERE collection_id = $1::uuid AND end_offset > $2 ORDER BY end_offset LIMIT $3"""

_LOCK_INTENTS = """SELECT id FROM upload_intent
    WHERE id = ANY ($1::uuid[]) AND created_at > clock_timestamp() - make_interval(secs => $2::float8 / 1000)
    ORDER BY id FOR UPDATE"""

_WRITE = """WITH entry AS (
        INSERT INTO log_entry (collection_id, first_offset, end_offset, committed_at, payload, object_key, size_bytes,
            checksum, id_hashes, total_bytes, set_hash)
        SELECT e.collection_id, e.first_offset, e.end_offset, moment.now, e.payload, e.object_key, e.size_bytes,
            e.checksum, e.id_hashes, e.total_bytes, e.set_hash
        FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bytea[], $5::text[], $6::bigint[], $7::bytea[],
                $8::bytea[], $9::bigint[], $10::bytea[])
            AS e (collection_id, first_offset, end_offset, payload, object_key, size_bytes, checksum, id_hashes,
                total_bytes, set_hash),
            (SELECT clock_timestamp() AS now) AS moment
    ), head AS (
        UPDATE log_head h SET head_offset = n.head_offset, total_bytes = n.total_bytes, set_hash = n.set_hash,
            uncompacted_since = coalesce(h.uncompacted_since, clock_timestamp())
        FROM unnest($11::uuid[], $12::bigint[], $13::bigint[], $14::bytea[])
            AS n (collection_id, head_offset, total_bytes, set_hash)
        WHERE h.collection_id = n.collection_id RETURNING 1
    ), dimension AS (
        UPDATE collection c SET dimension = n.dimension
        FROM unnest($11::uuid[], $15::integer[]) AS n (id, dimension)
        WHERE c.id = n.id AND c.dimension IS NULL AND n.dimension IS NOT NULL
    ), key AS (
        INSERT INTO idempotency (tenant, collection_id, key, digest, first_offset, end_offset)
        SELECT * FROM unnest($16::text[], $17::uuid[], $18::text[], $19::bytea[], $20::bigint[], $21::bigint[])
    ), intent AS (
        DELETE FROM upload_intent WHERE id = ANY ($22::uuid[]) RETURNING 1
    )
    SELECT (SELECT count(*) FROM head) AS heads, (SELECT count(*) FROM intent) AS intents"""

_PAGE = """SELECT recent.first_offset, recent.end_offset, recent.object_key, recent.size_bytes, recent.checksum,
        recent.set_hash, CASE WHEN recent.end_offset > $2 THEN recent.payload END AS payload
    FROM (
        SELECT *, first_value(total_bytes) OVER (ORDER BY end_offset) AS before,
            first_value(size_bytes) OVER (ORDER BY end_offset) AS before_size,
            first_value(end_offset) OVER (ORDER BY end_offset) AS before_end,
            row_number() OVER (ORDER BY end_offset) AS place
        FROM log_entry WHERE collection_id = $1::uuid AND end_offset >= $2 AND end_offset <= $3
        ORDER BY end_offset LIMIT $5
    ) AS recent
    WHERE recent.place <= CASE WHEN recent.before_end = $2 THEN 2 ELSE 1 END
        OR recent.total_bytes - recent.before + CASE WHEN recent.before_end = $2 THEN 0 ELSE recent.before_size END <= $4
    ORDER BY recent.end_offset"""

_NEXT = """SELECT h.trim_floor, e.first_offset, e.end_offset FROM log_head h
    LEFT JOIN LATERAL (
        SELECT first_offset, end_offset FROM log_entry WHERE collection_id = h.collection_id AND end_offset > $2
        ORDER BY end_offset LIMIT 1
    ) AS e ON true
    WHERE h.collection_id = $1::uuid"""


def timed_out(error: Unavailable) -> bool:
    """Whether the database was silent, not gone: another try would only wait as long again."""
    return isinstance(error.__cause__, TimeoutError)


class NoPartition(Exception):
    """No partition of ``log_entry`` takes the present time; nothing was written. Make it and try again."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredEntry:
    """A row of ``log_entry``. ``payload`` is None for an object, and for the entry that ends at the offset asked after."""

    first_offset: int
    end_offset: int
    payload: bytes | None
    object_key: str | None
    size_bytes: int
    checksum: bytes
    set_hash: int


@dataclass(frozen=True, slots=True)
class Boundary:
    """Where the log stands after some offset: what was trimmed, and the next entry if there is one."""

    trim_floor: int
    first_offset: int | None
    end_offset: int | None


class AppendTransaction:
    """The statements of one append transaction, in the order in which they must be called."""

    def __init__(self, connection: Connection, counters: LogCounters) -> None:
        self._connection = connection
        self._counters = counters

    async def lock(self, collection_ids: Iterable[str]) -> dict[str, LogState]:
        """Lock collections and their heads; those that do not exist are absent."""
        ids = sorted(set(collection_ids))
        await self._fetch(_LOCK_COLLECTIONS, ids)
        states = [_state(row) for row in await self._fetch(_LOCK_HEADS, ids)]
        return {state.collection_id: state for state in states}

    async def recorded(self, keys: Sequence[Key]) -> dict[Key, Recorded]:
        """Remembered outcomes."""
        if not keys:
            return {}
        tenants, ids, names = zip(*keys, strict=True)
        rows = await self._fetch(_RECORDED, list(tenants), list(ids), list(names))
        return {
            (row["tenant"], str(row["collection_id"]), row["key"]): Recorded(
                row["digest"], row["first_offset"], row["end_offset"]
            )
            for row in rows
        }

    async def scan(self, after: Mapping[str, int]) -> dict[str, list[Scanned]]:
        """Id hashes of the entries after an offset, by collection."""
        found: dict[str, list[Scanned]] = {}
        if not after:
            return found
        for row in await self._fetch(_SCANNED, list(after), list(after.values())):
            scanned = Scanned(row["end_offset"], hashes_from_bytes(row["id_hashes"]))
            found.setdefault(str(row["collection_id"]), []).append(scanned)
        return found

    async def lock_intents(self, intent_ids: Sequence[str], max_age_ms: int) -> frozenset[str]:
        """Those that are there and young enough, by the database's clock."""
        if not intent_ids:
            return frozenset()
        return frozenset(str(row["id"]) for row in await self._fetch(_LOCK_INTENTS, list(intent_ids), max_age_ms))

    async def write(self, plan: Plan) -> None:
        """Everything that the plan adds, in one statement. Raises `NoPartition`."""
        entries = plan.entries
        if not entries:
            return
        touched = sorted({entry.append.collection_id for entry in entries})
        intents = [entry.append.upload.intent_id for entry in entries if entry.append.upload]
        arguments = (*_entry_columns(entries), *_head_columns([plan.states[id] for id in touched]), *_keys(entries))
        try:
            rows = await self._fetch(_WRITE, *arguments, intents)
        except asyncpg.CheckViolationError as error:
            if "no partition" in str(error):
                raise NoPartition(str(error)) from error
            raise
        if rows[0]["heads"] != len(touched) or rows[0]["intents"] != len(intents):
            raise Internal("a locked row vanished within its transaction")

    async def _fetch(self, statement: str, *arguments: object) -> Sequence[Row]:
        self._counters.statements += 1
        return await self._connection.fetch(statement, *arguments)


class Reader:
    """A connection for read-index statements; what is sent over it is sent at once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def states(self, collection_ids: Sequence[str]) -> dict[str, LogState]:
        """Collections by id, all of one instant after this call; those that do not exist are absent."""
        states = [_state(row) for row in await self._connection.fetch(_STATE, list(collection_ids))]
        return {state.collection_id: state for state in states}


class LogStore:
    """Two pools, so that readers cannot keep appends from a connection."""

    def __init__(self, append_pool: Pool, read_pool: Pool, settings: LogSettings, counters: LogCounters) -> None:
        self.append_pool = append_pool
        self._read_pool = read_pool
        self._settings = settings
        self._counters = counters

    @classmethod
    async def open(cls, dsn: str, settings: LogSettings, counters: LogCounters) -> LogStore:
        """Connect. Raises `Unavailable`, `FailedPrecondition` (a server that acknowledges before it is durable)."""

        async def pool(name: str, size: int, *, writes: bool) -> Pool:
            return await open_pool(
                dsn,
                application_name=f"shoal-log-{name}",
                max_size=size,
                statement_timeout_ms=settings.statement_timeout_ms,
                lock_timeout_ms=settings.append.lock_timeout_ms,
                idle_transaction_timeout_ms=settings.idle_transaction_timeout_ms,
                require_synchronous_standby=writes and settings.require_synchronous_standby,
            )

        append_pool = await pool("append", settings.append.lanes + 2, writes=True)
        try:
            read_pool = await pool("read", settings.read_connections, writes=False)
            return cls(append_pool, read_pool, settings, counters)
        except BaseException:
            append_pool.terminate()
            raise

    async def close(self) -> None:
        """Close both pools; connections still in use after a while are cut."""
        for pool in (self.append_pool, self._read_pool):
            await close_pool(pool, timeout_ms=self._settings.acquire_timeout_ms)

    @property
    def pools(self) -> Mapping[str, Pool]:
        """By what they are for."""
        return {"append": self.append_pool, "read": self._read_pool}

    @property
    def read_tries(self) -> int:
        """How often a read is tried: what ended one session may have ended all idle ones of the pool."""
        return self._settings.read_connections + 1

    @contextlib.asynccontextmanager
    async def appending(self) -> AsyncIterator[AppendTransaction]:
        """One append transaction.

        Raises `Unavailable` (nothing written), `OutcomeUnknown` (COMMIT was sent), `LockBusy`, `NoPartition`.
        """
        self._counters.statements += 2  # BEGIN and COMMIT
        async with transaction(
            self.append_pool,
            acquire_timeout_ms=self._settings.acquire_timeout_ms,
            commit_timeout_ms=self._settings.statement_timeout_ms,
            lock_timeout_ms=self._settings.append.lock_timeout_ms,
            lock_busy=True,
        ) as connection:
            yield AppendTransaction(connection, self._counters)

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[Reader]:
        """A connection for reads. Raises `Unavailable`."""
        async with self._reading() as connection:
            yield Reader(connection)

    async def scan_page(self, collection_id: str, after_offset: int, limit: int) -> list[Scanned]:
        """Id hashes of up to ``limit`` entries that are committed by now, in order."""
        rows = await self._read(_SCAN_PAGE, collection_id, after_offset, limit)
        return [Scanned(row["end_offset"], hashes_from_bytes(row["id_hashes"])) for row in rows]

    async def page(
        self, collection_id: str, after_offset: int, up_to_offset: int, size_bytes: int, entries: int
    ) -> list[StoredEntry]:
        """Entries that end in ``[after_offset, up_to_offset]``, in order.

        The one that ends at ``after_offset`` comes without its payload. Of the others as many as have ``size_bytes``
        together, at least one.
        """
        rows = await self._read(_PAGE, collection_id, after_offset, up_to_offset, size_bytes, entries + 1)
        return [_stored(row) for row in rows]

    async def boundary(self, collection_id: str, after_offset: int) -> Boundary:
        """The trim floor and the first entry that ends after an offset."""
        rows = await self._read(_NEXT, collection_id, after_offset)
        return Boundary(*rows[0]) if rows else Boundary(0, None, None)

    async def lag(self) -> LogLag:
        """Over all collections; takes a look at each that has something un-compacted."""
        rows = await self._read(LAG)
        return LogLag(*rows[0])

    async def _read(self, statement: str, *arguments: object) -> list[Any]:
        """Reads may be repeated: `read_tries` says how often."""
        for tries_left in reversed(range(self.read_tries)):
            try:
                async with self._reading() as connection:
                    return await connection.fetch(statement, *arguments)
            except Unavailable as error:
                if not tries_left or timed_out(error):
                    raise
        return []

    def _reading(self) -> contextlib.AbstractAsyncContextManager[Connection]:
        return connected(self._read_pool, acquire_timeout_ms=self._settings.acquire_timeout_ms)

    async def begin_upload(self, intent_id: str, collection_id: str) -> None:
        """Record an upload intent, dated by the database's clock."""
        async with connected(self.append_pool, acquire_timeout_ms=self._settings.acquire_timeout_ms) as connection:
            await connection.execute(
                "INSERT INTO upload_intent (id, collection_id) VALUES ($1::uuid, $2::uuid)", intent_id, collection_id
            )


def _state(row: Row) -> LogState:
    return LogState(
        collection_id=str(row["id"]),
        tenant=row["tenant"],
        epoch=row["epoch"],
        incarnation=str(row["incarnation"]),
        alive=row["alive"],
        dimension=row["dimension"],
        version=row["version"],
        compacted_offset=row["compacted_offset"],
        compacted_bytes=row["compacted_bytes"],
        head_offset=row["head_offset"],
        total_bytes=row["total_bytes"],
        set_hash=int.from_bytes(row["set_hash"], "little"),
        trim_floor=row["trim_floor"],
    )


def _stored(row: Row) -> StoredEntry:
    return StoredEntry(
        first_offset=row["first_offset"],
        end_offset=row["end_offset"],
        payload=row["payload"],
        object_key=row["object_key"],
        size_bytes=row["size_bytes"],
        checksum=row["checksum"],
        set_hash=int.from_bytes(row["set_hash"], "little"),
    )


def _entry_columns(entries: Sequence[Entry]) -> tuple[list[Any], ...]:
    return (
        [entry.append.collection_id for entry in entries],
        [entry.first_offset for entry in entries],
        [entry.end_offset for entry in entries],
        [None if entry.append.upload else memoryview(entry.append.batch.payload) for entry in entries],
        [entry.append.upload.object_key if entry.append.upload else None for entry in entries],
        [entry.append.batch.size_bytes for entry in entries],
        [entry.append.batch.checksum for entry in entries],
        [hashes_to_bytes(entry.append.batch.sorted_hashes) for entry in entries],
        [entry.total_bytes for entry in entries],
        [entry.set_hash.to_bytes(32, "little") for entry in entries],
    )


def _head_columns(states: Sequence[LogState]) -> tuple[list[Any], ...]:
    return (
        [state.collection_id for state in states],
        [state.head_offset for state in states],
        [state.total_bytes for state in states],
        [state.set_hash.to_bytes(32, "little") for state in states],
        [state.dimension for state in states],
    )


def _keys(entries: Sequence[Entry]) -> tuple[list[Any], ...]:
    keyed = [(entry, entry.append.key) for entry in entries]
    rows = [(*key, entry.append.batch.checksum, entry.first_offset, entry.end_offset) for entry, key in keyed if key]
    return tuple(list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [], [], [], [])
