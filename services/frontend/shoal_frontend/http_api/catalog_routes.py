"""Routes of tenants, databases and collections."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from fastapi import Request, Response

from shoal_core.contracts import Database, Json
from shoal_core.errors import AlreadyExists, InvalidArgument, NotFound
from shoal_frontend.http_api.bodies import json_response, page_of, parsed
from shoal_frontend.http_api.body_error import member, text_of
from shoal_frontend.http_api.errors import reworded
from shoal_frontend.http_api.gateway import (
    API,
    COLLECTION,
    DATABASE,
    Gateway,
    Route,
    database_of,
    ref_by_id,
    ref_by_name,
)
from shoal_frontend.http_api.pieces import encoded, list_pieces
from shoal_frontend.http_api.sending import in_pieces
from shoal_frontend.http_api.shapes import checked_name, modification, new_collection, render_collection

_TENANT_NAME_MIN_LENGTH = 3
_CHARACTERS = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,510}[a-zA-Z0-9]")
_NO_NAME = "Expected a name containing 3-512 characters from [a-zA-Z0-9._-], starting and ending with a character in [a-zA-Z0-9]. Got: "
_CRN = "<tenant_resource_name>:<database_name>:<collection_name>"
_NO_ID = "Validation error: collection_id: Invalid collection ID format, expected UUID"

_MANY = 4  # collections to write as JSON: some 200 microseconds

T = TypeVar("T")
Page = Callable[..., Awaitable[Sequence[T]]]


@dataclass(frozen=True, slots=True)
class CatalogRoutes:
    """What there is, by name."""

    gateway: Gateway

    def routes(self) -> Sequence[Route]:
        """All of them."""
        databases, collections = f"{API}/tenants/{{tenant}}/databases", f"{DATABASE}/collections"
        return (
            Route("POST", f"{API}/tenants", self.create_tenant),
            Route("GET", f"{API}/tenants/{{tenant}}", self.get_tenant),
            Route("PATCH", f"{API}/tenants/{{tenant}}", self.update_tenant),
            Route("POST", databases, self.create_database),
            Route("GET", databases, self.list_databases),
            Route("GET", DATABASE, self.get_database),
            Route("DELETE", DATABASE, self.delete_database),
            Route("POST", collections, self.create_collection),
            Route("GET", collections, self.list_collections),
            Route("GET", f"{DATABASE}/collections_count", self.count_collections),
            Route("GET", f"{collections}/by-id/{{collection}}", self.get_collection_by_id),
            Route("GET", COLLECTION, self.get_collection),
            Route("PUT", COLLECTION, self.modify_collection),
            Route("DELETE", COLLECTION, self.delete_collection),
            Route("GET", f"{API}/collections/{{crn}}", self.get_collection_by_crn),
            Route("POST", f"{COLLECTION}/fork", self.fork_collection),
            Route("GET", f"{COLLECTION}/fork_count", self.count_forks),
        )

    # --- tenants

    async def create_tenant(self, request: Request) -> Response:
        """``{name}``."""
        name = await parsed(request, _name)
        if len(name) < _TENANT_NAME_MIN_LENGTH:
            given = f'"value": String("{name}")'
            problem = f'length [{{"min": Number({_TENANT_NAME_MIN_LENGTH}), {given}}}]'
            raise InvalidArgument(f"Validation error: name: Validation error: {problem}")
        with reworded(AlreadyExists, f"Tenant [{name}] already exists"):
            await self.gateway.api_of(request).create_tenant(name)
        return json_response({})

    async def get_tenant(self, request: Request) -> Response:
        """``{name, resource_name}``."""
        name = request.path_params["tenant"]
        with reworded(NotFound, f"Tenant [{name}] not found"):
            found = await self.gateway.api_of(request).get_tenant(name)
        return json_response({"name": found.name, "resource_name": found.resource_name})

    async def update_tenant(self, request: Request) -> Response:
        """``{resource_name}``, which is given once."""
        name, resource_name = request.path_params["tenant"], await parsed(request, _resource_name)
        with reworded(NotFound, f"Tenant [{name}] not found"):
            await self.gateway.api_of(request).name_tenant(name, resource_name)
        return json_response({})

    # --- databases

    async def create_database(self, request: Request) -> Response:
        """``{name}``."""
        tenant, name = request.path_params["tenant"], await parsed(request, _name)
        if not _CHARACTERS.fullmatch(name):
            raise InvalidArgument(f"{_NO_NAME}{name}")
        with (
            reworded(AlreadyExists, f"Database [{name}] already exists"),
            reworded(NotFound, f"Tenant [{tenant}] not found"),
        ):
            await self.gateway.api_of(request).create_database(tenant, name)
        return json_response({})

    async def list_databases(self, request: Request) -> Response:
        """In order of name."""
        page = partial(self.gateway.api_of(request).list_databases, request.path_params["tenant"])
        return await self._listed(request, page, _rendered)

    async def get_database(self, request: Request) -> Response:
        """``{id, name, tenant}``."""
        tenant, name = database_of(request)
        with reworded(NotFound, f"Database [{name}] not found. Are you sure it exists?"):
            found = await self.gateway.api_of(request).get_database(tenant, name)
        return json_response(_rendered(found))

    async def delete_database(self, request: Request) -> Response:
        """With its collections."""
        tenant, name = database_of(request)
        with reworded(NotFound, f"Database [{name}] not found"):
            await self.gateway.api_of(request).delete_database(tenant, name)
        return json_response({})

    # --- collections

    async def create_collection(self, request: Request) -> Response:
        """See `shapes.new_collection`."""
        tenant, database = database_of(request)
        new, get_or_create = await parsed(request, partial(new_collection, tenant, database))
        with (
            reworded(AlreadyExists, f"Collection [{new.name}] already exists"),
            reworded(NotFound, f"Database [{database}] does not exist", InvalidArgument),
        ):
            found, _ = await self.gateway.api_of(request).create_collection(new, get_or_create=get_or_create)
        return json_response(render_collection(found))

    async def list_collections(self, request: Request) -> Response:
        """In order of creation."""
        page = partial(self.gateway.api_of(request).list_collections, *database_of(request))
        return await self._listed(request, page, render_collection)

    async def count_collections(self, request: Request) -> Response:
        """A number."""
        return json_response(await self.gateway.api_of(request).count_collections(*database_of(request)))

    async def get_collection(self, request: Request) -> Response:
        """By name."""
        ref = ref_by_name(request)
        with reworded(NotFound, f"Collection [{ref.name}] does not exist"):
            found = await self.gateway.api_of(request).get_collection(ref)
        return json_response(render_collection(found))

    async def get_collection_by_id(self, request: Request) -> Response:
        """By id."""
        ref = ref_by_id(request, _NO_ID)
        with reworded(NotFound, f"Collection [{ref.id}] does not exist"):
            found = await self.gateway.api_of(request).get_collection(ref)
        return json_response(render_collection(found))

    async def modify_collection(self, request: Request) -> Response:
        """By id; see `shapes.modification`."""
        ref = ref_by_id(request)
        with reworded(NotFound, f"Collection [{ref.id}] does not exist."):
            changes = await parsed(
                request, partial(modification, await self.gateway.api_of(request).get_collection(ref))
            )
            with reworded(AlreadyExists, f"Collection [{changes.get('name', '')}] already exists"):
                if changes:
                    await self.gateway.api_of(request).modify_collection(ref, **changes)
        return json_response({})

    async def delete_collection(self, request: Request) -> Response:
        """By name."""
        ref = ref_by_name(request)
        with reworded(NotFound, f"Collection [{ref.name}] does not exist"):
            await self.gateway.api_of(request).delete_collection(ref)
        return json_response({})

    async def get_collection_by_crn(self, request: Request) -> Response:
        """By ``resource name of the tenant:database:collection``."""
        crn = request.path_params["crn"]
        parts = crn.split(":")
        if len(parts) != 3 or not all(parts):
            raise InvalidArgument(f"Validation error: crn: CRN must be in the format {_CRN} with non-empty parts")
        with reworded(NotFound, f"Collection [{crn}] does not exist"):
            found = await self.gateway.api_of(request).get_collection_by_resource_name(*parts)
        return json_response(render_collection(found))

    # --- forks

    async def fork_collection(self, request: Request) -> Response:
        """``{new_name}``: a collection that has what this one has now."""
        ref, name = ref_by_id(request), await parsed(request, _new_name)
        with (
            reworded(NotFound, f"Collection [{ref.id}] does not exist."),
            reworded(AlreadyExists, f"Collection [{name}] already exists"),
        ):
            found = await self.gateway.api_of(request).fork_collection(ref, name)
        return json_response(render_collection(found))

    async def count_forks(self, request: Request) -> Response:
        """``{count}`` of the forks in the collection's tree."""
        ref = ref_by_id(request)
        with reworded(NotFound, f"Collection [{ref.id}] does not exist."):
            return json_response({"count": await self.gateway.api_of(request).count_forks(ref)})

    async def _listed(self, request: Request, page: Page[T], render: Callable[[T], Json]) -> Response:
        """What the query string asks for, all of it without a limit, in as many pages as that takes.

        Raises `InvalidArgument` for more than the limits allow in one list: to leave some out silently would be worse.
        """
        limit, offset = page_of(request)
        size, most = self.gateway.limits.page_size, self.gateway.limits.list_length
        wanted = most + 1 if limit is None else min(limit, most + 1)
        found: list[T] = []
        while len(found) < wanted:
            asked = min(size, wanted - len(found))
            part = await page(limit=asked, offset=offset + len(found))
            found.extend(part)
            if len(part) < asked:
                break
        if len(found) > most:
            raise InvalidArgument(f"there are more than {most}; ask for pages by limit and offset", field="limit")
        pieces = list_pieces((encoded(render(item)),) for item in found)
        return await in_pieces(pieces, large=len(found) > _MANY)


def _name(body: Any) -> str:
    return text_of(member(body, "name", ""), "name")


def _resource_name(body: Any) -> str:
    return text_of(member(body, "resource_name", ""), "resource_name")


def _new_name(body: Any) -> str:
    return checked_name(text_of(member(body, "new_name", ""), "new_name"), "new_name")


def _rendered(database: Database) -> dict[str, str]:
    return {"id": database.id, "name": database.name, "tenant": database.tenant}
