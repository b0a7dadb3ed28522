"""Credentials, made and revoked by whoever owns the system."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from shoal_core.audit import Audit, AuditEvent, Outcome, no_audit
from shoal_core.contracts import Access, Credential, CredentialKind, Grant, NewCredential
from shoal_core.errors import InvalidArgument, PermissionDenied
from shoal_core.limits import Limits
from shoal_core.ports import Random
from shoal_frontend.access.principal import MAX_GRANTS, Principal, check_grants
from shoal_frontend.access.secrets import PasswordCost, check_new_user, hash_password, new_token
from shoal_frontend.validate import check_page

LABEL_CHARACTERS = 256
MAX_TTL_MS = 100 * 366 * 24 * 3_600_000


@dataclass(frozen=True, slots=True)
class Admin:
    """Implements `AccessAdmin` for one principal."""

    access: Access
    principal: Principal
    random: Random
    limits: Limits = Limits()
    cost: PasswordCost = PasswordCost()
    audit: Audit = no_audit
    peer: str = ""

    async def create_token(
        self, label: str, grants: Sequence[Grant], *, ttl_ms: int | None = None
    ) -> tuple[Credential, str]:
        token = new_token(self.random)
        with self._audited("create_token", f"token:{token.id} {_described(grants)}"):
            self._check(label, grants, ttl_ms)
            new = NewCredential(CredentialKind.TOKEN, token.id, label, tuple(grants), token.verifier, ttl_ms)
            return await self.access.create_credential(new), token.text

    async def create_user(
        self, name: str, password: str, label: str, grants: Sequence[Grant], *, ttl_ms: int | None = None
    ) -> Credential:
        with self._audited("create_user", f"user:{name[:LABEL_CHARACTERS]} {_described(grants)}"):
            self._check(label, grants, ttl_ms)
            check_new_user(name, password)
            verifier = await asyncio.to_thread(hash_password, password, self.random.token(), self.cost)
            return await self.access.create_credential(
                NewCredential(CredentialKind.USER, name, label, tuple(grants), verifier, ttl_ms)
            )

    async def list_credentials(self, *, after: str = "", limit: int = 100) -> list[Credential]:
        with self._audited("list_credentials", ""):
            self._check_owner()
            check_page(limit, 0, self.limits.page_size)
            return await self.access.list_credentials(after=after, limit=limit)

    async def revoke_credential(self, kind: CredentialKind, credential_id: str) -> None:
        with self._audited("revoke_credential", f"{kind}:{credential_id[:LABEL_CHARACTERS]}"):
            self._check_owner()
            await self.access.revoke_credential(kind, credential_id)

    async def whoami(self) -> tuple[str, tuple[Grant, ...]]:
        return self.principal.id, self.principal.grants

    @contextmanager
    def _audited(self, verb: str, detail: str) -> Iterator[None]:
        event = AuditEvent(verb, Outcome.DONE, self.principal.id, self.peer, detail=detail.rstrip())
        try:
            yield
        except BaseException as error:
            outcome = Outcome.REFUSED if isinstance(error, PermissionDenied) else Outcome.FAILED
            self.audit(replace(event, outcome=outcome, reason=type(error).__name__))
            raise
        self.audit(event)

    def _check(self, label: str, grants: Sequence[Grant], ttl_ms: int | None) -> None:
        self._check_owner()
        check_grants(grants)
        if len(label) > LABEL_CHARACTERS:
            raise InvalidArgument(f"{len(label)} characters; at most {LABEL_CHARACTERS} are allowed", field="label")
        if ttl_ms is not None and not 0 < ttl_ms <= MAX_TTL_MS:
            raise InvalidArgument(f"{ttl_ms}; between 1 and {MAX_TTL_MS} are allowed", field="ttl_ms")

    def _check_owner(self) -> None:
        if not self.principal.owns():
            raise PermissionDenied("only who owns the system manages credentials")


def _described(grants: Sequence[Grant]) -> str:
    shown = (f"{grant.role}:{grant.tenant}/{grant.database}/{grant.collection}" for grant in grants[:MAX_GRANTS])
    return ",".join(shown)
