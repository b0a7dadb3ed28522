"""A database for each test of the log."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.logservice.tests.log_support import World


@pytest.fixture
async def world(fresh_database: str) -> AsyncIterator[World]:
    """A fresh database with the schema."""
    world = await World.create(fresh_database)
    yield world
    await world.close()
