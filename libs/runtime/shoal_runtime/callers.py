"""Which role may call which service of another. A role is told by the certificate of the connection; without TLS nobody is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from shoal_core.audit import Audit, AuditEvent, Outcome
from shoal_wire.server import peer_address

Context = grpc.aio.ServicerContext[Any, Any]

OPERATOR: Final = "operator"

CALLERS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "shoal.v1.CatalogService": frozenset({"frontend", "querynode", "compactor"}),
        "shoal.v1.AccessService": frozenset({"frontend"}),
        "shoal.v1.FunctionsService": frozenset({"frontend", "compactor"}),
        "shoal.v1.LogService": frozenset({"frontend", "querynode", "compactor"}),
        "shoal.v1.QueryService": frozenset({"frontend"}),
        "shoal.v1.CompactorService": frozenset({OPERATOR}),
    }
)
"""Roles by the service that they may call. A service that is not here is called by nobody."""

OPEN: Final = frozenset({health.SERVICE_NAME, reflection.SERVICE_NAME})
"""For whoever has any certificate of the cluster: they tell whether a process is well, and nothing of what it holds."""


class RoleCheck(grpc.aio.ServerInterceptor):
    """Refuses calls that `CALLERS` does not have, before their message is parsed, and audits that.

    Args:
        domain: see `TlsSection.domain`.
    """

    def __init__(self, domain: str, audit: Audit) -> None:
        self._suffix = f".{domain}"
        self._audit = audit

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See `grpc.aio.ServerInterceptor`."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        service = method.strip("/").rpartition("/")[0]
        if handler is None or service in OPEN:
            return handler
        return self._checked(handler, method.strip("/"), CALLERS.get(service, frozenset()))

    def _checked(self, handler: Any, method: str, allowed: frozenset[str]) -> Any:
        if handler.request_streaming or handler.response_streaming:  # none of ours streams
            return grpc.unary_unary_rpc_method_handler(_refuse)
        behaviour = handler.unary_unary

        async def call(request: Any, context: Context) -> Any:
            roles = self._roles(context)
            if roles.isdisjoint(allowed):
                await self._refuse(context, method, roles)
            return await behaviour(request, context)

        return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)

    def _roles(self, context: Context) -> frozenset[str]:
        names = context.auth_context().get("peer_dns", ())  # not the other kinds of names
        texts = (name.decode("ascii", "replace") for name in names)
        return frozenset(text.removesuffix(self._suffix) for text in texts if text.endswith(self._suffix))

    async def _refuse(self, context: Context, method: str, roles: frozenset[str]) -> None:
        who = ",".join(sorted(roles))
        reason = f"a certificate of {who or 'no role'} does not allow this"
        self._audit(AuditEvent(method, Outcome.REFUSED, principal=who, peer=peer_address(context), reason=reason))
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{reason}; {method} is between services of the cluster")


async def _refuse(request: Any, context: Context) -> AsyncIterator[Any]:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no streams here")
    raise AssertionError
