"""The whole system in this process: the services' own classes with direct calls between them, over an embedded Postgres and files.

The data directory is locked, so this process is the only appender: the committed head in memory is the read index.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from shoal_cluster.registry import StaticRegistry
from shoal_compactor.compactor import Compactor, CompactorSettings
from shoal_core.contracts import Collection, Json, NewCollection, PublishRequest, VersionInfo
from shoal_core.limits import Limits
from shoal_core.ports import Member
from shoal_frontend.database import DatabaseService
from shoal_log.log import LogService
from shoal_log.settings import LogSettings
from shoal_query.node import Node, NodeSettings
from shoal_query.shard import Services
from shoal_runtime.servers.postgres import PostgresServer
from shoal_runtime.servers.process import DirectoryLock
from shoal_runtime.system import SystemClock, SystemRandom
from shoal_storage.cache import BlockCache
from shoal_storage.objects import LocalObjectStore
from shoal_sysdb.catalog import CatalogService
from shoal_sysdb.migrate import migrate
from shoal_sysdb.store import PostgresCatalogStore, open_pool

_NAME = "embedded"
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class EmbeddedSettings:
    """Settings of the services, as each names them.

    Attributes:
        cache_size_bytes: blocks kept mapped.
        threads: for searching and folding.
    """

    limits: Limits = Limits()
    log: LogSettings = LogSettings()
    node: NodeSettings = NodeSettings()
    compactor: CompactorSettings = CompactorSettings()
    cache_size_bytes: int = 2 << 30
    threads: int = 4


class EmbeddedCatalog(CatalogService):
    """The catalog of a process that alone appends: whoever changes it tells the log before answering."""

    def __init__(self, store: PostgresCatalogStore, log: LogService) -> None:
        super().__init__(store)
        self._log = log
        self._names = asyncio.Lock()  # no collection comes into a database while it is deleted

    async def create_collection(self, new: NewCollection, *, get_or_create: bool) -> tuple[Collection, bool]:
        async with self._names:
            return await super().create_collection(new, get_or_create=get_or_create)

    async def modify_collection(
        self,
        collection_id: str,
        *,
        name: str | None = None,
        metadata: Json | None = None,
        configuration: Json | None = None,
    ) -> Collection:
        try:
            return await super().modify_collection(
                collection_id, name=name, metadata=metadata, configuration=configuration
            )
        finally:
            self._log.catalog_changed(collection_id)

    async def delete_collection(self, collection_id: str) -> None:
        try:
            await super().delete_collection(collection_id)
        finally:
            self._log.catalog_changed(collection_id)

    async def delete_database(self, tenant: str, name: str) -> None:
        async with self._names:
            doomed = await self._all_collections(tenant, name)
            try:
                await super().delete_database(tenant, name)
            finally:
                for collection in doomed:
                    self._log.catalog_changed(collection.id)

    async def publish(self, request: PublishRequest) -> VersionInfo:
        try:
            info = await super().publish(request)
        except BaseException:
            self._log.catalog_changed(request.lease.collection_id)  # it may have committed all the same
            raise
        self._log.published(info.collection_id, info.version, info.compacted_offset)
        return info

    async def _all_collections(self, tenant: str, database: str) -> list[Collection]:
        found: list[Collection] = []
        while True:
            page = await self.list_collections(tenant, database, limit=_PAGE, offset=len(found))
            found.extend(page)
            if len(page) < _PAGE:
                return found


class EmbeddedSystem:
    """All five services in one process. `api` is the frontend's.

    Args:
        path: the data directory; made if it is missing, locked while the system runs.
    """

    def __init__(self, path: Path, settings: EmbeddedSettings | None = None) -> None:
        self._path = Path(path)
        self._settings = settings or EmbeddedSettings()
        self._lock = DirectoryLock(self._path)
        self._postgres = PostgresServer(self._path / "postgres")
        self._compacting: asyncio.Task[None] | None = None
        self._executor = ThreadPoolExecutor(self._settings.threads, thread_name_prefix="shoal-query")
        self.api: DatabaseService
        self.node: Node
        self.compactor: Compactor

    async def start(self) -> None:
        """Start Postgres, then every service.

        Raises `FailedPrecondition` when another process has the directory, `Unavailable` when Postgres does not come up.
        """
        self._lock.acquire()
        try:
            await self._postgres.start()
            await self._start_services()
        except BaseException:
            await self._stop_servers()
            raise

    async def close(self) -> None:
        """Stop everything. What was acknowledged is durable already."""
        if self._compacting is not None:
            self._compacting.cancel()
            await asyncio.wait([self._compacting])
        await self.node.close()
        await self._log.close()
        await self._pool.close()
        await self._cache.close()
        await asyncio.to_thread(self._objects.close)
        self._executor.shutdown(wait=True)
        await self._stop_servers()

    async def _start_services(self) -> None:
        settings, clock, random = self._settings, SystemClock(), SystemRandom()
        await migrate(self._postgres.dsn)
        self._objects = await asyncio.to_thread(LocalObjectStore, self._path / "objects")
        self._cache = BlockCache(None, 0, settings.cache_size_bytes, self._objects)
        self._pool = await open_pool(self._postgres.dsn)
        log_settings = replace(settings.log, limits=settings.limits)
        self._log = LogService(self._postgres.dsn, self._objects, clock, random, log_settings, exclusive=True)
        await self._log.start()
        catalog = EmbeddedCatalog(PostgresCatalogStore(self._pool), self._log)
        services = Services(catalog, self._log, self._objects, self._cache, clock, self._executor)
        self.node = Node(_NAME, services, settings.node)
        self.compactor = Compactor(
            f"{_NAME}-{random.token().hex()}",
            catalog,
            self._log,
            self._objects,
            self._cache,
            clock,
            lambda collection_id: True,
            settings.compactor,
        )
        roles = ("frontend", "logservice", "querynode", "compactor", "sysdb")
        registry = StaticRegistry([Member(role, _NAME, "in this process") for role in roles])
        self.api = DatabaseService(catalog, self._log, self.node, random, registry.view, settings.limits)
        self._compacting = asyncio.create_task(self.compactor.run())

    async def _stop_servers(self) -> None:
        await self._postgres.stop()
        self._lock.release()


def open_embedded(path: Path) -> EmbeddedSystem:
    """The system over a data directory, not yet started: what ``shoal.connect(path=…)`` finds."""
    return EmbeddedSystem(path)
