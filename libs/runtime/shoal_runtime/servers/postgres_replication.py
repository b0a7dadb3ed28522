"""How one Postgres follows another: what to write into its configuration, and the mark of a server that was fenced."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shoal_core.errors import FailedPrecondition
from shoal_runtime.servers.postgres_files import sync_directory

_MARK = "FENCED"


@dataclass(frozen=True, slots=True)
class Upstream:
    """The primary that a standby follows, on 127.0.0.1.

    Attributes:
        port: TCP port of the primary.
        user, password: of a role that may replicate.
        name: of the standby, as the primary's ``synchronous_standby_names`` may list it; also of its slot.
    """

    port: int
    user: str
    password: str
    name: str

    @property
    def settings(self) -> Mapping[str, str]:
        """Lines of the standby's postgresql.conf."""
        parts = {
            "host": "127.0.0.1",
            "port": str(self.port),
            "user": self.user,
            "password": self.password,
            "application_name": self.name,
        }
        conninfo = " ".join(f"{key}={value}" for key, value in parts.items())
        return {
            "primary_conninfo": conninfo,
            "primary_slot_name": self.name,
            # A standby that lost its primary sleeps so long before it looks again, also for the order to promote.
            "wal_retrieve_retry_interval": "200ms",
        }

    @property
    def backup_arguments(self) -> tuple[str, ...]:
        """For pg_basebackup, besides the target: a copy with the log written meanwhile, kept for it by a slot."""
        where = ("--host=127.0.0.1", f"--port={self.port}", f"--username={self.user}", "--no-password")
        return (*where, "--checkpoint=fast", "--wal-method=stream", f"--slot={self.name}")


class FenceMark:
    """A file that says: this server was fenced, another one may have been promoted; it must not serve as it is."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / _MARK

    @property
    def is_set(self) -> bool:
        """Whether the server was fenced."""
        return self._path.exists()

    def refuse(self) -> None:
        """Raises `FailedPrecondition` if it is set."""
        if self.is_set:
            raise FailedPrecondition(
                f"the Postgres in {self._path.parent} was fenced so that its standby could be promoted; rejoin it as a "
                f"standby, or remove {self._path} if nothing was promoted"
            )

    def set(self) -> None:
        """Durable when it returns; blocking."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.touch(mode=0o600)
        sync_directory(self._path.parent)

    def clear(self) -> None:
        """Durable when it returns; blocking."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        sync_directory(self._path.parent)
