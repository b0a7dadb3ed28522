"""The wire of a release after this one, made up: every message, enum and service of ours with something more."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from shoal_wire.v1 import (
    access_pb2,
    catalog_pb2,
    compactor_pb2,
    functions_pb2,
    log_pb2,
    query_pb2,
    shoal_pb2,
    types_pb2,
)

LATER = "later"
MODULES: tuple[ModuleType, ...] = (
    types_pb2,
    access_pb2,
    catalog_pb2,
    compactor_pb2,
    functions_pb2,
    log_pb2,
    query_pb2,
    shoal_pb2,
)


class LaterRelease:
    """Its messages in a pool of their own, so that nothing here knows the new parts."""

    def __init__(self) -> None:
        self.pool = DescriptorPool()
        waiting = {module.DESCRIPTOR.name: module.DESCRIPTOR for module in MODULES}
        while waiting:
            ready = [name for name, file in waiting.items() if not any(d.name in waiting for d in file.dependencies)]
            for name in ready:
                copied = FileDescriptorProto()
                waiting.pop(name).CopyToProto(copied)
                _grow(copied)
                self.pool.Add(copied)

    def message(self, name: str) -> type[Message]:
        """The class of a message, such as ``Head``."""
        return GetMessageClass(self.pool.FindMessageTypeByName(f"shoal.v1.{name}"))

    def grown(self, name: str, data: bytes) -> bytes:
        """The bytes of a message as this release would send them: with its new fields set, at every depth."""
        message = self.message(name).FromString(data)
        for each in list(_every_message(message)):
            setattr(each, LATER, "more")
            each.laters.extend([1.5, 2.5])
        return message.SerializeToString()


def _grow(file: FileDescriptorProto) -> None:
    for message in file.message_type:
        _grow_message(message)
    for enum in file.enum_type:
        enum.value.add(name=f"{enum.name.upper()}_LATER", number=99)
    for service in file.service:
        method = service.method[0]
        service.method.add(name="Later", input_type=method.input_type, output_type=method.output_type)


def _grow_message(message: DescriptorProto) -> None:
    for nested in message.nested_type:
        if not nested.options.map_entry:
            _grow_message(nested)
    message.field.add(
        name=LATER, number=900, type=FieldDescriptorProto.TYPE_STRING, label=FieldDescriptorProto.LABEL_OPTIONAL
    )
    message.field.add(
        name="laters", number=901, type=FieldDescriptorProto.TYPE_DOUBLE, label=FieldDescriptorProto.LABEL_REPEATED
    )
    optional = {field.oneof_index for field in message.field if field.proto3_optional}
    for number in sorted(set(range(len(message.oneof_decl))) - optional):
        message.field.add(
            name=f"later_{number}",
            number=910 + number,
            type=FieldDescriptorProto.TYPE_STRING,
            label=FieldDescriptorProto.LABEL_OPTIONAL,
            oneof_index=number,
        )


def _every_message(message: Message) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for part in value if hasattr(value, "append") or hasattr(value, "add") else [value]:
            yield from _every_message(part)


class LaterProxy(grpc.GenericRpcHandler):
    """Between a client and a server of this release: to the client it is a server of the later one, to the server a client of it."""

    def __init__(self, release: LaterRelease, channel: grpc.aio.Channel) -> None:
        self._release = release
        self._channel = channel
        self.calls: list[str] = []

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """A handler for any method."""
        path = details.method
        service, name = path.strip("/").split("/")
        method = self._release.pool.FindServiceByName(service).FindMethodByName(name)

        async def forward(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            self.calls.append(name)
            grown = self._release.grown(method.input_type.name, request)
            try:
                call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(path)
                answer = await call(grown, metadata=context.invocation_metadata())
            except grpc.aio.AioRpcError as error:
                return await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata()))
            return self._release.grown(method.output_type.name, answer)

        return grpc.unary_unary_rpc_method_handler(forward)
