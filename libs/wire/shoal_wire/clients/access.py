"""`Access` and `AccessAdmin` over gRPC."""

from __future__ import annotations

from collections.abc import Sequence

from shoal_core.contracts import Credential, CredentialKind, Grant, NewCredential, ValidCredential
from shoal_wire.codec import access as codec
from shoal_wire.rpc import DEFAULT_TIMEOUT_MS, ChannelSource, Rpc, parsed
from shoal_wire.v1 import access_pb2 as pb
from shoal_wire.v1 import types_pb2

_CREDENTIAL = parsed(pb.Credential, codec.decode_credential)
_CREDENTIALS = parsed(
    pb.ListCredentialsResponse, lambda page: [codec.decode_credential(item) for item in page.credentials]
)
_NOTHING = types_pb2.Empty.FromString


class AccessClient:
    """Implements `Access`."""

    def __init__(self, channel: ChannelSource, timeout_ms: int | None = DEFAULT_TIMEOUT_MS) -> None:
        self._rpc = Rpc("shoal.v1.AccessService", channel, timeout_ms)

    async def create_credential(self, new: NewCredential) -> Credential:
        return await self._rpc.call(
            "CreateCredential", lambda: codec.encode_new_credential(new), _CREDENTIAL, write=True
        )

    async def find_credential(self, kind: CredentialKind, credential_id: str) -> ValidCredential:
        return await self._rpc.call(
            "FindCredential",
            lambda: pb.CredentialRef(kind=kind, id=credential_id),
            parsed(pb.ValidCredential, codec.decode_valid_credential),
        )

    async def list_credentials(self, *, after: str, limit: int) -> list[Credential]:
        return await self._rpc.call(
            "ListCredentials", lambda: pb.ListCredentialsRequest(after=after, limit=limit), _CREDENTIALS
        )

    async def revoke_credential(self, kind: CredentialKind, credential_id: str) -> None:
        await self._rpc.call(
            "RevokeCredential", lambda: pb.CredentialRef(kind=kind, id=credential_id), _NOTHING, write=True
        )


class AccessAdminClient:
    """Implements `AccessAdmin`; ``token`` says who calls."""

    def __init__(self, channel: ChannelSource, timeout_ms: int | None = DEFAULT_TIMEOUT_MS, *, token: str = "") -> None:
        self._rpc = Rpc("shoal.v1.AccessAdminService", channel, timeout_ms, token=token)

    async def create_token(
        self, label: str, grants: Sequence[Grant], *, ttl_ms: int | None = None
    ) -> tuple[Credential, str]:
        return await self._rpc.call(
            "CreateToken",
            lambda: pb.CreateTokenRequest(label=label, grants=codec.encode_grants(grants), ttl_ms=ttl_ms),
            parsed(pb.CreateTokenResponse, lambda answer: (codec.decode_credential(answer.credential), answer.token)),
            write=True,
        )

    async def create_user(
        self, name: str, password: str, label: str, grants: Sequence[Grant], *, ttl_ms: int | None = None
    ) -> Credential:
        return await self._rpc.call(
            "CreateUser",
            lambda: pb.CreateUserRequest(
                name=name, password=password, label=label, grants=codec.encode_grants(grants), ttl_ms=ttl_ms
            ),
            _CREDENTIAL,
            write=True,
        )

    async def list_credentials(self, *, after: str = "", limit: int = 100) -> list[Credential]:
        return await self._rpc.call(
            "ListCredentials", lambda: pb.ListCredentialsRequest(after=after, limit=limit), _CREDENTIALS
        )

    async def revoke_credential(self, kind: CredentialKind, credential_id: str) -> None:
        await self._rpc.call(
            "RevokeCredential", lambda: pb.CredentialRef(kind=kind, id=credential_id), _NOTHING, write=True
        )

    async def whoami(self) -> tuple[str, tuple[Grant, ...]]:
        return await self._rpc.call(
            "Whoami",
            lambda: pb.WhoamiRequest(),
            parsed(pb.WhoamiResponse, lambda answer: (answer.id, codec.decode_grants(answer.grants))),
        )
