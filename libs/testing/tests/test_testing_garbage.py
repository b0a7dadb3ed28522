"""The catalog in memory keeps the contract of garbage collection."""

from __future__ import annotations

import pytest

from shoal_core.contracts import Collection, Lease
from shoal_testing.contract_garbage import GarbageContract
from shoal_testing.contract_stores import Stores
from shoal_testing.fake_catalog import MemoryCatalog
from shoal_testing.fake_functions import MemoryFunctions
from shoal_testing.fake_log import MemoryLog
from shoal_testing.virtual_clock import VirtualClock


@pytest.fixture
def stores() -> Stores:
    clock = VirtualClock()
    catalog = MemoryCatalog(clock)
    log = MemoryLog(catalog)

    async def expire_lease(lease: Lease) -> None:
        await clock.advance(3600)

    async def age_uploads() -> None:
        await clock.advance(15 * 60)

    async def trim(collection: Collection, offset: int) -> None:
        log.trim(collection.id, offset)

    return Stores(catalog, log, expire_lease, age_uploads, trim, MemoryFunctions(catalog))


class TestMemoryGarbage(GarbageContract):
    """All cases."""
