"""One role of a cluster as a process: build its service, serve it over gRPC, register, and drain at the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from shoal_cli.entry import check_addresses, embedding_settings, make_entrance
from shoal_cli.peers import Peers, channel_settings, find_peers
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
from shoal_query.shard import Services
from shoal_runtime.config import Config
from shoal_runtime.lifecycle import Background
from shoal_runtime.logs import configure_logging
from shoal_runtime.pages import Page, Pages
from shoal_runtime.rpc_metrics import RpcMetrics
from shoal_runtime.sections import settings_of
from shoal_runtime.server import GrpcServer, split_address
from shoal_runtime.system import SystemClock, SystemRandom
from shoal_runtime.telemetry import METRICS_CONTENT_TYPE, Telemetry
from shoal_storage.cache import BlockCache
from shoal_storage.objects import LocalObjectStore, S3Config, S3ObjectStore, ensure_bucket
from shoal_storage.postgres import open_pool
from shoal_sysdb.access import AccessService
from shoal_sysdb.catalog import CatalogService
from shoal_sysdb.forks import ForkLimits
from shoal_sysdb.functions import FunctionsService
from shoal_sysdb.migrate import migrate
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
    background: Background
    stack: AsyncExitStack


async def serve(role: str, config: Config, *, ready: Callable[[int], None] = lambda port: None) -> None:
    """Serve one role until SIGINT or SIGTERM. ``ready`` hears the gRPC port once the role is registered.

    Raises `InvalidArgument` for a configuration that cannot work, `Unavailable` when Postgres or S3 cannot be reached.
    """
    section = config.service(role)
    member_id = f"{role}-{SystemRandom().token().hex()[:12]}"
    configure_logging(config.telemetry.log_level, as_json=config.telemetry.log_json, service=role)
    telemetry = Telemetry(role, instance=member_id, settings=config.telemetry)
    telemetry.install()
    clock = SystemClock()
    server = GrpcServer(
        _SERVICES[role],
        clock,
        options=channel_settings(config).server_options(),
        interceptors=[RpcMetrics(telemetry, clock)],
    )
    async with AsyncExitStack() as stack:
        stack.callback(telemetry.close)
        peers = find_peers(config)
        stack.push_async_callback(peers.close)
        await peers.start()
        background = await stack.enter_async_context(Background())
        await _BUILDERS[role](Context(config, member_id, peers, server, telemetry, background, stack))
        host, port = split_address(section.listen, f"{role}.listen")
        bound = await server.start(host, port)
        address = section.advertise or f"{host}:{bound}"
        await _serve_pages(section.metrics, role, telemetry, server, stack)
        await peers.registry.register(Member(role, member_id, address, section.weight))
        _log.info("%s serves on %s", member_id, address)
        ready(bound)
        await server.run_until_signal(
            _DRAIN_S, deregister=peers.registry.deregister, settle_s=_SETTLE_S, crashed=background.failed
        )
        if background.failed.is_set():
            raise Internal("a background task crashed, see the log; this process ends so that another one takes over")


async def _serve_pages(
    address: str, role: str, telemetry: Telemetry, server: GrpcServer, stack: AsyncExitStack
) -> None:
    if not address:
        return

    def health() -> Page:
        return Page(b"draining\n", 503) if server.draining else Page(b"ok\n")

    pages = Pages({"/metrics": lambda: Page(telemetry.render(), content_type=METRICS_CONTENT_TYPE), "/health": health})
    await pages.start(*split_address(address, f"{role}.metrics"))
    stack.push_async_callback(pages.close)


async def _build_sysdb(context: Context) -> None:
    config = context.config
    dsn = _dsn(config)
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
    log = LogService(_dsn(config), objects, SystemClock(), SystemRandom(), settings)
    await log.start()
    context.stack.push_async_callback(log.close)
    context.telemetry.total("shoal_log_records", "Records appended.", lambda: log.counters.appended_records)
    context.telemetry.total("shoal_log_groups", "Append transactions.", lambda: log.counters.groups)
    LogServicer(log).add_to(context.server.grpc_server)


async def _build_query(context: Context) -> None:
    config, peers = context.config, context.peers
    objects = await _open_objects(context)
    executor = ThreadPoolExecutor(max(4, config.querynode.threads), thread_name_prefix="shoal-query")
    context.stack.callback(executor.shutdown)
    cache = await _started_cache(context, objects)
    services = Services(peers.catalog, peers.log, objects, cache, SystemClock(), executor)
    node = Node(context.member_id, services, settings_of(NodeSettings, config.querynode))
    context.stack.push_async_callback(node.close)
    context.telemetry.total("shoal_reads", "Reads of shards.", lambda: node.counters.reads)
    context.telemetry.total("shoal_recall_checks", "Queries asked again exactly.", lambda: node.counters.recall_checks)
    context.telemetry.gauge("shoal_recall", "Recall that those got, of late.", node.observed_recall)
    context.telemetry.total(
        "shoal_snapshots_retaken", "Snapshots replaced mid-read.", lambda: node.counters.retaken_snapshots
    )
    QueryServicer(node).add_to(context.server.grpc_server)


async def _build_compactor(context: Context) -> None:
    config, peers, holder = context.config, context.peers, context.member_id
    objects = await _open_objects(context)
    cache = await _started_cache(context, objects)
    settings = settings_of(CompactorSettings, config.compactor)
    is_mine = partial(peers.is_mine, holder)
    compactor = Compactor(holder, peers.catalog, peers.log, objects, cache, SystemClock(), is_mine, settings)
    context.telemetry.total("shoal_compactions", "Flushes published.", lambda: compactor.counters.flushes)
    context.telemetry.total("shoal_merges", "Merges published.", lambda: compactor.counters.merges)
    context.background.start("compactor", compactor.run())
    sweeper = Sweeper(peers.catalog, objects, SystemClock(), is_mine, settings.garbage)
    context.telemetry.total("shoal_swept_objects", "Objects deleted as garbage.", lambda: sweeper.counters.objects)
    context.telemetry.total("shoal_swept_bytes", "Their bytes.", lambda: sweeper.counters.size_bytes)
    context.telemetry.total(
        "shoal_sweep_failures", "Collections that could not be swept.", lambda: sweeper.counters.failures
    )
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
    context.telemetry.total("shoal_function_runs", "Runs of attached functions.", lambda: runner.counters.runs)
    context.telemetry.total(
        "shoal_function_records", "Records written to their outputs.", lambda: runner.counters.records
    )
    context.telemetry.total("shoal_function_failures", "Runs that failed.", lambda: runner.counters.failures)
    context.background.start("functions", runner.run())
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
    entrance = make_entrance(config.frontend, database, peers.access, SystemClock(), SystemRandom(), limits)
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
        )
        host, port = split_address(config.frontend.http, "frontend.http")
        await context.stack.enter_async_context(serve_http(create_app(gateway), host, port))


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
    context.telemetry.total("shoal_cache_misses", "Blocks fetched from object storage.", lambda: cache.stats().misses)
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
        return S3ObjectStore(config)
    if section.path is None:
        raise InvalidArgument("name a bucket (objects.s3.bucket) or a folder (objects.path)", field="objects")
    local = await asyncio.to_thread(LocalObjectStore, section.path)
    context.stack.callback(local.close)
    return local


def _dsn(config: Config) -> str:
    dsn = config.postgres.dsn.get_secret_value()
    if not dsn:
        raise InvalidArgument(
            "give the address of Postgres, postgresql://user:password@host:port/database", field="postgres.dsn"
        )
    return dsn


def _limits(config: Config) -> Limits:
    return settings_of(Limits, config.limits)
