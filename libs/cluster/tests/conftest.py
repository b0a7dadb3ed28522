"""A real etcd for each test, to be killed, frozen and wiped."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal_runtime.servers import EtcdServer
from shoal_testing.processes import etcd_server


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[EtcdServer]:
    """A running etcd with its data in ``tmp_path / "etcd" / "data"``; it may be left dead or frozen."""
    async with etcd_server(tmp_path / "etcd") as server:
        yield server
        server.kill()
