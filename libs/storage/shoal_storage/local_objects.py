"""Objects as files under one directory, durable when `put` returns."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import stat
import tempfile
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from shoal_core.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, ShoalError, Unavailable
from shoal_core.ports import ObjectInfo
from shoal_storage.object_rules import (
    ObjectData,
    as_views,
    check_key,
    check_prefix,
    check_range,
    different_content,
    range_past_end,
    same_content,
)

T = TypeVar("T")

_RESERVED = "~"  # not in the key alphabet, so no key can ever name our own files
_TEMP_DIRECTORY = "~tmp"
_LOCK_FILE = "~lock"
_MAP_FROM_BYTES = 1 << 20
_PAGE_OBJECTS = 1000
_PUT_ATTEMPTS = 3
_DURABLE_DIRECTORIES = 100_000


class LocalObjectStore:
    """An `ObjectStore` of plain files: ``root/key``.

    A put writes a temporary file, fsyncs it, links it to its final name (which fails if the name is taken, so a reader sees
    all of an object or nothing and nothing is ever overwritten) and fsyncs every directory that the name depends on.
    Needs a file system with hard links. A key cannot be both an object and the directory of another one. Directories stay
    when their last object is deleted.

    Args:
        root: created if absent; opening it removes the temporary files of a crash, unless another process has it open.
        executor: where blocking work runs; the event loop's default pool if None.
        fsync: False only in tests that do not need durability.
        fsync_fd: how a descriptor is made durable.

    Opening does a little blocking I/O; do it before the event loop runs or in a thread. Raises `FailedPrecondition`.
    """

    def __init__(
        self,
        root: Path,
        *,
        executor: Executor | None = None,
        fsync: bool = True,
        fsync_fd: Callable[[int], None] = os.fsync,
    ) -> None:
        self._root = root.absolute()
        self._temp = self._root / _TEMP_DIRECTORY
        self._executor = executor
        self._fsync_fd = fsync_fd if fsync else _no_fsync
        self._durable: set[Path] = set()  # directories whose own entry, and those above, are known to be on disk
        with _os_errors(str(root)):
            self._create_root()
            lock_fd = os.open(self._root / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._close = weakref.finalize(self, os.close, lock_fd)
            _remove_stale(self._temp, lock_fd)

    def close(self) -> None:
        """Release the root's lock. The store must not be used afterwards; calling it again does nothing."""
        self._close()

    async def put(self, key: str, data: ObjectData) -> None:
        """See `ObjectStore.put`. Raises `ResourceExhausted` when the disk is full."""
        await self._run(partial(self._put, check_key(key), as_views(data)))

    async def get(self, key: str) -> memoryview:
        """See `ObjectStore.get`. A large object is memory-mapped, not copied."""
        return await self._run(partial(_read, self._root / check_key(key), key))

    async def get_range(self, key: str, start: int, length: int) -> memoryview:
        """See `ObjectStore.get_range`. Raises `InvalidArgument` if the object is shorter."""
        check_range(start, length)
        return await self._run(partial(_read_range, self._root / check_key(key), key, start, length))

    async def delete(self, keys: Sequence[str]) -> None:
        """See `ObjectStore.delete`. Not fsynced: an object that a power cut brings back is deleted again by whoever sweeps."""
        await self._run(partial(_unlink_all, self._root, [check_key(key) for key in keys]))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """See `ObjectStore.list`. Objects created or deleted meanwhile may or may not appear."""
        base = check_prefix(prefix).rpartition("/")[0]
        found = _walk(self._root / base, f"{base}/" if base else "", prefix)
        while page := await self._run(lambda: tuple(islice(found, _PAGE_OBJECTS))):
            for info in page:
                yield info

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _put(self, key: str, views: Sequence[memoryview]) -> None:
        for _ in range(_PUT_ATTEMPTS):
            with suppress(NotFound):
                return self._put_once(key, views)
            # Something on the way was deleted meanwhile: the object that had the name, or an empty directory.
            self._durable = {self._root}
        raise Unavailable(
            f"cannot store {key!r}: files vanish below {self._root}; check that the directory still exists"
        )

    def _put_once(self, key: str, views: Sequence[memoryview]) -> None:
        path = self._root / key
        with _os_errors(key):
            self._make_directory(path.parent)
            temp = self._write_temp(views)
            try:
                os.link(temp, path)
            except FileExistsError:
                _expect_same(path, key, views)
                # Whoever linked it may have died, or not yet come, before the directory was durable: fall through.
            finally:
                temp.unlink(missing_ok=True)
            self._fsync_directory(path.parent)

    def _write_temp(self, views: Sequence[memoryview]) -> Path:
        fd, name = tempfile.mkstemp(dir=self._temp)
        try:
            for view in views:
                _write_all(fd, view)
            self._fsync_fd(fd)
        except BaseException:
            os.unlink(name)
            raise
        finally:
            os.close(fd)
        return Path(name)

    def _make_directory(self, directory: Path) -> None:
        """Create ``directory`` and what is missing above it, durably.

        One that already exists may stem from a put that has not fsynced it yet, so each is fsynced once per process.
        """
        if directory in self._durable:
            return
        self._make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        self._fsync_directory(directory.parent)
        if len(self._durable) >= _DURABLE_DIRECTORIES:
            self._durable = {self._root}
        self._durable.add(directory)

    def _create_root(self) -> None:
        missing = [path for path in (self._root, *self._root.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            self._fsync_directory(path.parent)
        self._fsync_directory(self._root.parent)
        self._temp.mkdir(exist_ok=True)
        self._durable.add(self._root)

    def _fsync_directory(self, directory: Path) -> None:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._fsync_fd(fd)
        finally:
            os.close(fd)


def _no_fsync(fd: int) -> None:
    del fd


def _remove_stale(temp: Path, lock_fd: int) -> None:
    """Remove leftover temporary files if nobody else has the store open, then hold the lock in shared mode."""
    with suppress(BlockingIOError):
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for path in temp.iterdir():
            path.unlink(missing_ok=True)
    fcntl.flock(lock_fd, fcntl.LOCK_SH)


def _expect_same(path: Path, key: str, views: Sequence[memoryview]) -> None:
    if path.is_dir():
        raise InvalidArgument(f"{key!r} is a directory of objects; use another key", field="key")
    if not same_content(_read(path, key), views):
        raise different_content(key)


def _write_all(fd: int, view: memoryview) -> None:
    written = 0
    while written < view.nbytes:
        written += os.write(fd, view[written:])


@contextmanager
def _open(path: Path, key: str) -> Iterator[tuple[int, int]]:
    """Yield (descriptor, size in bytes); raises `NotFound` unless ``path`` is a file."""
    with _os_errors(key):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise NotFound(f"no object {key!r}")
            yield fd, status.st_size
        finally:
            os.close(fd)


def _read(path: Path, key: str) -> memoryview:
    with _open(path, key) as (fd, size_bytes):
        if size_bytes < _MAP_FROM_BYTES:
            return memoryview(_pread(fd, 0, size_bytes))
        # Arrow's mapping outlives its file object and keeps no descriptor open, unlike `mmap`.
        with pa.memory_map(str(path)) as mapped:
            return memoryview(mapped.read_buffer()).cast("B")


def _read_range(path: Path, key: str, start: int, length: int) -> memoryview:
    with _open(path, key) as (fd, size_bytes):
        if start + length > size_bytes:
            raise range_past_end(key, start, length)
        return memoryview(_pread(fd, start, length))


def _pread(fd: int, start: int, length: int) -> bytes:
    data = os.pread(fd, length, start)
    while len(data) < length and (more := os.pread(fd, length - len(data), start + len(data))):
        data += more
    return data


def _unlink_all(root: Path, keys: Sequence[str]) -> None:
    for key in keys:
        with _os_errors(key), suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            os.unlink(root / key)


def _walk(directory: Path, base: str, prefix: str) -> Iterator[ObjectInfo]:
    """Objects below ``directory``, whose own key is ``base``, that start with ``prefix``, in key order."""
    with _os_errors(base):
        try:
            with os.scandir(directory) as scan:
                entries = [entry for entry in scan if not entry.name.startswith(_RESERVED)]
        except (FileNotFoundError, NotADirectoryError):
            return
        # A directory sorts by its name with the slash: "a-b" comes before "a/b" although "a" comes before "a-b".
        keys = [base + entry.name + "/" * entry.is_dir(follow_symlinks=False) for entry in entries]
    for key, entry in sorted(zip(keys, entries, strict=True), key=lambda pair: pair[0]):
        if not key.startswith(prefix):
            continue
        if key.endswith("/"):
            yield from _walk(directory / entry.name, key, prefix)
            continue
        with suppress(FileNotFoundError):
            status = entry.stat(follow_symlinks=False)
            yield ObjectInfo(key, status.st_size, status.st_mtime_ns)


@contextmanager
def _os_errors(what: str) -> Iterator[None]:
    """Turn an `OSError` about ``what`` into one of the tree."""
    try:
        yield
    except OSError as error:
        raise _translate(error, what) from error


def _translate(error: OSError, what: str) -> ShoalError:
    match error.errno:
        case errno.ENOENT:
            return NotFound(f"no object {what!r}")
        case errno.ENOTDIR | errno.EISDIR | errno.EEXIST:
            return InvalidArgument(f"{what!r} is inside another object or is a directory of objects", field="key")
        case errno.ENOSPC | errno.EDQUOT:
            return ResourceExhausted(f"no space left to store {what!r}; free some or raise the quota")
        case errno.EACCES | errno.EPERM | errno.EROFS | errno.EXDEV | errno.EMLINK | errno.EOPNOTSUPP:
            return FailedPrecondition(
                f"cannot use {what!r}: {error}; the directory must be writable and its file system must have hard links"
            )
        case _:
            return Unavailable(f"local object store failed on {what!r}: {error}")
