"""What happens when Postgres goes away: nothing is claimed that is not known."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal_core.contracts import NewCollection, Tenant
from shoal_core.errors import OutcomeUnknown, Unavailable
from shoal_runtime.servers import PostgresServer
from shoal_storage.postgres import Pool, open_pool, transaction
from shoal_sysdb.catalog import CatalogService
from shoal_sysdb.migrate import migrate
from shoal_sysdb.store import PostgresCatalogStore
from shoal_testing.postgres_relay import PostgresRelay
from shoal_testing.processes import postgres_server

pytestmark = pytest.mark.integration

NEW = NewCollection("default_tenant", "default_database", "c")


@contextlib.asynccontextmanager
async def _behind_relay(dsn: str) -> AsyncIterator[tuple[PostgresRelay, CatalogService]]:
    async with PostgresRelay(dsn) as relay:
        pool = await open_pool(relay.dsn, application_name="test", max_size=2)
        try:
            yield relay, CatalogService(PostgresCatalogStore(pool))
        finally:
            await pool.close()


@pytest.mark.parametrize("delivered", [True, False])
async def test_a_connection_lost_in_commit_is_unknown(dsn: str, catalog: CatalogService, delivered: bool) -> None:
    async with _behind_relay(dsn) as (relay, behind):
        relay.cut_on, relay.deliver = b"COMMIT", delivered
        with pytest.raises(OutcomeUnknown):
            await behind.create_collection(NEW, get_or_create=False)
        _, created = await behind.create_collection(NEW, get_or_create=True)  # the next call finds a way
    assert await catalog.count_collections(NEW.tenant, NEW.database) == 1
    if not delivered:
        assert created


async def test_a_connection_lost_before_commit_wrote_nothing(dsn: str, catalog: CatalogService) -> None:
    async with _behind_relay(dsn) as (relay, behind):
        relay.cut_on, relay.deliver = b"INSERT INTO log_head", True
        with pytest.raises(Unavailable):
            await behind.create_collection(NEW, get_or_create=False)
    assert await catalog.count_collections(NEW.tenant, NEW.database) == 0


async def test_a_commit_the_standby_has_not_confirmed_is_unknown(dsn: str, pool: Pool) -> None:
    """A wait for a standby that is cut short ends in a warning, not an error."""
    waiting = await open_pool(dsn, application_name="test", statement_timeout_ms=200)
    catalog = CatalogService(PostgresCatalogStore(waiting))
    await catalog.create_collection(NEW, get_or_create=False)
    await pool.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    await _reload(pool, "nobody")
    try:
        with pytest.raises(OutcomeUnknown):
            await catalog.create_tenant("t")
        made = await catalog.get_collection(NEW.tenant, NEW.database, NEW.name)
        with pytest.raises((OutcomeUnknown, Unavailable)):
            await catalog.claim(made.id, "flush", "me", ttl_ms=1000)
    finally:
        await pool.execute("ALTER SYSTEM RESET synchronous_standby_names")
        await _reload(pool, "")
        await waiting.close()


async def _reload(pool: Pool, expected: str) -> None:
    await pool.execute("SELECT pg_reload_conf()")
    for _ in range(200):
        if await pool.fetchval("SELECT setting FROM pg_settings WHERE name = 'synchronous_standby_names'") == expected:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the server did not reload its configuration")


async def test_a_closed_pool_is_unavailable(dsn: str) -> None:
    pool = await open_pool(dsn, application_name="test")
    await pool.close()
    with pytest.raises(Unavailable):
        await CatalogService(PostgresCatalogStore(pool)).get_tenant("default_tenant")


async def test_an_exhausted_pool_is_unavailable(dsn: str) -> None:
    pool = await open_pool(dsn, application_name="test", max_size=1)
    catalog = CatalogService(PostgresCatalogStore(pool, acquire_timeout_ms=50))
    async with transaction(pool):
        with pytest.raises(Unavailable):
            await catalog.get_tenant("default_tenant")
    assert await catalog.get_tenant("default_tenant") == Tenant("default_tenant")
    await pool.close()


async def test_a_cancelled_call_gives_its_connection_back(dsn: str) -> None:
    pool = await open_pool(dsn, application_name="test", max_size=1)
    catalog = CatalogService(PostgresCatalogStore(pool))
    for i in range(30):
        call = asyncio.create_task(catalog.create_collection(NEW, get_or_create=True))
        for _ in range(i):
            await asyncio.sleep(0)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
    assert await catalog.get_tenant("default_tenant") == Tenant("default_tenant")
    await pool.close()


async def test_killed_under_load_and_back(tmp_path: Path) -> None:
    async with postgres_server(tmp_path / "postgres") as server:
        await migrate(server.dsn)
        pool = await open_pool(server.dsn, application_name="test", max_size=8)
        await _kill_under_load(server, CatalogService(PostgresCatalogStore(pool)))
        await pool.close()


async def _kill_under_load(server: PostgresServer, catalog: CatalogService) -> None:
    acknowledged: list[str] = []
    failures: list[BaseException] = []

    async def create(worker: int) -> None:
        for i in range(10_000):
            try:
                made, _ = await catalog.create_collection(
                    NewCollection(NEW.tenant, NEW.database, f"{worker}-{i}"), get_or_create=False
                )
            except BaseException as error:
                failures.append(error)
                return
            acknowledged.append(made.id)

    workers = [asyncio.create_task(create(worker)) for worker in range(8)]
    while len(acknowledged) < 50:
        await asyncio.sleep(0.01)
    server.kill()
    await asyncio.wait_for(asyncio.gather(*workers), 30)
    assert len(failures) == 8
    assert {type(failure) for failure in failures} <= {Unavailable, OutcomeUnknown}
    with pytest.raises(Unavailable):
        await catalog.get_tenant("default_tenant")
    await server.start()
    listed = await catalog.list_collections(NEW.tenant, NEW.database, limit=100_000, offset=0)
    assert set(acknowledged) <= {collection.id for collection in listed}
