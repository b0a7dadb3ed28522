"""One gRPC server of a process: limits, health, reflection, interceptors, draining."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from shoal_core.errors import InvalidArgument, Unavailable
from shoal_core.ports import Clock
from shoal_runtime.lifecycle import stop_signals

_log = logging.getLogger(__name__)

OVERALL = ""  # the health of the server as a whole, by the health protocol
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class GrpcServer:
    """A grpc.aio server. Add services to ``grpc_server``, `start`, and `drain` at the end.

    Args:
        services: full names of what will be added, such as ``shoal.v1.LogService``, for health and reflection. Descriptors of
            their protos must be loaded when reflection is asked.
        clock: for the pauses of a drain.
        options: of the server, such as `ChannelSettings.server_options`.
        interceptors: the first is the outermost.
        max_concurrent_rpcs: beyond it gRPC answers RESOURCE_EXHAUSTED by itself; None for no bound.
        credentials: for TLS; None speaks plain text.
    """

    def __init__(
        self,
        services: Sequence[str],
        clock: Clock,
        *,
        options: Sequence[tuple[str, int]] = (),
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        max_concurrent_rpcs: int | None = None,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self.grpc_server = grpc.aio.server(
            interceptors=list(interceptors),
            options=[("grpc.so_reuseport", 0), *options],  # a second process on the same port must fail, not share it
            maximum_concurrent_rpcs=max_concurrent_rpcs,
        )
        self._services = tuple(services)
        self._clock = clock
        self._credentials = credentials
        self._health = health.aio.HealthServicer()
        self._draining: asyncio.Task[None] | None = None
        self._started = False
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc_server)
        names = (*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self.grpc_server)

    @property
    def draining(self) -> bool:
        """Whether `drain` has begun."""
        return self._draining is not None

    @property
    def serving(self) -> bool:
        """What health says of the server as a whole."""
        return self._started and not self.draining

    async def start(self, host: str, port: int) -> int:
        """Listen and report healthy; the port, also when 0 was asked for. Raises `Unavailable` when it cannot be had."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if self._credentials is None:
                bound = self.grpc_server.add_insecure_port(address)
            else:
                bound = self.grpc_server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise Unavailable(
                f"cannot listen on {address}: is another process there? Choose another address"
            ) from error
        await self.grpc_server.start()
        await self._set_health(serving=True)
        self._started = True
        return bound

    async def set_serving(self, service: str, serving: bool) -> None:
        """Report one service as healthy or not; no effect once the server drains."""
        if not self.draining:
            await self._health.set(service, _SERVING if serving else _NOT_SERVING)

    async def drain(
        self, grace_s: float, *, deregister: Callable[[], Awaitable[None]] | None = None, settle_s: float = 0.0
    ) -> None:
        """Leave in order; further calls wait for the first.

        Health becomes NOT_SERVING, then ``deregister`` runs (its failure is logged), then clients have ``settle_s`` to notice, then new
        calls are refused and those under way have ``grace_s`` to end.
        """
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain(grace_s, deregister, settle_s))
        await asyncio.shield(self._draining)

    async def run_until_signal(
        self,
        grace_s: float,
        *,
        deregister: Callable[[], Awaitable[None]] | None = None,
        settle_s: float = 0.0,
        crashed: asyncio.Event | None = None,
    ) -> None:
        """Serve until SIGINT or SIGTERM, or until ``crashed`` is set, then `drain`.

        A process without its background work must not stay in the registry as if it did it.
        """
        async with stop_signals() as stop:
            events = [stop] if crashed is None else [stop, crashed]
            waiting = [asyncio.create_task(event.wait()) for event in events]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()
            await self.drain(grace_s, deregister=deregister, settle_s=settle_s)

    async def _drain(self, grace_s: float, deregister: Callable[[], Awaitable[None]] | None, settle_s: float) -> None:
        await self._set_health(serving=False)
        if deregister is not None:
            try:
                await deregister()
            except Exception:
                _log.exception("cannot deregister; the lease will expire")
        await self._clock.sleep(settle_s)
        await self.grpc_server.stop(grace_s)

    async def _set_health(self, *, serving: bool) -> None:
        for service in (OVERALL, *self._services):
            await self._health.set(service, _SERVING if serving else _NOT_SERVING)


def split_address(address: str, field: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` as host and port. Raises `InvalidArgument` naming ``field``."""
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InvalidArgument(f"must be host:port, not {address!r}", field=field)
    return host.removeprefix("[").removesuffix("]"), int(port)
