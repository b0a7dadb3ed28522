"""Unary calls of one service: deadline, trace context, typed errors, and raw bytes for whoever wants no parsing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from shoal_core.errors import Corrupt, InvalidArgument, OutcomeUnknown, ShoalError, Unavailable
from shoal_wire.messages import sized
from shoal_wire.status import error_from_rpc
from shoal_wire.tracing import client_span, end_with, trace_metadata

ChannelSource = grpc.aio.Channel | Callable[[], grpc.aio.Channel]
DEFAULT_TIMEOUT_MS = 10_000
AUTHORIZATION = "authorization"

_T = TypeVar("_T")
_M = TypeVar("_M", bound=Message)


class Rpc:
    """Calls the methods of a service.

    Args:
        service: full name, such as ``shoal.v1.LogService``.
        channel: a channel, or what returns the channel to use, asked at each call; it may raise a `ShoalError`.
        timeout_ms: becomes the deadline of each call; None for no deadline.
        token: says who calls, in the metadata ``authorization``; empty for nobody in particular.
    """

    def __init__(self, service: str, channel: ChannelSource, timeout_ms: int | None, *, token: str = "") -> None:
        self._service = service
        self._channel = channel
        self._timeout_ms = timeout_ms
        self._token = token

    def with_timeout(self, timeout_ms: int | None) -> Rpc:
        """The same calls with another timeout."""
        return Rpc(self._service, self._channel, timeout_ms, token=self._token)

    async def call(
        self,
        method: str,
        encode: Callable[[], Message],
        decode: Callable[[bytes], _T],
        *,
        write: bool = False,
        size_bytes: int = 0,
    ) -> _T:
        """Call ``method``.

        Args:
            encode: makes the request.
            decode: reads the bytes of the response.
            write: see `error_from_rpc`.
            size_bytes: about the size of the request; a large one is encoded in a thread.

        Raises:
            InvalidArgument: a value does not fit into the request (a negative limit, a lone surrogate).
            Corrupt: the response cannot be read.
            ShoalError: what the service raised, or what became of the connection.
        """
        response = await self.send(method, await sized(size_bytes, _serialise, encode), write=write)
        try:
            return await sized(len(response), decode, response)
        except (DecodeError, InvalidArgument) as error:
            raise Corrupt(f"the answer of {self._service}/{method} cannot be read: {error}") from error

    async def send(self, method: str, request: bytes, *, write: bool = False) -> bytes:
        """Call ``method`` with the bytes of a request; the bytes of the response."""
        with client_span(self._service, method) as span:
            try:
                return await self._sent(method, request)
            except grpc.aio.AioRpcError as error:
                end_with(span, error.code())
                raise error_from_rpc(error, write=write) from error
            except grpc.aio.UsageError as error:  # the channel was closed before the call
                raise Unavailable(f"no connection to {self._service}: {error}") from error
            except asyncio.CancelledError as error:
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise
                raise self._closed(write) from error

    async def _sent(self, method: str, request: bytes) -> bytes:
        channel = self._channel() if callable(self._channel) else self._channel
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{self._service}/{method}")
        timeout = None if self._timeout_ms is None else self._timeout_ms / 1000
        return await call(request, timeout=timeout, metadata=self._metadata())

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        authorization = ((AUTHORIZATION, f"Bearer {self._token}"),) if self._token else ()
        return (*trace_metadata(), *authorization)

    def _closed(self, write: bool) -> ShoalError:
        """Nobody cancelled this task, so the channel was closed under the call."""
        if write:
            return OutcomeUnknown(
                "the connection was closed during a write; send it again with the same idempotency key"
            )
        return Unavailable(f"the connection to {self._service} was closed during a call")


def parsed(message: type[_M], decode: Callable[[_M], _T]) -> Callable[[bytes], _T]:
    """``decode`` after parsing, for the ``decode`` of `Rpc.call`."""
    return lambda data: decode(message.FromString(data))


def _serialise(encode: Callable[[], Message]) -> bytes:
    try:
        return encode().SerializeToString()
    except (ValueError, DecodeError) as error:  # protobuf parses what it copies, and refuses what is nested too deep
        raise InvalidArgument(f"a value does not fit into the request: {error}") from error
