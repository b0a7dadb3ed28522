"""Append over a real Postgres: order, groups, idempotency, conditions, locks."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from services.logservice.tests.log_support import (
    TENANT,
    World,
    eventually,
    payload_of,
    request_of,
    rows_of,
    whole_tail,
)
from shoal_core.contracts import AppendRequest, AppendResult, Condition
from shoal_core.errors import (
    BackPressure,
    DimensionMismatch,
    IdempotencyMismatch,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ShoalError,
    StaleEpoch,
    StaleRead,
    Unavailable,
    WriteConflict,
)
from shoal_log import AppendSettings, LogService, LogSettings
from shoal_log.decide import Append

pytestmark = pytest.mark.integration


def settings_of(**append: Any) -> LogSettings:
    return LogSettings(append=AppendSettings(**append))


async def outcome_of(node: LogService, request: AppendRequest) -> AppendResult | ShoalError:
    try:
        return await node.append(request)
    except ShoalError as error:
        return error


async def test_two_nodes_and_sixteen_writers_give_every_record_one_offset(world: World) -> None:
    nodes = [await world.node(), await world.node()]
    collections = [await world.collection() for _ in range(3)]
    acknowledged: dict[str, list[tuple[int, str]]] = {collection: [] for collection in collections}

    async def write(writer: int) -> None:
        for turn in range(12):
            collection = collections[(writer + turn) % 3]
            ids = [f"{writer}-{turn}-{row}" for row in range(1 + (writer + turn) % 4)]
            result = await nodes[writer % 2].append(request_of(collection, ids))
            assert result.token.collection_id == collection
            assert result.token.offset - result.first_offset + 1 == len(ids)
            acknowledged[collection] += zip(itertools.count(result.first_offset), ids, strict=False)

    await asyncio.gather(*(write(writer) for writer in range(16)))
    for collection in collections:
        expected = sorted(acknowledged[collection])
        assert [offset for offset, _ in expected] == list(range(1, len(expected) + 1))
        for node in [*nodes, await world.node()]:
            assert rows_of(await whole_tail(node, collection)) == expected
    assert await world.deadlocks() == 0


async def test_a_writer_sees_its_own_writes_in_the_order_of_its_calls(world: World) -> None:
    nodes = [await world.node(), await world.node()]
    collection = await world.collection()

    async def write(writer: int) -> list[int]:
        return [
            (await nodes[turn % 2].append(request_of(collection, [f"{writer}-{turn}"]))).first_offset
            for turn in range(10)
        ]

    for offsets in await asyncio.gather(*(write(writer) for writer in range(4))):
        assert offsets == sorted(offsets)


async def test_what_is_queued_during_a_transaction_is_one_group(world: World) -> None:
    node = await world.node()
    collections = [await world.collection() for _ in range(3)]
    async with world.holding(collections[0]):
        first = asyncio.create_task(node.append(request_of(collections[0], ["first"])))
        await eventually(lambda: waits_for_lock(world))
        rest = [asyncio.create_task(node.append(request_of(collections[i % 3], [f"{i}"]))) for i in range(30)]
        await asyncio.sleep(0.05)
        assert node.counters.groups == 0
    await asyncio.gather(first, *rest)
    assert node.counters.groups == 2
    assert node.counters.appended_batches == 31
    # BEGIN, two locks, one write, COMMIT, however many items and collections.
    assert node.counters.statements == 10


async def waits_for_lock(world: World, waiters: int = 1) -> bool:
    return await world.count("pg_locks", "NOT granted") >= waiters


async def test_a_batch_is_all_or_nothing(world: World) -> None:
    node = await world.node()
    collection = await world.collection(dimension=2)
    good = [node.append(request_of(collection, [f"{i}", f"{i}x"], dimension=2)) for i in range(5)]
    bad = [outcome_of(node, request_of(collection, [f"bad{i}", "y"], dimension=3)) for i in range(5)]
    outcomes = await asyncio.gather(*itertools.chain(*zip(good, bad, strict=True)))
    assert [type(outcome) for outcome in outcomes] == [AppendResult, DimensionMismatch] * 5
    rows = rows_of(await whole_tail(await world.node(), collection))
    assert [offset for offset, _ in rows] == list(range(1, 11))
    assert not any(id.startswith("bad") for _, id in rows)


async def test_a_retry_returns_the_first_outcome_also_after_a_restart_and_from_another_node(world: World) -> None:
    node = await world.node()
    collection = await world.collection()
    request = request_of(collection, ["a", "b"], key="k")
    first = await node.append(request)
    await node.append(request_of(collection, ["a"]))
    again = replace(first, replayed=True)
    assert await node.append(request) == again
    await node.close()
    other = await world.node()
    assert await other.append(request) == again
    await world.sql.execute("UPDATE collection SET epoch = 2, version = version")
    assert await other.append(request) == again  # before the epoch is looked at
    with pytest.raises(IdempotencyMismatch):
        await other.append(replace(request, payload=payload_of(["a", "c"])))
    assert await world.sql.fetchval("SELECT head_offset FROM log_head") == 3
    assert await world.count("idempotency") == 1


async def test_the_same_key_at_the_same_time_on_two_nodes_is_written_once(world: World) -> None:
    nodes = [await world.node(), await world.node()]
    collection = await world.collection()
    for turn in range(10):
        request = request_of(collection, [f"{turn}"], key=f"k{turn}")
        results = await asyncio.gather(*(nodes[i % 2].append(request) for i in range(6)))
        assert len({(result.first_offset, result.token) for result in results}) == 1
        assert [result.replayed for result in results].count(False) == 1
    assert await world.sql.fetchval("SELECT head_offset FROM log_head") == 10


async def test_keys_of_other_collections_are_others(world: World) -> None:
    node = await world.node()
    one, two = await world.collection(), await world.collection()
    results = await asyncio.gather(*(node.append(request_of(c, ["a"], key="k")) for c in (one, two)))
    assert not any(result.replayed for result in results)


async def test_two_first_writes_race_for_the_dimension(world: World) -> None:
    nodes = [await world.node(), await world.node()]
    for _ in range(5):
        collection = await world.collection()
        outcomes = await asyncio.gather(
            *(outcome_of(nodes[i], request_of(collection, ["a"], dimension=3 + i)) for i in range(2))
        )
        kinds = {type(outcome) for outcome in outcomes}
        assert kinds == {AppendResult, DimensionMismatch}
        winner = next(i for i in range(2) if isinstance(outcomes[i], AppendResult))
        assert (await nodes[0].read_index(collection, 1)).dimension == 3 + winner


async def test_refusals_by_the_state_of_the_collection(world: World) -> None:
    node = await world.node()
    collection = await world.collection()
    for request, error in [
        (request_of(collection, ["a"], epoch=2), StaleEpoch),
        (request_of(collection, ["a"], tenant="other"), NotFound),
        (request_of("00000000-0000-0000-0000-000000000000", ["a"]), NotFound),
        (request_of("no uuid", ["a"]), NotFound),
    ]:
        with pytest.raises(error):
            await node.append(request)
    await world.delete(collection)
    with pytest.raises(NotFound):
        await node.append(request_of(collection, ["a"]))
    assert await world.count("log_entry") == 0


async def test_a_delete_that_races_appends_ends_them(world: World) -> None:
    node = await world.node()
    collection = await world.collection()
    acknowledged = 0

    async def write(writer: int) -> None:
        nonlocal acknowledged
        for turn in range(1000):
            try:
                await node.append(request_of(collection, [f"{writer}-{turn}"]))
            except NotFound:
                return
            acknowledged += 1

    writers = [asyncio.create_task(write(writer)) for writer in range(4)]
    await eventually(lambda: _true(acknowledged > 20))
    await world.delete(collection)
    head_at_delete = await world.sql.fetchval("SELECT head_offset FROM log_head")
    await asyncio.gather(*writers)
    assert head_at_delete == acknowledged
    assert await world.count("log_entry") == acknowledged


async def _true(value: bool) -> bool:
    return value


async def test_bad_input_is_refused_before_it_can_hurt_its_group(world: World) -> None:
    node = await world.node()
    collection = await world.collection()
    good = request_of(collection, ["a"])
    bad = [
        replace(good, payload=pa.py_buffer(b"rubbish")),
        replace(good, idempotency_key="k" * 65),
        replace(good, idempotency_key="a\0b"),
        replace(good, idempotency_key="\ud800"),
        replace(good, tenant="a\0b"),
        replace(good, condition=Condition(-1, ())),
        replace(good, condition=Condition(2**63, ())),
        replace(good, condition=Condition(0, tuple("x" * 10_001))),
        replace(good, condition=Condition(0, ("\ud800",))),
        replace(good, condition=Condition(100, ("a",))),
    ]
    outcomes = await asyncio.gather(*(outcome_of(node, request) for request in [good, *bad, good]))
    assert [type(outcome) for outcome in outcomes] == [AppendResult, *[InvalidArgument] * 10, AppendResult]
    with pytest.raises(InvalidArgument, match="payload"):
        await (await world.node(settings_of(payload_size_bytes=500))).append(request_of(collection, ["a"] * 50))


async def test_one_item_that_the_database_refuses_fails_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_log.log._check_text", lambda *_: None)
    node = await world.node()
    collection = await world.collection()
    requests = [request_of(collection, [f"{i}"], key="a\0b" if i == 3 else f"k{i}") for i in range(6)]
    async with world.holding(collection):
        started = asyncio.create_task(outcome_of(node, request_of(collection, ["x"])))
        await eventually(lambda: waits_for_lock(world))
        tasks = [asyncio.create_task(outcome_of(node, request)) for request in requests]
        await asyncio.sleep(0.02)
    outcomes = [await task for task in tasks]
    await started
    assert [isinstance(outcome, AppendResult) for outcome in outcomes] == [True, True, True, False, True, True]
    assert await world.sql.fetchval("SELECT head_offset FROM log_head") == 6


# --- conditions ------------------------------------------------------------------------------------------------------


async def test_a_conditional_write_fails_if_its_read_set_was_written_since(world: World) -> None:
    node = await world.node(settings_of(scan_entries=2))
    collection = await world.collection()
    for i in range(7):
        await node.append(request_of(collection, [f"id{i}", f"other{i}"]))
    for read_offset, read_ids, conflicts in [
        (0, ("id0",), True),
        (0, ("id6",), True),
        (2, ("id0",), False),
        (12, ("id6", "nothing"), True),
        (14, ("id6",), False),
        (4, (), False),
        (3, ("other1",), True),  # within a batch: the whole of it counts as written since
    ]:
        request = request_of(collection, ["new"], condition=Condition(read_offset, read_ids))
        outcome = await outcome_of(node, request)
        assert isinstance(outcome, WriteConflict) is conflicts, (read_offset, read_ids)
        assert conflicts or isinstance(outcome, AppendResult)


async def test_what_is_committed_is_searched_before_locking(world: World) -> None:
    node = await world.node(settings_of(scan_entries=2))
    collection = await world.collection()
    for i in range(7):
        await node.append(request_of(collection, [f"id{i}"]))
    check = await node._scan(collection, Condition(1, ("nothing",)))
    assert (check.scanned_offset, check.conflict) == (7, False)
    statements = node.counters.statements
    await node.append(request_of(collection, ["a"], condition=Condition(1, ("nothing",))))
    assert node.counters.statements == statements + 5  # none to search what came since


@pytest.mark.parametrize("written", ["read", "other"])
async def test_a_write_between_the_scan_and_the_lock_is_seen(
    world: World, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    node, other = await world.node(), await world.node()
    collection = await world.collection()
    await node.append(request_of(collection, ["read", "other"]))
    committer = node._committer
    commit = committer.append

    async def after_another(append: Append) -> AppendResult:
        await other.append(request_of(collection, [written]))
        return await commit(append)

    monkeypatch.setattr(committer, "append", after_another)
    outcome = await outcome_of(node, request_of(collection, ["read"], condition=Condition(2, ("read",))))
    assert isinstance(outcome, WriteConflict if written == "read" else AppendResult)


async def test_of_conditional_writes_over_the_same_read_one_wins(world: World) -> None:
    nodes = [await world.node(), await world.node()]
    collection = await world.collection()
    offset = (await nodes[0].append(request_of(collection, ["x"]))).token.offset
    for _ in range(5):
        outcomes = await asyncio.gather(
            *(
                outcome_of(nodes[i % 2], request_of(collection, ["x"], condition=Condition(offset, ("x",))))
                for i in range(8)
            )
        )
        won = [outcome for outcome in outcomes if isinstance(outcome, AppendResult)]
        assert len(won) == 1
        assert all(isinstance(outcome, AppendResult | WriteConflict) for outcome in outcomes)
        offset = won[0].token.offset


async def test_the_retry_of_a_conditional_write_is_no_conflict_with_itself(world: World) -> None:
    node = await world.node()
    collection = await world.collection()
    request = request_of(collection, ["x"], key="k", condition=Condition(0, ("x",)))
    first = await node.append(request)
    assert await node.append(request) == replace(first, replayed=True)


async def test_a_read_offset_below_the_trim_floor_is_a_stale_read(world: World) -> None:
    node = await world.node()
    collection = await world.collection()
    for i in range(3):
        await node.append(request_of(collection, [f"{i}"]))
    await world.sql.execute("UPDATE log_head SET trim_floor = 2")
    assert isinstance(await outcome_of(node, request_of(collection, ["y"], condition=Condition(1, ("z",)))), StaleRead)
    assert isinstance(
        await outcome_of(node, request_of(collection, ["y"], condition=Condition(2, ("z",)))), AppendResult
    )


# --- bounds ----------------------------------------------------------------------------------------------------------


async def test_back_pressure_at_the_bound_ends_with_a_publish(world: World) -> None:
    collection = await world.collection()
    size = payload_of(["0"], dimension=2).size
    bound = settings_of(uncompacted_size_bytes=5 * size, payload_size_bytes=2 * size)
    nodes = [await world.node(bound), await world.node(bound)]
    outcomes = await asyncio.gather(
        *(outcome_of(nodes[i % 2], request_of(collection, [f"{i}"], dimension=2)) for i in range(9))
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["AppendResult"] * 5 + ["BackPressure"] * 4
    refused = next(outcome for outcome in outcomes if isinstance(outcome, BackPressure))
    assert refused.retry_after_ms > 0
    await world.publish(collection, 2)
    outcomes = [await outcome_of(nodes[0], request_of(collection, [f"x{i}"], dimension=2)) for i in range(4)]
    # "x0" is a byte longer than "0", but Arrow pads.
    assert [type(outcome).__name__ for outcome in outcomes] == ["AppendResult"] * 2 + ["BackPressure"] * 2
    assert await world.sql.fetchval("SELECT sum(size_bytes) FROM log_entry WHERE end_offset > 2") <= 5 * size


async def test_back_pressure_by_records(world: World) -> None:
    node = await world.node(settings_of(uncompacted_records=3))
    collection = await world.collection()
    assert isinstance(await outcome_of(node, request_of(collection, ["a", "b"])), AppendResult)
    assert isinstance(await outcome_of(node, request_of(collection, ["c", "d"])), BackPressure)
    assert isinstance(await outcome_of(node, request_of(collection, ["c"])), AppendResult)
    await world.publish(collection)
    assert isinstance(await outcome_of(node, request_of(collection, ["d", "e"])), AppendResult)


async def test_a_full_node_refuses_at_once_with_a_retry_hint(world: World) -> None:
    node = await world.node(settings_of(admitted_items=3))
    collection = await world.collection()
    async with world.holding(collection):
        tasks = [asyncio.create_task(outcome_of(node, request_of(collection, [f"{i}"]))) for i in range(5)]
        await eventually(lambda: waits_for_lock(world))
        refused = [task.result() for task in tasks if task.done()]
        assert [type(outcome) for outcome in refused] == [ResourceExhausted] * 2
        assert all(isinstance(outcome, ShoalError) and outcome.retry_after_ms > 0 for outcome in refused)
    assert [type(await task) for task in tasks] == [AppendResult] * 3 + [ResourceExhausted] * 2
    assert isinstance(await outcome_of(node, request_of(collection, ["again"])), AppendResult)


async def test_the_backlog_is_dated_from_the_oldest_append_that_is_not_compacted(world: World) -> None:
    node = await world.node()
    collection = await world.collection()
    since = "SELECT uncompacted_since FROM log_head"
    assert await world.sql.fetchval(since) is None
    await node.append(request_of(collection, ["a"]))
    first = await world.sql.fetchval(since)
    assert first is not None
    await node.append(request_of(collection, ["b"]))
    assert await world.sql.fetchval(since) == first
    await world.publish(collection)
    assert await world.sql.fetchval(since) is None
    await node.append(request_of(collection, ["c"]))
    assert await world.sql.fetchval(since) > first


# --- locks -----------------------------------------------------------------------------------------------------------


async def test_a_stuck_collection_does_not_hold_up_the_others(world: World) -> None:
    node = await world.node(settings_of(lock_timeout_ms=100, lock_attempts=1000, lanes=2))
    stuck, *others = [await world.collection() for _ in range(6)]
    async with world.holding(stuck):
        waiting = [asyncio.create_task(node.append(request_of(stuck, [f"{i}"]))) for i in range(3)]
        first = await asyncio.gather(*(node.append(request_of(other, ["a"])) for other in others))
        assert [result.first_offset for result in first] == [1] * 5
        waiting += [asyncio.create_task(node.append(request_of(stuck, [f"{i}"]))) for i in range(3, 6)]
        timeouts = node.counters.lock_timeouts
        for turn in range(20):
            for other in others:
                assert (await node.append(request_of(other, ["b"]))).first_offset == 2 + turn
        assert node.counters.lock_timeouts <= timeouts + 20
        assert not any(task.done() for task in waiting)
    results = [await task for task in waiting]
    assert [result.first_offset for result in results] == [1, 2, 3, 4, 5, 6]
    assert rows_of(await whole_tail(node, stuck)) == [(i + 1, f"{i}") for i in range(6)]


async def test_a_collection_that_stays_stuck_is_unavailable_and_then_works_again(world: World) -> None:
    node = await world.node(settings_of(lock_timeout_ms=30, lock_attempts=2))
    stuck, other = await world.collection(), await world.collection()
    async with world.holding(stuck):
        with pytest.raises(Unavailable):
            await node.append(request_of(stuck, ["a"]))
        timeouts = node.counters.lock_timeouts
        retry = asyncio.create_task(outcome_of(node, request_of(stuck, ["a"])))
        for turn in range(10):
            await node.append(request_of(other, [f"{turn}"]))
        assert isinstance(await retry, Unavailable)
        assert node.counters.lock_timeouts == timeouts + 2  # in its own lane, not in the main one again
    assert (await node.append(request_of(stuck, ["b"]))).first_offset == 1
    assert (await node.append(request_of(stuck, ["c"]))).first_offset == 2


async def test_more_stuck_collections_than_lanes_do_not_starve_the_rest(world: World) -> None:
    node = await world.node(settings_of(lock_timeout_ms=30, lock_attempts=2, lanes=2))
    collections = [await world.collection() for _ in range(8)]
    async with AsyncExitStack() as held:
        for collection in collections[:4]:
            await held.enter_async_context(world.holding(collection))
        first = asyncio.create_task(outcome_of(node, request_of(collections[0], ["a"])))
        await eventually(lambda: waits_for_lock(world))
        outcomes = await asyncio.gather(*(outcome_of(node, request_of(c, ["a"])) for c in collections[1:]))
        assert [type(outcome) for outcome in outcomes] == [Unavailable] * 3 + [AppendResult] * 4
        assert isinstance(await first, Unavailable)


async def test_appends_publishes_and_deletes_over_the_same_rows_never_deadlock(world: World) -> None:
    nodes = [await world.node(settings_of(lock_timeout_ms=5_000)) for _ in range(2)]
    kept, doomed = [await world.collection() for _ in range(4)], [await world.collection() for _ in range(6)]
    acknowledged = dict.fromkeys(kept, 0)
    stop = False

    async def write(writer: int) -> int:
        turns = 0
        while not stop:
            targets = [kept[(writer + turns + i) % 4] for i in range(3)] + [doomed[(writer + turns) % 6]]
            requests = [request_of(target, [f"{writer}-{turns}"]) for target in reversed(targets)]
            outcomes = await asyncio.gather(*(outcome_of(nodes[writer % 2], request) for request in requests))
            for request, outcome in zip(requests, outcomes, strict=True):
                if request.collection_id in acknowledged:
                    assert isinstance(outcome, AppendResult), outcome
                    acknowledged[request.collection_id] += 1
                else:
                    assert isinstance(outcome, AppendResult | NotFound), outcome
            turns += 1
        return turns

    async def publish() -> int:
        turns = 0
        while not stop:
            await world.publish(kept[turns % 4])
            turns += 1
        return turns

    async def delete() -> None:
        for collection in doomed:
            await asyncio.sleep(0.15)
            await world.delete(collection)

    tasks = [asyncio.create_task(write(writer)) for writer in range(8)]
    tasks += [asyncio.create_task(publish()) for _ in range(2)]
    await delete()
    stop = True
    turns = await asyncio.gather(*tasks)
    assert min(turns) > 3, turns
    assert await world.deadlocks() == 0
    assert sum(node.counters.lock_timeouts for node in nodes) == 0
    for collection, count in acknowledged.items():
        assert (await nodes[0].read_index(collection, 1)).head_offset == count


# --- callers ---------------------------------------------------------------------------------------------------------


async def test_a_cancelled_caller_does_not_take_its_group_with_it(world: World) -> None:
    node = await world.node()
    collection = await world.collection()
    async with world.holding(collection):
        tasks = [asyncio.create_task(node.append(request_of(collection, [f"{i}"]))) for i in range(6)]
        await eventually(lambda: waits_for_lock(world))
        for task in tasks[::2]:
            task.cancel()
        await asyncio.sleep(0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, AppendResult) for result in results] == [False, True] * 3
    assert node._admission.items == 0
    assert {id for _, id in rows_of(await whole_tail(node, collection))} >= {"1", "3", "5"}


async def test_a_group_that_fails_after_its_callers_left_leaves_the_node_working(world: World) -> None:
    node = await world.node(settings_of(lock_timeout_ms=100, lock_attempts=2))
    collection = await world.collection()
    async with world.holding(collection):
        tasks = [asyncio.create_task(outcome_of(node, request_of(collection, [f"{i}"]))) for i in range(4)]
        await eventually(
            lambda: _true(node.counters.lock_timeouts == 2)
        )  # taken by a lane of its own, tried once there
        for task in tasks[:2]:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes[2:]] == [Unavailable] * 2
    assert (await node.append(request_of(collection, ["a"]))).first_offset == 1


async def test_close_finishes_what_is_under_way_and_refuses_the_rest(world: World) -> None:
    node = await world.node()
    collection = await world.collection()
    async with world.holding(collection):
        task = asyncio.create_task(node.append(request_of(collection, ["a"])))
        await eventually(lambda: waits_for_lock(world))
        closing = asyncio.create_task(node.close())
        await asyncio.sleep(0.01)
        with pytest.raises(Unavailable):
            await node.append(request_of(collection, ["b"]))
    assert (await task).first_offset == 1
    await closing
    with pytest.raises(Unavailable):
        await node.append(request_of(collection, ["b"]))
    with pytest.raises(Unavailable):
        await node.read_index(collection, 1)


async def test_close_does_not_wait_for_ever(world: World) -> None:
    settings = replace(settings_of(lock_timeout_ms=60_000), drain_timeout_ms=50, statement_timeout_ms=60_000)
    node = await world.node(settings)
    collection = await world.collection()
    async with world.holding(collection):
        tasks = [asyncio.create_task(outcome_of(node, request_of(collection, [f"{i}"]))) for i in range(3)]
        await eventually(lambda: waits_for_lock(world))
        tasks.append(asyncio.create_task(outcome_of(node, request_of(collection, ["queued"]))))
        await asyncio.sleep(0)
        await node.close()
        assert [type(await task) for task in tasks] == [Unavailable] * 4
    assert await world.count("log_entry") == 0


async def test_the_tenant_of_a_request_is_the_collection_s(world: World) -> None:
    node = await world.node()
    collection = await world.collection()
    await node.append(request_of(collection, ["a"], key="k"))
    assert await world.sql.fetchval("SELECT tenant FROM idempotency") == TENANT
