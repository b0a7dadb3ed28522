"""The manifest of a version: what one compaction publishes, as one small JSON object.

Members that a reader does not know are ignored, and those added since format 1 may be missing. What an earlier reader would get
wrong is a new format: `FORMAT` for the manifest, `SEGMENT_FORMAT` for the blocks of a segment (docs/versions.md).

Edits are functions from a manifest to the next one, so that a publish which lost its race is rebased on the newer manifest
instead of overwriting it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from shoal_core.contracts import HashRange, shard_range
from shoal_core.errors import Corrupt, NewerFormat
from shoal_storage.blocks import BlockRef

FORMAT = 1
SEGMENT_FORMAT = 1


@dataclass(frozen=True, slots=True)
class SegmentRef:
    """An immutable segment as a version sees it.

    Attributes:
        tier: 0 for a flush; a merge's output is one above its highest input.
        rows: rows in the segment, dead ones included.
        dead: how many of them the version's tombstones mark.
        blocks: block references by kind, in row order: ``ids``, ``rows``, ``vectors``, ``graph``.
        tombstones: block of sorted uint32 dead row numbers, or None.
        dead_since_ms: when the first of the dead rows was found dead, Unix time by the compactor's clock; None if none is, or in
            what was written before this was kept.
        format: of the blocks.
    """

    id: str
    tier: int
    rows: int
    dead: int
    size_bytes: int
    blocks: Mapping[str, tuple[BlockRef, ...]]
    tombstones: BlockRef | None = None
    dead_since_ms: int | None = None
    format: int = SEGMENT_FORMAT

    @property
    def live(self) -> int:
        """Rows that are not dead."""
        return self.rows - self.dead


@dataclass(frozen=True, slots=True)
class ShardManifest:
    """One shard: its id hashes, what is compacted, and its segments, oldest first."""

    shard: int
    hash_range: HashRange
    compacted_offset: int
    segments: tuple[SegmentRef, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a version consists of."""

    collection_id: str
    version: int
    space: str
    dimension: int | None
    shards: tuple[ShardManifest, ...]

    @property
    def compacted_offset(self) -> int:
        """The collection's compacted offset: the minimum over its shards."""
        return min(shard.compacted_offset for shard in self.shards)

    @property
    def records(self) -> int:
        """Live records of the version."""
        return sum(segment.live for shard in self.shards for segment in shard.segments)

    def object_keys(self) -> Iterator[str]:
        """Keys of all objects that the version needs, but for the manifest's own."""
        for shard in self.shards:
            for segment in shard.segments:
                for refs in segment.blocks.values():
                    yield from (ref.key for ref in refs)
                if segment.tombstones is not None:
                    yield segment.tombstones.key

    def replace_shards(self, shards: tuple[ShardManifest, ...], *, dimension: int | None) -> Manifest:
        """The next version with other shards."""
        return replace(self, version=self.version + 1, shards=shards, dimension=dimension)


def empty_manifest(collection_id: str, space: str, shards: int) -> Manifest:
    """Version 0: nothing compacted. It is never stored."""
    parts = tuple(ShardManifest(shard, shard_range(shard, shards), 0) for shard in range(shards))
    return Manifest(collection_id, 0, space, None, parts)


def encode_manifest(manifest: Manifest) -> bytes:
    """Manifest as JSON bytes."""
    return json.dumps({"format": FORMAT, **asdict(manifest)}, sort_keys=True, separators=(",", ":")).encode()


def decode_manifest(data: bytes | memoryview) -> Manifest:
    """The inverse of `encode_manifest`. Raises `Corrupt`, and `NewerFormat` for what a newer release wrote."""
    try:
        raw = json.loads(bytes(data))
        check_format(raw["format"], FORMAT, "manifest")
        shards = tuple(_shard(item) for item in raw["shards"])
        return Manifest(raw["collection_id"], raw["version"], raw["space"], raw["dimension"], shards)
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"a manifest cannot be read: {error!r}") from error


def check_format(found: int, known: int, what: str) -> None:
    """Raise `NewerFormat` when ``found`` is above ``known``, and `Corrupt` when it is none."""
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise Corrupt(f"the {what} says format {found!r}, which is none")
    if found > known:
        raise NewerFormat(
            f"a newer release wrote this {what}: format {found}, and this process reads up to {known}; upgrade it"
        )


def _shard(raw: Mapping[str, Any]) -> ShardManifest:
    span = HashRange(raw["hash_range"]["start"], raw["hash_range"]["last"])
    return ShardManifest(raw["shard"], span, raw["compacted_offset"], tuple(_segment(item) for item in raw["segments"]))


def _segment(raw: Mapping[str, Any]) -> SegmentRef:
    blocks = {kind: tuple(BlockRef.from_json(ref) for ref in refs) for kind, refs in raw["blocks"].items()}
    tombstones = BlockRef.from_json(raw["tombstones"]) if raw["tombstones"] else None
    segment_format = raw.get("format", 1)
    check_format(segment_format, SEGMENT_FORMAT, "segment")
    return SegmentRef(
        raw["id"],
        raw["tier"],
        raw["rows"],
        raw["dead"],
        raw["size_bytes"],
        blocks,
        tombstones,
        raw.get("dead_since_ms"),
        segment_format,
    )
