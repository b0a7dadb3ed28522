"""Values of the public API alone ↔ protobuf."""

from __future__ import annotations

from shoal_core.contracts import CollectionRef, IndexingStatus, WriteResult
from shoal_wire.codec.common import decode_token, encode_token
from shoal_wire.v1 import shoal_pb2 as pb


def encode_ref(ref: CollectionRef) -> pb.CollectionRef:
    """A collection as a user names it, as a message."""
    return pb.CollectionRef(tenant=ref.tenant, database=ref.database, name=ref.name, id=ref.id)


def decode_ref(message: pb.CollectionRef) -> CollectionRef:
    """The collection as a user names it."""
    return CollectionRef(message.tenant, message.database, message.name, message.id)


def encode_write_result(result: WriteResult) -> pb.WriteResponse:
    """An accepted batch as a message."""
    return pb.WriteResponse(
        token=encode_token(result.token),
        first_offset=result.first_offset,
        records=result.records,
        outcomes=result.outcomes,
        read_offset=result.read_offset,
    )


def decode_write_result(message: pb.WriteResponse) -> WriteResult:
    """The accepted batch."""
    return WriteResult(
        token=decode_token(message.token),
        first_offset=message.first_offset,
        records=message.records,
        outcomes=message.outcomes if message.HasField("outcomes") else None,
        read_offset=message.read_offset if message.HasField("read_offset") else None,
    )


def encode_indexing_status(status: IndexingStatus) -> pb.IndexingStatusResponse:
    """How far compaction is, as a message."""
    return pb.IndexingStatusResponse(
        head_offset=status.head_offset,
        indexed_offset=status.indexed_offset,
        version=status.version,
        segments=status.segments,
    )


def decode_indexing_status(message: pb.IndexingStatusResponse) -> IndexingStatus:
    """How far compaction is."""
    return IndexingStatus(message.head_offset, message.indexed_offset, message.version, message.segments)
