"""Blocks near at hand: memory, then local disk, then the object store.

The cache only ever helps: whatever goes wrong on the local disk is a miss, counted and otherwise ignored. What does reach
the caller is the object store's own errors and `Corrupt`, when the store itself holds a wrong block.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

import pyarrow as pa

from shoal_core.errors import Corrupt
from shoal_core.ports import ObjectStore
from shoal_storage.blocks import BlockRef, verify
from shoal_storage.byte_lru import ByteLru
from shoal_storage.mapped_file import MappedFile

DEFAULT_DOWNLOADS = 16

_ENTRY = re.compile(r"[0-9a-f]{32}")
_TEMP_MARK = "~"
_ALIGNMENT_BYTES = 8  # of buffers within an Arrow file, and so of the file within memory
_DOWNLOAD_ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counts since the cache was made, then its present sizes in bytes.

    Attributes:
        memory_hits, disk_hits, misses: where blocks came from; a miss is one download.
        joined: asks that waited for another's load of the same block; each ask counts in one of these four.
        memory_bytes_read, disk_bytes_read, store_bytes_read: by source.
        degraded: failures of the local disk that were turned into misses, `corrupt` among them.
        corrupt: entries on disk, or downloads, with a wrong size or checksum.
        memory_evictions, disk_evictions: entries that had to make room.
    """

    memory_hits: int
    disk_hits: int
    misses: int
    joined: int
    memory_bytes_read: int
    disk_bytes_read: int
    store_bytes_read: int
    degraded: int
    corrupt: int
    memory_bytes: int
    disk_bytes: int
    memory_evictions: int
    disk_evictions: int


@dataclass(slots=True)
class ReadMeter:
    """Bytes of blocks that somebody asked for, by where they came from."""

    memory_bytes: int = 0
    disk_bytes: int = 0
    store_bytes: int = 0


class MeteredReader(Protocol):
    """What `Metered` works over."""

    async def get(self, ref: BlockRef, meter: ReadMeter | None = None) -> pa.Buffer: ...
    def mapped_bytes(self, refs: Iterable[BlockRef]) -> int: ...
    def release(self, refs: Iterable[BlockRef]) -> None: ...
    def read_ahead(self, refs: Iterable[BlockRef]) -> None: ...


@dataclass(frozen=True, slots=True)
class Metered:
    """Blocks of another reader, counted."""

    blocks: MeteredReader
    meter: ReadMeter

    async def get(self, ref: BlockRef) -> pa.Buffer:
        """See `BlockCache.get`."""
        return await self.blocks.get(ref, self.meter)


@dataclass(slots=True)
class _Counters:
    memory_hits: int = 0
    disk_hits: int = 0
    misses: int = 0
    joined: int = 0
    memory_bytes_read: int = 0
    disk_bytes_read: int = 0
    store_bytes_read: int = 0
    degraded: int = 0
    corrupt: int = 0


class BlockCache:
    """Least-recently-used cache of blocks in memory and on disk, for one event loop.

    Entries are filed under key, size and checksum together. The checksum alone would do for honest content, but it can be
    forged, and one tenant's block must never be served as another's.

    A buffer stays valid as long as someone holds it, evicted or not: a mapped file that was unlinked lives on until its
    last mapping ends. A device that fails while a mapped page is read kills the process, as with any mapping. Of a mapped file only
    those pages are in this process's memory that were read since it was mapped or released.

    Args:
        directory: of this process alone; made if absent. None keeps everything in memory.
        capacity_bytes: of the files; entries of an earlier process count, and are verified when first used.
        memory_capacity_bytes: of the buffers kept, mapped ones included; 0 keeps none.
        store: where a block comes from that is nowhere else.
        max_downloads: how many run at once; the rest wait their turn.
        write_file: replaces a file in one step, raising `OSError`.
        map_file: the content of a file, mapped or not, raising `OSError`.
        time_ns: Unix time, for the age of entries.
    """

    def __init__(
        self,
        directory: Path | None,
        capacity_bytes: int,
        memory_capacity_bytes: int,
        store: ObjectStore,
        *,
        max_downloads: int = DEFAULT_DOWNLOADS,
        write_file: Callable[[Path, pa.Buffer], None] | None = None,
        map_file: Callable[[Path], MappedFile | pa.Buffer] | None = None,
        time_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._directory = directory
        self._store = store
        self._memory: ByteLru[pa.Buffer] = ByteLru(memory_capacity_bytes)
        self._disk: ByteLru[bool] = ByteLru(capacity_bytes if directory else 0)  # value: verified by this process
        self._downloads = asyncio.Semaphore(max_downloads)
        self._write_file = write_file or write_file_atomically
        self._map_file = map_file or MappedFile
        self._time_ns = time_ns
        self._maps: WeakValueDictionary[str, MappedFile] = WeakValueDictionary()
        self._loading: dict[str, asyncio.Task[pa.Buffer]] = {}
        self._scan: asyncio.Task[None] | None = None
        self._count = _Counters()

    async def get(self, ref: BlockRef, meter: ReadMeter | None = None) -> pa.Buffer:
        """The block's bytes, verified. Raises `NotFound`, `Unavailable`, `Corrupt`; never because of the local disk.

        ``meter`` counts them; a load that others join is counted by the one who began it.
        """
        entry = _entry_name(ref)
        meter = meter or ReadMeter()
        buffer = self._memory.get(entry)
        if buffer is None and (mapping := self._maps.get(entry)) is not None:
            buffer = mapping.buffer()  # somebody holds it still: a second mapping would be memory of its own
        if buffer is not None:
            self._count.memory_hits += 1
            self._count.memory_bytes_read += buffer.size
            meter.memory_bytes += buffer.size
            return buffer
        load = self._loading.get(entry)
        if load is None:
            load = self._loading[entry] = asyncio.create_task(self._load(entry, ref, meter))
            load.add_done_callback(_retrieve_error)
        else:
            self._count.joined += 1
        # Whoever asked first may give up; the others still want the block.
        return await asyncio.shield(load)

    def may_contain(self, ref: BlockRef) -> bool:
        """Whether `get` would probably not download; touches neither the order of eviction nor the disk."""
        entry = _entry_name(ref)
        return entry in self._memory or entry in self._disk

    def mapped_bytes(self, refs: Iterable[BlockRef]) -> int:
        """Bytes of those blocks that are mapped files, which `release` can let go of."""
        return sum(ref.size_bytes for ref in refs if _entry_name(ref) in self._maps)

    def release(self, refs: Iterable[BlockRef]) -> None:
        """Let go of the memory of those blocks that are mapped files; their buffers stay valid, and are read from the files again: what
        is asked for, and not what follows.
        """
        for mapping in self._mapped(refs):
            mapping.forget()
            mapping.expect_anywhere()

    def read_ahead(self, refs: Iterable[BlockRef]) -> None:
        """Of those blocks that are mapped files, read again what follows what is asked for."""
        for mapping in self._mapped(refs):
            mapping.expect_in_order()

    def _mapped(self, refs: Iterable[BlockRef]) -> list[MappedFile]:
        found = (self._maps.get(_entry_name(ref)) for ref in refs)
        return [mapping for mapping in found if mapping is not None]

    async def expire(self, max_age_ms: int) -> int:
        """Forget what was loaded longer ago and nobody holds, in memory and on disk; how many files went.

        What an entry was loaded for may have been deleted since. What is in use is looked at again the next time.
        """
        await self.start()
        before_ns = self._time_ns() - max_age_ms * 1_000_000
        old = self._disk.made_before(before_ns)
        for entry in (*old, *self._memory.made_before(before_ns)):
            self._memory.remove(entry)
        unused = [entry for entry in old if entry not in self._maps and entry not in self._loading]
        for entry in unused:
            self._disk.remove(entry)
        if self._directory is not None:
            await asyncio.to_thread(_unlink_quietly, [self._directory / entry for entry in unused])
        return len(unused)

    def stats(self) -> CacheStats:
        """Counts and sizes now."""
        return CacheStats(
            **asdict(self._count),
            memory_bytes=self._memory.size_bytes,
            disk_bytes=self._disk.size_bytes,
            memory_evictions=self._memory.evictions,
            disk_evictions=self._disk.evictions,
        )

    async def start(self) -> None:
        """Find the entries that an earlier process left. `get` does it otherwise; never raises because of the disk."""
        if self._scan is None:
            self._scan = asyncio.create_task(self._find_entries())
        await asyncio.shield(self._scan)

    async def close(self) -> None:
        """Wait for what is being loaded and let go of memory; the files stay."""
        pending = [*self._loading.values(), *([self._scan] if self._scan else [])]
        await asyncio.gather(*pending, return_exceptions=True)
        self._memory.clear()

    async def _load(self, entry: str, ref: BlockRef, meter: ReadMeter) -> pa.Buffer:
        try:
            await self.start()
            buffer = await self._from_disk(entry, ref)
            if buffer is not None:
                meter.disk_bytes += buffer.size
            else:
                buffer = await self._from_store(ref)
                meter.store_bytes += buffer.size
                await self._to_disk(entry, buffer)
                buffer = await self._from_its_file(entry, ref) or buffer
            self._memory.add(entry, buffer, buffer.size, self._time_ns())
            return buffer
        finally:
            del self._loading[entry]

    async def _from_disk(self, entry: str, ref: BlockRef) -> pa.Buffer | None:
        verified = self._disk.get(entry)
        if verified is None or self._directory is None:
            return None
        path = self._directory / entry
        try:
            buffer = await self._mapped_buffer(entry, path, ref, verified)
        except (OSError, pa.ArrowException, Corrupt) as error:
            self._count.degraded += 1
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                return None  # nothing is wrong with the file
            self._count.corrupt += isinstance(error, Corrupt)
            self._disk.remove(entry)
            await asyncio.to_thread(_unlink_quietly, [path])
            return None
        self._disk.replace(entry, True)
        self._count.disk_hits += 1
        self._count.disk_bytes_read += buffer.size
        return buffer

    async def _from_its_file(self, entry: str, ref: BlockRef) -> pa.Buffer | None:
        """A block that was just written to disk, mapped, so that it need not stay in memory; None where that cannot be."""
        if self._directory is None or entry not in self._disk:
            return None
        try:
            return await self._mapped_buffer(entry, self._directory / entry, ref, verified=True)
        except (OSError, pa.ArrowException, Corrupt):
            return None

    async def _mapped_buffer(self, entry: str, path: Path, ref: BlockRef, verified: bool) -> pa.Buffer:
        # By way of a list: a thread that has returned something may hold on to it for a moment, and a mapping lives as long as that.
        mapped: list[MappedFile | pa.Buffer] = []
        await asyncio.to_thread(lambda: mapped.append(self._map_verified(path, ref, verified)))
        found = mapped.pop()
        if not isinstance(found, MappedFile):
            return found
        self._maps[entry] = found
        return found.buffer()

    def _map_verified(self, path: Path, ref: BlockRef, verified: bool) -> MappedFile | pa.Buffer:
        found = self._map_file(path)
        content = found.buffer() if isinstance(found, MappedFile) else found
        if not verified or content.size != ref.size_bytes:
            verify(content, ref)
            if isinstance(found, MappedFile):
                found.forget()  # all of it was read
        return found

    async def _from_store(self, ref: BlockRef) -> pa.Buffer:
        """Download and verify; a wrong block is fetched once more, as the fault may lie on the way."""
        self._count.misses += 1
        async with self._downloads:
            for attempt in range(_DOWNLOAD_ATTEMPTS):
                view = await self._store.get(ref.key)
                self._count.store_bytes_read += view.nbytes
                try:
                    return await asyncio.to_thread(_verified_buffer, view, ref)
                except Corrupt:
                    self._count.corrupt += 1
                    if attempt == _DOWNLOAD_ATTEMPTS - 1:
                        raise
        raise AssertionError("unreachable")

    async def _to_disk(self, entry: str, buffer: pa.Buffer) -> None:
        if self._directory is None or not self._disk.fits(buffer.size):
            return
        evicted = self._disk.add(entry, True, buffer.size, self._time_ns())
        path = self._directory / entry
        try:
            await asyncio.to_thread(self._replace_files, path, buffer, [self._directory / name for name in evicted])
        except OSError:
            self._count.degraded += 1
            self._disk.remove(entry)
            return
        if entry not in self._disk:  # evicted by another load while its file was being written
            await asyncio.to_thread(_unlink_quietly, [path])

    def _replace_files(self, path: Path, buffer: pa.Buffer, evicted: Sequence[Path]) -> None:
        _unlink_quietly(evicted)
        self._write_file(path, buffer)

    async def _find_entries(self) -> None:
        if self._directory is None:
            return
        try:
            found = await asyncio.to_thread(_scan_directory, self._directory)
        except OSError:
            self._count.degraded += 1
            return
        evicted = [name for made_ns, entry, size in found for name in self._disk.add(entry, False, size, made_ns)]
        await asyncio.to_thread(_unlink_quietly, [self._directory / name for name in evicted])


def _entry_name(ref: BlockRef) -> str:
    identity = f"{ref.size_bytes}/{ref.checksum}/{ref.key}".encode()
    return hashlib.blake2b(identity, digest_size=16).hexdigest()


def _verified_buffer(view: memoryview, ref: BlockRef) -> pa.Buffer:
    """``view`` as a buffer, checked, and aligned so that Arrow and numpy can read numbers in place."""
    verify(view, ref)
    buffer = pa.py_buffer(view)
    if buffer.address % _ALIGNMENT_BYTES == 0:
        return buffer
    aligned = pa.allocate_buffer(buffer.size)
    memoryview(aligned).cast("B")[:] = view
    return aligned


def _retrieve_error(task: asyncio.Task[pa.Buffer]) -> None:
    """Mark a failure as seen even if nobody waits any more."""
    if not task.cancelled():
        task.exception()


def write_file_atomically(path: Path, buffer: pa.Buffer) -> None:
    """Replace ``path`` in one step, making its directory if needed. Not fsynced: what a crash leaves is verified later."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f"{_TEMP_MARK}{path.name}-{os.getpid()}")
    try:
        temp.write_bytes(memoryview(buffer))
        temp.replace(path)
    except OSError:
        _unlink_quietly([temp])
        raise


def _unlink_quietly(paths: Sequence[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            continue  # it stays behind; the next start counts it again


def _scan_directory(directory: Path) -> list[tuple[int, str, int]]:
    """(Unix time in ns when made, name, size in bytes) of every entry, oldest first; temporary files of a crash are removed."""
    if not directory.exists():
        return []
    found = []
    with os.scandir(directory) as scan:
        for item in scan:
            if item.name.startswith(_TEMP_MARK):
                _unlink_quietly([directory / item.name])
            elif _ENTRY.fullmatch(item.name):
                status = item.stat()
                found.append((status.st_mtime_ns, item.name, status.st_size))
    return sorted(found)
