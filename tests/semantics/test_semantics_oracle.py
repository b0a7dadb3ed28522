"""The engine against the oracle, and tail against segments: the same operations with and without compaction in between.

Frontend, query node and compactor are the real ones, wired directly over in-memory stores.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_compactor.compactor import CompactorSettings
from shoal_compactor.flush import FlushSettings
from shoal_compactor.policy import MergePolicy
from shoal_core.contracts import CollectionRef, Include
from shoal_core.errors import InvalidArgument
from shoal_core.filters import all_of, parse_where, parse_where_document
from shoal_testing import strategies
from shoal_testing.direct import DirectSystem
from shoal_testing.oracle import OracleCollection
from shoal_testing.strategies import from_row_table, to_operation_batch

DIMENSION = 3
EVERYTHING = Include(documents=True, metadatas=True, embeddings=True, uris=True)

_batch = strategies.operations(DIMENSION)
_step = st.one_of(
    st.tuples(st.just("write"), _batch),
    st.tuples(st.just("write"), _batch),
    st.tuples(st.just("read"), st.none()),
    st.tuples(st.just("flush"), st.none()),
    st.tuples(st.just("merge"), st.none()),
)


def _small() -> CompactorSettings:
    return CompactorSettings(flush=FlushSettings(graph_rows=10**9, threads=1), policy=MergePolicy(fanout=2))


async def _replay(system: DirectSystem, ref: CollectionRef, steps: Sequence[Any], *, compacting: bool) -> None:
    for kind, ops in steps:
        if kind == "write" and ops:
            try:
                await system.database.write(ref, to_operation_batch(ops, DIMENSION))
            except InvalidArgument:
                continue  # the generator also makes what validation refuses; both runs skip it alike
        elif kind == "read":
            await system.database.count(ref)
        elif compacting:
            await system.compact(ref, merge=kind == "merge")


def _oracle(space: str, steps: Sequence[Any], accepted: set[int]) -> OracleCollection:
    oracle = OracleCollection(space, DIMENSION)
    for number, (kind, ops) in enumerate(steps):
        if kind != "write" or number not in accepted:
            continue
        for op, record_id, embedding, document, uri, metadata in ops:
            oracle.apply(op, [record_id], [embedding], [document], [uri], [metadata])
    return oracle


async def _accepted(steps: Sequence[Any]) -> set[int]:
    """Which writes validation lets through."""
    system = DirectSystem()
    ref = await system.create()
    found = set()
    for number, (kind, ops) in enumerate(steps):
        if kind != "write" or not ops:
            continue
        try:
            await system.database.write(ref, to_operation_batch(ops, DIMENSION))
            found.add(number)
        except InvalidArgument:
            continue
    return found


def _comparable(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows for comparison: embeddings as float32 numbers, absent values left out."""
    rows = []
    for record in records:
        row = {key: value for key, value in record.items() if value is not None and key != "updated_offset"}
        row["embedding"] = np.asarray(record["embedding"], np.float32).tolist()
        row["metadata"] = {key: value for key, value in (record.get("metadata") or {}).items() if value is not None}
        rows.append(row)
    return rows


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(_step, min_size=1, max_size=12),
    shards=st.sampled_from([1, 2, 5]),
    space=st.sampled_from(["l2", "cosine", "ip"]),
    where=st.none() | strategies.wheres(),
    where_document=st.none() | strategies.where_documents(),
    vector=strategies.embeddings(DIMENSION),
)
def test_tail_and_segments_agree_with_the_oracle(
    steps: list[Any], shards: int, space: str, where: Any, where_document: Any, vector: Any
) -> None:
    asyncio.run(_check(steps, shards, space, where, where_document, vector))


async def _check(steps: list[Any], shards: int, space: str, where: Any, where_document: Any, vector: Any) -> None:
    oracle = _oracle(space, steps, await _accepted(steps))
    tree = all_of(parse_where(where), parse_where_document(where_document))
    query = np.asarray([vector], dtype=np.float32)
    seen = []
    for compacting in (False, True):
        system = DirectSystem(settings=_small())
        ref = await system.create(space=space, shards=shards)
        await _replay(system, ref, steps, compacting=compacting)
        got = await system.database.get(ref, where=tree, include=EVERYTHING)
        count = await system.database.count(ref, where=tree)
        page = await system.database.get(ref, where=tree, limit=3, offset=1)
        near = await system.database.query(
            ref, query, 4, where=tree, exact=True, include=Include(distances=True, documents=True)
        )
        ids = near.rows.column("id").to_pylist()
        distances = near.rows.column("distance").to_pylist() if near.rows.num_rows else []
        seen.append(
            (got.rows.column("id").to_pylist(), count.count, page.rows.column("id").to_pylist(), ids, distances)
        )
        expected = oracle.get(where=where, where_document=where_document)
        assert _comparable(from_row_table(got.rows)) == _comparable(list(expected))
        assert count.count == len(expected)
        hits = oracle.query([list(vector)], 4, where=where, where_document=where_document)[0]
        np.testing.assert_allclose(distances, [hit.distance for hit in hits], rtol=1e-4, atol=1e-6)
        await system.node.close()
    assert seen[0] == seen[1]


@pytest.mark.parametrize("shards", [1, 3])
async def test_a_first_tour(shards: int) -> None:
    system = DirectSystem(settings=_small())
    ref = await system.create(shards=shards)
    ops: list[strategies.Op] = [
        ("add", f"id-{n}", (float(n), 0.0, 0.0), f"text {n}", None, {"n": n}) for n in range(50)
    ]
    await system.database.write(ref, to_operation_batch(ops, DIMENSION))
    await system.compact(ref)
    await system.database.write(ref, to_operation_batch([("delete", "id-7", None, None, None, None)], DIMENSION))
    near = await system.database.query(
        ref,
        np.array([[7.1, 0, 0]], np.float32),
        3,
        include=Include(distances=True, documents=True, metadatas=True),
        explain=True,
    )
    assert near.rows.column("id").to_pylist() == ["id-8", "id-6", "id-9"]
    assert near.rows.column("document").to_pylist() == ["text 8", "text 6", "text 9"]
    assert near.explain is not None
    assert near.served_at.offset == 51
    assert (await system.database.count(ref)).count == 49
    await system.node.close()
