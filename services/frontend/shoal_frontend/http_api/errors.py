"""Errors as the reference system's clients know them: a status, a name and a message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from shoal_core import errors
from shoal_core.errors import ShoalError
from shoal_frontend.http_api.body_error import BodyError

INTERNAL = "something went wrong here; the server's log says what, under the trace id of this answer"

_ANSWERS: Mapping[type[ShoalError], tuple[int, str]] = {
    errors.InvalidArgument: (400, "InvalidArgumentError"),
    errors.Unauthenticated: (401, "ChromaError"),
    errors.PermissionDenied: (403, "ChromaError"),
    errors.NotFound: (404, "NotFoundError"),
    errors.AlreadyExists: (409, "ChromaError"),
    errors.Conflict: (409, "ChromaError"),
    errors.WriteConflict: (409, "ConditionalWriteConflictError"),
    errors.FailedPrecondition: (412, "ChromaError"),
    errors.StaleRead: (412, "StaleReadError"),
    errors.StaleEpoch: (503, "ChromaError"),
    errors.SnapshotGone: (503, "ChromaError"),
    errors.ResourceExhausted: (429, "Backoff"),
    errors.QuotaExceeded: (422, "ChromaError"),
    errors.Unimplemented: (501, "ChromaError"),
    errors.Unavailable: (503, "ChromaError"),
    errors.DeadlineExceeded: (504, "ChromaError"),
    errors.OutcomeUnknown: (504, "ChromaError"),
    ShoalError: (500, "InternalError"),
}


def answer_of(error: ShoalError | BodyError) -> tuple[int, dict[str, Any]]:
    """The status and the JSON body of an error."""
    if isinstance(error, BodyError):
        return 422, {"error": "ChromaError", "message": error.message}
    status, name = next(_ANSWERS[cls] for cls in type(error).__mro__ if cls in _ANSWERS)
    return status, {"error": name, "message": INTERNAL if status == 500 else str(error)}


@contextmanager
def reworded(found: type[ShoalError], message: str, to: type[ShoalError] | None = None) -> Iterator[None]:
    """Errors of one kind get the words that clients know, and another kind where they know them as that."""
    try:
        yield
    except found as error:
        raise (to or type(error))(message, retry_after_ms=error.retry_after_ms) from error
