"""Attached functions ↔ protobuf."""

from __future__ import annotations

from shoal_core.contracts import AttachedFunction, DueFunction, NewFunction
from shoal_wire.codec.common import decode_json, encode_json
from shoal_wire.v1 import functions_pb2 as pb


def encode_new_function(new: NewFunction) -> pb.NewFunction:
    """What a function is attached with, as a message. Raises `InvalidArgument` for parameters that are not JSON."""
    return pb.NewFunction(
        name=new.name,
        function=new.function,
        output_collection=new.output_collection,
        params_json=encode_json(new.params, "params"),
    )


def decode_new_function(message: pb.NewFunction) -> NewFunction:
    """What a function is attached with. Raises `InvalidArgument` for malformed JSON."""
    params = decode_json(message.params_json, "params_json") or {}
    return NewFunction(message.name, message.function, message.output_collection, params)


def encode_function(function: AttachedFunction) -> pb.AttachedFunction:
    """A function as a message."""
    return pb.AttachedFunction(
        id=function.id,
        name=function.name,
        function=function.function,
        tenant=function.tenant,
        database=function.database,
        database_id=function.database_id,
        input_collection_id=function.input_collection_id,
        output_collection_id=function.output_collection_id,
        output_collection=function.output_collection,
        params_json=encode_json(function.params, "params"),
        completion_offset=function.completion_offset,
        failures=function.failures,
        last_error=function.last_error,
    )


def decode_function(message: pb.AttachedFunction) -> AttachedFunction:
    """The function. Raises `InvalidArgument` for malformed JSON."""
    return AttachedFunction(
        id=message.id,
        name=message.name,
        function=message.function,
        tenant=message.tenant,
        database=message.database,
        database_id=message.database_id,
        input_collection_id=message.input_collection_id,
        output_collection_id=message.output_collection_id,
        output_collection=message.output_collection,
        params=decode_json(message.params_json, "params_json") or {},
        completion_offset=message.completion_offset,
        failures=message.failures,
        last_error=message.last_error,
    )


def encode_attached(attached: tuple[AttachedFunction, bool]) -> pb.AttachFunctionResponse:
    """What attaching came to, as a message."""
    return pb.AttachFunctionResponse(function=encode_function(attached[0]), created=attached[1])


def decode_attached(message: pb.AttachFunctionResponse) -> tuple[AttachedFunction, bool]:
    """What attaching came to."""
    return decode_function(message.function), message.created


def encode_due(due: DueFunction) -> pb.DueFunction:
    """A function that is behind, as a message."""
    return pb.DueFunction(
        function=encode_function(due.function), compacted_offset=due.compacted_offset, overdue_ms=due.overdue_ms
    )


def decode_due(message: pb.DueFunction) -> DueFunction:
    """The function that is behind."""
    return DueFunction(decode_function(message.function), message.compacted_offset, message.overdue_ms)
