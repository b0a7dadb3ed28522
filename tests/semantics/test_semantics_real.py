"""540 random reads of 9 states on a real Postgres and a real S3 server: engine and oracle agree as over the fakes.

The services are wired directly: log, sysdb, compactor, query node with threads and a block cache, frontend. Payloads of more than a few
records are objects.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from shoal_compactor.compactor import Compactor, CompactorSettings
from shoal_compactor.flush import FlushSettings
from shoal_compactor.policy import MergePolicy
from shoal_core.contracts import CollectionRef
from shoal_core.ports import Member, MembershipView
from shoal_frontend.database import DatabaseService
from shoal_log import AppendSettings, LogService, LogSettings
from shoal_query.node import Node
from shoal_query.services import Services
from shoal_runtime.system import SystemClock, SystemRandom, thread_use
from shoal_storage.cache import BlockCache
from shoal_storage.objects import S3Config, S3ObjectStore
from shoal_storage.postgres import open_pool
from shoal_sysdb import CatalogService, PostgresCatalogStore, migrate
from shoal_testing.processes import S3Settings
from shoal_testing.random_records import draw_plan
from tests.semantics.pairs import Coverage, build, compare_reads

pytestmark = pytest.mark.integration

SEED = 77
STATES = 9
READS = 60
_CACHE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class System:
    """What the harness drives."""

    database: DatabaseService
    compactor: Compactor

    async def compact(self, ref: CollectionRef, merge: bool) -> None:
        """Flush, and merge if asked."""
        await self.compactor.compact(ref.id, merge=merge)


@pytest.fixture
async def system(fresh_database: str, s3_settings: S3Settings, tmp_path: Path) -> AsyncIterator[System]:
    """All services over an empty database and an empty bucket."""
    clock, random = SystemClock(), SystemRandom()
    await migrate(fresh_database)
    async with AsyncExitStack() as stack:
        s3 = S3Config(
            s3_settings.bucket,
            s3_settings.endpoint_url,
            s3_settings.access_key,
            s3_settings.secret_key,
            allow_http=True,
        )
        objects = S3ObjectStore(s3)
        pool = await open_pool(fresh_database, application_name="test")
        stack.push_async_callback(pool.close)
        catalog = CatalogService(PostgresCatalogStore(pool))
        inline = AppendSettings(inline_limit_bytes=4096)
        log = LogService(fresh_database, objects, clock, random, LogSettings(append=inline))
        await log.start()
        stack.push_async_callback(log.close)
        cache = BlockCache(tmp_path / "cache", _CACHE_BYTES, _CACHE_BYTES, objects)
        await cache.start()
        stack.push_async_callback(cache.close)
        threads = stack.enter_context(ThreadPoolExecutor(max_workers=2))
        node = Node("node-0", Services(catalog, log, objects, cache, clock, threads, thread_use))
        stack.push_async_callback(node.close)
        settings = CompactorSettings(flush=FlushSettings(threads=1), policy=MergePolicy(fanout=2))
        compactor = Compactor("compactor-0", catalog, log, objects, cache, clock, lambda _: True, settings)
        view = MembershipView(1, {"querynode": (Member("querynode", node.name, ""),)})
        yield System(DatabaseService(catalog, log, node, random, lambda: view), compactor)


async def test_reads_on_real_stores_agree(system: System) -> None:
    compared = Coverage()  # not of the run: its table is about the bulk over the fakes
    for number in range(STATES):
        state = await build(draw_plan(number, SEED), system.database, system.compact)
        await compare_reads(state, READS, compared, seed=SEED)
    assert compared.pairs == STATES * READS
    assert {(layout, shards) for _, layout, shards in compared.counts} == {
        (layout, shards) for layout in ("tail", "mixed", "compacted") for shards in (1, 2, 5)
    }
