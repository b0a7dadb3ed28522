"""Count, errors by code and duration of every RPC of a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import grpc
import grpc.aio

from shoal_core.ports import Clock
from shoal_runtime.telemetry import Telemetry

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
# (request streams, response streams) → attribute of a handler, and what makes such a handler.
_KINDS: Mapping[tuple[bool, bool], tuple[str, Any]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class RpcMetrics(grpc.aio.ServerInterceptor):
    """Put it first, so that it sees how a call ended after all other interceptors.

    ``shoal_rpc_requests_total`` and ``shoal_rpc_duration_ms`` by method and code; ``shoal_rpc_active``: calls under way. Methods
    that nobody serves count as one, so that strangers cannot make metrics grow.
    """

    def __init__(self, telemetry: Telemetry, clock: Clock) -> None:
        self._clock = clock
        self._active = 0
        self._requests = telemetry.counter("shoal_rpc_requests", "RPCs that ended, by method and status code.")
        self._durations = telemetry.histogram("shoal_rpc_duration_ms", "Duration of RPCs, by method and status code.")
        telemetry.gauge("shoal_rpc_active", "RPCs under way.", lambda: self._active)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """See `grpc.aio.ServerInterceptor`."""
        handler = await continuation(handler_call_details)
        if handler is None:
            self._ended("unknown", grpc.StatusCode.UNIMPLEMENTED, 0.0)
            return None
        return _measured(handler, str(handler_call_details.method).lstrip("/"), self)

    @contextmanager
    def measure(self, method: str, context: Context) -> Iterator[None]:
        """Around one call."""
        began = self._clock.monotonic()
        self._active += 1
        code = grpc.StatusCode.UNKNOWN  # what gRPC answers for an exception
        try:
            yield
            code = _code_of(context)
        except (asyncio.CancelledError, GeneratorExit):
            code = grpc.StatusCode.DEADLINE_EXCEEDED if _is_late(context) else grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.AbortError:
            code = _code_of(context)
            raise
        finally:
            self._active -= 1
            self._ended(method, code, (self._clock.monotonic() - began) * 1_000)

    def _ended(self, method: str, code: grpc.StatusCode, duration_ms: float) -> None:
        labels = {"method": method, "code": code.name}
        self._requests.add(1, labels)
        self._durations.record(duration_ms, labels)


def _measured(handler: Any, method: str, metrics: RpcMetrics) -> Handler:
    """The handler with the measurement around its behaviour."""
    streams = (bool(handler.request_streaming), bool(handler.response_streaming))
    name, make = _KINDS[streams]
    wrap = _measured_stream if handler.response_streaming else _measured_unary
    behaviour = wrap(getattr(handler, name), method, metrics)
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


def _measured_unary(behaviour: Any, method: str, metrics: RpcMetrics) -> Any:
    async def call(request: Any, context: Context) -> Any:
        with metrics.measure(method, context):
            return await behaviour(request, context)

    return call


def _measured_stream(behaviour: Any, method: str, metrics: RpcMetrics) -> Any:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        with metrics.measure(method, context):
            answers = behaviour(request, context)
            if not hasattr(answers, "__aiter__"):  # a coroutine that writes to the context itself
                await answers
                return
            async for answer in answers:
                yield answer

    return call


def _is_late(context: Context) -> bool:
    remaining_s = context.time_remaining()
    return remaining_s is not None and remaining_s <= 0


def _code_of(context: Context) -> grpc.StatusCode:
    """The status of a call that ended; grpc.aio says a number, or nothing for OK."""
    code: Any = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    return _CODES.get(code or 0, grpc.StatusCode.UNKNOWN)
