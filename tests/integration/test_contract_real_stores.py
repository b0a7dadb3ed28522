"""sysdb and the log service on a real Postgres keep the contracts, by the cases that the fakes of unit tests are held to."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from shoal_core.contracts import Collection, Lease
from shoal_log import LogService
from shoal_runtime.system import SystemClock, SystemRandom
from shoal_sysdb.catalog import CatalogService
from shoal_sysdb.migrate import migrate
from shoal_sysdb.store import PostgresCatalogStore, open_pool
from shoal_testing.contract_catalog import CatalogContract
from shoal_testing.contract_log import LogContract
from shoal_testing.contract_stores import Stores
from shoal_testing.memory_objects import MemoryObjectStore

pytestmark = pytest.mark.integration


@pytest.fixture
async def stores(fresh_database: str) -> AsyncIterator[Stores]:
    """A catalog and a log node over one empty database."""
    await migrate(fresh_database)
    pool = await open_pool(fresh_database)
    log = LogService(fresh_database, MemoryObjectStore(), SystemClock(), SystemRandom())
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

    yield Stores(CatalogService(PostgresCatalogStore(pool)), log, expire_lease, age_uploads, trim)
    await log.close()
    await pool.close()


class TestCatalogService(CatalogContract):
    """All cases of the catalog."""


class TestLogService(LogContract):
    """All cases of the log."""
