"""A collection whose records lie where a test wants them: in the tail, in segments, in both, in a merged segment; and writes to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from shoal_compactor.compactor import CompactorSettings
from shoal_compactor.flush import FlushSettings
from shoal_compactor.policy import MergePolicy
from shoal_core.contracts import CollectionRef, NewCollection
from shoal_core.filters import all_of, parse_where, parse_where_document
from shoal_core.schema import Schema
from shoal_frontend.database import DatabaseService
from shoal_index import planner
from shoal_index.vector import hnsw
from shoal_query.node import Node
from shoal_query.services import Services
from shoal_testing.direct import DirectSystem, InlineExecutor, no_thread_use
from shoal_testing.fakes import DEFAULT_DATABASE, DEFAULT_TENANT
from shoal_testing.schedules import Hook, hooked, no_hook
from shoal_testing.strategies import Op, to_operation_batch

LAYOUTS = ("tail", "mixed", "flushed", "merged")
SHARDS = (1, 3)

every_layout = pytest.mark.parametrize("layout", LAYOUTS)
every_sharding = pytest.mark.parametrize("shards", SHARDS)


def graphs_from(patch: pytest.MonkeyPatch, rows: int) -> None:
    """Graphs are walked wherever there is one and more rows may be answered than these, whatever it costs."""
    patch.setattr(planner, "SCAN_ROWS", rows)
    patch.setattr(hnsw, "WALK_NS", (0.0, 0.0))


def compactor_settings(graph_rows: int = 10**9, **others: Any) -> CompactorSettings:
    """A compactor that finds everything due; segments above ``graph_rows`` rows get a graph."""
    flush = FlushSettings(graph_rows=graph_rows, threads=1)
    return CompactorSettings(min_records=1, flush=flush, policy=MergePolicy(fanout=2), **others)


def put(
    record_id: str,
    vector: Sequence[float] = (0.0,),
    *,
    text: str | None = None,
    metadata: dict[str, Any] | None = None,
    op: str = "upsert",
) -> Op:
    """One write of a record."""
    return (op, record_id, tuple(map(float, vector)), text, None, metadata)


def drop(record_id: str) -> Op:
    """One delete."""
    return ("delete", record_id, None, None, None, None)


class Laid:
    """A collection in a `DirectSystem`."""

    def __init__(self, system: DirectSystem, ref: CollectionRef, dimension: int) -> None:
        self.system, self.ref, self.dimension = system, ref, dimension
        self.database = system.database

    async def write(self, *ops: Op, **options: Any) -> Any:
        """One batch."""
        return await self.database.write(self.ref, to_operation_batch(ops, self.dimension), **options)

    async def compact(self, *, merge: bool = False) -> None:
        """Flush all, and merge if asked."""
        await self.system.compact(self.ref, merge=merge)

    async def ids(self, where: Any = None, where_document: Any = None) -> list[str]:
        """Ids of the matches in order of creation; `count` must say as many."""
        tree = all_of(parse_where(where), parse_where_document(where_document))
        found: list[str] = (await self.database.get(self.ref, where=tree)).rows.column("id").to_pylist()
        assert (await self.database.count(self.ref, where=tree)).count == len(found)
        return found

    async def near(self, vector: Sequence[float], k: int, **options: Any) -> list[str]:
        """Ids of the nearest."""
        query = np.asarray([vector], dtype=np.float32)
        answer = await self.database.query(self.ref, query, k, **options)
        return list(answer.rows.column("id").to_pylist())


@asynccontextmanager
async def collection(
    *,
    shards: int = 1,
    space: str = "l2",
    schema: Schema | None = None,
    dimension: int = 1,
    graph_rows: int = 10**9,
    **others: Any,
) -> AsyncIterator[Laid]:
    """An empty collection."""
    system = DirectSystem(settings=compactor_settings(graph_rows, **others))
    new = NewCollection(
        DEFAULT_TENANT, DEFAULT_DATABASE, "things", space=space, shards=shards, schema=schema or Schema()
    )
    made = (await system.database.create_collection(new))[0]
    try:
        yield Laid(system, CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, id=made.id), dimension)
    finally:
        await system.node.close()


@asynccontextmanager
async def laid_out(layout: str, batches: Sequence[Sequence[Op]], **options: Any) -> AsyncIterator[Laid]:
    """A collection with these batches (two at least) in one of the `LAYOUTS`. Options: see `collection`."""
    async with collection(**options) as at:
        for number, batch in enumerate(batches):
            await at.write(*batch)
            if layout == "merged" or (layout == "mixed" and number == 0):
                await at.compact()
        if layout in ("flushed", "merged"):
            await at.compact(merge=layout == "merged")
        yield at


def halves(ops: Sequence[Op]) -> list[list[Op]]:
    """Two batches: every other operation."""
    return [list(ops[::2]), list(ops[1::2])]


def another_database(
    system: DirectSystem, *, before: Hook = no_hook, after: Hook = no_hook, node: Node | None = None
) -> DatabaseService:
    """Another frontend of the system; the hooks are awaited around its calls to log and query node, by name."""
    log = hooked(system.log, before=before, after=after)
    nodes = hooked(node or system.node, before=before, after=after)
    return DatabaseService(system.catalog, log, nodes, system.random, system.database.members)


def another_node(system: DirectSystem, blocks: Any) -> Node:
    """Another query node, which reads blocks through ``blocks``."""
    return Node(
        "another",
        Services(system.catalog, system.log, system.objects, blocks, system.clock, InlineExecutor(), no_thread_use),
    )
