"""The bodies that routes take, as JSON schemas: plain data, beside the parsers that read them by hand.

A body that its schema does not allow is refused. One that it allows is of the right types: it is never answered with 422, though a
value in it may be wrong for reasons that a schema cannot say, such as lists of different lengths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal_frontend.http_api.body_schemas import SCHEMAS, WITH_TEXTS
from shoal_frontend.http_api.gateway import API, COLLECTION, DATABASE

Json = Mapping[str, Any]

_TENANTS = f"{API}/tenants"
_BODIES: Mapping[str, str] = {
    f"POST {_TENANTS}": "NewTenant",
    f"PATCH {_TENANTS}/{{tenant}}": "TenantChange",
    f"POST {_TENANTS}/{{tenant}}/databases": "NewDatabase",
    f"POST {DATABASE}/collections": "NewCollection",
    f"PUT {COLLECTION}": "CollectionChange",
    f"POST {COLLECTION}/fork": "Fork",
    f"POST {COLLECTION}/add": "NewRecords",
    f"POST {COLLECTION}/update": "RecordChanges",
    f"POST {COLLECTION}/upsert": "UpsertedRecords",
    f"POST {COLLECTION}/delete": "Deletion",
    f"POST {COLLECTION}/get": "Get",
    f"POST {COLLECTION}/query": "Query",
    f"POST {COLLECTION}/search": "Searches",
    f"POST {COLLECTION}/conditional/get": "ConditionalGet",
    f"POST {COLLECTION}/conditional/commit": "Commit",
    f"POST {COLLECTION}/functions/attach": "NewFunction",
    f"POST {COLLECTION}/attached_functions/{{name}}/add_input": "FunctionInput",
    f"POST {COLLECTION}/attached_functions/{{name}}/detach": "Detachment",
}
_PAGE: tuple[Json, ...] = tuple(
    {"name": name, "in": "query", "schema": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}}
    for name in ("limit", "offset")
)
_LEVEL: Json = {"name": "read_level", "in": "query", "schema": {"$ref": "#/components/schemas/ReadLevel"}}
_PARAMETERS: Mapping[str, Sequence[Json]] = {
    f"GET {_TENANTS}/{{tenant}}/databases": _PAGE,
    f"GET {DATABASE}/collections": _PAGE,
    f"GET {COLLECTION}/count": (_LEVEL,),
}


def body_name(method: str, path: str) -> str | None:
    """The schema of what a route takes; None for a route that takes nothing, or anything."""
    return _BODIES.get(f"{method} {path}")


def body_of(method: str, path: str) -> Json:
    """What a route takes, as OpenAPI has it."""
    name = body_name(method, path)
    schema: Json = {"type": "object"} if name is None else {"$ref": f"#/components/schemas/{name}"}
    return {"required": name is not None, "content": {"application/json": {"schema": schema}}}


def parameters_of(method: str, path: str) -> Sequence[Json]:
    """What a route takes in the query string."""
    return _PARAMETERS.get(f"{method} {path}", ())


def describe(openapi: dict[str, Any], *, embeds: bool = False) -> None:
    """Add the schemas to the description of an application. ``embeds``: texts may stand for vectors."""
    schemas = {**SCHEMAS, **WITH_TEXTS} if embeds else SCHEMAS
    openapi.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
