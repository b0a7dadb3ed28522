"""Outcomes of a batch against a plain simulation, one operation after another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_core.contracts import Outcome
from shoal_core.records import ID, OP, Operation
from shoal_frontend.outcomes import outcomes
from shoal_testing.strategies import QUICK

Step = tuple[Operation, str]
ADD, UPDATE, UPSERT, DELETE = Operation


def _batch(steps: Sequence[Step]) -> pa.RecordBatch:
    ids = pa.array([name for _, name in steps], pa.string())
    return pa.record_batch({OP: pa.array([int(kind) for kind, _ in steps], pa.uint8()), ID: ids})


def _outcomes(steps: Sequence[Step], before: frozenset[str]) -> list[Outcome]:
    existed = np.array([name in before for _, name in steps], dtype=bool)
    return [Outcome(value) for value in outcomes(_batch(steps), existed)]


def _simulated(steps: Sequence[Step], before: frozenset[str]) -> list[Outcome]:
    there = set(before)
    said = []
    for kind, name in steps:
        match kind, name in there:
            case Operation.ADD, True:
                said.append(Outcome.EXISTED)
            case Operation.UPDATE | Operation.UPSERT, True:
                said.append(Outcome.UPDATED)
            case Operation.ADD | Operation.UPSERT, False:
                said.append(Outcome.ADDED)
                there.add(name)
            case Operation.DELETE, True:
                said.append(Outcome.DELETED)
                there.remove(name)
            case _:
                said.append(Outcome.MISSING)
    return said


_IDS = st.sampled_from(["a", "b", "c", "é"])


@QUICK
@given(steps=st.lists(st.tuples(st.sampled_from(Operation), _IDS), max_size=14), before=st.frozensets(_IDS))
def test_outcomes_are_those_of_one_after_another(steps: list[Step], before: frozenset[str]) -> None:
    assert _outcomes(steps, before) == _simulated(steps, before)


@pytest.mark.parametrize(
    ("kind", "absent", "present"),
    [
        (ADD, Outcome.ADDED, Outcome.EXISTED),
        (UPSERT, Outcome.ADDED, Outcome.UPDATED),
        (UPDATE, Outcome.MISSING, Outcome.UPDATED),
        (DELETE, Outcome.MISSING, Outcome.DELETED),
    ],
)
def test_one_operation(kind: Operation, absent: Outcome, present: Outcome) -> None:
    assert _outcomes([(kind, "a"), (kind, "b")], frozenset("b")) == [absent, present]


def test_earlier_operations_of_the_batch_count() -> None:
    steps = [(UPDATE, "a"), (ADD, "a"), (DELETE, "b"), (ADD, "a"), (UPSERT, "b"), (DELETE, "a"), (UPDATE, "a")]
    said = [outcome.name for outcome in _outcomes(steps, frozenset("b"))]
    assert said == ["MISSING", "ADDED", "DELETED", "EXISTED", "ADDED", "DELETED", "MISSING"]


def test_a_batch_may_be_a_slice_or_empty() -> None:
    batch = _batch([(ADD, "x"), (DELETE, "b"), (ADD, "b"), (ADD, "c")])
    assert list(outcomes(batch.slice(1, 2), np.array([True, True]))) == [Outcome.DELETED, Outcome.ADDED]
    assert outcomes(batch.slice(0, 0), np.zeros(0, dtype=bool)) == b""
