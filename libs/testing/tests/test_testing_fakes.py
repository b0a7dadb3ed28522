"""The fakes of catalog and log keep the contracts."""

from __future__ import annotations

import pytest

from shoal_core.contracts import Catalog, Collection, Functions, Lease, Log
from shoal_core.errors import BackPressure, OutcomeUnknown, Unavailable
from shoal_testing.contract_catalog import CatalogContract
from shoal_testing.contract_forks import ForkContract
from shoal_testing.contract_functions import FunctionsContract
from shoal_testing.contract_log import LogContract
from shoal_testing.contract_stores import HOUR_MS, Stores
from shoal_testing.fake_catalog import MemoryCatalog
from shoal_testing.fake_functions import MemoryFunctions
from shoal_testing.fake_log import MemoryLog
from shoal_testing.virtual_clock import VirtualClock


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def catalog(clock: VirtualClock) -> MemoryCatalog:
    return MemoryCatalog(clock)


@pytest.fixture
def log(catalog: MemoryCatalog) -> MemoryLog:
    return MemoryLog(catalog)


@pytest.fixture
def stores(catalog: MemoryCatalog, log: MemoryLog, clock: VirtualClock) -> Stores:
    async def expire_lease(lease: Lease) -> None:
        await clock.advance(HOUR_MS / 1000)

    async def age_uploads() -> None:
        await clock.advance(15 * 60)

    async def trim(collection: Collection, offset: int) -> None:
        log.trim(collection.id, offset)

    as_catalog: Catalog = catalog
    as_log: Log = log
    functions: Functions = MemoryFunctions(catalog)
    return Stores(as_catalog, as_log, expire_lease, age_uploads, trim, functions)


class TestMemoryCatalog(CatalogContract):
    """All cases of the catalog."""


class TestMemoryForks(ForkContract):
    """All cases of forks."""


class TestMemoryLog(LogContract):
    """All cases of the log."""


class TestMemoryFunctions(FunctionsContract):
    """All cases of attached functions."""


async def test_leases_uploads_and_the_backlog_follow_the_clock(stores: Stores, clock: VirtualClock) -> None:
    made = await stores.create()
    assert await stores.catalog.claim(made.id, "flush", "a", ttl_ms=1000) is not None
    await clock.advance(0.999)
    assert await stores.catalog.claim(made.id, "flush", "b", ttl_ms=1000) is None
    await clock.advance(0.001)
    assert await stores.catalog.claim(made.id, "flush", "b", ttl_ms=1000) is not None
    await stores.append(made, ["a"])
    await clock.advance(2)
    await stores.append(made, ["b"])
    assert (await stores.catalog.backlog(limit=1, min_records=9, min_age_ms=2000))[0].age_ms == 2000
    assert await stores.catalog.backlog(limit=1, min_records=9, min_age_ms=2001) == []
    lease = await stores.claim(made, "merge")
    await stores.catalog.publish(await stores.publishing(lease, 1))
    assert (await stores.catalog.backlog(limit=1, min_records=0, min_age_ms=0))[0].age_ms == 0


async def test_the_hooks_fail_before_or_after_the_deed(stores: Stores, catalog: MemoryCatalog, log: MemoryLog) -> None:
    made = await stores.create()

    def unavailable(name: str) -> None:
        raise Unavailable(name)

    def unknown(name: str) -> None:
        raise OutcomeUnknown(name)

    log.before = unavailable
    with pytest.raises(Unavailable, match="append"):
        await stores.append(made, ["a"])
    log.before, log.after = log.after, unknown
    with pytest.raises(OutcomeUnknown, match="append"):
        await stores.append(made, ["a"])
    assert catalog.state(made.id).head_offset == 1


async def test_back_pressure(stores: Stores, log: MemoryLog) -> None:
    made = await stores.create()
    log.uncompacted_records = 3
    await stores.append(made, ["a", "b"])
    with pytest.raises(BackPressure) as caught:
        await stores.append(made, ["c", "d"])
    assert caught.value.retry_after_ms > 0
    await stores.compact(made, 2)
    await stores.append(made, ["c", "d"])
