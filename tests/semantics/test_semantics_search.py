"""Searches: what the bulk of pairs draws seldom or not at all, each from the page of the semantics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shoal_compactor.compactor import CompactorSettings
from shoal_compactor.flush import FlushSettings
from shoal_compactor.policy import MergePolicy
from shoal_core.contracts import CollectionRef, NewCollection
from shoal_core.errors import InvalidArgument
from shoal_core.filters import parse_where
from shoal_core.rank_json import parse_search
from shoal_core.records import EMBEDDING, ID, OP, embedding_array
from shoal_core.schema import Analyzer, Index, Schema, SparseConfig, VectorConfig
from shoal_testing.direct import DirectSystem
from shoal_testing.fakes import DEFAULT_DATABASE, DEFAULT_TENANT
from shoal_testing.random_records import DIMENSION, LAYOUTS, SHARDS, Plan, draw_plan
from tests.semantics.pairs import Coverage, State, build, compare_reads

SCHEMA = Schema(analyzer=Analyzer(language="none"), sparse={"w": SparseConfig(idf=True)})
WORDS = ("sea", "shell", "shore", "ship")


def documents() -> list[Any]:
    """Eight documents of one to four terms, one without terms, and a record without a document."""
    rows = [(" ".join(WORDS[n % 4 :][: 1 + n % 3]), n) for n in range(8)]
    ops = [("add", f"d{n}", (float(n), 0.0, 0.0, 0.0), text, None, _metadata(n)) for text, n in rows]
    return [*ops, ("add", "empty", (9.0, 0, 0, 0), "", None, None), ("add", "none", (9.0, 0, 0, 0), None, None, None)]


def _metadata(n: int) -> dict[str, Any]:
    return {"n": n, "w": {"indices": [1, 2 + n % 2], "values": [1.0, 0.5 * n + 0.5]}}


async def collection(system: DirectSystem, layout: str, shards: int, schema: Schema = SCHEMA) -> State:
    """The documents, written twice over, so that rows of segments are dead where there are any."""
    steps: list[tuple[str, Any]] = [("write", documents())]
    if layout != "tail":
        steps.append(("flush", None))
    steps.append(("write", [("upsert", *op[1:]) for op in documents()[:5]]))
    if layout == "compacted":
        steps.append(("merge", None))

    async def compact(ref: CollectionRef, merge: bool) -> None:
        await system.compact(ref, merge=merge)

    return await build(Plan(0, shards, layout, "l2", schema, tuple(steps)), system.database, compact)


def small() -> CompactorSettings:
    """Merges whatever there is two of."""
    return CompactorSettings(flush=FlushSettings(threads=1), policy=MergePolicy(fanout=2))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shards", SHARDS)
async def test_statistics_are_of_the_whole_collection_whatever_filter_and_shards(layout: str, shards: int) -> None:
    system = DirectSystem(settings=small())
    state = await collection(system, layout, shards)
    payload = {"filter": {"n": {"$in": [0, 4]}}, "select": {"keys": ["#score"]}}
    text, sparse = {"query": "sea", "key": "#document"}, {"query": {"indices": [2], "values": [1.0]}, "key": "w"}
    searches = [parse_search(payload | {"rank": {"$knn": leaf}}) for leaf in (text, sparse)]
    by_text, by_index = await state.database.search(state.ref, searches)

    lengths = [
        min(1 + n % 3, 4 - n % 4) for n in range(8)
    ]  # sea is in d0 and d4, of nine documents with these many terms
    average = sum(lengths) / 9
    idf = math.log(1 + (9 - 2 + 0.5) / (2 + 0.5))
    expected = {f"d{n}": 1 - idf * 2.2 / (1 + 1.2 * (0.25 + 0.75 * lengths[n] / average)) for n in (0, 4)}
    assert dict(
        zip(*[by_text.rows.column(name).to_pylist() for name in ("id", "score")], strict=True)
    ) == pytest.approx(expected, rel=1e-12)
    weight = math.log(1 + (8 - 4 + 0.5) / (4 + 0.5))  # index 2 is in four of the eight records that have the key
    assert by_index.rows.column("id").to_pylist() == ["d4", "d0"]
    assert by_index.rows.column("score").to_pylist() == pytest.approx([1 - 2.5 * weight, 1 - 0.5 * weight], rel=1e-12)
    await system.node.close()


async def test_searches_of_one_call_are_of_one_snapshot() -> None:
    system = DirectSystem(settings=small())
    state = await collection(system, "mixed", 2)
    payloads: list[Any] = [
        {"rank": {"$knn": {"query": [2.0, 0, 0, 0], "limit": 3}}},
        {"filter": {"n": {"$gt": 5}}},
        {"rank": {"$knn": {"query": "ship shore", "key": "#document"}}, "limit": {"limit": 2}},
    ]
    answers = await state.database.search(state.ref, [parse_search(payload) for payload in payloads])
    expected = [[row["id"] for row in state.oracle.search(payload).rows] for payload in payloads]
    assert [answer.rows.column("id").to_pylist() for answer in answers] == expected
    assert {answer.served_at for answer in answers} == {answers[0].served_at}
    await system.node.close()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("key", "index", "where", "rank"),
    [
        ("n", Index.INT, {"n": {"$gt": 3}}, None),
        ("#document", Index.SUBSTRING, {"#document": {"$contains": "sea"}}, None),
        ("#document", Index.RANKED, None, {"query": "sea", "key": "#document"}),
        ("w", Index.SPARSE, None, {"query": {"indices": [1], "values": [1.0]}, "key": "w"}),
    ],
)
async def test_an_index_that_is_off_is_an_error_or_a_scan(
    layout: str, key: str, index: Index, where: Any, rank: Any
) -> None:
    """The error names the key; the scan answers what the index would."""
    system = DirectSystem(settings=small())
    off = Schema(keys={key: {index: False}}, analyzer=SCHEMA.analyzer, sparse=SCHEMA.sparse)
    state = await collection(system, layout, 2, off)
    payload: dict[str, Any] = {"filter": where} if where else {"rank": {"$knn": rank}}
    search = parse_search(payload)
    with pytest.raises(InvalidArgument, match=key.removeprefix("#")):
        await state.database.search(state.ref, [search])
    [answer] = await state.database.search(state.ref, [search], allow_scan=True)
    assert answer.rows.column("id").to_pylist() == [row["id"] for row in state.oracle.search(payload).rows]
    if where:
        with pytest.raises(InvalidArgument, match=key.removeprefix("#")):
            await state.database.get(state.ref, where=parse_where(where))
        with pytest.raises(InvalidArgument, match=key.removeprefix("#")):
            await state.database.count(state.ref, where=parse_where(where))
        with pytest.raises(InvalidArgument, match=key.removeprefix("#")):
            await state.database.delete_where(state.ref, ids=None, where=parse_where(where))
    await system.node.close()


@pytest.mark.parametrize("number", [2, 4, 16])
async def test_larger_collections_agree(number: int) -> None:
    """A thousand records in several segments and the tail: what small ones never fill."""
    system = DirectSystem(settings=small())

    async def compact(ref: CollectionRef, merge: bool) -> None:
        await system.compact(ref, merge=merge)

    state = await build(draw_plan(number, seed=1, scale=12), system.database, compact)
    assert state.oracle.count() > 300
    assert state.oracle.dimension == DIMENSION
    await compare_reads(state, 60, Coverage(), seed=1)
    await system.node.close()


async def test_the_effort_of_the_schema_reaches_graphs_in_queries_and_searches() -> None:
    system = DirectSystem(settings=CompactorSettings(flush=FlushSettings(threads=1)))
    schema = Schema(vector=VectorConfig(ef_search=321), off=frozenset({Index.RANKED, Index.SUBSTRING}))
    new = NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, "large", schema=schema)
    made, _ = await system.database.create_collection(new)
    ref = CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, id=made.id)
    vectors = np.random.default_rng(3).standard_normal((12_000, 2), dtype=np.float32)
    for start in (0, 6_000):
        ids = pa.array([str(number) for number in range(start, start + 6_000)])
        columns = {OP: pa.array(np.zeros(6_000, np.uint8)), ID: ids}
        columns[EMBEDDING] = embedding_array(vectors[start : start + 6_000])
        await system.database.write(ref, pa.record_batch(columns))
    await system.compact(ref)
    near = await system.database.query(ref, vectors[:1], 5, explain=True)
    [found] = await system.database.search(
        ref, [parse_search({"rank": {"$knn": {"query": vectors[0].tolist(), "limit": 5}}})], explain=True
    )
    assert found.rows.column(ID).to_pylist() == near.rows.column(ID).to_pylist()
    for answer in (near, found):
        assert answer.explain is not None
        [segment] = answer.explain["shards"][0]["segments"]
        assert (segment["strategy"], segment["effort"]) == ("graph", 321)
        assert answer.recall is not None
        assert segment["recall"] == answer.recall > 0.95
    asked = await system.database.query(ref, vectors[:1], 5, recall=0.9, explain=True)
    assert asked.explain is not None
    [segment] = asked.explain["shards"][0]["segments"]
    assert segment["effort"] < 321, "a recall that is asked for is worth more than the collection's effort"
    assert (await system.database.query(ref, vectors[:1], 5, exact=True)).recall == 1.0
    await system.node.close()
