"""Arguments checked and parsed, and the errors that say what is missing, taken or over."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from shoal_core.contracts import Lease, NewCollection
from shoal_core.errors import AlreadyExists, Fenced, InvalidArgument, NotFound, OffsetExpired

SPACES = ("l2", "cosine", "ip")


def parse_uuid(text: str) -> UUID | None:
    """The UUID if ``text`` is one in its usual form."""
    try:
        parsed = UUID(text)
    except ValueError:
        return None
    return parsed if str(parsed) == text.lower() else None


def parse_uuids(texts: Sequence[str]) -> list[UUID]:
    """Those that are UUIDs; nothing has another id."""
    return [parsed for text in texts if (parsed := parse_uuid(text)) is not None]


def parse_collection_id(text: str) -> UUID:
    """Raises `NotFound`: no collection has another id."""
    parsed = parse_uuid(text)
    if parsed is None:
        raise no_collection(text)
    return parsed


def check_new(new: NewCollection) -> None:
    """Raises `InvalidArgument`."""
    if new.space not in SPACES:
        raise InvalidArgument(f"{new.space!r} is none of {', '.join(SPACES)}", field="space")
    if new.shards < 1:
        raise InvalidArgument(f"{new.shards} is below 1", field="shards")
    if new.dimension is not None and new.dimension < 1:
        raise InvalidArgument(f"{new.dimension} is below 1", field="dimension")


def check_ttl(ttl_ms: int) -> None:
    """Raises `InvalidArgument`."""
    if ttl_ms < 1:
        raise InvalidArgument(f"{ttl_ms} is below 1", field="ttl_ms")


def check_offset(offset: int) -> None:
    """Raises `InvalidArgument`."""
    if offset < 0:
        raise InvalidArgument(f"{offset} is negative", field="offset")


def no_tenant(name: str) -> NotFound:
    """The tenant does not exist."""
    return NotFound(f"no tenant {name!r}", field="tenant")


def no_database(tenant: str, name: str) -> NotFound:
    """The database does not exist."""
    return NotFound(f"no database {name!r} in tenant {tenant!r}", field="database")


def no_collection(collection_id: str) -> NotFound:
    """The collection does not exist or was deleted."""
    return NotFound(f"no collection {collection_id!r}", field="collection_id")


def name_taken(name: str, database: str) -> AlreadyExists:
    """Another collection has the name."""
    return AlreadyExists(f"collection {name!r} exists in database {database!r}", field="name")


def fenced(lease: Lease) -> Fenced:
    """Another holds the lease."""
    return Fenced(f"lease epoch {lease.epoch} of {lease.kind} on {lease.collection_id} is over; stop this job")


def offset_expired(offset: int, oldest_offset: int) -> OffsetExpired:
    """What reading at an offset would need may be gone."""
    return OffsetExpired(
        f"{offset} can no longer be read; the oldest offset that can is {oldest_offset}", field="offset"
    )
