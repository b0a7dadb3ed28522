"""Segments whose graphs' links are coded, as a setting of the compactor has it: they answer through those codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shoal_compactor.compactor import CompactorSettings
from shoal_compactor.flush import FlushSettings
from shoal_core.contracts import CollectionRef, NewCollection, QueryRequest, Target
from shoal_core.records import EMBEDDING, ID, OP, embedding_array
from shoal_index import planner
from shoal_index.vector import coded_graph
from shoal_query.execute import DISTANCE
from shoal_runtime.sections import settings_of
from shoal_runtime.service_sections import CompactorSection, FlushSection
from shoal_testing.direct import DirectSystem
from shoal_testing.fakes import DEFAULT_DATABASE, DEFAULT_TENANT

ROWS, DIMENSION, K = 2_000, 64, 10


def points(rows: int, seed: int) -> np.ndarray:
    middles = np.random.default_rng(1).standard_normal((40, DIMENSION))
    random = np.random.default_rng(seed)
    return (middles[random.integers(40, size=rows)] + 0.6 * random.standard_normal((rows, DIMENSION))).astype(
        np.float32
    )


async def written(system: DirectSystem, ref: CollectionRef, first: int, rows: int) -> None:
    columns = {OP: pa.array(np.zeros(rows, np.uint8)), ID: pa.array([str(first + number) for number in range(rows)])}
    columns[EMBEDDING] = embedding_array(points(rows, first))
    await system.database.write(ref, pa.record_batch(columns))
    await system.compact(ref)


def strategies(explained: Any) -> list[str]:
    [shard] = explained["shards"]
    return [segment["strategy"] for segment in shard["segments"]]


def section(*, coded_graphs: bool) -> CompactorSettings:
    flush = FlushSection(threads=1, graph_rows=1_000, coded_graphs=coded_graphs)
    return settings_of(CompactorSettings, CompactorSection(flush=flush))


@pytest.mark.parametrize("coded_graphs", [True, False])
async def test_what_the_setting_asks_for_is_what_searches_use(
    coded_graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "SCAN_ROWS", 100)
    monkeypatch.setattr(coded_graph, "BEGIN_NS", (0.0, 0.0))
    monkeypatch.setattr(coded_graph, "VISIT_NS", (10.0, 0.0))
    assert not FlushSettings().coded_graphs, "it takes memory: who wants it says so"
    system = DirectSystem(settings=section(coded_graphs=coded_graphs))
    made, _ = await system.database.create_collection(NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, "large"))
    ref = CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, id=made.id)
    await written(system, ref, 0, ROWS)
    target = Target(made.id, 1, "l2", 0, 1)
    found, true = [], []
    for query in points(30, 9):
        answer = await system.node.query(QueryRequest(target, query[None, :], K, explain=True))
        assert (strategies(answer.explain) == ["coded_graph"]) == coded_graphs
        exact = await system.node.query(QueryRequest(target, query[None, :], K, exact=True))
        found.append(answer.rows.column(ID).to_pylist())
        true.append(exact.rows.column(ID).to_pylist())
        for name, distance in zip(found[-1], answer.rows.column(DISTANCE).to_pylist(), strict=True):
            if name in true[-1]:
                assert distance == exact.rows.column(DISTANCE).to_pylist()[true[-1].index(name)]
    assert np.mean([len({*near} & {*far}) / K for near, far in zip(found, true, strict=True)]) >= 0.93
    await system.node.close()
