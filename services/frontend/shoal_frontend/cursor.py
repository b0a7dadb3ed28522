"""Cursors: where the next page of a read begins, and the snapshot it comes from. Opaque text to users.

A cursor opens only the collection it was made for. It holds as long as its snapshot is kept; after that reads raise `OffsetExpired`.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace

import numpy as np

from shoal_core.contracts import Answer, Collection
from shoal_core.errors import InvalidArgument
from shoal_core.records import CREATED_OFFSET

_FORMAT = 2
_MOST_CHARACTERS = 512


@dataclass(frozen=True, slots=True)
class Cursor:
    """``offset``: of the snapshot. ``position``: of a ranked search, records shown; else the last ``created_offset`` shown."""

    collection_id: str
    incarnation: str
    offset: int
    position: int
    ranked: bool = False

    def __str__(self) -> str:
        fields = [_FORMAT, self.collection_id, self.incarnation, self.offset, self.position, int(self.ranked)]
        return base64.urlsafe_b64encode(json.dumps(fields, separators=(",", ":")).encode()).decode()

    @classmethod
    def parse(cls, text: str, collection: Collection, *, ranked: bool = False, field: str = "cursor") -> Cursor:
        """The inverse of ``str``. Raises `InvalidArgument` for what is no cursor of such a read of this collection."""
        try:
            if len(text) > _MOST_CHARACTERS:
                raise ValueError("too long")
            version, *fields = json.loads(base64.urlsafe_b64decode(text.encode()))
            if isinstance(version, int) and version != _FORMAT:
                raise InvalidArgument("a cursor of another release; begin again with the first page", field=field)
            collection_id, incarnation, *numbers = fields
            offset, position, kind = map(_whole, numbers)
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidArgument("not a cursor; pass what an answer returned", field=field) from error
        if version != _FORMAT or collection_id != collection.id or incarnation != collection.incarnation:
            raise InvalidArgument("a cursor of another collection", field=field)
        if bool(kind) != ranked:
            raise InvalidArgument("a cursor of another search; one goes on with a rank or without", field=field)
        return cls(collection_id, incarnation, offset, position, ranked)


def with_cursor(answer: Answer, collection: Collection, limit: int | None) -> Answer:
    """A page in order of creation: the first ``limit`` rows of an answer that was asked for one more, which tells what follows."""
    if not limit or answer.rows.num_rows <= limit:
        return answer
    rows = answer.rows.slice(0, limit)
    last = rows.column(CREATED_OFFSET)[-1].as_py()
    following = Cursor(collection.id, collection.incarnation, answer.served_at.offset, last)
    return replace(answer, rows=rows, row_counts=np.array([limit], np.uint32), cursor=str(following))


def _whole(number: object) -> int:
    if type(number) is not int or not 0 <= number < 2**64:
        raise ValueError("not an unsigned 64-bit number")
    return number
