"""Catalog and log over one real Postgres, for the cases of the contracts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from shoal_core.contracts import Collection, Lease
from shoal_log import LogService, LogSettings
from shoal_runtime.system import SystemClock, SystemRandom
from shoal_storage.postgres import Pool, open_pool
from shoal_sysdb import CatalogService, FunctionsService, PostgresCatalogStore, migrate
from shoal_testing.contract_stores import Stores
from shoal_testing.memory_objects import MemoryObjectStore


@dataclass(frozen=True, slots=True)
class PostgresStores:
    """The pair, the pool under the catalog, and the objects that the log writes."""

    stores: Stores
    pool: Pool
    objects: MemoryObjectStore


@asynccontextmanager
async def postgres_stores(dsn: str, settings: LogSettings | None = None) -> AsyncIterator[PostgresStores]:
    """Both over an empty database, which is migrated; closed at the end."""
    await migrate(dsn)
    pool = await open_pool(dsn, application_name="test")
    objects = MemoryObjectStore()
    log = LogService(dsn, objects, SystemClock(), SystemRandom(), settings)
    await log.start()

    async def expire_lease(lease: Lease) -> None:
        await pool.execute(
            "UPDATE lease SET expires_at = clock_timestamp() WHERE collection_id = $1 AND kind = $2",
            lease.collection_id,
            lease.kind,
        )

    async def age_uploads() -> None:
        await pool.execute("UPDATE upload_intent SET created_at = created_at - interval '15 minutes'")

    async def trim(collection: Collection, offset: int) -> None:
        """What dropping a partition comes to."""
        await pool.execute("UPDATE log_head SET trim_floor = $2 WHERE collection_id = $1", collection.id, offset)
        await pool.execute("DELETE FROM log_entry WHERE collection_id = $1 AND end_offset <= $2", collection.id, offset)

    try:
        store = PostgresCatalogStore(pool)
        catalog, functions = CatalogService(store), FunctionsService(store)
        yield PostgresStores(Stores(catalog, log, expire_lease, age_uploads, trim, functions), pool, objects)
    finally:
        await log.close()
        await pool.close()
