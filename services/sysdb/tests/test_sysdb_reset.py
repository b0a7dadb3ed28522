"""A reset beside other calls: nothing is left half deleted, and nobody waits in a circle."""

from __future__ import annotations

import asyncio

import pytest

from shoal_core.contracts import NewCollection
from shoal_core.errors import NotFound
from shoal_storage.postgres import Pool
from shoal_sysdb import CatalogService, PostgresCatalogStore
from shoal_sysdb.catalog import DEFAULT_DATABASE, DEFAULT_TENANT

pytestmark = pytest.mark.integration


async def _until_blocked(pool: Pool) -> None:
    """Until a session waits for another's lock."""
    blocked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    for _ in range(500):
        if await pool.fetchval(blocked):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nobody waits")


async def test_a_database_that_is_being_created_does_not_deadlock_with_a_reset(
    catalog: CatalogService, store: PostgresCatalogStore, pool: Pool
) -> None:
    async with store.transaction() as sql:  # as `create_database` does it
        assert await sql.names.share_tenant(DEFAULT_TENANT)
        reset = asyncio.create_task(catalog.reset())
        await _until_blocked(pool)
        assert await sql.names.insert_database(DEFAULT_TENANT, DEFAULT_DATABASE) is None
    await reset


async def test_a_tenant_that_comes_during_a_reset_is_not_deleted_without_its_databases(
    catalog: CatalogService, pool: Pool
) -> None:
    made, _ = await catalog.create_collection(NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, "c"), get_or_create=False)
    async with pool.acquire() as appending, appending.transaction():
        await appending.execute("SELECT FROM collection WHERE id::text = $1 FOR NO KEY UPDATE", made.id)
        reset = asyncio.create_task(catalog.reset())
        await _until_blocked(pool)
        await catalog.create_tenant("late")
        await catalog.create_database("late", "d")
    await reset
    assert (await catalog.get_database("late", "d")).tenant == (await catalog.get_tenant("late")).name
    with pytest.raises(NotFound):
        await catalog.get_collection_by_id(made.id)


async def test_one_of_many_tenants_gets_a_resource_name(catalog: CatalogService) -> None:
    names = [f"t{number}" for number in range(8)]
    for name in names:
        await catalog.create_tenant(name)
    ended = await asyncio.gather(*(catalog.name_tenant(name, "r") for name in names), return_exceptions=True)
    assert sorted(type(one).__name__ for one in ended) == ["AlreadyExists"] * 7 + ["NoneType"]
