"""What fails is tried again after pauses that grow, and holds up nobody else; what a merge reads."""

from __future__ import annotations

import pytest

from shoal_compactor.policy import MergePolicy
from shoal_core.contracts import AppendRequest, Collection, NewCollection
from shoal_core.errors import Unavailable
from shoal_testing.compaction import CompactionWorld
from shoal_testing.contract_stores import upserts
from shoal_testing.fake_catalog import DEFAULT_DATABASE, DEFAULT_TENANT


@pytest.fixture
async def world() -> CompactionWorld:
    return await CompactionWorld.create()


async def _another(world: CompactionWorld, name: str) -> Collection:
    new = NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, name)
    made, _ = await world.catalog.create_collection(new, get_or_create=False)
    await world.log.append(AppendRequest(made.id, made.epoch, made.tenant, upserts(["a", "b"])))
    return made


async def _compacted(world: CompactionWorld, collection: Collection) -> int:
    return (await world.catalog.get_version(collection.id)).compacted_offset


async def test_a_page_full_of_failing_collections_does_not_starve_the_others(world: CompactionWorld) -> None:
    failing = [await _another(world, f"bad-{n}") for n in range(5)]
    await world.clock.advance(1)  # the failing ones come first, being older
    healthy = await _another(world, "good")

    def broken(key: str) -> None:
        if any(item.id in key for item in failing):
            raise OSError("no such bucket")

    world.objects.before_put = broken
    compactor = world.compactor(page=2)
    for _ in range(4):
        await compactor.run_once()
    assert await _compacted(world, healthy) == 2
    assert (compactor.counters.flushes, compactor.counters.failures) == (1, 5)
    world.objects.before_put = None
    await world.clock.advance(compactor.settings.retry_ms / 1000)
    for _ in range(3):
        await compactor.run_once()
    assert [await _compacted(world, item) for item in failing] == [2] * 5


async def test_pauses_between_failures_grow_up_to_a_bound_and_end_with_success(world: CompactionWorld) -> None:
    await world.upsert("a")

    def broken(key: str) -> None:
        raise Unavailable("the store is away")

    world.objects.before_put = broken
    compactor = world.compactor(retry_ms=1_000, longest_retry_ms=5_000)
    for pause in (1, 2, 4, 5, 5):
        assert await compactor.run_once() == 1
        await world.clock.advance(pause - 0.001)
        assert await compactor.run_once() == 0
        await world.clock.advance(0.001)
    world.objects.before_put = None
    assert await compactor.run_once() == 1
    world.objects.before_put = broken
    await world.upsert("b")
    assert await compactor.run_once() == 1
    await world.clock.advance(1)
    assert await compactor.run_once() == 1, "the first pause again"


async def test_what_is_known_of_failures_is_forgotten_and_bounded(
    world: CompactionWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal_compactor.compactor._REMEMBERED", 3)
    for n in range(5):
        await _another(world, f"bad-{n}")

    def broken(key: str) -> None:
        raise Unavailable("the store is away")

    world.objects.before_put = broken
    compactor = world.compactor()
    assert await compactor.run_once() == 5
    assert len(compactor._failing) == 3
    await world.clock.advance((compactor.settings.retry_ms + compactor.settings.longest_retry_ms) / 1000)
    assert compactor._waiting("flush") == set()
    assert not compactor._failing


async def test_a_merge_that_fails_has_pauses_of_its_own_and_holds_up_no_flush(world: CompactionWorld) -> None:
    await world.upsert("a")
    await world.flush()
    tried = 0

    async def fail(name: str) -> None:
        nonlocal tried
        if name == "merge-built":
            tried += 1
            if tried <= 3:
                raise RuntimeError("a defect")

    compactor = world.compactor(step=fail, retry_ms=1_000)
    await world.upsert("b")
    assert await compactor.run_once() == 1
    assert (tried, compactor.counters.failures) == (1, 1)
    await compactor.merge_due()
    assert tried == 1
    await world.upsert("c")
    assert await compactor.run_once() == 1, "a flush does not wait for it, nor does it end the pause"
    assert tried == 1
    for pause, tries in ((1, 2), (1, 2), (1, 3), (4, 4)):
        await world.clock.advance(pause)
        await compactor.merge_due()
        assert tried == tries
    assert len((await world.check()).shards[0].segments) == 1


async def test_a_merge_opens_its_inputs_and_no_other_segment(world: CompactionWorld) -> None:
    await world.upsert(*(f"id-{n}" for n in range(50)))
    await world.flush()
    for text in "abc":
        await world.upsert(text)
        await world.flush()
    world.policy = MergePolicy(fanout=2, largest_rows=10)
    large = (await world.manifest()).shards[0].segments[0]
    assert large.rows == 50
    read: list[str] = []
    world.objects.before_get = read.append
    assert await world.merge() is not None
    assert not {ref.key for refs in large.blocks.values() for ref in refs} & set(read)
    world.objects.before_get = None
    await world.check()
