"""The cases of garbage collection that every `Catalog` is held to; see `contract_stores` for how to run them."""

from __future__ import annotations

import uuid

import pytest

from shoal_core.contracts import Collection, GarbageCollection, GarbageRoots, VersionInfo
from shoal_core.errors import FailedPrecondition, NotFound, UploadExpired
from shoal_testing.contract_stores import HOUR_MS, Stores


async def _publish(stores: Stores, collection: Collection, count: int) -> list[VersionInfo]:
    lease = await stores.claim(collection)
    return [
        await stores.catalog.publish(await stores.publishing(lease, 0, expected=version)) for version in range(count)
    ]


async def _due(stores: Stores, retention_ms: int = 0, *, everything: bool = False) -> list[tuple[str, bool]]:
    found = await stores.catalog.collections_with_garbage(
        after="",
        limit=100,
        version_retention_ms=retention_ms,
        deleted_retention_ms=retention_ms,
        everything=everything,
    )
    assert all(item.overdue_ms >= 0 for item in found)
    return [(item.collection_id, item.deleted) for item in found]


class GarbageContract:
    """Uploads that ran out, versions past their retention, deleted collections."""

    async def test_uploads_are_orphans_long_after_they_are_refused(self, stores: Stores) -> None:
        catalog, made = stores.catalog, await stores.create()
        request = await stores.publishing(await stores.claim(made), 0)
        assert await catalog.expired_uploads(limit=9) == []
        await catalog.drop_uploads([request.upload_id])  # not yet
        roots = await catalog.garbage_roots(made.id, [request.upload_id], version_retention_ms=0)
        assert roots == GarbageRoots((), frozenset({request.upload_id}))
        for _ in range(3):
            await stores.age_uploads()
        other = await catalog.begin_upload(made.id)
        (expired,) = await catalog.expired_uploads(limit=9)
        assert (expired.id, expired.collection_id) == (request.upload_id, made.id)
        assert expired.overdue_ms > 0
        with pytest.raises(UploadExpired):
            await catalog.publish(request)
        for _ in range(2):
            await catalog.drop_uploads([request.upload_id, other, str(uuid.uuid4()), "x"])
        assert await catalog.expired_uploads(limit=9) == []
        asked = [request.upload_id, other, "x"]
        roots = await catalog.garbage_roots(made.id, asked, version_retention_ms=0)
        assert roots.uploads == {other}

    async def test_expired_uploads_come_in_pages(self, stores: Stores) -> None:
        made = await stores.create()
        ids = {await stores.catalog.begin_upload(made.id) for _ in range(5)}
        for _ in range(3):
            await stores.age_uploads()
        found = await stores.catalog.expired_uploads(limit=3)
        assert len(found) == 3
        await stores.catalog.drop_uploads([upload.id for upload in found])
        rest = await stores.catalog.expired_uploads(limit=3)
        assert {upload.id for upload in (*found, *rest)} == ids

    async def test_uploads_of_a_deleted_collection_expire_too(self, stores: Stores) -> None:
        made = await stores.create()
        upload_id = await stores.catalog.begin_upload(made.id)
        await stores.catalog.delete_collection(made.id)
        assert await stores.catalog.purge_collection(made.id, deleted_retention_ms=0, limit=9)
        for _ in range(3):
            await stores.age_uploads()
        assert [upload.id for upload in await stores.catalog.expired_uploads(limit=3)] == [upload_id]

    async def test_versions_are_retained_after_they_were_replaced(self, stores: Stores) -> None:
        catalog, made = stores.catalog, await stores.create()
        published = await _publish(stores, made, 4)
        assert await catalog.garbage_roots(made.id, [], version_retention_ms=HOUR_MS) == GarbageRoots(
            tuple(published), frozenset()
        )
        assert await _due(stores, HOUR_MS) == []
        assert await catalog.drop_versions(made.id, below=9, version_retention_ms=HOUR_MS) == 0
        roots = await catalog.garbage_roots(made.id, [], version_retention_ms=0)
        assert roots.versions == (published[3],)
        assert await _due(stores) == [(made.id, False)]
        assert await catalog.drop_versions(made.id, below=3, version_retention_ms=0) == 2
        assert (await catalog.garbage_roots(made.id, [], version_retention_ms=HOUR_MS)).versions == tuple(published[2:])
        with pytest.raises(NotFound):
            await catalog.get_version(made.id, 2)
        assert await catalog.get_version(made.id, 3) == published[2]
        assert await _due(stores) == [(made.id, False)]
        assert await catalog.drop_versions(made.id, below=9, version_retention_ms=0) == 1
        assert await catalog.drop_versions(made.id, below=9, version_retention_ms=0) == 0
        assert await catalog.get_version(made.id) == published[3] == await catalog.get_version(made.id, 4)
        assert (await catalog.get_version(made.id, 0)).version == 0
        assert await _due(stores) == []
        assert await _due(stores, everything=True) == [(made.id, False)]

    async def test_a_publish_turns_an_upload_into_a_version(self, stores: Stores) -> None:
        catalog, made = stores.catalog, await stores.create()
        request = await stores.publishing(await stores.claim(made), 0)
        published = await catalog.publish(request)
        roots = await catalog.garbage_roots(made.id, [request.upload_id], version_retention_ms=0)
        assert roots == GarbageRoots((published,), frozenset())

    async def test_collections_come_in_pages_in_order_of_id(self, stores: Stores) -> None:
        made = sorted([await stores.create(f"c{n}") for n in range(5)], key=lambda collection: collection.id)
        for collection in made[:2]:
            await _publish(stores, collection, 2)
        await stores.catalog.delete_collection(made[3].id)
        assert await _due(stores) == [(made[0].id, False), (made[1].id, False), (made[3].id, True)]
        assert await _due(stores, HOUR_MS) == []
        assert [one for one, _ in await _due(stores, HOUR_MS, everything=True)] == [
            collection.id for collection in made if collection is not made[3]
        ]
        found: list[GarbageCollection] = []
        while page := await stores.catalog.collections_with_garbage(
            after=found[-1].collection_id if found else "",
            limit=2,
            version_retention_ms=0,
            deleted_retention_ms=0,
            everything=True,
        ):
            assert len(page) <= 2
            found.extend(page)
        assert [item.collection_id for item in found] == [collection.id for collection in made]

    async def test_a_deleted_collection_is_purged_page_by_page(self, stores: Stores) -> None:
        catalog, made, other = stores.catalog, await stores.create(), await stores.create("other")
        for collection in (made, other):
            for number in range(5):
                await stores.append(collection, [f"id{number}"])
            await stores.compact(collection, 2)
        for collection in (made, other):
            with pytest.raises(FailedPrecondition):
                await catalog.purge_collection(collection.id, deleted_retention_ms=0, limit=9)
        await catalog.delete_collection(made.id)
        with pytest.raises(FailedPrecondition):
            await catalog.purge_collection(made.id, deleted_retention_ms=HOUR_MS, limit=9)
        with pytest.raises(NotFound):
            await catalog.garbage_roots(made.id, [], version_retention_ms=0)
        done = [await catalog.purge_collection(made.id, deleted_retention_ms=0, limit=2) for _ in range(4)]
        assert done == [False, False, True, True]
        assert await _due(stores) == []
        with pytest.raises(NotFound):
            await stores.append(made, ["x"])
        with pytest.raises(NotFound):
            await stores.log.read_index(made.id, 0)
        await stores.append(other, ["x"])
        assert (await stores.log.read_index(other.id, other.epoch)).head_offset == 6
        assert (await catalog.get_version(other.id)).version == 1

    async def test_nothing_is_known_of_a_collection_that_never_was(self, stores: Stores) -> None:
        nobody = str(uuid.uuid4())
        with pytest.raises(NotFound):
            await stores.catalog.garbage_roots(nobody, [], version_retention_ms=0)
        assert await stores.catalog.purge_collection(nobody, deleted_retention_ms=0, limit=1)
