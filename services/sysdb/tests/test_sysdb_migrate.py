from __future__ import annotations

import asyncio

import asyncpg
import pytest

from shoal_core.errors import FailedPrecondition, Internal, Unavailable
from shoal_sysdb.migrate import Migration, load_migrations, migrate
from shoal_sysdb.store import open_pool

pytestmark = pytest.mark.integration


async def _fetch(dsn: str, query: str) -> list[tuple[object, ...]]:
    connection = await asyncpg.connect(dsn)
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


async def test_concurrent_migrates_apply_each_file_once(empty_dsn: str) -> None:
    versions = [migration.version for migration in load_migrations()]
    results = await asyncio.gather(*(migrate(empty_dsn) for _ in range(8)))
    assert sorted(results) == [[]] * 7 + [versions]
    assert await _fetch(empty_dsn, "SELECT version FROM schema_migration ORDER BY 1") == [(v,) for v in versions]


async def test_defaults_exist(dsn: str) -> None:
    assert await _fetch(dsn, "SELECT tenant, name FROM database") == [("default_tenant", "default_database")]


async def test_migrates_over_a_pool(empty_dsn: str) -> None:
    pool = await open_pool(empty_dsn, max_size=2)
    assert await migrate(pool) == [migration.version for migration in load_migrations()]
    assert await migrate(pool) == []
    await pool.close()


async def test_refuses_a_changed_migration(empty_dsn: str) -> None:
    await migrate(empty_dsn, migrations=(Migration(1, "0001_a.sql", "CREATE TABLE a ()"),))
    with pytest.raises(FailedPrecondition, match=r"0001_a\.sql was changed"):
        await migrate(empty_dsn, migrations=(Migration(1, "0001_a.sql", "CREATE TABLE a (x int)"),))


async def test_refuses_a_database_of_newer_code(empty_dsn: str) -> None:
    first, second = Migration(1, "0001_a.sql", "CREATE TABLE a ()"), Migration(2, "0002_b.sql", "CREATE TABLE b ()")
    assert await migrate(empty_dsn, migrations=(first,)) == [1]
    assert await migrate(empty_dsn, migrations=(first, second)) == [2]
    with pytest.raises(FailedPrecondition, match="schema version 2, this code knows 1"):
        await migrate(empty_dsn, migrations=(first,))


async def test_a_failing_migration_leaves_nothing(empty_dsn: str) -> None:
    broken = (Migration(1, "0001_a.sql", "CREATE TABLE a ()"), Migration(2, "0002_b.sql", "CREATE TABLE a ()"))
    with pytest.raises(Internal):
        await migrate(empty_dsn, migrations=broken)
    assert await _fetch(empty_dsn, "SELECT 1 FROM pg_tables WHERE schemaname = 'public'") == []


async def test_no_server_is_unavailable(free_port: int) -> None:
    with pytest.raises(Unavailable):
        await migrate(f"postgresql://postgres@127.0.0.1:{free_port}/postgres")


async def test_unknown_database_is_said_so(empty_dsn: str) -> None:
    with pytest.raises(FailedPrecondition, match="DSN"):
        await migrate(empty_dsn + "x")
