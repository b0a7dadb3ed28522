"""The sync client: every verb of `AsyncClient`, run on one background thread."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from shoal import aio
from shoal._loop import LoopThread
from shoal.aio import DEFAULT_DATABASE, DEFAULT_TENANT, DEFAULT_TIMEOUT_MS, AsyncClient
from shoal.collection import Collection
from shoal.embedding import Function
from shoal_core import contracts
from shoal_core.contracts import Database, Tenant
from shoal_core.schema import Schema

if TYPE_CHECKING:
    import grpc

T = TypeVar("T")


def connect(
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
) -> Client:
    """A client of a running Shoal, or with ``path`` a whole Shoal in this process.

    Frontends are not contacted before the first call. Close the client, best with ``with``; the exit of the interpreter does it
    too. After a fork, connect again in the child.

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
    loop = LoopThread()
    try:
        client = loop.run(
            lambda: aio.connect(
                address,
                path=path,
                tenant=tenant,
                database=database,
                timeout_ms=timeout_ms,
                embedding_function=embedding_function,
                embedding_hosts=embedding_hosts,
                credentials=credentials,
                token=token,
                options=options,
            )
        )
    except BaseException:
        loop.close()
        raise
    return Client(loop, client)


class Client:
    """The catalog and the way to collections, within one tenant and database. Usable by many threads at once.

    Made by `connect`; ``with`` closes it.
    """

    def __init__(self, loop: LoopThread, client: AsyncClient) -> None:
        self._loop = loop
        self._client = client
        loop.on_close(client.close)

    @property
    def tenant(self) -> str:
        """Whose collections these are."""
        return self._client.tenant

    @property
    def database(self) -> str:
        """The namespace of the collections."""
        return self._client.database

    def __repr__(self) -> str:
        return repr(self._client)

    def close(self) -> None:
        """Cancel running calls and release the connections, or stop the embedded system. Again: nothing."""
        self._loop.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- collections

    def create_collection(
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
    ) -> Collection:
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
        found = self._run(
            lambda: self._client.create_collection(
                name,
                metadata=metadata,
                space=space,
                shards=shards,
                embedding_function=embedding_function,
                dimension=dimension,
                schema=schema,
                get_or_create=get_or_create,
            )
        )
        return Collection(self._loop, found)

    def get_or_create_collection(
        self,
        name: str,
        *,
        metadata: contracts.Json | None = None,
        space: str = "l2",
        shards: int = 1,
        embedding_function: Function | None = None,
        dimension: int | None = None,
        schema: Schema | contracts.Json | None = None,
    ) -> Collection:
        """The collection of this name as it is, or a new one; see `create_collection`."""
        return self.create_collection(
            name,
            metadata=metadata,
            space=space,
            shards=shards,
            embedding_function=embedding_function,
            dimension=dimension,
            schema=schema,
            get_or_create=True,
        )

    def get_collection(self, name: str, *, embedding_function: Function | None = None) -> Collection:
        """The collection of this name.

        Args:
            embedding_function: needed if the stored one is not built in.

        Raises:
            NotFound: there is none.
            InvalidArgument: the stored embedding function is another one.
        """
        found = self._run(lambda: self._client.get_collection(name, embedding_function=embedding_function))
        return Collection(self._loop, found)

    def list_collections(self, limit: int = 100, offset: int = 0) -> list[Collection]:
        """In order of creation."""
        found = self._run(lambda: self._client.list_collections(limit, offset))
        return [Collection(self._loop, collection) for collection in found]

    def count_collections(self) -> int:
        """In this database."""
        return self._run(lambda: self._client.count_collections())

    def delete_collection(self, name: str) -> None:
        """Delete it with its records. Raises `NotFound`."""
        self._run(lambda: self._client.delete_collection(name))

    # --- tenants and databases

    def create_tenant(self, name: str) -> None:
        """Raises `AlreadyExists`."""
        self._run(lambda: self._client.create_tenant(name))

    def get_tenant(self, name: str) -> Tenant:
        """Raises `NotFound`."""
        return self._run(lambda: self._client.get_tenant(name))

    def name_tenant(self, name: str, resource_name: str) -> None:
        """Give a tenant its resource name, once. Raises `NotFound`, `AlreadyExists`."""
        self._run(lambda: self._client.name_tenant(name, resource_name))

    def create_database(self, name: str, *, tenant: str | None = None) -> Database:
        """In the client's tenant or another. Raises `NotFound` (tenant), `AlreadyExists`."""
        return self._run(lambda: self._client.create_database(name, tenant=tenant))

    def get_database(self, name: str, *, tenant: str | None = None) -> Database:
        """Raises `NotFound`."""
        return self._run(lambda: self._client.get_database(name, tenant=tenant))

    def list_databases(self, limit: int = 100, offset: int = 0, *, tenant: str | None = None) -> list[Database]:
        """In order of name."""
        return self._run(lambda: self._client.list_databases(limit, offset, tenant=tenant))

    def delete_database(self, name: str, *, tenant: str | None = None) -> None:
        """Delete it with its collections. Raises `NotFound`."""
        self._run(lambda: self._client.delete_database(name, tenant=tenant))

    # --- the system

    def heartbeat(self) -> float:
        """Milliseconds of one small call there and back, through the catalog. Raises `Unavailable`, `NotFound` (tenant)."""
        return self._run(lambda: self._client.heartbeat())

    def reset(self) -> None:
        """Delete everything, where the system's configuration allows it. Raises `PermissionDenied`."""
        self._run(lambda: self._client.reset())

    def status(self) -> contracts.Json:
        """Members by role, collections with their lag, limits."""
        return self._run(lambda: self._client.status())

    def _run(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return self._loop.run(function)
