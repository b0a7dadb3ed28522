"""The raw tail and the overlay: every state that a fold stopped at stays readable, exactly, while folds go on."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_compactor.compactor import CompactorSettings
from shoal_compactor.flush import FlushSettings
from shoal_compactor.policy import MergePolicy
from shoal_core.contracts import AppendRequest, TailEntry, TailRequest, shard_range
from shoal_core.errors import Corrupt
from shoal_core.hashing import hash_ids, shard_of
from shoal_core.records import concat_rows, encode_batch
from shoal_index.version import ShardVersion, open_shard
from shoal_query.tail import Frozen, Overlay, RawTail
from shoal_storage.manifest import decode_manifest, empty_manifest
from shoal_testing import strategies
from shoal_testing.direct import DirectSystem
from shoal_testing.oracle import OracleCollection
from shoal_testing.schedules import threads_inline
from shoal_testing.strategies import Op, examples, from_row_table, to_operation_batch

DIMENSION = 2
SOME = examples(80)


def entry(first: int, end: int, size: int = 10) -> TailEntry:
    return TailEntry(first, end, pa.py_buffer(b"x" * size))


class TestRawTail:
    def test_grows_without_gaps(self) -> None:
        raw = RawTail(5)
        raw.add([entry(6, 8), entry(9, 9)], 9)
        raw.add([entry(10, 12)], 12)
        assert (raw.base, raw.through, raw.size_bytes) == (5, 12, 30)
        assert [item.end_offset for item in raw.between(5, 12)] == [8, 9, 12]
        assert [item.end_offset for item in raw.between(8, 11)] == [9]
        assert raw.between(12, 12) == []

    @pytest.mark.parametrize("first", [7, 5])
    def test_a_gap_or_a_batch_cut_in_two_is_corrupt(self, first: int) -> None:
        raw = RawTail(5)
        with pytest.raises(Corrupt):
            raw.add([entry(first, 9)], 9)
        assert raw.through == 5

    def test_a_gap_between_entries_of_one_answer(self) -> None:
        raw = RawTail(0)
        with pytest.raises(Corrupt):
            raw.add([entry(1, 2), entry(4, 4)], 4)

    def test_an_answer_that_ends_before_it_says(self) -> None:
        raw = RawTail(0)
        with pytest.raises(Corrupt):
            raw.add([entry(1, 2)], 3)

    def test_answers_may_overlap(self) -> None:
        raw = RawTail(0)
        raw.add([entry(1, 2), entry(3, 3)], 3)
        raw.add([entry(1, 2), entry(3, 3), entry(4, 6)], 6)
        raw.add([entry(3, 3)], 3)
        assert [item.first_offset for item in raw.between(0, 6)] == [1, 3, 4]
        assert raw.size_bytes == 30

    def test_release_keeps_what_comes_after(self) -> None:
        raw = RawTail(0)
        raw.add([entry(1, 2), entry(3, 5), entry(6, 6)], 6)
        raw.release(1)
        assert (raw.base, raw.size_bytes) == (0, 30)
        raw.release(5)
        assert (raw.base, raw.through, raw.size_bytes) == (5, 6, 10)
        assert [item.end_offset for item in raw.between(5, 6)] == [6]
        raw.release(6)
        assert (raw.base, raw.through, raw.size_bytes) == (6, 6, 0)
        raw.add([entry(7, 7)], 7)
        assert [item.end_offset for item in raw.between(6, 7)] == [7]

    def test_knows_where_batches_end(self) -> None:
        raw = RawTail(2)
        raw.add([entry(3, 5), entry(6, 6)], 6)
        assert [offset for offset in range(9) if raw.is_end(offset)] == [2, 5, 6]
        raw.release(5)
        assert [offset for offset in range(9) if raw.is_end(offset)] == [5, 6]


# --- the overlay


@dataclass(frozen=True)
class Log:
    """A version of a shard, the log after it, and what the records were at the end of every batch."""

    version: ShardVersion
    entries: tuple[TailEntry, ...]
    states: dict[int, dict[str, Any]]


def small() -> CompactorSettings:
    return CompactorSettings(flush=FlushSettings(graph_rows=10**9, threads=1), policy=MergePolicy(fanout=3))


async def _make(compacted: Sequence[Sequence[Op]], tail: Sequence[Sequence[Op]], shard: int, shards: int) -> Log:
    """Each batch of ``compacted`` becomes a version of its own; those of ``tail`` stay in the log."""
    system = DirectSystem(settings=small())
    ref = await system.create(shards=shards)
    collection = await system.catalog.get_collection_by_id(ref.id)
    oracle = OracleCollection("l2", DIMENSION)
    states: dict[int, dict[str, Any]] = {0: {}}
    for number, batch in enumerate([*compacted, *tail]):
        payload = encode_batch(to_operation_batch(batch, DIMENSION))
        await system.log.append(AppendRequest(ref.id, collection.epoch, collection.tenant, payload))
        for op, record_id, embedding, document, uri, metadata in batch:
            oracle.apply(op, [record_id], [embedding], [document], [uri], [metadata])
        states[oracle.head_offset] = {record["id"]: copy.deepcopy(record) for record in oracle.get()}
        if number < len(compacted):
            await system.compact(ref)
    info = await system.catalog.get_version(ref.id)
    manifest = empty_manifest(ref.id, "l2", shards)
    if info.version:
        manifest = decode_manifest(await system.objects.get(info.manifest_key))
    version = await open_shard(manifest, shard, system.blocks, {})
    request = TailRequest(ref.id, 0, info.compacted_offset, 0, shard_range(shard, shards))
    answer = await system.log.read_tail(request)
    return Log(version, answer.entries, states)


def make(compacted: Sequence[Sequence[Op]], tail: Sequence[Sequence[Op]], shard: int = 0, shards: int = 1) -> Log:
    with threads_inline():
        return asyncio.run(_make(compacted, tail, shard, shards))


def rows_at(version: ShardVersion, frozen: Frozen, offset: int) -> list[dict[str, Any]]:
    """The rows that are visible at an offset, segments first; in the oracle's form."""
    tables = []
    for number, view in enumerate(version.segments):
        live = np.ones(view.ref.rows, dtype=bool) if view.dead is None else ~view.dead
        hidden = frozen.hidden_rows(number, offset)
        assert live[hidden].all(), "the tail hides live rows only, each once"
        assert len(np.unique(hidden)) == len(hidden)
        live[hidden] = False
        tables.append(view.segment.take(np.flatnonzero(live), [*view.segment.schema.names, "embedding"]))
    if frozen.pieces is not None:
        visible = np.flatnonzero(frozen.visible(offset))
        if len(visible):
            rows = frozen.pieces.take(visible)
            assert rows.column("created_offset").to_numpy().tolist() == frozen.created[visible].tolist()
            tables.append(rows)
    return from_row_table(concat_rows(tables).combine_chunks()) if tables else []


def assert_state(log: Log, frozen: Frozen, offset: int, owned: set[str] | None = None) -> None:
    rows = rows_at(log.version, frozen, offset)
    expected = log.states[offset]
    if owned is not None:
        expected = {key: value for key, value in expected.items() if key in owned}
    assert len({row["id"] for row in rows}) == len(rows), "one row for an id"
    assert {row["id"]: row for row in rows} == expected


batches = st.lists(strategies.operations(DIMENSION), max_size=6)


@SOME
@given(compacted=st.lists(strategies.operations(DIMENSION), max_size=3), tail=batches, data=st.data())
def test_every_boundary_is_the_state_of_its_offset(compacted: Any, tail: Any, data: st.DataObject) -> None:
    log = make(compacted, tail)
    overlay = Overlay(log.version)
    pictures = {overlay.offset: overlay.frozen}
    left = list(log.entries)
    while left:
        count = data.draw(st.integers(1, len(left)), label="entries in one fold")
        step, left = left[:count], left[count:]
        overlay.advance(step, step[-1].end_offset, DIMENSION)
        pictures[overlay.offset] = overlay.frozen
        for offset, picture in pictures.items():
            assert overlay.serves(offset)
            assert_state(log, overlay.frozen, offset)
            assert_state(log, picture, offset)
    assert [offset for offset in log.states if overlay.serves(offset)] == list(pictures)


@SOME
@given(compacted=st.lists(strategies.operations(DIMENSION), max_size=2), tail=batches, shard=st.integers(0, 2))
def test_a_shard_sees_its_ids_only(compacted: Any, tail: Any, shard: int) -> None:
    log = make(compacted, tail, shard, 3)
    overlay = Overlay(log.version)
    names = sorted({op[1] for batch in [*compacted, *tail] for op in batch})
    owner = shard_of(hash_ids(pa.array(names, pa.string())), 3)
    owned = {name for name, number in zip(names, owner, strict=True) if number == shard}
    for item in log.entries:
        overlay.advance([item], item.end_offset, DIMENSION)
        assert_state(log, overlay.frozen, item.end_offset, owned)


def _churn(seed: int, batches: int) -> list[list[Op]]:
    """Few ids, many writes of all kinds."""
    chance = random.Random(seed)

    def one() -> Op:
        op = chance.choice(["add", "update", "upsert", "upsert", "delete"])
        vector = (float(chance.randrange(100)), 1.0) if op in ("add", "upsert") else None
        metadata = {chance.choice("ab"): chance.choice([None, 1, 2.5, "x"])} if op != "delete" else None
        return (op, f"id-{chance.randrange(12)}", vector, chance.choice([None, "text"]), None, metadata)

    return [[one() for _ in range(chance.randrange(1, 9))] for _ in range(batches)]


@pytest.mark.parametrize("seed", range(3))
def test_old_pictures_stay_right_through_growth(seed: int) -> None:
    churn = _churn(seed, 220)
    log = make([[op for batch in churn[:4] for op in batch], churn[4]], churn[5:])
    chance = random.Random(seed)
    overlay = Overlay(log.version)
    pictures = [overlay.frozen]
    left = list(log.entries)
    while left:
        count = min(len(left), chance.choice([1, 1, 2, 5]))
        step, left = left[:count], left[count:]
        overlay.advance(step, step[-1].end_offset, DIMENSION)
        pictures.append(overlay.frozen)
    assert overlay.frozen.created.size > 256, "the arrays grew several times"
    for number, picture in enumerate(pictures):
        assert_state(log, picture, picture.offset)
        older = pictures[chance.randrange(number + 1)].offset
        assert_state(log, picture, older)
        assert_state(log, overlay.frozen, picture.offset)


def test_many_small_folds_leave_few_pieces() -> None:
    log = make([], [[("upsert", f"id-{n}", (float(n), 0.0), None, None, None)] for n in range(300)])
    overlay = Overlay(log.version)
    for item in log.entries:
        overlay.advance([item], item.end_offset, DIMENSION)
    assert overlay.frozen.pieces is not None
    assert len(overlay.frozen.pieces.tables) <= 10
    assert_state(log, overlay.frozen, 300)


def test_entries_without_a_record_of_the_shard_only_move_the_offset() -> None:
    log = make([], [[("add", "a", (0.0, 0.0), None, None, None)]])
    overlay = Overlay(log.version)
    overlay.advance([TailEntry(1, 4, pa.py_buffer(b""), np.empty(0, np.uint64))], 4, DIMENSION)
    assert overlay.offset == 4
    assert overlay.serves(4)
    assert overlay.frozen.pieces is None


def test_a_fold_that_fails_may_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = [("add", name, (0.0, 0.0), "old", None, {"n": 1}) for name in "abc"]
    second = [("upsert", "a", None, "new", None, {"n": 2}), ("delete", "b", None, None, None, None)]
    log = make([first[:1]], [first[1:], second])
    overlay = Overlay(log.version)
    overlay.advance(log.entries[:1], log.entries[0].end_offset, DIMENSION)
    before = overlay.frozen
    for name in ("fold", "concat_rows"):
        with monkeypatch.context() as patch:
            patch.setattr(f"shoal_query.tail.{name}", _fail)
            with pytest.raises(MemoryError):
                overlay.advance(log.entries[1:], log.entries[1].end_offset, DIMENSION)
        assert overlay.frozen is before
    overlay.advance(log.entries[1:], log.entries[1].end_offset, DIMENSION)
    for offset in (1, 3, 5):
        assert_state(log, overlay.frozen, offset)


def _fail(*args: Any, **kwargs: Any) -> Any:
    raise MemoryError


def test_a_damaged_payload_is_corrupt_and_changes_nothing() -> None:
    log = make([], [[("add", "a", (0.0, 0.0), None, None, None)]])
    overlay = Overlay(log.version)
    broken = replace(log.entries[0], payload=log.entries[0].payload.slice(0, 40))
    with pytest.raises(Corrupt):
        overlay.advance([broken], 1, DIMENSION)
    overlay.advance(log.entries, 1, DIMENSION)
    assert_state(log, overlay.frozen, 1)


def test_records_that_cannot_be_created_are_counted() -> None:
    log = make([], [[("upsert", "a", None, "no embedding", None, None), ("add", "b", (1.0, 1.0), None, None, None)]])
    overlay = Overlay(log.version)
    overlay.advance(log.entries, 2, DIMENSION)
    assert overlay.quarantined == 1
    assert_state(log, overlay.frozen, 2)
