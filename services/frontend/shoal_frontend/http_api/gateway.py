"""What the routes work with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from fastapi import Request, Response

from shoal_core.contracts import CollectionRef, PublicApi
from shoal_core.errors import InvalidArgument
from shoal_core.limits import Limits
from shoal_core.ports import Clock, Random
from shoal_frontend.access.entrance import Entrance, Session

API = "/api/v2"
DATABASE = f"{API}/tenants/{{tenant}}/databases/{{database}}"
COLLECTION = f"{DATABASE}/collections/{{collection}}"

SESSION = "shoal.session"  # in a request's scope
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
    """The way to the public verbs, and what is told about them. Routes have no other API than that of a request's principal.

    Attributes:
        readiness: for the health check; must be quick.
        cors_allow_origins: web pages of these origins may ask; ``*``: of all.
        on_answered: see `observed.Observed`.
        embeds: whether the server makes vectors of texts: then bodies may have texts in the place of vectors.
    """

    entrance: Entrance
    clock: Clock
    random: Random
    limits: Limits = Limits()
    readiness: Callable[[], Readiness] = Readiness
    cors_allow_origins: Sequence[str] = ()
    embeds: bool = False
    on_answered: Callable[[str, str, int, float], None] = lambda method, route, status, duration_ms: None

    def session_of(self, request: Request) -> Session:
        """Who sent a request, and what it may use; of open routes there is none."""
        session: Session = request.scope[SESSION]
        return session

    def api_of(self, request: Request) -> PublicApi:
        """The public verbs, as far as the request's principal may use them."""
        return self.session_of(request).api


@dataclass(frozen=True, slots=True)
class Route:
    """One route: ``answer`` is called for requests of ``method`` to ``path``.

    ``is_open``: for everybody, without credentials. Such a route has no session and no API.
    """

    method: str
    path: str
    answer: Callable[[Request], Awaitable[Response]]
    is_open: bool = False


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
