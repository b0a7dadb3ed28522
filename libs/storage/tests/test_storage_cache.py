"""The block cache: where blocks come from, what it forgets, and that a bad disk is only ever a miss."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
from pathlib import Path

import pyarrow as pa
import pytest

from shoal_core.errors import Corrupt, NotFound, Unavailable
from shoal_storage.blocks import BlockRef, encode_blob, encode_block
from shoal_storage.cache import BlockCache
from shoal_testing.memory_objects import MemoryObjectStore

SIZE = 1000
MIB = 1 << 20


async def put_blocks(store: MemoryObjectStore, count: int) -> list[BlockRef]:
    """``count`` different blocks of SIZE bytes each."""
    refs = []
    for i in range(count):
        block = encode_blob(bytes([i]) * SIZE)
        refs.append(block.ref(f"blocks/{i}"))
        await store.put(f"blocks/{i}", memoryview(block.data))
    return refs


def files_of(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def is_mapped(directory: Path) -> bool:
    """Whether this process has mapped a file below ``directory``."""
    return f"{directory}/" in Path("/proc/self/maps").read_text()


class GatedStore(MemoryObjectStore):
    """Reads wait for a gate; counts how many wait at once."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.waiting = 0
        self.most_waiting = 0

    async def get(self, key: str) -> memoryview:
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        await self.gate.wait()
        self.waiting -= 1
        return await super().get(key)

    async def until_waiting(self, count: int) -> None:
        async with asyncio.timeout(10):
            while self.waiting < count:
                await asyncio.sleep(0)


async def test_memory_then_disk_then_store(tmp_path: Path) -> None:
    store = MemoryObjectStore()
    [ref] = await put_blocks(store, 1)
    cache = BlockCache(tmp_path, MIB, MIB, store)
    assert bytes(await cache.get(ref)) == b"\0" * SIZE
    assert bytes(await cache.get(ref)) == b"\0" * SIZE
    stats = cache.stats()
    assert (stats.misses, stats.memory_hits, stats.disk_hits, stats.degraded) == (1, 1, 0, 0)
    assert (stats.store_bytes_read, stats.memory_bytes_read, stats.disk_bytes_read) == (SIZE, SIZE, 0)
    assert (stats.memory_bytes, stats.disk_bytes) == (SIZE, SIZE)

    restarted = BlockCache(tmp_path, MIB, MIB, store)
    assert bytes(await restarted.get(ref)) == b"\0" * SIZE
    assert (restarted.stats().disk_hits, restarted.stats().misses, store.gets) == (1, 0, 1)


async def test_without_a_directory_memory_is_all(tmp_path: Path) -> None:
    store = MemoryObjectStore()
    [ref] = await put_blocks(store, 1)
    cache = BlockCache(None, MIB, MIB, store)
    await cache.get(ref)
    await cache.get(ref)
    assert (cache.stats().memory_hits, cache.stats().disk_bytes, store.gets) == (1, 0, 1)


async def test_without_memory_the_disk_is_verified_once(tmp_path: Path) -> None:
    store = MemoryObjectStore()
    [ref] = await put_blocks(store, 1)
    await BlockCache(tmp_path, MIB, 0, store).get(ref)

    cache = BlockCache(tmp_path, MIB, 0, store)
    await cache.get(ref)
    await asyncio.sleep(0)  # nobody holds the mapping any more
    [name] = files_of(tmp_path)
    (tmp_path / name).write_bytes(b"\7" * SIZE)  # seen as damage by a process that has not verified it yet
    assert bytes(await cache.get(ref)) == b"\7" * SIZE
    assert (cache.stats().disk_hits, store.gets) == (2, 1)
    assert bytes(await BlockCache(tmp_path, MIB, 0, store).get(ref)) == b"\0" * SIZE


async def test_a_block_from_disk_is_mapped_and_decoded_in_place(tmp_path: Path) -> None:
    store = MemoryObjectStore()
    block = encode_block(pa.table({"x": list(range(100_000))}))
    await store.put("b", memoryview(block.data))
    ref = block.ref("b")
    await BlockCache(tmp_path, 8 * MIB, 0, store).get(ref)
    before = pa.total_allocated_bytes()
    buffer = await BlockCache(tmp_path, 8 * MIB, 0, store).get(ref)
    assert pa.total_allocated_bytes() == before
    assert is_mapped(tmp_path)
    assert buffer.size == ref.size_bytes


async def test_concurrent_asks_share_one_download(tmp_path: Path) -> None:
    store = GatedStore()
    refs = await put_blocks(store, 2)
    cache = BlockCache(tmp_path, MIB, MIB, store)
    asks = [asyncio.create_task(cache.get(ref)) for ref in refs * 20]
    await store.until_waiting(2)
    store.gate.set()
    assert [bytes(buffer)[:1] for buffer in await asyncio.gather(*asks)] == [b"\0", b"\1"] * 20
    assert (store.gets, cache.stats().misses, cache.stats().joined) == (2, 2, 38)


async def test_one_who_gives_up_does_not_take_the_others_with_him() -> None:
    store = GatedStore()
    [ref] = await put_blocks(store, 1)
    cache = BlockCache(None, 0, MIB, store)
    first = asyncio.create_task(cache.get(ref))
    second = asyncio.create_task(cache.get(ref))
    await store.until_waiting(1)
    first.cancel()
    store.gate.set()
    assert (await second).size == SIZE
    with pytest.raises(asyncio.CancelledError):
        await first
    assert store.gets == 1


async def test_a_failure_reaches_everyone_and_is_not_remembered() -> None:
    store = MemoryObjectStore()
    [ref] = await put_blocks(store, 1)

    def unavailable(key: str) -> None:
        raise Unavailable("down")

    store.before_get = unavailable
    cache = BlockCache(None, 0, MIB, store)
    outcomes = await asyncio.gather(cache.get(ref), cache.get(ref), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable, Unavailable]
    store.before_get = None
    assert (await cache.get(ref)).size == SIZE


async def test_a_missing_object_is_not_found() -> None:
    cache = BlockCache(None, 0, MIB, MemoryObjectStore())
    with pytest.raises(NotFound):
        await cache.get(encode_blob(b"x").ref("missing"))


async def test_downloads_are_bounded() -> None:
    store = GatedStore()
    refs = await put_blocks(store, 10)
    cache = BlockCache(None, 0, MIB, store, max_downloads=3)
    asks = [asyncio.create_task(cache.get(ref)) for ref in refs]
    await store.until_waiting(3)
    store.gate.set()
    await asyncio.gather(*asks)
    assert store.most_waiting == 3


async def test_the_least_recently_used_leave_memory_first() -> None:
    store = MemoryObjectStore()
    a, b, c = await put_blocks(store, 3)
    cache = BlockCache(None, 0, 2 * SIZE, store)
    held = await cache.get(a)
    await cache.get(b)
    await cache.get(a)
    await cache.get(c)
    assert [cache.may_contain(ref) for ref in (a, b, c)] == [True, False, True]
    assert cache.stats().memory_bytes == 2 * SIZE
    await cache.get(b)
    assert not cache.may_contain(a)
    assert bytes(held) == b"\0" * SIZE


async def test_the_least_recently_used_leave_the_disk_first(tmp_path: Path) -> None:
    store = MemoryObjectStore()
    a, b, c = await put_blocks(store, 3)
    cache = BlockCache(tmp_path, 2 * SIZE + 10, 0, store)
    await cache.get(a)
    held = await cache.get(a)  # mapped
    await cache.get(b)
    await cache.get(c)
    assert [cache.may_contain(ref) for ref in (a, b, c)] == [False, True, True]
    assert len(files_of(tmp_path)) == 2
    assert cache.stats().disk_bytes == 2 * SIZE
    assert (cache.stats().disk_evictions, cache.stats().memory_evictions) == (1, 0)
    assert bytes(held) == b"\0" * SIZE


async def test_a_block_larger_than_the_cache_passes_through(tmp_path: Path) -> None:
    store = MemoryObjectStore()
    [ref] = await put_blocks(store, 1)
    cache = BlockCache(tmp_path / "never-made", SIZE - 1, SIZE - 1, store)
    assert (await cache.get(ref)).size == SIZE
    stats = cache.stats()
    assert (stats.memory_bytes, stats.disk_bytes, stats.degraded) == (0, 0, 0)
    assert not (tmp_path / "never-made").exists()


async def test_may_contain_changes_nothing() -> None:
    store = MemoryObjectStore()
    a, b, c = await put_blocks(store, 3)
    cache = BlockCache(None, 0, 2 * SIZE, store)
    await cache.get(a)
    await cache.get(b)
    before = cache.stats()
    assert cache.may_contain(a)
    assert not cache.may_contain(c)
    assert (cache.stats(), store.gets) == (before, 2)
    await cache.get(c)
    assert not cache.may_contain(a)


async def test_a_restart_keeps_the_newest_within_the_capacity(tmp_path: Path) -> None:
    store = MemoryObjectStore()
    refs = await put_blocks(store, 4)
    cache = BlockCache(tmp_path, MIB, 0, store)
    for age, ref in enumerate(refs):
        known = set(files_of(tmp_path))
        await cache.get(ref)
        [new] = set(files_of(tmp_path)) - known
        os.utime(tmp_path / new, ns=(age, age))
    (tmp_path / "~half-written").write_bytes(b"x")
    (tmp_path / "README").write_bytes(b"not ours")

    smaller = BlockCache(tmp_path, 2 * SIZE, 0, store)
    assert not smaller.may_contain(refs[3])
    await smaller.start()
    assert [smaller.may_contain(ref) for ref in refs] == [False, False, True, True]
    names = files_of(tmp_path)
    assert len(names) == 3
    assert "README" in names


@pytest.mark.parametrize("damaged", [b"\1" * SIZE, b"\0" * (SIZE - 1), b"", b"\0" * (SIZE + 1)])
async def test_a_damaged_file_is_a_miss_and_is_replaced(tmp_path: Path, damaged: bytes) -> None:
    store = MemoryObjectStore()
    [ref] = await put_blocks(store, 1)
    await BlockCache(tmp_path, MIB, 0, store).get(ref)
    [name] = files_of(tmp_path)
    (tmp_path / name).write_bytes(damaged)

    cache = BlockCache(tmp_path, MIB, 0, store)
    assert bytes(await cache.get(ref)) == b"\0" * SIZE
    stats = cache.stats()
    assert (stats.misses, stats.disk_hits, stats.corrupt, stats.degraded, stats.disk_bytes) == (1, 0, 1, 1, SIZE)
    assert (tmp_path / name).read_bytes() == b"\0" * SIZE


async def test_a_file_that_vanished_is_a_miss(tmp_path: Path) -> None:
    store = MemoryObjectStore()
    [ref] = await put_blocks(store, 1)
    cache = BlockCache(tmp_path, MIB, 0, store)
    await cache.get(ref)
    await asyncio.sleep(0)
    (tmp_path / files_of(tmp_path)[0]).unlink()
    assert (await cache.get(ref)).size == SIZE
    assert (cache.stats().misses, cache.stats().degraded, cache.stats().corrupt) == (2, 1, 0)


async def test_a_full_disk_is_a_miss(tmp_path: Path) -> None:
    store = MemoryObjectStore()
    refs = await put_blocks(store, 2)

    def full(path: Path, buffer: pa.Buffer) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    cache = BlockCache(tmp_path, MIB, 0, store, write_file=full)
    for ref in refs * 2:
        assert (await cache.get(ref)).size == SIZE
    stats = cache.stats()
    assert (stats.misses, stats.degraded, stats.disk_bytes) == (4, 4, 0)
    assert not cache.may_contain(refs[0])


async def test_a_write_that_fails_midway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryObjectStore()
    [ref] = await put_blocks(store, 1)

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "replace", refuse)
    cache = BlockCache(tmp_path, MIB, 0, store)
    assert (await cache.get(ref)).size == SIZE
    assert cache.stats().degraded == 1
    assert files_of(tmp_path) == []


async def test_a_disk_that_cannot_be_read_is_a_miss(tmp_path: Path) -> None:
    store = MemoryObjectStore()
    [ref] = await put_blocks(store, 1)
    await BlockCache(tmp_path, MIB, 0, store).get(ref)

    def unreadable(path: Path) -> pa.Buffer:
        raise OSError(errno.EIO, "I/O error", str(path))

    cache = BlockCache(tmp_path, MIB, 0, store, map_file=unreadable)
    assert (await cache.get(ref)).size == SIZE
    assert (cache.stats().misses, cache.stats().degraded) == (1, 1)


async def test_a_directory_that_is_a_file_is_a_miss(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = MemoryObjectStore()
    [ref] = await put_blocks(store, 1)
    cache = BlockCache(tmp_path / "file", MIB, 0, store)
    assert (await cache.get(ref)).size == SIZE
    assert (cache.stats().misses, cache.stats().degraded) == (1, 2)  # listing it, writing into it


async def test_a_missing_directory_is_made(tmp_path: Path) -> None:
    store = MemoryObjectStore()
    [ref] = await put_blocks(store, 1)
    cache = BlockCache(tmp_path / "a/b", MIB, 0, store)
    await cache.get(ref)
    await asyncio.sleep(0)
    await cache.get(ref)
    assert (cache.stats().disk_hits, cache.stats().degraded) == (1, 0)


async def test_a_wrong_download_is_fetched_again_then_corrupt(tmp_path: Path) -> None:
    store = MemoryObjectStore()
    [ref] = await put_blocks(store, 1)
    store.corrupt(ref.key)
    cache = BlockCache(tmp_path, MIB, MIB, store)
    with pytest.raises(Corrupt, match="'blocks/0'"):
        await cache.get(ref)
    assert (store.gets, cache.stats().corrupt, cache.stats().degraded) == (2, 2, 0)
    assert not cache.may_contain(ref)


async def test_equal_checksums_under_different_keys_stay_apart(tmp_path: Path) -> None:
    store = MemoryObjectStore()
    block = encode_blob(b"x" * SIZE)
    for key in ("tenant-a/b", "tenant-b/b"):
        await store.put(key, memoryview(block.data))
    cache = BlockCache(tmp_path, MIB, MIB, store)
    await cache.get(block.ref("tenant-a/b"))
    assert not cache.may_contain(block.ref("tenant-b/b"))
    await cache.get(block.ref("tenant-b/b"))
    assert len(files_of(tmp_path)) == 2


async def test_misaligned_downloads_are_aligned() -> None:
    class OddStore(MemoryObjectStore):
        async def get(self, key: str) -> memoryview:
            padded = pa.allocate_buffer(SIZE + 1)
            memoryview(padded).cast("B")[1:] = await super().get(key)
            return memoryview(padded).cast("B")[1:]

    store = OddStore()
    [ref] = await put_blocks(store, 1)
    buffer = await BlockCache(None, 0, MIB, store).get(ref)
    assert buffer.address % 8 == 0
    assert bytes(buffer) == b"\0" * SIZE


async def test_close_waits_for_loads_and_keeps_files(tmp_path: Path) -> None:
    store = GatedStore()
    [ref] = await put_blocks(store, 1)
    cache = BlockCache(tmp_path, MIB, MIB, store)
    ask = asyncio.create_task(cache.get(ref))
    await store.until_waiting(1)
    closing = asyncio.create_task(cache.close())
    store.gate.set()
    await closing
    assert (await ask).size == SIZE
    assert cache.stats().memory_bytes == 0
    assert len(files_of(tmp_path)) == 1


async def test_what_is_mapped_can_be_let_go_of_and_is_read_again(tmp_path: Path) -> None:
    """Also just after a download. A block that somebody holds is mapped once, whatever has been evicted."""
    store = MemoryObjectStore()
    refs = await put_blocks(store, 3)
    cache = BlockCache(tmp_path, MIB, 0, store)
    held = [await cache.get(ref) for ref in refs]
    assert cache.mapped_bytes(refs) == 3 * SIZE
    before = [bytes(buffer) for buffer in held]
    cache.release(refs[:2])
    assert [bytes(buffer) for buffer in held] == before
    again = await cache.get(refs[0])
    assert again.address == held[0].address
    assert (cache.stats().memory_hits, cache.stats().misses) == (1, 3)
    del held, again
    await asyncio.sleep(0)
    gc.collect()
    assert cache.mapped_bytes(refs) == 0
    cache.release(refs)
    nowhere = BlockCache(None, 0, MIB, store)
    kept = await nowhere.get(refs[0])
    assert nowhere.mapped_bytes(refs) == 0, "it is in memory, and cannot be read again"
    nowhere.release(refs)
    assert bytes(kept) == before[0]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_mapped_blocks_hold_no_descriptors(tmp_path: Path) -> None:
    store = MemoryObjectStore()
    refs = await put_blocks(store, 20)
    cache = BlockCache(tmp_path, MIB, 0, store)
    before = descriptors()
    held = [await cache.get(ref) for ref in refs]
    assert cache.mapped_bytes(refs) == 20 * SIZE
    assert descriptors() < before + 10
    del held


async def test_without_descriptors_a_file_is_a_miss_and_stays(tmp_path: Path) -> None:
    store = MemoryObjectStore()
    [ref] = await put_blocks(store, 1)
    await BlockCache(tmp_path, MIB, 0, store).get(ref)
    names = files_of(tmp_path)

    def exhausted(path: Path) -> pa.Buffer:
        raise OSError(errno.EMFILE, "too many open files", str(path))

    cache = BlockCache(tmp_path, MIB, 0, store, map_file=exhausted, write_file=lambda *_: None)
    assert (await cache.get(ref)).size == SIZE
    assert (cache.stats().misses, cache.stats().degraded) == (1, 1)
    assert files_of(tmp_path) == names


# --- age


async def test_what_is_old_and_not_in_use_goes_from_memory_and_disk(tmp_path: Path) -> None:
    store, now_s = MemoryObjectStore(), [1_700_000_000]
    used, unused, young = await put_blocks(store, 3)
    cache = BlockCache(tmp_path, MIB, MIB, store, time_ns=lambda: now_s[0] * 10**9)
    held = await cache.get(used)
    await cache.get(unused)
    now_s[0] += 60
    await cache.get(young)
    assert await cache.expire(60_000) == 0
    now_s[0] += 1
    assert await cache.expire(60_000) == 1
    assert len(files_of(tmp_path)) == 2
    assert [cache.may_contain(ref) for ref in (used, unused, young)] == [True, False, True]
    assert (await cache.get(used)).equals(held)
    assert store.gets == 3
    del held
    assert await cache.expire(60_000) == 1
    assert len(files_of(tmp_path)) == 1


async def test_what_an_earlier_process_left_is_as_old_as_its_file(tmp_path: Path) -> None:
    store = MemoryObjectStore()
    [ref] = await put_blocks(store, 1)
    first = BlockCache(tmp_path, MIB, 0, store)
    await first.get(ref)
    await first.close()
    [name] = files_of(tmp_path)
    os.utime(tmp_path / name, (1_000, 1_000))
    again = BlockCache(tmp_path, MIB, 0, store, time_ns=lambda: 1_061 * 10**9)
    assert await again.expire(62_000) == 0
    assert await again.expire(60_000) == 1
    assert files_of(tmp_path) == []


async def test_without_a_directory_memory_forgets(tmp_path: Path) -> None:
    store, now_s = MemoryObjectStore(), [0]
    [ref] = await put_blocks(store, 1)
    cache = BlockCache(None, 0, MIB, store, time_ns=lambda: now_s[0] * 10**9)
    await cache.get(ref)
    now_s[0] = 61
    await cache.expire(60_000)
    assert not cache.may_contain(ref)
