"""Postgres sessions: opening a pool, running a transaction, and what a failure of either means. Stores are built on it.

Failures of the driver leave here as `shoal_core.errors`. A lost, refused or silent server is `Unavailable`: nothing was
committed. The same while COMMIT is under way is `OutcomeUnknown`, and so is a commit that succeeded with a warning: the
server gave up waiting for its standby, so what was written may not survive the loss of the primary. We never make it give
up: a COMMIT under way is not cancelled, for that would end the wait and show others what may be lost. Its connection is cut,
and the server goes on waiting.

A session is one on a primary from beginning to end. A server that turns read-only meanwhile is left.

Transactions run at READ COMMITTED: a row that was waited for is read as it is after the wait. Sessions carry no state of
their own, so connections are returned to the pool without a reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

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
from shoal_storage.postgres_durability import read_durability
from shoal_storage.postgres_hosts import PrimaryFinder, Session
from shoal_storage.spans import statement_span

_log = logging.getLogger(__name__)

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"

DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, EOFError)
_SESSION_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.StatementCompletionUnknownError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the driver's own state machine trips over a server that dies
    OSError,  # TimeoutError too
    EOFError,
)
_TRANSIENT = (
    *_SESSION_LOST,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidCachedStatementError,
)
_LOCK_BUSY = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)
_REFUSED_VALUES = (
    asyncpg.exceptions.DataError,  # by the server
    asyncpg.exceptions._base.DataError,  # by the driver, before it is sent
    asyncpg.ProgramLimitExceededError,
    asyncpg.CheckViolationError,
    asyncpg.NotNullViolationError,
)


class TracedConnection(asyncpg.Connection):
    """A connection whose statements are spans where their callers are recorded, BEGIN and COMMIT among them."""

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """See `asyncpg.Connection`."""
        with statement_span(query):
            return await super().execute(query, *args, timeout=timeout)

    async def fetch(self, query: str, *args: Any, timeout: float | None = None, record_class: Any = None) -> list[Any]:
        """See `asyncpg.Connection`."""
        with statement_span(query):
            return await super().fetch(query, *args, timeout=timeout, record_class=record_class)

    async def fetchrow(self, query: str, *args: Any, timeout: float | None = None, record_class: Any = None) -> Any:
        """See `asyncpg.Connection`."""
        with statement_span(query):
            return await super().fetchrow(query, *args, timeout=timeout, record_class=record_class)

    async def fetchval(self, query: str, *args: Any, column: int = 0, timeout: float | None = None) -> Any:
        """See `asyncpg.Connection`."""
        with statement_span(query):
            return await super().fetchval(query, *args, column=column, timeout=timeout)


class LockBusy(Exception):
    """A lock did not come in time and nothing was written. Never leaves the service that asked for it."""


def translate(error: Exception) -> ShoalError:
    """The driver's error as one of `shoal_core.errors`."""
    if isinstance(error, asyncpg.CheckViolationError) and "no partition" in str(error):
        return Unavailable("there is no partition for the present time yet; try again")
    if isinstance(error, _REFUSED_VALUES):
        return InvalidArgument(f"the database cannot store this value: {error}")
    if isinstance(error, asyncpg.QueryCanceledError):
        return Unavailable("the statement took too long; try again")
    if isinstance(error, _LOCK_BUSY):
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


@contextlib.contextmanager
def database_errors(*, lock_busy: bool = False) -> Iterator[None]:
    """Translate the driver's errors. With ``lock_busy`` a lock time-out or deadlock is `LockBusy`, else `Unavailable`."""
    try:
        yield
    except DRIVER_ERRORS as error:
        if lock_busy and isinstance(error, _LOCK_BUSY):
            raise LockBusy(str(error)) from error
        raise translate(error) from error


async def open_pool(
    dsn: str,
    *,
    application_name: str,
    max_size: int = 10,
    connect_timeout_ms: int = 5_000,
    statement_timeout_ms: int = 10_000,
    lock_timeout_ms: int = 3_000,
    idle_transaction_timeout_ms: int | None = None,
    require_synchronous_standby: bool = False,
) -> Pool:
    """Connect to the primary. A server that stops answering is given up two seconds after ``statement_timeout_ms``.

    Args:
        dsn: may name several hosts; `postgres_hosts` says which of them is taken.
        idle_transaction_timeout_ms: how long a client that froze within a transaction may keep its locks; as long as a
            statement may take by default.
        require_synchronous_standby: use no server without ``synchronous_standby_names``. Looked at when a session
            begins, so also after a failover.

    Raises `Unavailable` when none can be reached, `FailedPrecondition` when it refuses the user or the database, or would
    acknowledge what it may lose.
    """
    idle_timeout_ms = statement_timeout_ms if idle_transaction_timeout_ms is None else idle_transaction_timeout_ms
    settings = {
        "application_name": application_name,
        "statement_timeout": str(statement_timeout_ms),
        "lock_timeout": str(lock_timeout_ms),
        "idle_in_transaction_session_timeout": str(idle_timeout_ms),
        "default_transaction_isolation": "read committed",
        "jit": "off",
        "client_min_messages": "warning",  # a warning is how it is said that the standby was not waited for
    }
    try:
        with database_errors():
            pool = await asyncpg.create_pool(
                dsn,
                min_size=0,  # a floor is restored in the background, with a stack trace in the log for every failure
                max_size=max_size,
                timeout=connect_timeout_ms / 1000,
                command_timeout=statement_timeout_ms / 1000 + 2,
                server_settings=settings,
                connect=PrimaryFinder().connect,
                init=partial(_check_session, require_synchronous_standby),
                reset=_keep_session,
                connection_class=TracedConnection,
            )
            await _warn(pool)
            return pool
    except Unavailable as error:
        if isinstance(error.__cause__, FailedPrecondition):
            raise error.__cause__ from None
        raise


async def _check_session(require_synchronous_standby: bool, session: Session) -> None:
    """Each session anew: after a failover the server is another one, with settings of its own."""
    try:
        (await read_durability(session)).check(require_synchronous_standby=require_synchronous_standby)
    except FailedPrecondition as error:  # it may pass: another standby, another primary
        raise Unavailable(error.message) from error


async def _warn(pool: Pool) -> None:
    try:
        async with pool.acquire() as connection:
            durability = await read_durability(connection)
    except BaseException:
        pool.terminate()
        raise
    for warning in durability.warnings():
        _log.warning("%s", warning)


async def close_pool(pool: Pool, *, timeout_ms: int) -> None:
    """Close its connections; those still lent out after ``timeout_ms`` are cut."""
    try:
        await asyncio.wait_for(pool.close(), timeout_ms / 1000)
    except DRIVER_ERRORS:
        pool.terminate()


async def _keep_session(_connection: object) -> None:
    """Nothing to reset: an open transaction has been rolled back already."""


@contextlib.asynccontextmanager
async def connected(pool: Pool, *, acquire_timeout_ms: int = 5_000) -> AsyncIterator[Connection]:
    """A connection on which every statement commits by itself. Driver errors leave translated.

    Raises `OutcomeUnknown` at the end when the standby was not waited for, `Unavailable` when the server turned read-only.
    """
    async with _lent(pool, acquire_timeout_ms) as connection:
        with _confirmed_by_standby(connection):
            yield connection
        _refuse_read_only(connection)


@contextlib.asynccontextmanager
async def transaction(
    pool: Pool,
    *,
    acquire_timeout_ms: int = 5_000,
    commit_timeout_ms: int = 10_000,
    lock_timeout_ms: int | None = None,
    lock_busy: bool = False,
) -> AsyncIterator[Connection]:
    """One transaction: committed when the block ends, rolled back when it raises.

    Args:
        commit_timeout_ms: how long COMMIT, and in it the standby, is waited for.
        lock_timeout_ms: how long each lock is waited for; the pool's by default.
        lock_busy: raise `LockBusy` when one did not come, instead of `Unavailable`.

    Raises `OutcomeUnknown` when COMMIT was not answered, or the standby was not waited for.
    """
    begin = "BEGIN" if lock_timeout_ms is None else f"BEGIN; SET LOCAL lock_timeout = {int(lock_timeout_ms)}"
    async with _lent(pool, acquire_timeout_ms, lock_busy=lock_busy) as connection:
        await connection.execute(begin)
        try:
            yield connection
        except BaseException as error:
            await _roll_back(connection, error)
            raise
        await _commit(connection, commit_timeout_ms)


@contextlib.asynccontextmanager
async def _lent(pool: Pool, acquire_timeout_ms: int, *, lock_busy: bool = False) -> AsyncIterator[Connection]:
    """A connection of the pool, whose errors leave translated.

    One whose session may be lost, or whose user was cancelled, is cut: its backend's state is not known.
    """
    with database_errors():
        connection = await pool.acquire(timeout=acquire_timeout_ms / 1000)
    try:
        with database_errors(lock_busy=lock_busy):
            yield connection
    except BaseException as error:
        if _is_lost(error.__cause__) or not isinstance(error, Exception):
            _cut(connection)
        raise
    finally:
        # The work is done or has failed by now: trouble in giving the connection back must not change the outcome.
        with contextlib.suppress(*DRIVER_ERRORS):
            await pool.release(connection)


@contextlib.contextmanager
def _confirmed_by_standby(connection: Connection) -> Iterator[None]:
    """Raise `OutcomeUnknown` at the end of a block during which the server warned; an error of the block has precedence."""
    warnings: list[str] = []

    def listen(_connection: object, message: Any) -> None:
        if getattr(message, "severity_en", None) == "WARNING":
            warnings.append(str(message))

    connection.add_log_listener(listen)
    try:
        yield
    finally:
        with contextlib.suppress(asyncpg.InterfaceError):  # of a connection that was cut
            connection.remove_log_listener(listen)
    if warnings:
        raise OutcomeUnknown(f"committed here, but perhaps not on the standby: {warnings[0]}")


async def _commit(connection: Connection, timeout_ms: int) -> None:
    """COMMIT. What the server refuses with an error has been rolled back, and leaves as that error."""
    with _confirmed_by_standby(connection):
        try:
            tag = await _commit_tag(connection, timeout_ms)
        except _SESSION_LOST as error:
            _cut(connection)
            raise OutcomeUnknown(f"the connection was lost during COMMIT: {error or type(error).__name__}") from error
        if tag != "COMMIT":
            raise Unavailable("the database rolled the transaction back; try again")


async def _commit_tag(connection: Connection, timeout_ms: int) -> str:
    """Send COMMIT and return the answer. Neither a cancelled caller nor the end of the time cancels it: see the module."""
    # The driver cancels at the end of its own time, so that must be the later one.
    commit = asyncio.ensure_future(connection.execute("COMMIT", timeout=timeout_ms / 1000 + 60))
    commit.add_done_callback(
        lambda done: done.cancelled() or done.exception()
    )  # looked at, whoever may have gone by then
    try:
        done, _ = await asyncio.wait({commit}, timeout=timeout_ms / 1000)
    except asyncio.CancelledError:
        _cut(connection)
        raise
    if not done:
        _cut(connection)
        raise OutcomeUnknown(f"no answer to COMMIT within {timeout_ms} ms; the database may be waiting for its standby")
    return commit.result()


def _refuse_read_only(connection: Connection) -> None:
    """What was read may be old: this server was demoted or closed to writes, and another one may be the primary.

    The server reports both settings with its answers when they change.
    """
    settings = connection.get_settings()
    names = ("default_transaction_read_only", "in_hot_standby")
    if any(getattr(settings, name, "off") == "on" for name in names):
        _cut(connection)
        raise Unavailable("the database no longer takes writes, so another server may be the primary; try again")


async def _roll_back(connection: Connection, cause: BaseException) -> None:
    """Roll back; a connection that cannot is cut, which has the same effect."""
    if _is_lost(cause) or not isinstance(cause, Exception):
        _cut(connection)
        return
    try:
        await connection.execute("ROLLBACK")
    except BaseException as error:
        _cut(connection)
        if not isinstance(error, DRIVER_ERRORS):
            raise


def _is_lost(error: BaseException | None) -> bool:
    """Whether the connection is of no more use. On a server that is read-only it is of none, another may take writes."""
    useless = (*_SESSION_LOST, asyncpg.ReadOnlySQLTransactionError)
    return isinstance(error, useless) and not isinstance(error, (asyncpg.QueryCanceledError, *_REFUSED_VALUES))


def _cut(connection: Connection) -> None:
    with contextlib.suppress(asyncpg.InterfaceError):  # it has been cut already
        connection.terminate()
