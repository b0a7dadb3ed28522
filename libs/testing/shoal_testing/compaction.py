"""A collection over fakes, with an oracle beside it: writes go to both, and every published version is held against the oracle."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Self

import numpy as np

from shoal_compactor.compactor import Compactor, CompactorSettings
from shoal_compactor.flush import FlushResult, FlushSettings, flush
from shoal_compactor.merge import MergeResult, merge_once
from shoal_compactor.policy import MergePolicy
from shoal_compactor.publish import Publisher, Step, no_step
from shoal_core.contracts import AppendRequest, Collection, Lease, NewCollection, VersionInfo
from shoal_core.hashing import hash_ids
from shoal_core.records import CREATED_OFFSET, EMBEDDING, ID, concat_rows, encode_batch
from shoal_index.version import SegmentView, ShardVersion, open_shard
from shoal_storage.blocks import BlockRef
from shoal_storage.manifest import Manifest, decode_manifest
from shoal_testing.blocks import DirectBlocks
from shoal_testing.fake_catalog import DEFAULT_DATABASE, DEFAULT_TENANT, MemoryCatalog
from shoal_testing.fake_log import MemoryLog
from shoal_testing.memory_objects import MemoryObjectStore
from shoal_testing.oracle import OracleCollection
from shoal_testing.strategies import Op, Record, from_row_table, to_operation_batch
from shoal_testing.virtual_clock import VirtualClock

LEASE_MS = 15_000
SETTINGS = FlushSettings(threads=1)
POLICY = MergePolicy(fanout=2)


class Crash(Exception):
    """The process is gone: nothing is cleaned up, no lease is released."""


class CompactionWorld:
    """One collection, its stores and what it must hold. Make one with `create`."""

    def __init__(self, *, dimension: int, settings: FlushSettings, policy: MergePolicy) -> None:
        self.dimension = dimension
        self.settings = settings
        self.policy = policy
        self.clock = VirtualClock()
        self.catalog = MemoryCatalog(self.clock)
        self.log = MemoryLog(self.catalog)
        self.objects = MemoryObjectStore()
        self.blocks = DirectBlocks(self.objects)
        self.oracle = OracleCollection("l2", dimension)
        self.snapshots: dict[int, list[Record]] = {0: []}
        self.collection: Collection
        self._holders = 0

    @classmethod
    async def create(
        cls,
        *,
        shards: int = 1,
        dimension: int = 2,
        settings: FlushSettings = SETTINGS,
        policy: MergePolicy = POLICY,
    ) -> Self:
        """A world with an empty collection."""
        world = cls(dimension=dimension, settings=settings, policy=policy)
        new = NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, "c", shards=shards)
        world.collection, _ = await world.catalog.create_collection(new, get_or_create=False)
        return world

    async def write(self, operations: Sequence[Op]) -> int:
        """Append one batch to the log and the oracle; its end offset."""
        made = self.collection
        payload = encode_batch(to_operation_batch(operations, self.dimension))
        result = await self.log.append(AppendRequest(made.id, made.epoch, made.tenant, payload))
        for op, record_id, embedding, document, uri, metadata in operations:
            self.oracle.apply(op, [record_id], [embedding], [document], [uri], [metadata])
        self.snapshots[result.token.offset] = copy.deepcopy(self.oracle.get())
        return result.token.offset

    async def upsert(self, *ids: str, value: float = 1.0) -> int:
        """Append one batch of upserts."""
        return await self.write([("upsert", text, (value,) * self.dimension, None, None, None) for text in ids])

    async def delete(self, *ids: str) -> int:
        """Append one batch of deletes."""
        return await self.write([("delete", text, None, None, None, None) for text in ids])

    # --- jobs --------------------------------------------------------------------------------------------------------

    async def take_over(self, kind: str) -> Lease:
        """A lease for somebody new, once the one before has run out."""
        self._holders += 1
        holder = f"compactor-{self._holders}"
        lease = await self.catalog.claim(self.collection.id, kind, holder, ttl_ms=LEASE_MS)
        if lease is None:
            await self.clock.advance(LEASE_MS / 1000)
            lease = await self.catalog.claim(self.collection.id, kind, holder, ttl_ms=LEASE_MS)
        assert lease is not None
        return lease

    async def flush(self, *, step: Step = no_step, lease: Lease | None = None) -> FlushResult | None:
        """One flush by somebody new, whose lease is not released if it crashes."""
        held = lease or await self.take_over("flush")
        result = await flush(
            self.collection,
            held,
            log=self.log,
            publisher=self.publisher(step),
            blocks=self.blocks,
            settings=self.settings,
            now_ms=self.now_ms,
        )
        await self.catalog.release(held)
        return result

    async def merge(self, *, step: Step = no_step, lease: Lease | None = None) -> MergeResult | None:
        """One merge by somebody new."""
        held = lease or await self.take_over("merge")
        result = await merge_once(
            self.collection,
            held,
            policy=self.policy,
            publisher=self.publisher(step),
            blocks=self.blocks,
            settings=self.settings,
            now_ms=self.now_ms,
        )
        await self.catalog.release(held)
        return result

    async def finish(self) -> None:
        """Flush and merge until nothing is left to do."""
        while await self.flush() is not None:
            pass
        while await self.merge() is not None:
            pass

    @property
    def now_ms(self) -> int:
        """Unix time by the world's clock."""
        return self.clock.time_ns() // 1_000_000

    def publisher(self, step: Step = no_step) -> Publisher:
        """A publisher of this world."""
        return Publisher(self.catalog, self.objects, step)

    def compactor(
        self,
        holder: str = "c1",
        *,
        step: Step = no_step,
        mine: Callable[[str], bool] = lambda collection_id: True,
        **settings: Any,
    ) -> Compactor:
        """A compactor of this world that takes any backlog."""
        chosen: dict[str, Any] = {
            "min_records": 1,
            "lease_ms": LEASE_MS,
            "flush": self.settings,
            "policy": self.policy,
        } | settings
        return Compactor(
            holder,
            self.catalog,
            self.log,
            self.objects,
            self.blocks,
            self.clock,
            mine,
            CompactorSettings(**chosen),
            step,
        )

    # --- what is there -----------------------------------------------------------------------------------------------

    @property
    def version(self) -> VersionInfo:
        """The current version."""
        return self.catalog.state(self.collection.id).current

    async def manifest(self, info: VersionInfo | None = None) -> Manifest:
        """The manifest of a version, the current one by default."""
        return await self.publisher().load(self.collection, info or self.version)

    async def records(self) -> list[Record]:
        """The live records of the current version in order of ``created_offset``, read through its segments."""
        manifest = await self.manifest()
        shards = [await open_shard(manifest, part.shard, self.blocks, {}) for part in manifest.shards]
        found = [record for shard in shards for view in shard.segments for record in _live_records(view)]
        return sorted(found, key=lambda record: record[CREATED_OFFSET])

    async def check(self) -> Manifest:
        """Assert that the current version is whole, and holds what the oracle held at its offset; the manifest."""
        manifest = await self.manifest()
        assert manifest.version == self.version.version
        assert manifest.compacted_offset == self.version.compacted_offset
        for ref in _refs(manifest):
            await self.blocks.get(ref)
        for part in manifest.shards:
            shard = await open_shard(manifest, part.shard, self.blocks, {})
            _check_shard(shard, manifest, part.shard)
        found = await self.records()
        ids = [record["id"] for record in found]
        assert len(ids) == len(set(ids)), "an id has two live rows"
        assert found == self.snapshots[manifest.compacted_offset]
        return manifest

    async def orphans(self) -> list[str]:
        """Keys of objects that no published version names."""
        named = set()
        for info in self.catalog.state(self.collection.id).versions[1:]:
            manifest = decode_manifest(await self.objects.get(info.manifest_key))
            named |= {info.manifest_key, *(ref.key for ref in _refs(manifest))}
        stored = {item.key async for item in self.objects.list("")}
        assert named <= stored, f"objects are missing: {sorted(named - stored)}"
        return sorted(stored - named)


class SteppedJob:
    """A job that runs from one step to the next, when told to."""

    def __init__(self, start: Callable[[Step], Awaitable[object]]) -> None:
        self._start = start
        self._parked = asyncio.Event()
        self._go = asyncio.Event()
        self._task: asyncio.Task[object] | None = None
        self.at = ""

    async def advance(self) -> bool:
        """Run to the next step; True when the job has ended. Raises what it raised."""
        self._parked.clear()
        if self._task is None:
            self._task = asyncio.ensure_future(self._start(self._step))
        self._go.set()
        parked = asyncio.ensure_future(self._parked.wait())
        await asyncio.wait({self._task, parked}, return_when=asyncio.FIRST_COMPLETED)
        parked.cancel()
        if not self._task.done():
            return False
        self._task.result()
        return True

    async def run_to(self, name: str) -> None:
        """Run until it is at the named step."""
        while not await self.advance():
            if self.at == name:
                return
        raise AssertionError(f"the job ended without reaching {name!r}")

    async def run_out(self) -> object:
        """Run to the end; the job's result."""
        while not await self.advance():
            pass
        assert self._task is not None
        return self._task.result()

    async def cancel(self) -> None:
        """End a job that has begun where it is, as when its process goes."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _step(self, name: str) -> None:
        self.at = name
        self._go.clear()
        self._parked.set()
        await self._go.wait()


def _refs(manifest: Manifest) -> Iterable[BlockRef]:
    for shard in manifest.shards:
        for segment in shard.segments:
            yield from (ref for refs in segment.blocks.values() for ref in refs)
            if segment.tombstones is not None:
                yield segment.tombstones


def _live_records(view: SegmentView) -> list[Record]:
    rows = np.arange(view.ref.rows) if view.dead is None else np.flatnonzero(~view.dead)
    return from_row_table(concat_rows([view.segment.take(rows, [*view.segment.schema.names, EMBEDDING])]))


def _check_shard(shard: ShardVersion, manifest: Manifest, number: int) -> None:
    part = manifest.shards[number]
    names = [view.ref.id for view in shard.segments]
    assert len(names) == len(set(names))
    for view in shard.segments:
        assert view.ref.rows == len(view.segment.created)
        assert view.ref.dead == (0 if view.dead is None else int(view.dead.sum()))
        assert view.ref.live > 0
        assert (np.diff(view.segment.created.astype(np.int64)) >= 0).all()
        ids = view.segment.take(np.arange(view.ref.rows), [ID]).column(ID)
        hashes = hash_ids(ids)
        assert (hashes >= np.uint64(part.hash_range.start)).all()
        assert (hashes <= np.uint64(part.hash_range.last)).all()
