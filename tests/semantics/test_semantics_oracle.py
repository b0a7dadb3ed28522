"""The engine against the oracle, and tail against segments: the same operations with and without compaction in between.

Frontend, query node and compactor are the real ones, wired directly over in-memory stores.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_compactor.compactor import CompactorSettings
from shoal_compactor.flush import FlushSettings
from shoal_compactor.policy import MergePolicy
from shoal_core.contracts import CollectionRef, Include
from shoal_core.errors import InvalidArgument
from shoal_core.filters import all_of, parse_where, parse_where_document
from shoal_frontend.database import DatabaseService
from shoal_testing import strategies
from shoal_testing.direct import DirectSystem
from shoal_testing.oracle import OracleCollection
from shoal_testing.strategies import examples, from_row_table, to_operation_batch

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


@examples(60)
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


@st.composite
def _shapes(draw: st.DrawFn) -> dict[str, Any]:
    """One shape of read: what it selects, which page, which columns."""
    flags = st.booleans()
    return {
        "ids": draw(st.none() | st.lists(strategies.ids(), max_size=5)),
        "where": draw(st.none() | strategies.wheres(3)),
        "limit": draw(st.sampled_from([None, 0, 1, 3, 20])),
        "offset": draw(st.sampled_from([0, 0, 1, 4])),
        "k": draw(st.sampled_from([0, 1, 3, 50])),
        "vectors": draw(st.lists(strategies.embeddings(DIMENSION), min_size=1, max_size=3)),
        "include": draw(st.builds(Include, flags, flags, flags, flags, flags)),
    }


@strategies.examples(40)
@given(
    steps=st.lists(_step, min_size=1, max_size=8),
    shards=st.sampled_from([1, 3]),
    space=st.sampled_from(["l2", "cosine", "ip"]),
    shapes=st.lists(_shapes(), min_size=1, max_size=3),
)
def test_after_every_step_every_frontend_and_node_reads_alike(
    steps: list[Any], shards: int, space: str, shapes: list[dict[str, Any]]
) -> None:
    asyncio.run(_check_every_step(steps, shards, space, shapes))


async def _check_every_step(steps: list[Any], shards: int, space: str, shapes: list[dict[str, Any]]) -> None:
    """The node that was there all the time, through two frontends, and one that has just started."""
    system = DirectSystem(settings=_small())
    ref = await system.create(space=space, shards=shards)
    oracle = OracleCollection(space, DIMENSION)
    frontends = [system.database, system.new_database()]
    for number, (kind, ops) in enumerate(steps):
        if kind == "write" and ops:
            try:
                await frontends[number % 2].write(ref, to_operation_batch(ops, DIMENSION))
            except InvalidArgument:
                continue
            for op, record_id, embedding, document, uri, metadata in ops:
                oracle.apply(op, [record_id], [embedding], [document], [uri], [metadata])
        elif kind in ("flush", "merge"):
            await system.compact(ref, merge=kind == "merge")
        fresh = system.new_node("fresh")
        newest = DatabaseService(system.catalog, system.log, fresh, system.random, system.database.members)
        for database in (*frontends, newest):
            for shape in shapes:
                await _check_shape(database, ref, oracle, shape)
        await fresh.close()
    await system.node.close()


async def _check_shape(
    database: DatabaseService, ref: CollectionRef, oracle: OracleCollection, shape: dict[str, Any]
) -> None:
    where, ids, include = shape["where"], shape["ids"], shape["include"]
    tree = parse_where(where)
    page = {"limit": shape["limit"], "offset": shape["offset"]}
    got = await database.get(ref, ids=ids, where=tree, include=include, **page)
    expected = oracle.get(ids, where, **page)
    assert _shown(from_row_table(got.rows), EVERYTHING) == _shown(expected, include)
    assert got.served_at.offset == oracle.head_offset
    assert (await database.count(ref, where=tree)).count == oracle.count(where)
    vectors = np.asarray(shape["vectors"], dtype=np.float32)
    near = await database.query(ref, vectors, shape["k"], ids=ids, where=tree, exact=True, include=include)
    hits = oracle.query(vectors.tolist(), shape["k"], ids, where)
    assert near.row_counts.tolist() == [len(part) for part in hits]
    rows = from_row_table(near.rows)
    distances = [row.pop("distance") for row in rows]
    np.testing.assert_allclose(distances, [hit.distance for part in hits for hit in part], rtol=1e-4, atol=1e-6)
    records = {record["id"]: record for record in oracle.get()}
    assert _shown(rows, EVERYTHING) == _shown([records[row["id"]] for row in rows], include)


def _shown(records: Sequence[dict[str, Any]], include: Include) -> list[dict[str, Any]]:
    """Rows with the columns of an include; the others as if absent."""
    shown = []
    for record in records:
        embedding = np.asarray(record["embedding"] or (), np.float32).tolist() if include.embeddings else []
        document = record["document"] if include.documents else None
        uri = record["uri"] if include.uris else None
        metadata = record["metadata"] if include.metadatas else {}
        row = {"id": record["id"], "created_offset": record["created_offset"], "embedding": embedding}
        shown.append(row | {"document": document, "uri": uri, "metadata": metadata})
    return shown


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
