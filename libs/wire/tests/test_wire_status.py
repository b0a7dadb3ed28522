"""Errors ↔ status, without a server."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest

from shoal_core import errors
from shoal_core.errors import ShoalError, error_types
from shoal_wire.status import DETAIL_KEY, code_of, error_from_rpc, status_of

Code = grpc.StatusCode


def _rpc_error(code: grpc.StatusCode, details: str = "", *metadata: tuple[str, bytes]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*metadata), details)


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("cls", list(error_types().values()))
def test_every_error_survives(cls: type[ShoalError], write: bool) -> None:
    code, details, metadata = status_of(cls("Grüße", field="ids[3]", retry_after_ms=25))
    found = error_from_rpc(_rpc_error(code, details, *metadata), write=write)
    assert type(found) is cls
    assert (found.message, found.field, found.retry_after_ms) == ("Grüße", "ids[3]", 25)


@pytest.mark.parametrize(
    ("cls", "code"),
    [
        (errors.DimensionMismatch, Code.INVALID_ARGUMENT),
        (errors.StaleEpoch, Code.FAILED_PRECONDITION),
        (errors.Fenced, Code.ABORTED),
        (errors.BackPressure, Code.RESOURCE_EXHAUSTED),
        (errors.OutcomeUnknown, Code.UNKNOWN),
        (errors.Corrupt, Code.DATA_LOSS),
        (ShoalError, Code.INTERNAL),
    ],
)
def test_families_share_a_code(cls: type[ShoalError], code: grpc.StatusCode) -> None:
    assert code_of(cls("x")) is code


@pytest.mark.parametrize(
    ("code", "read", "write"),
    [
        (Code.UNAVAILABLE, errors.Unavailable, errors.OutcomeUnknown),
        (Code.DEADLINE_EXCEEDED, errors.DeadlineExceeded, errors.OutcomeUnknown),
        (Code.CANCELLED, errors.Unavailable, errors.OutcomeUnknown),
        (Code.UNKNOWN, errors.Internal, errors.OutcomeUnknown),
        (Code.INTERNAL, errors.Internal, errors.OutcomeUnknown),
        (Code.UNIMPLEMENTED, errors.Unimplemented, errors.Unimplemented),
        (Code.RESOURCE_EXHAUSTED, errors.ResourceExhausted, errors.ResourceExhausted),
        (Code.NOT_FOUND, errors.NotFound, errors.NotFound),
        (Code.ABORTED, errors.Conflict, errors.Conflict),
        (Code.OUT_OF_RANGE, errors.InvalidArgument, errors.InvalidArgument),
        (Code.DATA_LOSS, errors.Corrupt, errors.Corrupt),
    ],
)
def test_a_status_without_detail_is_read_by_its_code(
    code: grpc.StatusCode, read: type[ShoalError], write: type[ShoalError]
) -> None:
    assert type(error_from_rpc(_rpc_error(code, "gone"), write=False)) is read
    assert type(error_from_rpc(_rpc_error(code, "gone"), write=True)) is write


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x07Unknown"])
def test_a_detail_that_cannot_be_read_falls_back_on_the_code(data: bytes) -> None:
    assert type(error_from_rpc(_rpc_error(Code.NOT_FOUND, "x", (DETAIL_KEY, data)), write=True)) is errors.NotFound


def test_a_write_that_never_left_is_unavailable() -> None:
    error = _rpc_error(Code.UNAVAILABLE, "failed to connect to all addresses; last error: refused")
    assert type(error_from_rpc(error, write=True)) is errors.Unavailable


def test_a_message_that_is_too_large_is_an_invalid_argument() -> None:
    error = _rpc_error(Code.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (9 vs. 4)")
    assert type(error_from_rpc(error, write=True)) is errors.InvalidArgument


@pytest.mark.parametrize("text", ["x" * 100_000, "é" * 100_000, "😀" * 100_000])
def test_long_texts_are_cut_to_what_a_status_can_carry(text: str) -> None:
    _, details, metadata = status_of(errors.InvalidArgument(text, field=text, retry_after_ms=2**40))
    assert len(details.encode()) * 3 + len(metadata[0][1]) * 4 / 3 < 8192
    found = error_from_rpc(_rpc_error(Code.INVALID_ARGUMENT, details, *metadata), write=False)
    assert found.message.startswith(text[:100])
    assert found.message.endswith("…")
    assert found.retry_after_ms == 2**32 - 1
