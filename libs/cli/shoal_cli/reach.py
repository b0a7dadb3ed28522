"""How commands reach a frontend: plain text, or TLS with these files."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc


@dataclass(frozen=True, slots=True)
class Reach:
    """Options before the command's name; without any of them the connection is plain text."""

    tls: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials | None:
        """For channels to frontends. Raises `InvalidArgument` for files that cannot be read."""
        if not self.tls and self == Reach():
            return None
        from shoal import tls_credentials

        return tls_credentials(self.ca_file, self.cert_file, self.key_file)


def reach_by(options: Reach) -> None:
    """From now on commands of this context reach frontends so."""
    _REACH.set(options)


def credentials_of_command() -> grpc.ChannelCredentials | None:
    """Those of the command line that runs; None for plain text."""
    return (_REACH.get() or Reach()).credentials()


_REACH: ContextVar[Reach | None] = ContextVar("shoal_reach", default=None)
