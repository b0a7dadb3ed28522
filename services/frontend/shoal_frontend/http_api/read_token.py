"""Read tokens: the snapshot that a conditional read saw. A whole number, as clients keep it as one, and opaque to them.

Its upper bits are the log's offset, the lower ones a mark of the collection and its log, by which a token of another collection is
refused. The mark catches mistakes and is no secret: a token opens nothing, as what it is used on is named, and allowed, apart from it.
Up to offset 2⁴⁰ it is a number that JavaScript holds exactly; up to 2⁵⁰ it fits the signed 64 bits of the other clients.
"""

from __future__ import annotations

import zlib

from shoal_core.contracts import Collection
from shoal_core.errors import InvalidArgument

_MARK_BITS = 13


def read_token(collection: Collection, offset: int) -> int:
    """The token of this snapshot."""
    return offset << _MARK_BITS | _mark(collection)


def offset_of(token: int, collection: Collection) -> int:
    """The inverse of `read_token`. Raises `InvalidArgument` for a token of another collection."""
    if token & ((1 << _MARK_BITS) - 1) != _mark(collection):
        raise InvalidArgument(
            "a token of another collection; pass what a read of this one returned", field="read_token"
        )
    return token >> _MARK_BITS


def _mark(collection: Collection) -> int:
    return zlib.crc32(f"{collection.id}:{collection.incarnation}".encode()) & ((1 << _MARK_BITS) - 1)
