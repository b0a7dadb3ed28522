"""The whole system in this process: the services' own classes with direct calls between them, over an embedded Postgres and files.

The data directory is locked, so this process is the only appender: the committed head in memory is the read index.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from shoal_cli.directory import EMBEDDED_OBJECTS, lock_directory
from shoal_cli.forgetting import forget_old
from shoal_cluster.registry import StaticRegistry
from shoal_compactor.compactor import Compactor, CompactorSettings
from shoal_compactor.functions import FunctionRunner
from shoal_compactor.garbage import Sweeper
from shoal_core.contracts import (
    AttachedFunction,
    Collection,
    Json,
    NewCollection,
    NewFunction,
    PublishRequest,
    VersionInfo,
)
from shoal_core.limits import Limits
from shoal_core.ports import Member
from shoal_core.schema import Schema
from shoal_frontend.database import DatabaseService
from shoal_frontend.embedding import EmbeddingSettings, offered
from shoal_log.log import LogService
from shoal_log.settings import LogSettings
from shoal_query.node import Node, NodeSettings
from shoal_query.services import Services
from shoal_runtime.blas import one_blas_thread
from shoal_runtime.config import ROLES
from shoal_runtime.lifecycle import Background
from shoal_runtime.servers.postgres import PostgresServer
from shoal_runtime.system import SystemClock, SystemRandom, thread_use
from shoal_storage.cache import BlockCache
from shoal_storage.objects import LocalObjectStore
from shoal_storage.postgres import open_pool
from shoal_sysdb.access import AccessService
from shoal_sysdb.catalog import CatalogService
from shoal_sysdb.functions import FunctionsService
from shoal_sysdb.migrate import migrate
from shoal_sysdb.store import PostgresCatalogStore

T = TypeVar("T")

_NAME = "embedded"
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class EmbeddedSettings:
    """Settings of the services, as each names them.

    Attributes:
        cache_size_bytes: blocks kept mapped.
        cache_max_age_ms: how long blocks and shards are kept that are not in use.
        threads: for searching and folding.
        allow_reset: whether clients may delete everything.
        embedding: what is embedded for clients that send texts; None for nothing.
    """

    limits: Limits = Limits()
    log: LogSettings = LogSettings()
    node: NodeSettings = NodeSettings()
    compactor: CompactorSettings = CompactorSettings()
    cache_size_bytes: int = 2 << 30
    cache_max_age_ms: int = 86_400_000
    threads: int = 4
    allow_reset: bool = False
    embedding: EmbeddingSettings | None = None


class EmbeddedCatalog(CatalogService):
    """The catalog of a process that alone appends: whoever changes it tells the log before answering."""

    def __init__(self, store: PostgresCatalogStore, log: LogService, *, max_upload_age_ms: int) -> None:
        super().__init__(store, max_upload_age_ms=max_upload_age_ms)
        self._log = log
        self._names = asyncio.Lock()  # no collection comes into a database while it is deleted

    @property
    def names(self) -> asyncio.Lock:
        """Held while collections come into databases, or a database is deleted."""
        return self._names

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
        schema: Schema | None = None,
    ) -> Collection:
        change = super().modify_collection(
            collection_id, name=name, metadata=metadata, configuration=configuration, schema=schema
        )
        return await self._finish(change, [collection_id])

    async def delete_collection(self, collection_id: str) -> None:
        await self._finish(super().delete_collection(collection_id), [collection_id])

    async def fork_collection(self, collection_id: str, name: str) -> Collection:
        async with self._names:
            return await super().fork_collection(collection_id, name)

    async def reset(self) -> None:
        async with self._names:
            await self._finish(super().reset(), None)

    async def delete_database(self, tenant: str, name: str) -> None:
        await self._finish(self._delete_database(tenant, name), [])

    async def _delete_database(self, tenant: str, name: str) -> None:
        async with self._names:
            doomed = await self._all_collections(tenant, name)
            try:
                await super().delete_database(tenant, name)
            finally:
                for collection in doomed:
                    self._log.catalog_changed(collection.id)

    async def publish(self, request: PublishRequest) -> VersionInfo:
        return await self._finish(self._publish(request), [])

    async def _publish(self, request: PublishRequest) -> VersionInfo:
        try:
            info = await super().publish(request)
        except BaseException:
            self._log.catalog_changed(request.lease.collection_id)  # it may have committed all the same
            raise
        self._log.published(info.collection_id, info.version, info.compacted_offset)
        return info

    async def _finish(self, change: Coroutine[Any, Any, T], collection_ids: Sequence[str] | None) -> T:
        """Run a change to its end even if its caller gives up, and tell the log when it has ended: what the log asks the
        database for before that may be from before the change. None stands for all collections.
        """

        def tell(ended: asyncio.Task[T]) -> None:
            if collection_ids is None:
                self._log.everything_changed()
            for collection_id in collection_ids or ():
                self._log.catalog_changed(collection_id)
            if not ended.cancelled():
                ended.exception()  # its caller may have gone

        task = asyncio.create_task(change)
        task.add_done_callback(tell)
        return await asyncio.shield(task)

    async def _all_collections(self, tenant: str, database: str) -> list[Collection]:
        found: list[Collection] = []
        while True:
            page = await self.list_collections(tenant, database, limit=_PAGE, offset=len(found))
            found.extend(page)
            if len(page) < _PAGE:
                return found


class EmbeddedFunctions(FunctionsService):
    """Attached functions beside an `EmbeddedCatalog`, whose lock of names it takes to make output collections."""

    def __init__(self, store: PostgresCatalogStore, names: asyncio.Lock) -> None:
        super().__init__(store)
        self._names = names

    async def attach_function(
        self, collection_id: str, new: NewFunction, *, limit: int
    ) -> tuple[AttachedFunction, bool]:
        async with self._names:
            return await super().attach_function(collection_id, new, limit=limit)


class EmbeddedSystem:
    """All five services in one process. `api` is the frontend's.

    Args:
        path: the data directory; made if it is missing, locked while the system runs.
    """

    def __init__(self, path: Path, settings: EmbeddedSettings | None = None) -> None:
        self._path = Path(path)
        self._settings = settings or EmbeddedSettings()
        self._stack = AsyncExitStack()
        self.api: DatabaseService
        self.access: AccessService
        self.node: Node
        self.compactor: Compactor
        self.sweeper: Sweeper
        self.functions: FunctionRunner

    async def start(self) -> None:
        """Start Postgres, then every service.

        Raises as `lock_directory` does, and `Unavailable` when Postgres does not come up.
        """
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop everything. What was acknowledged is durable already."""
        await self._stack.aclose()

    async def _start(self) -> None:
        settings, clock, random, stack = self._settings, SystemClock(), SystemRandom(), self._stack
        stack.enter_context(one_blas_thread())
        lock = lock_directory(self._path, EMBEDDED_OBJECTS)
        stack.callback(lock.release)
        postgres = PostgresServer(self._path / "postgres")
        stack.push_async_callback(postgres.stop)
        await postgres.start()
        await migrate(postgres.dsn)
        objects = await asyncio.to_thread(LocalObjectStore, self._path / EMBEDDED_OBJECTS)
        stack.callback(objects.close)
        cache = BlockCache(None, 0, settings.cache_size_bytes, objects)
        stack.push_async_callback(cache.close)
        pool = await open_pool(postgres.dsn, application_name="shoal-sysdb")
        stack.push_async_callback(pool.close)
        log_settings = replace(settings.log, limits=settings.limits)
        log = LogService(postgres.dsn, objects, clock, random, log_settings, exclusive=True)
        await log.start()
        stack.push_async_callback(log.close)
        self.access = AccessService(pool)
        store = PostgresCatalogStore(pool)
        catalog = EmbeddedCatalog(store, log, max_upload_age_ms=log_settings.append.max_upload_age_ms)
        executor = ThreadPoolExecutor(settings.threads, thread_name_prefix="shoal-query")
        stack.callback(executor.shutdown)
        self.node = Node(_NAME, Services(catalog, log, objects, cache, clock, executor, thread_use), settings.node)
        stack.push_async_callback(self.node.close)
        holder = f"{_NAME}-{random.token().hex()}"
        self.compactor = Compactor(
            holder, catalog, log, objects, cache, clock, lambda collection_id: True, settings.compactor
        )
        self.sweeper = Sweeper(catalog, objects, clock, lambda collection_id: True, settings.compactor.garbage)
        functions = EmbeddedFunctions(store, catalog.names)
        self.functions = FunctionRunner(
            holder,
            catalog,
            functions,
            log,
            objects,
            cache,
            clock,
            lambda collection_id: True,
            settings.compactor.functions,
        )
        registry = StaticRegistry([Member(role, _NAME, "in this process") for role in ROLES])
        self.api = DatabaseService(
            catalog,
            log,
            self.node,
            random,
            registry.view,
            settings.limits,
            clock=clock,
            allow_reset=settings.allow_reset,
            embedding=offered(settings.embedding, clock),
            functions=functions,
        )
        background = await stack.enter_async_context(Background())
        background.start("forgetting", forget_old(clock, settings.cache_max_age_ms, cache, self.node))
        background.start("compactor", self.compactor.run())
        background.start("sweeper", self.sweeper.run())
        background.start("functions", self.functions.run())


def open_embedded(path: Path, *, settings: EmbeddedSettings | None = None) -> EmbeddedSystem:
    """The system over a data directory, not yet started: what ``shoal.connect(path=…, options={"settings": …})`` finds."""
    return EmbeddedSystem(path, settings)
