"""The gRPC face of credentials, and how gRPC requests show theirs."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar

import grpc.aio

from shoal_core.contracts import Access, AccessAdmin
from shoal_core.errors import FailedPrecondition, Unauthenticated
from shoal_core.limits import Limits
from shoal_core.ports import Random
from shoal_frontend.access.admin import Admin
from shoal_frontend.access.entrance import Entrance, Session
from shoal_wire.codec import access as codec
from shoal_wire.server import add_service
from shoal_wire.v1 import access_pb2 as pb
from shoal_wire.v1.types_pb2 import Empty

_SESSION: ContextVar[Session] = ContextVar("shoal_session")


class Door:
    """Admits each call of a servicer, which then asks for its `session`."""

    def __init__(self, entrance: Entrance) -> None:
        self._entrance = entrance

    async def admit(self, metadata: Iterable[tuple[str, str | bytes]], peer: str) -> None:
        """For ``admit`` of `add_service`."""
        texts = {key: value for key, value in metadata if isinstance(value, str)}
        _SESSION.set(await self._entrance.admit(texts.get, peer))

    @property
    def session(self) -> Session:
        """Of the call under way. Raises `Unauthenticated` outside of one."""
        try:
            return _SESSION.get()
        except LookupError:
            raise Unauthenticated("no call is under way") from None


class AccessAdminServicer:
    """Serves `AccessAdmin` as ``shoal.v1.AccessAdminService``, where callers are known: else any of them could make an owner that
    stays when authentication is turned on.
    """

    def __init__(self, entrance: Entrance, access: Access, random: Random, limits: Limits | None = None) -> None:
        self._entrance = entrance
        self._door = Door(entrance)
        self._access = access
        self._random = random
        self._limits = limits or Limits()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register with a server that has not been started."""
        add_service(server, pb.DESCRIPTOR, "AccessAdminService", self, admit=self._door.admit)

    @property
    def _admin(self) -> AccessAdmin:
        if self._entrance.is_open:
            raise FailedPrecondition(
                "this frontend does not ask who calls; start it with a root token first (frontend.access.root_token)"
            )
        session = self._door.session
        return Admin(
            self._access, session.principal, self._random, self._limits, audit=self._entrance.audit, peer=session.peer
        )

    async def create_token(self, request: pb.CreateTokenRequest) -> pb.CreateTokenResponse:
        credential, token = await self._admin.create_token(
            request.label,
            codec.decode_grants(request.grants),
            ttl_ms=request.ttl_ms if request.HasField("ttl_ms") else None,
        )
        return pb.CreateTokenResponse(credential=codec.encode_credential(credential), token=token)

    async def create_user(self, request: pb.CreateUserRequest) -> pb.Credential:
        credential = await self._admin.create_user(
            request.name,
            request.password,
            request.label,
            codec.decode_grants(request.grants),
            ttl_ms=request.ttl_ms if request.HasField("ttl_ms") else None,
        )
        return codec.encode_credential(credential)

    async def list_credentials(self, request: pb.ListCredentialsRequest) -> pb.ListCredentialsResponse:
        found = await self._admin.list_credentials(after=request.after, limit=request.limit)
        return pb.ListCredentialsResponse(credentials=[codec.encode_credential(item) for item in found])

    async def revoke_credential(self, request: pb.CredentialRef) -> Empty:
        await self._admin.revoke_credential(codec.decode_kind(request.kind), request.id)
        return Empty()

    async def whoami(self, request: pb.WhoamiRequest) -> pb.WhoamiResponse:
        principal_id, grants = await self._admin.whoami()
        return pb.WhoamiResponse(id=principal_id, grants=codec.encode_grants(grants))
