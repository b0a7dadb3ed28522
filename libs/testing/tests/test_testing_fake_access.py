"""The fake of credentials keeps the contract."""

from __future__ import annotations

import pytest

from shoal_testing.contract_access import HOUR_MS, AccessContract, StoredAccess
from shoal_testing.fake_access import MemoryAccess
from shoal_testing.virtual_clock import VirtualClock


@pytest.fixture
def stored() -> StoredAccess:
    clock = VirtualClock()

    async def age() -> None:
        await clock.advance(HOUR_MS / 1000)

    return StoredAccess(MemoryAccess(clock), age)


class TestMemoryAccess(AccessContract):
    """All cases of credentials."""
