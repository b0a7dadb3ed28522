"""What the frontend asks of query nodes ↔ protobuf."""

from __future__ import annotations

from shoal_core.contracts import CountRequest, GetRequest, QueryRequest, SearchRequest, StatisticsRequest, Target
from shoal_core.errors import InvalidArgument
from shoal_wire.codec.common import (
    decode_consistency,
    decode_ids,
    decode_include,
    decode_recall,
    decode_vectors,
    encode_consistency,
    encode_ids,
    encode_include,
    encode_vectors,
)
from shoal_wire.codec.filters import decode_filter, encode_filter
from shoal_wire.codec.leaves import decode_asks, decode_leaves, encode_ask, encode_leaf
from shoal_wire.v1 import query_pb2 as pb


def encode_target(target: Target) -> pb.Target:
    """A shard as a message."""
    return pb.Target(
        collection_id=target.collection_id,
        epoch=target.epoch,
        space=target.space,
        shard=target.shard,
        shards=target.shards,
    )


def decode_target(message: pb.Target) -> Target:
    """The shard. Raises `InvalidArgument` unless it is one of its collection's."""
    if not message.shard < message.shards:
        raise InvalidArgument(f"no shard {message.shard} of {message.shards}", field="target.shard")
    return Target(message.collection_id, message.epoch, message.space, message.shard, message.shards)


def encode_get(request: GetRequest) -> pb.ShardGetRequest:
    """A get as a message."""
    return pb.ShardGetRequest(
        target=encode_target(request.target),
        consistency=encode_consistency(request.consistency),
        snapshot_offset=request.snapshot_offset,
        ids=encode_ids(request.ids),
        where=None if request.where is None else encode_filter(request.where),
        limit=request.limit,
        offset=request.offset,
        include=encode_include(request.include),
        explain=request.explain,
        after_created=request.after_created,
    )


def decode_get(message: pb.ShardGetRequest) -> GetRequest:
    """The get. Raises `InvalidArgument`."""
    return GetRequest(
        target=decode_target(message.target),
        consistency=decode_consistency(message.consistency),
        snapshot_offset=message.snapshot_offset,
        ids=decode_ids(message.ids, message.HasField("ids")),
        where=decode_filter(message.where) if message.HasField("where") else None,
        limit=message.limit if message.HasField("limit") else None,
        offset=message.offset,
        include=decode_include(message.include),
        explain=message.explain,
        after_created=message.after_created,
    )


def encode_query(request: QueryRequest) -> pb.ShardQueryRequest:
    """A query as a message."""
    dimension, vectors = encode_vectors(request.vectors)
    return pb.ShardQueryRequest(
        target=encode_target(request.target),
        consistency=encode_consistency(request.consistency),
        snapshot_offset=request.snapshot_offset,
        dimension=dimension,
        vectors=vectors,
        k=request.k,
        ids=encode_ids(request.ids),
        where=None if request.where is None else encode_filter(request.where),
        include=encode_include(request.include),
        ef=request.ef,
        exact=request.exact,
        explain=request.explain,
        recall=request.recall,
    )


def decode_query(message: pb.ShardQueryRequest) -> QueryRequest:
    """The query. Raises `InvalidArgument`."""
    return QueryRequest(
        target=decode_target(message.target),
        vectors=decode_vectors(message.dimension, message.vectors),
        k=message.k,
        consistency=decode_consistency(message.consistency),
        snapshot_offset=message.snapshot_offset,
        ids=decode_ids(message.ids, message.HasField("ids")),
        where=decode_filter(message.where) if message.HasField("where") else None,
        include=decode_include(message.include),
        ef=message.ef,
        exact=message.exact,
        explain=message.explain,
        recall=decode_recall(message.recall),
    )


def encode_count_request(request: CountRequest) -> pb.ShardCountRequest:
    """A count as a message."""
    return pb.ShardCountRequest(
        target=encode_target(request.target),
        consistency=encode_consistency(request.consistency),
        snapshot_offset=request.snapshot_offset,
        where=None if request.where is None else encode_filter(request.where),
        explain=request.explain,
    )


def decode_count_request(message: pb.ShardCountRequest) -> CountRequest:
    """The count. Raises `InvalidArgument`."""
    return CountRequest(
        target=decode_target(message.target),
        consistency=decode_consistency(message.consistency),
        snapshot_offset=message.snapshot_offset,
        where=decode_filter(message.where) if message.HasField("where") else None,
        explain=message.explain,
    )


def encode_search_request(request: SearchRequest) -> pb.ShardSearchRequest:
    """A search of one shard as a message."""
    return pb.ShardSearchRequest(
        target=encode_target(request.target),
        consistency=encode_consistency(request.consistency),
        snapshot_offset=request.snapshot_offset,
        leaves=[encode_leaf(leaf) for leaf in request.leaves],
        ids=encode_ids(request.ids),
        where=None if request.where is None else encode_filter(request.where),
        exact=request.exact,
        explain=request.explain,
        ef=request.ef,
        recall=request.recall,
    )


def decode_search_request(message: pb.ShardSearchRequest) -> SearchRequest:
    """The search of one shard. Raises `InvalidArgument`."""
    return SearchRequest(
        target=decode_target(message.target),
        leaves=decode_leaves(message.leaves),
        snapshot_offset=message.snapshot_offset,
        consistency=decode_consistency(message.consistency),
        ids=decode_ids(message.ids, message.HasField("ids")),
        where=decode_filter(message.where) if message.HasField("where") else None,
        exact=message.exact,
        explain=message.explain,
        ef=message.ef,
        recall=decode_recall(message.recall),
    )


def encode_statistics_request(request: StatisticsRequest) -> pb.ShardStatisticsRequest:
    """A request for statistics as a message."""
    return pb.ShardStatisticsRequest(
        target=encode_target(request.target),
        consistency=encode_consistency(request.consistency),
        snapshot_offset=request.snapshot_offset,
        asks=[encode_ask(ask) for ask in request.asks],
    )


def decode_statistics_request(message: pb.ShardStatisticsRequest) -> StatisticsRequest:
    """The request for statistics. Raises `InvalidArgument`."""
    return StatisticsRequest(
        target=decode_target(message.target),
        asks=decode_asks(message.asks),
        snapshot_offset=message.snapshot_offset,
        consistency=decode_consistency(message.consistency),
    )
