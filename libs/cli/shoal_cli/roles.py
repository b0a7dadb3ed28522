"""One role of a cluster as a process: build its service, serve it over gRPC, register, and drain at the end."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from functools import partial

from shoal_cli import metrics
from shoal_cli.entry import check_addresses, embedding_settings, make_entrance
from shoal_cli.forgetting import forget_old
from shoal_cli.peers import Peers, channel_settings, find_peers
from shoal_cli.security import Security, open_security
from shoal_compactor.compactor import Compactor, CompactorSettings
from shoal_compactor.functions import FunctionRunner
from shoal_compactor.garbage import Sweeper
from shoal_compactor.service import CompactorServicer
from shoal_core.errors import Internal, InvalidArgument
from shoal_core.limits import Limits
from shoal_core.ports import Member, ObjectStore, Registry
from shoal_frontend.access.grpc_api import AccessAdminServicer
from shoal_frontend.database import DatabaseService
from shoal_frontend.embedding import offered
from shoal_frontend.grpc_api import ShoalServicer
from shoal_frontend.http_api.app import create_app
from shoal_frontend.http_api.gateway import Gateway, Readiness
from shoal_frontend.http_api.serving import serve as serve_http
from shoal_log.log import LogService
from shoal_log.service import LogServicer
from shoal_log.settings import LogSettings
from shoal_query.node import Node, NodeSettings
from shoal_query.service import QueryServicer
from shoal_query.services import Services
from shoal_runtime.config import Config
from shoal_runtime.lifecycle import Background
from shoal_runtime.logs import configure_logging, standard_error
from shoal_runtime.pages import Page, Pages
from shoal_runtime.rpc_metrics import RpcMetrics
from shoal_runtime.sections import settings_of
from shoal_runtime.server import GrpcServer, split_address
from shoal_runtime.system import SystemClock, SystemRandom, thread_use
from shoal_runtime.telemetry import METRICS_CONTENT_TYPE, Telemetry
from shoal_runtime.tls import ServerContext
from shoal_storage.cache import BlockCache
from shoal_storage.objects import LocalObjectStore, S3Config, S3ObjectStore, ensure_bucket
from shoal_storage.postgres import open_pool
from shoal_sysdb.access import AccessService
from shoal_sysdb.catalog import CatalogService
from shoal_sysdb.forks import ForkLimits
from shoal_sysdb.functions import FunctionsService
from shoal_sysdb.migrate import migrate, require_schema
from shoal_sysdb.service import AccessServicer, CatalogServicer, FunctionsServicer
from shoal_sysdb.store import PostgresCatalogStore

_log = logging.getLogger(__name__)

_SERVICES = {
    "frontend": ("shoal.v1.ShoalService", "shoal.v1.AccessAdminService"),
    "logservice": ("shoal.v1.LogService",),
    "querynode": ("shoal.v1.QueryService",),
    "compactor": ("shoal.v1.CompactorService",),
    "sysdb": ("shoal.v1.CatalogService", "shoal.v1.AccessService", "shoal.v1.FunctionsService"),
}
_DRAIN_S = 10.0
_SETTLE_S = 0.5


@dataclass(slots=True)
class Context:
    """What building a role needs; ``stack`` undoes what was built, in reverse."""

    config: Config
    member_id: str
    peers: Peers
    server: GrpcServer
    telemetry: Telemetry
    security: Security
    background: Background
    stack: AsyncExitStack


async def serve(role: str, config: Config, *, ready: Callable[[int], None] = lambda port: None) -> None:
    """Serve one role until SIGINT or SIGTERM. ``ready`` hears the gRPC port once the role is registered.

    Raises `InvalidArgument` for a configuration that cannot work, `Unavailable` when Postgres or S3 cannot be reached.
    """
    section = config.service(role)
    member_id = f"{role}-{SystemRandom().token().hex()[:12]}"
    stream = standard_error()
    configure_logging(config.telemetry.log_level, as_json=config.telemetry.log_json, service=role, stream=stream)
    faulthandler.enable(stream)
    telemetry = Telemetry(role, instance=member_id, settings=config.telemetry)
    telemetry.install()
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        stack.callback(telemetry.close)
        security = open_security(role, config, clock, telemetry, stack.enter_context(ExitStack()), stream)
        server = GrpcServer(
            _SERVICES[role],
            clock,
            options=channel_settings(config).server_options(),
            interceptors=[RpcMetrics(telemetry, clock), *security.interceptors(role, config.tls.domain)],
            credentials=security.server_credentials(role),
        )
        peers = find_peers(config, security)
        stack.push_async_callback(peers.close)
        await peers.start()
        background = await stack.enter_async_context(Background())
        security.watch(background, config.tls.reload_interval_ms)
        background.start("process metrics", metrics.watch_process(telemetry, clock, peers.registry))
        await _BUILDERS[role](Context(config, member_id, peers, server, telemetry, security, background, stack))
        host, port = split_address(section.listen, f"{role}.listen")
        bound = await server.start(host, port)
        address = section.advertise or f"{host}:{bound}"
        context = security.pages_context(config.tls.metrics)
        await _serve_pages(section.metrics, role, telemetry, server, stack, context)
        await peers.registry.register(Member(role, member_id, address, section.weight))
        _log.info("%s serves on %s", member_id, address)
        ready(bound)
        await server.run_until_signal(
            _DRAIN_S, deregister=peers.registry.deregister, settle_s=_SETTLE_S, crashed=background.failed
        )
        if background.failed.is_set():
            raise Internal("a background task crashed, see the log; this process ends so that another one takes over")


async def _serve_pages(
    address: str,
    role: str,
    telemetry: Telemetry,
    server: GrpcServer,
    stack: AsyncExitStack,
    context: ServerContext | None,
) -> None:
    """Metrics, and what the probes of an orchestrator ask that does not speak gRPC over TLS."""
    if not address:
        return

    def ready() -> Page:
        return Page(b"ok\n") if server.serving else Page(b"not serving\n", 503)

    pages = Pages(
        {
            "/metrics": lambda: Page(telemetry.render(), content_type=METRICS_CONTENT_TYPE),
            "/live": lambda: Page(b"ok\n"),
            "/ready": ready,
            "/health": ready,
        },
        tls=None if context is None else context.context,
    )
    await pages.start(*split_address(address, f"{role}.metrics"))
    stack.push_async_callback(pages.close)


async def _build_sysdb(context: Context) -> None:
    config = context.config
    dsn = dsn_of(config)
    if config.sysdb.migrate_at_start:
        await migrate(dsn)
    postgres = config.postgres
    pool = await open_pool(
        dsn,
        application_name="shoal-sysdb",
        max_size=postgres.connections,
        connect_timeout_ms=postgres.connect_timeout_ms,
        statement_timeout_ms=postgres.statement_timeout_ms,
        require_synchronous_standby=postgres.require_synchronous_standby,
    )
    context.stack.push_async_callback(pool.close)
    await require_schema(pool)
    metrics.measure_pools(context.telemetry, {"catalog": pool})
    store = PostgresCatalogStore(pool)
    catalog = CatalogService(
        store,
        max_upload_age_ms=config.logservice.append.max_upload_age_ms,
        fork_limits=settings_of(ForkLimits, config.sysdb.fork),
    )
    CatalogServicer(catalog).add_to(context.server.grpc_server)
    AccessServicer(AccessService(pool)).add_to(context.server.grpc_server)
    FunctionsServicer(FunctionsService(store)).add_to(context.server.grpc_server)


async def _build_log(context: Context) -> None:
    config = context.config
    objects = await _open_objects(context)
    require = config.postgres.require_synchronous_standby
    settings = settings_of(LogSettings, config.logservice, limits=_limits(config), require_synchronous_standby=require)
    on_group = metrics.measure_groups(context.telemetry)
    log = LogService(dsn_of(config), objects, SystemClock(), SystemRandom(), settings, on_group=on_group)
    await log.start()
    context.stack.push_async_callback(log.close)
    lag = metrics.measure_log(context.telemetry, log, config.telemetry, SystemClock())
    context.background.start("log lag", lag.run())
    LogServicer(log).add_to(context.server.grpc_server)


async def _build_query(context: Context) -> None:
    config, peers = context.config, context.peers
    objects = await _open_objects(context)
    executor = ThreadPoolExecutor(max(4, config.querynode.threads), thread_name_prefix="shoal-query")
    context.stack.callback(executor.shutdown)
    cache = await _started_cache(context, objects)
    services = Services(peers.catalog, peers.log, objects, cache, SystemClock(), executor, thread_use)
    node = Node(context.member_id, services, settings_of(NodeSettings, config.querynode))
    context.stack.push_async_callback(node.close)
    context.background.start("forgetting", forget_old(SystemClock(), config.cache.max_age_ms, cache, node))
    metrics.measure_node(context.telemetry, node)
    QueryServicer(node).add_to(context.server.grpc_server)


async def _build_compactor(context: Context) -> None:
    config, peers, holder = context.config, context.peers, context.member_id
    objects = await _open_objects(context)
    cache = await _started_cache(context, objects)
    settings = settings_of(CompactorSettings, config.compactor)
    is_mine = partial(peers.is_mine, holder)
    context.background.start("forgetting", forget_old(SystemClock(), config.cache.max_age_ms, cache))
    compactor = Compactor(holder, peers.catalog, peers.log, objects, cache, SystemClock(), is_mine, settings)
    metrics.measure_compactor(context.telemetry, compactor)
    context.background.start("compactor", compactor.run())
    sweeper = Sweeper(peers.catalog, objects, SystemClock(), is_mine, settings.garbage)
    metrics.measure_sweeper(context.telemetry, sweeper)
    context.background.start("sweeper", sweeper.run())
    runner = FunctionRunner(
        holder,
        peers.catalog,
        peers.functions,
        peers.log,
        objects,
        cache,
        SystemClock(),
        is_mine,
        settings.functions,
    )
    metrics.measure_functions(context.telemetry, runner)
    context.background.start("functions", runner.run())
    backlog = metrics.measure_backlog(context.telemetry, peers.catalog, is_mine, config.telemetry, SystemClock())
    context.background.start("compaction backlog", backlog.run())
    CompactorServicer(compactor).add_to(context.server.grpc_server)


async def _build_frontend(context: Context) -> None:
    config, peers = context.config, context.peers
    listened = {"frontend.listen": config.frontend.listen, "frontend.http": config.frontend.http}
    check_addresses(config.frontend, **listened)
    database = DatabaseService(
        peers.catalog,
        peers.log,
        peers.nodes,
        SystemRandom(),
        peers.registry.view,
        _limits(config),
        config.frontend.cached_names,
        SystemClock(),
        config.frontend.allow_reset,
        peers.functions,
        embedding=offered(embedding_settings(config.frontend.embedding), SystemClock()),
    )
    limits = _limits(config)
    entrance = make_entrance(
        config.frontend, database, peers.access, SystemClock(), SystemRandom(), limits, context.security.audit
    )
    ShoalServicer(entrance).add_to(context.server.grpc_server)
    AccessAdminServicer(entrance, peers.access, SystemRandom(), limits).add_to(context.server.grpc_server)
    if config.frontend.http:
        gateway = Gateway(
            entrance,
            SystemClock(),
            SystemRandom(),
            limits,
            lambda: _readiness(peers.registry),
            cors_allow_origins=config.frontend.cors_allow_origins,
            embeds=database.embedding is not None,
            on_answered=metrics.measure_http(context.telemetry),
        )
        host, port = split_address(config.frontend.http, "frontend.http")
        tls = context.security.public_context()
        await context.stack.enter_async_context(
            serve_http(create_app(gateway), host, port, tls=None if tls is None else tls.context)
        )


def _readiness(registry: Registry) -> Readiness:
    view = registry.view()
    return Readiness(executor=bool(view.of("querynode")), log=bool(view.of("logservice")))


_BUILDERS: dict[str, Callable[[Context], Awaitable[None]]] = {
    "sysdb": _build_sysdb,
    "logservice": _build_log,
    "querynode": _build_query,
    "compactor": _build_compactor,
    "frontend": _build_frontend,
}


async def _started_cache(context: Context, objects: ObjectStore) -> BlockCache:
    """A block cache that is closed with the role."""
    section = context.config.cache
    cache = BlockCache(
        section.directory, section.disk_size_bytes, section.memory_size_bytes, objects, max_downloads=section.downloads
    )
    await cache.start()
    context.stack.push_async_callback(cache.close)
    metrics.measure_cache(context.telemetry, cache, section, SystemClock())
    return cache


async def _open_objects(context: Context) -> ObjectStore:
    section = context.config.objects
    if section.s3.bucket:
        s3 = section.s3
        config = settings_of(
            S3Config,
            s3,
            access_key=s3.access_key.get_secret_value(),
            secret_key=s3.secret_key.get_secret_value(),
        )
        await asyncio.to_thread(ensure_bucket, config)
        return metrics.observed_objects(context.telemetry, SystemClock(), S3ObjectStore(config))
    if section.path is None:
        raise InvalidArgument("name a bucket (objects.s3.bucket) or a folder (objects.path)", field="objects")
    local = await asyncio.to_thread(LocalObjectStore, section.path)
    context.stack.callback(local.close)
    return metrics.observed_objects(context.telemetry, SystemClock(), local)


def dsn_of(config: Config) -> str:
    """The address of Postgres. Raises `InvalidArgument` if there is none."""
    dsn = config.postgres.dsn.get_secret_value()
    if not dsn:
        raise InvalidArgument(
            "give the address of Postgres, postgresql://user:password@host:port/database", field="postgres.dsn"
        )
    return dsn


def _limits(config: Config) -> Limits:
    return settings_of(Limits, config.limits)
