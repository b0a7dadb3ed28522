"""Routes of attached functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from shoal_core.contracts import AttachedFunction, NewFunction
from shoal_core.errors import AlreadyExists, InvalidArgument, NotFound
from shoal_frontend.http_api.bodies import json_response, parsed
from shoal_frontend.http_api.body_error import flag_of, member, text_of
from shoal_frontend.http_api.errors import reworded
from shoal_frontend.http_api.gateway import COLLECTION, Gateway, Route, ref_by_id

_ONE_INPUT = "multiple input collections are only supported for async attached functions"
_NO_PARAMS = "params must be empty - no functions currently accept parameters"


@dataclass(frozen=True, slots=True)
class FunctionRoutes:
    """Functions that follow a collection, which its id names."""

    gateway: Gateway

    def routes(self) -> Sequence[Route]:
        """All of them."""
        attached = f"{COLLECTION}/attached_functions/{{name}}"
        return (
            Route("POST", f"{COLLECTION}/functions/attach", self.attach_function),
            Route("GET", f"{COLLECTION}/functions/{{name}}", self.get_function),
            Route("POST", f"{attached}/add_input", self.add_input),
            Route("POST", f"{attached}/detach", self.detach_function),
        )

    async def attach_function(self, request: Request) -> Response:
        """``{name, function_id, output_collection, params}``."""
        ref = ref_by_id(request)
        new = await parsed(request, _new_function)
        api = self.gateway.api_of(request)
        with reworded(NotFound, f"Input collection [{ref.id}] does not exist"):
            await api.get_collection(ref)
        with _unprefixed():
            found, created = await api.attach_function(ref, new)
        rendered = {"id": found.id, "name": found.name, "function_name": found.function}
        return json_response({"attached_function": rendered, "created": created})

    async def get_function(self, request: Request) -> Response:
        """With how far it has come, and why its last run failed if it did."""
        with _unprefixed():
            found = await self.gateway.api_of(request).get_function(ref_by_id(request), request.path_params["name"])
        return json_response({"attached_function": _rendered(found)})

    async def add_input(self, request: Request) -> Response:
        """``{input_collection_id}``. Only functions of a kind that there is none of here may have several inputs."""
        ref = ref_by_id(request)
        await parsed(request, lambda body: text_of(member(body, "input_collection_id", ""), "input_collection_id"))
        with _unprefixed():
            await self.gateway.api_of(request).get_function(ref, request.path_params["name"])
        raise InvalidArgument(_ONE_INPUT)

    async def detach_function(self, request: Request) -> Response:
        """``{delete_output}``."""
        ref = ref_by_id(request)
        delete_output = await parsed(request, lambda body: flag_of(body.get("delete_output", False), "delete_output"))
        with _unprefixed():
            await self.gateway.api_of(request).detach_function(
                ref, request.path_params["name"], delete_output=delete_output
            )
        return json_response({"success": True})


@contextmanager
def _unprefixed() -> Iterator[None]:
    """What is there already or is not has the words that clients know, and no field before them."""
    try:
        yield
    except (AlreadyExists, NotFound) as error:
        raise type(error)(error.message) from error


def _new_function(body: Mapping[str, Any]) -> NewFunction:
    name, function, output = (
        text_of(member(body, field, ""), field) for field in ("name", "function_id", "output_collection")
    )
    if body.get("params") not in (None, {}):
        raise InvalidArgument(_NO_PARAMS)
    return NewFunction(name, function, output)


def _rendered(function: AttachedFunction) -> dict[str, Any]:
    """Those of the reference system, and what became of the last run. It is invoked for a single record already."""
    return {
        "id": function.id,
        "name": function.name,
        "function_name": function.function,
        "input_collection_id": function.input_collection_id,
        "output_collection": function.output_collection,
        "output_collection_id": function.output_collection_id,
        "params": dict(function.params),
        "tenant_id": function.tenant,
        "database_id": function.database_id,
        "completion_offset": function.completion_offset,
        "min_records_for_invocation": 1,
        "failures": function.failures,
        "last_error": function.last_error,
    }
