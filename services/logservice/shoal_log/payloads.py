"""Payloads too large for Postgres: objects written ahead of the transaction that names them, under an upload intent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID

import pyarrow as pa

from shoal_core.errors import Corrupt, ShoalError, Unavailable
from shoal_core.ports import ObjectStore, Random
from shoal_log.batches import Batch, checksum_of
from shoal_log.decide import Upload

BeginUpload = Callable[[str, str], Awaitable[None]]


def object_key(collection_id: str, intent_id: str) -> str:
    """Where the payload of an append lies."""
    return f"log/{collection_id}/{intent_id}"


class Payloads:
    """Stores and fetches payloads outside Postgres.

    Args:
        begin_upload: records an intent (id, collection id), dated by the database's clock.
        inline_limit_bytes: payloads up to this size stay in Postgres.
        uploads: objects written at a time.
    """

    def __init__(
        self, objects: ObjectStore, begin_upload: BeginUpload, random: Random, *, inline_limit_bytes: int, uploads: int
    ) -> None:
        self._objects = objects
        self._begin_upload = begin_upload
        self._random = random
        self._inline_limit_bytes = inline_limit_bytes
        self._uploads = asyncio.Semaphore(uploads)

    async def put(self, collection_id: str, batch: Batch) -> Upload | None:
        """Make a large payload durable; None for a small one. Raises `Unavailable`: nothing will be written.

        An object whose append fails or is never sent keeps its intent, by which the sweeper finds it.
        """
        if batch.size_bytes <= self._inline_limit_bytes:
            return None
        intent_id = str(UUID(bytes=self._random.token(), version=4))
        upload = Upload(intent_id, object_key(collection_id, intent_id))
        async with self._uploads:
            await self._begin_upload(intent_id, collection_id)
            try:
                await self._objects.put(upload.object_key, memoryview(batch.payload))
            except (ShoalError, OSError) as error:
                raise Unavailable(f"the payload could not be stored, nothing was written: {error}") from error
        return upload

    async def get(self, key: str, checksum: bytes) -> pa.Buffer:
        """A payload, verified. Raises `NotFound`, `Unavailable`, `Corrupt`."""
        try:
            payload = pa.py_buffer(await self._objects.get(key))
        except OSError as error:
            raise Unavailable(f"object {key} cannot be read: {error}") from error
        if await asyncio.to_thread(checksum_of, payload) != checksum:
            raise Corrupt(f"object {key} does not have the checksum of its log entry")
        return payload

    async def delete(self, keys: list[str]) -> None:
        """Delete objects that no entry names any more."""
        if keys:
            await self._objects.delete(keys)
