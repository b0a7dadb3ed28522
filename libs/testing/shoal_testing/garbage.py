"""A `CompactionWorld` whose objects have an age, with sweepers, and what they must leave alone."""

from __future__ import annotations

from typing import Any

from shoal_compactor.garbage import GarbageSettings, Sweeper
from shoal_core.contracts import VersionInfo
from shoal_index.version import open_shard
from shoal_testing.blocks import DirectBlocks
from shoal_testing.compaction import CompactionWorld, SteppedJob
from shoal_testing.memory_objects import MemoryObjectStore
from shoal_testing.schedules import Hook, hooked, no_hook


class SweptWorld(CompactionWorld):
    """See the module. Make one with `create`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.objects = MemoryObjectStore(time_ns=self.clock.time_ns)
        self.blocks = DirectBlocks(self.objects)

    def sweeper(self, *, hook: Hook = no_hook, **settings: Any) -> Sweeper:
        """A sweeper for which everything is its own. ``hook`` is awaited before each of its calls, by name."""
        catalog, objects = hooked(self.catalog, before=hook), hooked(self.objects, before=hook)
        return Sweeper(catalog, objects, self.clock, lambda collection_id: True, GarbageSettings(**settings))

    def sweeping(self, **settings: Any) -> SteppedJob:
        """A round that stops before each of its calls."""
        return SteppedJob(lambda step: self.sweeper(hook=step, **settings).sweep())

    async def stored(self) -> list[str]:
        """Keys of all objects."""
        return [info.key async for info in self.objects.list("")]

    async def retained(self, retention_ms: int = GarbageSettings().version_retention_ms) -> tuple[VersionInfo, ...]:
        """The versions that anybody may still open."""
        roots = await self.catalog.garbage_roots(self.collection.id, [], version_retention_ms=retention_ms)
        return roots.versions

    async def needed(self) -> set[str]:
        """Keys that retained versions name."""
        keys: set[str] = set()
        for info in await self.retained():
            keys |= {info.manifest_key, *(await self.manifest(info)).object_keys()}
        return keys

    async def check_version(self, info: VersionInfo) -> None:
        """Assert that a version opens fully."""
        manifest = await self.manifest(info)
        assert manifest.version == info.version
        for part in manifest.shards:
            await open_shard(manifest, part.shard, self.blocks, {})


async def two_segments() -> SweptWorld:
    """A merge is due, and the tail replaces rows of both."""
    world = await SweptWorld.create(shards=2)
    await world.upsert(*(f"id{n}" for n in range(12)))
    await world.flush()
    await world.upsert(*(f"id{n}" for n in range(12, 24)))
    await world.delete("id0")
    await world.flush()
    await world.upsert("id1", "id13", "new", value=2.0)
    return world


async def publish_versions(world: SweptWorld, count: int) -> None:
    """Publish so many versions, each replacing a row of the one before."""
    for number in range(count):
        await world.upsert("same", f"id{number}", value=float(number))
        await world.flush()
