"""Credentials in a real Postgres keep the contract, directly and over the wire; secrets are not at rest."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc.aio
import pytest

from shoal_core.contracts import Access
from shoal_storage.postgres import Pool
from shoal_sysdb import AccessService
from shoal_sysdb.service import AccessServicer
from shoal_testing.contract_access import AccessContract, StoredAccess
from shoal_wire.clients import AccessClient

pytestmark = pytest.mark.integration


@pytest.fixture(params=["direct", "wire"])
async def stored(pool: Pool, request: pytest.FixtureRequest) -> AsyncIterator[StoredAccess]:
    async def age() -> None:
        await pool.execute(
            "UPDATE credential SET created_at = created_at - interval '1 hour', expires_at = expires_at - interval '1 hour'"
        )

    service: Access = AccessService(pool)
    if request.param == "direct":
        yield StoredAccess(service, age)
        return
    server = grpc.aio.server()
    AccessServicer(service).add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        client: Access = AccessClient(channel)
        yield StoredAccess(client, age)
    await server.stop(None)


class TestAccessService(AccessContract):
    """All cases of credentials."""
