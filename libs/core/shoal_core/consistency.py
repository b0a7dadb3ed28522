"""Consistency levels of reads, version tokens of writes, and what an answer says about the snapshot that served it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

from shoal_core.errors import InvalidArgument


class ReadLevel(IntEnum):
    """How fresh a read must be. The numbers travel on the wire."""

    STRONG = 0
    SESSION = 1
    BOUNDED = 2
    INDEX_ONLY = 3
    AS_OF = 4


@dataclass(frozen=True, slots=True)
class Consistency:
    """A read's demand.

    Attributes:
        level: see `ReadLevel`.
        offset: for SESSION the token's offset, for AS_OF the offset asked for; else 0.
        staleness_ms: for BOUNDED, how old the known head may be.
    """

    level: ReadLevel = ReadLevel.STRONG
    offset: int = 0
    staleness_ms: int = 0


STRONG = Consistency()


def as_of(offset: int) -> Consistency:
    """A read at the end of the last batch at or below this offset."""
    return Consistency(ReadLevel.AS_OF, offset)


_TOKEN = re.compile(r"([^:]+):([^:]+):([0-9]{1,20})")


@dataclass(frozen=True, slots=True)
class VersionToken:
    """What a write returns: the collection, its log incarnation and the end offset of the batch."""

    collection_id: str
    incarnation: str
    offset: int

    def __str__(self) -> str:
        return f"{self.collection_id}:{self.incarnation}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> VersionToken:
        """The inverse of ``str``. Raises `InvalidArgument`."""
        match = _TOKEN.fullmatch(text)
        if match is None or int(match[3]) >= 2**64:
            raise InvalidArgument("not a version token; pass what a write returned", field="token")
        return cls(match[1], match[2], int(match[3]))


@dataclass(frozen=True, slots=True)
class ServedAt:
    """The snapshot that served an answer: log offset (all of it and nothing later) and manifest version."""

    offset: int
    version: int
