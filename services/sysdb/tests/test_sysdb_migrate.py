from __future__ import annotations

import asyncio

import asyncpg
import pytest

from shoal_core.errors import FailedPrecondition, Internal, Unavailable
from shoal_runtime.servers import free_ports
from shoal_storage.postgres import open_pool
from shoal_sysdb.migrate import Migration, load_migrations, migrate, require_schema

pytestmark = pytest.mark.integration


async def _fetch(dsn: str, query: str) -> list[tuple[object, ...]]:
    connection = await asyncpg.connect(dsn)
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


async def test_concurrent_migrates_apply_each_file_once(fresh_database: str) -> None:
    versions = [migration.version for migration in load_migrations()]
    results = await asyncio.gather(*(migrate(fresh_database) for _ in range(8)))
    assert sorted(results) == [[]] * 7 + [versions]
    assert await _fetch(fresh_database, "SELECT version FROM schema_migration ORDER BY 1") == [(v,) for v in versions]


async def test_defaults_exist(dsn: str) -> None:
    assert await _fetch(dsn, "SELECT tenant, name FROM database") == [("default_tenant", "default_database")]


async def test_migrates_over_a_pool(fresh_database: str) -> None:
    pool = await open_pool(fresh_database, application_name="test", max_size=2)
    assert await migrate(pool) == [migration.version for migration in load_migrations()]
    assert await migrate(pool) == []
    await pool.close()


async def test_refuses_a_changed_migration(fresh_database: str) -> None:
    await migrate(fresh_database, migrations=(Migration(1, "0001_a.sql", "CREATE TABLE a ()"),))
    with pytest.raises(FailedPrecondition, match=r"0001_a\.sql was changed"):
        await migrate(fresh_database, migrations=(Migration(1, "0001_a.sql", "CREATE TABLE a (x int)"),))


async def test_refuses_a_database_of_newer_code(fresh_database: str) -> None:
    first, second = Migration(1, "0001_a.sql", "CREATE TABLE a ()"), Migration(2, "0002_b.sql", "CREATE TABLE b ()")
    assert await migrate(fresh_database, migrations=(first,)) == [1]
    assert await migrate(fresh_database, migrations=(first, second)) == [2]
    with pytest.raises(FailedPrecondition, match="schema version 2, this code knows 1"):
        await migrate(fresh_database, migrations=(first,))


async def test_a_schema_is_required_exactly(fresh_database: str) -> None:
    first, second = Migration(1, "0001_a.sql", "CREATE TABLE a ()"), Migration(2, "0002_b.sql", "CREATE TABLE b ()")
    pool = await open_pool(fresh_database, application_name="test", max_size=1)
    with pytest.raises(FailedPrecondition, match="schema version 0, this code needs 2; run `shoal migrate`"):
        await require_schema(pool, migrations=(first, second))
    await migrate(pool, migrations=(first,))
    await require_schema(pool, migrations=(first,))
    with pytest.raises(FailedPrecondition, match="schema version 1, this code needs 2; run `shoal migrate`"):
        await require_schema(pool, migrations=(first, second))
    await migrate(pool, migrations=(first, second))
    with pytest.raises(FailedPrecondition, match="schema version 2, this code knows 1"):
        await require_schema(pool, migrations=(first,))
    assert await _fetch(fresh_database, "SELECT count(*) FROM schema_migration") == [(2,)]
    await pool.close()


async def test_a_failing_migration_leaves_nothing(fresh_database: str) -> None:
    broken = (Migration(1, "0001_a.sql", "CREATE TABLE a ()"), Migration(2, "0002_b.sql", "CREATE TABLE a ()"))
    with pytest.raises(Internal):
        await migrate(fresh_database, migrations=broken)
    assert await _fetch(fresh_database, "SELECT 1 FROM pg_tables WHERE schemaname = 'public'") == []


async def test_no_server_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        await migrate(f"postgresql://postgres@127.0.0.1:{free_ports(1)[0]}/postgres")


async def test_unknown_database_is_said_so(fresh_database: str) -> None:
    with pytest.raises(FailedPrecondition, match="DSN"):
        await migrate(fresh_database + "x")
