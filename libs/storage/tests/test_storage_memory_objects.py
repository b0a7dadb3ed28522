"""The store in memory: the contract, and puts whose outcome got lost."""

from __future__ import annotations

import pytest

from shoal_core.errors import AlreadyExists, Unavailable
from shoal_core.ports import ObjectStore
from shoal_testing.memory_objects import MemoryObjectStore
from shoal_testing.object_store_contract import ObjectStoreContract


class SimulatedCrash(Exception):
    """The process died at this point."""


class FailFirst:
    """A hook that raises for the first ``times`` calls."""

    def __init__(self, times: int, error: Exception) -> None:
        self.calls = 0
        self._times = times
        self._error = error

    def __call__(self, key: str) -> None:
        self.calls += 1
        if self.calls <= self._times:
            raise self._error


class TestMemoryObjectStore(ObjectStoreContract):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return MemoryObjectStore()


async def test_a_put_whose_answer_got_lost_succeeds_without_a_second_one() -> None:
    store = MemoryObjectStore(after_put=FailFirst(1, Unavailable("connection reset")))
    await store.put("a", b"hello")
    assert store.puts == 1
    assert bytes(await store.get("a")) == b"hello"


async def test_a_put_that_never_arrived_is_sent_again() -> None:
    store = MemoryObjectStore(before_put=FailFirst(2, Unavailable("timed out")))
    await store.put("a", b"hello")
    assert store.puts == 3
    assert bytes(await store.get("a")) == b"hello"


async def test_attempts_are_bounded() -> None:
    store = MemoryObjectStore(before_put=FailFirst(100, Unavailable("timed out")))
    with pytest.raises(Unavailable, match="timed out"):
        await store.put("a", b"hello")
    assert store.puts == 3


async def test_a_lost_answer_over_other_content_is_already_exists() -> None:
    store = MemoryObjectStore()

    def another_writer_is_first(key: str) -> None:
        store.before_put = None
        store._objects[key] = (b"other", 0)
        raise Unavailable("timed out")

    store.before_put = another_writer_is_first
    with pytest.raises(AlreadyExists):
        await store.put("a", b"hello")


async def test_a_store_that_cannot_be_read_back_is_unavailable() -> None:
    store = MemoryObjectStore(
        after_put=FailFirst(1, Unavailable("reset")), before_get=FailFirst(1, Unavailable("refused"))
    )
    with pytest.raises(Unavailable, match="refused"):
        await store.put("a", b"hello")
    assert store.puts == 1


async def test_a_crash_passes_through_before_and_after_the_object_exists() -> None:
    before = MemoryObjectStore(before_put=FailFirst(1, SimulatedCrash()))
    with pytest.raises(SimulatedCrash):
        await before.put("a", b"hello")
    assert [info.key async for info in before.list("")] == []

    after = MemoryObjectStore(after_put=FailFirst(1, SimulatedCrash()))
    with pytest.raises(SimulatedCrash):
        await after.put("a", b"hello")
    assert [info.key async for info in after.list("")] == ["a"]
