"""Calls over a real server on loopback: errors, deadlines, lost connections, malformed bytes, traces."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pyarrow as pa
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shoal_core import errors
from shoal_core.contracts import AppendRequest
from shoal_core.errors import ShoalError, error_types
from shoal_core.limits import Limits
from shoal_wire.clients import LogClient
from shoal_wire.messages import message_options
from shoal_wire.rpc import Rpc
from shoal_wire.server import add_service, method_name
from shoal_wire.status import error_from_rpc
from shoal_wire.v1 import log_pb2 as pb

pytestmark = pytest.mark.integration

APPEND = AppendRequest("c", 1, "t", pa.py_buffer(b"payload"))
SERVICE = "shoal.v1.LogService"


class Servicer:
    """A log whose every method does what the test says."""

    def __init__(self, behaviour: Callable[[], Awaitable[pb.Head | pb.AppendResponse | bytes]]) -> None:
        self._behaviour = behaviour

    async def append(self, request: pb.AppendRequest) -> pb.Head | pb.AppendResponse | bytes:
        return await self._behaviour()

    async def read_index(self, request: pb.ReadIndexRequest) -> pb.Head | pb.AppendResponse | bytes:
        return await self._behaviour()

    async def read_tail(self, request: pb.ReadTailRequest) -> pb.Head | pb.AppendResponse | bytes:
        return await self._behaviour()


@asynccontextmanager
async def serving(
    behaviour: Callable[[], Awaitable[pb.Head | pb.AppendResponse | bytes]], limits: Limits | None = None
) -> AsyncIterator[tuple[grpc.aio.Channel, grpc.aio.Server]]:
    server = grpc.aio.server(options=message_options(limits))
    add_service(server, pb.DESCRIPTOR, "LogService", Servicer(behaviour))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=message_options())
    try:
        yield channel, server
    finally:
        await channel.close()
        await server.stop(None)


async def _failure(call: Awaitable[object]) -> ShoalError:
    with pytest.raises(ShoalError) as caught:
        await call
    return caught.value


async def test_every_error_arrives_as_it_was_raised() -> None:
    raised: list[ShoalError] = []

    async def fail() -> bytes:
        raise raised[-1]

    async with serving(fail) as (channel, _):
        client = LogClient(channel)
        for cls in error_types().values():
            raised.append(cls("schön\nand long " + "x" * 500, field="where.$and[0]", retry_after_ms=7))
            for call in (client.read_index("c", 1), client.append(APPEND)):
                found = await _failure(call)
                assert type(found) is cls
                assert (found.message, found.field) == (raised[-1].message, "where.$and[0]")
                assert found.retry_after_ms == 7


async def test_the_longest_message_fits_into_a_status() -> None:
    async def fail() -> bytes:
        raise errors.InvalidArgument("😀" * 100_000, field="😀" * 100_000)

    async with serving(fail) as (channel, _):
        found = await _failure(LogClient(channel).read_index("c", 1))
        assert type(found) is errors.InvalidArgument
        assert found.message.startswith("😀" * 100)


async def test_a_sync_call_raises_the_same_error() -> None:
    async def fail() -> bytes:
        raise errors.Fenced("newer epoch", field="lease")

    def failure(target: str) -> ShoalError:
        with grpc.insecure_channel(target) as channel:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/ReadIndex")
            with pytest.raises(grpc.RpcError) as caught:
                call(b"")
        return error_from_rpc(caught.value, write=False)

    server = grpc.aio.server()
    add_service(server, pb.DESCRIPTOR, "LogService", Servicer(fail))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        found = await asyncio.to_thread(failure, f"127.0.0.1:{port}")
    finally:
        await server.stop(None)
    assert type(found) is errors.Fenced
    assert (found.message, found.field) == ("newer epoch", "lease")


async def test_an_unexpected_exception_is_internal_and_tells_only_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> bytes:
        raise KeyError("secret")

    async with serving(fail) as (channel, _):
        with caplog.at_level(logging.ERROR):
            found = await _failure(LogClient(channel).read_index("c", 1))
    assert type(found) is errors.Internal
    assert "secret" not in str(found)
    assert "KeyError: 'secret'" in caplog.text


async def test_malformed_bytes_are_an_invalid_argument() -> None:
    async def answer() -> bytes:
        raise AssertionError("not reached")

    async with serving(answer) as (channel, _):
        for data in (b"\xff\xff\xff", b"\x0a\x02\xc3\x28", b"\x0a\x7f"):  # no field, not UTF-8, cut short
            found = await _failure(Rpc(SERVICE, channel, 5000).send("Append", data, write=True))
            assert type(found) is errors.InvalidArgument
            assert "shoal.v1.AppendRequest" in found.message


async def test_an_answer_that_cannot_be_read_is_corrupt() -> None:
    async def answer() -> bytes:
        return b"\xff\xff"

    async with serving(answer) as (channel, _):
        assert type(await _failure(LogClient(channel).read_index("c", 1))) is errors.Corrupt


async def test_an_unknown_method_is_unimplemented() -> None:
    async def answer() -> bytes:
        return b""

    async with serving(answer) as (channel, _):
        assert type(await _failure(Rpc(SERVICE, channel, 5000).send("Rewind", b""))) is errors.Unimplemented


async def test_a_passed_deadline_cancels_the_handler_and_is_ambiguous_for_writes() -> None:
    cancelled: list[bool] = []

    async def hang() -> bytes:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return b""

    async with serving(hang) as (channel, _):
        client = LogClient(channel, timeout_ms=60_000).with_timeout(50)
        assert type(await _failure(client.read_index("c", 1))) is errors.DeadlineExceeded
        assert type(await _failure(client.append(APPEND))) is errors.OutcomeUnknown
        async with asyncio.timeout(5):
            while len(cancelled) < 2:
                await asyncio.sleep(0.005)


@pytest.mark.parametrize("how", ["close the channel", "stop the server"])
async def test_a_connection_lost_during_a_call_is_ambiguous_for_writes(how: str) -> None:
    reached = asyncio.Semaphore(0)

    async def hang() -> bytes:
        reached.release()
        await asyncio.Event().wait()
        return b""

    async with serving(hang) as (channel, server):
        client = LogClient(channel)
        read = asyncio.create_task(_failure(client.read_index("c", 1)))
        write = asyncio.create_task(_failure(client.append(APPEND)))
        for _ in range(2):
            await asyncio.wait_for(reached.acquire(), 5)
        await (channel.close() if how == "close the channel" else server.stop(None))
        assert type(await asyncio.wait_for(read, 5)) is errors.Unavailable
        assert type(await asyncio.wait_for(write, 5)) is errors.OutcomeUnknown


async def test_a_cancelled_caller_is_cancelled() -> None:
    reached = asyncio.Event()

    async def hang() -> bytes:
        reached.set()
        await asyncio.Event().wait()
        return b""

    async with serving(hang) as (channel, _):
        task = asyncio.create_task(LogClient(channel).append(APPEND))
        await asyncio.wait_for(reached.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_nothing_sent_is_unavailable_even_for_writes() -> None:
    async def answer() -> bytes:
        return b""

    async with serving(answer) as (channel, server):
        await server.stop(None)
        assert type(await _failure(LogClient(channel).append(APPEND))) is errors.Unavailable
        await channel.close()
        assert type(await _failure(LogClient(channel).append(APPEND))) is errors.Unavailable

    def no_member() -> grpc.aio.Channel:
        raise errors.Unavailable("no log node")

    assert (await _failure(LogClient(no_member).append(APPEND))).message == "no log node"


async def test_too_large_a_message_is_an_invalid_argument() -> None:
    async def answer() -> bytes:
        return b""

    large = AppendRequest("c", 1, "t", pa.py_buffer(bytes(3 << 20)))
    async with serving(answer, Limits(message_size_bytes=2 << 20)) as (channel, _):
        assert type(await _failure(LogClient(channel).append(large))) is errors.InvalidArgument
    async with serving(answer) as (channel, _):
        assert (await LogClient(channel).append(large)).first_offset == 0


async def test_values_that_do_not_fit_are_invalid_arguments() -> None:
    client = LogClient(grpc.aio.insecure_channel("127.0.0.1:1"))
    assert type(await _failure(client.read_index("\ud800", 1))) is errors.InvalidArgument
    assert type(await _failure(client.read_index("c", -1))) is errors.InvalidArgument


async def test_the_trace_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    seen: list[trace.SpanContext] = []

    async def answer() -> bytes:
        seen.append(trace.get_current_span().get_span_context())
        if len(seen) == 3:
            raise errors.Unavailable("x")
        return b""

    async with serving(answer) as (channel, _):
        client = LogClient(channel)
        with provider.get_tracer("test").start_as_current_span("caller") as caller:
            await client.read_index("c", 1)
        await client.read_index("c", 1)
        await _failure(client.read_index("c", 1))
    spans = [span for span in exporter.get_finished_spans() if span.kind is trace.SpanKind.SERVER]
    assert [span.name for span in spans] == [f"{SERVICE}/ReadIndex"] * 3
    context = caller.get_span_context()
    (attempt,) = [span for span in exporter.get_finished_spans() if span.kind is trace.SpanKind.CLIENT]
    assert attempt.name == f"{SERVICE}/ReadIndex"
    assert attempt.parent == context
    assert spans[0].parent is not None
    assert (spans[0].parent.trace_id, spans[0].parent.span_id) == (context.trace_id, attempt.context.span_id)
    assert seen[0].trace_id == context.trace_id
    assert spans[1].parent is None
    assert spans[1].context.trace_id != context.trace_id
    assert spans[2].status.status_code is trace.StatusCode.ERROR
    codes = [(span.attributes or {})["rpc.grpc.status_code"] for span in spans]
    assert codes == [0, 0, 14]


async def test_a_malformed_trace_header_does_no_harm() -> None:
    async def answer() -> bytes:
        return pb.Head(epoch=3).SerializeToString()

    async with serving(answer) as (channel, _):
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/ReadIndex")
        data = await call(b"", metadata=(("traceparent", "00-zz"), ("tracestate", "=,=")))
        assert pb.Head.FromString(data).epoch == 3


async def test_a_servicer_that_lacks_a_method_is_refused_at_once() -> None:
    with pytest.raises(AttributeError, match="append"):
        add_service(grpc.aio.server(), pb.DESCRIPTOR, "LogService", object())
    assert method_name("IndexingStatus") == "indexing_status"
