"""The cases that every `Log` is held to; see `contract_stores` for how to run them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from shoal_core.contracts import EVERYTHING, Collection, Condition, Tail, TailRequest, shard_range
from shoal_core.errors import (
    DimensionMismatch,
    IdempotencyMismatch,
    InvalidArgument,
    NotFound,
    OffsetExpired,
    StaleEpoch,
    StaleRead,
    WriteConflict,
)
from shoal_core.hashing import hash_ids
from shoal_core.records import ID, decode_batch
from shoal_testing.contract_stores import Stores, upserts


def _ids(tail: Tail) -> list[str]:
    payloads = [entry.payload for entry in tail.entries if entry.payload.size]
    return [text for payload in payloads for text in decode_batch(payload).column(ID).to_pylist()]


def _whole(collection: Collection, **more: Any) -> TailRequest:
    return replace(TailRequest(collection.id, collection.epoch, after_offset=0), **more)


class LogContract:
    """Contract cases; see the module."""

    async def test_offsets_are_contiguous(self, stores: Stores) -> None:
        made = await stores.create()
        results = [await stores.append(made, ids) for ids in (["a"], ["b", "c", "d"], ["a", "a"])]
        assert [(result.first_offset, result.token.offset) for result in results] == [(1, 1), (2, 4), (5, 6)]
        assert (results[0].token.collection_id, results[0].token.incarnation) == (made.id, made.incarnation)
        head = await stores.log.read_index(made.id, made.epoch)
        assert (head.collection_id, head.epoch, head.incarnation) == (made.id, made.epoch, made.incarnation)
        assert (head.head_offset, head.version, head.compacted_offset, head.dimension) == (6, 0, 0, 2)

    async def test_parallel_appends_share_out_the_offsets(self, stores: Stores) -> None:
        made = await stores.create()
        appends = (stores.append(made, [f"{i}-{j}" for j in range(1 + i % 3)]) for i in range(12))
        results = await asyncio.gather(*appends)
        taken = [o for result in results for o in range(result.first_offset, result.token.offset + 1)]
        assert sorted(taken) == list(range(1, len(taken) + 1))
        tail = await stores.log.read_tail(_whole(made))
        assert [entry.first_offset for entry in tail.entries] == sorted(result.first_offset for result in results)

    async def test_collections_count_apart(self, stores: Stores) -> None:
        first, second = await stores.create("a"), await stores.create("b")
        await stores.append(first, ["a", "b"])
        assert (await stores.append(second, ["a"])).first_offset == 1

    async def test_the_first_embedding_fixes_the_dimension(self, stores: Stores) -> None:
        made = await stores.create()
        await stores.append(made, ["a"], dimension=None, text="t")
        assert (await stores.log.read_index(made.id, made.epoch)).dimension is None
        await stores.append(made, ["a"], dimension=3)
        with pytest.raises(DimensionMismatch):
            await stores.append(made, ["a"], dimension=2)
        await stores.append(made, ["b"], dimension=None, text="t")
        head = await stores.log.read_index(made.id, made.epoch)
        assert (head.head_offset, head.dimension) == (3, 3)
        assert (await stores.catalog.get_collection_by_id(made.id)).dimension == 3

    async def test_a_wrong_epoch_is_refused(self, stores: Stores) -> None:
        made = await stores.create()
        await stores.append(made, ["a"])
        renamed = await stores.catalog.modify_collection(made.id, name="x")
        with pytest.raises(StaleEpoch):
            await stores.append(made, ["a"])
        with pytest.raises(StaleEpoch):
            await stores.log.read_index(made.id, made.epoch)
        with pytest.raises(StaleEpoch):
            await stores.log.read_tail(_whole(made))
        with pytest.raises(StaleEpoch):
            await stores.append(replace(made, epoch=0), ["a"])
        assert _ids(await stores.log.read_tail(_whole(made, epoch=0))) == ["a"]
        assert (await stores.log.read_index(made.id, 0)).epoch == renamed.epoch
        assert (await stores.append(renamed, ["b"])).first_offset == 2

    async def test_what_is_not_there_is_not_found(self, stores: Stores) -> None:
        made = await stores.create()
        with pytest.raises(NotFound):
            await stores.append(replace(made, tenant="someone"), ["a"])
        await stores.catalog.delete_collection(made.id)
        with pytest.raises(NotFound):
            await stores.append(made, ["a"])
        with pytest.raises(NotFound):
            await stores.log.read_index(made.id, made.epoch)
        with pytest.raises(NotFound):
            await stores.log.read_tail(_whole(made, epoch=0))

    async def test_a_retry_returns_the_first_outcome(self, stores: Stores) -> None:
        made = await stores.create()
        await stores.append(made, ["z"])
        condition = Condition(1, ("a",))
        first = await stores.append(made, ["a", "b"], key="k", condition=condition)
        await stores.append(made, ["c"])
        assert not first.replayed
        assert await stores.append(made, ["a", "b"], key="k", condition=condition) == replace(first, replayed=True)
        with pytest.raises(IdempotencyMismatch):
            await stores.append(made, ["a", "c"], key="k")
        other = await stores.create("other")
        assert (await stores.append(other, ["a"], key="k")).first_offset == 1
        await stores.catalog.modify_collection(made.id, name="x")
        assert (await stores.append(made, ["a", "b"], key="k")).replayed
        head = await stores.log.read_index(made.id, made.epoch + 1)
        assert head.head_offset == 4

    async def test_parallel_tries_of_one_append_write_once(self, stores: Stores) -> None:
        made = await stores.create()
        results = await asyncio.gather(*(stores.append(made, ["a", "b"], key="k") for _ in range(6)))
        assert {(result.first_offset, result.token.offset) for result in results} == {(1, 2)}
        assert [result.replayed for result in results].count(False) == 1

    async def test_a_condition_guards_its_ids_only(self, stores: Stores) -> None:
        made = await stores.create()
        await stores.append(made, ["a", "b"])
        await stores.append(made, ["c"])
        await stores.append(made, ["d"], condition=Condition(3, ("a", "b", "c")))
        await stores.append(made, ["d"], condition=Condition(2, ("a", "b", "x")))
        for read_offset, ids in ((2, ("c",)), (0, ("x", "b")), (4, ("d",))):
            with pytest.raises(WriteConflict):
                await stores.append(made, ["e"], condition=Condition(read_offset, ids))
        with pytest.raises(InvalidArgument, match="read_offset"):
            await stores.append(made, ["e"], condition=Condition(6, ("a",)))
        assert (await stores.log.read_index(made.id, made.epoch)).head_offset == 5

    async def test_of_racing_conditional_writes_one_wins(self, stores: Stores) -> None:
        made = await stores.create()
        await stores.append(made, ["a"])
        writes = (stores.append(made, ["a"], condition=Condition(1, ("a",))) for _ in range(6))
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["AppendResult"] + ["WriteConflict"] * 5

    async def test_a_tail_has_what_was_written_after_the_offset(self, stores: Stores) -> None:
        made = await stores.create()
        for ids in (["a"], ["b", "c"], ["d"]):
            await stores.append(made, ids)
        tail = await stores.log.read_tail(_whole(made, after_offset=1))
        assert _ids(tail) == ["b", "c", "d"]
        assert [(entry.first_offset, entry.end_offset) for entry in tail.entries] == [(2, 3), (4, 4)]
        assert tail.entries[0].payload == upserts(["b", "c"])
        assert all(entry.offsets is None for entry in tail.entries)
        assert (tail.head.head_offset, tail.through_offset) == (4, 4)
        part = await stores.log.read_tail(_whole(made, up_to_offset=3))
        assert (_ids(part), part.through_offset) == (["a", "b", "c"], 3)
        assert part.head.head_offset >= 3
        nothing = await stores.log.read_tail(_whole(made, after_offset=4))
        assert (nothing.entries, nothing.through_offset) == ((), 4)

    async def test_an_empty_log_has_an_empty_tail(self, stores: Stores) -> None:
        made = await stores.create()
        tail = await stores.log.read_tail(_whole(made))
        assert (tail.entries, tail.through_offset, tail.head.head_offset) == ((), 0, 0)

    async def test_a_tail_begins_and_ends_at_ends_of_batches(self, stores: Stores) -> None:
        made = await stores.create()
        for ids in (["a", "b", "c"], ["d", "e"]):
            await stores.append(made, ids)
        for after, up_to in ((1, 0), (4, 0), (6, 0), (0, 2), (3, 4), (0, 6), (5, 3)):
            with pytest.raises(InvalidArgument, match="_offset"):
                await stores.log.read_tail(_whole(made, after_offset=after, up_to_offset=up_to))

    async def test_tails_are_cut_to_hash_ranges(self, stores: Stores) -> None:
        made = await stores.create(shards=3)
        batches = [[f"id{i}" for i in range(start, start + 7)] for start in range(0, 28, 7)] + [["solo"]]
        for ids in batches:
            await stores.append(made, ids)
        offset_of = {text: offset for offset, text in enumerate((text for ids in batches for text in ids), start=1)}
        seen: list[str] = []
        for shard in range(3):
            span = shard_range(shard, 3)
            tail = await stores.log.read_tail(_whole(made, hash_range=span))
            assert [entry.end_offset for entry in tail.entries] == [7, 14, 21, 28, 29]
            assert tail.through_offset == 29
            for entry in tail.entries:
                if not entry.payload.size:
                    continue
                ids = decode_batch(entry.payload).column(ID)
                whole = np.arange(entry.first_offset, entry.end_offset + 1)
                offsets = whole if entry.offsets is None else entry.offsets
                assert offsets.tolist() == [offset_of[text] for text in ids.to_pylist()]
                assert all(span.start <= value <= span.last for value in hash_ids(ids).tolist())
                seen.extend(ids.to_pylist())
        assert sorted(seen) == sorted(offset_of)

    async def test_a_tail_stops_at_the_size_asked_for(self, stores: Stores) -> None:
        made = await stores.create()
        for i in range(5):
            await stores.append(made, [f"{i}"], text="x" * 1000)
        after, ids = 0, []
        for _ in range(5):
            tail = await stores.log.read_tail(_whole(made, after_offset=after, max_size_bytes=1))
            assert len(tail.entries) == 1
            assert tail.through_offset == after + 1
            after = tail.through_offset
            ids += _ids(tail)
        assert ids == ["0", "1", "2", "3", "4"]
        two = await stores.log.read_tail(_whole(made, max_size_bytes=2 * upserts(["0"], text="x" * 1000).size))
        assert (len(two.entries), two.through_offset, two.head.head_offset) == (2, 2, 5)

    async def test_what_is_trimmed_has_expired(self, stores: Stores) -> None:
        made = await stores.create()
        for ids in (["a"], ["b", "c"], ["d"]):
            await stores.append(made, ids)
        await stores.compact(made, 3)
        await stores.trim(made, 3)
        for after in (0, 1):
            with pytest.raises(OffsetExpired):
                await stores.log.read_tail(_whole(made, after_offset=after))
        tail = await stores.log.read_tail(_whole(made, after_offset=3, hash_range=EVERYTHING))
        assert (_ids(tail), tail.head.compacted_offset, tail.head.version) == (["d"], 3, 1)
        with pytest.raises(StaleRead):
            await stores.append(made, ["e"], condition=Condition(1, ("z",)))
        assert (await stores.append(made, ["e"], condition=Condition(3, ("z",)))).first_offset == 5
