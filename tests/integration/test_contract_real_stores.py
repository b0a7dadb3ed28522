"""sysdb and the log service on a real Postgres keep the contracts, by the cases that the fakes of unit tests are held to."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from shoal_testing.contract_catalog import CatalogContract
from shoal_testing.contract_forks import ForkContract
from shoal_testing.contract_log import LogContract
from shoal_testing.contract_stores import Stores
from shoal_testing.postgres_stores import postgres_stores

pytestmark = pytest.mark.integration


@pytest.fixture
async def stores(fresh_database: str) -> AsyncIterator[Stores]:
    """A catalog and a log node over one empty database."""
    async with postgres_stores(fresh_database) as made:
        yield made.stores


class TestCatalogService(CatalogContract):
    """All cases of the catalog."""


class TestForks(ForkContract):
    """All cases of forks."""


class TestLogService(LogContract):
    """All cases of the log."""
