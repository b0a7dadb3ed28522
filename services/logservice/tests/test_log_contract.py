"""The log service beside the real catalog, held to the contract of every `Log`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from shoal_log import AppendSettings, LogSettings
from shoal_testing.contract_log import LogContract
from shoal_testing.contract_stores import Stores
from shoal_testing.postgres_stores import postgres_stores

pytestmark = pytest.mark.integration


@pytest.fixture(params=["inline", "objects"])
async def stores(fresh_database: str, request: pytest.FixtureRequest) -> AsyncIterator[Stores]:
    limit = 1 << 20 if request.param == "inline" else 0
    settings = LogSettings(append=AppendSettings(inline_limit_bytes=limit))
    async with postgres_stores(fresh_database, settings) as made:
        yield made.stores


class TestLogService(LogContract):
    """Over Postgres, payloads inline and as objects."""
