"""Retries, failover and deadlines of calls, with scripted failures and a virtual clock."""

from __future__ import annotations

import asyncio

import pytest

from libs.client.tests.client_support import Fail, FakeApi, client_of
from shoal.aio import AsyncCollection
from shoal_core import errors
from shoal_testing.virtual_clock import SeededRandom, VirtualClock


async def collection_on(
    api: FakeApi, *others: FakeApi, clock: VirtualClock, timeout_ms: int = 10_000
) -> AsyncCollection:
    async with client_of(api, *others, clock=clock, random=SeededRandom(), timeout_ms=timeout_ms) as client:
        collection = await client.create_collection("c")
    for item in (api, *others):
        item.calls.clear()
    return collection


RETRIED = [
    errors.Unavailable("gone"),
    errors.StaleEpoch("renamed"),
    errors.SnapshotGone("compacted"),
    errors.BackPressure("behind", retry_after_ms=700),
    errors.ResourceExhausted("quota", retry_after_ms=100),
    errors.OutcomeUnknown("lost"),
]


@pytest.mark.parametrize("error", RETRIED, ids=lambda error: type(error).__name__)
async def test_a_write_is_retried_with_one_key(error: errors.ShoalError) -> None:
    api, clock = FakeApi(), VirtualClock()
    collection = await collection_on(api, clock=clock)
    api.script.extend([error, error])
    result = await clock.run(collection.add(ids=["a"], embeddings=[[1.0]]))
    assert result.records == 1
    keys = {call["idempotency_key"] for call in api.seen("write")}
    assert len(api.seen("write")) == 3
    assert len(keys) == 1
    assert len(keys.pop()) == 32
    assert clock.monotonic() >= 2 * error.retry_after_ms / 1_000


@pytest.mark.parametrize("error", RETRIED[:-1], ids=lambda error: type(error).__name__)
async def test_a_read_is_retried(error: errors.ShoalError) -> None:
    api, clock = FakeApi(), VirtualClock()
    collection = await collection_on(api, clock=clock)
    api.script.extend([error] * 3)
    assert await clock.run(collection.count()) == 0
    assert len(api.seen("count")) == 4


async def test_a_lost_answer_is_not_written_twice() -> None:
    api, clock = FakeApi(), VirtualClock()
    collection = await collection_on(api, clock=clock)
    api.script.append(Fail(errors.OutcomeUnknown("lost"), after=True))
    result = await clock.run(collection.upsert(ids=["a"], embeddings=[[1.0]]))
    assert (result.first_offset, result.token.offset) == (1, 1)


async def test_every_write_has_its_own_key_and_takes_the_users() -> None:
    api, clock = FakeApi(), VirtualClock()
    collection = await collection_on(api, clock=clock)
    await collection.add(ids=["a"], embeddings=[[1.0]])
    await collection.add(ids=["b"], embeddings=[[1.0]])
    await collection.add(ids=["c"], embeddings=[[1.0]], idempotency_key="mine")
    await collection.delete(ids="a")
    await collection.delete(where={"x": 1})
    keys = [call["idempotency_key"] for call in (*api.seen("write"), *api.seen("delete_where"))]
    assert len(set(keys)) == 5
    assert keys[2] == "mine"


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidArgument("bad"),
        errors.NotFound("none"),
        errors.WriteConflict("lost"),
        errors.IdempotencyMismatch("other content"),
        errors.DeadlineExceeded("late"),
        errors.ResourceExhausted("quota"),
        errors.PermissionDenied("no"),
        errors.Internal("defect"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_other_errors_are_raised_at_once(error: errors.ShoalError) -> None:
    api, clock = FakeApi(), VirtualClock()
    collection = await collection_on(api, clock=clock)
    api.script.append(error)
    with pytest.raises(type(error)):
        await collection.add(ids=["a"], embeddings=[[1.0]])
    assert len(api.calls) == 1


async def test_the_last_error_is_raised_at_the_deadline() -> None:
    api, clock = FakeApi(), VirtualClock()
    collection = await collection_on(api, clock=clock)
    api.down = errors.Unavailable("gone")
    with pytest.raises(errors.Unavailable, match="gone") as caught:
        await clock.run(collection.count())
    assert 8 < clock.monotonic() <= 10
    assert "given up after" in caught.value.__notes__[0]
    assert 5 < len(api.calls) < 20


async def test_back_pressure_that_lasts_is_raised_without_waiting_it_out() -> None:
    api, clock = FakeApi(), VirtualClock()
    collection = await collection_on(api, clock=clock)
    api.down = errors.BackPressure("behind", retry_after_ms=60_000)
    with pytest.raises(errors.BackPressure) as caught:
        await clock.run(collection.add(ids=["a"], embeddings=[[1.0]]))
    assert caught.value.retry_after_ms == 60_000
    assert clock.monotonic() == 0


async def test_a_doubtful_write_stays_doubtful_when_the_retries_fail() -> None:
    api, clock = FakeApi(), VirtualClock()
    collection = await collection_on(api, clock=clock)
    api.script.append(Fail(errors.OutcomeUnknown("lost"), after=True))

    async def fall() -> None:
        if len(api.calls) > 1:
            api.down = errors.Unavailable("gone")

    api.before = fall
    with pytest.raises(errors.OutcomeUnknown, match="may have happened"):
        await clock.run(collection.add(ids=["a"], embeddings=[[1.0]]))


async def test_catalog_writes_are_not_repeated_when_in_doubt() -> None:
    api = FakeApi()
    clock = VirtualClock()
    async with client_of(api, clock=clock, random=SeededRandom()) as client:
        api.script.append(errors.OutcomeUnknown("lost"))
        with pytest.raises(errors.OutcomeUnknown):
            await client.create_collection("c")
        api.script.append(errors.Unavailable("gone"))
        await clock.run(client.create_collection("c"))
        api.script.append(errors.OutcomeUnknown("lost"))
        await clock.run(client.get_or_create_collection("c"))
    assert len(api.seen("create_collection")) == 5


async def test_a_call_without_answer_ends_at_the_deadline() -> None:
    api, clock = FakeApi(), VirtualClock()
    collection = await collection_on(api, clock=clock, timeout_ms=20)

    async def hang() -> None:
        await asyncio.Event().wait()

    api.before = hang
    with pytest.raises(errors.DeadlineExceeded, match="within 20 ms"):
        await collection.count()
    with pytest.raises(errors.OutcomeUnknown, match="idempotency_key"):
        await collection.add(ids=["a"], embeddings=[[1.0]])


async def test_failover_to_the_next_address_at_once() -> None:
    first = FakeApi()
    second, clock = FakeApi(first.state), VirtualClock()
    collection = await collection_on(first, second, clock=clock)
    first.down = errors.Unavailable("gone")
    for _ in range(6):
        await collection.count()
    assert clock.monotonic() == 0, "nobody waited"
    assert len(first.calls) == 1, "left out after its failure"
    assert len(second.calls) == 6


async def test_a_recovered_address_is_used_again() -> None:
    first = FakeApi()
    second, clock = FakeApi(first.state), VirtualClock()
    collection = await collection_on(first, second, clock=clock)
    first.down = errors.Unavailable("gone")
    await collection.count()
    await collection.count()
    first.down = None
    await clock.advance(1.5)
    for _ in range(4):
        await collection.count()
    assert len(first.calls) >= 2


async def test_calls_go_round() -> None:
    first = FakeApi()
    apis = [first, FakeApi(first.state), FakeApi(first.state)]
    collection = await collection_on(*apis, clock=VirtualClock())
    for _ in range(9):
        await collection.count()
    assert [len(api.calls) for api in apis] == [3, 3, 3]


async def test_a_write_fails_over_with_its_key() -> None:
    first = FakeApi()
    second, clock = FakeApi(first.state), VirtualClock()
    collection = await collection_on(first, second, clock=clock)
    for api in (first, second):
        api.script.append(Fail(errors.OutcomeUnknown("lost"), after=True))
    result = await clock.run(collection.add(ids=["a"], embeddings=[[1.0]]))
    calls = [*first.seen("write"), *second.seen("write")]
    assert len(calls) == 3
    assert len({call["idempotency_key"] for call in calls}) == 1
    assert result.token.offset == 1
