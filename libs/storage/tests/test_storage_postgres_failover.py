"""Sessions over a real primary and its synchronous standby: which server is used, and what is known when one goes.

The tests share the two servers and leave them as they found them, but for the last, which ends with an old primary.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

import pytest
import pytest_asyncio

from shoal_core.errors import FailedPrecondition, OutcomeUnknown, Unavailable
from shoal_runtime.servers import PostgresPair, free_ports
from shoal_storage.postgres import Pool, connected, open_pool, transaction
from shoal_storage.postgres_hosts import split_hosts
from shoal_testing.processes import postgres_pair

pytestmark = pytest.mark.integration

T = TypeVar("T")
WAITING = "pg_stat_activity WHERE wait_event = 'SyncRep'"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PostgresPair]:
    """A primary and a synchronous standby with table ``kept``."""
    async with postgres_pair(tmp_path_factory.mktemp("pair")) as running:
        await running.primary.query("CREATE TABLE kept (value int)")
        yield running


@pytest.fixture
async def pool(pair: PostgresPair) -> AsyncIterator[Pool]:
    """Of two connections, over both hosts."""
    opened = await open_pool(pair.dsn, application_name="test", max_size=2, statement_timeout_ms=2_000)
    yield opened
    opened.terminate()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Of a host that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


async def insert(pool: Pool, value: int, commit_timeout_ms: int = 10_000) -> None:
    async with transaction(pool, commit_timeout_ms=commit_timeout_ms) as connection:
        await connection.execute("INSERT INTO kept VALUES ($1)", value)


async def count(pool: Pool, value: int) -> int:
    async with connected(pool) as connection:
        return await connection.fetchval("SELECT count(*) FROM kept WHERE value = $1", value)


async def waiting_commits(pair: PostgresPair) -> str:
    """How many sessions of the primary wait for the standby."""
    return await pair.primary.query(f"SELECT count(*) FROM {WAITING}")


@contextlib.asynccontextmanager
async def standing_still(pair: PostgresPair) -> AsyncIterator[None]:
    """The standby takes nothing meanwhile."""
    receiver = int(await pair.standby.query("SELECT pid FROM pg_stat_wal_receiver"))
    os.kill(receiver, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(receiver, signal.SIGCONT)


@contextlib.asynccontextmanager
async def set_to(pair: PostgresPair, name: str, value: str) -> AsyncIterator[None]:
    """A setting of the primary, through its configuration file."""
    before = await pair.primary.query(f"SHOW {name}")
    await pair.primary.configure({name: value})
    await until_it_is(pair, name, value)
    try:
        yield
    finally:
        await pair.primary.configure({name: before})
        await until_it_is(pair, name, before)


async def until_it_is(pair: PostgresPair, name: str, value: str) -> None:
    await until(lambda: pair.primary.query(f"SHOW {name}"), value)


async def until(ask: Callable[[], Awaitable[T]], wanted: T) -> None:
    """Ask until the answer is the one wanted, bounded."""
    for _ in range(500):
        if (said := await ask()) == wanted:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"still {said}, not {wanted}")


async def test_the_primary_is_found_among_hosts_that_are_silent_gone_or_standbys(
    pair: PostgresPair, silent_port: int
) -> None:
    base, database = pair.dsn.partition("@")[0], pair.dsn.rpartition("/")[2]
    others = f"127.0.0.1:{silent_port},127.0.0.1:{free_ports(1)[0]}"
    dsn = f"{base}@{others},127.0.0.1:{pair.standby.port},127.0.0.1:{pair.primary.port}/{database}"
    found = await open_pool(f"{dsn}?target_session_attrs=any", application_name="test", max_size=1)
    assert await found.fetchval("SELECT inet_server_port()") == pair.primary.port
    found.terminate()
    with pytest.raises(Unavailable):
        await open_pool(
            f"{base}@{others},127.0.0.1:{pair.standby.port}/{database}",
            application_name="test",
            connect_timeout_ms=500,
        )
    with pytest.raises(FailedPrecondition, match="password"):
        await open_pool(pair.dsn.replace("shoal:", "shoal:wrong", 1), application_name="test")


async def test_a_commit_whose_standby_stands_still_is_unknown_and_seen_by_nobody(
    pair: PostgresPair, pool: Pool
) -> None:
    async with standing_still(pair):
        with pytest.raises(OutcomeUnknown, match="standby"):
            await insert(pool, 1, commit_timeout_ms=100)
        cancelled = asyncio.create_task(insert(pool, 1))
        await until(lambda: waiting_commits(pair), "2")
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert await count(pool, 1) == 0
        assert await waiting_commits(pair) == "2"
    await until(lambda: count(pool, 1), 2)


async def test_a_session_that_is_ended_while_it_waits_for_the_standby_is_unknown(
    pair: PostgresPair, pool: Pool
) -> None:
    for end in ("pg_terminate_backend", "pg_cancel_backend"):
        async with standing_still(pair):
            waiting = asyncio.create_task(insert(pool, 2))
            await until(lambda: waiting_commits(pair), "1")
            assert await pair.primary.query(f"SELECT {end}(pid) FROM {WAITING}") == "t"
            with pytest.raises(OutcomeUnknown):
                await waiting


async def test_sessions_leave_a_server_that_turned_read_only(pair: PostgresPair, pool: Pool) -> None:
    """As one is that was closed before another one is promoted: what it says may be old."""
    async with connected(pool) as first, connected(pool) as second:  # both connections exist
        assert first is not second
    async with set_to(pair, "default_transaction_read_only", "on"):
        with pytest.raises(Unavailable, match="no longer takes writes"):
            await count(pool, 3)
        with pytest.raises(Unavailable, match="read-only"):
            await insert(pool, 3)
        assert pool.get_idle_size() == 0
        with pytest.raises(Unavailable):
            await count(pool, 3)
    await insert(pool, 3)
    assert await count(pool, 3) == 1


async def test_a_server_that_need_not_wait_for_a_standby_is_refused_on_request(pair: PostgresPair) -> None:
    async def opened() -> Pool:
        return await open_pool(pair.dsn, application_name="test", max_size=1, require_synchronous_standby=True)

    pool = await opened()
    async with set_to(pair, "synchronous_standby_names", ""):
        with pytest.raises(FailedPrecondition, match="synchronous_standby_names"):
            await opened()
        await pool.expire_connections()
        with pytest.raises(Unavailable, match="synchronous_standby_names"):
            await insert(pool, 4)
    await insert(pool, 4)
    pool.terminate()
    async with set_to(pair, "synchronous_commit", "local"):
        with pytest.raises(FailedPrecondition, match="synchronous_commit = local"):
            await opened()
    async with set_to(pair, "synchronous_commit", "off"):
        with pytest.raises(FailedPrecondition, match="synchronous_commit = off"):
            await open_pool(pair.dsn, application_name="test")


async def test_settings_that_lose_data_are_told_at_start(pair: PostgresPair, caplog: pytest.LogCaptureFixture) -> None:
    async def told() -> str:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "shoal_storage.postgres"):
            (await open_pool(pair.dsn, application_name="test")).terminate()
        return caplog.text

    assert await told() == ""
    for name, value in (("fsync", "off"), ("full_page_writes", "off"), ("synchronous_commit", "local")):
        async with set_to(pair, name, value):
            assert f"{name} = {value}" in await told()


async def test_an_old_primary_that_comes_back_is_not_taken_for_the_primary(pair: PostgresPair) -> None:
    old, new = pair.primary, pair.standby
    pool = await open_pool(pair.dsn, application_name="test", max_size=2)
    await insert(pool, 5)
    old.kill()
    await new.promote()
    await insert(pool, 5)
    assert await count(pool, 5) == 2
    await old.start()  # nobody fenced it
    assert await old.query("SELECT count(*) FROM kept WHERE value = 5") == "1"
    fresh = await open_pool(pair.dsn, application_name="test", max_size=1)
    assert await count(fresh, 5) == 2
    misled = await open_pool(old.dsn, application_name="test", max_size=2)  # knows only the old one
    with pytest.raises(OutcomeUnknown):
        await insert(misled, 6, commit_timeout_ms=100)
    assert await count(misled, 6) == 0
    misled.terminate()
    new.kill()
    for known in (pool, fresh):
        for _ in range(3):  # connections of the pool that are gone are found out one by one
            with pytest.raises(Unavailable) as caught:
                await count(known, 5)
        assert "timeline 1" in str(caught.value)
        known.terminate()


def test_hosts_of_a_dsn() -> None:
    assert split_hosts("postgresql://u:p%40x@a:1,b:2/db?sslmode=require") == (
        "postgresql://u:p%40x@a:1/db?sslmode=require",
        "postgresql://u:p%40x@b:2/db?sslmode=require",
    )
    assert split_hosts("postgresql://[::1]:5432,b") == ("postgresql://[::1]:5432", "postgresql://b")
    for alone in ("postgresql://u@h/db", "postgresql:///db?host=/run/postgresql", "postgres://h?application_name=a,b"):
        assert split_hosts(alone) == (alone,)
