"""A Postgres and its synchronous standby on one machine, and the failover from one to the other."""

from __future__ import annotations

import asyncio
from pathlib import Path

from shoal_core.errors import FailedPrecondition, Unavailable
from shoal_runtime.servers.postgres import PostgresServer

_NAMES = ("a", "b")
_STANDBYS = "synchronous_standby_names"
_SYNCHRONOUS_TIMEOUT_S = 60.0
_POLL_S = 0.05


class PostgresPair:
    """Two servers under one directory: every commit on the primary waits until the standby has it on its disk.

    Which of them is the primary is read from their data, so a pair may be started again after any end.
    """

    def __init__(self, data_dir: Path) -> None:
        self._servers = {name: PostgresServer(data_dir / name) for name in _NAMES}
        self._primary = _NAMES[0]

    @property
    def primary(self) -> PostgresServer:
        """The server that writes go to."""
        return self._servers[self._primary]

    @property
    def standby(self) -> PostgresServer:
        """The other one; fenced between `fail_over` and `rejoin`."""
        return self._servers[self._other]

    @property
    def dsn(self) -> str:
        """postgresql:// URL that names both; known once started."""
        first, second = (self._servers[name] for name in _NAMES)
        return first.dsn.replace(f":{first.port}/", f":{first.port},127.0.0.1:{second.port}/")

    async def start(self) -> None:
        """Start both; returns when the standby is synchronous. Raises as `PostgresServer.start` does."""
        self._find_primary()
        if self.primary.is_standby:
            raise FailedPrecondition("the primary is fenced and its standby was not promoted; call fail_over")
        if self.standby.is_fenced:
            await self.primary.start()
            return
        await self._require_standby()
        await self.primary.start()
        await self._make_slot()
        self.standby.follow(self.primary.upstream(self._other))
        await self.standby.start()
        await self._wait_for_standby()

    async def stop(self) -> None:
        """Stop the standby last: what the primary commits at its end still reaches it."""
        await self.primary.stop()
        await self.standby.stop()

    def kill(self) -> None:
        """SIGKILL both."""
        for server in self._servers.values():
            server.kill()

    async def fail_over(self) -> None:
        """Fence the primary, then promote the standby, which from then on commits alone until `rejoin`.

        Every commit that was acknowledged is on the standby. Only call it while the standby was synchronous.
        """
        await self.primary.fence()
        await self.standby.configure({_STANDBYS: ""})
        await self.standby.promote()
        self._primary = self._other

    async def rejoin(self) -> None:
        """Bring the fenced server back as the synchronous standby, with a new copy of the data."""
        await self._make_slot()
        await self.standby.rejoin(self.primary.upstream(self._other))
        await self._require_standby()
        await self._wait_for_standby()

    @property
    def _other(self) -> str:
        return next(name for name in _NAMES if name != self._primary)

    def _find_primary(self) -> None:
        for name, server in self._servers.items():
            if server.is_standby or server.is_fenced:
                self._primary = next(other for other in _NAMES if other != name)

    async def _make_slot(self) -> None:
        """The log that the standby has not taken yet is kept for it."""
        known = f"SELECT FROM pg_replication_slots WHERE slot_name = '{self._other}'"
        statement = f"SELECT pg_create_physical_replication_slot('{self._other}', true) WHERE NOT EXISTS ({known})"
        await self.primary.query(statement)

    async def _require_standby(self) -> None:
        await self.primary.configure({_STANDBYS: self._other})

    async def _wait_for_standby(self) -> None:
        state = f"SELECT sync_state FROM pg_stat_replication WHERE application_name = '{self._other}'"
        for _ in range(int(_SYNCHRONOUS_TIMEOUT_S / _POLL_S)):
            if await self.primary.query(state) == "sync":
                return
            await asyncio.sleep(_POLL_S)
        raise Unavailable(f"the standby is not synchronous after {_SYNCHRONOUS_TIMEOUT_S:g} s; see its log")
