"""What sysdb promises about credentials: who may come in, and with which grants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

ANY = "*"


class Role(StrEnum):
    """What a grant allows; each role includes those above it. The names travel on the wire and are kept at rest."""

    READER = "reader"
    WRITER = "writer"
    EDITOR = "editor"
    ADMIN = "admin"
    OWNER = "owner"


class CredentialKind(StrEnum):
    """How a credential is shown. The names travel on the wire and are kept at rest."""

    TOKEN = "token"
    USER = "user"


@dataclass(frozen=True, slots=True)
class Grant:
    """A role within a scope. Each part is an exact name, a prefix that ends in ``*``, or ``*`` for all.

    `Role.OWNER` is of the whole system: its scope is ``*`` throughout. `Role.ADMIN` is of a whole tenant: database and
    collection are ``*``.
    """

    role: Role
    tenant: str
    database: str = ANY
    collection: str = ANY


@dataclass(frozen=True, slots=True)
class NewCredential:
    """What a credential is made of.

    Attributes:
        id: of a token its public part, of a user the name; unique per kind, for ever.
        label: for people.
        verifier: what a secret is checked against; never the secret. Of a token the SHA-256 of its secret, of a user a salted
            slow hash.
        ttl_ms: how long it is good; None without end.
    """

    kind: CredentialKind
    id: str
    label: str
    grants: tuple[Grant, ...]
    verifier: bytes
    ttl_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Credential:
    """A credential as it is listed. Times are milliseconds since 1970 by the database's clock, None for never."""

    kind: CredentialKind
    id: str
    label: str
    grants: tuple[Grant, ...]
    created_at_ms: int
    expires_at_ms: int | None = None
    revoked_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class ValidCredential:
    """A credential that was neither expired nor revoked when it was looked up; ``expires_in_ms`` counts from then."""

    kind: CredentialKind
    id: str
    grants: tuple[Grant, ...]
    verifier: bytes
    expires_in_ms: int | None = None


class Access(Protocol):
    """sysdb: credentials. Grants and names are checked by whoever makes them; uniqueness and time are checked here."""

    async def create_credential(self, new: NewCredential) -> Credential:
        """Raises `AlreadyExists` (also when one of that id was revoked), `InvalidArgument` (``ttl_ms`` below 1)."""
        ...

    async def find_credential(self, kind: CredentialKind, credential_id: str) -> ValidCredential:
        """Raises `NotFound`, also when it is expired or revoked."""
        ...

    async def list_credentials(self, *, after: str, limit: int) -> list[Credential]:
        """A page, all kinds, in order of id, then kind, from ``after`` (excluded; empty: from the start).

        ``after`` is ``id/kind`` of the last one of the page before; see `position_of`.
        """
        ...

    async def revoke_credential(self, kind: CredentialKind, credential_id: str) -> None:
        """For good; again is no error. Raises `NotFound`."""
        ...


class AccessAdmin(Protocol):
    """Credentials as their owner manages them; served by the frontend. Secrets are made or taken here and kept nowhere.

    Every verb but `whoami` raises `PermissionDenied` for whoever does not own the system.
    """

    async def create_token(
        self, label: str, grants: Sequence[Grant], *, ttl_ms: int | None = None
    ) -> tuple[Credential, str]:
        """The credential and the token, which is told once. Raises `InvalidArgument`."""
        ...

    async def create_user(
        self, name: str, password: str, label: str, grants: Sequence[Grant], *, ttl_ms: int | None = None
    ) -> Credential:
        """Raises `InvalidArgument`, `AlreadyExists`."""
        ...

    async def list_credentials(self, *, after: str = "", limit: int = 100) -> list[Credential]:
        """See `Access.list_credentials`."""
        ...

    async def revoke_credential(self, kind: CredentialKind, credential_id: str) -> None:
        """Frontends notice within the time for which they remember credentials. Raises `NotFound`."""
        ...

    async def whoami(self) -> tuple[str, tuple[Grant, ...]]:
        """Id and grants of the caller."""
        ...


def position_of(credential: Credential) -> str:
    """Where in the list it stands, for ``after``."""
    return f"{credential.id}/{credential.kind}"
