"""A shard as this node serves it: the newest version loaded, the raw tail since, and the overlay of the one over the other.

A `View` is one version with its tail and overlay. Reads pin the view they started on; when a newer version is published the next view
is loaded beside it and takes over. A view and its blocks go when nobody holds it. A few views of older versions are kept for reads
at earlier offsets.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from weakref import WeakKeyDictionary, WeakSet

from shoal_core.contracts import Head, Tail, TailRequest, Target, VersionInfo
from shoal_core.errors import (
    Corrupt,
    InvalidArgument,
    NotFound,
    OffsetExpired,
    ShoalError,
    SnapshotGone,
    StaleEpoch,
    Unavailable,
)
from shoal_index.segment import READ_BY_ROW, Segment
from shoal_index.version import SegmentView, ShardVersion, open_shard
from shoal_query.brief import BriefSearches
from shoal_query.execute import LiveMasks, Snapshot
from shoal_query.recall_check import ObservedRecall
from shoal_query.rounds import Rounds, seen
from shoal_query.services import Services
from shoal_query.tail import Overlay, RawTail
from shoal_storage.blocks import BlockRef
from shoal_storage.cache import Metered, ReadMeter
from shoal_storage.manifest import Manifest, decode_manifest, empty_manifest

_logger = logging.getLogger(__name__)

T = TypeVar("T")

_SHARD_BYTES = 8 << 10  # of Python objects, also for an empty shard
_PAST_VIEWS = 2


@dataclass(slots=True, weakref_slot=True, eq=False)
class View:
    """One version of a shard with its tail. Folds are one at a time."""

    version: ShardVersion
    raw: RawTail
    overlay: Overlay
    masks: LiveMasks = field(default_factory=LiveMasks)
    folding: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def tail_bytes(self) -> int:
        """Bytes of the tail, raw and folded."""
        return self.raw.size_bytes + self.overlay.size_bytes

    def newest(self) -> Snapshot:
        """What is folded already."""
        frozen = self.overlay.frozen
        return Snapshot(self.version, frozen, frozen.offset, self.masks)

    async def at(self, offset: int, dimension: int | None, services: Services) -> Snapshot:
        """The snapshot at exactly ``offset``, which the raw tail has reached.

        Raises `SnapshotGone` when the version is already past it or the raw tail does not reach it, `InvalidArgument` when no
        batch ends there.
        """
        compacted = self.version.compacted_offset
        if offset < compacted or offset > self.raw.through or self.raw.base > compacted:
            raise SnapshotGone(
                f"version {self.version.version} with its tail covers offsets {max(compacted, self.raw.base)} to "
                f"{self.raw.through}, not {offset}; take a new snapshot"
            )
        if not self.raw.is_end(offset):
            raise InvalidArgument(f"{offset} is not the end of a batch", field="snapshot_offset")
        if self.overlay.offset < offset:
            # A thread cannot be stopped: a reader that is cancelled must not let the next fold begin beside this one.
            fold = asyncio.create_task(self._fold(offset, dimension, services))
            fold.add_done_callback(seen)
            await asyncio.shield(fold)
        if self.overlay.serves(offset):
            return Snapshot(self.version, self.overlay.frozen, offset, self.masks)
        return await self._apart(offset, dimension, services)

    async def _fold(self, offset: int, dimension: int | None, services: Services) -> None:
        async with self.folding:
            if self.overlay.offset < offset:
                entries = self.raw.between(self.overlay.offset, offset)
                await services.compute(lambda: self.overlay.advance(entries, offset, dimension))

    async def _apart(self, offset: int, dimension: int | None, services: Services) -> Snapshot:
        """A snapshot that no fold stopped at: fold a fresh overlay up to it."""
        overlay = Overlay(self.version, keeps_codes=False)
        entries = self.raw.between(self.version.compacted_offset, offset)
        await services.compute(lambda: overlay.advance(entries, offset, dimension))
        return Snapshot(self.version, overlay.frozen, offset, LiveMasks())


class Shard:
    """See the module. Used from one event loop."""

    def __init__(self, target: Target, services: Services) -> None:
        self.target = target
        self.services = services
        self.view: View | None = None
        self.dimension: int | None = None
        self.caught_up_at = float("-inf")  # when the tail was known to be complete
        self.looked_at = float("-inf")  # when the current version was known
        self._behind_since: float | None = None  # when a newer version than the one served was first heard of
        self._touched_then = 0
        self._mapped: WeakKeyDictionary[Segment, int] = WeakKeyDictionary()
        self.read_at = float("-inf")
        self.readers = 0
        self._rounds: Rounds[Head] = Rounds(self._catch_up)
        self._loading: asyncio.Task[None] | None = None
        self._views: WeakSet[View] = WeakSet()
        self._past: OrderedDict[int, View] = OrderedDict()  # by version
        self._past_read_at = float("-inf")
        self._looking_back = asyncio.Lock()
        self.read = ReadMeter()
        self.observed = ObservedRecall()
        self.brief = BriefSearches(services.clock, services.thread_use)

    @property
    def size_bytes(self) -> int:
        """Bytes of the segments and tails held, of what was made for reads, masks among it, and something for the shard itself."""
        views = [*self._past.values(), *([] if self.view is None else [self.view])]
        segments = {id(held.segment): held for view in views for held in view.version.segments}  # versions share them
        stored = sum(self._held_bytes(held) for held in segments.values())
        return _SHARD_BYTES + stored + sum(view.tail_bytes + view.masks.size_bytes for view in views)

    @property
    def tail_bytes(self) -> int:
        """Bytes of the newest version's tail, raw and folded."""
        return 0 if self.view is None else self.view.tail_bytes

    @property
    def tail_records(self) -> int:
        """Operations of the newest version's tail."""
        return 0 if self.view is None else self.view.raw.through - self.view.version.compacted_offset

    @property
    def version_age_ms(self) -> float:
        """For how long a newer version than the one served has been known of; 0 if none is."""
        if self._behind_since is None:
            return 0.0
        return (self.services.clock.monotonic() - self._behind_since) * 1_000

    @property
    def unread_bytes(self) -> int:
        """Bytes of the newest version's vectors that are mapped from local disk, and not in memory."""
        return sum(self._mapped_bytes(held) - self._read_bytes(held) for held in self._newest())

    def look(self) -> int:
        """`size_bytes`, from which `grown_bytes` counts anew."""
        self._touched_then = self.touched_bytes
        return self.size_bytes

    @property
    def grown_bytes(self) -> int:
        """How much more of the vectors was read since the last look."""
        return self.touched_bytes - self._touched_then

    @property
    def touched_bytes(self) -> int:
        """Bytes of the newest version's vectors that were read since the beginning, or since they were released."""
        return sum(held.segment.vectors.touched_bytes for held in self._newest())

    async def release(self) -> None:
        """Let go of the memory of vectors that can be read from local disk again."""
        held = [each for each in self._all() if self._mapped_bytes(each)]
        blocks = [block for each in held for block in _read_by_row(each)]
        if blocks:
            await self.services.compute(lambda: self.services.blocks.release(blocks))  # takes the system milliseconds
        for each in held:
            each.segment.vectors.released()

    def read_ahead(self) -> None:
        """There is room for all vectors again."""
        for held in self._all():
            self.services.blocks.read_ahead(_read_by_row(held))

    def _newest(self) -> Sequence[SegmentView]:
        return () if self.view is None else self.view.version.segments

    def _all(self) -> list[SegmentView]:
        views = [*self._views, *self._past.values()]
        return list({id(held.segment): held for view in views for held in view.version.segments}.values())

    def _mapped_bytes(self, held: SegmentView) -> int:
        """Of the vectors of a segment: as long as it is open, they are mapped or not."""
        known = self._mapped.get(held.segment)
        if known is None:
            known = self._mapped[held.segment] = self.services.blocks.mapped_bytes(_read_by_row(held))
        return known

    def _read_bytes(self, held: SegmentView) -> int:
        return min(self._mapped_bytes(held), held.segment.vectors.touched_bytes)

    def _held_bytes(self, held: SegmentView) -> int:
        """Of a segment in memory. Of its vectors, if they are mapped from local disk, what was read of them."""
        return held.ref.size_bytes - self._mapped_bytes(held) + self._read_bytes(held) + held.segment.kept_bytes

    @property
    def is_loading(self) -> bool:
        """Whether the first version is being loaded."""
        return self.view is None and self._loading is not None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is loaded nor being loaded."""
        return self.view is None and self._loading is None

    async def loaded(self) -> View:
        """The newest view loaded; loads the current version the first time."""
        if self.view is None:
            await self._load_shared()
        assert self.view is not None
        return self.view

    async def newest_offset(self, epoch: int) -> int:
        """Bring the raw tail up to a head that was read after this call began; the head's offset.

        Raises `StaleEpoch`, `NotFound`, `Unavailable`.
        """
        await self.loaded()
        head = await self._rounds.ask()
        if head.epoch != epoch:
            raise StaleEpoch(f"collection {head.collection_id} is at epoch {head.epoch}, not {epoch}; look it up again")
        return head.head_offset

    async def reach(self, offset: int) -> None:
        """Bring the raw tail up to ``offset``, the end of a batch that is known to be committed."""
        while (await self.loaded()).raw.through < offset:
            await self._fetch_next(offset)

    async def as_of(self, offset: int, epoch: int) -> Snapshot:
        """The snapshot at the end of the last batch at or below ``offset``, whatever has been compacted since.

        Raises `OffsetExpired` when version or log no longer reach back so far, `InvalidArgument` beyond the log's end.
        """
        view = await self.loaded()
        if view.raw.through < offset:
            head = await self.newest_offset(epoch)
            if head < offset:
                raise InvalidArgument(
                    f"offset {offset} lies beyond the log's end at {head}", field="consistency.offset"
                )
            view = await self.loaded()
        if offset < view.version.compacted_offset:
            async with self._looking_back:
                view = await self._past_view(offset, view.version.compacted_offset)
        return await view.at(view.raw.end_at(offset), self.dimension, self.services)

    async def _past_view(self, offset: int, end: int) -> View:
        """A view of an older version with its tail up to ``offset`` at least. ``end``: a later end of a batch."""
        info = await self.services.catalog.version_at(self.target.collection_id, offset)
        view = self._past.get(info.version)
        if view is None:
            try:
                _, version = await self._open_version(info, self.view)
            except NotFound as error:
                raise OffsetExpired(f"what offset {offset} needs is kept no longer", field="consistency") from error
            view = View(version, RawTail(version.compacted_offset), Overlay(version))
        while view.raw.through < offset:
            await self._fetch(view.raw, end)
        self._past_read_at = self.services.clock.monotonic()
        self._past[info.version] = view
        self._past.move_to_end(info.version)
        while len(self._past) > _PAST_VIEWS:
            self._past.popitem(last=False)
        return view

    def forget_past(self, since: float) -> None:
        """Let go of older versions if none was read since this moment, monotonic."""
        if self._past_read_at < since:
            self._past.clear()

    async def close(self) -> None:
        """Stop loading."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait([self._loading])

    async def _catch_up(self) -> Head:
        started_at = self.services.clock.monotonic()
        while (tail := await self._fetch_next(0)) is None:
            pass
        head = tail.head
        while (await self.loaded()).raw.through < head.head_offset:
            await self._fetch_next(head.head_offset)  # the rest of a long tail, or all of it if a new version took over
        self.caught_up_at = self.looked_at = started_at
        return head

    async def _fetch_next(self, up_to: int) -> Tail | None:
        """Fetch what follows the newest view's raw tail; None where the log was trimmed beyond it and a newer version loaded."""
        view = await self.loaded()
        try:
            tail = await self._fetch(view.raw, up_to)
            self._notice(tail.head)
            return tail
        except OffsetExpired:
            for _ in range(2):  # a load under way may have asked too early
                if self.view is view:
                    await self._load_shared()
            if self.view is view:
                raise
            return None

    async def _fetch(self, raw: RawTail, up_to: int) -> Tail:
        """Fetch what follows a raw tail. Raises `SnapshotGone` when that is nothing, though it does not reach ``up_to``."""
        target, before = self.target, raw.through
        request = TailRequest(target.collection_id, 0, before, up_to, target.hash_range)
        tail = await self.services.log.read_tail(request)
        raw.add(tail.entries, tail.through_offset)
        if raw.through == before < up_to:
            raise SnapshotGone(f"the log does not reach offset {up_to}; take a new snapshot")
        if tail.head.dimension is not None:  # once set it stays; an answer that was overtaken may not know it
            self.dimension = tail.head.dimension
        return tail

    def _notice(self, head: Head) -> None:
        """Load a newer version beside the view in use."""
        assert self.view is not None
        if head.version > self.view.version.version:
            if self._behind_since is None:
                self._behind_since = self.services.clock.monotonic()
            self._start_loading()

    def _start_loading(self) -> asyncio.Task[None]:
        if self._loading is None:
            self._loading = asyncio.create_task(self._load())
            self._loading.add_done_callback(self._loaded)
        return self._loading

    async def _load_shared(self) -> None:
        loading = self._start_loading()
        await asyncio.wait([loading])  # a reader that is cancelled does not cancel it for the others
        if loading.cancelled():
            raise Unavailable("the shard was dropped while it was being loaded; try again")
        loading.result()

    def _loaded(self, task: asyncio.Task[None]) -> None:
        self._loading = None
        error = None if task.cancelled() else task.exception()
        if error is not None:
            unexpected = None if isinstance(error, ShoalError) else error
            _logger.warning("cannot load the newest version of %s yet: %r", self.target, error, exc_info=unexpected)

    async def _load(self) -> None:
        services, old = self.services, self.view
        started_at = services.clock.monotonic()
        info = await services.catalog.get_version(self.target.collection_id)
        self.looked_at = max(self.looked_at, started_at)
        if old is not None and info.version <= old.version.version:
            return
        manifest, version = await self._open(info, old)
        if self.dimension is None:
            self.dimension = manifest.dimension
        compacted = version.compacted_offset
        raw = old.raw if old is not None and old.raw.base <= compacted <= old.raw.through else RawTail(compacted)
        view = View(version, raw, Overlay(version))
        if raw.through > compacted:
            await view.at(raw.through, self.dimension, services)
        self.view = view
        self._behind_since = None  # if there is a newer one yet, the next head tells
        self._views.add(view)
        del old  # unless a read holds it, nobody needs its part of the tail any more
        raw.release(min(other.version.compacted_offset for other in self._views if other.raw is raw))

    async def _open(self, info: VersionInfo, old: View | None) -> tuple[Manifest, ShardVersion]:
        """The version, with the segments that ``old`` has open. Raises `Corrupt` for a current version that lacks objects."""
        while True:
            try:
                return await self._open_version(info, old)
            except NotFound as error:  # not a collection that is gone, as it would look to a caller
                current = await self.services.catalog.get_version(self.target.collection_id)
                if current.version == info.version:
                    raise Corrupt(f"version {info.version} of {self.target} lacks an object: {error}") from error
                info = current  # replaced and swept away while it was loading

    async def _open_version(self, info: VersionInfo, old: View | None) -> tuple[Manifest, ShardVersion]:
        opened = {view.ref.id: view.segment for view in old.version.segments} if old is not None else {}
        manifest = await self._manifest(info)
        return manifest, await open_shard(manifest, self.target.shard, Metered(self.services.blocks, self.read), opened)

    async def _manifest(self, info: VersionInfo) -> Manifest:
        if info.version == 0:
            return empty_manifest(self.target.collection_id, self.target.space, self.target.shards)
        data = await self.services.objects.get(info.manifest_key)
        return await self.services.compute(lambda: decode_manifest(data))


def _read_by_row(held: SegmentView) -> list[BlockRef]:
    return [block for kind in READ_BY_ROW for block in held.ref.blocks.get(kind, ())]
