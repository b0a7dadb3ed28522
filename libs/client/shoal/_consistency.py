"""What a read may ask of its freshness, as users spell it."""

from __future__ import annotations

from dataclasses import dataclass

from shoal_core.consistency import Consistency, ReadLevel, VersionToken
from shoal_core.contracts import WriteResult
from shoal_core.errors import InvalidArgument

INDEX_ONLY = Consistency(ReadLevel.INDEX_ONLY)


@dataclass(frozen=True, slots=True)
class Session:
    """See everything up to a write of the same collection. Made by `session`."""

    token: VersionToken


Freshness = Consistency | Session


def session(token: VersionToken | WriteResult | str) -> Session:
    """See at least everything up to the write that returned ``token``: your own writes, or those of whoever passed it on.

    Args:
        token: what a write returned, its ``token``, or the token's text.
    """
    if isinstance(token, WriteResult):
        return Session(token.token)
    if isinstance(token, VersionToken):
        return Session(token)
    if isinstance(token, str):
        return Session(VersionToken.parse(token))
    raise InvalidArgument(f"expected what a write returned, got {type(token).__name__}", field="token")


def bounded(staleness_ms: int) -> Consistency:
    """See everything written more than ``staleness_ms`` ago, perhaps more."""
    if isinstance(staleness_ms, bool) or not isinstance(staleness_ms, int) or staleness_ms < 0:
        raise InvalidArgument(f"expected whole milliseconds, at least 0, got {staleness_ms!r}", field="staleness_ms")
    return Consistency(ReadLevel.BOUNDED, staleness_ms=staleness_ms)


def as_of(offset: int) -> Consistency:
    """See the collection as it was after the batch that ended at log offset ``offset``.

    Servers do not serve it yet: a read with it raises `Unimplemented`.
    """
    if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
        raise InvalidArgument(f"expected a log offset, at least 0, got {offset!r}", field="offset")
    return Consistency(ReadLevel.AS_OF, offset=offset)


def consistency_for(collection_id: str, freshness: Freshness) -> Consistency:
    """The demand on the reads of one collection. Raises `InvalidArgument` for a session of another collection."""
    if isinstance(freshness, Consistency):
        return freshness
    if not isinstance(freshness, Session):
        raise InvalidArgument(
            f"expected shoal.STRONG, INDEX_ONLY, session(...), bounded(...) or as_of(...), got {freshness!r}",
            field="consistency",
        )
    if freshness.token.collection_id != collection_id:
        raise InvalidArgument(
            f"the token is of collection {freshness.token.collection_id}, this is {collection_id}", field="consistency"
        )
    return Consistency(ReadLevel.SESSION, offset=freshness.token.offset)
