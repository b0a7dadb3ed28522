"""Errors ↔ gRPC status: the one mapping, in both directions.

A status carries its error as a serialised `ErrorDetail` in the trailing metadata ``shoal-error-bin``. A status without
one comes from gRPC itself (no connection, a deadline) or from a foreign server, and is read by its code.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from shoal_core import errors
from shoal_core.errors import ShoalError, error_types
from shoal_wire.v1 import types_pb2 as pb

DETAIL_KEY = "shoal-error-bin"

# gRPC drops a status whose metadata exceed 8 KiB, so what goes into it is cut.
_MAX_MESSAGE_BYTES = 3000
_MAX_FIELD_BYTES = 500
_MAX_DETAILS_CHARACTERS = 200

_CODES: dict[type[ShoalError], grpc.StatusCode] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Conflict: grpc.StatusCode.ABORTED,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.OutcomeUnknown: grpc.StatusCode.UNKNOWN,
    errors.Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    errors.Corrupt: grpc.StatusCode.DATA_LOSS,
    errors.Internal: grpc.StatusCode.INTERNAL,
    ShoalError: grpc.StatusCode.INTERNAL,
}

# For a status without detail. A read that was cancelled or broken off may simply be sent again.
_BY_CODE: dict[grpc.StatusCode, type[ShoalError]] = {
    **{code: cls for cls, code in _CODES.items() if cls not in (ShoalError, errors.OutcomeUnknown)},
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidArgument,
    grpc.StatusCode.CANCELLED: errors.Unavailable,
}

# After these a write without detail may have happened.
_AMBIGUOUS = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)

# How gRPC begins the details of a status that it made before it had any connection to send the request over.
_NOT_SENT = ("failed to connect to all addresses", "DNS resolution failed")


def code_of(error: ShoalError) -> grpc.StatusCode:
    """The gRPC status code of an error."""
    return next(_CODES[cls] for cls in type(error).__mro__ if cls in _CODES)


def encode_detail(error: ShoalError) -> pb.ErrorDetail:
    """An error as a message, its texts cut to what a status can carry."""
    return pb.ErrorDetail(
        type=type(error).__name__,
        message=_cut(error.message, _MAX_MESSAGE_BYTES),
        field=_cut(error.field, _MAX_FIELD_BYTES),
        retry_after_ms=min(max(error.retry_after_ms, 0), 2**32 - 1),
    )


def status_of(error: ShoalError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """Code, details and trailing metadata, as ``context.abort`` takes them."""
    details = _cut(str(error)[:_MAX_DETAILS_CHARACTERS], _MAX_MESSAGE_BYTES)
    return code_of(error), details, ((DETAIL_KEY, encode_detail(error).SerializeToString()),)


def error_from_rpc(error: grpc.RpcError, *, write: bool) -> ShoalError:
    """The error that a failed call stands for.

    Args:
        error: what a call of grpc or grpc.aio raised.
        write: the call may have changed something. Then an ambiguous status without detail becomes `OutcomeUnknown`,
            unless gRPC says that it never had a connection to send the request over.
    """
    call: Any = error  # grpc.RpcError declares none of what both its kinds have
    code, details = call.code(), str(call.details() or "")
    detailed = _decode_detail(call.trailing_metadata())
    if detailed is not None:
        return detailed
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "message larger than max" in details:
        return errors.InvalidArgument(f"too large for one message, send less at a time: {details}")
    sent = not (code is grpc.StatusCode.UNAVAILABLE and details.startswith(_NOT_SENT))
    if write and sent and code in _AMBIGUOUS:
        return errors.OutcomeUnknown(
            f"no answer to a write ({code.name}: {details}); send it again with the same idempotency key"
        )
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return errors.Unimplemented(
            f"the server does not know this call: it is of an earlier release than the caller, or no Shoal; upgrade it ({details})"
        )
    return _BY_CODE.get(code, errors.Internal)(f"{code.name}: {details}")


def _decode_detail(metadata: Iterable[tuple[str, str | bytes]] | None) -> ShoalError | None:
    for key, value in metadata or ():
        if key == DETAIL_KEY and isinstance(value, bytes):
            try:
                detail = pb.ErrorDetail.FromString(value)
            except DecodeError:
                return None
            cls = error_types().get(detail.type)
            if cls is None:
                return None
            return cls(detail.message, field=detail.field, retry_after_ms=detail.retry_after_ms)
    return None


def _cut(text: str, size_bytes: int) -> str:
    data = text.encode("utf-8", "replace")
    return data.decode("utf-8") if len(data) <= size_bytes else data[: size_bytes - 3].decode("utf-8", "ignore") + "…"
