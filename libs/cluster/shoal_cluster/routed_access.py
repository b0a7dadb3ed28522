"""`Access` over the sysdb members, as `routed_catalog` does it for the catalog."""

from __future__ import annotations

from dataclasses import dataclass

from shoal_cluster.routing import Router, is_transient, nothing_happened
from shoal_core.contracts import Access, Credential, CredentialKind, NewCredential, ValidCredential


@dataclass(frozen=True, slots=True)
class RoutedAccess:
    """See the module and `Access`."""

    router: Router[Access]

    async def create_credential(self, new: NewCredential) -> Credential:
        return await self.router.call(new.id, lambda access: access.create_credential(new), retryable=nothing_happened)

    async def find_credential(self, kind: CredentialKind, credential_id: str) -> ValidCredential:
        return await self.router.call(
            credential_id, lambda access: access.find_credential(kind, credential_id), retryable=is_transient
        )

    async def list_credentials(self, *, after: str, limit: int) -> list[Credential]:
        return await self.router.call(
            "credentials", lambda access: access.list_credentials(after=after, limit=limit), retryable=is_transient
        )

    async def revoke_credential(self, kind: CredentialKind, credential_id: str) -> None:
        await self.router.call(
            credential_id, lambda access: access.revoke_credential(kind, credential_id), retryable=is_transient
        )
