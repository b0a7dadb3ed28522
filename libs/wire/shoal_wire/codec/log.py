"""Appends, heads and tails ↔ protobuf. Payloads are Arrow IPC bytes that nobody here looks into."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from shoal_core.contracts import (
    EVERYTHING,
    AppendRequest,
    AppendResult,
    Condition,
    HashRange,
    Head,
    Tail,
    TailEntry,
    TailRequest,
)
from shoal_core.errors import InvalidArgument
from shoal_wire.codec.common import decode_token, encode_token
from shoal_wire.v1 import log_pb2 as pb
from shoal_wire.v1 import types_pb2


def encode_condition(condition: Condition | None) -> pb.Condition | None:
    """A condition as a message; None stays None."""
    if condition is None:
        return None
    return pb.Condition(read_offset=condition.read_offset, read_ids=condition.read_ids)


def decode_condition(message: pb.Condition, present: bool) -> Condition | None:
    """The condition, or None if the field was not ``present``."""
    return Condition(message.read_offset, tuple(message.read_ids)) if present else None


def encode_append(request: AppendRequest) -> pb.AppendRequest:
    """An append as a message."""
    return pb.AppendRequest(
        collection_id=request.collection_id,
        epoch=request.epoch,
        tenant=request.tenant,
        payload=request.payload.to_pybytes(),
        idempotency_key=request.idempotency_key,
        condition=encode_condition(request.condition),
    )


def decode_append(message: pb.AppendRequest) -> AppendRequest:
    """The append."""
    return AppendRequest(
        collection_id=message.collection_id,
        epoch=message.epoch,
        tenant=message.tenant,
        payload=pa.py_buffer(message.payload),
        idempotency_key=message.idempotency_key,
        condition=decode_condition(message.condition, message.HasField("condition")),
    )


def encode_append_result(result: AppendResult) -> pb.AppendResponse:
    """An outcome as a message."""
    return pb.AppendResponse(
        token=encode_token(result.token), first_offset=result.first_offset, replayed=result.replayed
    )


def decode_append_result(message: pb.AppendResponse) -> AppendResult:
    """The outcome."""
    return AppendResult(decode_token(message.token), message.first_offset, message.replayed)


def encode_head(head: Head) -> pb.Head:
    """A head as a message."""
    return pb.Head(
        collection_id=head.collection_id,
        epoch=head.epoch,
        incarnation=head.incarnation,
        head_offset=head.head_offset,
        version=head.version,
        compacted_offset=head.compacted_offset,
        dimension=head.dimension,
    )


def decode_head(message: pb.Head) -> Head:
    """The head."""
    return Head(
        collection_id=message.collection_id,
        epoch=message.epoch,
        incarnation=message.incarnation,
        head_offset=message.head_offset,
        version=message.version,
        compacted_offset=message.compacted_offset,
        dimension=message.dimension if message.HasField("dimension") else None,
    )


def encode_tail_request(request: TailRequest) -> pb.ReadTailRequest:
    """A tail request as a message."""
    return pb.ReadTailRequest(
        collection_id=request.collection_id,
        epoch=request.epoch,
        after_offset=request.after_offset,
        up_to_offset=request.up_to_offset,
        hash_range=types_pb2.HashRange(start=request.hash_range.start, last=request.hash_range.last),
        max_size_bytes=request.max_size_bytes,
    )


def decode_tail_request(message: pb.ReadTailRequest) -> TailRequest:
    """The tail request; an absent hash range is everything. Raises `InvalidArgument` for an empty one."""
    present = message.HasField("hash_range")
    hash_range = HashRange(message.hash_range.start, message.hash_range.last) if present else EVERYTHING
    if hash_range.start > hash_range.last:
        raise InvalidArgument("the range is empty", field="hash_range")
    return TailRequest(
        collection_id=message.collection_id,
        epoch=message.epoch,
        after_offset=message.after_offset,
        up_to_offset=message.up_to_offset,
        hash_range=hash_range,
        max_size_bytes=message.max_size_bytes,
    )


def encode_tail(tail: Tail) -> pb.ReadTailResponse:
    """A tail as a message."""
    message = pb.ReadTailResponse(head=encode_head(tail.head), through_offset=tail.through_offset)
    for entry in tail.entries:
        message.entries.add(
            first_offset=entry.first_offset,
            end_offset=entry.end_offset,
            payload=entry.payload.to_pybytes(),
            offsets=b"" if entry.offsets is None else np.ascontiguousarray(entry.offsets, dtype=np.uint64).tobytes(),
        )
    return message


def decode_tail(message: pb.ReadTailResponse) -> Tail:
    """The tail; offsets of no rows come back as None. Raises `InvalidArgument` for offsets that are no uint64."""
    entries = tuple(_decode_entry(entry) for entry in message.entries)
    return Tail(decode_head(message.head), entries, message.through_offset)


def _decode_entry(message: pb.TailEntry) -> TailEntry:
    offsets = message.offsets
    if len(offsets) % 8:
        raise InvalidArgument(f"{len(offsets)} bytes are no whole number of uint64", field="entries.offsets")
    return TailEntry(
        first_offset=message.first_offset,
        end_offset=message.end_offset,
        payload=pa.py_buffer(message.payload),
        offsets=np.frombuffer(offsets, np.uint64) if offsets else None,
    )


def tail_size_bytes(tail: Tail) -> int:
    """The size of the payloads of a tail."""
    return sum(entry.payload.size for entry in tail.entries)
