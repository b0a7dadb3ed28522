"""Which version an offset is read from, beside a sweeper that forgets versions and a trimmer that drops the log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import asyncpg
import pytest

from shoal_core.contracts import Collection, NewCollection, PublishRequest
from shoal_core.errors import OffsetExpired
from shoal_core.schema import Schema
from shoal_log.trim_store import PartitionStore, Period
from shoal_storage.postgres import Pool
from shoal_sysdb.catalog import CatalogService
from shoal_sysdb.migrate import load_migrations, migrate

pytestmark = pytest.mark.integration

MINUTE_MS = 60_000
SWEPT_AFTER_MS, TRIMMED_AFTER_MS = 15 * MINUTE_MS, 24 * 60 * MINUTE_MS


async def _collection(
    catalog: CatalogService, pool: Pool, versions: Sequence[tuple[int, int]], head: int
) -> Collection:
    """Batches of one record up to ``head``, in a partition that ended long ago; versions ``(compacted offset, age in minutes)``."""
    made, _ = await catalog.create_collection(
        NewCollection("default_tenant", "default_database", "c"), get_or_create=False
    )
    period = Period(1_000_000_000, 1_000_003_600)
    await pool.execute(
        f"""CREATE TABLE {period.name} PARTITION OF log_entry
            FOR VALUES FROM (to_timestamp({period.start_s})) TO (to_timestamp({period.end_s}))"""
    )
    await pool.execute(
        f"""INSERT INTO log_entry SELECT $1, n, n, to_timestamp({period.start_s}), '', NULL, 1, '', '', n, ''
        FROM generate_series(1, $2::bigint) AS n""",
        made.id,
        head,
    )
    await pool.execute("UPDATE log_head SET head_offset = $2 WHERE collection_id = $1", made.id, head)
    lease = await catalog.claim(made.id, "flush", "me", ttl_ms=MINUTE_MS)
    assert lease is not None
    for version, (offset, age_minutes) in enumerate(versions):
        upload_id = await catalog.begin_upload(made.id)
        await catalog.publish(PublishRequest(lease, version, f"manifests/{upload_id}", offset, upload_id))
        await pool.execute(
            """UPDATE collection_version SET created_at = created_at - make_interval(mins => $3)
            WHERE collection_id = $1 AND version = $2""",
            made.id,
            version + 1,
            age_minutes,
        )
    return made


async def _trim(pool: Pool, *, version_retention_ms: int = TRIMMED_AFTER_MS) -> int:
    """Drop what the trimmer would of the one partition; the floor after it."""
    store = PartitionStore(pool, acquire_timeout_ms=5_000)
    for period in (await store.periods())[0]:
        await store.drop(period, version_retention_ms=version_retention_ms, lock_timeout_ms=1_000)
    floor: int = await pool.fetchval("SELECT trim_floor FROM log_head")
    return floor


async def _read(catalog: CatalogService, made: Collection, offset: int) -> int | str:
    """The version, or what the error says."""
    try:
        return (await catalog.version_at(made.id, offset)).version
    except OffsetExpired as error:
        return error.message.rsplit(" ", 1)[1]


async def test_a_retained_version_is_found_whatever_was_swept(catalog: CatalogService, pool: Pool) -> None:
    """Versions 1 and 2 were replaced too long ago; 3 was 10 minutes ago, so it is retained though it is 40 minutes old."""
    made = await _collection(catalog, pool, [(2, 60), (3, 50), (5, 40), (5, 10), (8, 5)], head=9)
    before = [await _read(catalog, made, offset) for offset in range(11)]
    assert before == [0, 0, 1, 2, 2, 4, 4, 4, 5, 5, 5]
    roots = await catalog.garbage_roots(made.id, [], version_retention_ms=SWEPT_AFTER_MS)
    assert [info.version for info in roots.versions] == [3, 4, 5]
    assert await catalog.drop_versions(made.id, below=9, version_retention_ms=SWEPT_AFTER_MS) == 2
    assert [await _read(catalog, made, offset) for offset in range(11)] == [0] * 5 + before[5:]


async def test_the_trimmer_spares_the_log_of_every_retained_version(catalog: CatalogService, pool: Pool) -> None:
    """It goes by the oldest row once a sweeper has forgotten others: all up to 5, here the whole partition but for 6."""
    made = await _collection(catalog, pool, [(2, 60), (5, 40), (6, 10)], head=6)
    assert await _trim(pool) == 0  # not swept yet: the log goes back to the start
    assert await catalog.drop_versions(made.id, below=9, version_retention_ms=SWEPT_AFTER_MS) == 1
    assert await _trim(pool) == 0  # the partition holds 6, which version 2 needs to be replayed to
    assert [await _read(catalog, made, offset) for offset in range(8)] == [0] * 5 + [2, 3, 3]
    assert await catalog.drop_versions(made.id, below=9, version_retention_ms=0) == 1
    assert await _trim(pool) == 6
    assert [await _read(catalog, made, offset) for offset in range(8)] == ["6"] * 6 + [3, 3]


async def test_a_trimmer_that_goes_first_decides(catalog: CatalogService, pool: Pool) -> None:
    """No sweeper has run: rows and objects are there, but the log below the version current a day ago is not."""
    made = await _collection(catalog, pool, [(2, 4000), (6, 3000), (6, 10)], head=6)
    assert await _trim(pool) == 6
    assert [await _read(catalog, made, offset) for offset in range(8)] == ["6"] * 6 + [3, 3]
    await pool.execute("UPDATE log_head SET trim_floor = 1")
    assert [await _read(catalog, made, offset) for offset in range(8)] == ["2"] * 2 + [1] * 4 + [3, 3]


async def test_readers_beside_a_sweeper_see_a_version_or_the_log(catalog: CatalogService, pool: Pool) -> None:
    made = await _collection(catalog, pool, [(offset, 40 - offset) for offset in range(1, 21)], head=20)

    async def read() -> None:
        for offset in range(21):
            found = await catalog.version_at(made.id, offset)
            assert found.compacted_offset in (offset, 0)

    async def sweep() -> None:
        for below in range(21):
            await catalog.drop_versions(made.id, below=below, version_retention_ms=0)

    await asyncio.gather(read(), read(), sweep(), read())
    assert await _read(catalog, made, 19) == 0


async def test_collections_of_before_schemas_have_the_default(fresh_database: str) -> None:
    first, *_ = load_migrations()
    await migrate(fresh_database, migrations=(first,))
    connection = await asyncpg.connect(fresh_database)
    try:
        await connection.execute(
            """INSERT INTO collection (id, database_id, tenant, database_name, name, incarnation, space, shards, configuration)
            SELECT gen_random_uuid(), id, tenant, name, 'c', gen_random_uuid(), 'l2', 1, '{}' FROM database"""
        )
        await migrate(fresh_database)
        assert json.loads(await connection.fetchval("SELECT schema FROM collection")) == Schema().to_json()
    finally:
        await connection.close()
