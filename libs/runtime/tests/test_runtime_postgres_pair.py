"""A primary and its synchronous standby: what is acknowledged is on both, and a fenced server stays down until it rejoins."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from shoal_core.errors import FailedPrecondition, Unavailable
from shoal_runtime.servers import PostgresServer
from shoal_testing.processes import postgres_pair

pytestmark = pytest.mark.integration


async def until_a_commit_waits(server: PostgresServer) -> None:
    for _ in range(500):
        if await server.query("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") == "1":
            return
        await asyncio.sleep(0.01)
    raise AssertionError("no commit waits for the standby")


async def test_a_failover_and_back(tmp_path: Path) -> None:
    async with postgres_pair(tmp_path) as pair:
        old = pair.primary
        await old.query("CREATE TABLE kept (value int)")
        await old.query("INSERT INTO kept VALUES (1)")
        with pytest.raises(FailedPrecondition, match="standby that runs"):
            await old.promote()
        await pair.fail_over()
        assert pair.standby is old
        await pair.primary.query("INSERT INTO kept VALUES (2)")
        with pytest.raises(FailedPrecondition, match="was fenced"):
            await old.start()
        with pytest.raises(FailedPrecondition, match="was fenced"):
            await PostgresServer(tmp_path / "a").start()
        await pair.rejoin()
        await pair.primary.query("INSERT INTO kept VALUES (3)")
        await pair.fail_over()
        assert pair.primary is old
        assert await old.query("SELECT value FROM kept ORDER BY 1") == "1\n2\n3"


async def test_a_pair_finds_its_primary_again(tmp_path: Path) -> None:
    async with postgres_pair(tmp_path) as pair:
        await pair.primary.query("CREATE TABLE kept (value int)")
        await pair.fail_over()
    async with postgres_pair(tmp_path) as alone:
        assert alone.standby.is_fenced
        await alone.primary.query("INSERT INTO kept VALUES (1)")
        await alone.rejoin()
    async with postgres_pair(tmp_path) as both:
        assert await both.primary.query("SELECT sync_state FROM pg_stat_replication") == "sync"
        assert await both.standby.query("SELECT pg_is_in_recovery()") == "t"


async def test_an_old_primary_that_was_not_fenced_acknowledges_nothing(tmp_path: Path) -> None:
    """Its standby was promoted and follows nobody, so its commits wait for ever; what they wrote is seen by nobody."""
    async with postgres_pair(tmp_path) as pair:
        old, new = pair.primary, pair.standby
        await old.query("CREATE TABLE kept (value int)")
        old.kill()
        await new.promote()
        await old.start()
        waiting = asyncio.create_task(old.query("INSERT INTO kept VALUES (1)"))
        await until_a_commit_waits(old)
        assert await old.query("SELECT count(*) FROM kept") == "0"
        assert await new.query("SELECT count(*) FROM kept") == "0"
        assert not waiting.done()
        await old.fence()
        with pytest.raises(Unavailable, match="psql failed"):
            await waiting


async def test_a_standby_that_stands_still_holds_up_commits_until_it_goes_on(tmp_path: Path) -> None:
    async with postgres_pair(tmp_path) as pair:
        await pair.primary.query("CREATE TABLE kept (value int)")
        receiver = int(await pair.standby.query("SELECT pid FROM pg_stat_wal_receiver"))
        os.kill(receiver, signal.SIGSTOP)
        try:
            waiting = asyncio.create_task(pair.primary.query("INSERT INTO kept VALUES (1)"))
            await until_a_commit_waits(pair.primary)
            assert not waiting.done()
        finally:
            os.kill(receiver, signal.SIGCONT)
        assert await waiting == "INSERT 0 1"
