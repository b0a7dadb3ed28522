"""The server side of a call: bytes to message, span, typed errors to status.

A servicer is a plain object with a coroutine for each method of a service, named in snake case: ``async def
read_index(self, request: pb.ReadIndexRequest) -> pb.Head``. It knows no gRPC context: it returns a message, or the
bytes of one that is already encoded, and raises `ShoalError`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from opentelemetry import trace

from shoal_core.errors import Internal, InvalidArgument, ShoalError
from shoal_wire import tracing
from shoal_wire.messages import sized
from shoal_wire.status import status_of

Behaviour = Callable[[Any], Awaitable[Message | bytes]]
Admit = Callable[[Iterable[tuple[str, str | bytes]], str], Awaitable[None]]
Handler = Callable[[bytes, "grpc.aio.ServicerContext[bytes, bytes]"], Awaitable[bytes]]

_log = logging.getLogger(__name__)


async def everybody(metadata: Iterable[tuple[str, str | bytes]], peer: str) -> None:
    """Admits every call."""


def add_service(
    server: grpc.aio.Server, file: FileDescriptor, service: str, servicer: object, *, admit: Admit = everybody
) -> None:
    """Register a coroutine of ``servicer`` for each method of a service.

    Args:
        file: the generated module's ``DESCRIPTOR``.
        service: the service's name in it.
        admit: called with a call's metadata and the address it comes from before its message is read; raises a `ShoalError` to
            refuse it. Context variables that it sets are seen by the call's coroutine, and by no other.

    Raises:
        AttributeError: the servicer lacks a method.
    """
    descriptor = file.services_by_name[service]
    tracer = trace.get_tracer("shoal_wire")
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        method.name: grpc.unary_unary_rpc_method_handler(
            _handler(method, getattr(servicer, method_name(method.name)), tracer, admit)
        )
        for method in descriptor.methods
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(descriptor.full_name, handlers),))


def peer_address(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """``host:port`` of who calls; gRPC says ``ipv4:host:port`` and ``ipv6:%5Bhost%5D:port``."""
    kind, _, address = (context.peer() or "").partition(":")
    return unquote(address) if kind in ("ipv4", "ipv6") else address or kind


def method_name(rpc: str) -> str:
    """The Python name of an rpc: ``ReadIndex`` → ``read_index``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", rpc).lower()


def _handler(method: MethodDescriptor, behaviour: Behaviour, tracer: trace.Tracer, admit: Admit) -> Any:
    request_type = GetMessageClass(method.input_type)
    service = method.containing_service.full_name

    async def handle(data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        with tracing.server_span(tracer, service, method.name, context.invocation_metadata()) as span:
            try:
                await admit(context.invocation_metadata() or (), peer_address(context))
                response = await behaviour(await _parse(request_type, data))
                encoded = response if isinstance(response, bytes) else response.SerializeToString()
            except ShoalError as error:
                failure = error
            except Exception:
                _log.exception("%s/%s failed", service, method.name)
                failure = Internal(f"{service}/{method.name} failed unexpectedly; the server's log has the cause")
            else:
                tracing.end_with(span, grpc.StatusCode.OK)
                return encoded
            code, details, metadata = status_of(failure)
            tracing.end_with(span, code)
        return await context.abort(code, details, metadata)

    return handle


async def _parse(request_type: type[Message], data: bytes) -> Message:
    try:
        return await sized(len(data), request_type.FromString, data)
    except DecodeError as error:
        raise InvalidArgument(f"the bytes are no {request_type.DESCRIPTOR.full_name}") from error
