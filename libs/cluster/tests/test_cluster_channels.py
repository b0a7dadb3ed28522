"""The channel pool against gRPC servers in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from shoal_cluster.channels import ChannelPool, ChannelSettings
from shoal_core.errors import Unavailable
from shoal_core.ports import Member, MembershipView
from shoal_testing.virtual_clock import VirtualClock

pytestmark = pytest.mark.integration


class EchoServer:
    """Echoes bytes; a request ``wait`` is held until `release`."""

    def __init__(self, settings: ChannelSettings) -> None:
        self.entered, self.release = asyncio.Event(), asyncio.Event()
        self.server = grpc.aio.server(options=settings.server_options())
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(self._echo)
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", {"Echo": handler}),))
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    async def _echo(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        if request == b"wait":
            self.entered.set()
            await self.release.wait()
        return request


@pytest.fixture
async def echo() -> AsyncIterator[EchoServer]:
    server = EchoServer(ChannelSettings())
    await server.server.start()
    yield server
    server.release.set()
    await server.server.stop(None)


async def call(pool: ChannelPool, address: str, payload: bytes = b"x") -> bytes:
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = pool.get(address).unary_unary("/test.Echo/Echo")
    return await method(payload, timeout=10)


def view(*addresses: str) -> MembershipView:
    return MembershipView(1, {"querynode": tuple(Member("querynode", a, a) for a in addresses)})


async def test_one_channel_per_address(echo: EchoServer) -> None:
    pool = ChannelPool(clock=VirtualClock())
    assert pool.addresses() == frozenset()
    assert await call(pool, echo.address) == b"x"
    assert pool.get(echo.address) is pool.get(echo.address)
    assert pool.get("127.0.0.1:1") is not pool.get(echo.address)
    assert pool.addresses() == {echo.address, "127.0.0.1:1"}
    await pool.close()


async def test_messages_of_the_limit_pass_and_bigger_ones_do_not(echo: EchoServer) -> None:
    pool = ChannelPool(ChannelSettings(max_message_bytes=8 << 20), clock=VirtualClock())
    big = bytes(8 << 20)
    assert len(await call(pool, echo.address, big)) == len(big)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(pool, echo.address, big + b"x")
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    await pool.close()


async def test_a_member_that_left_loses_its_channel_after_the_grace_time(echo: EchoServer) -> None:
    clock = VirtualClock()
    pool = ChannelPool(clock=clock, close_grace_ms=30_000)
    before = pool.get(echo.address)
    running = asyncio.ensure_future(call(pool, echo.address, b"wait"))
    await echo.entered.wait()
    pool.follow(view(echo.address))
    assert pool.get(echo.address) is before
    pool.follow(view("127.0.0.1:1"))
    assert pool.addresses() == frozenset()
    await clock.advance(29)
    echo.release.set()
    assert await running == b"wait"
    assert before.get_state() != grpc.ChannelConnectivity.SHUTDOWN
    await clock.advance(1)
    assert before.get_state() == grpc.ChannelConnectivity.SHUTDOWN
    assert await call(pool, echo.address) == b"x", "it may come back"
    await pool.close()


async def test_an_address_that_passes_to_another_role_gets_a_channel_of_its_own(echo: EchoServer) -> None:
    """Its certificate has another name."""
    pool = ChannelPool(clock=VirtualClock())
    assert pool.get(echo.address, "sysdb") is not pool.get(echo.address, "querynode")
    assert pool.get(echo.address, "sysdb") is pool.get(echo.address, "sysdb")
    pool.retain({echo.address})
    assert pool.addresses() == {echo.address}
    await pool.close()


async def test_close_cancels_what_runs_and_ends_the_pool(echo: EchoServer) -> None:
    pool = ChannelPool(clock=VirtualClock())
    leaving = asyncio.ensure_future(call(pool, echo.address, b"wait"))
    await echo.entered.wait()
    pool.retain(())
    echo.entered.clear()
    running = asyncio.ensure_future(call(pool, echo.address, b"wait"))
    await echo.entered.wait()
    async with asyncio.timeout(5):
        await pool.close()
        await asyncio.wait([running, leaving])
    assert all(call.cancelled() or call.exception() is not None for call in (running, leaving))
    with pytest.raises(Unavailable, match="shutting down"):
        pool.get(echo.address)
    await pool.close()
