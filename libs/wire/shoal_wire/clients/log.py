"""`Log` over gRPC."""

from __future__ import annotations

from shoal_core.contracts import AppendRequest, AppendResult, Head, Tail, TailRequest
from shoal_wire.codec import log as codec
from shoal_wire.rpc import DEFAULT_TIMEOUT_MS, ChannelSource, Rpc, parsed
from shoal_wire.v1 import log_pb2 as pb

_RESULT = parsed(pb.AppendResponse, codec.decode_append_result)
_HEAD = parsed(pb.Head, codec.decode_head)
_TAIL = parsed(pb.ReadTailResponse, codec.decode_tail)


class LogClient:
    """Implements `Log`."""

    def __init__(self, channel: ChannelSource, timeout_ms: int | None = DEFAULT_TIMEOUT_MS) -> None:
        self._channel = channel
        self._rpc = Rpc("shoal.v1.LogService", channel, timeout_ms)

    def with_timeout(self, timeout_ms: int | None) -> LogClient:
        """The same client with another timeout."""
        return LogClient(self._channel, timeout_ms)

    async def append(self, request: AppendRequest) -> AppendResult:
        size_bytes = request.payload.size
        return await self._rpc.call(
            "Append", lambda: codec.encode_append(request), _RESULT, write=True, size_bytes=size_bytes
        )

    async def read_index(self, collection_id: str, epoch: int) -> Head:
        return await self._rpc.call(
            "ReadIndex", lambda: pb.ReadIndexRequest(collection_id=collection_id, epoch=epoch), _HEAD
        )

    async def read_tail(self, request: TailRequest) -> Tail:
        return await self._rpc.call("ReadTail", lambda: codec.encode_tail_request(request), _TAIL)
