"""A catalog over a database of its own for each test of sysdb."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from shoal_storage.postgres import Pool, open_pool
from shoal_sysdb import CatalogService, PostgresCatalogStore, migrate


@pytest.fixture
async def dsn(fresh_database: str) -> str:
    """A migrated database."""
    await migrate(fresh_database)
    return fresh_database


@pytest.fixture
async def pool(dsn: str) -> AsyncIterator[Pool]:
    pool = await open_pool(dsn, application_name="test", max_size=25)
    yield pool
    await pool.close()


@pytest.fixture
def store(pool: Pool) -> PostgresCatalogStore:
    return PostgresCatalogStore(pool)


@pytest.fixture
def catalog(store: PostgresCatalogStore) -> CatalogService:
    return CatalogService(store)
