"""Names: a cache that is never trusted. Another frontend's renames, deletions and new collections count at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shoal_core.consistency import Consistency, ReadLevel
from shoal_core.contracts import Answer, CollectionRef, NewCollection
from shoal_core.errors import NotFound, ShoalError, StaleEpoch
from shoal_core.filters import parse_where
from shoal_frontend.database import DatabaseService
from shoal_frontend.names import Names
from shoal_testing.direct import DirectSystem
from shoal_testing.fakes import DEFAULT_DATABASE, DEFAULT_TENANT
from shoal_testing.schedules import Gate, Turns, hooked, run_quietly
from shoal_testing.strategies import to_operation_batch

BY_NAME = CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, "things")


def row(name: str) -> pa.RecordBatch:
    return to_operation_batch([("upsert", name, (1.0, 0.0), None, None, None)], 2)


class Pair:
    """Two frontends, the first of which changes names behind the other's back; the second has used the name already."""

    def __init__(self) -> None:
        self.system = DirectSystem()
        self.one: DatabaseService = self.system.new_database()
        self.two: DatabaseService = self.system.new_database()

    async def start(self, shards: int) -> str:
        collection, _ = await self.one.create_collection(replace(NEW, shards=shards))
        await self.two.write(BY_NAME, row("old"))
        assert await ids(self.two, BY_NAME) == ["old"]
        return collection.id


NEW = NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, "things")


async def ids(database: DatabaseService, ref: CollectionRef) -> list[str]:
    answer = await database.get(ref)
    assert (await database.count(ref)).count == answer.rows.num_rows
    near = await database.query(ref, np.ones((1, 2), np.float32), 10)
    assert sorted(near.rows.column("id").to_pylist()) == sorted(answer.rows.column("id").to_pylist())
    return list(answer.rows.column("id").to_pylist())


async def assert_gone(database: DatabaseService, ref: CollectionRef) -> None:
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: database.write(ref, row("new")),
        lambda: database.get(ref),
        lambda: database.get(ref, limit=1),
        lambda: database.count(ref),
        lambda: database.query(ref, np.ones((1, 2), np.float32), 1),
        lambda: database.delete_where(ref, ids=["old"], where=None),
        lambda: database.indexing_status(ref),
    ]
    for call in calls:
        with pytest.raises(NotFound):
            await call()


@pytest.mark.parametrize("shards", [1, 3])
async def test_a_collection_renamed_elsewhere(shards: int) -> None:
    pair = Pair()
    collection_id = await pair.start(shards)
    by_id = CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, id=collection_id)
    assert await ids(pair.two, by_id) == ["old"]
    await pair.one.modify_collection(BY_NAME, name="renamed")
    await assert_gone(pair.two, BY_NAME)
    await assert_gone(pair.one, BY_NAME)
    assert await ids(pair.two, replace(BY_NAME, name="renamed")) == ["old"]
    await pair.two.write(by_id, row("by-id"))
    assert await ids(pair.two, by_id) == ["old", "by-id"]


@pytest.mark.parametrize("shards", [1, 3])
async def test_a_collection_deleted_elsewhere(shards: int) -> None:
    pair = Pair()
    collection_id = await pair.start(shards)
    await pair.one.delete_collection(BY_NAME)
    await assert_gone(pair.two, BY_NAME)
    await assert_gone(pair.two, replace(BY_NAME, id=collection_id))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("first", ["write", "read"])
async def test_a_name_that_stands_for_another_collection_now(shards: int, first: str) -> None:
    pair = Pair()
    old_id = await pair.start(shards)
    await pair.one.delete_collection(BY_NAME)
    made, _ = await pair.one.create_collection(replace(NEW, shards=4 - shards, space="cosine"))
    if first == "read":
        assert await ids(pair.two, BY_NAME) == []
    result = await pair.two.write(BY_NAME, row("new"))
    assert result.token.collection_id == made.id != old_id
    assert await ids(pair.two, BY_NAME) == ["new"]
    with pytest.raises(NotFound):
        await pair.two.get(replace(BY_NAME, id=old_id))


async def test_two_collections_that_swap_their_names() -> None:
    pair = Pair()
    await pair.start(1)
    other = replace(BY_NAME, name="other")
    await pair.two.create_collection(replace(NEW, name="other"))
    await pair.two.write(other, row("other"))
    await pair.one.modify_collection(BY_NAME, name="between")
    await pair.one.modify_collection(other, name="things")
    await pair.one.modify_collection(replace(BY_NAME, name="between"), name="other")
    assert await ids(pair.two, BY_NAME) == ["other"]
    assert await ids(pair.two, other) == ["old"]


async def test_a_modification_elsewhere_costs_one_more_look() -> None:
    pair = Pair()
    await pair.start(1)
    await pair.one.modify_collection(BY_NAME, metadata={"a": 1})
    assert await ids(pair.two, BY_NAME) == ["old"]
    assert (await pair.two.get_collection(BY_NAME)).metadata == {"a": 1}


async def test_an_id_says_nothing_in_another_tenant_or_database() -> None:
    pair = Pair()
    collection_id = await pair.start(1)
    await pair.one.create_tenant("stranger")
    await pair.one.create_database("stranger", DEFAULT_DATABASE)
    await pair.one.create_database(DEFAULT_TENANT, "elsewhere")
    for tenant, database in (("stranger", DEFAULT_DATABASE), (DEFAULT_TENANT, "elsewhere")):
        ref = CollectionRef(tenant, database, id=collection_id)
        await assert_gone(pair.two, ref)
        for call in (pair.two.get_collection, pair.two.delete_collection):
            with pytest.raises(NotFound):
                await call(ref)
        with pytest.raises(NotFound):
            await pair.two.modify_collection(ref, name="stolen")
    assert await ids(pair.two, BY_NAME) == ["old"]


async def test_a_database_deleted_elsewhere_and_made_again() -> None:
    pair = Pair()
    await pair.start(1)
    await pair.one.delete_database(DEFAULT_TENANT, DEFAULT_DATABASE)
    await assert_gone(pair.two, BY_NAME)
    await pair.one.create_database(DEFAULT_TENANT, DEFAULT_DATABASE)
    await assert_gone(pair.two, BY_NAME)
    await pair.one.create_collection(NEW)
    assert await ids(pair.two, BY_NAME) == []


# --- the cache


@pytest.mark.parametrize("how", ["reset", "delete_database"])
async def test_who_deletes_many_collections_remembers_none(how: str) -> None:
    """A read that may be stale would go on to the old ones: it does not ask whether they are there."""
    system = DirectSystem()
    database = system.database
    database.allow_reset = True
    await system.create("things")
    ref = CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, name="things")
    await database.write(ref, to_operation_batch([("add", "a", (1.0, 2.0), None, None, None)], 2))
    assert (await database.count(ref)).count == 1
    if how == "reset":
        await database.reset()
    else:
        await database.delete_database(DEFAULT_TENANT, DEFAULT_DATABASE)
        await database.create_database(DEFAULT_TENANT, DEFAULT_DATABASE)
    bounded = Consistency(ReadLevel.BOUNDED, staleness_ms=60_000)
    with pytest.raises(NotFound):
        await database.count(ref, consistency=bounded)
    await system.create("things")
    assert (await database.count(ref, consistency=bounded)).count == 0


async def test_known_collections_are_not_looked_up_again() -> None:
    system = DirectSystem()
    gate = Gate()
    names = Names(hooked(system.catalog, before=gate))
    await system.create()

    async def use(collection: object) -> str:
        return "used"

    for _ in range(3):
        assert await names.with_collection(BY_NAME, use) == "used"
    assert gate.calls == ["get_collection"]


async def test_the_longest_unused_are_forgotten() -> None:
    system = DirectSystem()
    gate = Gate()
    names = Names(hooked(system.catalog, before=gate), capacity=2)

    async def use(collection: object) -> None:
        return None

    refs = [replace(BY_NAME, name=f"name-{n}") for n in range(3)]
    for ref in refs:
        await system.create(ref.name)
    for number in (0, 1, 0, 2, 0):
        await names.with_collection(refs[number], use)
    assert len(gate.calls) == 3, "the first was used all the time"
    await names.with_collection(refs[1], use)
    assert len(gate.calls) == 4


@pytest.mark.parametrize("error", [StaleEpoch, NotFound])
async def test_a_collection_that_never_stays_the_same_is_given_up(error: type[ShoalError]) -> None:
    system = DirectSystem()
    names = Names(system.catalog)
    await system.create()
    calls = 0

    async def use(collection: object) -> None:
        nonlocal calls
        calls += 1
        raise error("it is another one now")

    await names.resolve(BY_NAME)
    names.forget = lambda ref: None  # type: ignore[method-assign]  # as if others learned it anew each time
    with pytest.raises(error):
        await names.with_collection(BY_NAME, use)
    assert calls == 3


@pytest.mark.parametrize("seed", range(10))
def test_names_that_change_all_the_time(seed: int) -> None:
    """Every write goes to a collection that had the name at some moment of the call, and none is lost or made twice."""
    run_quietly(_names_that_change(seed))


async def _names_that_change(seed: int) -> None:
    system = DirectSystem()
    chance = random.Random(seed)
    turns = Turns(seed)
    slow = hooked(system.catalog, before=turns, after=turns)
    log = hooked(system.log, before=turns, after=turns)
    databases = [DatabaseService(slow, log, system.node, system.random, lambda: system._view()) for _ in range(2)]
    written: dict[str, str] = {}
    tick = 0
    held: list[tuple[int, int, str]] = []  # the name was the collection's from one tick to another

    async def change_names() -> None:
        nonlocal tick
        for _ in range(12):
            made, _ = await system.catalog.create_collection(NEW, get_or_create=False)
            tick += 1
            since = tick
            await turns()
            await asyncio.sleep(0)
            if chance.random() < 0.5:
                await system.catalog.delete_collection(made.id)
            else:
                await system.catalog.modify_collection(made.id, name=f"old-{since}")
            tick += 1
            held.append((since, tick, made.id))
            await turns()

    async def write(number: int) -> None:
        await turns()
        await turns()
        begin = tick
        try:
            result = await chance.choice(databases).write(BY_NAME, row(f"id-{number}"))
        except (NotFound, StaleEpoch):
            return
        owners = [owner for since, until, owner in held if since <= tick and until >= begin]
        now = await system.catalog.list_collections(DEFAULT_TENANT, DEFAULT_DATABASE, limit=100, offset=0)
        assert result.token.collection_id in {*owners, *(item.id for item in now if item.name == "things")}
        written[f"id-{number}"] = result.token.collection_id

    await asyncio.gather(change_names(), *(write(number) for number in range(60)))
    assert written
    found: dict[str, str] = {}
    for collection in await system.catalog.list_collections(DEFAULT_TENANT, DEFAULT_DATABASE, limit=100, offset=0):
        answer = await databases[0].get(CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, id=collection.id))
        assert isinstance(answer, Answer)
        for name in answer.rows.column("id").to_pylist():
            assert name not in found, "written once"
            found[name] = collection.id
    alive = set(found.values())
    assert found == {name: owner for name, owner in written.items() if owner in alive}
    await system.node.close()


def row_of_color(name: str, color: str) -> pa.RecordBatch:
    return to_operation_batch([("upsert", name, (1.0, 0.0), None, None, {"color": color})], 2)


async def test_a_delete_by_filter_does_not_write_what_it_read_of_another_collection() -> None:
    """The name passes to a new collection between the read of the matches and the delete; its record of that id does not match."""
    system, gate = DirectSystem(), Gate("append")
    slow = DatabaseService(system.catalog, hooked(system.log, before=gate), system.node, system.random, system._view)
    quick = system.new_database()
    await quick.create_collection(NEW)
    await quick.write(BY_NAME, row_of_color("a", "red"))
    await quick.write(BY_NAME, row_of_color("b", "blue"))
    await slow.count(BY_NAME)  # it knows the name
    deletion = asyncio.create_task(slow.delete_where(BY_NAME, ids=None, where=parse_where({"color": "red"})))
    await gate.until_held()  # it has read
    await quick.delete_collection(BY_NAME)
    await quick.create_collection(NEW)
    for name in ("a", "b"):
        await quick.write(BY_NAME, row_of_color(name, "blue"))
    gate.open()
    assert (await deletion).records == 0
    assert await ids(quick, BY_NAME) == ["a", "b"]


@pytest.mark.parametrize("shards", [1, 3])
async def test_reads_of_the_index_alone_hear_of_a_rename(shards: int) -> None:
    """Of several shards at once, of one within the staleness bound."""
    pair = Pair()
    await pair.start(shards)
    index_only = Consistency(ReadLevel.INDEX_ONLY)
    assert (await pair.two.count(BY_NAME, consistency=index_only)).count == 0
    await pair.one.modify_collection(BY_NAME, name="renamed")
    if shards == 1:
        await pair.system.clock.advance(60)
    with pytest.raises(NotFound):
        await pair.two.count(BY_NAME, consistency=index_only)
