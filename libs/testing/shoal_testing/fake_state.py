"""What the fakes of catalog and log share: the state of a collection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pyarrow as pa

from shoal_core.contracts import Collection, Head, NewCollection, VersionInfo
from shoal_core.errors import InvalidArgument

Hook = Callable[[str], None]

_SPACES = ("l2", "cosine", "ip")


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """One batch as the log keeps it. ``total_bytes`` is cumulative, this entry included."""

    first_offset: int
    end_offset: int
    payload: pa.Buffer
    ids: frozenset[str]
    total_bytes: int
    committed_ms: float


@dataclass(slots=True)
class CollectionState:
    """A collection with its log and its versions, ``versions[n]`` being version n: what catalog and log share."""

    collection: Collection
    versions: list[VersionInfo]
    alive: bool = True
    head_offset: int = 0
    total_bytes: int = 0
    trim_floor: int = 0
    entries: list[StoredEntry] = field(default_factory=list)
    recorded: dict[str, tuple[bytes, int, int]] = field(default_factory=dict)

    @property
    def current(self) -> VersionInfo:
        """The current version."""
        return self.versions[-1]

    @property
    def uncompacted(self) -> list[StoredEntry]:
        """Entries after the compacted offset."""
        return [entry for entry in self.entries if entry.end_offset > self.current.compacted_offset]

    @property
    def head(self) -> Head:
        """As readers know it."""
        made, version = self.collection, self.current
        return Head(
            made.id,
            made.epoch,
            made.incarnation,
            self.head_offset,
            version.version,
            version.compacted_offset,
            made.dimension,
        )

    def is_batch_end(self, offset: int) -> bool:
        """Whether a batch that is still kept ends there, or the log is kept from there on."""
        return offset == self.trim_floor or any(entry.end_offset == offset for entry in self.entries)

    def check_compactable(self, offset: int) -> None:
        """Raises `InvalidArgument` when nothing may be compacted up to there."""
        current = self.current.compacted_offset
        if offset == current:
            return
        if not current < offset <= self.head_offset:
            raise InvalidArgument(f"{offset} is not within {current}..{self.head_offset}", field="compacted_offset")
        if not self.is_batch_end(offset):
            raise InvalidArgument(f"{offset} is not the end of a batch", field="compacted_offset")

    def delete(self) -> None:
        """The collection is gone; what it holds is left."""
        self.alive = False
        self.collection = replace(self.collection, epoch=self.collection.epoch + 1)


def check_new(new: NewCollection) -> None:
    """Raises `InvalidArgument`."""
    if new.space not in _SPACES:
        raise InvalidArgument(f"{new.space!r} is none of {', '.join(_SPACES)}", field="space")
    if new.shards < 1:
        raise InvalidArgument(f"{new.shards} is below 1", field="shards")
    if new.dimension is not None and new.dimension < 1:
        raise InvalidArgument(f"{new.dimension} is below 1", field="dimension")
