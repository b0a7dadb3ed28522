"""Whether a Postgres keeps what it acknowledges, as far as its settings tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from shoal_core.errors import FailedPrecondition

_SETTINGS = """SELECT current_setting('fsync') = 'on' AS fsync, current_setting('full_page_writes') = 'on' AS full_page_writes,
    current_setting('synchronous_commit') AS synchronous_commit,
    current_setting('synchronous_standby_names') AS synchronous_standby_names"""

_WAITS_FOR_STANDBY = ("on", "remote_apply")


class _Session(Protocol):
    async def fetchrow(self, query: str) -> Any: ...


@dataclass(frozen=True, slots=True)
class Durability:
    """The settings of a session, by Postgres's names."""

    fsync: bool
    full_page_writes: bool
    synchronous_commit: str
    synchronous_standby_names: str

    def check(self, *, require_synchronous_standby: bool) -> None:
        """Raises `FailedPrecondition`: a session on this server would acknowledge what may be lost."""
        if self.synchronous_commit == "off":
            raise FailedPrecondition(
                "Postgres has synchronous_commit = off and would lose acknowledged writes; turn it on"
            )
        if not require_synchronous_standby:
            return
        if not self.synchronous_standby_names:
            raise FailedPrecondition(
                "postgres.require_synchronous_standby is set and Postgres has no synchronous_standby_names; name a standby"
            )
        if self.synchronous_commit not in _WAITS_FOR_STANDBY:
            raise FailedPrecondition(
                "postgres.require_synchronous_standby is set and Postgres has synchronous_commit = "
                f"{self.synchronous_commit}; set it to on"
            )

    def warnings(self) -> list[str]:
        """What an operator should hear at start."""
        said = []
        for name, is_on in (("fsync", self.fsync), ("full_page_writes", self.full_page_writes)):
            if not is_on:
                said.append(
                    f"Postgres has {name} = off: a power cut or a crash of its machine loses or damages data; turn it on"
                )
        if self.synchronous_standby_names and self.synchronous_commit not in _WAITS_FOR_STANDBY:
            said.append(
                f"Postgres has standbys and synchronous_commit = {self.synchronous_commit}: commits do not wait until they "
                "are on the disk of one, and a failover may lose them; set it to on"
            )
        return said


async def read_durability(session: _Session) -> Durability:
    """Ask the server, one statement. Raises the driver's errors."""
    row = await session.fetchrow(_SETTINGS)
    return Durability(**dict(row.items()))
