"""`QueryNode` over gRPC."""

from __future__ import annotations

from shoal_core.contracts import (
    Answer,
    CountAnswer,
    CountRequest,
    EncodedAnswer,
    GetRequest,
    QueryRequest,
    SearchRequest,
    StatisticsAnswer,
    StatisticsRequest,
)
from shoal_wire.codec import reads as codec
from shoal_wire.codec.answers import decode_answer, decode_count
from shoal_wire.codec.common import ids_work
from shoal_wire.codec.filters import encoding_work
from shoal_wire.codec.leaves import decode_statistics_answer, leaves_size_bytes
from shoal_wire.rpc import DEFAULT_TIMEOUT_MS, ChannelSource, Rpc, parsed
from shoal_wire.v1 import query_pb2, types_pb2

_COUNT = parsed(types_pb2.CountAnswer, decode_count)
_STATISTICS = parsed(query_pb2.ShardStatisticsAnswer, decode_statistics_answer)


class QueryClient:
    """Implements `QueryNode`. With ``encoded`` the answer is the bytes as they came, unparsed."""

    def __init__(self, channel: ChannelSource, timeout_ms: int | None = DEFAULT_TIMEOUT_MS) -> None:
        self._channel = channel
        self._rpc = Rpc("shoal.v1.QueryService", channel, timeout_ms)

    def with_timeout(self, timeout_ms: int | None) -> QueryClient:
        """The same client with another timeout."""
        return QueryClient(self._channel, timeout_ms)

    async def get(self, request: GetRequest, *, encoded: bool = False) -> Answer | EncodedAnswer:
        decode = EncodedAnswer if encoded else decode_answer
        size_bytes = _selection_work(request)
        return await self._rpc.call("Get", lambda: codec.encode_get(request), decode, size_bytes=size_bytes)

    async def query(self, request: QueryRequest, *, encoded: bool = False) -> Answer | EncodedAnswer:
        decode = EncodedAnswer if encoded else decode_answer
        size_bytes = request.vectors.nbytes + _selection_work(request)
        return await self._rpc.call("Query", lambda: codec.encode_query(request), decode, size_bytes=size_bytes)

    async def count(self, request: CountRequest) -> CountAnswer:
        size_bytes = encoding_work(request.where)
        return await self._rpc.call("Count", lambda: codec.encode_count_request(request), _COUNT, size_bytes=size_bytes)

    async def search(self, request: SearchRequest) -> Answer:
        size_bytes = leaves_size_bytes(request.leaves) + _selection_work(request)
        return await self._rpc.call(
            "Search", lambda: codec.encode_search_request(request), decode_answer, size_bytes=size_bytes
        )

    async def statistics(self, request: StatisticsRequest) -> StatisticsAnswer:
        return await self._rpc.call("Statistics", lambda: codec.encode_statistics_request(request), _STATISTICS)


def _selection_work(request: GetRequest | QueryRequest | SearchRequest) -> int:
    return ids_work(len(request.ids or ())) + encoding_work(request.where)
