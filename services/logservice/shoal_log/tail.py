"""The tail: entries after an offset, whole or cut to a range of id hashes, from memory, Postgres and object storage.

Entries never change, so a bounded cache of recent ones needs no invalidation. The head is taken before the entries are read,
so that entries whose transaction is still open never show; what is read must follow on without a gap, and every entry's
share of the cumulative set-hash must be its own.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.contracts import HashRange, Tail, TailEntry, TailRequest
from shoal_core.errors import Corrupt, InvalidArgument, NotFound, OffsetExpired, ShoalError
from shoal_core.hashing import hash_ids
from shoal_core.records import ID, decode_batch, encode_batch
from shoal_log.batches import checksum_of
from shoal_log.decide import LogState, add_to_set_hash
from shoal_log.payloads import Payloads
from shoal_log.settings import LogCounters, TailSettings
from shoal_log.store import LogStore, StoredEntry

LogId: TypeAlias = tuple[str, str]

_EMPTY = pa.py_buffer(b"")
_HASH_BYTES = 8


class LoadedEntry:
    """A batch of the log in memory. ``row_hashes``: (rows,) uint64, None until somebody needs them."""

    __slots__ = ("end_offset", "first_offset", "payload", "row_hashes")

    def __init__(
        self,
        first_offset: int,
        end_offset: int,
        payload: pa.Buffer,
        row_hashes: npt.NDArray[np.uint64] | None = None,
    ) -> None:
        self.first_offset = first_offset
        self.end_offset = end_offset
        self.payload = payload
        self.row_hashes = row_hashes

    @property
    def size_bytes(self) -> int:
        """In memory, hashes included."""
        return int(self.payload.size) + _HASH_BYTES * (self.end_offset - self.first_offset + 1)


class TailCache:
    """Recently written or read entries by collection, incarnation and first offset; the longest unused go first."""

    def __init__(self, size_bytes: int) -> None:
        self._limit_bytes = size_bytes
        self._entries: OrderedDict[tuple[LogId, int], LoadedEntry] = OrderedDict()
        self.size_bytes = 0

    def put(self, log: LogId, entry: LoadedEntry) -> None:
        """Keep an entry; one that would take more than a quarter of the cache is not kept."""
        key = (log, entry.first_offset)
        if key in self._entries or entry.size_bytes * 4 > self._limit_bytes:
            return
        self._entries[key] = entry
        self.size_bytes += entry.size_bytes
        while self.size_bytes > self._limit_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.size_bytes -= oldest.size_bytes

    def run(self, log: LogId, after_offset: int, up_to_offset: int, size_bytes: int) -> list[LoadedEntry]:
        """Entries that follow on ``after_offset`` without a gap and end by ``up_to_offset``, about ``size_bytes`` of them."""
        found: list[LoadedEntry] = []
        while size_bytes > 0:
            entry = self._entries.get((log, after_offset + 1))
            if entry is None or entry.end_offset > up_to_offset:
                break
            self._entries.move_to_end((log, entry.first_offset))
            found.append(entry)
            size_bytes -= entry.size_bytes
            after_offset = entry.end_offset
        return found


def cut(entry: LoadedEntry, hash_range: HashRange) -> TailEntry:
    """The records of an entry whose id hash is in the range; the payload as it is where that is all of them."""
    first, end = entry.first_offset, entry.end_offset
    if hash_range.is_everything:
        return TailEntry(first, end, entry.payload)
    batch = None
    if entry.row_hashes is None:
        batch = decode_batch(entry.payload)
        entry.row_hashes = hash_ids(batch.column(ID))
    hashes = entry.row_hashes
    rows = np.flatnonzero((hashes >= np.uint64(hash_range.start)) & (hashes <= np.uint64(hash_range.last)))
    if len(rows) == len(hashes):
        return TailEntry(first, end, entry.payload)
    offsets = rows.astype(np.uint64) + np.uint64(first)
    if len(rows) == 0:
        return TailEntry(first, end, _EMPTY, offsets)
    batch = batch if batch is not None else decode_batch(entry.payload)
    return TailEntry(first, end, encode_batch(batch.take(pa.array(rows))), offsets)


class TailReader:
    """Reads tails of a collection whose state is known."""

    def __init__(
        self, store: LogStore, payloads: Payloads, cache: TailCache, settings: TailSettings, counters: LogCounters
    ) -> None:
        self._store = store
        self._payloads = payloads
        self._cache = cache
        self._settings = settings
        self._counters = counters
        self._fetches = asyncio.Semaphore(settings.object_fetches)

    async def read(self, request: TailRequest, state: LogState) -> Tail:
        """See `Log.read_tail`. Raises `InvalidArgument`, `OffsetExpired`, `NotFound`, `Unavailable`, `Corrupt`."""
        head = state.head
        end = request.up_to_offset or head.head_offset
        _check_range(request, state, end)
        budget = min(request.max_size_bytes, self._settings.size_bytes)
        log = (state.collection_id, state.incarnation)
        entries: list[TailEntry] = []
        through, size = request.after_offset, 0
        while through < end and len(entries) < self._settings.entries:
            loaded = await self._next(log, through, end, min(budget, self._settings.page_size_bytes))
            for entry in await self._cut(loaded, request.hash_range):
                size += entry.payload.size
                full = size > budget or len(entries) >= self._settings.entries
                if full and entries:
                    return Tail(head, tuple(entries), through)
                entries.append(entry)
                through = entry.end_offset
        return Tail(head, tuple(entries), through)

    async def _next(self, log: LogId, after_offset: int, end: int, size_bytes: int) -> list[LoadedEntry]:
        cached = self._cache.run(log, after_offset, end, size_bytes)
        if cached:
            self._counters.tail_entries_cached += len(cached)
            return cached
        loaded = await self._load(log, after_offset, end, size_bytes)
        self._counters.tail_entries_loaded += len(loaded)
        for entry in loaded:
            self._cache.put(log, entry)
        return loaded

    async def _load(self, log: LogId, after_offset: int, end: int, size_bytes: int) -> list[LoadedEntry]:
        stored = await self._store.page(log[0], after_offset, end, size_bytes, self._settings.page_entries)
        before = stored[0] if stored and stored[0].end_offset == after_offset else None
        page = stored[1:] if before else stored
        if not page or page[0].first_offset != after_offset + 1:
            raise await self._explain(log, after_offset, end)
        if before is None and after_offset > 0 and (await self._store.boundary(log[0], 0)).trim_floor < after_offset:
            raise Corrupt(f"the log of collection {log[0]} lacks the entry that ends at {after_offset}")
        _check_chain(log, before, page, after_offset)
        try:
            return await self._payloads_of(log, page)
        except NotFound as error:
            raise await self._explain_object(log, after_offset, error) from error

    async def _payloads_of(self, log: LogId, page: Sequence[StoredEntry]) -> list[LoadedEntry]:
        async def fetch(entry: StoredEntry) -> LoadedEntry:
            async with self._fetches:
                payload = await self._payloads.get(entry.object_key or "", entry.checksum)
            return LoadedEntry(entry.first_offset, entry.end_offset, payload)

        stored = [entry for entry in page if entry.payload is not None]
        if sum(entry.size_bytes for entry in stored) <= self._settings.offload_size_bytes:
            inline = _verified(log, stored)
        else:
            inline = await asyncio.to_thread(_verified, log, stored)
        objects = await asyncio.gather(*(fetch(entry) for entry in page if entry.payload is None))
        return sorted([*inline, *objects], key=lambda entry: entry.first_offset)

    async def _cut(self, entries: list[LoadedEntry], hash_range: HashRange) -> list[TailEntry]:
        size_bytes = sum(entry.size_bytes for entry in entries)
        if hash_range.is_everything or size_bytes <= self._settings.offload_size_bytes:
            return [cut(entry, hash_range) for entry in entries]
        return await asyncio.to_thread(lambda: [cut(entry, hash_range) for entry in entries])

    async def _explain(self, log: LogId, after_offset: int, end: int) -> ShoalError:
        """Why nothing follows on an offset although the head is further on."""
        boundary = await self._store.boundary(log[0], after_offset)
        if after_offset < boundary.trim_floor:
            return _expired(after_offset, boundary.trim_floor)
        first, last = boundary.first_offset, boundary.end_offset
        if first is not None and last is not None and first <= after_offset:
            return InvalidArgument(
                f"{after_offset} lies within the batch {first}..{last}; offsets of tails are ends of batches",
                field="after_offset",
            )
        if first == after_offset + 1 and last is not None and last > end:
            return InvalidArgument(f"{end} lies within the batch {first}..{last}", field="up_to_offset")
        return Corrupt(f"the log of collection {log[0]} has a gap after offset {after_offset}, up to {first}")

    async def _explain_object(self, log: LogId, after_offset: int, error: NotFound) -> ShoalError:
        floor = (await self._store.boundary(log[0], after_offset)).trim_floor
        if after_offset < floor:
            return _expired(after_offset, floor)
        return Corrupt(f"a payload of collection {log[0]} after offset {after_offset} is gone: {error}")


def _check_range(request: TailRequest, state: LogState, end: int) -> None:
    after = request.after_offset
    if request.max_size_bytes < 1:
        raise InvalidArgument(f"{request.max_size_bytes} is below 1", field="max_size_bytes")
    if not 0 <= request.hash_range.start <= request.hash_range.last < 1 << 64:
        raise InvalidArgument("is not start <= last within 64 bits", field="hash_range")
    if end > state.head_offset:
        raise InvalidArgument(f"{end} is above the head {state.head_offset}", field="up_to_offset")
    if not 0 <= after <= end:
        raise InvalidArgument(f"{after} is not within 0..{end}", field="after_offset")
    if after < state.trim_floor:
        raise _expired(after, state.trim_floor)


def _check_chain(log: LogId, before: StoredEntry | None, page: Sequence[StoredEntry], after_offset: int) -> None:
    """No gap, and every cumulative set-hash is the one before plus the entry's own."""
    known = before.set_hash if before else 0 if after_offset == 0 else None
    through = after_offset
    for entry in page:
        if entry.first_offset != through + 1:
            raise Corrupt(f"the log of collection {log[0]} has a gap from offset {through} to {entry.first_offset}")
        sum_ = known if known is None else add_to_set_hash(known, entry.first_offset, entry.end_offset, entry.checksum)
        if sum_ is not None and sum_ != entry.set_hash:
            raise Corrupt(f"the set-hash of collection {log[0]} does not hold at offset {entry.end_offset}")
        known, through = entry.set_hash, entry.end_offset


def _verified(log: LogId, entries: Sequence[StoredEntry]) -> list[LoadedEntry]:
    loaded = []
    for entry in entries:
        payload = pa.py_buffer(entry.payload)
        if checksum_of(payload) != entry.checksum:
            raise Corrupt(f"the payload of collection {log[0]} at {entry.first_offset}..{entry.end_offset} is damaged")
        loaded.append(LoadedEntry(entry.first_offset, entry.end_offset, payload))
    return loaded


def _expired(after_offset: int, floor: int) -> OffsetExpired:
    return OffsetExpired(f"{after_offset} is below {floor}, from which the log is kept", field="after_offset")
