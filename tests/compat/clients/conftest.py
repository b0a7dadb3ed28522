"""Published Chroma clients connected to the server that the environment names; each test has a database of its own.

``SHOAL_HTTP``: host:port. ``SHOAL_AUTH``: one of the keys of `AUTH`, with ``SHOAL_CREDENTIALS``: a token, or ``user:password``.
"""

from __future__ import annotations

import base64
import inspect
import os
import sys
import uuid
from dataclasses import dataclass
from typing import Any

import chromadb
import pytest
from chromadb.api.async_client import AsyncAdminClient
from chromadb.api.client import AdminClient
from chromadb.config import Settings

TENANT = "default_tenant"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
TOKEN, BASIC = "chromadb.auth.token_authn.TokenAuthClientProvider", "chromadb.auth.basic_authn.BasicAuthClientProvider"
AUTH: dict[str, dict[str, str]] = {
    "none": {},
    "token": {"chroma_client_auth_provider": TOKEN, "chroma_auth_token_transport_header": "Authorization"},
    "x-chroma-token": {"chroma_client_auth_provider": TOKEN, "chroma_auth_token_transport_header": "X-Chroma-Token"},
    "basic": {"chroma_client_auth_provider": BASIC},
}


def refuse_strangers(event: str, arguments: tuple[Any, ...]) -> None:
    """No library of these tests talks to anything but this machine."""
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        assert arguments[1][0] in LOOPBACK, arguments[1]
    if event == "socket.getaddrinfo":
        assert arguments[0] in LOOPBACK, arguments[0]


sys.addaudithook(refuse_strangers)


def host_and_port() -> tuple[str, int]:
    """Of the server."""
    host, _, port = os.environ["SHOAL_HTTP"].rpartition(":")
    return host, int(port)


def settings() -> Settings:
    """Settings as a user of the client writes them."""
    given = AUTH[os.environ.get("SHOAL_AUTH", "none")]
    if not given:
        return Settings(anonymized_telemetry=False)
    credentials = os.environ["SHOAL_CREDENTIALS"]
    return Settings(anonymized_telemetry=False, chroma_client_auth_credentials=credentials, **given)


def headers() -> dict[str, str]:
    """What the settings make the sync client send. The async one does not look at them: its users give it headers."""
    auth, credentials = os.environ.get("SHOAL_AUTH", "none"), os.environ.get("SHOAL_CREDENTIALS", "")
    basic = base64.b64encode(credentials.encode()).decode()
    every = {
        "none": {},
        "token": {"Authorization": f"Bearer {credentials}"},
        "x-chroma-token": {"X-Chroma-Token": credentials},
        "basic": {"Authorization": f"Basic {basic}"},
    }
    return every[auth]


def admin_settings(implementation: str) -> Settings:
    """Of clients of tenants and databases, which have no short way to be made."""
    made = settings()
    made.chroma_api_impl = implementation
    made.chroma_server_host, made.chroma_server_http_port = host_and_port()
    if "async" in implementation:
        made.chroma_server_headers = headers()
    return made


def sync_client(database: str, tenant: str = TENANT) -> Any:
    """The client that most people use."""
    host, port = host_and_port()
    return chromadb.HttpClient(host=host, port=port, settings=settings(), tenant=tenant, database=database)


async def done(value: Any) -> Any:
    """What a call of either client comes to."""
    return await value if inspect.isawaitable(value) else value


@dataclass(frozen=True)
class Chroma:
    """One of the two Python clients. `admin` is its client of tenants and databases."""

    kind: str
    database: str
    client: Any
    admin: Any

    async def connect(self, database: str, tenant: str = TENANT) -> Any:
        """Another client, to another database."""
        if self.kind == "sync":
            return sync_client(database, tenant)
        host, port = host_and_port()
        return await chromadb.AsyncHttpClient(host=host, port=port, headers=headers(), tenant=tenant, database=database)

    async def create(self, name: str = "things", **more: Any) -> Any:
        """A collection without an embedding function."""
        return await done(self.client.create_collection(name, embedding_function=None, **more))


@pytest.fixture(scope="session")
def admin() -> Any:
    """The client of tenants and databases."""
    return AdminClient(admin_settings("chromadb.api.fastapi.FastAPI"))


@pytest.fixture
def database(admin: Any) -> Any:
    """A new database, deleted afterwards with all that the test left there."""
    name = f"tour-{uuid.uuid4().hex}"
    admin.create_database(name, TENANT)
    yield name
    admin.delete_database(name, TENANT)


@pytest.fixture(params=["sync", "async"])
async def chroma(request: pytest.FixtureRequest, database: str, admin: Any) -> Chroma:
    """Each test runs with both clients."""
    if request.param == "async":
        admin = AsyncAdminClient(admin_settings("chromadb.api.async_fastapi.AsyncFastAPI"))
    chroma = Chroma(request.param, database, None, admin)
    return Chroma(request.param, database, await chroma.connect(database), admin)
