"""``shoal migrate``: the database's schema, brought up to date ahead of the processes that need it."""

from __future__ import annotations

from shoal_cli.roles import dsn_of
from shoal_runtime.config import Config
from shoal_sysdb.migrate import load_migrations, migrate


async def run_migrations(config: Config) -> None:
    """Apply what is missing and print it.

    Raises:
        InvalidArgument: there is no ``postgres.dsn``.
        FailedPrecondition: the database was migrated by newer code, or by other files.
        Unavailable, OutcomeUnknown: run it again.
    """
    migrations = load_migrations()
    applied = await migrate(dsn_of(config), migrations=migrations)
    for migration in migrations:
        if migration.version in applied:
            print(f"applied {migration.name}")
    print(f"the database has schema version {len(migrations)}")
