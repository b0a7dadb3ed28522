"""A real cluster over mutual TLS with authentication: who is let in, who is refused and audited, and certificates and processes
that are replaced under load.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import tempfile
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from shoal import aio, tls_credentials
from shoal.aio import AsyncClient
from shoal_cli import certificates
from shoal_cli.local_cluster import ClusterPlan, LocalCluster, RoleProcess
from shoal_cli.main import app
from shoal_core.contracts import CredentialKind, Grant, Role
from shoal_core.errors import NotFound, PermissionDenied, Unauthenticated, Unavailable
from shoal_runtime.authority import Authority, issue_into, open_authority
from shoal_wire.clients import AccessAdminClient, LogClient
from shoal_wire.clients.access import AccessClient
from tests.integration.workload import Workload, all_present, eventually

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

DOMAIN = "shoal.internal"
ROOT = "root-token-root-token-root-token"
PASSWORD = "correct horse battery staple"
DAYS = 30
SETTINGS = {
    "SHOAL_TLS__RELOAD_INTERVAL_MS": "200",
    "SHOAL_FRONTEND__TLS__CLIENT_CERTIFICATES": "required",
    "SHOAL_FRONTEND__ACCESS__ROOT_TOKEN": ROOT,
    "SHOAL_COMPACTOR__MAX_AGE_MS": "1000",
}


@dataclass(frozen=True)
class Secure:
    """The cluster, and the directory with its certificates."""

    cluster: LocalCluster
    directory: Path

    def credentials(self, who: str = "client", ca: str = "ca") -> grpc.ChannelCredentials:
        return tls_credentials(*(self.directory / name for name in (f"{ca}.crt", f"{who}.crt", f"{who}.key")))

    def context(self, who: str | None = "client") -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.directory / "ca.crt")
        if who is not None:
            context.load_cert_chain(self.directory / f"{who}.crt", self.directory / f"{who}.key")
        return context

    async def connect(self, token: str = ROOT, **more: Any) -> AsyncClient:
        """A client as users have it, that knows both frontends."""
        addresses = ",".join(self.cluster.frontends)
        return await aio.connect(addresses, credentials=self.credentials(), token=token, **more)

    def channel(self, role: RoleProcess, who: str | None) -> grpc.aio.Channel:
        """To a process, with the certificate of ``who``; None has none."""
        credentials = tls_credentials(self.directory / "ca.crt") if who is None else self.credentials(who)
        named = (("grpc.ssl_target_name_override", f"{role.role}.{DOMAIN}"),)
        return grpc.aio.secure_channel(role.address, credentials, options=named)

    def logs(self) -> Iterator[str]:
        for role in self.cluster.roles.values():
            yield from role.command.log_path.read_text().splitlines()

    def audited(self, **wanted: str) -> list[dict[str, Any]]:
        """Lines of the audit log with these members."""
        lines = (json.loads(line) for line in self.logs() if '"shoal.audit"' in line)
        return [line for line in lines if wanted.items() <= line.items()]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def secure() -> AsyncIterator[Secure]:
    path = Path(tempfile.mkdtemp(prefix="shoal-secure-"))
    directory = path / "certificates"
    certificates.make(directory, DOMAIN, [], DAYS)
    plan = ClusterPlan(path / "data", querynodes=2, compactors=1, environment=SETTINGS, certificates=directory)
    cluster = LocalCluster(plan)
    await cluster.start()
    try:
        yield Secure(cluster, directory)
    finally:
        await cluster.stop()
        shutil.rmtree(path)


def _fetch(url: str, context: ssl.SSLContext, token: str) -> tuple[int, bytes]:
    request = urllib.request.Request(url, headers={"x-chroma-token": token} if token else {})
    handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except (OSError, ssl.SSLError):  # the handshake failed
        return 0, b""


async def fetch(url: str, context: ssl.SSLContext, token: str = "") -> tuple[int, bytes]:
    """Status, 0 for no connection, and body."""
    return await asyncio.to_thread(_fetch, url, context, token)


async def test_clients_and_commands_reach_it(secure: Secure) -> None:
    frontend = secure.cluster.find("frontend-0")
    async with await secure.connect() as client:
        collection = await client.create_collection("greetings", space="l2")
        await collection.add(["a", "b"], embeddings=[[0.0, 1.0], [1.0, 0.0]], documents=["hello", "good bye"])
        found = await collection.query(query_embeddings=[[1.0, 0.1]], n_results=1)
        assert found.ids == [["b"]]
    path = "/api/v2/tenants/default_tenant/databases/default_database/collections/greetings"
    status, body = await fetch(f"https://{frontend.http}{path}", secure.context(), ROOT)
    assert (status, json.loads(body)["name"]) == (200, "greetings")
    assert (await fetch(f"https://{frontend.http}/api/v2/heartbeat", secure.context(None)))[0] == 0
    for role in secure.cluster.roles.values():  # probes have no certificate
        assert (await fetch(f"https://{role.metrics}/ready", secure.context(None)))[0] == 200
        assert (
            b"shoal_certificate_expires_s" in (await fetch(f"https://{role.metrics}/metrics", secure.context(None)))[1]
        )
    files = [f"--{name}-file={secure.directory / file}" for name, file in (("ca", "ca.crt"), ("cert", "client.crt"))]
    options = [*files, f"--key-file={secure.directory / 'client.key'}"]
    arguments = [*options, "status", frontend.address, "--json"]
    shown = await asyncio.to_thread(CliRunner().invoke, app, arguments, env={"SHOAL_TOKEN": ROOT})
    assert shown.exit_code == 0, shown.output
    assert len(json.loads(shown.stdout)["members"]["querynode"]) == 2


async def test_who_has_no_certificate_is_refused_and_audited(secure: Secure) -> None:
    reason = "peer did not return a certificate"
    for name in ("frontend-0", "logservice-0", "sysdb-0", "querynode-0", "compactor-0"):
        role = secure.cluster.find(name)
        async with secure.channel(role, None) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await _health(channel)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await eventually(
            lambda role=role: secure.audited(verb="connect", detail="grpc", reason=reason, service=role.role), 5, name
        )
    await fetch(f"https://{secure.cluster.find('frontend-0').http}/api/v2", secure.context(None))
    await eventually(lambda: secure.audited(verb="connect", detail="http", reason=reason), 5, "HTTP")


async def test_a_certificate_of_another_role_is_refused_and_audited(secure: Secure) -> None:
    async with secure.channel(secure.cluster.find("logservice-0"), "client") as channel:
        with pytest.raises(PermissionDenied, match="no role"):
            await LogClient(channel).read_index("00000000-0000-0000-0000-000000000000", 1)
    async with secure.channel(secure.cluster.find("sysdb-0"), "querynode") as channel:
        with pytest.raises(PermissionDenied, match="querynode"):
            await AccessClient(channel).find_credential(CredentialKind.USER, "ann")
    audited = secure.audited(outcome="refused", verb="shoal.v1.AccessService/FindCredential")
    assert [line["principal"] for line in audited] == ["querynode"]
    assert audited[0]["peer"].startswith("127.0.0.1:")
    assert secure.audited(outcome="refused", verb="shoal.v1.LogService/ReadIndex", service="logservice")


async def test_credentials_are_asked_for_over_grpc_too_and_end_at_their_tenant(secure: Secure) -> None:
    async with await secure.connect() as owner:
        for tenant in ("acme", "zeta"):
            await owner.create_tenant(tenant)
            await owner.create_database("main", tenant=tenant)
    frontend = secure.cluster.find("frontend-0")
    async with secure.channel(frontend, "client") as channel:
        admin = AccessAdminClient(channel, token=ROOT)
        _, token = await admin.create_token("", [Grant(Role.READER, "acme")])
        await admin.create_user("ann", PASSWORD, "", [Grant(Role.READER, "acme")])
    async with await secure.connect("") as nobody:
        with pytest.raises(Unauthenticated):
            await nobody.list_collections()
    async with await secure.connect(token, tenant="zeta", database="main") as stranger:
        with pytest.raises(NotFound):
            await stranger.get_collection("secrets")
    async with await secure.connect(token, tenant="acme", database="main") as reader:
        assert await reader.list_collections() == []
        with pytest.raises(PermissionDenied):
            await reader.create_collection("mine")
    assert secure.audited(verb="create_tenant", outcome="done", principal="root", tenant="zeta")
    assert secure.audited(verb="create_token", outcome="done", principal="root")
    assert secure.audited(verb="authenticate", outcome="refused", detail="nobody")
    assert secure.audited(verb="get_collection", outcome="refused", tenant="zeta", reason="NotFound")
    assert secure.audited(verb="create_collection", outcome="refused", reason="PermissionDenied", collection="mine")


async def test_certificates_and_processes_are_replaced_under_load(secure: Secure) -> None:
    """All certificates, then every process one by one, then the authority in its three steps. The client knows only retries."""
    cluster = secure.cluster
    async with await secure.connect() as writing, await secure.connect() as reading:
        workload = Workload(await writing.create_collection("load", space="l2"), await reading.get_collection("load"))
        running = asyncio.create_task(workload.run())
        authority = open_authority(secure.directory, DAYS)
        _issue_all(secure.directory, authority, days=DAYS * 2)
        await everywhere(secure, lambda role: _has_new_certificate(secure, role))
        for role in [*cluster.roles.values()]:
            before = role.pid
            await role.process.stop()  # the supervisor starts it again
            await eventually(lambda role=role, before=before: role.pid not in (0, before), 30, role.name)
            await cluster.wait_for_members()
        await _replace_authority(secure, authority)
        async with await secure.connect() as later:
            assert await (await later.get_collection("load")).count() > 0
        workload.stopping = True
        await running
        assert workload.failures == []
        assert workload.misses == []
        assert len(workload.acknowledged) > 100
        assert await all_present(workload.reading, workload.acknowledged) == []


async def test_nothing_secret_is_in_any_log(secure: Secure) -> None:
    """Of everything that the tests above did."""
    logs = "\n".join(secure.logs())
    assert "sysdb" in logs
    postgres = cluster_password(secure.cluster)
    for secret in (ROOT, PASSWORD, "PRIVATE KEY", secure.cluster.s3.secret_key, postgres):
        assert secret
        assert secret not in logs


def cluster_password(cluster: LocalCluster) -> str:
    """What comes before the host in the DSN of Postgres."""
    return cluster.postgres.dsn.partition("@")[0].rpartition(":")[2] or "no password"


async def _health(channel: grpc.aio.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def _issue_all(directory: Path, authority: Authority, days: int) -> None:
    for path in sorted(directory.glob("*.crt")):
        who = path.stem
        if who.startswith("ca") or who.startswith("old"):
            continue
        names = (who,) if who == "client" else (f"{who}.{DOMAIN}", *certificates.LOOPBACK)
        issue_into(directory, authority, who, names, days)


async def everywhere(secure: Secure, condition: Callable[[RoleProcess], Any]) -> None:
    """Wait until it holds of every process, by the contents of its ports."""
    for role in secure.cluster.roles.values():
        for _ in range(100):
            if await condition(role):
                break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError(f"{role.name} did not take its new certificates")


async def _has_new_certificate(secure: Secure, role: RoleProcess) -> bool:
    _, body = await fetch(f"https://{role.metrics}/metrics", secure.context(None))
    values = [
        line.split()[-1] for line in body.decode().splitlines() if line.startswith("shoal_certificate_expires_s{")
    ]
    return bool(values) and all(float(value) > DAYS * 1.5 * 86_400 for value in values)


async def _replace_authority(secure: Secure, old: Authority) -> None:
    """Trust both, then be signed by the new one, then trust only that."""
    directory = secure.directory
    new = Authority.make("second", DAYS, datetime.now(UTC))
    shutil.copy(directory / "client.crt", directory / "old.crt")
    shutil.copy(directory / "client.key", directory / "old.key")
    probe = new.issue(("client",), DAYS, datetime.now(UTC))
    probe.write(directory / "old-probe.crt", directory / "old-probe.key")

    (directory / "ca.crt").write_bytes(old.pair.certificate + new.pair.certificate)
    await everywhere(secure, lambda role: _lets_in(secure, role, "old-probe"))
    _issue_all(directory, new, DAYS)
    await everywhere(secure, lambda role: _is_signed_by(secure, role, new))
    (directory / "ca.crt").write_bytes(new.pair.certificate)

    async def refuses_the_old(role: RoleProcess) -> bool:
        return not await _lets_in(secure, role, "old")

    await everywhere(secure, refuses_the_old)


async def _lets_in(secure: Secure, role: RoleProcess, who: str) -> bool:
    async with secure.channel(role, who) as channel:
        try:
            await _health(channel)
        except grpc.aio.AioRpcError:
            return False
        return True


async def _is_signed_by(secure: Secure, role: RoleProcess, authority: Authority) -> bool:
    trusting = secure.directory / "old-ca.crt"
    trusting.write_bytes(authority.pair.certificate)
    credentials = secure.credentials("client", "old-ca")
    named = (("grpc.ssl_target_name_override", f"{role.role}.{DOMAIN}"),)
    async with grpc.aio.secure_channel(role.address, credentials, options=named) as channel:
        try:
            await _health(channel)
        except grpc.aio.AioRpcError:
            return False
        return True


async def test_a_client_without_the_authority_reaches_nobody(secure: Secure) -> None:
    address = secure.cluster.frontends[0]
    async with await aio.connect(address, token=ROOT, timeout_ms=2_000) as plain:
        with pytest.raises(Unavailable):
            await plain.count_collections()
