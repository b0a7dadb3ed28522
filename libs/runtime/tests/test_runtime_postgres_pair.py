"""A primary and its synchronous standby: what is acknowledged is on both, and a fenced server stays down until it rejoins."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from shoal_core.errors import FailedPrecondition
from shoal_runtime.servers import PostgresPair, PostgresServer

pytestmark = pytest.mark.integration


async def test_a_failover_and_back(tmp_path: Path) -> None:
    pair = PostgresPair(tmp_path)
    await pair.start()
    try:
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
        assert await old.query("SELECT value FROM kept ORDER BY 1") == "1\n2\n3"
        assert await old.query("SELECT pg_is_in_recovery()") == "t"
        await pair.fail_over()
        assert pair.primary is old
        assert await old.query("SELECT count(*) FROM kept") == "3"
    finally:
        await pair.stop()


async def test_a_pair_finds_its_primary_again(tmp_path: Path) -> None:
    pair = PostgresPair(tmp_path)
    await pair.start()
    await pair.primary.query("CREATE TABLE kept (value int)")
    await pair.fail_over()
    await pair.stop()
    alone = PostgresPair(tmp_path)
    await alone.start()
    assert alone.standby.is_fenced
    await alone.primary.query("INSERT INTO kept VALUES (1)")
    await alone.rejoin()
    await alone.stop()
    both = PostgresPair(tmp_path)
    await both.start()
    assert await both.primary.query("SELECT sync_state FROM pg_stat_replication") == "sync"
    assert await both.standby.query("SELECT value FROM kept") == "1"
    await both.stop()


async def test_an_old_primary_that_was_not_fenced_acknowledges_nothing(tmp_path: Path) -> None:
    """Its standby was promoted and follows nobody, so its commits wait for ever; what they wrote is seen by nobody."""
    pair = PostgresPair(tmp_path)
    await pair.start()
    old, new = pair.primary, pair.standby
    await old.query("CREATE TABLE kept (value int)")
    old.kill()
    await new.promote()
    await old.start()
    waiting = asyncio.create_task(old.query("INSERT INTO kept VALUES (1)"))
    while await old.query("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") != "1":
        assert not waiting.done()
        await asyncio.sleep(0.01)
    assert await old.query("SELECT count(*) FROM kept") == "0"
    assert await new.query("SELECT count(*) FROM kept") == "0"
    await old.fence()
    with pytest.raises(Exception, match="psql failed"):
        await waiting
    await new.stop()


async def test_a_standby_that_stands_still_holds_up_commits_until_it_goes_on(tmp_path: Path) -> None:
    pair = PostgresPair(tmp_path)
    await pair.start()
    await pair.primary.query("CREATE TABLE kept (value int)")
    receiver = int(await pair.standby.query("SELECT pid FROM pg_stat_wal_receiver"))
    os.kill(receiver, signal.SIGSTOP)
    waiting = asyncio.create_task(pair.primary.query("INSERT INTO kept VALUES (1)"))
    while await pair.primary.query("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") != "1":
        await asyncio.sleep(0.01)
    assert not waiting.done()
    os.kill(receiver, signal.SIGCONT)
    assert await waiting == "INSERT 0 1"
    await pair.stop()
