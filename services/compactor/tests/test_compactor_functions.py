"""Attached functions against plain oracles, whatever is written, flushed, merged and run in whatever order."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_compactor.counting import SegmentCounts
from shoal_core.contracts import AppendRequest
from shoal_core.contracts.functions import RECORD_COUNTER, STATISTICS
from shoal_core.errors import NotFound, Unavailable
from shoal_core.limits import Limits
from shoal_core.records import decode_batch, encode_batch
from shoal_frontend.validate_batch import check_batch
from shoal_index.segment import BlockReader
from shoal_index.value_counts import count_values, sum_counts
from shoal_storage.blocks import BlockRef
from shoal_testing.functions import FunctionWorld, counted, values_of
from shoal_testing.strategies import Op, examples, operations, to_operation_batch

GUARD = "summary::s:total_count"


def put(name: str, **metadata: Any) -> Op:
    return ("upsert", name, (1.0, 0.0), None, None, metadata)


def remove(name: str) -> Op:
    return ("delete", name, None, None, None, None)


class CountedReads:
    """Reads blocks and counts how many."""

    def __init__(self, blocks: BlockReader) -> None:
        self._blocks = blocks
        self.reads = 0

    async def get(self, ref: BlockRef) -> pa.Buffer:
        self.reads += 1
        return await self._blocks.get(ref)


async def check(world: FunctionWorld) -> None:
    """The outputs are those of the offset that the catalog says."""
    for name in ("count", "stats"):
        function = await world.attached(name)
        assert (function.failures, function.last_error) == (0, "")
        records = world.snapshots[function.completion_offset]
        written = world.written(function)
        if function.completion_offset == 0:
            assert written == {}
        elif name == "count":
            assert written == {
                "function_output": {
                    "total_count": len(records),
                    "completion_offset": function.completion_offset,
                }
            }
        else:
            assert written[GUARD]["count"] == len(records)
            assert written[GUARD]["completion_offset"] == function.completion_offset
            assert counted(written) == values_of(records)


STEPS = st.one_of(
    operations(2),
    operations(2),
    st.sampled_from(["flush", "flush", "merge", "run", "run", "forget", "flush-output"]),
)


@given(st.integers(1, 3), st.lists(STEPS, max_size=14), st.integers(1, 4))
@examples(50)
async def test_outputs_are_those_of_an_oracle(shards: int, steps: list[Any], batch_records: int) -> None:
    world = await FunctionWorld.create(shards=shards)
    await world.attach(RECORD_COUNTER, "count")
    stats = await world.attach(STATISTICS, "stats")
    runner = world.runner(batch_records=batch_records)
    for step in [*steps, "flush", "run"]:
        match step:
            case "flush":
                while await world.flush() is not None:
                    pass
            case "merge":
                await world.merge()
            case "run":
                await runner.run_due()
                await check(world)
            case "forget":  # another process takes over
                runner = world.runner("r2", batch_records=batch_records, cache_size_bytes=0)
            case "flush-output":
                await world.flush_output(stats)
            case _ if step:
                await world.write(step)
    assert (await world.attached("stats")).completion_offset == world.oracle.head_offset
    assert await runner.run_due() == 0


async def test_only_what_differs_is_written_and_it_would_pass_the_frontend() -> None:
    world = await FunctionWorld.create()
    stats = await world.attach()
    runner = world.runner()
    await world.write([put(f"id{n}", colour="red" if n else "blue", n=n) for n in range(5)])
    await world.flush()
    assert await runner.run_due() == 1
    await world.write([put("id0", colour="red"), remove("id4")])
    await world.flush()
    assert await runner.run_due() == 1
    first, second = (decode_batch(entry.payload) for entry in world.catalog.state(stats.output_collection_id).entries)
    for batch in (first, second):
        check_batch(batch, 1, Limits())
    assert first.num_rows == 8
    operations = dict(zip(second.column("id").to_pylist(), second.column("op").to_pylist(), strict=True))
    assert operations == {"colour::s:blue": 3, "n::i:4": 3, GUARD: 2}
    assert world.written(stats)["colour::s:red"] == {"key": "colour", "type": "str", "value": "red", "count": 4}
    documents = dict(zip(first.column("id").to_pylist(), first.column("document").to_pylist(), strict=True))
    assert documents["colour::s:red"] == "statistics about colour for s:red"
    await world.write([put("id0")])
    await world.flush()
    await runner.run_due()
    assert runner.counters.records == 8 + 3 + 1  # the guard, with its offset


async def test_ids_are_short_and_no_two_values_share_one() -> None:
    world = await FunctionWorld.create()
    stats = await world.attach()
    pairs = [("a", "b::s:c"), ("a::s:b", "c"), ("a", "x" * 600), ("a", "x" * 601), ("k" * 250, "y" * 300)]
    pairs += [("summary", "total_count"), ("summary", "other"), ("a:", ":"), ("a", "")]
    await world.write([put(f"id{n}", **{key: value}) for n, (key, value) in enumerate(pairs)])
    await world.flush()
    await world.runner().run_due()
    written = world.written(stats)
    assert written[GUARD]["count"] == len(pairs)
    pairs.remove(("summary", "total_count"))  # which is the summary's own
    assert counted(written) == {(key, "str", value): 1 for key, value in pairs}
    assert max(len(name.encode()) for name in written) <= 512
    for entry in world.catalog.state(stats.output_collection_id).entries:
        check_batch(decode_batch(entry.payload), 1, Limits())


async def test_of_many_values_the_most_frequent_are_listed_and_the_rest_is_said() -> None:
    world = await FunctionWorld.create()
    stats = await world.attach()
    metadatas = [{"n": n, "m": n % 3, "rare": "x"} if n < 3 else {"n": n, "m": n % 3} for n in range(10)]
    await world.write([put(f"id{n}", **metadata) for n, metadata in enumerate(metadatas)])
    await world.write([put("again", n=7)])
    await world.flush()
    await world.runner(keys=2, values=4, values_per_key=100).run_due()
    written = world.written(stats)
    said = {row["value"]: row for row in written.values() if row["key"] == "summary"}
    listed = {(row["key"], row["value"]): row["count"] for row in written.values() if row["key"] != "summary"}
    assert listed == {("m", "0"): 4, ("m", "1"): 3, ("n", "7"): 2, ("n", "0"): 1}
    assert (said["omitted_keys"]["count"], said["total_count"]["count"]) == (1, 11)
    omitted = {row["value_label"]: row["count"] for row in written.values() if row["value"] == "omitted_values"}
    assert omitted == {"n": 8, "m": 1}
    await world.write([remove(f"id{n}") for n in range(3, 10)])
    await world.flush()
    await world.runner().run_due()
    assert counted(world.written(stats)) == values_of(world.snapshots[world.oracle.head_offset])


async def test_long_texts_are_left_out_and_writes_are_of_bounded_size() -> None:
    world = await FunctionWorld.create()
    stats = await world.attach()
    texts = {"long": "x" * 1_025, "longest": "é" * 513, "fits": "é" * 512}
    await world.write([put(name, text=text) for name, text in texts.items()])
    await world.write([put(f"id{n}", text=f"{n:03}" * 300) for n in range(100)])
    await world.flush()
    await world.runner(batch_size_bytes=20_000).run_due()
    written = world.written(stats)
    assert written[GUARD]["count"] == 103
    [omitted] = [row for row in written.values() if row["value"] == "omitted_values"]
    assert (omitted["value_label"], omitted["count"]) == ("text", 2)
    assert {row["value"] for row in written.values() if row["key"] == "text"} == {
        texts["fits"],
        *(f"{n:03}" * 300 for n in range(100)),
    }
    sizes = [decode_batch(entry.payload).nbytes for entry in world.catalog.state(stats.output_collection_id).entries]
    assert len(sizes) >= 10
    assert max(sizes) < 2 * 20_000


async def test_a_function_attached_late_catches_up() -> None:
    world = await FunctionWorld.create()
    await world.write([put("a", x=1)])
    await world.flush()
    runner = world.runner()
    assert await runner.run_due() == 0
    stats = await world.attach()
    assert await runner.run_due() == 1
    assert counted(world.written(stats)) == {("x", "int", "1"): 1}


async def test_records_that_others_write_into_an_output_are_left_and_a_damaged_one_is_put_right() -> None:
    world = await FunctionWorld.create()
    stats = await world.attach()
    await world.write([put("a", x=1), put("b", x=2)])
    await world.flush()
    await world.runner().run_due()
    damage: list[Op] = [
        ("upsert", "note", (0.0,), "mine", None, {"count": 7}),
        ("delete", "x::i:1", None, None, None, None),
        ("update", GUARD, None, None, None, {"completion_offset": 1}),
    ]
    output = await world.output(stats)
    payload = encode_batch(to_operation_batch(damage, 1))
    await world.log.append(AppendRequest(output.id, output.epoch, output.tenant, payload))
    await world.write([put("c", x=3)])
    await world.flush()
    await world.runner().run_due()
    written = world.written(stats)
    assert written.pop("note") == {"count": 7}
    assert counted(written) == {("x", "int", str(n)): 1 for n in (1, 2, 3)}


async def test_functions_of_others_that_are_behind_do_not_hide_ones_own() -> None:
    """However many there are, and whatever fits into a page."""
    world = await FunctionWorld.create()
    for name in ("theirs", "theirs-too", "mine"):
        await world.attach(RECORD_COUNTER, name)
    await world.upsert("a")
    await world.flush()
    runner = world.runner(page=1)
    answers = iter([False, False, True])
    runner.mine = lambda _: next(answers)
    assert await runner.run_due() == 1
    offsets = [(await world.attached(name)).completion_offset for name in ("theirs", "theirs-too", "mine")]
    assert offsets == [0, 0, 1]


async def test_a_failing_function_is_recorded_waits_and_does_not_stop_others() -> None:
    world = await FunctionWorld.create()
    for name in ("bad", "good"):
        await world.attach(RECORD_COUNTER, name)
    bad = (await world.attached("bad")).output_collection_id
    await world.upsert("a")
    await world.flush()
    runner = world.runner()
    assert [item.function.name for item in await world.functions.due_functions(limit=2)] == ["bad", "good"]

    def fail(name: str) -> None:
        if name == "append" and runner.counters.failures == 0 and world.catalog.state(bad).head_offset == 0:
            raise Unavailable("the log is away")

    world.log.before = fail
    assert await runner.run_due() == 2
    found = {name: await world.attached(name) for name in ("bad", "good")}
    assert found["bad"].last_error == "the log is away"
    assert (found["bad"].failures, found["good"].failures) == (1, 0)
    assert (found["bad"].completion_offset, found["good"].completion_offset) == (0, 1)
    assert await runner.run_due() == 0
    world.log.before = lambda name: None
    await world.clock.advance(2)
    assert await runner.run_due() == 1
    assert (await world.attached("bad")).failures == 0
    assert runner.counters.failures == 1


async def test_a_defect_shows_its_kind_and_nothing_else() -> None:
    world = await FunctionWorld.create()
    await world.attach()
    await world.upsert("a")
    await world.flush()

    async def step(name: str) -> None:
        raise ValueError("postgresql://user:secret@host")

    await world.runner(step=step).run_due()
    assert (await world.attached()).last_error == "ValueError, see the compactor's log"


@pytest.mark.parametrize("what", ["detach", "output", "input"])
@pytest.mark.parametrize("when", ["function-read", "function-append", "function-appended"])
async def test_what_ends_during_a_run_ends_it_quietly(what: str, when: str) -> None:
    world = await FunctionWorld.create()
    function = await world.attach()
    await world.upsert("a")
    await world.flush()

    async def step(name: str) -> None:
        if name != when:
            return
        if what == "detach":
            await world.functions.detach_function(world.collection.id, "fn")
        else:
            doomed = function.output_collection_id if what == "output" else world.collection.id
            await world.catalog.delete_collection(doomed)

    runner = world.runner(step=step)
    assert await runner.run_due() == 1
    assert (runner.counters.runs, runner.counters.failures) == (0, 0)
    assert await runner.run_due() == 0
    with pytest.raises(NotFound):
        await world.attached()


async def test_counts_of_segments_are_kept_within_their_bound() -> None:
    world = await FunctionWorld.create()
    await world.write([put(f"id{n}", x=n) for n in range(100)])
    await world.flush()
    whole = await world.manifest()
    await world.write([remove(f"id{n}") for n in range(40)])
    await world.flush()
    blocks = CountedReads(world.blocks)
    counts = SegmentCounts(blocks, 10_000)
    found = await counts.of(await world.manifest())
    assert sorted(found.counted["x", "int"].values.to_pylist()) == list(range(40, 100))
    reads = blocks.reads
    again = await counts.of(await world.manifest())
    assert again.counted["x", "int"].values.equals(found.counted["x", "int"].values)
    assert blocks.reads == reads + 1  # the tombstones
    # A fork, or its source, may have the same segment with other dead rows.
    for manifest, first in ((whole, 0), (await world.manifest(), 40), (whole, 0)):
        counted_again = await counts.of(manifest)
        assert sorted(counted_again.counted["x", "int"].values.to_pylist()) == list(range(first, 100))
    assert counts._size_bytes <= 10_000
    small = SegmentCounts(world.blocks, 10)
    await small.of(await world.manifest())
    assert small._size_bytes == 0


def test_counts_add_up() -> None:
    table = pa.table(
        {
            "id": ["a", "b", "c"],
            "m:int:x": pa.array([1, None, 1], pa.int64()),
            "m:ints:x": pa.array([None, [1, 1, 2], None], pa.list_(pa.int64())),
            "m:float:x": pa.array([None, -0.0, 0.0]),
            "m:str:#uri": ["u", "u", "u"],
        }
    )
    whole = count_values(table)
    assert {name: _plain(part) for name, part in whole.counted.items()} == {
        ("x", "int"): {1: 4, 2: 1},
        ("x", "float"): {0.0: 2},
    }
    rest = sum_counts([(whole, 1), (count_values(table.slice(1, 1)), -1)])
    assert {name: _plain(part) for name, part in rest.counted.items()} == {
        ("x", "int"): {1: 2},
        ("x", "float"): {0.0: 1},
    }
    assert sum_counts([(whole, 1), (whole, -1)]).counted == {}


def _plain(part: Any) -> dict[Any, int]:
    return dict(zip(part.values.to_pylist(), part.counts.tolist(), strict=True))
