"""Postgres: pool, transactions and the translation of failures. The only module of sysdb that knows asyncpg.

`PostgresCatalogStore` lends out a `CatalogSession`, with or without a transaction around it; the statements themselves are
in `names`, `versions` and `garbage`, what they mean together is in `catalog`.

Locks, in every transaction of every service: database row, collection rows in ascending id, ``log_head`` rows in ascending
id, then the rest. Whoever keeps to it cannot deadlock. Transactions run at READ COMMITTED: a row that was waited for is
read again as it is after the wait.

Failures of the driver leave here as `shoal_core.errors`: a lost, refused or silent server is `Unavailable` (nothing was
committed), the same during COMMIT is `OutcomeUnknown`. So is a COMMIT that came with a warning: the server gave up waiting
for its standby.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import asyncpg
from asyncpg.connect_utils import SessionAttribute
from asyncpg.pool import PoolConnectionProxy
from asyncpg.transaction import Transaction

from shoal_core.errors import (
    AlreadyExists,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OutcomeUnknown,
    ShoalError,
    Unavailable,
)
from shoal_sysdb.garbage import GarbageStatements
from shoal_sysdb.names import NameStatements
from shoal_sysdb.versions import VersionStatements

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"

_DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
_SESSION_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.StatementCompletionUnknownError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,  # TimeoutError too
)
_TRANSIENT = (
    *_SESSION_LOST,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidCachedStatementError,
)
_REFUSED_VALUES = (
    asyncpg.exceptions.DataError,  # by the server
    asyncpg.exceptions._base.DataError,  # by the driver, before it is sent
    asyncpg.ProgramLimitExceededError,
    asyncpg.CheckViolationError,
    asyncpg.NotNullViolationError,
)


def translate(error: Exception) -> ShoalError:
    """The driver's error as one of `shoal_core.errors`."""
    if isinstance(error, _REFUSED_VALUES):
        return InvalidArgument(f"the database cannot store this value: {error}")
    if isinstance(error, asyncpg.QueryCanceledError):
        return Unavailable("the statement took too long; try again")
    if isinstance(error, asyncpg.LockNotAvailableError):
        return Unavailable("another transaction holds the row for too long; try again")
    if isinstance(error, _TRANSIENT):
        return Unavailable(f"the database cannot be reached or is busy; try again: {error or type(error).__name__}")
    if isinstance(error, asyncpg.UniqueViolationError):
        return AlreadyExists(f"the name is taken: {error}")
    if isinstance(error, asyncpg.ForeignKeyViolationError):
        return NotFound(f"what this belongs to does not exist: {error}")
    if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError | asyncpg.InvalidCatalogNameError):
        return FailedPrecondition(f"the database refuses this user or name, check the DSN: {error}")
    return Internal(f"the database refused a statement: {error}")


async def open_pool(
    dsn: str,
    *,
    application_name: str = "shoal-sysdb",
    min_size: int = 1,
    max_size: int = 10,
    connect_timeout_ms: int = 5_000,
    statement_timeout_ms: int = 10_000,
    lock_timeout_ms: int = 3_000,
) -> Pool:
    """Connect to a primary. A server that stops answering is given up two seconds after ``statement_timeout_ms``.

    Raises `Unavailable` when none can be reached, `FailedPrecondition` when it refuses the user or the database.
    """
    settings = {
        "application_name": application_name,
        "statement_timeout": str(statement_timeout_ms),
        "lock_timeout": str(lock_timeout_ms),
        "idle_in_transaction_session_timeout": str(statement_timeout_ms),
        "default_transaction_isolation": "read committed",
        "jit": "off",
    }
    try:
        return await asyncpg.create_pool(
            dsn,
            min_size=min_size,
            max_size=max_size,
            timeout=connect_timeout_ms / 1000,
            command_timeout=statement_timeout_ms / 1000 + 2,
            target_session_attrs=SessionAttribute.read_write,
            server_settings=settings,
            reset=_keep_session,
        )
    except _DRIVER_ERRORS as error:
        raise translate(error) from error


async def _keep_session(_connection: object) -> None:
    """Nothing to reset: sessions carry no state of their own, and an open transaction has been rolled back already."""


@contextlib.asynccontextmanager
async def connected(pool: Pool, *, acquire_timeout_ms: int = 5_000) -> AsyncIterator[Connection]:
    """A connection on which every statement commits by itself. Driver errors leave translated."""
    try:
        connection = await pool.acquire(timeout=acquire_timeout_ms / 1000)
    except _DRIVER_ERRORS as error:
        raise translate(error) from error
    warnings: list[str] = []

    def listen(_connection: object, message: Any) -> None:
        if getattr(message, "severity_en", "") == "WARNING":
            warnings.append(str(message))

    try:
        connection.add_log_listener(listen)
        yield connection
    except _DRIVER_ERRORS as error:
        if _is_lost(error):
            _drop(connection)
        raise translate(error) from error
    finally:
        # The work is done or has failed by now: trouble in giving the connection back must not change the outcome.
        with contextlib.suppress(*_DRIVER_ERRORS):
            connection.remove_log_listener(listen)
            await pool.release(connection)
    if warnings:
        raise OutcomeUnknown(f"committed here, but perhaps not on the standby: {warnings[0]}")


@contextlib.asynccontextmanager
async def transaction(pool: Pool, *, acquire_timeout_ms: int = 5_000) -> AsyncIterator[Connection]:
    """One transaction: committed when the block ends, rolled back when it raises.

    Raises `OutcomeUnknown` when the connection was lost during COMMIT.
    """
    async with connected(pool, acquire_timeout_ms=acquire_timeout_ms) as connection:
        block = connection.transaction()
        await block.start()
        try:
            yield connection
        except BaseException as error:
            await _roll_back(connection, block, error)
            raise
        try:
            await block.commit()
        except _SESSION_LOST as error:
            _drop(connection)
            raise OutcomeUnknown(f"the connection was lost during COMMIT: {error or type(error).__name__}") from error


def _is_lost(error: BaseException) -> bool:
    """Whether the connection is of no more use."""
    return isinstance(error, _SESSION_LOST) and not isinstance(error, (asyncpg.QueryCanceledError, *_REFUSED_VALUES))


def _drop(connection: Connection) -> None:
    """Close without waiting; the pool opens another. The driver may have dropped it by itself."""
    with contextlib.suppress(asyncpg.InterfaceError):
        connection.terminate()


async def _roll_back(connection: Connection, block: Transaction, cause: BaseException) -> None:
    """Roll back; a connection that cannot is closed, which has the same effect."""
    if _is_lost(cause):
        _drop(connection)
        return
    try:
        await block.rollback()
    except _DRIVER_ERRORS:
        _drop(connection)
    except BaseException:
        _drop(connection)
        raise


@dataclass(frozen=True, slots=True)
class CatalogSession:
    """The catalog's statements over one connection."""

    names: NameStatements
    versions: VersionStatements
    garbage: GarbageStatements


def _session(connection: Connection) -> CatalogSession:
    return CatalogSession(NameStatements(connection), VersionStatements(connection), GarbageStatements(connection))


class PostgresCatalogStore:
    """Lends out sessions over a pool from `open_pool`."""

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
        """All or nothing. Raises `OutcomeUnknown` when the connection was lost during COMMIT."""
        async with transaction(self._pool, acquire_timeout_ms=self._acquire_timeout_ms) as connection:
            yield _session(connection)
