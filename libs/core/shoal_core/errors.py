"""The one error tree of Shoal.

    ShoalError
    ├── InvalidArgument            the request is wrong; sending it again will not help
    │   └── DimensionMismatch
    ├── NotFound
    ├── AlreadyExists
    ├── Unauthenticated
    ├── PermissionDenied
    ├── FailedPrecondition         the state does not allow it
    │   ├── StaleRead              a read token is older than the log still kept
    │   ├── StaleEpoch             a cached name or collection is out of date; look it up again
    │   ├── OffsetExpired          the offset lies below the trim floor
    │   ├── SnapshotGone           a newer version has replaced the snapshot; take a new one
    │   ├── UploadExpired          an object was uploaded too long before it was named
    │   ├── NewerFormat            what is stored was written by a newer release
    │   └── IdempotencyMismatch    the same key came with other content
    ├── Conflict                   lost a race; the caller decides whether to try again
    │   ├── WriteConflict          a conditional write's read set changed
    │   ├── VersionConflict        a publish lost its compare-and-set
    │   └── Fenced                 the lease epoch is no longer the newest
    ├── ResourceExhausted          a limit or quota; carries retry_after_ms
    │   ├── BackPressure
    │   └── QuotaExceeded
    ├── Unavailable                transient; try again
    ├── DeadlineExceeded
    ├── OutcomeUnknown             the write may or may not have happened
    ├── Unimplemented
    └── Internal
        └── Corrupt                a checksum or an invariant does not hold

`shoal_wire.status` maps the tree to gRPC and back. Names of classes travel on the wire; do not rename them.
"""

from __future__ import annotations


class ShoalError(Exception):
    """Root of the tree.

    Attributes:
        message: what is wrong and what to do.
        field: the request field at fault, such as ``ids[3]``; empty if none.
        retry_after_ms: how long to wait before the next try; 0 if unknown.
    """

    retryable = False

    def __init__(self, message: str, *, field: str = "", retry_after_ms: int = 0) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.message = message
        self.field = field
        self.retry_after_ms = retry_after_ms


class InvalidArgument(ShoalError):
    """The request is wrong; sending it again will not help."""


class DimensionMismatch(InvalidArgument):
    """An embedding's dimension differs from the collection's."""


class NotFound(ShoalError):
    """No such tenant, database or collection."""


class AlreadyExists(ShoalError):
    """The name is taken."""


class Unauthenticated(ShoalError):
    """No valid credentials."""


class PermissionDenied(ShoalError):
    """The credentials do not allow this."""


class FailedPrecondition(ShoalError):
    """The state does not allow it."""


class StaleRead(FailedPrecondition):
    """A read token is older than the log still kept; read again."""


class StaleEpoch(FailedPrecondition):
    """A cached name or collection is out of date; look it up again."""

    retryable = True


class OffsetExpired(FailedPrecondition):
    """The offset lies below the trim floor."""


class SnapshotGone(FailedPrecondition):
    """A newer version has replaced the snapshot; take a new one and start again."""

    retryable = True


class UploadExpired(FailedPrecondition):
    """An object was uploaded too long before it was named; upload it again."""


class NewerFormat(FailedPrecondition):
    """What is stored was written by a newer release; upgrade the process that reads it."""


class IdempotencyMismatch(FailedPrecondition):
    """The idempotency key was used before with other content."""


class Conflict(ShoalError):
    """Lost a race; the caller decides whether to try again."""


class WriteConflict(Conflict):
    """A record of a conditional write's read set changed after it was read."""


class VersionConflict(Conflict):
    """A publish lost its compare-and-set."""


class Fenced(Conflict):
    """The lease epoch is no longer the newest; stop this job."""


class ResourceExhausted(ShoalError):
    """A limit or quota was reached; wait ``retry_after_ms`` and try again."""

    retryable = True


class BackPressure(ResourceExhausted):
    """Too much un-compacted data; wait ``retry_after_ms`` and try again."""


class QuotaExceeded(ResourceExhausted):
    """A quota of the tenant is used up, or is too small for the request; waiting does not help."""

    retryable = False


class Unavailable(ShoalError):
    """A transient failure; try again."""

    retryable = True


class DeadlineExceeded(ShoalError):
    """The deadline passed."""


class OutcomeUnknown(ShoalError):
    """The write may or may not have happened; the same idempotency key tells."""

    retryable = True


class Unimplemented(ShoalError):
    """Part of the contract that this release does not serve."""


class Internal(ShoalError):
    """A defect in Shoal."""


class Corrupt(Internal):
    """A checksum or an invariant does not hold."""


def error_types() -> dict[str, type[ShoalError]]:
    """Every class of the tree by its name, as names travel on the wire."""
    found: dict[str, type[ShoalError]] = {}
    queue: list[type[ShoalError]] = [ShoalError]
    while queue:
        cls = queue.pop()
        found[cls.__name__] = cls
        queue.extend(cls.__subclasses__())
    return found
