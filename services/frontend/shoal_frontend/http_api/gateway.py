"""What the routes work with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from fastapi import Request, Response

from shoal_core.contracts import CollectionRef, PublicApi
from shoal_core.errors import InvalidArgument
from shoal_core.limits import Limits
from shoal_core.ports import Clock, Random

API = "/api/v2"
DATABASE = f"{API}/tenants/{{tenant}}/databases/{{database}}"
COLLECTION = f"{DATABASE}/collections/{{collection}}"

NO_COLLECTION_ID = "Collection ID is not a valid UUIDv4"


# ASGI's own types
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether query nodes and log service can be reached."""

    executor: bool = True
    log: bool = True


@dataclass(frozen=True, slots=True)
class Gateway:
    """The public verbs and what is told about them.

    Attributes:
        readiness: for the health check; must be quick.
        embeds: whether the server makes vectors of texts: then bodies may have texts in the place of vectors.
    """

    api: PublicApi
    clock: Clock
    random: Random
    limits: Limits = Limits()
    readiness: Callable[[], Readiness] = Readiness
    embeds: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """One route: ``answer`` is called for requests of ``method`` to ``path``."""

    method: str
    path: str
    answer: Callable[[Request], Awaitable[Response]]


def database_of(request: Request) -> tuple[str, str]:
    """Tenant and database of the path."""
    return request.path_params["tenant"], request.path_params["database"]


def ref_by_name(request: Request) -> CollectionRef:
    """The collection of the path, which has its name."""
    return CollectionRef(*database_of(request), name=request.path_params["collection"])


def ref_by_id(request: Request, message: str = NO_COLLECTION_ID) -> CollectionRef:
    """The collection of the path, which has its id. Raises `InvalidArgument` for what is none."""
    try:
        collection_id = str(UUID(request.path_params["collection"]))
    except ValueError as error:
        raise InvalidArgument(message) from error
    return CollectionRef(*database_of(request), id=collection_id)
