"""Sessions on a real Postgres: what a transaction leaves behind, and what its failures mean."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from shoal_core.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, OutcomeUnknown, Unavailable
from shoal_runtime.servers import free_ports
from shoal_storage.postgres import Connection, LockBusy, Pool, connected, database_errors, open_pool, transaction

pytestmark = pytest.mark.integration


@pytest.fixture
async def pool(fresh_database: str) -> AsyncIterator[Pool]:
    """Of one connection."""
    pool = await open_pool(fresh_database, application_name="test", max_size=1)
    await pool.execute("CREATE TABLE parent (id int PRIMARY KEY)")
    await pool.execute("CREATE TABLE child (id int UNIQUE DEFERRABLE INITIALLY DEFERRED, parent int REFERENCES parent)")
    yield pool
    await pool.close()


async def backend(pool: Pool) -> int:
    async with connected(pool) as connection:
        return connection.get_server_pid()


async def run(pool: Pool, *statements: str) -> None:
    async with transaction(pool) as connection:
        for statement in statements:
            await connection.execute(statement)


async def test_transactions_roll_back_and_connections_are_reused(pool: Pool) -> None:
    async def insert_and_raise(error: BaseException) -> None:
        async with transaction(pool) as connection:
            await connection.execute("INSERT INTO parent VALUES (1)")
            raise error

    with pytest.raises(KeyError):
        await insert_and_raise(KeyError())
    async with transaction(pool) as connection:
        pid = connection.get_server_pid()
        assert await connection.fetchval("SELECT count(*) FROM parent") == 0
    with pytest.raises(asyncio.CancelledError):
        await insert_and_raise(asyncio.CancelledError())
    assert await backend(pool) != pid
    assert await pool.fetchval("SELECT count(*) FROM parent") == 0


async def test_a_commit_of_a_failed_transaction_is_no_success(pool: Pool) -> None:
    async def go_on_after_an_error() -> None:
        async with transaction(pool) as connection:
            with pytest.raises(asyncpg.UndefinedTableError):
                await connection.execute("SELECT FROM nothing_here")

    with pytest.raises(Unavailable, match="rolled"):
        await go_on_after_an_error()


async def test_a_commit_that_the_server_refuses_is_that_error(pool: Pool) -> None:
    pid = await backend(pool)
    with pytest.raises(AlreadyExists):
        await run(pool, "INSERT INTO child VALUES (1, NULL), (1, NULL)")
    assert await pool.fetchval("SELECT count(*) FROM child") == 0
    assert await backend(pool) == pid


async def test_refused_statements_say_why(pool: Pool) -> None:
    pid = await backend(pool)
    with pytest.raises(AlreadyExists):
        await run(pool, "INSERT INTO parent VALUES (1), (1)")
    with pytest.raises(NotFound):
        await run(pool, "INSERT INTO child VALUES (1, 7)")
    with pytest.raises(InvalidArgument):
        await run(pool, "INSERT INTO parent VALUES (1 / 0)")
    assert await backend(pool) == pid


async def test_a_value_that_the_driver_refuses_costs_no_connection(pool: Pool) -> None:
    pid = await backend(pool)
    for context in (connected, transaction):
        with pytest.raises(InvalidArgument):
            async with context(pool) as connection:
                await connection.fetchval("SELECT $1::int", 1 << 40)
    assert await backend(pool) == pid


async def test_a_lock_that_does_not_come_is_told_apart_on_request(pool: Pool, fresh_database: str) -> None:
    other = await open_pool(fresh_database, application_name="test")
    lock = "LOCK TABLE parent"
    async with transaction(pool) as holder:
        await holder.execute(lock)
        with pytest.raises(Unavailable):
            async with transaction(other, lock_timeout_ms=20) as connection:
                await connection.execute(lock)
        with pytest.raises(LockBusy):
            async with transaction(other, lock_timeout_ms=20, lock_busy=True) as connection:
                await connection.execute(lock)
    await other.close()


async def test_a_warning_leaves_a_statement_that_committed_by_itself_in_doubt(pool: Pool) -> None:
    """The server sends one when it gives up waiting for its standby."""

    async def warn(connection: Connection) -> None:
        await connection.execute("DO $$ BEGIN RAISE WARNING 'no standby'; END $$")

    async def notice(connection: Connection) -> None:
        await connection.execute("DO $$ BEGIN RAISE NOTICE 'all is well'; END $$")

    with pytest.raises(OutcomeUnknown, match="no standby"):
        async with connected(pool) as connection:
            await warn(connection)
    async with connected(pool) as connection:
        await notice(connection)
    async with transaction(pool) as connection:  # here only COMMIT counts
        await warn(connection)


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.InternalClientError("cannot switch to state 12"),
        asyncpg.ConnectionDoesNotExistError("gone"),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.AdminShutdownError("terminating"),
        asyncpg.TooManyConnectionsError("full"),
        asyncpg.ReadOnlySQLTransactionError("standby"),
        asyncpg.QueryCanceledError("slow"),
        ConnectionResetError(),
        TimeoutError(),
    ],
)
def test_every_way_of_losing_a_server_is_unavailable(error: Exception) -> None:
    with pytest.raises(Unavailable), database_errors():
        raise error


async def test_a_server_that_is_not_there(postgres_dsn: str) -> None:
    with pytest.raises(Unavailable):
        await open_pool(f"postgresql://nobody@127.0.0.1:{free_ports(1)[0]}/x", application_name="test")
    with pytest.raises(FailedPrecondition):
        await open_pool(postgres_dsn + "_not", application_name="test")
