"""Append while the database fails: nothing acknowledged is lost, nothing is written twice, every failure is typed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.logservice.tests.log_support import World, eventually, request_of, rows_of, whole_tail
from shoal_core.contracts import AppendRequest, AppendResult
from shoal_core.errors import (
    FailedPrecondition,
    Internal,
    OutcomeUnknown,
    ShoalError,
    StaleEpoch,
    Unavailable,
)
from shoal_log import AppendSettings, LogService, LogSettings
from shoal_testing.postgres_relay import PostgresRelay
from shoal_testing.processes import postgres_server

pytestmark = pytest.mark.integration


@pytest.fixture
async def wire(world: World) -> AsyncIterator[PostgresRelay]:
    async with PostgresRelay(world.dsn) as wire:
        yield wire
        for node in world.nodes:
            await node.close()


def settings_of(**append: Any) -> LogSettings:
    return LogSettings(append=AppendSettings(**{"retry_delay_ms": 5, **append}))


async def outcome_of(node: LogService, request: AppendRequest) -> AppendResult | ShoalError:
    try:
        return await node.append(request)
    except ShoalError as error:
        return error


async def test_sessions_killed_under_load_lose_nothing_acknowledged_and_write_nothing_twice(world: World) -> None:
    node = await world.node(settings_of(attempts=3))
    collection = await world.collection()
    acknowledged: dict[str, int] = {}
    outcomes: list[type] = []
    stop = False

    async def write(writer: int, *, keyed: bool) -> None:
        turn = 0
        while not stop:
            turn += 1
            name = f"{writer}-{turn}"
            outcome = await outcome_of(node, request_of(collection, [name], key=name if keyed else ""))
            outcomes.append(type(outcome))
            assert isinstance(outcome, AppendResult | Unavailable | OutcomeUnknown), outcome
            if isinstance(outcome, AppendResult):
                acknowledged[name] = outcome.first_offset

    tasks = [asyncio.create_task(write(writer, keyed=writer % 2 == 0)) for writer in range(8)]
    for turn in range(200):
        await asyncio.sleep(0.04 + turn * 0.002)  # a busy machine needs longer for new sessions
        await world.terminate_backends()
        if turn >= 24 and outcomes.count(AppendResult) > 20:
            break
    stop = True
    await asyncio.gather(*tasks)
    assert outcomes.count(AppendResult) > 20
    rows = rows_of(await whole_tail(await world.node(), collection))
    assert len({id for _, id in rows}) == len(rows)
    present = {id: offset for offset, id in rows}
    assert acknowledged.items() <= present.items()
    assert [offset for offset, _ in rows] == list(range(1, len(rows) + 1))


async def test_a_connection_lost_before_commit_is_tried_again(world: World, wire: PostgresRelay) -> None:
    node = await world.node(settings_of(), dsn=wire.dsn)
    collection = await world.collection()
    await node.append(request_of(collection, ["a"]))
    wire.cut_on, wire.deliver = b"BEGIN", False
    assert (await node.append(request_of(collection, ["b"]))).first_offset == 2
    assert wire.cuts == 1
    assert node.counters.transient_failures == 1


@pytest.mark.parametrize("delivered", [True, False])
async def test_a_lost_commit_is_resolved_by_the_key(world: World, wire: PostgresRelay, delivered: bool) -> None:
    node = await world.node(settings_of(), dsn=wire.dsn)
    collection = await world.collection()
    await node.append(request_of(collection, ["a"]))
    wire.cut_on, wire.deliver = b"COMMIT", delivered
    result = await node.append(request_of(collection, ["b", "c"], key="k"))
    assert wire.cuts == 1
    assert (result.first_offset, result.token.offset, result.replayed) == (2, 3, delivered)
    assert node.counters.commits_in_doubt == 1
    assert rows_of(await whole_tail(node, collection)) == [(1, "a"), (2, "b"), (3, "c")]


@pytest.mark.parametrize("delivered", [True, False])
async def test_a_lost_commit_without_a_key_is_unknown(world: World, wire: PostgresRelay, delivered: bool) -> None:
    node = await world.node(settings_of(), dsn=wire.dsn)
    collection = await world.collection()
    await node.append(request_of(collection, ["a"]))
    wire.cut_on, wire.deliver = b"COMMIT", delivered
    with pytest.raises(OutcomeUnknown):
        await node.append(request_of(collection, ["b"]))
    await eventually(lambda: world_has(world, 2 if delivered else 1))
    assert (await node.append(request_of(collection, ["c"]))).first_offset == (3 if delivered else 2)


async def world_has(world: World, entries: int) -> bool:
    return await world.count("log_entry") == entries


async def test_a_lost_commit_of_a_group_answers_each_of_its_items(world: World, wire: PostgresRelay) -> None:
    node = await world.node(settings_of(), dsn=wire.dsn)
    collection = await world.collection()
    wire.cut_on = b"COMMIT"
    requests = [
        request_of(collection, ["keyed"], key="k"),
        request_of(collection, ["plain"]),
        request_of(collection, ["stale"], epoch=9),
    ]
    keyed, plain, stale = await asyncio.gather(*(outcome_of(node, request) for request in requests))
    assert wire.cuts == 1
    assert isinstance(keyed, AppendResult)
    assert isinstance(plain, OutcomeUnknown)
    assert isinstance(stale, StaleEpoch)
    assert [id for _, id in rows_of(await whole_tail(node, collection))] == ["keyed", "plain"]


async def test_an_unresolved_commit_is_unknown_even_if_the_database_stays_away(
    world: World, wire: PostgresRelay
) -> None:
    node = await world.node(settings_of(attempts=3), dsn=wire.dsn)
    collection = await world.collection()
    await node.append(request_of(collection, ["a"]))
    wire.cut_on, wire.refuse = b"COMMIT", True
    outcome = await outcome_of(node, request_of(collection, ["b"], key="k"))
    assert isinstance(outcome, OutcomeUnknown)
    never_tried = await outcome_of(node, request_of(collection, ["c"], key="l"))
    assert type(never_tried) is Unavailable
    wire.refuse = False
    assert (await node.append(request_of(collection, ["b"], key="k"))).replayed
    assert (await node.append(request_of(collection, ["c"], key="l"))).first_offset == 3


async def test_a_database_that_is_away_is_unavailable_and_comes_back(world: World, wire: PostgresRelay) -> None:
    node = await world.node(settings_of(attempts=2), dsn=wire.dsn)
    collection = await world.collection()
    wire.refuse = True
    await world.terminate_backends()
    await world.terminate_backends("shoal-log-read")
    outcomes = await asyncio.gather(*(outcome_of(node, request_of(collection, [f"{i}"])) for i in range(5)))
    assert [type(outcome) for outcome in outcomes] == [Unavailable] * 5
    with pytest.raises(Unavailable):
        await node.read_index(collection, 1)
    wire.refuse = False
    assert (await node.append(request_of(collection, ["a"]))).first_offset == 1
    assert (await node.read_index(collection, 1)).head_offset == 1


async def test_a_database_that_refuses_connections_for_good_is_an_answer(world: World, postgres_dsn: str) -> None:
    node = await world.node(settings_of(attempts=2))
    collection = await world.collection()
    name = world.dsn.rpartition("/")[2]
    outside = await asyncpg.connect(postgres_dsn)  # a database's own sessions may not close it
    await outside.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    await world.terminate_backends()
    outcomes = await asyncio.gather(*(outcome_of(node, request_of(collection, [f"{i}"])) for i in range(3)))
    assert [type(outcome) for outcome in outcomes] == [Internal] * 3
    await outside.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    assert (await node.append(request_of(collection, ["a"]))).first_offset == 1
    await outside.close()


async def test_a_cancelled_wait_for_the_standby_is_unknown_and_never_an_acknowledgement(tmp_path: Path) -> None:
    """The server then answers COMMIT with success and a warning."""
    async with postgres_server(tmp_path) as server:
        world = await World.create(server.dsn)
        node = await world.node(settings_of(attempts=2))
        collection = await world.collection()
        await world.sql.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        await world.sql.execute("SELECT pg_reload_conf()")
        requests = [request_of(collection, ["a"], key="k"), request_of(collection, ["b"])]
        tasks = [asyncio.create_task(outcome_of(node, request)) for request in requests]
        for _ in range(2):  # the append, and the try that finds its key: it may not be acknowledged either
            await eventually(lambda: waits_for_standby(world))
            await world.sql.fetch("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
            await eventually(lambda: settled(world))
        assert [type(await task) for task in tasks] == [OutcomeUnknown, OutcomeUnknown]
        await world.sql.execute("ALTER SYSTEM RESET synchronous_standby_names")
        await world.sql.execute("SELECT pg_reload_conf()")
        assert (await node.append(requests[0])).replayed
        await world.close()


async def waits_for_standby(world: World) -> bool:
    return await world.count("pg_stat_activity", "wait_event = 'SyncRep'") > 0


async def settled(world: World) -> bool:
    return not await waits_for_standby(world)


async def test_a_node_that_freezes_in_a_transaction_loses_its_locks(world: World) -> None:
    settings = replace(settings_of(), idle_transaction_timeout_ms=100)
    node, other = await world.node(settings), await world.node(settings_of(lock_timeout_ms=5_000))
    collection = await world.collection()

    acknowledged: list[AppendResult] = []

    async def freeze() -> None:
        async with node._store.appending() as frozen:
            await frozen.lock([collection])
            acknowledged.append(await other.append(request_of(collection, ["a"])))
            await frozen.lock([collection])

    with pytest.raises(Unavailable):
        await freeze()
    assert [result.first_offset for result in acknowledged] == [1]


async def test_a_server_that_acknowledges_before_it_is_durable_is_refused(world: World) -> None:
    name = world.dsn.rpartition("/")[2]
    await world.sql.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    with pytest.raises(FailedPrecondition, match="synchronous_commit"):
        await world.node()


async def test_a_server_without_a_standby_is_refused_where_one_is_required(world: World) -> None:
    with pytest.raises(FailedPrecondition, match="synchronous_standby_names"):
        await world.node(replace(settings_of(), require_synchronous_standby=True))
