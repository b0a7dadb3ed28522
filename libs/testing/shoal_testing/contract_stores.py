"""What the contract cases of catalog and log run against, and how they write to it.

Catalog and log share their state, so they are tested as a pair. A test module subclasses `CatalogContract` and `LogContract` under
names that start with ``Test`` and defines a fixture ``stores``: empty `Stores` but for the default tenant and database.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from shoal_core.contracts import (
    AppendRequest,
    AppendResult,
    Catalog,
    Collection,
    Condition,
    Functions,
    Lease,
    Log,
    NewCollection,
    PublishRequest,
)
from shoal_core.records import DOCUMENT, EMBEDDING, ID, OP, Operation, embedding_array, encode_batch
from shoal_testing.fake_catalog import DEFAULT_DATABASE, DEFAULT_TENANT

HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Stores:
    """A catalog and the log beside it.

    Attributes:
        expire_lease: make a lease run out.
        age_uploads: make all uploads too old to publish under.
        trim: forget the log of a collection up to the end of a compacted batch.
        functions: beside the catalog.
    """

    catalog: Catalog
    log: Log
    expire_lease: Callable[[Lease], Awaitable[None]]
    age_uploads: Callable[[], Awaitable[None]]
    trim: Callable[[Collection, int], Awaitable[None]]
    functions: Functions

    async def create(self, name: str = "c", *, tenant: str = DEFAULT_TENANT, shards: int = 1) -> Collection:
        """A new collection."""
        database = DEFAULT_DATABASE if tenant == DEFAULT_TENANT else "d"
        new = NewCollection(tenant, database, name, shards=shards)
        made, _ = await self.catalog.create_collection(new, get_or_create=False)
        return made

    async def append(
        self,
        collection: Collection,
        ids: Sequence[str],
        *,
        dimension: int | None = 2,
        key: str = "",
        condition: Condition | None = None,
        text: str = "",
    ) -> AppendResult:
        """Append one batch of upserts."""
        payload = upserts(ids, dimension=dimension, text=text)
        return await self.log.append(
            AppendRequest(
                collection.id,
                collection.epoch,
                collection.tenant,
                payload,
                idempotency_key=key,
                condition=condition,
            )
        )

    async def claim(self, collection: Collection, kind: str = "flush", holder: str = "me") -> Lease:
        """A lease that must be free."""
        lease = await self.catalog.claim(collection.id, kind, holder, ttl_ms=HOUR_MS)
        assert lease is not None
        return lease

    async def publishing(self, lease: Lease, offset: int, *, expected: int = 0) -> PublishRequest:
        """A publish under a new upload."""
        upload_id = await self.catalog.begin_upload(lease.collection_id)
        return PublishRequest(lease, expected, f"segments/{upload_id}/manifest", offset, upload_id)

    async def compact(self, collection: Collection, offset: int, *, expected: int = 0) -> None:
        """Publish a version that is compacted up to ``offset``."""
        lease = await self.claim(collection)
        await self.catalog.publish(await self.publishing(lease, offset, expected=expected))
        await self.catalog.release(lease)


def upserts(ids: Sequence[str], *, dimension: int | None = 2, text: str = "") -> pa.Buffer:
    """The payload of one batch of upserts; without embeddings when ``dimension`` is None."""
    columns = {OP: pa.array([Operation.UPSERT] * len(ids), pa.uint8()), ID: pa.array(ids, pa.string())}
    if dimension is not None:
        columns[EMBEDDING] = embedding_array(np.ones((len(ids), dimension), dtype=np.float32))
    if text:
        columns[DOCUMENT] = pa.array([text] * len(ids), pa.string())
    return encode_batch(pa.record_batch(columns))
