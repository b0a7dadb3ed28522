"""Live recall: how much is checked, what checks change, and what they find."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from shoal_compactor.compactor import CompactorSettings
from shoal_compactor.flush import FlushSettings
from shoal_core.contracts import CollectionRef, NewCollection
from shoal_core.records import EMBEDDING, ID, OP, embedding_array
from shoal_index import planner
from shoal_index.planner import Ask
from shoal_index.vector import hnsw
from shoal_query import node as nodes
from shoal_query.recall_check import CheckBudget, ObservedRecall
from shoal_testing.direct import DirectSystem
from shoal_testing.fakes import DEFAULT_DATABASE, DEFAULT_TENANT
from shoal_testing.schedules import until

ROWS, DIMENSION = 3_000, 8


def test_checks_take_no_more_than_their_share() -> None:
    budget = CheckBudget(0.01)
    assert not budget.begin(0.0), "nothing is saved up at the start"
    assert budget.begin(1.0)
    assert not budget.begin(50.0), "one at a time"
    budget.end(2.0)
    assert not budget.begin(51.0), "2 s were taken, 0.51 s earned"
    assert not budget.begin(199.0)
    assert budget.begin(201.0)
    budget.end(0.0)
    assert budget.begin(100_000.0)
    budget.end(1.5)
    assert not budget.begin(100_001.0), "an idle day saves up one second, not a thousand"
    assert not CheckBudget(0.0).begin(10.0)


def test_few_checks_change_nothing() -> None:
    observed = ObservedRecall()
    assert (observed.recall, observed.factor) == (None, 1.0)
    for _ in range(19):
        observed.add(0.95, 0.0)
    assert observed.factor == 1.0
    assert observed.corrected(Ask(10, 0.95)) == Ask(10, 0.95)


def test_what_was_missed_too_often_is_asked_for_more_strictly() -> None:
    observed = ObservedRecall()
    for _ in range(300):
        observed.add(0.95, 0.85)
    assert observed.recall == pytest.approx(0.85)
    assert observed.factor == pytest.approx(1 / 3, abs=0.03)
    assert observed.corrected(Ask(10, 0.94)).recall == pytest.approx(0.98, abs=0.002)
    assert observed.estimate(0.98) == pytest.approx(0.94, abs=0.01)
    assert observed.estimate(1.0) == 1.0
    assert observed.estimate(None) is None
    assert observed.corrected(Ask(10, 0.999)).recall == 0.999
    for _ in range(3_000):
        observed.add(0.98, 0.99)
    assert observed.factor == 1.0, "what is better than foretold is not asked for less strictly; old checks fade"


def test_corrections_fade_and_stay_within_what_curves_reach() -> None:
    """A correction may make every search a scan, which is not checked: only time can undo it."""
    observed = ObservedRecall()
    observed.fade(0.0)
    for _ in range(60):
        observed.add(0.95, 0.2)
    assert observed.factor < 0.2
    assert observed.corrected(Ask(10, 0.95)).recall == 0.99
    observed.fade(300.0)
    assert observed.factor < 0.5
    observed.fade(1_200.0)
    assert observed.factor == 1.0


async def system_of(monkeypatch: pytest.MonkeyPatch) -> tuple[DirectSystem, CollectionRef, np.ndarray]:
    monkeypatch.setattr(hnsw, "WALK_NS", (1.0, 0.0))
    monkeypatch.setattr(planner, "SCAN_ROWS", 100)
    system = DirectSystem(settings=CompactorSettings(flush=FlushSettings(threads=1, graph_rows=1_000)))
    made, _ = await system.database.create_collection(NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, "large"))
    ref = CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, id=made.id)
    vectors = np.random.default_rng(3).standard_normal((ROWS, DIMENSION), dtype=np.float32)
    columns = {OP: pa.array(np.zeros(ROWS, np.uint8)), ID: pa.array([str(number) for number in range(ROWS)])}
    columns[EMBEDDING] = embedding_array(vectors)
    await system.database.write(ref, pa.record_batch(columns))
    await system.compact(ref)
    return system, ref, vectors


async def asked(system: DirectSystem, ref: CollectionRef, queries: np.ndarray) -> tuple[int, float | None]:
    """One query, after which there is time for a check: the effort of its graph, and the answer's estimate."""
    await system.clock.advance(10.0)
    answer = await system.database.query(ref, queries, 10, explain=True)
    await until(lambda: not system.node._checking)
    assert answer.explain is not None
    [segment] = answer.explain["shards"][0]["segments"]
    assert segment["strategy"] == "graph"
    return segment["effort"], answer.recall


async def test_a_check_finds_the_true_recall(monkeypatch: pytest.MonkeyPatch) -> None:
    system, ref, vectors = await system_of(monkeypatch)
    for number in range(60):
        await asked(system, ref, vectors[number : number + 3])
    found = await system.database.query(ref, vectors[:1], 10, explain=True)
    assert found.explain is not None
    observed = found.explain["shards"][0]["recall"]
    assert 30 <= observed["checks"] <= system.node.counters.recall_checks, "older checks fade"
    assert observed["observed"] > 0.9
    assert system.node.observed_recall() == pytest.approx(observed["observed"])
    await system.node.close()


async def test_searches_look_harder_where_live_queries_get_less(monkeypatch: pytest.MonkeyPatch) -> None:
    system, ref, vectors = await system_of(monkeypatch)
    effort, estimate = await asked(system, ref, vectors[:1])
    assert estimate is not None
    monkeypatch.setattr(nodes, "check_query", lambda *_: [(0.95, 0.8)])
    for _ in range(40):
        harder, corrected = await asked(system, ref, vectors[:1])
    assert harder > effort
    assert corrected is not None
    assert corrected < 0.98
    await system.node.close()


async def test_exact_queries_and_scans_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    system, ref, vectors = await system_of(monkeypatch)
    for _ in range(5):
        await system.clock.advance(10.0)
        await system.database.query(ref, vectors[:1], 10, exact=True)
    assert system.node.counters.recall_checks == 0
    assert not system.node._checking
    await system.node.close()
