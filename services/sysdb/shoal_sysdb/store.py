"""The catalog in Postgres: sessions that bind its statements to a connection, with or without a transaction around it.

The statements themselves are in `names`, `forks`, `versions` and `garbage`, what they mean together is in `catalog`; connections,
transactions and what their failures mean are `shoal_storage.postgres`.

Locks, in every transaction of every service: tenant rows in order of name, database rows in ascending id, collection rows in
ascending id, ``log_head`` rows in ascending id, then the rest. Whoever keeps to it cannot deadlock.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from shoal_storage.postgres import Connection, Pool, connected, transaction
from shoal_sysdb.forks import ForkStatements
from shoal_sysdb.function_sql import FunctionStatements
from shoal_sysdb.garbage import GarbageStatements
from shoal_sysdb.names import NameStatements
from shoal_sysdb.versions import VersionStatements


@dataclass(frozen=True, slots=True)
class CatalogSession:
    """The catalog's statements over one connection."""

    names: NameStatements
    forks: ForkStatements
    versions: VersionStatements
    garbage: GarbageStatements
    functions: FunctionStatements


def _session(connection: Connection) -> CatalogSession:
    return CatalogSession(
        NameStatements(connection),
        ForkStatements(connection),
        VersionStatements(connection),
        GarbageStatements(connection),
        FunctionStatements(connection),
    )


class PostgresCatalogStore:
    """Lends out sessions over a pool from `shoal_storage.postgres.open_pool`."""

    def __init__(self, pool: Pool, *, acquire_timeout_ms: int = 5_000) -> None:
        self._pool = pool
        self._acquire_timeout_ms = acquire_timeout_ms

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[CatalogSession]:
        """Every statement commits by itself. For reads, and for writes that may be repeated without harm."""
        async with connected(self._pool, acquire_timeout_ms=self._acquire_timeout_ms) as connection:
            yield _session(connection)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[CatalogSession]:
        """All or nothing. Raises `OutcomeUnknown` as `shoal_storage.postgres.transaction` does."""
        async with transaction(self._pool, acquire_timeout_ms=self._acquire_timeout_ms) as connection:
            yield _session(connection)
