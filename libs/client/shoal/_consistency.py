"""What a read may ask of its freshness, as users spell it, and the condition that ties a write to a read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from shoal._prepare import id_list
from shoal._written import WriteResult
from shoal_core import consistency
from shoal_core.consistency import Consistency, ReadLevel, ServedAt, VersionToken
from shoal_core.contracts import Condition
from shoal_core.errors import InvalidArgument

INDEX_ONLY = Consistency(ReadLevel.INDEX_ONLY)


class Served(Protocol):
    """A result of a read."""

    @property
    def served_at(self) -> ServedAt:
        """The snapshot that served it."""
        ...


@dataclass(frozen=True, slots=True)
class Session:
    """See everything up to a write of the same collection. Made by `session`."""

    token: VersionToken


@dataclass(frozen=True, slots=True)
class AsOf:
    """See the same collection as a write left it. Made by `as_of`."""

    token: VersionToken


Freshness = Consistency | Session | AsOf


def session(token: VersionToken | WriteResult | str) -> Session:
    """See at least everything up to the write that returned ``token``: your own writes, or those of whoever passed it on.

    Args:
        token: what a write returned, its ``token``, or the token's text.
    """
    found = _token(token)
    if found is None:
        raise InvalidArgument(f"expected what a write returned, got {type(token).__name__}", field="token")
    return Session(found)


def bounded(staleness_ms: int) -> Consistency:
    """See everything written more than ``staleness_ms`` ago, perhaps more."""
    if isinstance(staleness_ms, bool) or not isinstance(staleness_ms, int) or staleness_ms < 0:
        raise InvalidArgument(f"expected whole milliseconds, at least 0, got {staleness_ms!r}", field="staleness_ms")
    return Consistency(ReadLevel.BOUNDED, staleness_ms=staleness_ms)


def as_of(moment: int | ServedAt | Served | VersionToken | WriteResult | str) -> Consistency | AsOf:
    """See the collection as it was: exactly that snapshot, for as long as it is retained, then `errors.OffsetExpired`.

    Args:
        moment: what a read returned or its ``served_at``, for the same snapshot again; what a write returned, its ``token`` or
            the token's text, for the state that it left; or a log offset, for the end of the last batch at or below it.
    """
    token = _token(moment)
    return AsOf(token) if token is not None else consistency.as_of(_offset(moment, "offset"))


def unless_written_since(moment: int | ServedAt | Served | WriteResult, ids: Any) -> Condition:
    """A write with this condition fails with `errors.WriteConflict` if any of ``ids`` was written after ``moment``.

    It fails with `errors.StaleRead` if the log no longer reaches back to ``moment``. `Collection.conditional` keeps account of
    what was read by itself.

    Args:
        moment: what a read or write of the same collection returned, or a log offset.
        ids: of the records that the write depends on, whether they exist or not.
    """
    offset = moment.token.offset if isinstance(moment, WriteResult) else _offset(moment, "moment")
    chosen = id_list(ids)
    if not chosen:
        raise InvalidArgument("give the ids that must not have been written", field="ids")
    return Condition(offset, tuple(dict.fromkeys(chosen)))


def consistency_for(collection_id: str, freshness: Freshness) -> Consistency:
    """The demand on the reads of one collection. Raises `InvalidArgument` for a token of another collection."""
    if isinstance(freshness, Consistency):
        return freshness
    if not isinstance(freshness, Session | AsOf):
        raise InvalidArgument(
            f"expected shoal.STRONG, INDEX_ONLY, session(...), bounded(...) or as_of(...), got {freshness!r}",
            field="consistency",
        )
    token = freshness.token
    if token.collection_id != collection_id:
        raise InvalidArgument(
            f"the token is of collection {token.collection_id}, this is {collection_id}", field="consistency"
        )
    return Consistency(ReadLevel.SESSION if isinstance(freshness, Session) else ReadLevel.AS_OF, token.offset)


def _token(given: object) -> VersionToken | None:
    if isinstance(given, WriteResult):
        return given.token
    if isinstance(given, str):
        return VersionToken.parse(given)
    return given if isinstance(given, VersionToken) else None


def _offset(moment: object, field: str) -> int:
    served = getattr(moment, "served_at", moment)
    offset = served.offset if isinstance(served, ServedAt) else served
    if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
        raise InvalidArgument(
            f"expected a log offset, at least 0, or what a call returned, got {moment!r:.80}", field=field
        )
    return offset
