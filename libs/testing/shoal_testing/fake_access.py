"""Credentials in memory, with a clock of the test's choice; held to the same contract cases as sysdb."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from shoal_core.contracts import Credential, CredentialKind, NewCredential, ValidCredential
from shoal_core.errors import AlreadyExists, InvalidArgument, NotFound
from shoal_core.ports import Clock


@dataclass(frozen=True, slots=True)
class _Row:
    credential: Credential
    verifier: bytes
    expires_at_s: float | None


class MemoryAccess:
    """An `Access` that lives as long as it does. ``finds`` counts look-ups."""

    def __init__(self, clock: Clock) -> None:
        self.finds = 0
        self._clock = clock
        self._rows: dict[tuple[str, CredentialKind], _Row] = {}

    async def create_credential(self, new: NewCredential) -> Credential:
        """See `Access.create_credential`."""
        if new.ttl_ms is not None and new.ttl_ms < 1:
            raise InvalidArgument(f"{new.ttl_ms} is below 1", field="ttl_ms")
        if (new.id, new.kind) in self._rows:
            raise AlreadyExists(f"{new.kind} {new.id!r} exists, or was there before", field="id")
        now_ms = self._now_ms()
        expires_at_ms = None if new.ttl_ms is None else now_ms + new.ttl_ms
        expires_at_s = None if new.ttl_ms is None else self._clock.monotonic() + new.ttl_ms / 1000
        credential = Credential(new.kind, new.id, new.label, new.grants, now_ms, expires_at_ms)
        self._rows[new.id, new.kind] = _Row(credential, new.verifier, expires_at_s)
        return credential

    async def find_credential(self, kind: CredentialKind, credential_id: str) -> ValidCredential:
        """See `Access.find_credential`."""
        self.finds += 1
        row = self._row(kind, credential_id)
        left_s = math.inf if row.expires_at_s is None else row.expires_at_s - self._clock.monotonic()
        if row.credential.revoked_at_ms is not None or left_s <= 0:
            raise _missing(kind, credential_id)
        expires_in_ms = None if row.expires_at_s is None else math.ceil(left_s * 1000)
        return ValidCredential(kind, credential_id, row.credential.grants, row.verifier, expires_in_ms)

    async def list_credentials(self, *, after: str, limit: int) -> list[Credential]:
        """See `Access.list_credentials`."""
        credential_id, _, kind = after.rpartition("/")
        rows = sorted(self._rows.items(), key=lambda item: (item[0][0].encode(), item[0][1]))
        after_key = (credential_id.encode(), kind)
        return [row.credential for (item, of), row in rows if (item.encode(), str(of)) > after_key][:limit]

    async def revoke_credential(self, kind: CredentialKind, credential_id: str) -> None:
        """See `Access.revoke_credential`."""
        row = self._row(kind, credential_id)
        if row.credential.revoked_at_ms is None:
            credential = replace(row.credential, revoked_at_ms=self._now_ms())
            self._rows[credential_id, kind] = replace(row, credential=credential)

    def _row(self, kind: CredentialKind, credential_id: str) -> _Row:
        row = self._rows.get((credential_id, kind))
        if row is None:
            raise _missing(kind, credential_id)
        return row

    def _now_ms(self) -> int:
        return self._clock.time_ns() // 1_000_000


def _missing(kind: CredentialKind, credential_id: str) -> NotFound:
    return NotFound(f"no {kind} {credential_id!r}", field="id")
