"""Finding the primary among the hosts of a DSN.

All hosts are asked at once, so one that is silent (its machine is gone, its network drops packets) delays nobody; trying
them in turn would spend the whole time on the first. If two take writes, the one on the newer timeline is meant: a
promotion starts a new timeline, so the other is an old primary that nobody fenced. A pool remembers the newest timeline it
has seen and refuses sessions on older ones. That is a second line of defence: it cannot help a process that
reaches the old primary alone and has never seen the new one. Fencing can.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, TypeAlias

import asyncpg
from asyncpg.connect_utils import SessionAttribute

Session: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

_GRACE_S = 0.25  # how long the other hosts may still answer once one that takes writes has
_TIMELINE = "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int"


class OldTimeline(asyncpg.InterfaceError):
    """Only an old primary answers; it must be fenced. The message says how old."""


def split_hosts(dsn: str) -> tuple[str, ...]:
    """One DSN per host of ``postgresql://user:password@host:port,host:port/database?…``, alike in all else."""
    scheme, separator, rest = dsn.partition("://")
    end = min((at for mark in "/?#" if (at := rest.find(mark)) >= 0), default=len(rest))
    credentials, at_sign, hosts = rest[:end].rpartition("@")
    return tuple(f"{scheme}{separator}{credentials}{at_sign}{host}{rest[end:]}" for host in hosts.split(","))


class PrimaryFinder:
    """Opens sessions on the primary: one finder for each pool, which remembers the newest timeline."""

    def __init__(self) -> None:
        self._timeline = 0

    async def connect(self, dsn: str | None = None, *, timeout: float = 5.0, **options: Any) -> Session:
        """A session on the host of ``dsn`` that takes writes, within ``timeout`` seconds.

        Raises the driver's errors: `TargetServerAttributeNotMatched` when all that answer are standbys, `OldTimeline`.
        """
        options["target_session_attrs"] = SessionAttribute.read_write
        hosts = split_hosts(dsn or "")
        if len(hosts) == 1:
            return await asyncpg.connect(dsn, timeout=timeout, **options)
        tasks = [asyncio.create_task(_open(host, timeout, options)) for host in hosts]
        try:
            await _first_answers(tasks)
        except BaseException:
            for _, session in (await _collect(tasks))[0]:
                session.terminate()
            raise
        found, errors = await _collect(tasks)
        if not found:
            raise _most_telling(errors)
        return self._newest(found)

    def _newest(self, found: list[tuple[int, Session]]) -> Session:
        found.sort(key=lambda pair: pair[0])
        timeline, session = found.pop()
        for _, other in found:
            other.terminate()
        if timeline < self._timeline:
            session.terminate()
            raise OldTimeline(
                f"the server that takes writes is on timeline {timeline}, timeline {self._timeline} was seen before: fence "
                "this old primary, or restart this process if the database was restored from a backup"
            )
        self._timeline = timeline
        return session


async def _open(dsn: str, timeout: float, options: dict[str, Any]) -> tuple[int, Session]:
    """A session and its timeline."""
    session = await asyncpg.connect(dsn, timeout=timeout, **options)
    try:
        return await session.fetchval(_TIMELINE, timeout=timeout), session
    except BaseException:
        session.terminate()
        raise


async def _first_answers(tasks: list[asyncio.Task[tuple[int, Session]]]) -> None:
    """Return when all have ended, or a while after the first success."""
    waiting = set(tasks)
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if any(task.exception() is None for task in done):
            if waiting:
                await asyncio.wait(waiting, timeout=_GRACE_S)
            return


async def _collect(
    tasks: list[asyncio.Task[tuple[int, Session]]],
) -> tuple[list[tuple[int, Session]], list[BaseException]]:
    """End those still under way; what came of the others."""
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    found = [result for result in results if not isinstance(result, BaseException)]
    errors = [
        result
        for result in results
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError)
    ]
    return found, errors


def _most_telling(errors: Iterable[BaseException]) -> BaseException:
    """A refusal of user or database says more than a standby, and that more than a host that is not there."""
    order = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, BaseException)
    return min(errors, key=lambda error: next(rank for rank, kind in enumerate(order) if isinstance(error, kind)))
