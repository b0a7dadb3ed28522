"""sysdb and the log service on a real Postgres keep the contracts, by the cases that the fakes of unit tests are held to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import grpc.aio
import pytest

from shoal_sysdb.service import FunctionsServicer
from shoal_testing.contract_catalog import CatalogContract
from shoal_testing.contract_forks import ForkContract
from shoal_testing.contract_functions import FunctionsContract
from shoal_testing.contract_log import LogContract
from shoal_testing.contract_stores import Stores
from shoal_testing.postgres_stores import postgres_stores
from shoal_wire.clients import FunctionsClient

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


class TestFunctionsService(FunctionsContract):
    """All cases of attached functions."""


class TestFunctionsOverTheWire(FunctionsContract):
    """The same through client, channel and servicer."""

    @pytest.fixture
    async def stores(self, stores: Stores) -> AsyncIterator[Stores]:
        """With a gRPC connection before the functions."""
        server = grpc.aio.server()
        FunctionsServicer(stores.functions).add_to(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield replace(stores, functions=FunctionsClient(channel))
        finally:
            await server.stop(None)
