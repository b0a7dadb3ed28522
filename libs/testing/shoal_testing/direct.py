"""The whole system in one process over in-memory stores: the services' own classes, wired directly, driven by a virtual clock."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, Future
from typing import Any

import pyarrow as pa

from shoal_compactor.compactor import Compactor, CompactorSettings
from shoal_compactor.functions import FunctionRunner
from shoal_core.contracts import Collection, CollectionRef, NewCollection
from shoal_core.ports import Member, MembershipView
from shoal_frontend.database import DatabaseService
from shoal_query.node import Node
from shoal_query.services import Services
from shoal_testing.blocks import DirectBlocks
from shoal_testing.fakes import DEFAULT_DATABASE, DEFAULT_TENANT, MemoryCatalog, MemoryFunctions, MemoryLog
from shoal_testing.memory_objects import MemoryObjectStore
from shoal_testing.virtual_clock import SeededRandom, VirtualClock


class InlineExecutor(Executor):
    """Runs work at once, in the caller's thread: deterministic."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


def no_thread_use() -> tuple[float, int]:
    """`Services.thread_use` where work takes no time."""
    return 0.0, 0


class DirectSystem:
    """One frontend, one query node and one compactor over fakes. The compactor works when told to."""

    def __init__(self, *, settings: CompactorSettings | None = None, seed: int = 0) -> None:
        self.clock = VirtualClock()
        self.random = SeededRandom(seed)
        self.catalog = MemoryCatalog(self.clock, self.random)
        self.functions = MemoryFunctions(self.catalog)
        self.log = MemoryLog(self.catalog)
        self.objects = MemoryObjectStore(time_ns=self.clock.time_ns)
        self.blocks = DirectBlocks(self.objects)
        self.settings = settings or CompactorSettings()
        self.node = self.new_node("node-0")
        self.compactor = self.new_compactor("compactor-0")
        self.database = self.new_database()

    def new_node(self, name: str) -> Node:
        """Another query node, with nothing loaded."""
        services = Services(
            self.catalog, self.log, self.objects, self.blocks, self.clock, InlineExecutor(), no_thread_use
        )
        return Node(name, services)

    def new_compactor(self, holder: str) -> Compactor:
        """Another compactor."""
        return Compactor(
            holder, self.catalog, self.log, self.objects, self.blocks, self.clock, lambda _: True, self.settings
        )

    def new_database(self) -> DatabaseService:
        """Another frontend."""
        return DatabaseService(
            self.catalog,
            self.log,
            self.node,
            self.random,
            self._view,
            clock=self.clock,
            functions=self.functions,
        )

    def new_runner(self, holder: str = "runner-0") -> FunctionRunner:
        """A runner of attached functions."""
        return FunctionRunner(
            holder,
            self.catalog,
            self.functions,
            self.log,
            self.objects,
            self.blocks,
            self.clock,
            lambda _: True,
            self.settings.functions,
        )

    def _view(self) -> MembershipView:
        return MembershipView(1, {"querynode": (Member("querynode", self.node.name, ""),)})

    async def create(self, name: str = "things", *, space: str = "l2", shards: int = 1) -> CollectionRef:
        """A new collection in the default database."""
        new = NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, name, space=space, shards=shards)
        collection: Collection = (await self.database.create_collection(new))[0]
        return CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, id=collection.id)

    async def append(self, ref: CollectionRef, batches: Sequence[pa.RecordBatch]) -> None:
        """Write operation batches through the frontend."""
        for batch in batches:
            await self.database.write(ref, batch)

    async def compact(self, ref: CollectionRef, *, merge: bool = False) -> None:
        """Flush, and merge if asked, completely."""
        await self.compactor.compact(ref.id, merge=merge)
