"""Cursors: where the next page of a read begins, and the snapshot it comes from. Opaque text to users.

A cursor opens only the collection it was made for. It holds as long as its snapshot is kept; after that reads raise `OffsetExpired`.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass

from shoal_core.contracts import Collection
from shoal_core.errors import InvalidArgument

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Cursor:
    """``offset``: of the snapshot. ``position``: of a get, the last ``created_offset`` shown; of a search, records shown."""

    collection_id: str
    incarnation: str
    offset: int
    position: int

    def __str__(self) -> str:
        fields = [_FORMAT, self.collection_id, self.incarnation, self.offset, self.position]
        return base64.urlsafe_b64encode(json.dumps(fields, separators=(",", ":")).encode()).decode()

    @classmethod
    def parse(cls, text: str, collection: Collection) -> Cursor:
        """The inverse of ``str``. Raises `InvalidArgument` for what is no cursor of this collection."""
        try:
            version, collection_id, incarnation, offset, position = json.loads(base64.urlsafe_b64decode(text.encode()))
        except (ValueError, TypeError) as error:
            raise InvalidArgument("not a cursor; pass what an answer returned", field="cursor") from error
        if version != _FORMAT or collection_id != collection.id or incarnation != collection.incarnation:
            raise InvalidArgument("a cursor of another collection", field="cursor")
        if not all(isinstance(value, int) and 0 <= value < 2**64 for value in (offset, position)):
            raise InvalidArgument("not a cursor; pass what an answer returned", field="cursor")
        return cls(collection_id, incarnation, offset, position)
