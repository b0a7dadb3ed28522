"""The gRPC face of the log: decode, call, encode."""

from __future__ import annotations

import grpc.aio

from shoal_core.contracts import Log
from shoal_wire.codec import log as codec
from shoal_wire.messages import sized
from shoal_wire.server import add_service
from shoal_wire.v1 import log_pb2 as pb


class LogServicer:
    """Serves `Log` as ``shoal.v1.LogService``."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register with a server that has not been started."""
        add_service(server, pb.DESCRIPTOR, "LogService", self)

    async def append(self, request: pb.AppendRequest) -> pb.AppendResponse:
        return codec.encode_append_result(await self._log.append(codec.decode_append(request)))

    async def read_index(self, request: pb.ReadIndexRequest) -> pb.Head:
        return codec.encode_head(await self._log.read_index(request.collection_id, request.epoch))

    async def read_tail(self, request: pb.ReadTailRequest) -> bytes:
        tail = await self._log.read_tail(codec.decode_tail_request(request))
        return await sized(codec.tail_size_bytes(tail), lambda: codec.encode_tail(tail).SerializeToString())
