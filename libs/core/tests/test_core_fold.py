"""Folding against the oracle: any operations, cut into runs anywhere, come to the oracle's state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_core.materialize import Folded, Indices, fold, join_operations
from shoal_core.records import EMBEDDING, concat_rows, decode_batch, embedding_matrix, empty_rows, encode_batch
from shoal_testing.oracle import OracleCollection
from shoal_testing.strategies import QUICK, Op, Record, from_row_table, operations, to_operation_batch

DIMENSION = 3
Batches = list[tuple[pa.RecordBatch, np.ndarray]]
runs_of_batches = st.lists(st.lists(operations(DIMENSION), min_size=1, max_size=3), min_size=1, max_size=4)


@dataclass
class Engine:
    """The row table that runs fold into, in one chunk, in many, or as a slice of a larger table."""

    shape: str = "chunks"
    dimension: int = DIMENSION
    rows: pa.Table = field(default_factory=lambda: empty_rows(DIMENSION))
    quarantined: list[int] = field(default_factory=list)

    def find(self, ids: pa.Array) -> tuple[pa.Table, Indices]:
        rows = pc.index_in(ids, value_set=self.rows.column("id").combine_chunks())
        return self.rows, pc.fill_null(rows, -1).cast(pa.int64()).to_numpy()

    def fold(self, batches: Batches) -> Folded:
        folded = fold(join_operations(batches, self.dimension), self.find, self.dimension)
        gone = pc.is_in(self.rows.column("id"), value_set=folded.ids.filter(pa.array(folded.changed)))
        self.rows = self._shaped(concat_rows([self.rows.filter(pc.invert(gone)), folded.rows]))
        self.quarantined += folded.quarantined.tolist()
        return folded

    def _shaped(self, rows: pa.Table) -> pa.Table:
        if self.shape == "chunks":
            return rows
        if self.shape == "one":
            return rows.combine_chunks()
        return (
            concat_rows([rows.slice(0, 1), rows, rows.slice(0, 1)]).combine_chunks().slice(1 if rows else 0, len(rows))
        )

    def state(self) -> list[str]:
        return canonical(sorted(from_row_table(self.rows), key=lambda record: record["created_offset"]))


def canonical(records: Sequence[Record]) -> list[str]:
    """Records as text, in which 1, 1.0 and True, and 0.0 and -0.0, differ and NaN equals itself."""
    return [repr(sorted((record | {"metadata": sorted(record["metadata"].items())}).items())) for record in records]


def oracle_after(ops: Sequence[Op]) -> OracleCollection:
    oracle = OracleCollection("l2", DIMENSION)
    for op, record_id, embedding, document, uri, metadata in ops:
        oracle.apply(op, [record_id], [embedding], [document], [uri], [metadata])
    return oracle


def to_run(batches: Sequence[Sequence[Op]], first_offset: int = 1) -> Batches:
    run = []
    for ops in batches:
        offsets = np.arange(first_offset, first_offset + len(ops), dtype=np.uint64)
        run.append((to_operation_batch(ops, DIMENSION), offsets))
        first_offset += len(ops)
    return run


@pytest.mark.parametrize("shape", ["chunks", "one", "slice"])
@QUICK
@given(runs=runs_of_batches)
def test_runs_fold_to_the_state_of_the_oracle(shape: str, runs: list[list[list[Op]]]) -> None:
    engine, done = Engine(shape), list[Op]()
    for run in runs:
        engine.fold(to_run(run, len(done) + 1))
        done += [op for batch in run for op in batch]
        oracle = oracle_after(done)
        assert engine.state() == canonical(oracle.get())
        assert engine.quarantined == [row.offset for row in oracle.quarantined]


@QUICK
@given(runs=runs_of_batches)
def test_one_run_and_many_runs_agree(runs: list[list[list[Op]]]) -> None:
    ops = [op for run in runs for batch in run for op in batch]
    whole, single = Engine(), Engine()
    whole.fold(to_run([ops]))
    for offset, op in enumerate(ops, start=1):
        single.fold(to_run([[op]], offset))
    assert whole.state() == single.state() == canonical(oracle_after(ops).get())
    assert whole.quarantined == single.quarantined


@QUICK
@given(before=operations(DIMENSION), after=operations(DIMENSION))
def test_folded_says_which_ids_changed_and_live(before: list[Op], after: list[Op]) -> None:
    engine = Engine()
    engine.fold(to_run([before]))
    folded = engine.fold(to_run([after], len(before) + 1))
    old = {record["id"]: record for record in oracle_after(before).get()}
    new = {record["id"]: record for record in oracle_after(before + after).get()}
    assert sorted(folded.ids.to_pylist()) == sorted({op[1] for op in after})
    for record_id, changed, live in zip(folded.ids.to_pylist(), folded.changed, folded.live, strict=True):
        assert live == (record_id in new)
        if old.get(record_id) != new.get(record_id):
            assert changed
    assert folded.rows.column("id").to_pylist() == [
        record_id
        for record_id, changed, live in zip(folded.ids.to_pylist(), folded.changed, folded.live, strict=True)
        if changed and live
    ]


@QUICK
@given(ops=operations(DIMENSION), surround=operations(DIMENSION), cut=st.integers(0, 8))
def test_slices_of_batches_fold_like_the_batches(ops: list[Op], surround: list[Op], cut: int) -> None:
    sliced = to_operation_batch(surround + ops + surround, DIMENSION).slice(len(surround), len(ops))
    offsets = np.arange(1, len(ops) + 1, dtype=np.uint64)
    engine = Engine()
    engine.fold([(sliced.slice(0, cut), offsets[:cut]), (sliced.slice(cut), offsets[cut:])])
    assert engine.state() == canonical(oracle_after(ops).get())


@QUICK
@given(ops=operations(DIMENSION), gaps=st.lists(st.integers(1, 9), min_size=8, max_size=8))
def test_offsets_may_have_gaps(ops: list[Op], gaps: list[int]) -> None:
    offsets = np.cumsum(gaps[: len(ops)]).astype(np.uint64) + np.uint64(2**40)
    engine = Engine()
    engine.fold([(to_operation_batch(ops, DIMENSION), offsets)])
    expected = oracle_after(ops).get()
    for record in expected:
        record["created_offset"] = int(offsets[record["created_offset"] - 1])
        record["updated_offset"] = int(offsets[record["updated_offset"] - 1])
    assert engine.state() == canonical(expected)


def batch(*ops: Op, dimension: int = DIMENSION) -> pa.RecordBatch:
    return to_operation_batch(list(ops), dimension)


def run(*batches: pa.RecordBatch) -> Batches:
    first, joined = 1, []
    for item in batches:
        joined.append((item, np.arange(first, first + len(item), dtype=np.uint64)))
        first += len(item)
    return joined


ONE, TWO = (1.0,) * 3, (2.0,) * 3


def test_an_embedding_of_another_dimension_quarantines_its_operation_only() -> None:
    wide = (1.0,) * 5
    engine = Engine()
    engine.fold(run(batch(("add", "a", ONE, None, None, None))))
    misfits = batch(
        ("add", "a", wide, "ignored", None, None),  # exists: nothing, so nothing to quarantine
        ("add", "b", wide, None, None, None),
        ("update", "a", wide, "lost", None, None),
        ("upsert", "a", wide, "lost", None, None),
        ("update", "a", None, "kept", None, None),
        ("update", "missing", wide, None, None, None),
        ("delete", "c", None, None, None, None),
        dimension=5,
    )
    engine.fold([(misfits, np.arange(2, 9, dtype=np.uint64))])
    assert [(row["id"], row["document"], row["updated_offset"]) for row in from_row_table(engine.rows)] == [
        ("a", "kept", 6)
    ]
    assert engine.quarantined == [3, 4, 5]


def test_a_collection_without_a_dimension_quarantines_what_would_create() -> None:
    engine = Engine(rows=empty_rows(None))
    joined = join_operations(
        run(batch(("add", "a", ONE, None, None, None), ("delete", "a", None, None, None, None))), None
    )
    folded = fold(joined, engine.find, None)
    assert folded.quarantined.tolist() == [1]
    assert folded.rows.num_rows == 0
    assert EMBEDDING not in folded.rows.column_names


def test_no_operations_fold_to_nothing() -> None:
    engine = Engine()
    engine.fold(run(batch(("add", "a", ONE, None, None, None))))
    folded = engine.fold([(batch(("add", "b", ONE, None, None, None)).slice(0, 0), np.array([], dtype=np.uint64))])
    assert (len(folded.ids), folded.rows.num_rows, len(folded.quarantined)) == (0, 0, 0)
    assert [row["id"] for row in from_row_table(engine.rows)] == ["a"]
    assert len(fold(join_operations([], DIMENSION), engine.find, DIMENSION).ids) == 0


def test_created_offset_survives_updates_and_not_delete_and_add() -> None:
    engine = Engine()
    engine.fold(run(batch(("add", "a", ONE, "one", None, {"k": 1}), ("update", "a", None, None, None, {"k": "x"}))))
    [row] = from_row_table(engine.rows)
    assert (row["created_offset"], row["updated_offset"], row["metadata"]) == (1, 2, {"k": "x"})
    engine.fold(
        [
            (
                batch(("delete", "a", None, None, None, None), ("add", "a", TWO, None, None, None)),
                np.array([3, 4], dtype=np.uint64),
            )
        ]
    )
    [row] = from_row_table(engine.rows)
    assert (row["created_offset"], row["updated_offset"], row["document"], row["metadata"]) == (4, 4, None, {})


def test_embeddings_of_a_misaligned_payload_come_out_aligned() -> None:
    payload = encode_batch(batch(("add", "a", ONE, None, None, None), ("add", "b", TWO, None, None, None))).to_pybytes()
    engine = Engine()
    for shift in range(1, 4):
        shifted = pa.py_buffer(b"." * shift + payload).slice(shift)
        folded = engine.fold(run(decode_batch(shifted)))
        matrix = embedding_matrix(folded.rows.column(EMBEDDING))
        assert matrix.flags.aligned
        assert matrix.tolist() == [list(ONE), list(TWO)]
        engine = Engine()


def test_rows_keep_embedding_bits() -> None:
    odd = (-0.0, 1e-45, 3.4028234663852886e38)
    engine = Engine()
    engine.fold(run(batch(("add", "a", odd, None, None, None))))
    engine.fold([(batch(("update", "a", None, "d", None, None)), np.array([2], dtype=np.uint64))])
    assert repr(from_row_table(engine.rows)[0]["embedding"]) == repr(tuple(np.array(odd, dtype=np.float32).tolist()))
