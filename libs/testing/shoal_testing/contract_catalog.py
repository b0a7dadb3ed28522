"""The cases that every `Catalog` is held to; see `contract_stores` for how to run them."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from typing import Any

import pytest

from shoal_core.contracts import Collection, Lease, NewCollection, Tenant, VersionInfo
from shoal_core.errors import (
    AlreadyExists,
    Fenced,
    InvalidArgument,
    NotFound,
    OffsetExpired,
    UploadExpired,
    VersionConflict,
)
from shoal_core.schema import Analyzer, Bm25, Index, Schema, SparseConfig, VectorConfig
from shoal_testing.contract_stores import HOUR_MS, Stores
from shoal_testing.fake_catalog import DEFAULT_DATABASE, DEFAULT_TENANT


def _new(name: str = "c", **more: Any) -> NewCollection:
    return replace(NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, name), **more)


async def _six_records(stores: Stores, collection: Collection) -> Lease:
    """Batches that end at 2, 3, 5 and 6."""
    for ids in (["a", "b"], ["c"], ["d", "e"], ["f"]):
        await stores.append(collection, ids)
    return await stores.claim(collection)


async def _versions_at(stores: Stores, collection: Collection, *offsets: int) -> dict[int, int]:
    return {offset: (await stores.catalog.version_at(collection.id, offset)).version for offset in offsets}


SCHEMA = Schema(
    off=frozenset({Index.SUBSTRING, Index.FLOAT}),
    keys={"b": {Index.INT: False, Index.STRING: True}, "#document": {Index.RANKED: True}},
    analyzer=Analyzer(language="none", stop_words=("a", "ü")),
    bm25=Bm25(b=0.5),
    vector=VectorConfig(m=8),
    sparse={"s": SparseConfig(idf=True, embedding_function={"name": "x", "of": [1, {"y": None}]}), "t": SparseConfig()},
)


class CatalogNamesContract:
    """Tenants, databases, collections."""

    async def test_tenants_and_databases(self, stores: Stores) -> None:
        catalog = stores.catalog
        await catalog.create_tenant("t")
        assert await catalog.get_tenant("t") == Tenant("t")
        with pytest.raises(AlreadyExists):
            await catalog.create_tenant("t")
        with pytest.raises(NotFound):
            await catalog.get_tenant("nobody")
        made = [await catalog.create_database("t", name) for name in ("b", "a", "c")]
        assert await catalog.get_database("t", "a") == made[1]
        with pytest.raises(AlreadyExists):
            await catalog.create_database("t", "a")
        with pytest.raises(NotFound):
            await catalog.create_database("nobody", "a")
        with pytest.raises(NotFound):
            await catalog.get_database("t", "z")
        assert [item.name for item in await catalog.list_databases("t", limit=2, offset=1)] == ["b", "c"]
        assert await catalog.list_databases("nobody", limit=2, offset=0) == []

    async def test_a_tenant_gets_a_resource_name_once(self, stores: Stores) -> None:
        catalog = stores.catalog
        for name in ("t", "u"):
            await catalog.create_tenant(name)
        await catalog.create_database("t", "d")
        made = await stores.create("c", tenant="t")
        for _ in range(2):
            await catalog.name_tenant("t", "resource")
        assert await catalog.get_tenant("t") == Tenant("t", "resource")
        assert await catalog.get_tenant("u") == Tenant("u")
        for name, resource_name in (("t", "other"), ("u", "resource")):
            with pytest.raises(AlreadyExists):
                await catalog.name_tenant(name, resource_name)
        with pytest.raises(NotFound):
            await catalog.name_tenant("nobody", "x")
        with pytest.raises(InvalidArgument):
            await catalog.name_tenant("u", "")
        assert await catalog.get_collection_by_resource_name("resource", "d", "c") == made
        for names in (("t", "d", "c"), ("resource", "e", "c"), ("resource", "d", "x")):
            with pytest.raises(NotFound):
                await catalog.get_collection_by_resource_name(*names)

    async def test_after_a_reset_everything_can_be_made_again(self, stores: Stores) -> None:
        catalog = stores.catalog
        for _ in range(2):
            await catalog.create_tenant("t")
            await catalog.name_tenant("t", "resource")
            await catalog.create_database("t", "d")
            made = [await stores.create("c", tenant="t"), await stores.create("c")]
            await stores.append(made[1], ["a"])
            default = await catalog.get_database(DEFAULT_TENANT, DEFAULT_DATABASE)
            await catalog.reset()
            for collection in made:
                with pytest.raises(NotFound):
                    await catalog.get_collection_by_id(collection.id)
                with pytest.raises(NotFound):
                    await stores.append(collection, ["b"])
            with pytest.raises(NotFound):
                await catalog.get_tenant("t")
            with pytest.raises(NotFound):
                await catalog.create_database("t", "d")
            assert await catalog.list_databases("t", limit=9, offset=0) == []
            (again,) = await catalog.list_databases(DEFAULT_TENANT, limit=9, offset=0)
            assert (again.name, again.id == default.id) == (DEFAULT_DATABASE, False)
            assert await catalog.count_collections(DEFAULT_TENANT, DEFAULT_DATABASE) == 0
            assert await catalog.backlog(limit=9, min_records=0, min_age_ms=0) == []

    async def test_a_collection_says_what_is_compacted(self, stores: Stores) -> None:
        made = await stores.create()
        await stores.append(made, ["a", "b"])
        assert (made.version, made.compacted_offset) == (0, 0)
        await stores.compact(made, 2)
        found = await stores.catalog.get_collection_by_id(made.id)
        assert (found.version, found.compacted_offset) == (1, 2)
        assert await stores.catalog.list_collections(DEFAULT_TENANT, DEFAULT_DATABASE, limit=9, offset=0) == [found]

    async def test_a_deleted_database_takes_its_collections_along(self, stores: Stores) -> None:
        catalog = stores.catalog
        await catalog.create_tenant("t")
        first = await catalog.create_database("t", "d")
        made = await stores.create("c", tenant="t")
        await catalog.delete_database("t", "d")
        with pytest.raises(NotFound):
            await catalog.delete_database("t", "d")
        with pytest.raises(NotFound):
            await catalog.get_collection_by_id(made.id)
        with pytest.raises(NotFound):
            await catalog.get_collection("t", "d", "c")
        assert (await catalog.create_database("t", "d")).id != first.id
        assert await catalog.count_collections("t", "d") == 0

    async def test_a_collection_comes_back_as_it_was_made(self, stores: Stores) -> None:
        new = _new(space="cosine", shards=3, metadata={"b": 1, "a": [1.5, None]}, configuration={"x": {}}, dimension=7)
        made, created = await stores.catalog.create_collection(new, get_or_create=False)
        assert created
        assert (made.name, made.space, made.shards, made.dimension, made.epoch) == ("c", "cosine", 3, 7, 1)
        assert (made.metadata, made.configuration) == ({"b": 1, "a": [1.5, None]}, {"x": {}})
        assert str(uuid.UUID(made.id)) == made.id
        assert uuid.UUID(made.incarnation) != uuid.UUID(made.id)
        assert await stores.catalog.get_collection(DEFAULT_TENANT, DEFAULT_DATABASE, "c") == made
        assert await stores.catalog.get_collection_by_id(made.id) == made

    async def test_create_refuses_and_gets(self, stores: Stores) -> None:
        catalog = stores.catalog
        made = await stores.create()
        with pytest.raises(AlreadyExists):
            await catalog.create_collection(_new(), get_or_create=False)
        assert await catalog.create_collection(_new(shards=5), get_or_create=True) == (made, False)
        with pytest.raises(NotFound):
            await catalog.create_collection(replace(_new(), database="no"), get_or_create=False)
        for bad in (_new("x", space="l3"), _new("x", shards=0), _new("x", dimension=0)):
            with pytest.raises(InvalidArgument):
                await catalog.create_collection(bad, get_or_create=True)
        with pytest.raises(InvalidArgument, match="metadata"):
            await catalog.create_collection(_new("x", metadata={"a": object()}), get_or_create=False)

    async def test_collections_are_listed_in_order_of_creation(self, stores: Stores) -> None:
        made = [await stores.create(name) for name in ("b", "c", "a")]
        listed = await stores.catalog.list_collections(DEFAULT_TENANT, DEFAULT_DATABASE, limit=2, offset=1)
        assert listed == made[1:]
        assert await stores.catalog.count_collections(DEFAULT_TENANT, DEFAULT_DATABASE) == 3
        assert await stores.catalog.list_collections(DEFAULT_TENANT, "no", limit=9, offset=0) == []
        assert await stores.catalog.count_collections(DEFAULT_TENANT, "no") == 0

    async def test_modify_replaces_what_is_given(self, stores: Stores) -> None:
        catalog = stores.catalog
        made = await stores.create()
        await stores.create("taken")
        renamed = await catalog.modify_collection(made.id, name="d")
        assert renamed == replace(made, name="d", epoch=2)
        changed = await catalog.modify_collection(made.id, name="d", metadata={}, configuration={"y": 1})
        assert changed == replace(made, name="d", epoch=3, metadata={}, configuration={"y": 1})
        with pytest.raises(AlreadyExists):
            await catalog.modify_collection(made.id, name="taken")
        with pytest.raises(NotFound):
            await catalog.get_collection(DEFAULT_TENANT, DEFAULT_DATABASE, "c")
        assert await catalog.get_collection_by_id(made.id) == changed

    async def test_a_schema_comes_back_as_it_was_given(self, stores: Stores) -> None:
        catalog = stores.catalog
        made, _ = await catalog.create_collection(_new(schema=SCHEMA), get_or_create=False)
        assert made.schema == SCHEMA
        assert await catalog.get_collection_by_id(made.id) == made
        assert await catalog.get_collection(DEFAULT_TENANT, DEFAULT_DATABASE, "c") == made
        assert await catalog.create_collection(_new(), get_or_create=True) == (made, False)
        plain = await stores.create("plain")
        assert plain.schema == Schema()
        assert await catalog.list_collections(DEFAULT_TENANT, DEFAULT_DATABASE, limit=9, offset=0) == [made, plain]
        await stores.append(made, ["a"])
        (waiting,) = await catalog.backlog(limit=9, min_records=1, min_age_ms=HOUR_MS)
        assert waiting.collection.schema == SCHEMA

    async def test_a_schema_is_replaced_but_for_its_analyzer(self, stores: Stores) -> None:
        catalog = stores.catalog
        made, _ = await catalog.create_collection(_new(schema=SCHEMA), get_or_create=False)
        other = Schema(off=frozenset({Index.INT}), analyzer=SCHEMA.analyzer)
        changed = await catalog.modify_collection(made.id, schema=other)
        assert changed == replace(made, schema=other, epoch=2)
        renamed = await catalog.modify_collection(made.id, name="d")
        assert renamed == replace(changed, name="d", epoch=3)
        for bad in (Schema(), replace(other, bm25=Bm25(b=2.0)), replace(other, bm25=Bm25(k1=float("nan")))):
            with pytest.raises(InvalidArgument, match="schema"):
                await catalog.modify_collection(made.id, name="e", schema=bad)
        assert await catalog.get_collection_by_id(made.id) == renamed
        with pytest.raises(InvalidArgument, match=r"schema\.vector\.m"):
            await catalog.create_collection(_new("bad", schema=Schema(vector=VectorConfig(m=0))), get_or_create=False)
        assert await catalog.count_collections(DEFAULT_TENANT, DEFAULT_DATABASE) == 1

    async def test_a_deleted_collection_is_gone_and_its_name_free(self, stores: Stores) -> None:
        catalog = stores.catalog
        made = await stores.create()
        await catalog.delete_collection(made.id)
        for call in (
            catalog.delete_collection(made.id),
            catalog.get_collection_by_id(made.id),
            catalog.modify_collection(made.id, name="x"),
            catalog.get_version(made.id),
            catalog.begin_upload(made.id),
        ):
            with pytest.raises(NotFound):
                await call
        again = await stores.create()
        assert (again.id, again.incarnation) != (made.id, made.incarnation)


class CatalogContract(CatalogNamesContract):
    """Leases, publishes and the backlog as well."""

    async def test_one_of_many_claims_wins(self, stores: Stores) -> None:
        made = await stores.create()
        claims = (stores.catalog.claim(made.id, "flush", f"h{i}", ttl_ms=HOUR_MS) for i in range(8))
        won = [lease for lease in await asyncio.gather(*claims) if lease is not None]
        assert [lease.epoch for lease in won] == [1]
        assert (won[0].collection_id, won[0].kind) == (made.id, "flush")
        assert (await stores.claim(made, "merge")).epoch == 1

    async def test_epochs_grow_after_expiry_and_after_release(self, stores: Stores) -> None:
        made = await stores.create()
        first = await stores.claim(made)
        await stores.expire_lease(first)
        second = await stores.claim(made, holder="other")
        with pytest.raises(Fenced):
            await stores.catalog.renew(first, ttl_ms=HOUR_MS)
        await stores.catalog.release(first)  # not its own any more
        assert await stores.catalog.claim(made.id, "flush", "third", ttl_ms=HOUR_MS) is None
        await stores.catalog.release(second)
        with pytest.raises(Fenced):
            await stores.catalog.renew(second, ttl_ms=HOUR_MS)
        assert [first.epoch, second.epoch, (await stores.claim(made)).epoch] == [1, 2, 3]

    async def test_a_lease_that_ran_out_may_be_renewed_while_nobody_claims(self, stores: Stores) -> None:
        made = await stores.create()
        lease = await stores.claim(made)
        await stores.expire_lease(lease)
        await stores.catalog.renew(lease, ttl_ms=HOUR_MS)
        assert await stores.catalog.claim(made.id, "flush", "other", ttl_ms=HOUR_MS) is None
        with pytest.raises(InvalidArgument, match="ttl_ms"):
            await stores.catalog.renew(lease, ttl_ms=0)

    async def test_nothing_to_claim(self, stores: Stores) -> None:
        made = await stores.create()
        await stores.catalog.delete_collection(made.id)
        for collection_id in (made.id, str(uuid.uuid4())):
            assert await stores.catalog.claim(collection_id, "flush", "me", ttl_ms=HOUR_MS) is None

    async def test_publish_moves_version_and_offset(self, stores: Stores) -> None:
        catalog, made = stores.catalog, await stores.create()
        assert await catalog.get_version(made.id) == VersionInfo(made.id, 0, "", 0)
        for ids in (["a", "b", "c"], ["d", "e"]):
            await stores.append(made, ids)
        lease = await stores.claim(made)
        request = await stores.publishing(lease, 3)
        published = await catalog.publish(request)
        assert published == VersionInfo(made.id, 1, request.manifest_key, 3) == await catalog.get_version(made.id)
        same_offset = await stores.publishing(lease, 3, expected=1)
        assert (await catalog.publish(same_offset)).version == 2
        await catalog.publish(await stores.publishing(lease, 5, expected=2))
        assert await catalog.get_version(made.id, 1) == published
        assert (await catalog.get_version(made.id, 0)).version == 0
        for version in (4, 9):
            with pytest.raises(NotFound):
                await catalog.get_version(made.id, version)

    async def test_an_offset_is_read_from_the_newest_version_at_or_below_it(self, stores: Stores) -> None:
        catalog, made = stores.catalog, await stores.create()
        assert await catalog.version_at(made.id, 0) == VersionInfo(made.id, 0, "", 0)
        lease = await _six_records(stores, made)
        published = [
            await catalog.publish(await stores.publishing(lease, offset, expected=expected))
            for expected, offset in enumerate((2, 2, 5))
        ]
        assert await catalog.version_at(made.id, 4) == published[1]
        expected = {0: 0, 1: 0, 2: 2, 3: 2, 4: 2, 5: 3, 6: 3, 7: 3, 2**64 - 1: 3}
        assert await _versions_at(stores, made, *expected) == expected
        with pytest.raises(InvalidArgument, match="offset"):
            await catalog.version_at(made.id, -1)
        await catalog.delete_collection(made.id)
        for collection_id in (made.id, str(uuid.uuid4()), "x"):
            with pytest.raises(NotFound):
                await catalog.version_at(collection_id, 5)

    async def test_what_a_forgotten_version_covered_is_read_from_the_log(self, stores: Stores) -> None:
        catalog, made = stores.catalog, await stores.create()
        lease = await _six_records(stores, made)
        for version, offset in enumerate((2, 3, 5)):
            await catalog.publish(await stores.publishing(lease, offset, expected=version))
        assert await catalog.drop_versions(made.id, below=9, version_retention_ms=HOUR_MS) == 0
        assert await _versions_at(stores, made, 2, 3, 5) == {2: 1, 3: 2, 5: 3}
        assert await catalog.drop_versions(made.id, below=2, version_retention_ms=0) == 1
        assert await _versions_at(stores, made, 0, 2, 3, 5) == {0: 0, 2: 0, 3: 2, 5: 3}
        assert await catalog.drop_versions(made.id, below=9, version_retention_ms=0) == 1
        assert await _versions_at(stores, made, 0, 4, 5) == {0: 0, 4: 0, 5: 3}
        await stores.trim(made, 2)
        assert await _versions_at(stores, made, 5, 6) == {5: 3, 6: 3}
        for offset in (0, 2, 4):
            with pytest.raises(OffsetExpired, match="the oldest offset that can is 5"):
                await catalog.version_at(made.id, offset)

    async def test_no_version_is_read_from_without_the_log_after_it(self, stores: Stores) -> None:
        catalog, made = stores.catalog, await stores.create()
        lease = await _six_records(stores, made)
        for version, offset in enumerate((2, 3, 5)):
            await catalog.publish(await stores.publishing(lease, offset, expected=version))
        await stores.trim(made, 2)
        with pytest.raises(OffsetExpired, match="the oldest offset that can is 2"):
            await catalog.version_at(made.id, 1)
        assert await _versions_at(stores, made, 2, 3, 5) == {2: 1, 3: 2, 5: 3}
        await stores.trim(made, 3)
        for offset in (0, 2):
            with pytest.raises(OffsetExpired, match="the oldest offset that can is 3"):
                await catalog.version_at(made.id, offset)
        assert await _versions_at(stores, made, 3, 4, 5, 9) == {3: 2, 4: 2, 5: 3, 9: 3}

    async def test_a_repeated_publish_succeeds(self, stores: Stores) -> None:
        made = await stores.create()
        first = await stores.claim(made)
        request = await stores.publishing(first, 0)
        published = await stores.catalog.publish(request)
        assert await stores.catalog.publish(request) == published
        await stores.expire_lease(first)
        second = await stores.claim(made)
        await stores.catalog.publish(await stores.publishing(second, 0, expected=1))
        assert await stores.catalog.publish(request) == published
        assert (await stores.catalog.get_version(made.id)).version == 2

    async def test_a_deposed_holder_cannot_publish(self, stores: Stores) -> None:
        made = await stores.create()
        deposed = await stores.claim(made)
        await stores.expire_lease(deposed)
        newest = await stores.claim(made)
        for lease in (deposed, replace(newest, kind="merge"), replace(newest, epoch=3)):
            with pytest.raises(Fenced):
                await stores.catalog.publish(await stores.publishing(lease, 0))
        await stores.expire_lease(newest)  # nobody newer: may still publish
        assert (await stores.catalog.publish(await stores.publishing(newest, 0))).version == 1

    async def test_of_racing_publishes_one_wins(self, stores: Stores) -> None:
        made = await stores.create()
        leases = [await stores.claim(made), await stores.claim(made, "merge")]
        requests = [await stores.publishing(lease, 0) for lease in leases for _ in range(4)]
        results = await asyncio.gather(*map(stores.catalog.publish, requests), return_exceptions=True)
        won = [result for result in results if isinstance(result, VersionInfo)]
        assert len(won) == 1
        assert {type(result) for result in results if result is not won[0]} == {VersionConflict}
        loser = next(request for request in requests if request.manifest_key != won[0].manifest_key)
        assert (await stores.catalog.publish(replace(loser, expected_version=1))).version == 2

    async def test_offsets_that_cannot_be_compacted(self, stores: Stores) -> None:
        made = await stores.create()
        for ids in (["a", "b", "c"], ["d", "e"]):
            await stores.append(made, ids)
        lease = await stores.claim(made)
        await stores.catalog.publish(await stores.publishing(lease, 3))
        for offset in (4, 6, 2, 0):
            with pytest.raises(InvalidArgument, match="compacted_offset"):
                await stores.catalog.publish(await stores.publishing(lease, offset, expected=1))
        request = await stores.publishing(lease, 5, expected=1)
        with pytest.raises(InvalidArgument, match="manifest_key"):
            await stores.catalog.publish(replace(request, manifest_key=""))
        with pytest.raises(InvalidArgument):
            await stores.catalog.publish(replace(request, compacted_offset=4))
        assert (await stores.catalog.publish(request)).version == 2  # the refused tries did not use up the upload

    async def test_uploads_expire_and_belong_to_their_collection(self, stores: Stores) -> None:
        made, other = await stores.create(), await stores.create("other")
        lease = await stores.claim(made)
        request = await stores.publishing(lease, 0)
        foreign = await stores.catalog.begin_upload(other.id)
        for upload_id in (foreign, str(uuid.uuid4()), ""):
            with pytest.raises(UploadExpired):
                await stores.catalog.publish(replace(request, upload_id=upload_id))
        await stores.age_uploads()
        with pytest.raises(UploadExpired):
            await stores.catalog.publish(request)
        assert (await stores.catalog.publish(await stores.publishing(lease, 0))).version == 1

    async def test_nothing_is_published_of_a_deleted_collection(self, stores: Stores) -> None:
        made = await stores.create()
        request = await stores.publishing(await stores.claim(made), 0)
        await stores.catalog.delete_collection(made.id)
        with pytest.raises(NotFound):
            await stores.catalog.publish(request)

    async def test_the_backlog_says_what_is_not_compacted(self, stores: Stores) -> None:
        made = await stores.create()
        await stores.create("clean")
        await stores.append(made, ["a", "b", "c"])
        payload_bytes = (await stores.catalog.backlog(limit=9, min_records=1, min_age_ms=HOUR_MS))[0].uncompacted_bytes
        await stores.append(made, ["d", "e", "f"])
        (found,) = await stores.catalog.backlog(limit=9, min_records=6, min_age_ms=HOUR_MS)
        assert (found.collection.id, found.head_offset, found.compacted_offset, found.version) == (made.id, 6, 0, 0)
        assert (found.collection.dimension, found.uncompacted_bytes) == (2, 2 * payload_bytes)
        assert await stores.catalog.backlog(limit=9, min_records=7, min_age_ms=HOUR_MS) == []
        await stores.compact(made, 3)
        (left,) = await stores.catalog.backlog(limit=9, min_records=1, min_age_ms=HOUR_MS)
        assert (left.head_offset, left.compacted_offset, left.uncompacted_bytes, left.version) == (
            6,
            3,
            payload_bytes,
            1,
        )
        await stores.compact(made, 6, expected=1)
        assert await stores.catalog.backlog(limit=9, min_records=0, min_age_ms=0) == []
        await stores.append(made, ["g"])
        assert len(await stores.catalog.backlog(limit=9, min_records=0, min_age_ms=0)) == 1
        await stores.catalog.delete_collection(made.id)
        assert await stores.catalog.backlog(limit=9, min_records=0, min_age_ms=0) == []

    async def test_the_backlog_is_fair_over_tenants(self, stores: Stores) -> None:
        for tenant, collections in (("big", 4), ("mid", 2), ("one", 1)):
            await stores.catalog.create_tenant(tenant)
            await stores.catalog.create_database(tenant, "d")
            for i in range(collections):
                await stores.append(await stores.create(f"{tenant}{i}", tenant=tenant), ["a"])
        for limit, tenants in ((3, {"big": 1, "mid": 1, "one": 1}), (5, {"big": 2, "mid": 2, "one": 1})):
            page = await stores.catalog.backlog(limit=limit, min_records=1, min_age_ms=HOUR_MS)
            found = [item.collection.tenant for item in page]
            assert {tenant: found.count(tenant) for tenant in found} == tenants
            assert [item.age_ms for item in page] == sorted((item.age_ms for item in page), reverse=True)
