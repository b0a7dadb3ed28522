"""The log service beside the real catalog, held to the contract of every `Log`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from services.logservice.tests.log_support import SystemClock, SystemRandom
from shoal_core.contracts import Collection, Lease
from shoal_log import AppendSettings, LogService, LogSettings
from shoal_sysdb import CatalogService, PostgresCatalogStore, migrate, open_pool
from shoal_testing.contract_log import LogContract
from shoal_testing.contract_stores import Stores
from shoal_testing.memory_objects import MemoryObjectStore

pytestmark = pytest.mark.integration


@pytest.fixture(params=["inline", "objects"])
async def stores(fresh_database: str, request: pytest.FixtureRequest) -> AsyncIterator[Stores]:
    await migrate(fresh_database)
    pool = await open_pool(fresh_database)
    sql = await asyncpg.connect(fresh_database)
    limit = 1 << 20 if request.param == "inline" else 0
    settings = LogSettings(append=AppendSettings(inline_limit_bytes=limit))
    log = LogService(fresh_database, MemoryObjectStore(), SystemClock(), SystemRandom(), settings)
    await log.start()

    async def expire_lease(lease: Lease) -> None:
        await sql.execute("UPDATE lease SET expires_at = now() WHERE collection_id = $1::uuid", lease.collection_id)

    async def age_uploads() -> None:
        await sql.execute("UPDATE upload_intent SET created_at = now() - interval '1 day'")

    async def trim(collection: Collection, offset: int) -> None:
        await sql.execute("UPDATE log_head SET trim_floor = $2 WHERE collection_id = $1::uuid", collection.id, offset)
        await sql.execute(
            "DELETE FROM log_entry WHERE collection_id = $1::uuid AND end_offset <= $2", collection.id, offset
        )

    yield Stores(CatalogService(PostgresCatalogStore(pool)), log, expire_lease, age_uploads, trim)
    await log.close()
    await sql.close()
    await pool.close()


class TestLogService(LogContract):
    """Over Postgres, payloads inline and as objects."""
