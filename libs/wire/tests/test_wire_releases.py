"""This release and the next one together, over gRPC: what either adds is ignored, and what only one has is refused with what to do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc.aio
import numpy as np
import pytest

from libs.wire.tests.later_release import LATER, LaterProxy, LaterRelease
from shoal_core.contracts import AppendRequest, CollectionRef, Include, NewCollection, TailRequest
from shoal_core.errors import InvalidArgument, NotFound, Unimplemented
from shoal_core.filters import Comparator, Compare
from shoal_core.records import DOCUMENT, ID, encode_batch
from shoal_frontend.access.entrance import Entrance
from shoal_frontend.access.gate import Gate
from shoal_frontend.database import DatabaseService
from shoal_frontend.grpc_api import ShoalServicer
from shoal_log.service import LogServicer
from shoal_query.service import QueryServicer
from shoal_sysdb.service import CatalogServicer
from shoal_testing.direct import DirectSystem
from shoal_testing.fakes import DEFAULT_DATABASE, DEFAULT_TENANT
from shoal_testing.strategies import to_operation_batch
from shoal_wire.clients import CatalogClient, LogClient, PublicClient, QueryClient
from shoal_wire.messages import message_options
from shoal_wire.rpc import Rpc

pytestmark = pytest.mark.integration

SERVICES = {"public": "ShoalService", "log": "LogService", "query": "QueryService", "sysdb": "CatalogService"}


@dataclass
class Releases:
    """Every call between client, frontend, log, query node and sysdb goes through a proxy of the later release."""

    system: DirectSystem
    later: LaterRelease
    proxies: dict[str, LaterProxy]
    servers: dict[str, grpc.aio.Channel]
    catalog: CatalogClient
    log: LogClient
    query: QueryClient
    public: PublicClient


async def _listen(stack: AsyncExitStack, server: grpc.aio.Server) -> grpc.aio.Channel:
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stack.push_async_callback(server.stop, None)
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=message_options())
    stack.push_async_callback(channel.close)
    return channel


@asynccontextmanager
async def _releases() -> AsyncIterator[Releases]:
    async with AsyncExitStack() as stack:
        system, later = DirectSystem(), LaterRelease()
        proxies: dict[str, LaterProxy] = {}
        servers: dict[str, grpc.aio.Channel] = {}

        async def through(name: str, servicer: Any) -> grpc.aio.Channel:
            behind = grpc.aio.server(options=message_options())
            servicer.add_to(behind)
            servers[name] = await _listen(stack, behind)
            proxies[name] = LaterProxy(later, servers[name])
            before = grpc.aio.server(options=message_options())
            before.add_generic_rpc_handlers((proxies[name],))
            return await _listen(stack, before)

        catalog = CatalogClient(await through("sysdb", CatalogServicer(system.catalog)))
        log = LogClient(await through("log", LogServicer(system.log)))
        query = QueryClient(await through("query", QueryServicer(system.node)))
        database = DatabaseService(catalog, log, query, system.random, system._view, clock=system.clock)
        public = PublicClient(await through("public", ShoalServicer(Entrance(database, Gate(system.clock)))))
        yield Releases(system, later, proxies, servers, catalog, log, query, public)


async def test_a_later_release_on_either_side_of_every_call_changes_no_answer() -> None:
    async with _releases() as at:
        new = NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, "things", metadata={"a": 1})
        made, created = await at.public.create_collection(new, get_or_create=True)
        assert created
        assert made.metadata == {"a": 1}
        ref = CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, "things")
        rows = [("add", f"id{n}", (float(n), 0.0), f"text {n}", None, {"n": n}) for n in range(6)]
        written = await at.public.write(ref, to_operation_batch(rows, 2), idempotency_key="k")
        again = await at.public.write(ref, to_operation_batch(rows, 2), idempotency_key="k")
        assert (again.token, again.first_offset) == (written.token, written.first_offset)
        await at.system.compact(CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, id=made.id))
        await at.public.write(ref, to_operation_batch([("delete", "id5", None, None, None, None)], 2))
        where = Compare("n", Comparator.GTE, 2)
        answer = await at.public.query(ref, np.zeros((1, 2), np.float32), 2, where=where)
        assert answer.rows.column(ID).to_pylist() == ["id2", "id3"]
        got = await at.public.get(ref, ids=["id4", "id5"], include=Include(documents=True))
        assert got.rows.column(DOCUMENT).to_pylist() == ["text 4"]
        assert (await at.public.count(ref)).count == 5
        assert [each.name for each in await at.public.list_collections(DEFAULT_TENANT, DEFAULT_DATABASE)] == ["things"]
        with pytest.raises(NotFound):  # typed errors pass
            await at.public.get_collection(CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, "nothing"))
        assert all(proxy.calls for proxy in at.proxies.values()), "every service was called by way of the later release"


async def test_log_and_catalog_by_themselves() -> None:
    async with _releases() as at:
        made, _ = await at.catalog.create_collection(
            NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, "things"), get_or_create=False
        )
        payload = encode_batch(to_operation_batch([("add", "a", (1.0, 2.0), None, None, None)], 2))
        result = await at.log.append(AppendRequest(made.id, made.epoch, made.tenant, payload))
        tail = await at.log.read_tail(TailRequest(made.id, made.epoch, 0))
        assert [entry.payload.equals(payload) for entry in tail.entries] == [True]
        assert (await at.log.read_index(made.id, made.epoch)).head_offset == result.token.offset
        found = await at.catalog.get_collection(DEFAULT_TENANT, DEFAULT_DATABASE, "things")
        assert found == replace(made, dimension=2)


@pytest.mark.parametrize("name", SERVICES)
async def test_a_call_that_only_the_later_release_has_is_refused_with_what_to_do(name: str) -> None:
    async with _releases() as at:
        service = at.later.pool.FindServiceByName(f"shoal.v1.{SERVICES[name]}")
        assert "Later" in service.methods_by_name
        with pytest.raises(Unimplemented, match="of an earlier release than the caller, or no Shoal; upgrade it"):
            await Rpc(service.full_name, at.servers[name], 5_000).send("Later", b"", write=True)


async def test_what_would_change_an_answer_is_not_ignored() -> None:
    """A new read level or a new kind of filter in a request to this release is an error that names it."""
    async with _releases() as at:
        ref = await at.system.create("things")
        rpc = Rpc("shoal.v1.ShoalService", at.servers["public"], 5_000)
        request: Any = at.later.message("GetRequest")()
        request.collection.tenant, request.collection.database = DEFAULT_TENANT, DEFAULT_DATABASE
        request.collection.id = ref.id
        request.consistency.level = 99
        with pytest.raises(InvalidArgument, match=r"consistency.level: unknown read level 99"):
            await rpc.send("Get", request.SerializeToString())
        request.consistency.level = 0
        setattr(request.where, f"{LATER}_0", "a condition of the later release")
        with pytest.raises(InvalidArgument, match="where"):
            await rpc.send("Get", request.SerializeToString())
