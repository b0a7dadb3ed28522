"""Every process of a cluster answers health checks and reflection, exports metrics and registers; status shows all of it."""

from __future__ import annotations

import asyncio
import urllib.request
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from shoal_cli.local_cluster import LocalCluster
from tests.integration.workload import connect

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

SERVICES = {
    "frontend": "shoal.v1.ShoalService",
    "logservice": "shoal.v1.LogService",
    "querynode": "shoal.v1.QueryService",
    "compactor": "shoal.v1.CompactorService",
    "sysdb": "shoal.v1.CatalogService",
}


async def test_health_and_reflection_of_every_process(cluster: LocalCluster) -> None:
    for role in cluster.roles.values():
        async with grpc.aio.insecure_channel(role.address) as channel:
            service = SERVICES[role.role]
            checking: Any = health_pb2_grpc.HealthStub(channel)
            health = await checking.Check(health_pb2.HealthCheckRequest(service=service))
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            asking = reflection_pb2.ServerReflectionRequest(list_services="")
            reflecting: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]  # the stubs know sync only
            (answer,) = [each async for each in reflecting.ServerReflectionInfo(iter([asking]))]
            assert service in {each.name for each in answer.list_services_response.service}


async def test_metrics_of_every_process(cluster: LocalCluster) -> None:
    for role in cluster.roles.values():
        page = await asyncio.to_thread(_fetch, f"http://{role.metrics}/metrics")
        assert "shoal_rpc_active" in page
        assert await asyncio.to_thread(_fetch, f"http://{role.metrics}/health") == "ok\n"


async def test_status_names_every_member(cluster: LocalCluster) -> None:
    async with await connect(cluster.frontends[0]) as client:
        status = await client.status()
    members = {member["address"] for found in status["members"].values() for member in found}
    assert members == {role.address for role in cluster.roles.values()}
    assert status["registry"]["connected"]


def _fetch(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as response:
        return str(response.read().decode())
