"""What an audit log records: who did what of lasting effect, and who was refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """How it ended."""

    DONE = "done"
    FAILED = "failed"  # allowed, and then went wrong
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One line of the log. It names things and never has secrets, records or documents.

    Attributes:
        verb: of the public API, such as ``delete_collection``; of gRPC between services ``Service/Method``; ``connect``.
        principal: who: ``token:ID``, ``user:NAME``, ``root``, a role's certificate; empty for nobody known.
        peer: the address that it came from, as far as this process can see.
        tenant, database, collection: what it was about; a collection by name, or by id where that is all there is.
        detail: more about it, such as the new name or a credential's id.
        reason: the kind of error, and why.
    """

    verb: str
    outcome: Outcome
    principal: str = ""
    peer: str = ""
    tenant: str = ""
    database: str = ""
    collection: str = ""
    detail: str = ""
    reason: str = ""


Audit = Callable[[AuditEvent], None]


def no_audit(event: AuditEvent) -> None:
    """Records nothing."""
