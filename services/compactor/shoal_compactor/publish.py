"""Publishing: upload the objects, then the manifest, then compare-and-set the version. A lost race rebases the edit.

An edit is a function of the manifest it applies to. If another publish won in between, the edit is applied to the newer manifest;
the segments it made stay as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from shoal_core.contracts import Catalog, Collection, Lease, PublishRequest, VersionInfo
from shoal_core.errors import OutcomeUnknown, VersionConflict
from shoal_core.ports import ObjectStore
from shoal_storage.blocks import BlockRef, EncodedBlock
from shoal_storage.manifest import Manifest, decode_manifest, empty_manifest, encode_manifest

Step = Callable[[str], Awaitable[None]]


async def no_step(name: str) -> None:
    """The step hook of production: tests crash a job at a named step instead."""


@dataclass(frozen=True, slots=True)
class Edited:
    """The next manifest and the small objects (tombstones) that it names anew."""

    manifest: Manifest
    objects: tuple[tuple[BlockRef, EncodedBlock], ...] = ()


class Edit(Protocol):
    """A change of a manifest. Raises `Conflict` when it no longer applies."""

    async def __call__(self, manifest: Manifest, prefix: str) -> Edited: ...


@dataclass(frozen=True, slots=True)
class Publisher:
    """Writes objects and publishes versions for one compactor."""

    catalog: Catalog
    objects: ObjectStore
    step: Step = no_step
    parallel_puts: int = 4
    attempts: int = 20

    async def current(self, collection: Collection) -> Manifest:
        """The manifest of the current version."""
        info = await self.catalog.get_version(collection.id)
        return await self.load(collection, info)

    async def load(self, collection: Collection, info: VersionInfo) -> Manifest:
        """The manifest of a version. That of a fork's first version was written for its source."""
        if info.version == 0:
            return empty_manifest(collection.id, collection.space, collection.shards)
        manifest = decode_manifest(await self.objects.get(info.manifest_key))
        return replace(manifest, collection_id=collection.id)

    async def upload(self, objects: Sequence[tuple[BlockRef, EncodedBlock]]) -> None:
        """Put all objects, a few at a time. Raises what the first put that failed raised."""
        gate = asyncio.Semaphore(self.parallel_puts)

        async def put(ref: BlockRef, block: EncodedBlock) -> None:
            async with gate:
                await self.objects.put(ref.key, memoryview(block.data))

        try:
            async with asyncio.TaskGroup() as group:
                for ref, block in objects:
                    group.create_task(put(ref, block))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed

    async def publish(
        self, collection: Collection, lease: Lease, upload_id: str, prefix: str, edit: Edit
    ) -> VersionInfo:
        """Apply ``edit`` to the current manifest and publish it, rebasing as often as needed.

        Raises `Fenced`, `NotFound` (collection gone), `UploadExpired`, `Conflict` when the edit no longer applies.
        """
        for attempt in range(self.attempts):
            manifest = await self.current(collection)
            edited = await edit(manifest, f"{prefix}/{attempt}")
            await self.step("tombstones")
            await self.upload(edited.objects)
            key = f"{prefix}/{attempt}/manifest-{edited.manifest.version:010d}"
            await self.step("manifest")
            await self.objects.put(key, encode_manifest(edited.manifest))
            await self.step("publish")
            request = PublishRequest(lease, manifest.version, key, edited.manifest.compacted_offset, upload_id)
            try:
                published = await self._compare_and_set(request)
            except VersionConflict:
                continue
            await self.step("published")
            return published
        raise VersionConflict(
            f"lost {self.attempts} races to publish collection {collection.id}; it is tried again later"
        )

    async def _compare_and_set(self, request: PublishRequest) -> VersionInfo:
        try:
            return await self.catalog.publish(request)
        except OutcomeUnknown:
            return await self.catalog.publish(request)  # the same manifest key makes it idempotent


def job_prefix(collection_id: str, upload_id: str) -> str:
    """Key prefix of everything that one upload intent covers."""
    return f"segments/{collection_id}/{upload_id}"
