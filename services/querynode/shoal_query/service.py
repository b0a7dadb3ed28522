"""The gRPC face of a query node: decode, call, encode."""

from __future__ import annotations

import grpc.aio

from shoal_core.contracts import Answer, EncodedAnswer, QueryNode
from shoal_wire.codec import reads as codec
from shoal_wire.codec.answers import answer_size_bytes, encode_answer_bytes, encode_count
from shoal_wire.codec.leaves import encode_statistics_answer
from shoal_wire.messages import LARGE_BYTES, sized
from shoal_wire.server import add_service
from shoal_wire.v1 import query_pb2 as pb
from shoal_wire.v1 import types_pb2


class QueryServicer:
    """Serves `QueryNode` as ``shoal.v1.QueryService``."""

    def __init__(self, node: QueryNode) -> None:
        self._node = node

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register with a server that has not been started."""
        add_service(server, pb.DESCRIPTOR, "QueryService", self)

    async def get(self, request: pb.ShardGetRequest) -> bytes:
        return await _answer_bytes(await self._node.get(codec.decode_get(request), encoded=True))

    async def query(self, request: pb.ShardQueryRequest) -> bytes:
        return await _answer_bytes(await self._node.query(codec.decode_query(request), encoded=True))

    async def count(self, request: pb.ShardCountRequest) -> types_pb2.CountAnswer:
        return encode_count(await self._node.count(codec.decode_count_request(request)))

    async def search(self, request: pb.ShardSearchRequest) -> bytes:
        return await _answer_bytes(await self._node.search(codec.decode_search_request(request)))

    async def statistics(self, request: pb.ShardStatisticsRequest) -> pb.ShardStatisticsAnswer:
        return encode_statistics_answer(await self._node.statistics(codec.decode_statistics_request(request)))


async def _answer_bytes(answer: Answer | EncodedAnswer) -> bytes:
    if isinstance(answer, EncodedAnswer):
        return answer.data
    return await sized(answer_size_bytes(answer, LARGE_BYTES), encode_answer_bytes, answer)
