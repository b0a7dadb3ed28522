"""Brings a database to the schema of this code: the files ``migrations/NNNN_name.sql``, each applied once, in order.

Everything pending is applied in one transaction under an advisory lock, so processes may start together and a failure
leaves nothing half done. A migration that has been released is never edited: write the next one.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from importlib import resources

from shoal_core.errors import FailedPrecondition, Internal
from shoal_storage.postgres import Pool, open_pool, transaction
from shoal_sysdb.sql import Sql

_LOCK_KEY = int.from_bytes(b"shoalmig", "big")
_TIMEOUT_MS = 600_000

_BOOKKEEPING = """CREATE TABLE IF NOT EXISTS schema_migration (
    version    integer PRIMARY KEY,
    checksum   text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
)"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file. ``checksum`` is the SHA-256 of its text, in hex."""

    version: int
    name: str
    statements: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.statements.encode()).hexdigest()


def load_migrations() -> tuple[Migration, ...]:
    """The migrations shipped with this code, in order of version. Reads files: call it in a thread."""
    files = [file for file in (resources.files(__package__) / "migrations").iterdir() if file.name.endswith(".sql")]
    found = [Migration(int(file.name.split("_")[0]), file.name, file.read_text("utf-8")) for file in files]
    found.sort(key=lambda migration: migration.version)
    if [migration.version for migration in found] != list(range(1, len(found) + 1)):
        raise Internal(f"migrations must be numbered 1, 2, 3, …: {[migration.name for migration in found]}")
    return tuple(found)


async def migrate(target: str | Pool, *, migrations: tuple[Migration, ...] | None = None) -> list[int]:
    """Apply what is missing and return the versions applied by this call; safe to call from many processes at once.

    Args:
        target: a DSN, or a pool from `shoal_storage.postgres.open_pool`.
        migrations: those shipped with this code by default.

    Raises:
        FailedPrecondition: the database was migrated by newer code, or an applied migration has another checksum.
        Unavailable, OutcomeUnknown: call it again.
    """
    if migrations is None:
        migrations = await asyncio.to_thread(load_migrations)
    if not isinstance(target, str):
        return await _migrate(target, migrations)
    pool = await open_pool(target, application_name="shoal-migrate", max_size=1, statement_timeout_ms=_TIMEOUT_MS)
    try:
        return await _migrate(pool, migrations)
    finally:
        await pool.close()


async def require_schema(pool: Pool, *, migrations: tuple[Migration, ...] | None = None) -> None:
    """Change nothing, and return if the database has exactly the schema of this code.

    Args:
        pool: from `shoal_storage.postgres.open_pool`.
        migrations: those shipped with this code by default.

    Raises:
        FailedPrecondition: the schema is older or newer, or an applied migration has another checksum.
        Unavailable: call it again.
    """
    if migrations is None:
        migrations = await asyncio.to_thread(load_migrations)
    async with transaction(pool) as connection:
        exists = await connection.fetchval("SELECT to_regclass('schema_migration') IS NOT NULL")
        pending = _pending(migrations, await _applied(connection) if exists else {})
    if pending:
        raise FailedPrecondition(
            f"the database has schema version {pending[0].version - 1}, this code needs {len(migrations)}; run `shoal migrate`, "
            "or set sysdb.migrate_at_start"
        )


async def _migrate(pool: Pool, migrations: tuple[Migration, ...]) -> list[int]:
    async with transaction(pool) as connection:
        await connection.execute(f"SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = {_TIMEOUT_MS}")
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK_KEY, timeout=_TIMEOUT_MS / 1000)
        await connection.execute(_BOOKKEEPING)
        pending = _pending(migrations, await _applied(connection))
        for migration in pending:
            await connection.execute(migration.statements, timeout=_TIMEOUT_MS / 1000)
            await connection.execute(
                "INSERT INTO schema_migration (version, checksum) VALUES ($1, $2)",
                migration.version,
                migration.checksum,
            )
    return [migration.version for migration in pending]


async def _applied(sql: Sql) -> dict[int, str]:
    rows = await sql.fetch("SELECT version, checksum FROM schema_migration")
    return {row["version"]: row["checksum"] for row in rows}


def _pending(migrations: tuple[Migration, ...], applied: dict[int, str]) -> list[Migration]:
    """What is not applied yet. Raises `FailedPrecondition` when code and database do not belong together."""
    newest = max(applied, default=0)
    if newest > len(migrations):
        raise FailedPrecondition(
            f"the database has schema version {newest}, this code knows {len(migrations)}; run a newer release"
        )
    for migration in migrations:
        if applied.get(migration.version, migration.checksum) != migration.checksum:
            raise FailedPrecondition(
                f"migration {migration.name} was changed after it was applied; restore it and add a new one instead"
            )
    return [migration for migration in migrations if migration.version not in applied]
