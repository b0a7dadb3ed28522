"""The cases of forks that every `Catalog` is held to, with the log beside it; see `contract_stores` for how to run them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shoal_core.contracts import BorrowedObjects, Collection, TailRequest, VersionInfo
from shoal_core.errors import AlreadyExists, NotFound, OffsetExpired
from shoal_testing.contract_stores import HOUR_MS, Stores
from shoal_testing.fake_catalog import DEFAULT_DATABASE, DEFAULT_TENANT


async def _half_compacted(stores: Stores) -> Collection:
    """Batches that end at 2, 3 and 5, of which two are compacted."""
    made = await stores.create()
    for ids in (["a", "b"], ["c"], ["d", "e"]):
        await stores.append(made, ids)
    await stores.compact(made, 3)
    return made


async def _entries(stores: Stores, collection: Collection, after: int) -> list[tuple[int, int, bytes]]:
    request = TailRequest(collection.id, collection.epoch, after_offset=after, max_size_bytes=1 << 20)
    tail = await stores.log.read_tail(request)
    return [(entry.first_offset, entry.end_offset, entry.payload.to_pybytes()) for entry in tail.entries]


async def _borrowed(stores: Stores, collection: Collection, retention_ms: int = HOUR_MS) -> BorrowedObjects:
    return await stores.catalog.borrowed_objects(
        collection.id, version_retention_ms=retention_ms, deleted_retention_ms=retention_ms
    )


class ForkContract:
    """What a fork has, how it and its source go on, and what it borrows."""

    async def test_a_fork_has_the_version_and_the_tail_of_its_source(self, stores: Stores) -> None:
        made = await _half_compacted(stores)
        fork = await stores.catalog.fork_collection(made.id, "fork")
        source = await stores.catalog.get_collection_by_id(made.id)
        assert fork == replace(source, id=fork.id, incarnation=fork.incarnation, name="fork", epoch=1)
        assert fork.dimension == 2
        assert (fork.id, fork.incarnation) != (made.id, made.incarnation)
        assert await stores.catalog.get_collection(DEFAULT_TENANT, DEFAULT_DATABASE, "fork") == fork
        assert await stores.catalog.get_collection_by_id(fork.id) == fork
        version = await stores.catalog.get_version(made.id)
        assert await stores.catalog.get_version(fork.id) == replace(version, collection_id=fork.id)
        head = await stores.log.read_index(fork.id, fork.epoch)
        assert (head.head_offset, head.version, head.compacted_offset, head.dimension) == (5, 1, 3, 2)
        assert await _entries(stores, fork, 3) == await _entries(stores, made, 3) != []
        with pytest.raises(OffsetExpired):
            await _entries(stores, fork, 2)
        backlog = await stores.catalog.backlog(limit=9, min_records=1, min_age_ms=HOUR_MS)
        assert {item.collection.id: item.head_offset - item.compacted_offset for item in backlog} == {
            made.id: 2,
            fork.id: 2,
        }

    async def test_a_fork_of_what_was_never_compacted_has_the_whole_log(self, stores: Stores) -> None:
        made = await stores.create(shards=3)
        empty = await stores.catalog.fork_collection(made.id, "empty")
        assert (await stores.log.read_index(empty.id, empty.epoch)).head_offset == 0
        await stores.append(made, ["a"])
        fork = await stores.catalog.fork_collection(made.id, "fork")
        assert (fork.shards, fork.version) == (3, 0)
        assert await _entries(stores, fork, 0) == await _entries(stores, made, 0) != []
        assert await stores.catalog.version_at(fork.id, 1) == VersionInfo(fork.id, 0, "", 0)
        await stores.append(empty, ["x"], dimension=5)
        assert (await stores.catalog.get_collection_by_id(empty.id)).dimension == 5

    async def test_from_then_on_each_goes_its_own_way(self, stores: Stores) -> None:
        made = await _half_compacted(stores)
        fork = await stores.catalog.fork_collection(made.id, "fork")
        before = await stores.catalog.get_version(fork.id)
        await stores.append(fork, ["f"])
        await stores.append(made, ["x", "y"])
        assert (await stores.log.read_index(fork.id, fork.epoch)).head_offset == 6
        assert (await stores.log.read_index(made.id, made.epoch)).head_offset == 7
        await stores.compact(fork, 6, expected=1)
        assert (await stores.catalog.get_version(made.id)).version == 1
        await stores.compact(made, 5, expected=1)
        assert [(await stores.catalog.get_version(one.id)).compacted_offset for one in (fork, made)] == [6, 5]
        assert await stores.catalog.version_at(fork.id, 5) == before
        with pytest.raises(OffsetExpired):
            await stores.catalog.version_at(fork.id, 2)
        await stores.catalog.delete_collection(made.id)
        assert await _entries(stores, fork, 5) != []

    async def test_keys_of_writes_are_not_the_forks(self, stores: Stores) -> None:
        made = await stores.create()
        await stores.append(made, ["a"], key="k")
        fork = await stores.catalog.fork_collection(made.id, "fork")
        again = await stores.append(fork, ["b"], key="k")
        assert (again.replayed, again.token.collection_id, again.token.offset) == (False, fork.id, 2)

    async def test_what_cannot_be_forked(self, stores: Stores) -> None:
        catalog, made = stores.catalog, await stores.create()
        await stores.create("taken")
        for name in ("taken", "c"):
            with pytest.raises(AlreadyExists):
                await catalog.fork_collection(made.id, name)
        for unknown in ("00000000-0000-4000-8000-000000000000", "x"):
            with pytest.raises(NotFound):
                await catalog.fork_collection(unknown, "fork")
            with pytest.raises(NotFound):
                await catalog.count_forks(unknown)
        await catalog.delete_collection(made.id)
        with pytest.raises(NotFound):
            await catalog.fork_collection(made.id, "fork")
        with pytest.raises(NotFound):
            await catalog.count_forks(made.id)

    async def test_forks_are_counted_over_the_whole_tree(self, stores: Stores) -> None:
        catalog, made, other = stores.catalog, await stores.create(), await stores.create("other")
        assert await catalog.count_forks(made.id) == 0
        child = await catalog.fork_collection(made.id, "child")
        grandchild = await catalog.fork_collection(child.id, "grandchild")
        for collection in (made, child, grandchild):
            assert await catalog.count_forks(collection.id) == 2
        assert await catalog.count_forks(other.id) == 0
        await catalog.delete_collection(made.id)
        await catalog.delete_collection(child.id)
        assert await catalog.count_forks(grandchild.id) == 1

    async def test_what_forks_read_is_borrowed_until_they_are_gone(self, stores: Stores) -> None:
        catalog, made = stores.catalog, await _half_compacted(stores)
        assert await _borrowed(stores, made) == BorrowedObjects((), frozenset())
        child = await catalog.fork_collection(made.id, "child")
        grandchild = await catalog.fork_collection(child.id, "grandchild")
        versions = {one.id: await catalog.get_version(one.id) for one in (child, grandchild)}
        assert set((await _borrowed(stores, made)).versions) == set(versions.values())
        assert (await _borrowed(stores, child)).versions == (versions[grandchild.id],)
        assert (await _borrowed(stores, grandchild)).versions == ()
        await stores.compact(child, 5, expected=1)
        newer = await catalog.get_version(child.id)
        assert set((await _borrowed(stores, made)).versions) == set(versions.values())
        assert set((await _borrowed(stores, made, 0)).versions) == {newer, versions[grandchild.id]}
        await catalog.delete_collection(made.id)
        await catalog.delete_collection(child.id)
        assert set((await _borrowed(stores, made)).versions) == set(versions.values())
        assert set((await _borrowed(stores, made, 0)).versions) == {versions[grandchild.id]}
        await catalog.delete_collection(grandchild.id)
        assert (await _borrowed(stores, made, 0)).versions == ()
