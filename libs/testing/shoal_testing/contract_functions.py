"""The cases that every `Functions` is held to; see `contract_stores` for how to run them."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace

import pytest

from shoal_core.contracts import AttachedFunction, Collection, Lease, NewFunction
from shoal_core.contracts.functions import FUNCTIONS_LEASE, RECORD_COUNTER, STATISTICS
from shoal_core.errors import AlreadyExists, FailedPrecondition, Fenced, InvalidArgument, NotFound
from shoal_testing.contract_stores import Stores
from shoal_testing.fake_catalog import DEFAULT_DATABASE, DEFAULT_TENANT

NEW = NewFunction("fn", STATISTICS, "out")
NOWHERE = str(uuid.UUID(int=7, version=4))


async def _attach(stores: Stores, collection: Collection, new: NewFunction = NEW) -> AttachedFunction:
    attached, created = await stores.functions.attach_function(collection.id, new, limit=8)
    assert created
    return attached


async def _due(stores: Stores) -> list[str]:
    return [item.function.name for item in await stores.functions.due_functions(limit=10)]


async def _compacted(stores: Stores, *names: str) -> tuple[Collection, Lease, list[AttachedFunction]]:
    """A collection that is compacted up to 2, with these functions, and the lease that they run under."""
    made = await stores.create()
    await stores.append(made, ["a", "b"])
    await stores.compact(made, 2)
    attached = [await _attach(stores, made, NewFunction(name, STATISTICS, f"out-{name}")) for name in names]
    return made, await stores.claim(made, FUNCTIONS_LEASE), attached


class FunctionsContract:
    """Attached functions: names, life, turns, fences."""

    async def test_a_function_comes_back_as_it_was_attached(self, stores: Stores) -> None:
        made = await stores.create()
        attached = await _attach(stores, made, NewFunction("a/ü ☃", RECORD_COUNTER, "out", {"x": [1, None]}))
        database = await stores.catalog.get_database(DEFAULT_TENANT, DEFAULT_DATABASE)
        output = await stores.catalog.get_collection(DEFAULT_TENANT, DEFAULT_DATABASE, "out")
        assert attached == AttachedFunction(
            id=attached.id,
            name="a/ü ☃",
            function=RECORD_COUNTER,
            tenant=DEFAULT_TENANT,
            database=DEFAULT_DATABASE,
            database_id=database.id,
            input_collection_id=made.id,
            output_collection_id=output.id,
            output_collection="out",
            params={"x": [1, None]},
        )
        assert str(uuid.UUID(attached.id)) == attached.id
        assert await stores.functions.get_function(made.id, "a/ü ☃") == attached
        assert (output.dimension, output.shards) == (1, 1)
        assert (await stores.append(output, ["x"], dimension=1)).token.offset == 1

    async def test_the_output_is_beside_its_input(self, stores: Stores) -> None:
        await stores.catalog.create_tenant("t")
        await stores.catalog.create_database("t", "d")
        made = await stores.create("c", tenant="t")
        attached = await _attach(stores, made)
        output = await stores.catalog.get_collection_by_id(attached.output_collection_id)
        assert (output.tenant, output.database) == (attached.tenant, attached.database) == ("t", "d")
        assert await stores.catalog.count_collections(DEFAULT_TENANT, DEFAULT_DATABASE) == 0

    async def test_attaching_again_finds_it(self, stores: Stores) -> None:
        made = await stores.create()
        attached = await _attach(stores, made)
        assert await stores.functions.attach_function(made.id, NEW, limit=1) == (attached, False)
        for other in (
            replace(NEW, function=RECORD_COUNTER),
            replace(NEW, output_collection="other"),
            replace(NEW, params={"x": 1}),
        ):
            with pytest.raises(AlreadyExists, match="already has an attached function: name=fn, function=statistics"):
                await stores.functions.attach_function(made.id, other, limit=8)
        assert await stores.catalog.count_collections(DEFAULT_TENANT, DEFAULT_DATABASE) == 2

    async def test_two_that_attach_at_once_attach_one(self, stores: Stores) -> None:
        made = await stores.create()
        calls = (stores.functions.attach_function(made.id, NEW, limit=8) for _ in range(4))
        found = await asyncio.gather(*calls)
        assert sorted(created for _, created in found) == [False, False, False, True]
        assert len({attached.id for attached, _ in found}) == 1

    async def test_what_cannot_be_attached(self, stores: Stores) -> None:
        made, other = await stores.create(), await stores.create("other")
        functions = stores.functions
        with pytest.raises(NotFound, match="function not found"):
            await functions.attach_function(made.id, replace(NEW, function="nonexistent_function"), limit=8)
        for nowhere in (NOWHERE, "no uuid"):
            with pytest.raises(NotFound):
                await functions.attach_function(nowhere, NEW, limit=8)
        with pytest.raises(AlreadyExists, match=r"Output collection \[other\] already exists"):
            await functions.attach_function(made.id, replace(NEW, output_collection="other"), limit=8)
        attached = await _attach(stores, made)
        with pytest.raises(AlreadyExists, match=r"Output collection \[out\] already exists"):
            await functions.attach_function(other.id, NEW, limit=8)
        with pytest.raises(InvalidArgument, match="cannot attach function to an output collection"):
            await functions.attach_function(attached.output_collection_id, replace(NEW, output_collection="x"), limit=8)
        with pytest.raises(FailedPrecondition, match="at most 1 functions"):
            await functions.attach_function(made.id, NewFunction("second", STATISTICS, "second"), limit=1)
        assert await stores.catalog.count_collections(DEFAULT_TENANT, DEFAULT_DATABASE) == 3

    async def test_a_detached_function_leaves_an_ordinary_collection(self, stores: Stores) -> None:
        made = await stores.create()
        attached = await _attach(stores, made)
        await stores.functions.detach_function(made.id, "fn")
        for call in (stores.functions.detach_function, stores.functions.get_function):
            with pytest.raises(NotFound, match="does not exist"):
                await call(made.id, "fn")
        output = await stores.catalog.get_collection_by_id(attached.output_collection_id)
        await _attach(stores, output, replace(NEW, output_collection="chained"))
        with pytest.raises(AlreadyExists):
            await stores.functions.attach_function(made.id, NEW, limit=8)
        again = await _attach(stores, made, replace(NEW, output_collection="again"))
        assert again.id != attached.id

    async def test_a_function_ends_with_its_output(self, stores: Stores) -> None:
        made, lease, (attached,) = await _compacted(stores, "fn")
        await stores.catalog.delete_collection(attached.output_collection_id)
        with pytest.raises(NotFound):
            await stores.functions.get_function(made.id, "fn")
        with pytest.raises(NotFound):
            await stores.functions.complete_function(lease, attached.id, 2)
        assert await _due(stores) == []
        assert (await _attach(stores, made, replace(NEW, output_collection="out-fn"))).id != attached.id

    async def test_a_function_ends_with_its_input(self, stores: Stores) -> None:
        made, lease, (attached,) = await _compacted(stores, "fn")
        await stores.catalog.delete_collection(made.id)
        with pytest.raises(NotFound):
            await stores.functions.get_function(made.id, "fn")
        with pytest.raises((NotFound, Fenced)):
            await stores.functions.complete_function(lease, attached.id, 2)
        assert await _due(stores) == []
        output = await stores.catalog.get_collection_by_id(attached.output_collection_id)
        assert (await _attach(stores, output)).input_collection_id == output.id

    async def test_what_is_left_of_deleted_collections_can_be_forgotten(self, stores: Stores) -> None:
        made, other = await stores.create(), await stores.create("other")
        first = await _attach(stores, made)
        second = await _attach(stores, other, NewFunction("fn", RECORD_COUNTER, "out2"))
        for doomed in (made.id, second.output_collection_id):
            await stores.catalog.delete_collection(doomed)
            assert await stores.catalog.purge_collection(doomed, deleted_retention_ms=0, limit=10)
        assert (await stores.catalog.get_collection_by_id(first.output_collection_id)).name == "out"
        assert await _attach(stores, other, NewFunction("fn", RECORD_COUNTER, "out2"))

    async def test_a_database_takes_its_functions_along(self, stores: Stores) -> None:
        await stores.catalog.create_tenant("t")
        await stores.catalog.create_database("t", "d")
        made = await stores.create("c", tenant="t")
        attached = await _attach(stores, made)
        await stores.catalog.delete_database("t", "d")
        with pytest.raises(NotFound):
            await stores.functions.get_function(made.id, "fn")
        with pytest.raises(NotFound):
            await stores.catalog.get_collection_by_id(attached.output_collection_id)
        with pytest.raises(NotFound):
            await stores.functions.attach_function(made.id, NEW, limit=8)

    async def test_the_name_of_the_output_follows_it(self, stores: Stores) -> None:
        made = await stores.create()
        attached = await _attach(stores, made)
        await stores.catalog.modify_collection(attached.output_collection_id, name="renamed")
        assert (await stores.functions.get_function(made.id, "fn")).output_collection == "renamed"

    async def test_what_is_behind_is_due_in_turn(self, stores: Stores) -> None:
        made, lease, (first, second) = await _compacted(stores, "f1", "f2")
        assert await _due(stores) == ["f1", "f2"]
        [due] = await stores.functions.due_functions(limit=1)
        assert (due.function, due.compacted_offset, due.overdue_ms >= 0) == (first, 2, True)
        assert [item.function for item in await stores.functions.due_functions(limit=9, skip=1)] == [second]
        assert await stores.functions.due_functions(limit=9, skip=2) == []
        await stores.functions.complete_function(lease, first.id, 2)
        assert await _due(stores) == ["f2"]
        await stores.append(made, ["c"])
        assert await _due(stores) == ["f2"]
        await stores.compact(made, 3, expected=1)
        assert await _due(stores) == ["f2", "f1"]
        await stores.functions.complete_function(lease, first.id, 1)
        assert (await stores.functions.get_function(made.id, "f1")).completion_offset == 2
        for attached in (first, second):
            await stores.functions.complete_function(lease, attached.id, 3)
        assert await _due(stores) == []

    async def test_one_that_fails_waits_and_says_why(self, stores: Stores) -> None:
        made, lease, (attached,) = await _compacted(stores, "fn")
        fail = stores.functions.fail_function
        await fail(lease, attached.id, "no\0luck" + "." * 9000, retry_ms=0, longest_retry_ms=3_600_000)
        found = await stores.functions.get_function(made.id, "fn")
        assert (found.failures, found.last_error[:7], len(found.last_error)) == (1, "noluck.", 499)
        assert await _due(stores) == ["fn"]
        await fail(lease, attached.id, "again", retry_ms=3_600_000, longest_retry_ms=7_200_000)
        assert await _due(stores) == []
        await stores.functions.complete_function(lease, attached.id, 1)
        found = await stores.functions.get_function(made.id, "fn")
        assert (found.failures, found.last_error, found.completion_offset) == (0, "", 1)
        assert await _due(stores) == ["fn"]

    async def test_the_deposed_record_nothing(self, stores: Stores) -> None:
        made, lease, (attached,) = await _compacted(stores, "fn")
        await stores.expire_lease(lease)
        newer = await stores.claim(made, FUNCTIONS_LEASE, "other")
        with pytest.raises(Fenced):
            await stores.functions.complete_function(lease, attached.id, 2)
        with pytest.raises(Fenced):
            await stores.functions.fail_function(lease, attached.id, "x", retry_ms=1, longest_retry_ms=1)
        found = await stores.functions.get_function(made.id, "fn")
        assert (found.completion_offset, found.failures) == (0, 0)
        for unknown in (NOWHERE, "no uuid"):
            with pytest.raises(NotFound):
                await stores.functions.complete_function(newer, unknown, 2)
        other = await stores.create("other")
        with pytest.raises(NotFound):
            await stores.functions.complete_function(await stores.claim(other, FUNCTIONS_LEASE), attached.id, 2)
