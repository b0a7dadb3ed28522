"""What happens when Postgres goes away: nothing is claimed that is not known."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit

import asyncpg
import pytest

from shoal_core.contracts import NewCollection
from shoal_core.errors import OutcomeUnknown, Unavailable
from shoal_sysdb.catalog import CatalogService
from shoal_sysdb.migrate import migrate
from shoal_sysdb.store import PostgresCatalogStore, open_pool, transaction

pytestmark = pytest.mark.integration

NEW = NewCollection("default_tenant", "default_database", "c")


class CuttingProxy:
    """Passes bytes to the server; when told to, it drops the connection before or after passing on a marked request."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.marker = b""
        self.deliver = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
        ways = [
            asyncio.create_task(self._copy(up_reader, writer, lambda _: False)),
            asyncio.create_task(self._copy(reader, up_writer, self._is_marked)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for end in (writer, up_writer):
            end.close()
            with contextlib.suppress(OSError):
                await end.wait_closed()

    def _is_marked(self, data: bytes) -> bool:
        return bool(self.marker) and self.marker in data

    async def _copy(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, stop: Callable[[bytes], bool]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                marked = stop(data)
                if self.deliver or not marked:
                    sink.write(data)
                    await sink.drain()
                if marked:
                    return


@contextlib.asynccontextmanager
async def _behind_proxy(dsn: str) -> AsyncIterator[tuple[CuttingProxy, CatalogService]]:
    parts = urlsplit(dsn)
    assert parts.port is not None
    proxy = CuttingProxy(parts.port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = await open_pool(f"postgresql://postgres@127.0.0.1:{port}{parts.path}", max_size=2)
    try:
        yield proxy, CatalogService(PostgresCatalogStore(pool))
    finally:
        proxy.marker = b""
        await pool.close()
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("delivered", [True, False])
async def test_a_connection_lost_in_commit_is_unknown(dsn: str, catalog: CatalogService, delivered: bool) -> None:
    async with _behind_proxy(dsn) as (proxy, behind):
        proxy.marker, proxy.deliver = b"COMMIT", delivered
        with pytest.raises(OutcomeUnknown):
            await behind.create_collection(NEW, get_or_create=False)
        proxy.marker = b""
        _, created = await behind.create_collection(NEW, get_or_create=True)  # the next call finds a way
    assert await catalog.count_collections(NEW.tenant, NEW.database) == 1
    if not delivered:
        assert created


async def test_a_connection_lost_before_commit_wrote_nothing(dsn: str, catalog: CatalogService) -> None:
    async with _behind_proxy(dsn) as (proxy, behind):
        proxy.marker, proxy.deliver = b"INSERT INTO log_head", True
        with pytest.raises(Unavailable):
            await behind.create_collection(NEW, get_or_create=False)
    assert await catalog.count_collections(NEW.tenant, NEW.database) == 0


async def test_a_commit_the_standby_has_not_confirmed_is_unknown(dsn: str, pool: asyncpg.Pool[asyncpg.Record]) -> None:
    """A wait for a standby that is cut short ends in a warning, not an error."""
    waiting = await open_pool(dsn, statement_timeout_ms=200)
    catalog = CatalogService(PostgresCatalogStore(waiting))
    await catalog.create_collection(NEW, get_or_create=False)
    await pool.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    await _reload(pool, "nobody")
    try:
        with pytest.raises(OutcomeUnknown):
            await catalog.create_tenant("t")
        made = await catalog.get_collection(NEW.tenant, NEW.database, NEW.name)
        with pytest.raises((OutcomeUnknown, Unavailable)):
            await catalog.claim(made.id, "flush", "me", ttl_ms=1000)
    finally:
        await pool.execute("ALTER SYSTEM RESET synchronous_standby_names")
        await _reload(pool, "")
        await waiting.close()


async def _reload(pool: asyncpg.Pool[asyncpg.Record], expected: str) -> None:
    await pool.execute("SELECT pg_reload_conf()")
    for _ in range(200):
        if await pool.fetchval("SELECT setting FROM pg_settings WHERE name = 'synchronous_standby_names'") == expected:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the server did not reload its configuration")


async def test_a_closed_pool_is_unavailable(dsn: str) -> None:
    pool = await open_pool(dsn)
    await pool.close()
    with pytest.raises(Unavailable):
        await CatalogService(PostgresCatalogStore(pool)).get_tenant("default_tenant")


async def test_an_exhausted_pool_is_unavailable(dsn: str) -> None:
    pool = await open_pool(dsn, max_size=1)
    catalog = CatalogService(PostgresCatalogStore(pool, acquire_timeout_ms=50))
    async with transaction(pool):
        with pytest.raises(Unavailable):
            await catalog.get_tenant("default_tenant")
    assert await catalog.get_tenant("default_tenant") == "default_tenant"
    await pool.close()


async def test_a_cancelled_call_gives_its_connection_back(dsn: str) -> None:
    pool = await open_pool(dsn, max_size=1)
    catalog = CatalogService(PostgresCatalogStore(pool))
    for i in range(30):
        call = asyncio.create_task(catalog.create_collection(NEW, get_or_create=True))
        for _ in range(i):
            await asyncio.sleep(0)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
    assert await catalog.get_tenant("default_tenant") == "default_tenant"
    await pool.close()


async def test_killed_under_load_and_back(mortal_postgres: object, mortal_dsn: str) -> None:
    server = mortal_postgres
    await migrate(mortal_dsn)
    pool = await open_pool(mortal_dsn, max_size=8)
    catalog = CatalogService(PostgresCatalogStore(pool))
    acknowledged: list[str] = []
    failures: list[BaseException] = []

    async def create(worker: int) -> None:
        for i in range(10_000):
            try:
                made, _ = await catalog.create_collection(
                    NewCollection(NEW.tenant, NEW.database, f"{worker}-{i}"), get_or_create=False
                )
            except BaseException as error:
                failures.append(error)
                return
            acknowledged.append(made.id)

    workers = [asyncio.create_task(create(worker)) for worker in range(8)]
    while len(acknowledged) < 50:
        await asyncio.sleep(0.01)
    await asyncio.to_thread(server.kill)  # type: ignore[attr-defined]
    await asyncio.wait_for(asyncio.gather(*workers), 30)
    assert len(failures) == 8
    assert {type(failure) for failure in failures} <= {Unavailable, OutcomeUnknown}
    with pytest.raises(Unavailable):
        await catalog.get_tenant("default_tenant")
    await asyncio.to_thread(server.start)  # type: ignore[attr-defined]
    listed = await catalog.list_collections(NEW.tenant, NEW.database, limit=100_000, offset=0)
    assert set(acknowledged) <= {collection.id for collection in listed}
    await pool.close()
