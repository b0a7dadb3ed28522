"""Large payloads lie in object storage, written before they are named and verified when they are read."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from services.logservice.tests.log_support import World, payload_of, request_of, rows_of, whole_tail
from shoal_core.contracts import Condition, TailRequest, shard_range
from shoal_core.errors import Corrupt, OffsetExpired, ShoalError, Unavailable, UploadExpired, WriteConflict
from shoal_log import AppendSettings, LogSettings, TailSettings

pytestmark = pytest.mark.integration

SMALL_LIMIT = LogSettings(append=AppendSettings(inline_limit_bytes=1000), tail=TailSettings(cache_size_bytes=0))
LARGE = [f"id{i}" for i in range(200)]


async def keys_of(world: World) -> list[str]:
    return [info.key async for info in world.objects.list("log/")]


async def test_above_the_limit_a_payload_is_an_object(world: World) -> None:
    node = await world.node(SMALL_LIMIT)
    collection = await world.collection()
    small, large = payload_of(["a"], dimension=2), payload_of(LARGE, dimension=8)
    assert small.size <= 1000 < large.size
    await node.append(request_of(collection, ["a"], dimension=2))
    assert await keys_of(world) == []
    collection = await world.collection()
    await asyncio.gather(
        node.append(request_of(collection, LARGE, dimension=8)),
        node.append(request_of(collection, ["x"])),
    )
    (key,) = await keys_of(world)
    assert key.startswith(f"log/{collection}/")
    (row,) = await world.sql.fetch("SELECT * FROM log_entry WHERE object_key IS NOT NULL")
    assert row["object_key"] == key
    assert (row["payload"], row["size_bytes"]) == (None, large.size)
    assert len(row["id_hashes"]) == 8 * len(LARGE)
    assert await world.count("upload_intent") == 0
    reader = await world.node(SMALL_LIMIT)
    for shards in (1, 3):
        parts = [await whole_tail(reader, collection, hash_range=shard_range(s, shards)) for s in range(shards)]
        ids = sorted(id for part in parts for _, id in rows_of(part))
        assert ids == sorted([*LARGE, "x"])


async def test_exactly_the_limit_is_inline(world: World) -> None:
    request = request_of(await world.collection(), LARGE)
    for limit, objects in ((request.payload.size, 0), (request.payload.size - 1, 1)):
        node = await world.node(LogSettings(append=AppendSettings(inline_limit_bytes=limit)))
        await node.append(request)
        assert len(await keys_of(world)) == objects


async def test_conditions_see_into_large_batches(world: World) -> None:
    node = await world.node(SMALL_LIMIT)
    collection = await world.collection()
    await node.append(request_of(collection, LARGE))
    with pytest.raises(WriteConflict):
        await node.append(request_of(collection, ["a"], condition=Condition(0, ("id7",))))
    assert world.objects.gets == 0


@pytest.mark.parametrize("error", [Unavailable("away"), OSError("no route"), ShoalError("strange")])
async def test_a_failed_upload_writes_nothing(world: World, error: Exception) -> None:
    node = await world.node(SMALL_LIMIT)
    collection = await world.collection()

    def fail(_key: str) -> None:
        raise error

    world.objects.before_put = fail
    with pytest.raises(Unavailable, match="nothing was written"):
        await node.append(request_of(collection, LARGE))
    assert await world.count("log_entry") == 0
    assert await world.sql.fetchval("SELECT head_offset FROM log_head") == 0
    assert await world.count("upload_intent") == 1  # by which the sweeper finds what may have been left
    world.objects.before_put = None
    assert (await node.append(request_of(collection, LARGE))).first_offset == 1
    assert node._admission.items == 0


async def test_an_upload_whose_answer_is_lost_counts_once_it_is_read_back(world: World) -> None:
    node = await world.node(SMALL_LIMIT)
    collection = await world.collection()
    lost = ["once"]

    def lose_answer(_key: str) -> None:
        if lost:
            lost.pop()
            raise Unavailable("answer lost")

    world.objects.after_put = lose_answer
    await node.append(request_of(collection, LARGE))
    assert len(rows_of(await whole_tail(node, collection))) == 200


async def test_an_object_uploaded_too_long_ago_is_not_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    node = await world.node(SMALL_LIMIT)
    collection = await world.collection()
    for sql, accepted in [
        ("UPDATE upload_intent SET created_at = now() - interval '16 minutes'", False),
        ("DELETE FROM upload_intent", False),
        ("UPDATE upload_intent SET created_at = now() - interval '14 minutes'", True),
    ]:
        committer = node._committer
        commit = type(committer).append

        async def late(append: object, statement: str = sql) -> object:
            await world.sql.execute(statement)
            return await commit(committer, append)  # type: ignore[arg-type] # noqa: B023

        monkeypatch.setattr(committer, "append", late)
        if accepted:
            assert (await node.append(request_of(collection, LARGE))).first_offset == 1
        else:
            with pytest.raises(UploadExpired):
                await node.append(request_of(collection, LARGE))
            assert await world.count("log_entry") == 0


async def test_a_refused_append_keeps_the_intent_of_its_object(world: World) -> None:
    node = await world.node(SMALL_LIMIT)
    collection = await world.collection()
    with pytest.raises(ShoalError):
        await node.append(request_of(collection, LARGE, epoch=5))
    assert await world.count("upload_intent") == len(await keys_of(world)) == 1


async def test_the_retry_of_a_large_append_returns_the_first_outcome(world: World) -> None:
    node = await world.node(SMALL_LIMIT)
    collection = await world.collection()
    request = request_of(collection, LARGE, key="k")
    first = await node.append(request)
    assert await node.append(request) == replace(first, replayed=True)
    assert await world.count("log_entry") == 1
    assert await world.count("upload_intent") == 1  # of the copy that nobody names


async def test_a_damaged_or_lost_object_is_an_error(world: World) -> None:
    node = await world.node(SMALL_LIMIT)
    collection = await world.collection()
    await node.append(request_of(collection, LARGE))
    (key,) = await keys_of(world)
    world.objects.corrupt(key)
    with pytest.raises(Corrupt):
        await node.read_tail(TailRequest(collection, 1, 0))
    await world.objects.delete([key])
    with pytest.raises(Corrupt):
        await node.read_tail(TailRequest(collection, 1, 0))

    def away(_key: str) -> None:
        raise Unavailable("away")

    world.objects.before_get = away
    with pytest.raises(Unavailable):
        await node.read_tail(TailRequest(collection, 1, 0))


async def test_an_object_trimmed_while_it_is_read_has_expired(world: World) -> None:
    node = await world.node(SMALL_LIMIT)
    collection = await world.collection()
    await node.append(request_of(collection, LARGE))
    load = node._tail._payloads_of

    async def trimmed_meanwhile(*arguments: object) -> object:
        await world.objects.delete(await keys_of(world))
        await world.sql.execute("UPDATE log_head SET trim_floor = 200")
        return await load(*arguments)  # type: ignore[arg-type]

    node._tail._payloads_of = trimmed_meanwhile  # type: ignore[method-assign, assignment]
    with pytest.raises(OffsetExpired):
        await node.read_tail(TailRequest(collection, 1, 0))


async def test_its_own_large_appends_are_read_from_memory(world: World) -> None:
    node = await world.node(LogSettings(append=AppendSettings(inline_limit_bytes=1000)))
    collection = await world.collection()
    await node.append(request_of(collection, LARGE))
    assert len(rows_of(await whole_tail(node, collection))) == 200
    assert world.objects.gets == 0
