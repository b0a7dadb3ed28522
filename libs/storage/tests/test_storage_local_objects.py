"""The store of files: the contract, durability, crashes and failing disks."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal_core.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from shoal_core.ports import ObjectStore
from shoal_storage.local_objects import LocalObjectStore
from shoal_testing.object_store_contract import ObjectStoreContract


class SyncLog:
    """An fsync that notes which path it was called on, and fails where told to."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.fail_on: Path | None = None
        self.error: BaseException = OSError(errno.EIO, "I/O error")

    def __call__(self, fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if self.fail_on in (path, path.parent):
            raise self.error
        self.paths.append(path)
        os.fsync(fd)


class SimulatedCrash(BaseException):
    """The process died at this point."""


@pytest.fixture
def synced() -> SyncLog:
    return SyncLog()


@pytest.fixture
def store(tmp_path: Path, synced: SyncLog) -> Iterator[LocalObjectStore]:
    opened = LocalObjectStore(tmp_path / "objects", fsync_fd=synced)
    yield opened
    opened.close()


class TestLocalObjectStore(ObjectStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[ObjectStore]:
        opened = LocalObjectStore(tmp_path / "objects", fsync=False)
        yield opened
        opened.close()


async def test_put_syncs_the_file_then_every_directory_down_to_it(
    tmp_path: Path, store: LocalObjectStore, synced: SyncLog
) -> None:
    root = tmp_path / "objects"
    assert synced.paths == [tmp_path, tmp_path]  # the root's own entry, at opening
    synced.paths.clear()

    await store.put("a/b/c", b"hello")
    *directories, file, last = synced.paths
    assert directories == [root, root / "a"]
    assert file.parent == root / "~tmp"
    assert last == root / "a/b"

    synced.paths.clear()
    await store.put("a/b/d", b"hello")
    assert [path.parent if path.parent.name == "~tmp" else path for path in synced.paths] == [
        root / "~tmp",
        root / "a/b",
    ]


async def test_the_object_appears_only_after_its_content_is_durable(
    tmp_path: Path, store: LocalObjectStore, synced: SyncLog
) -> None:
    synced.fail_on = tmp_path / "objects/~tmp"
    with pytest.raises(Unavailable, match="'a/b'"):
        await store.put("a/b", b"hello")
    with pytest.raises(NotFound):
        await store.get("a/b")
    assert list((tmp_path / "objects/~tmp").iterdir()) == []

    synced.fail_on = None
    await store.put("a/b", b"hello")


async def test_an_identical_put_makes_a_half_durable_one_durable(
    tmp_path: Path, store: LocalObjectStore, synced: SyncLog
) -> None:
    synced.fail_on = tmp_path / "objects/a"
    synced.error = SimulatedCrash()
    with pytest.raises(SimulatedCrash):
        await store.put("a/b", b"hello")
    store.close()

    again = SyncLog()
    reopened = LocalObjectStore(tmp_path / "objects", fsync_fd=again)
    await reopened.put("a/b", b"hello")
    assert again.paths[-1] == tmp_path / "objects/a"
    assert tmp_path / "objects" in again.paths
    reopened.close()


async def test_without_fsync_nothing_is_synced(tmp_path: Path, synced: SyncLog) -> None:
    store = LocalObjectStore(tmp_path / "objects", fsync=False, fsync_fd=synced)
    await store.put("a/b", b"hello")
    assert synced.paths == []
    store.close()


def test_opening_removes_what_a_crash_left_unless_another_has_it_open(tmp_path: Path) -> None:
    first = LocalObjectStore(tmp_path, fsync=False)
    stale = tmp_path / "~tmp/stale"
    stale.write_bytes(b"half")
    second = LocalObjectStore(tmp_path, fsync=False)
    assert stale.exists()
    first.close()
    second.close()
    third = LocalObjectStore(tmp_path, fsync=False)
    assert not stale.exists()
    third.close()
    third.close()


async def test_objects_survive_reopening(tmp_path: Path) -> None:
    for content in (b"hello", b"hello"):
        store = LocalObjectStore(tmp_path / "deep/er", fsync=False)
        await store.put("a/b", content)
        assert bytes(await store.get("a/b")) == b"hello"
        store.close()


async def test_our_own_files_are_not_listed(store: LocalObjectStore) -> None:
    await store.put("a", b"x")
    assert [info.key async for info in store.list("")] == ["a"]


async def test_a_key_cannot_be_object_and_directory(store: LocalObjectStore) -> None:
    await store.put("a/b", b"x")
    with pytest.raises(InvalidArgument, match="directory of objects"):
        await store.put("a", b"x")
    with pytest.raises(InvalidArgument, match="inside another object"):
        await store.put("a/b/c", b"x")


async def test_a_full_disk_is_resource_exhausted(tmp_path: Path, store: LocalObjectStore, synced: SyncLog) -> None:
    synced.fail_on = tmp_path / "objects/~tmp"
    synced.error = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ResourceExhausted, match="free some"):
        await store.put("a", b"x")


async def test_a_root_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((FailedPrecondition, InvalidArgument)):
        LocalObjectStore(tmp_path / "file")


async def test_a_directory_removed_meanwhile_is_made_again(tmp_path: Path, store: LocalObjectStore) -> None:
    await store.put("a/b/c", b"x")
    await store.delete(["a/b/c"])
    (tmp_path / "objects/a/b").rmdir()
    await store.put("a/b/c", b"y")
    assert bytes(await store.get("a/b/c")) == b"y"


async def test_many_mapped_objects_hold_no_descriptors(store: LocalObjectStore) -> None:
    await store.put("big", b"x" * (2 << 20))
    before = len(os.listdir("/proc/self/fd"))
    views = [await store.get("big") for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert all(view.nbytes == 2 << 20 for view in views)
