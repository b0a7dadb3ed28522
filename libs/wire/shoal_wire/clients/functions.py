"""`Functions` over gRPC."""

from __future__ import annotations

from shoal_core.contracts import AttachedFunction, DueFunction, Lease, NewFunction
from shoal_wire.codec import functions as codec
from shoal_wire.codec.catalog import encode_lease
from shoal_wire.rpc import DEFAULT_TIMEOUT_MS, ChannelSource, Rpc, parsed
from shoal_wire.v1 import functions_pb2 as pb
from shoal_wire.v1 import types_pb2

_FUNCTION = parsed(pb.AttachedFunction, codec.decode_function)
_NOTHING = types_pb2.Empty.FromString


class FunctionsClient:
    """Implements `Functions`."""

    def __init__(self, channel: ChannelSource, timeout_ms: int | None = DEFAULT_TIMEOUT_MS) -> None:
        self._rpc = Rpc("shoal.v1.FunctionsService", channel, timeout_ms)

    async def attach_function(
        self, collection_id: str, new: NewFunction, *, limit: int
    ) -> tuple[AttachedFunction, bool]:
        return await self._rpc.call(
            "AttachFunction",
            lambda: pb.AttachFunctionRequest(
                collection_id=collection_id, function=codec.encode_new_function(new), limit=limit
            ),
            parsed(pb.AttachFunctionResponse, codec.decode_attached),
            write=True,
        )

    async def get_function(self, collection_id: str, name: str) -> AttachedFunction:
        return await self._rpc.call("GetFunction", lambda: _request(collection_id, name), _FUNCTION)

    async def detach_function(self, collection_id: str, name: str) -> None:
        await self._rpc.call("DetachFunction", lambda: _request(collection_id, name), _NOTHING, write=True)

    async def due_functions(self, *, limit: int, skip: int = 0) -> list[DueFunction]:
        return await self._rpc.call(
            "ListDueFunctions",
            lambda: pb.ListDueFunctionsRequest(limit=limit, skip=skip),
            parsed(pb.ListDueFunctionsResponse, lambda page: [codec.decode_due(item) for item in page.functions]),
        )

    async def complete_function(self, lease: Lease, function_id: str, offset: int) -> None:
        await self._rpc.call(
            "CompleteFunction",
            lambda: pb.CompleteFunctionRequest(lease=encode_lease(lease), function_id=function_id, offset=offset),
            _NOTHING,
            write=True,
        )

    async def fail_function(
        self, lease: Lease, function_id: str, error: str, *, retry_ms: int, longest_retry_ms: int
    ) -> None:
        await self._rpc.call(
            "FailFunction",
            lambda: pb.FailFunctionRequest(
                lease=encode_lease(lease),
                function_id=function_id,
                error=error,
                retry_ms=retry_ms,
                longest_retry_ms=longest_retry_ms,
            ),
            _NOTHING,
            write=True,
        )


def _request(collection_id: str, name: str) -> pb.FunctionRequest:
    return pb.FunctionRequest(collection_id=collection_id, name=name)
