"""A frontend of a real cluster that wants to know who calls, and one that would serve strangers."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio

from shoal_cli.local_cluster import LocalCluster, RoleProcess
from shoal_core.contracts import CredentialKind, Grant, Role
from shoal_runtime.servers.ports import free_ports
from shoal_runtime.servers.process import ServerProcess
from shoal_wire.clients import AccessAdminClient

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

ROOT = "root-token-root-token-root-token"
DATABASE = "/api/v2/tenants/default_tenant/databases/default_database"


def _ask(address: str, path: str, headers: dict[str, str], body: Any) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{address}{path}", data, headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=20) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
    except urllib.error.URLError:
        return 0, None  # it does not listen yet


async def ask(address: str, path: str, token: str = "", body: Any = None) -> tuple[int, Any]:
    """Status, 0 for no connection, and JSON body."""
    headers = {"content-type": "application/json"} | ({"x-chroma-token": token} if token else {})
    return await asyncio.to_thread(_ask, address, path, headers, body)


async def until(address: str, path: str, token: str, status: int) -> None:
    for _ in range(300):
        if (await ask(address, path, token))[0] == status:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{path} never answered {status}")


def another(cluster: LocalCluster, name: str, **settings: str) -> tuple[RoleProcess, ServerProcess, dict[str, str]]:
    """A further frontend, not started."""
    model = cluster.find("frontend-0")
    places = dict(zip(("LISTEN", "METRICS", "HTTP"), (f"127.0.0.1:{port}" for port in free_ports(3)), strict=True))
    changed = {f"SHOAL_FRONTEND__{key}": value for key, value in (places | settings).items()}
    log_path = model.command.log_path.with_name(f"log-{name}")
    command = replace(model.command, env={**(model.command.env or {}), **changed}, log_path=log_path)
    return replace(model, command=command), ServerProcess(name), places


@pytest_asyncio.fixture(loop_scope="session")
async def guarded(cluster: LocalCluster) -> AsyncIterator[dict[str, str]]:
    """Addresses of a frontend with a root token."""
    role, process, places = another(cluster, "guarded", ACCESS__ROOT_TOKEN=ROOT, ACCESS__CACHE_TTL_MS="500")
    await process.start(role.command)
    try:
        await until(places["HTTP"], "/api/v2/heartbeat", "", 200)
        yield places
    finally:
        await process.stop()


async def test_a_token_from_its_making_to_its_revocation(cluster: LocalCluster, guarded: dict[str, str]) -> None:
    http = guarded["HTTP"]
    assert (await ask(http, DATABASE))[0] == 401
    assert (await ask(http, DATABASE, "wrong"))[0] == 401
    async with grpc.aio.insecure_channel(guarded["LISTEN"]) as channel:
        admin = AccessAdminClient(channel, token=ROOT)
        grant = Grant(Role.EDITOR, "default_tenant", "default_database", "mine*")
        credential, token = await admin.create_token("", [grant])
        assert (await ask(http, f"{DATABASE}/collections", token, {"name": "mine-1"}))[0] == 200
        status, answer = await ask(http, f"{DATABASE}/collections", token, {"name": "other"})
        assert (status, answer["error"]) == (403, "ChromaError")
        status, identity = await ask(http, "/api/v2/auth/identity", token)
        assert identity == {
            "user_id": f"token:{credential.id}",
            "tenant": "default_tenant",
            "databases": ["default_database"],
        }
        await admin.revoke_credential(CredentialKind.TOKEN, credential.id)
    await until(http, DATABASE, token, 401)
    # The others ask nobody, and that is why they may not listen beyond loopback.
    assert (await ask(cluster.find("frontend-0").http, f"{DATABASE}/collections/mine-1"))[0] == 200


async def test_a_frontend_does_not_serve_strangers(cluster: LocalCluster) -> None:
    (port,) = free_ports(1)
    role, process, _ = another(cluster, "stranger", HTTP=f"0.0.0.0:{port}")
    await process.start(role.command)
    try:
        await process.wait_exit(60)
        exit_code = process.exit_code
    finally:
        await process.stop()
    log = role.command.log_path.read_text()
    assert exit_code == 1
    assert "frontend.http" in log
    assert "frontend.access.allow_unauthenticated" in log
