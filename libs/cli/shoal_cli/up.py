"""``shoal up``: serve a data directory, in this process or as a local cluster, until a signal."""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import typer

from shoal_cli.embedded import EmbeddedSettings, EmbeddedSystem
from shoal_cli.entry import authenticates, check_addresses, embedding_settings, make_entrance
from shoal_cli.local_cluster import ClusterPlan, LocalCluster
from shoal_cli.security import FRONTEND, Security, open_audit, public_certificates
from shoal_cluster.channels import ChannelSettings
from shoal_compactor.compactor import CompactorSettings
from shoal_core.audit import Audit, no_audit
from shoal_core.limits import Limits
from shoal_frontend.access.grpc_api import AccessAdminServicer
from shoal_frontend.grpc_api import ShoalServicer
from shoal_frontend.http_api.app import create_app
from shoal_frontend.http_api.gateway import Gateway
from shoal_frontend.http_api.serving import serve
from shoal_runtime.config import Config, load
from shoal_runtime.lifecycle import Background, stop_signals
from shoal_runtime.logs import configure_logging
from shoal_runtime.sections import settings_of
from shoal_runtime.server import GrpcServer, split_address
from shoal_runtime.servers.ports import free_ports
from shoal_runtime.system import SystemClock, SystemRandom
from shoal_runtime.telemetry import Telemetry

_DRAIN_S = 5.0
_PASSED_ON = ("SHOAL_FRONTEND__", "SHOAL_COMPACTOR__", "SHOAL_AUDIT__")
_ADDRESS_VARIABLES = ("__LISTEN", "__ADVERTISE", "__METRICS", "__HTTP")


@asynccontextmanager
async def embedded_server(
    path: Path, grpc: str, http: str = "", *, config: Config | None = None
) -> AsyncIterator[tuple[str, str]]:
    """Everything in this process, with a gRPC and, if asked for, an HTTP face; the addresses they listen on.

    ``config``: of its frontend: who may come in, over what, how much it may use, and what is embedded for it; and of its compactor.
    There is an audit log if the frontend asks for credentials, or if a file is named for it.
    """
    config = config or Config()
    section = config.frontend
    check_addresses(section, grpc=grpc, http=http)
    clock, random = SystemClock(), SystemRandom()
    async with AsyncExitStack() as stack:
        embedding = embedding_settings(section.embedding)
        compactor = settings_of(CompactorSettings, config.compactor)
        settings = EmbeddedSettings(compactor=compactor, allow_reset=section.allow_reset, embedding=embedding)
        system = EmbeddedSystem(path, settings)
        await system.start()
        stack.push_async_callback(system.close)
        options = ChannelSettings(Limits().message_size_bytes).server_options()
        services = ["shoal.v1.ShoalService", "shoal.v1.AccessAdminService"]
        public, clients = public_certificates(section.tls, None, clock)
        audit: Audit = no_audit
        if authenticates(section.access) or config.audit.file is not None:
            telemetry = Telemetry("up")
            stack.callback(telemetry.close)
            audit = open_audit(FRONTEND, config.audit, clock, telemetry, sys.stderr)
        security = Security(public=public, clients=clients, audit=audit)
        security.watch(await stack.enter_async_context(Background()), config.tls.reload_interval_ms)
        server = GrpcServer(services, clock, options=options, credentials=security.server_credentials(FRONTEND))
        entrance = make_entrance(section, system.api, system.access, clock, random, Limits(), audit)
        ShoalServicer(entrance).add_to(server.grpc_server)
        AccessAdminServicer(entrance, system.access, random).add_to(server.grpc_server)
        host, port = split_address(grpc, "grpc")
        bound = await server.start(host, port)
        stack.push_async_callback(server.drain, _DRAIN_S)
        gateway = Gateway(
            entrance,
            clock,
            random,
            cors_allow_origins=section.cors_allow_origins,
            embeds=system.api.embedding is not None,
        )
        tls = security.public_context()
        yield f"{host}:{bound}", await _serve_http(gateway, http, stack, None if tls is None else tls.context)


async def serve_embedded(
    path: Path, grpc: str, http: str, *, allow_reset: bool = False, certificates: Path | None = None
) -> None:
    """Everything in this process until a signal."""
    configure_logging("WARNING", as_json=False)
    flags: dict[str, Any] = {"allow_reset": True} if allow_reset else {}
    if certificates is not None:
        flags["tls"] = {"cert_file": certificates / "frontend.crt", "key_file": certificates / "frontend.key"}
        if load().frontend.tls.client_certificates == "required":
            flags["tls"]["client_ca_file"] = certificates / "ca.crt"
    config = load({"frontend": flags})
    secure = config.frontend.tls.cert_file is not None
    async with stop_signals() as stop, embedded_server(path, grpc, http, config=config) as (address, gateway):
        _say(path, address, gateway, "everything in this process", secure=secure)
        await stop.wait()
        typer.echo("Stopping.")


async def serve_cluster(
    path: Path,
    grpc: str,
    http: str,
    querynodes: int,
    *,
    allow_reset: bool = False,
    certificates: Path | None = None,
) -> None:
    """A local cluster."""
    configure_logging("WARNING", as_json=False)
    split_address(grpc, "grpc")
    check_addresses(load().frontend, grpc=grpc, http=http)
    if http:
        _, port = split_address(http, "http")
        http = f"{http.rpartition(':')[0]}:{port or free_ports(1)[0]}"
    async with stop_signals() as stop:
        environment = _passed_on() | ({"SHOAL_FRONTEND__ALLOW_RESET": "true"} if allow_reset else {})
        plan = ClusterPlan(
            path, querynodes=querynodes, grpc=grpc, http=http, environment=environment, certificates=certificates
        )
        cluster = LocalCluster(plan)
        await cluster.start()
        try:
            roles = ", ".join(f"{count} {role}" for role, count in ClusterPlan(path, querynodes).counts().items())
            what = f"{roles}, Postgres, etcd and S3"
            _say(path, " and ".join(cluster.frontends), http, what, secure=certificates is not None)
            await stop.wait()
            typer.echo("Stopping.")
        finally:
            await cluster.stop()


async def _serve_http(gateway: Gateway, http: str, stack: AsyncExitStack, tls: ssl.SSLContext | None = None) -> str:
    """Serve the HTTP gateway; the address it is on, empty for none."""
    if not http:
        return ""
    host, port = split_address(http, "http")
    bound = await stack.enter_async_context(serve(create_app(gateway), host, port, tls=tls))
    return f"{http.rpartition(':')[0]}:{bound}"


def _passed_on() -> dict[str, str]:
    """What this process was told about frontends, compactors and the audit log; where they listen is decided by its own options."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.upper().startswith(_PASSED_ON) and not name.upper().endswith(_ADDRESS_VARIABLES)
    }


def _say(path: Path, grpc: str, http: str, what: str, *, secure: bool) -> None:
    typer.echo(f"Shoal serves {path} on {grpc}{' over TLS' if secure else ''}: {what}.")
    if http:
        typer.echo(f"HTTP, for Chroma clients: http{'s' if secure else ''}://{http}")
    typer.echo("Ready. Stop with Ctrl-C.")
