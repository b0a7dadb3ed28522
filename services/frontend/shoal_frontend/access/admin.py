"""Credentials, made and revoked by whoever owns the system."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from shoal_core.contracts import Access, Credential, CredentialKind, Grant, NewCredential
from shoal_core.errors import InvalidArgument, PermissionDenied
from shoal_core.limits import Limits
from shoal_core.ports import Random
from shoal_frontend.access.principal import Principal, check_grants
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

    async def create_token(
        self, label: str, grants: Sequence[Grant], *, ttl_ms: int | None = None
    ) -> tuple[Credential, str]:
        self._check(label, grants, ttl_ms)
        token = new_token(self.random)
        new = NewCredential(CredentialKind.TOKEN, token.id, label, tuple(grants), token.verifier, ttl_ms)
        return await self.access.create_credential(new), token.text

    async def create_user(
        self, name: str, password: str, label: str, grants: Sequence[Grant], *, ttl_ms: int | None = None
    ) -> Credential:
        self._check(label, grants, ttl_ms)
        check_new_user(name, password)
        verifier = await asyncio.to_thread(hash_password, password, self.random.token(), self.cost)
        return await self.access.create_credential(
            NewCredential(CredentialKind.USER, name, label, tuple(grants), verifier, ttl_ms)
        )

    async def list_credentials(self, *, after: str = "", limit: int = 100) -> list[Credential]:
        self._check_owner()
        check_page(limit, 0, self.limits.page_size)
        return await self.access.list_credentials(after=after, limit=limit)

    async def revoke_credential(self, kind: CredentialKind, credential_id: str) -> None:
        self._check_owner()
        await self.access.revoke_credential(kind, credential_id)

    async def whoami(self) -> tuple[str, tuple[Grant, ...]]:
        return self.principal.id, self.principal.grants

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
