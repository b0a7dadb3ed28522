"""Leases, uploads, publishes and the backlog against a real Postgres."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace

import pytest

from shoal_core.contracts import Collection, Lease, NewCollection, PublishRequest, VersionInfo
from shoal_core.errors import Fenced, InvalidArgument, NotFound, ShoalError, UploadExpired, VersionConflict
from shoal_storage.postgres import Pool
from shoal_sysdb.catalog import CatalogService
from shoal_sysdb.store import PostgresCatalogStore

pytestmark = pytest.mark.integration

HOUR_MS = 3_600_000


async def _create(catalog: CatalogService, name: str = "c", tenant: str = "default_tenant") -> Collection:
    database = "default_database" if tenant == "default_tenant" else "d"
    made, _ = await catalog.create_collection(NewCollection(tenant, database, name), get_or_create=False)
    return made


async def _append(pool: Pool, collection: Collection, *counts: int, age_s: int = 0) -> None:
    """Batches of so many records, 100 bytes each, the first ``age_s`` seconds old and each a second younger."""
    await pool.execute("CREATE TABLE IF NOT EXISTS log_entry_all PARTITION OF log_entry DEFAULT")
    for i, count in enumerate(counts):
        await pool.execute(
            """WITH h AS (
                UPDATE log_head SET head_offset = head_offset + $2, total_bytes = total_bytes + 100,
                    uncompacted_since = coalesce(uncompacted_since, clock_timestamp() - make_interval(secs => $3))
                WHERE collection_id = $1 RETURNING *
            ) INSERT INTO log_entry SELECT $1, head_offset - $2 + 1, head_offset,
                clock_timestamp() - make_interval(secs => $3), '', NULL, 100, '', '', total_bytes, '' FROM h""",
            collection.id,
            count,
            age_s - i,
        )


async def _claim(catalog: CatalogService, collection: Collection, holder: str = "me", kind: str = "flush") -> Lease:
    lease = await catalog.claim(collection.id, kind, holder, ttl_ms=HOUR_MS)
    assert lease is not None
    return lease


async def _expire(pool: Pool, lease: Lease) -> None:
    await pool.execute(
        "UPDATE lease SET expires_at = clock_timestamp() WHERE collection_id = $1 AND kind = $2",
        lease.collection_id,
        lease.kind,
    )


async def _request(catalog: CatalogService, lease: Lease, offset: int, expected: int = 0) -> PublishRequest:
    upload_id = await catalog.begin_upload(lease.collection_id)
    return PublishRequest(lease, expected, f"manifests/{upload_id}", offset, upload_id)


# --- leases ----------------------------------------------------------------------------------------------------------


async def test_one_of_many_claimers_wins(catalog: CatalogService) -> None:
    made = await _create(catalog)
    claims = (catalog.claim(made.id, "flush", f"h{i}", ttl_ms=HOUR_MS) for i in range(20))
    won = [lease for lease in await asyncio.gather(*claims) if lease is not None]
    assert len(won) == 1
    assert won[0].epoch == 1
    assert await catalog.claim(made.id, "merge", "other", ttl_ms=HOUR_MS) is not None


async def test_one_of_many_takes_over_after_expiry(catalog: CatalogService, pool: Pool) -> None:
    made = await _create(catalog)
    first = await _claim(catalog, made)
    for round_ in range(5):
        await _expire(pool, first)
        claims = (catalog.claim(made.id, "flush", f"h{i}", ttl_ms=HOUR_MS) for i in range(20))
        won = [lease for lease in await asyncio.gather(*claims) if lease is not None]
        assert [lease.epoch for lease in won] == [round_ + 2]
    with pytest.raises(Fenced):
        await catalog.renew(first, ttl_ms=HOUR_MS)


async def test_claims_do_not_wait_for_a_locked_lease(catalog: CatalogService, pool: Pool) -> None:
    lease = await _claim(catalog, made := await _create(catalog))
    await _expire(pool, lease)
    async with pool.acquire() as other, other.transaction():
        await other.execute("UPDATE lease SET holder = 'slow'")
        assert await asyncio.wait_for(catalog.claim(made.id, "flush", "h", ttl_ms=HOUR_MS), 2) is None
    assert (await _claim(catalog, made)).epoch == 2


async def test_renew_and_release(catalog: CatalogService, pool: Pool) -> None:
    made = await _create(catalog)
    first = await _claim(catalog, made)
    await _expire(pool, first)
    await catalog.renew(first, ttl_ms=HOUR_MS)
    assert await catalog.claim(made.id, "flush", "h", ttl_ms=HOUR_MS) is None
    await catalog.release(first)
    with pytest.raises(Fenced):
        await catalog.renew(first, ttl_ms=HOUR_MS)
    second = await _claim(catalog, made)
    assert second.epoch == 2
    await catalog.release(first)  # not its own any more
    await catalog.renew(second, ttl_ms=HOUR_MS)
    with pytest.raises(InvalidArgument, match="ttl_ms"):
        await catalog.renew(second, ttl_ms=0)


async def test_a_short_lease_runs_out_by_the_clock_of_the_database(catalog: CatalogService, pool: Pool) -> None:
    made = await _create(catalog)
    assert await catalog.claim(made.id, "flush", "h", ttl_ms=1) is not None
    await pool.execute("SELECT pg_sleep(0.01)")
    assert (await _claim(catalog, made)).epoch == 2


async def test_nothing_to_claim(catalog: CatalogService) -> None:
    made = await _create(catalog)
    lease = await _claim(catalog, made)
    await catalog.release(lease)
    await catalog.delete_collection(made.id)
    assert await catalog.claim(made.id, "flush", "h", ttl_ms=HOUR_MS) is None
    assert await catalog.claim(str(uuid.uuid4()), "flush", "h", ttl_ms=HOUR_MS) is None


# --- publish ---------------------------------------------------------------------------------------------------------


async def test_publish_moves_version_offset_and_backlog(catalog: CatalogService, pool: Pool) -> None:
    made = await _create(catalog)
    assert await catalog.get_version(made.id) == VersionInfo(made.id, 0, "", 0)
    await _append(pool, made, 3, 2, 4, age_s=1000)
    lease = await _claim(catalog, made)
    request = await _request(catalog, lease, 5)
    published = await catalog.publish(request)
    assert published == VersionInfo(made.id, 1, request.manifest_key, 5) == await catalog.get_version(made.id)
    assert await catalog.get_version(made.id, 0) == VersionInfo(made.id, 0, "", 0)
    (left,) = await catalog.backlog(limit=9, min_records=1, min_age_ms=HOUR_MS)
    assert (left.head_offset, left.compacted_offset, left.uncompacted_bytes, left.version) == (9, 5, 100, 1)
    assert 997_000 <= left.age_ms < 1_100_000
    merged = await _request(catalog, lease, 5, expected=1)  # a merge moves no offset
    assert (await catalog.publish(merged)).version == 2
    assert (await catalog.backlog(limit=9, min_records=1, min_age_ms=HOUR_MS))[0].age_ms >= left.age_ms
    await catalog.publish(await _request(catalog, lease, 9, expected=2))
    assert await catalog.backlog(limit=9, min_records=0, min_age_ms=0) == []
    assert await pool.fetchval("SELECT uncompacted_since FROM log_head") is None
    assert await pool.fetchval("SELECT count(*) FROM upload_intent") == 0
    assert (await catalog.get_version(made.id, 1)).compacted_offset == 5
    with pytest.raises(NotFound):
        await catalog.get_version(made.id, 4)
    await _append(pool, made, 1)
    assert (await catalog.backlog(limit=9, min_records=1, min_age_ms=0))[0].uncompacted_bytes == 100


async def test_a_repeated_publish_succeeds(catalog: CatalogService, pool: Pool) -> None:
    made = await _create(catalog)
    await _append(pool, made, 3)
    first = await _claim(catalog, made)
    request = await _request(catalog, first, 3)
    published = await catalog.publish(request)
    assert await catalog.publish(request) == published
    await _expire(pool, first)
    second = await _claim(catalog, made)
    await catalog.publish(await _request(catalog, second, 3, expected=1))
    assert await catalog.publish(request) == published
    assert (await catalog.get_version(made.id)).version == 2


async def test_a_deposed_holder_cannot_publish(catalog: CatalogService, pool: Pool) -> None:
    made = await _create(catalog)
    deposed = await _claim(catalog, made)
    await _expire(pool, deposed)
    newest = await _claim(catalog, made)
    with pytest.raises(Fenced):
        await catalog.publish(await _request(catalog, deposed, 0))
    with pytest.raises(Fenced):
        await catalog.publish(await _request(catalog, replace(newest, kind="merge"), 0))
    await _expire(pool, newest)  # nobody newer: may still publish
    assert (await catalog.publish(await _request(catalog, newest, 0))).version == 1


async def test_publish_against_takeover(catalog: CatalogService, pool: Pool) -> None:
    """Either the publish comes first or it is fenced; both are clean."""
    for _ in range(10):
        made = await _create(catalog, uuid.uuid4().hex)
        lease = await _claim(catalog, made)
        request = await _request(catalog, lease, 0)
        await _expire(pool, lease)
        result, _ = await asyncio.gather(
            catalog.publish(request),
            catalog.claim(made.id, "flush", "other", ttl_ms=HOUR_MS),
            return_exceptions=True,
        )
        assert isinstance(result, VersionInfo | Fenced)
        assert (await catalog.get_version(made.id)).version == (1 if isinstance(result, VersionInfo) else 0)


async def test_the_expected_version_must_be_current(catalog: CatalogService) -> None:
    lease = await _claim(catalog, await _create(catalog))
    await catalog.publish(await _request(catalog, lease, 0))
    for expected in (0, 2, -1):
        with pytest.raises(VersionConflict, match="current version is 1"):
            await catalog.publish(await _request(catalog, lease, 0, expected=expected))


async def test_one_of_many_publishes_wins(catalog: CatalogService, pool: Pool) -> None:
    made = await _create(catalog)
    await _append(pool, made, *[1] * 10)
    flush, merge = await _claim(catalog, made), await _claim(catalog, made, kind="merge")
    requests = [await _request(catalog, lease, offset) for lease in (flush, merge) for offset in range(1, 11)]
    results = await asyncio.gather(*(catalog.publish(request) for request in requests), return_exceptions=True)
    won = [result for result in results if isinstance(result, VersionInfo)]
    assert len(won) == 1
    assert {type(result) for result in results if result is not won[0]} == {VersionConflict}
    assert await catalog.get_version(made.id) == won[0]


async def test_offsets_that_cannot_be_compacted(catalog: CatalogService, pool: Pool) -> None:
    made = await _create(catalog)
    await _append(pool, made, 3, 2)
    lease = await _claim(catalog, made)
    await catalog.publish(await _request(catalog, lease, 3))
    for offset, reason in ((4, "not the end of a batch"), (6, "within 3..5"), (2, "within 3..5"), (0, "within")):
        with pytest.raises(InvalidArgument, match=reason) as caught:
            await catalog.publish(await _request(catalog, lease, offset, expected=1))
        assert caught.value.field == "compacted_offset"
    assert await catalog.get_version(made.id) == await catalog.get_version(made.id, 1)
    with pytest.raises(InvalidArgument, match="manifest_key"):
        await catalog.publish(replace(await _request(catalog, lease, 5, expected=1), manifest_key=""))


async def test_uploads_expire(catalog: CatalogService, pool: Pool) -> None:
    made, other = await _create(catalog), await _create(catalog, "other")
    lease = await _claim(catalog, made)
    request = await _request(catalog, lease, 0)
    await pool.execute("UPDATE upload_intent SET created_at = created_at - interval '14 minutes'")
    foreign = await catalog.begin_upload(other.id)
    for upload_id in (foreign, str(uuid.uuid4()), "", "x"):
        with pytest.raises(UploadExpired):
            await catalog.publish(replace(request, upload_id=upload_id))
    await pool.execute("UPDATE upload_intent SET created_at = created_at - interval '1 minute'")
    with pytest.raises(UploadExpired, match="upload again"):
        await catalog.publish(request)
    patient = CatalogService(PostgresCatalogStore(pool), max_upload_age_ms=HOUR_MS)
    assert (await patient.publish(request)).version == 1


async def test_a_lost_publish_keeps_its_upload(catalog: CatalogService) -> None:
    lease = await _claim(catalog, await _create(catalog))
    late, early = await _request(catalog, lease, 0), await _request(catalog, lease, 0)
    await catalog.publish(early)
    with pytest.raises(VersionConflict):
        await catalog.publish(late)
    assert (await catalog.publish(replace(late, expected_version=1))).version == 2


async def test_publish_against_delete(catalog: CatalogService, pool: Pool) -> None:
    for i in range(20):
        made = await _create(catalog)
        await _append(pool, made, 3)
        request = await _request(catalog, await _claim(catalog, made), 3)
        calls = [catalog.publish(request), catalog.delete_collection(made.id)]
        results = await asyncio.gather(*(calls if i % 2 else calls[::-1]), return_exceptions=True)
        published = results[0] if i % 2 else results[1]
        assert isinstance(published, VersionInfo | NotFound)
        assert [result for result in results if isinstance(result, BaseException)] in ([], [published])
        kept = await pool.fetchval("SELECT count(*) FROM collection_version WHERE collection_id = $1", made.id)
        assert kept == isinstance(published, VersionInfo)
    assert await catalog.backlog(limit=100, min_records=0, min_age_ms=0) == []


async def test_everything_at_once_does_not_deadlock(catalog: CatalogService, pool: Pool) -> None:
    """Publishes, renames, claims, creates and the deletion of the database only fail in the ways they may."""
    await catalog.create_tenant("t")
    await catalog.create_database("t", "d")
    made = [await _create(catalog, f"c{i}", "t") for i in range(8)]
    requests = []
    for collection in made:
        await _append(pool, collection, 2)
        requests.append(await _request(catalog, await _claim(catalog, collection), 2))
    results = await asyncio.gather(
        *(catalog.publish(request) for request in requests),
        *(catalog.modify_collection(c.id, name=f"c{i + 1}") for i, c in enumerate(made)),
        *(catalog.claim(c.id, "flush", "x", ttl_ms=1) for c in made),
        *(catalog.delete_collection(c.id) for c in made[::2]),
        *(_create(catalog, f"c{i}", "t") for i in range(8)),
        catalog.delete_database("t", "d"),
        return_exceptions=True,
    )
    failures = {type(result).__name__ for result in results if isinstance(result, BaseException)}
    assert failures <= {"NotFound", "AlreadyExists"}
    assert await pool.fetchval("SELECT count(*) FROM collection WHERE deleted_at IS NULL") == 0


# --- backlog ---------------------------------------------------------------------------------------------------------


async def test_backlog_is_fair_and_oldest_first(catalog: CatalogService, pool: Pool) -> None:
    for tenant, collections in (("big", 6), ("mid", 2), ("one", 1)):
        await catalog.create_tenant(tenant)
        await catalog.create_database(tenant, "d")
        for i in range(collections):
            age_s = {"big": 1000, "mid": 500, "one": 10}[tenant] - i
            await _append(pool, await _create(catalog, f"{tenant}{i}", tenant), 5, age_s=age_s)
    await _create(catalog, "clean")

    async def page(limit: int, min_records: int = 1, min_age_ms: int = HOUR_MS) -> list[str]:
        found = await catalog.backlog(limit=limit, min_records=min_records, min_age_ms=min_age_ms)
        assert [entry.age_ms for entry in found] == sorted((entry.age_ms for entry in found), reverse=True)
        return [entry.collection.name for entry in found]

    assert await page(3) == ["big0", "mid0", "one0"]
    assert await page(6) == ["big0", "big1", "big2", "mid0", "mid1", "one0"]
    assert len(await page(100)) == 9
    assert await page(100, min_records=6) == []
    assert await page(100, min_records=6, min_age_ms=400_000) == [f"big{i}" for i in range(6)] + ["mid0", "mid1"]


async def test_errors_are_of_the_one_tree(catalog: CatalogService, pool: Pool) -> None:
    made = await _create(catalog)
    lease = await _claim(catalog, made)
    with pytest.raises(ShoalError):
        await catalog.publish(await _request(catalog, lease, 0, expected=2**70))
