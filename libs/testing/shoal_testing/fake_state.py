"""What the fakes of catalog and log share: the state of a collection."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pyarrow as pa

from shoal_core.contracts import Backlog, Collection, Head, Json, NewCollection, VersionInfo
from shoal_core.errors import InvalidArgument, OffsetExpired
from shoal_core.schema import Schema, parse_schema

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
class LeaseState:
    """A lease; it is over for ever at minus infinity."""

    holder: str
    epoch: int
    expires_ms: float


@dataclass(frozen=True, slots=True)
class UploadState:
    """An upload intent."""

    collection_id: str
    began_ms: float


@dataclass(slots=True)
class CollectionState:
    """A collection with its log and its versions, ``versions[n]`` being version n: what catalog and log share.

    Attributes:
        published_ms: when each version came.
        oldest: versions below it are forgotten, but for version 0.
        deleted_ms: when it was deleted, or None.
        ancestors: of a fork, from the root of its tree to the collection it comes from.
    """

    collection: Collection
    versions: list[VersionInfo]
    published_ms: list[float]
    oldest: int = 0
    deleted_ms: float | None = None
    ancestors: tuple[str, ...] = ()
    head_offset: int = 0
    total_bytes: int = 0
    trim_floor: int = 0
    entries: list[StoredEntry] = field(default_factory=list)
    recorded: dict[str, tuple[bytes, int, int]] = field(default_factory=dict)

    @property
    def alive(self) -> bool:
        """Whether it is not deleted."""
        return self.deleted_ms is None

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

    def backlog(self, now_ms: float) -> Backlog | None:
        """What is not compacted; None if all is, or if it is deleted."""
        waiting = self.uncompacted
        if not self.alive or not waiting:
            return None
        return Backlog(
            collection=self.collection,
            head_offset=self.head_offset,
            compacted_offset=self.current.compacted_offset,
            uncompacted_bytes=sum(entry.payload.size for entry in waiting),
            age_ms=int(now_ms - waiting[0].committed_ms),
            version=self.current.version,
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

    def publish(self, info: VersionInfo, now_ms: float) -> None:
        """Make it the current version."""
        self.versions.append(info)
        self.published_ms.append(now_ms)
        self.collection = replace(self.collection, version=info.version, compacted_offset=info.compacted_offset)

    def fork(self, fork_id: str, incarnation: str, name: str, now_ms: float) -> CollectionState:
        """Another collection that has what this one has. Of its versions it knows the current one, and its log begins there."""
        made = replace(self.collection, id=fork_id, incarnation=incarnation, name=name, epoch=1)
        return CollectionState(
            collection=made,
            versions=[replace(info, collection_id=fork_id) for info in self.versions],
            published_ms=[now_ms] * len(self.versions),
            oldest=self.current.version,
            ancestors=(*self.ancestors, self.collection.id),
            head_offset=self.head_offset,
            total_bytes=self.total_bytes,
            trim_floor=self.current.compacted_offset,
            entries=self.uncompacted,
        )

    def find(self, version: int) -> VersionInfo | None:
        """A version that is not forgotten."""
        known = version == 0 or self.oldest <= version < len(self.versions)
        return self.versions[version] if known else None

    def version_at(self, offset: int) -> VersionInfo:
        """The newest version that is not forgotten, is at or below the offset and has the log after it. Raises `OffsetExpired`."""
        usable = [
            info for info in self.versions if self.find(info.version) and info.compacted_offset >= self.trim_floor
        ]
        covering = [info for info in usable if info.compacted_offset <= offset]
        if not covering:
            oldest = usable[0].compacted_offset
            raise OffsetExpired(
                f"{offset} can no longer be read; the oldest offset that can is {oldest}", field="offset"
            )
        return covering[-1]

    def oldest_retained(self, cutoff_ms: float) -> int:
        """The newest version that is as old as that, or 0."""
        old = [version for version, at_ms in enumerate(self.published_ms) if version and at_ms <= cutoff_ms]
        return max(old, default=0)

    def delete(self, now_ms: float) -> None:
        """The collection is gone; what it holds is left."""
        self.deleted_ms = now_ms
        self.collection = replace(self.collection, epoch=self.collection.epoch + 1)


def check_new(new: NewCollection) -> None:
    """Raises `InvalidArgument`."""
    if new.space not in _SPACES:
        raise InvalidArgument(f"{new.space!r} is none of {', '.join(_SPACES)}", field="space")
    if new.shards < 1:
        raise InvalidArgument(f"{new.shards} is below 1", field="shards")
    if new.dimension is not None and new.dimension < 1:
        raise InvalidArgument(f"{new.dimension} is below 1", field="dimension")


def check_ttl(ttl_ms: int) -> None:
    """Raises `InvalidArgument`."""
    if ttl_ms < 1:
        raise InvalidArgument(f"{ttl_ms} is below 1", field="ttl_ms")


def as_schema(schema: Schema) -> Schema:
    """A copy, as it would come back from a database. Raises `InvalidArgument` for one that could not be read."""
    return parse_schema(as_json(schema.to_json(), "schema"))


def as_json(value: Json | None, field_name: str) -> Json | None:
    """A copy, as it would come back from a database."""
    if value is None:
        return None
    try:
        copy: Json = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"is not JSON: {error}", field=field_name) from error
    return copy
