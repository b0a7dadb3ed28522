"""The gRPC server over real loopback connections: health, reflection, metrics, draining, signals, background tasks."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from shoal_core.errors import InvalidArgument, Unavailable
from shoal_runtime.lifecycle import Background, run
from shoal_runtime.pages import Page, Pages
from shoal_runtime.rpc_metrics import RpcMetrics
from shoal_runtime.server import OVERALL, GrpcServer, split_address
from shoal_runtime.system import SystemClock
from shoal_runtime.telemetry import METRICS_CONTENT_TYPE, Telemetry

SERVICE = "test.v1.Echo"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Echo:
    """Bytes in, bytes out; some requests are orders."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.release = asyncio.Event()

    async def unary(self, request: bytes, context: Any) -> bytes:
        if request == b"abort":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")
        if request == b"crash":
            raise ValueError("a defect")
        if request == b"wait":
            self.entered.set()
            await self.release.wait()
        return request

    async def stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for _ in range(3):
            yield request
        if request == b"abort":
            await context.abort(grpc.StatusCode.DATA_LOSS, "broken")

    def add_to(self, server: grpc.aio.Server) -> None:
        handlers: dict[str, Any] = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Stream": grpc.unary_stream_rpc_method_handler(self.stream),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


@asynccontextmanager
async def serving(
    echo: Echo, telemetry: Telemetry | None = None, options: tuple[tuple[str, int], ...] = ()
) -> AsyncIterator[tuple[GrpcServer, grpc.aio.Channel]]:
    interceptors = [RpcMetrics(telemetry, SystemClock())] if telemetry else []
    server = GrpcServer([SERVICE], SystemClock(), interceptors=interceptors, options=options)
    echo.add_to(server.grpc_server)
    port = await server.start("127.0.0.1", 0)
    assert port > 0
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield server, channel
    echo.release.set()
    await server.drain(1)


async def call(channel: grpc.aio.Channel, request: bytes, **options: Any) -> bytes:
    method: Any = channel.unary_unary(f"/{SERVICE}/Unary")
    answer: bytes = await method(request, **options)
    return answer


async def health_of(channel: grpc.aio.Channel, service: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    return int(answer.status)


async def test_health_of_the_server_and_of_each_service() -> None:
    async with serving(Echo()) as (server, channel):
        assert await health_of(channel, OVERALL) == SERVING
        assert await health_of(channel, SERVICE) == SERVING
        await server.set_serving(SERVICE, False)
        assert await health_of(channel, OVERALL) == SERVING
        assert await health_of(channel, SERVICE) == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
            await health_of(channel, "test.v1.Nothing")


async def test_reflection_lists_the_services() -> None:
    async with serving(Echo()) as (_, channel):
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]  # takes an aio channel too
        stream = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        answers = [answer async for answer in stream]
        names = {service.name for service in answers[0].list_services_response.service}
    assert names == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def test_messages_beyond_the_limit_are_refused() -> None:
    async with serving(Echo(), options=(("grpc.max_receive_message_length", 1000),)) as (_, channel):
        assert await call(channel, b"x" * 900) == b"x" * 900
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, b"x" * 1100)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_taken_port_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = GrpcServer([], SystemClock())
        with pytest.raises(Unavailable, match="cannot listen"):
            await server.start("127.0.0.1", port)
        await server.drain(0)
        with pytest.raises(Unavailable, match="cannot listen"):
            await Pages({}).start("127.0.0.1", port)


async def fetch(port: int, path: str, method: str = "GET") -> tuple[str, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *headers = head.decode().split("\r\n")
    return status, dict(header.split(": ", 1) for header in headers), body


async def test_metrics_of_rpcs_by_scrape(caplog: pytest.LogCaptureFixture) -> None:
    telemetry = Telemetry("test")
    pages = Pages({"/metrics": lambda: Page(telemetry.render(), content_type=METRICS_CONTENT_TYPE)})
    page_port = await pages.start("127.0.0.1", 0)
    async with serving(echo := Echo(), telemetry) as (_, channel):
        assert await call(channel, b"hello") == b"hello"
        for request in (b"abort", b"crash"):
            with pytest.raises(grpc.aio.AioRpcError):
                await call(channel, request)
        streamed: Any = channel.unary_stream(f"/{SERVICE}/Stream")
        assert [part async for part in streamed(b"part")] == [b"part"] * 3
        with pytest.raises(grpc.aio.AioRpcError, match="broken"):
            _ = [part async for part in streamed(b"abort")]
        unknown: Any = channel.unary_unary("/test.v1.Echo/Guess")
        with pytest.raises(grpc.aio.AioRpcError, match="UNIMPLEMENTED"):
            await unknown(b"")
        waiting = asyncio.create_task(call(channel, b"wait"))
        await asyncio.wait_for(echo.entered.wait(), 5)
        status, headers, body = await fetch(page_port, "/metrics")
        echo.release.set()
        await waiting
    assert status == "HTTP/1.1 200 OK"
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    lines = body.decode().splitlines()
    for method, code in (
        ("Unary", "OK"),
        ("Unary", "NOT_FOUND"),
        ("Unary", "UNKNOWN"),
        ("Stream", "OK"),
        ("Stream", "DATA_LOSS"),
    ):
        assert f'shoal_rpc_requests_total{{code="{code}",method="test.v1.Echo/{method}"}} 1.0' in lines
        assert f'shoal_rpc_duration_ms_count{{code="{code}",method="test.v1.Echo/{method}"}} 1.0' in lines
    assert 'shoal_rpc_requests_total{code="UNIMPLEMENTED",method="unknown"} 1.0' in lines
    assert "shoal_rpc_active 1.0" in lines
    await pages.close()
    telemetry.close()


async def test_calls_that_ran_out_of_time_are_counted_as_such() -> None:
    telemetry = Telemetry("test")
    async with serving(Echo(), telemetry) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError, match="DEADLINE_EXCEEDED"):
            await call(channel, b"wait", timeout=0.05)
        expected = 'shoal_rpc_requests_total{code="DEADLINE_EXCEEDED",method="test.v1.Echo/Unary"} 1.0'
        async with asyncio.timeout(5):
            while expected not in telemetry.render().decode().splitlines():
                await asyncio.sleep(0.01)
    telemetry.close()


async def test_pages() -> None:
    def broken() -> Page:
        raise ValueError("a defect")

    pages = Pages({"/": lambda: Page(b"hello"), "/broken": broken})
    port = await pages.start("127.0.0.1", 0)
    assert (await fetch(port, "/"))[2] == b"hello"
    assert (await fetch(port, "/?verbose=1"))[2] == b"hello"
    status, headers, body = await fetch(port, "/", "HEAD")
    assert (status, headers["Content-Length"], body) == ("HTTP/1.1 200 OK", "5", b"")
    assert (await fetch(port, "/none"))[0] == "HTTP/1.1 404 Not Found"
    assert (await fetch(port, "/", "POST"))[0] == "HTTP/1.1 405 Method Not Allowed"
    assert (await fetch(port, "/broken"))[0] == "HTTP/1.1 500 Internal Server Error"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"x" * 100_000)
    assert await reader.read() == b""  # too long for a request: dropped
    writer.close()
    _, idle = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.wait_for(pages.close(), 5)
    idle.close()


async def test_drain_goes_in_order_and_lets_calls_end() -> None:
    echo, seen = Echo(), []
    async with serving(echo) as (server, channel):
        waiting = asyncio.create_task(call(channel, b"wait"))
        await asyncio.wait_for(echo.entered.wait(), 5)

        async def deregister() -> None:
            seen.append(await health_of(channel, OVERALL))
            echo.release.set()

        await asyncio.gather(*(server.drain(5, deregister=deregister) for _ in range(2)))
        assert await waiting == b"wait"
        assert server.draining
        assert seen == [NOT_SERVING]
        await server.set_serving(SERVICE, True)  # too late, and no error
        with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
            await call(channel, b"late")


async def test_a_failing_deregistration_does_not_stop_a_drain(caplog: pytest.LogCaptureFixture) -> None:
    async def deregister() -> None:
        raise Unavailable("etcd is gone")

    async with serving(Echo()) as (server, channel):
        await server.drain(1, deregister=deregister)
        with pytest.raises(grpc.aio.AioRpcError):
            await call(channel, b"late")
    assert "cannot deregister" in caplog.text


async def test_calls_that_outlast_the_grace_are_cancelled() -> None:
    async with serving(echo := Echo()) as (server, channel):
        waiting = asyncio.create_task(call(channel, b"wait"))
        await asyncio.wait_for(echo.entered.wait(), 5)
        await server.drain(0.05)
        with pytest.raises(grpc.aio.AioRpcError):
            await waiting


async def test_a_crash_in_the_background_drains_like_a_signal() -> None:
    async with serving(Echo()) as (server, channel):
        crashed = asyncio.Event()
        running = asyncio.create_task(server.run_until_signal(1, crashed=crashed))
        assert await call(channel, b"still here") == b"still here"
        crashed.set()
        await asyncio.wait_for(running, 5)
        assert server.draining


PROGRAM = """
import asyncio, sys
from shoal_runtime.lifecycle import run
from shoal_runtime.server import GrpcServer
from shoal_runtime.system import SystemClock

async def main():
    server = GrpcServer([], SystemClock())
    await server.start("127.0.0.1", 0)
    async def deregister():
        print("deregistered", type(asyncio.get_running_loop()).__module__, flush=True)
        if sys.argv[1] == "hang":
            await asyncio.Event().wait()
    # Runs once the next line waits, so the signal handlers are in place.
    asyncio.get_running_loop().call_soon(lambda: print("ready", flush=True))
    await server.run_until_signal(1, deregister=deregister)
    print("drained", flush=True)

run(main)
"""


def start_program(mode: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, mode], stdout=subprocess.PIPE, env=environment, text=True
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    return program


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains(number: signal.Signals) -> None:
    with start_program("normal") as program:
        program.send_signal(number)
        out, _ = program.communicate(timeout=20)
        assert out.splitlines() == ["deregistered uvloop", "drained"]
        assert program.returncode == 0


@pytest.mark.integration
def test_a_second_signal_ends_at_once() -> None:
    with start_program("hang") as program:
        program.send_signal(signal.SIGTERM)
        assert program.stdout is not None
        assert program.stdout.readline() == "deregistered uvloop\n"
        program.send_signal(signal.SIGTERM)
        assert program.wait(timeout=20) == -signal.SIGTERM


def test_run_returns_what_main_returns() -> None:
    async def main() -> int:
        return 7

    assert run(main) == 7


async def test_background_tasks_that_crash_are_seen(caplog: pytest.LogCaptureFixture) -> None:
    async def crash() -> None:
        raise ValueError("a defect")

    async def last() -> None:
        await asyncio.Event().wait()

    with caplog.at_level(logging.CRITICAL):
        async with Background() as background:
            lasting = background.start("lasting", last())
            background.start("crashing", crash())
            await asyncio.wait_for(background.failed.wait(), 5)
            assert [(name, str(error)) for name, error in background.crashes()] == [("crashing", "a defect")]
            assert not lasting.done()
    assert lasting.cancelled()
    assert "background task crashing crashed" in caplog.text


@pytest.mark.parametrize(
    ("address", "parts"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:0", ("::1", 0)), ("host:65535", ("host", 65535))],
)
def test_split_address(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address, "listen") == parts


@pytest.mark.parametrize("address", ["", "host", ":80", "host:", "host:x", "host:65536", "host:-1"])
def test_split_address_refuses(address: str) -> None:
    with pytest.raises(InvalidArgument, match="listen"):
        split_address(address, "listen")
