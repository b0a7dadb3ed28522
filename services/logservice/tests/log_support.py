"""What the tests of the log share: a database, log nodes over it, batches, and the transactions of the other services."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import numpy as np
import pyarrow as pa

from shoal_core.contracts import EVERYTHING, AppendRequest, Condition, HashRange, Tail, TailEntry, TailRequest
from shoal_core.hashing import hash_ids
from shoal_core.ports import ObjectStore
from shoal_core.records import EMBEDDING, ID, OP, decode_batch, embedding_array, encode_batch
from shoal_log import LogService, LogSettings
from shoal_log.batches import Batch, checksum_of
from shoal_log.decide import Append, LogState
from shoal_runtime.system import SystemClock, SystemRandom
from shoal_testing.memory_objects import MemoryObjectStore

_MIGRATIONS = Path(__file__).parents[2] / "sysdb" / "shoal_sysdb" / "migrations"
TENANT = "tenant"


def payload_of(ids: Sequence[str], *, dimension: int | None = None, fill: float = 0.0) -> pa.Buffer:
    """An upsert of these ids, with embeddings where a dimension is given."""
    columns: dict[str, pa.Array] = {OP: pa.array([2] * len(ids), pa.uint8()), ID: pa.array(ids, pa.string())}
    if dimension is not None:
        columns[EMBEDDING] = embedding_array(np.full((len(ids), dimension), fill, np.float32))
    return encode_batch(pa.record_batch(columns))


def state_of(**changes: Any) -> LogState:
    """A live, empty collection."""
    empty = LogState("c", TENANT, 1, "i", True, None, 0, 0, 0, 0, 0, 0, 0)
    return replace(empty, **changes)


def batch_of(ids: Sequence[str], *, dimension: int | None = None, size_bytes: int = 10) -> Batch:
    """A checked batch without going through Arrow; its payload says which ids it has."""
    payload = pa.py_buffer(",".join(ids).encode().ljust(size_bytes))
    hashes = hash_ids(pa.array(ids, pa.string()))
    return Batch(payload, dimension, checksum_of(payload), hashes, np.sort(hashes))


def append_of(ids: Sequence[str], collection_id: str = "c", **changes: Any) -> Append:
    """An append of these ids."""
    batch = batch_of(ids, **{key: changes.pop(key) for key in ("dimension", "size_bytes") if key in changes})
    return replace(Append(collection_id, TENANT, 1, batch), **changes)


@dataclass
class World:
    """One database, and what was started over it."""

    dsn: str
    sql: asyncpg.Pool[Any]
    objects: MemoryObjectStore = field(default_factory=MemoryObjectStore)
    nodes: list[LogService] = field(default_factory=list)

    @classmethod
    async def create(cls, dsn: str) -> World:
        """Over an empty database."""
        sql = await asyncpg.create_pool(dsn, min_size=1, max_size=8)
        for migration in sorted(_MIGRATIONS.glob("*.sql")):
            await sql.execute(migration.read_text())
        await sql.execute("INSERT INTO tenant (name) VALUES ($1)", TENANT)
        await sql.execute("INSERT INTO database (id, tenant, name) VALUES (gen_random_uuid(), $1, 'db')", TENANT)
        return cls(dsn, sql)

    async def close(self) -> None:
        """Stop what was started."""
        for node in self.nodes:
            await node.close()
        await self.sql.close()

    async def node(
        self,
        settings: LogSettings | None = None,
        *,
        dsn: str = "",
        exclusive: bool = False,
        objects: ObjectStore | None = None,
    ) -> LogService:
        """A started log node."""
        service = LogService(
            dsn or self.dsn, objects or self.objects, SystemClock(), SystemRandom(), settings, exclusive=exclusive
        )
        await service.start()
        self.nodes.append(service)
        return service

    async def collection(self, dimension: int | None = None) -> str:
        """As sysdb makes it."""
        collection_id = str(uuid4())
        await self.sql.execute(
            """INSERT INTO collection (id, database_id, tenant, database_name, name, incarnation, dimension, space, shards,
                configuration)
            SELECT $1::uuid, id, tenant, name, $2, gen_random_uuid(), $3, 'l2', 1, '{}' FROM database WHERE tenant = $4""",
            collection_id,
            collection_id,
            dimension,
            TENANT,
        )
        await self.sql.execute("INSERT INTO log_head (collection_id) VALUES ($1::uuid)", collection_id)
        return collection_id

    async def publish(self, collection_id: str, offset: int | None = None) -> tuple[int, int]:
        """As sysdb publishes: the version and the offset compacted, by default the head."""
        async with self.sql.acquire() as connection, connection.transaction():
            version = await connection.fetchval(
                "SELECT version FROM collection WHERE id = $1::uuid FOR NO KEY UPDATE", collection_id
            )
            head = await connection.fetchval(
                "SELECT head_offset FROM log_head WHERE collection_id = $1::uuid FOR NO KEY UPDATE", collection_id
            )
            offset = head if offset is None else offset
            size = await connection.fetchval(
                "SELECT total_bytes FROM log_entry WHERE collection_id = $1::uuid AND end_offset = $2",
                collection_id,
                offset,
            )
            await connection.execute(
                "INSERT INTO collection_version VALUES ($1::uuid, $2, 'm', $3, $4)",
                collection_id,
                version + 1,
                offset,
                size or 0,
            )
            await connection.execute(
                "UPDATE collection SET version = $2 WHERE id = $1::uuid", collection_id, version + 1
            )
            await connection.execute(
                """UPDATE log_head SET uncompacted_since = (SELECT committed_at FROM log_entry
                    WHERE collection_id = $1::uuid AND end_offset > $2 ORDER BY end_offset LIMIT 1)
                WHERE collection_id = $1::uuid""",
                collection_id,
                offset,
            )
        return version + 1, offset

    async def delete(self, collection_id: str) -> None:
        """As sysdb deletes."""
        async with self.sql.acquire() as connection, connection.transaction():
            await connection.execute("SELECT FROM collection WHERE id = $1::uuid FOR UPDATE", collection_id)
            await connection.execute("SELECT FROM log_head WHERE collection_id = $1::uuid FOR UPDATE", collection_id)
            await connection.execute("UPDATE collection SET deleted_at = now() WHERE id = $1::uuid", collection_id)

    async def count(self, table: str, where: str = "true") -> int:
        """Rows of a table."""
        return int(await self.sql.fetchval(f"SELECT count(*) FROM {table} WHERE {where}"))

    async def deadlocks(self) -> int:
        """That the server resolved in this database."""
        await self.sql.execute("SELECT pg_stat_clear_snapshot()")
        return int(await self.sql.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"))

    @asynccontextmanager
    async def holding(self, collection_id: str) -> AsyncIterator[None]:
        """Another transaction keeps the collection's row locked."""
        async with self.sql.acquire() as connection, connection.transaction():
            await connection.execute("SELECT FROM collection WHERE id = $1::uuid FOR UPDATE", collection_id)
            yield

    async def terminate_backends(self, application: str = "shoal-log-append") -> int:
        """Kill this database's sessions of that name."""
        rows = await self.sql.fetch(
            """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = $1""",
            application,
        )
        return len(rows)


def request_of(
    collection_id: str,
    ids: Sequence[str],
    *,
    key: str = "",
    epoch: int = 1,
    tenant: str = TENANT,
    dimension: int | None = None,
    condition: Condition | None = None,
    fill: float = 0.0,
) -> AppendRequest:
    """An append of an upsert of these ids."""
    payload = payload_of(ids, dimension=dimension, fill=fill)
    return AppendRequest(collection_id, epoch, tenant, payload, key, condition)


async def whole_tail(
    node: LogService, collection_id: str, *, hash_range: HashRange = EVERYTHING, max_size_bytes: int = 32 << 20
) -> list[TailEntry]:
    """All entries, asked for as often as it takes."""
    entries: list[TailEntry] = []
    through = 0
    while True:
        tail: Tail = await node.read_tail(
            TailRequest(collection_id, 1, through, hash_range=hash_range, max_size_bytes=max_size_bytes)
        )
        entries += tail.entries
        if tail.through_offset == tail.head.head_offset:
            return entries
        assert tail.through_offset > through, "no progress"
        through = tail.through_offset


def rows_of(entries: Sequence[TailEntry]) -> list[tuple[int, str]]:
    """(offset, id) of every record."""
    rows: list[tuple[int, str]] = []
    for entry in entries:
        if entry.payload.size == 0:
            continue
        ids = decode_batch(entry.payload).column(ID).to_pylist()
        offsets = range(entry.first_offset, entry.end_offset + 1) if entry.offsets is None else entry.offsets.tolist()
        rows += zip(offsets, ids, strict=True)
    return rows


async def eventually(holds: Callable[[], Awaitable[bool]], *, seconds: float = 10) -> None:
    """Wait for a condition, with a bound."""
    deadline = time.monotonic() + seconds
    while not await holds():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.01)
