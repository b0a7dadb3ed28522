"""The async client: ``client = await shoal.aio.connect("localhost:8800")``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from shoal._calls import Caller, SystemClock, SystemRandom
from shoal._connect import Connection, connect_frontends, open_embedded, parse_addresses
from shoal._embedder import Functions, configuration_of
from shoal._prepare import text, whole
from shoal._schema import schema_of
from shoal.aio_collection import AsyncCollection
from shoal.embedding import Function
from shoal.embedding.gateway import check_function
from shoal_core import contracts
from shoal_core.contracts import CollectionRef, Database, NewCollection, Tenant
from shoal_core.errors import InvalidArgument
from shoal_core.limits import Limits
from shoal_core.ports import Clock, Random
from shoal_core.schema import Schema

if TYPE_CHECKING:
    import grpc

__all__ = ["AsyncClient", "AsyncCollection", "connect"]

DEFAULT_TENANT = "default_tenant"
DEFAULT_DATABASE = "default_database"
DEFAULT_TIMEOUT_MS = 30_000
_SPACES = ("l2", "cosine", "ip")


async def connect(
    address: str | None = None,
    *,
    path: str | Path | None = None,
    tenant: str = DEFAULT_TENANT,
    database: str = DEFAULT_DATABASE,
    timeout_ms: int = DEFAULT_TIMEOUT_MS,
    embedding_function: Function | None = None,
    embedding_hosts: Sequence[str] = (),
    credentials: grpc.ChannelCredentials | None = None,
    token: str = "",
    options: Mapping[str, Any] | None = None,
) -> AsyncClient:
    """A client of a running Shoal, or with ``path`` a whole Shoal in this process. Belongs to the running event loop.

    Frontends are not contacted before the first call.

    Args:
        address: ``"host:port"`` of a frontend, or several, comma-separated: calls go to them in turn, and on to the next one when
            one is unavailable.
        path: a directory for the data; created if there is none. Needs the package shoal-cli[local].
        timeout_ms: of every call with its retries.
        embedding_function: for collections of this client that name no other.
        embedding_hosts: ``host`` or ``host:port`` of services that get texts, and keys from the environment, when the stored
            function of a collection names them. The public address of a function's own service needs no mention.
        credentials: for TLS, see `tls_credentials`; without them the connection is plain text.
        token: says who calls, where the frontend wants to know (docs/access.md).
        options: for the embedded system.

    Raises:
        InvalidArgument: not exactly one of address and path, or no address.
        FailedPrecondition: the package of the embedded system is missing.
    """
    whole(timeout_ms, "timeout_ms", least=1)
    if embedding_function is not None:
        check_function(embedding_function)
    if (address is None) == (path is None):
        raise InvalidArgument(
            "give either the address of a frontend or a path for a system in this process", field="address"
        )
    if path is not None:
        connection = await open_embedded(path, options or {})
    else:
        connection = await connect_frontends(parse_addresses(address or ""), timeout_ms, credentials, token)
    return AsyncClient(
        connection,
        tenant=tenant,
        database=database,
        timeout_ms=timeout_ms,
        embedding_function=embedding_function,
        embedding_hosts=embedding_hosts,
    )


class AsyncClient:
    """The catalog and the way to collections, within one tenant and database. Usable by many tasks at once.

    Made by `connect`; ``async with`` closes it. ``limits`` are what the client checks before it sends.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        tenant: str = DEFAULT_TENANT,
        database: str = DEFAULT_DATABASE,
        timeout_ms: int = DEFAULT_TIMEOUT_MS,
        embedding_function: Function | None = None,
        embedding_hosts: Sequence[str] = (),
        limits: Limits | None = None,
        clock: Clock | None = None,
        random: Random | None = None,
    ) -> None:
        self.tenant = tenant
        self.database = database
        self._connection = connection
        self._closed = False
        self._functions = Functions(embedding_function, embedding_hosts)
        self._limits = limits or Limits()
        self._caller = Caller(connection.endpoints, timeout_ms, clock or SystemClock(), random or SystemRandom())

    def __repr__(self) -> str:
        return f"Client({self._connection.name!r}, tenant={self.tenant!r}, database={self.database!r})"

    async def close(self) -> None:
        """Release the connections, or stop the embedded system. Again: nothing."""
        if not self._closed:
            self._closed = True
            await self._connection.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- collections

    async def create_collection(
        self,
        name: str,
        *,
        metadata: contracts.Json | None = None,
        space: str = "l2",
        shards: int = 1,
        embedding_function: Function | None = None,
        dimension: int | None = None,
        schema: Schema | contracts.Json | None = None,
        get_or_create: bool = False,
    ) -> AsyncCollection:
        """A new collection.

        Args:
            space: ``l2`` (squared), ``cosine`` or ``ip``.
            embedding_function: for documents and query texts; its name and configuration are stored. None for the client's, or
                else the default (all-MiniLM-L6-v2), which nothing is stored of.
            dimension: of its vectors; None for that of the first write.
            schema: which indexes it keeps, how its text is analysed; None for all indexes and English.
            get_or_create: return the collection of this name as it is, if there is one.

        Raises:
            AlreadyExists: the name is taken.
            InvalidArgument: also when the existing collection has another embedding function.
        """
        if space not in _SPACES:
            raise InvalidArgument(f"one of {', '.join(_SPACES)}, not {space!r}", field="space")
        function = self._functions.own if embedding_function is None else embedding_function
        new = NewCollection(
            self.tenant,
            self.database,
            text(name, "name"),
            space,
            whole(shards, "shards", least=1),
            metadata,
            configuration_of(function),
            None if dimension is None else whole(dimension, "dimension", least=1),
            schema_of(schema),
        )
        info, _ = await self._caller.call(
            lambda api: api.create_collection(new, get_or_create=get_or_create), write=True, repeatable=get_or_create
        )
        return self._handle(info, embedding_function)

    async def get_or_create_collection(
        self,
        name: str,
        *,
        metadata: contracts.Json | None = None,
        space: str = "l2",
        shards: int = 1,
        embedding_function: Function | None = None,
        dimension: int | None = None,
        schema: Schema | contracts.Json | None = None,
    ) -> AsyncCollection:
        """The collection of this name as it is, or a new one; see `create_collection`."""
        return await self.create_collection(
            name,
            metadata=metadata,
            space=space,
            shards=shards,
            embedding_function=embedding_function,
            dimension=dimension,
            schema=schema,
            get_or_create=True,
        )

    async def get_collection(self, name: str, *, embedding_function: Function | None = None) -> AsyncCollection:
        """The collection of this name.

        Args:
            embedding_function: needed if the stored one is not built in.

        Raises:
            NotFound: there is none.
            InvalidArgument: the stored embedding function is another one.
        """
        ref = CollectionRef(self.tenant, self.database, text(name, "name"))
        return self._handle(await self._caller.call(lambda api: api.get_collection(ref)), embedding_function)

    async def list_collections(self, limit: int = 100, offset: int = 0) -> list[AsyncCollection]:
        """In order of creation."""
        page, start = whole(limit, "limit", least=0), whole(offset, "offset", least=0)
        found = await self._caller.call(
            lambda api: api.list_collections(self.tenant, self.database, limit=page, offset=start)
        )
        return [self._handle(info, None) for info in found]

    async def count_collections(self) -> int:
        """In this database."""
        return await self._caller.call(lambda api: api.count_collections(self.tenant, self.database))

    async def delete_collection(self, name: str) -> None:
        """Delete it with its records. Raises `NotFound`."""
        ref = CollectionRef(self.tenant, self.database, text(name, "name"))
        await self._caller.call(lambda api: api.delete_collection(ref), write=True, repeatable=False)

    # --- tenants and databases

    async def create_tenant(self, name: str) -> None:
        """Raises `AlreadyExists`."""
        text(name, "name")
        await self._caller.call(lambda api: api.create_tenant(name), write=True, repeatable=False)

    async def get_tenant(self, name: str) -> Tenant:
        """Raises `NotFound`."""
        text(name, "name")
        return await self._caller.call(lambda api: api.get_tenant(name))

    async def name_tenant(self, name: str, resource_name: str) -> None:
        """Give a tenant its resource name, once. Raises `NotFound`, `AlreadyExists`."""
        text(name, "name"), text(resource_name, "resource_name")
        await self._caller.call(lambda api: api.name_tenant(name, resource_name), write=True)

    async def create_database(self, name: str, *, tenant: str | None = None) -> Database:
        """In the client's tenant or another. Raises `NotFound` (tenant), `AlreadyExists`."""
        owner, _ = text(tenant or self.tenant, "tenant"), text(name, "name")
        return await self._caller.call(lambda api: api.create_database(owner, name), write=True, repeatable=False)

    async def get_database(self, name: str, *, tenant: str | None = None) -> Database:
        """Raises `NotFound`."""
        owner, _ = text(tenant or self.tenant, "tenant"), text(name, "name")
        return await self._caller.call(lambda api: api.get_database(owner, name))

    async def list_databases(self, limit: int = 100, offset: int = 0, *, tenant: str | None = None) -> list[Database]:
        """In order of name."""
        page, start, owner = whole(limit, "limit", least=0), whole(offset, "offset", least=0), tenant or self.tenant
        return await self._caller.call(lambda api: api.list_databases(owner, limit=page, offset=start))

    async def delete_database(self, name: str, *, tenant: str | None = None) -> None:
        """Delete it with its collections. Raises `NotFound`."""
        owner, _ = text(tenant or self.tenant, "tenant"), text(name, "name")
        await self._caller.call(lambda api: api.delete_database(owner, name), write=True, repeatable=False)

    # --- the system

    async def heartbeat(self) -> float:
        """Milliseconds of one small call there and back, through the catalog. Raises `Unavailable`, `NotFound` (tenant)."""
        clock = self._caller.clock
        start = clock.monotonic()
        await self.get_tenant(self.tenant)
        return (clock.monotonic() - start) * 1_000

    async def reset(self) -> None:
        """Delete everything, where the system's configuration allows it. Raises `PermissionDenied`."""
        await self._caller.call(lambda api: api.reset(), write=True, repeatable=False)

    async def status(self) -> contracts.Json:
        """Members by role, collections with their lag, limits."""
        return await self._caller.call(lambda api: api.status())

    def _handle(self, info: contracts.Collection, passed: Function | None) -> AsyncCollection:
        embedder = self._functions.embedder(info.configuration, passed)
        return AsyncCollection(self._caller, info, embedder, self._limits)
