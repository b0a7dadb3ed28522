"""Ranked lists of a shard: plain arithmetic over the records of a snapshot gives the same rows and, to the bit, the same measures."""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_compactor.compactor import CompactorSettings
from shoal_compactor.flush import FlushSettings
from shoal_compactor.policy import MergePolicy
from shoal_core.contracts import (
    AppendRequest,
    DenseLeaf,
    Include,
    Leaf,
    SparseLeaf,
    SparseStatistics,
    TailEntry,
    TailRequest,
    TextLeaf,
    TextStatistics,
    shard_range,
)
from shoal_core.filters import parse_where
from shoal_core.records import encode_batch
from shoal_core.schema import Analyzer
from shoal_index import planner
from shoal_index.planner import Ask, Strategy
from shoal_index.vector import hnsw
from shoal_index.vector.engine import exact_distances
from shoal_index.version import ShardVersion, open_shard
from shoal_query.execute import LiveMasks, Selection, Snapshot, hydrate
from shoal_query.ranked import Ranked, search_leaves, statistics
from shoal_query.tail import Overlay
from shoal_storage.manifest import decode_manifest, empty_manifest
from shoal_testing.direct import DirectSystem
from shoal_testing.oracle import OracleCollection
from shoal_testing.schedules import threads_inline
from shoal_testing.strategies import Op, examples, to_operation_batch

DIMENSION = 3
PLAIN = Analyzer(tokenizer="whitespace", language="none")
EVERYTHING = Selection()
WORDS = ("red", "green", "blue", "fish")
_NUMBERS = (0.0, 1.0, -1.0, 0.1, -0.3, 2.5)

Record = dict[str, Any]
Row = tuple[str, float]


@dataclass(frozen=True)
class Log:
    """A version of a shard, the log after it, and the records at the end of every batch."""

    version: ShardVersion
    entries: tuple[TailEntry, ...]
    states: dict[int, list[Record]]

    def overlay(self) -> Overlay:
        """Folded batch by batch."""
        overlay = Overlay(self.version)
        for entry in self.entries:
            overlay.advance([entry], entry.end_offset, DIMENSION)
        return overlay


async def _make(compacted: Sequence[Sequence[Op]], tail: Sequence[Sequence[Op]], space: str, graph_rows: int) -> Log:
    settings_ = CompactorSettings(flush=FlushSettings(graph_rows=graph_rows, threads=1), policy=MergePolicy(fanout=9))
    system = DirectSystem(settings=settings_)
    ref = await system.create(space=space)
    collection = await system.catalog.get_collection_by_id(ref.id)
    oracle = OracleCollection(space, DIMENSION)
    states: dict[int, list[Record]] = {0: []}
    for number, batch in enumerate([*compacted, *tail]):
        payload = encode_batch(to_operation_batch(batch, DIMENSION))
        await system.log.append(AppendRequest(ref.id, collection.epoch, collection.tenant, payload))
        for op, record_id, embedding, document, uri, metadata in batch:
            oracle.apply(op, [record_id], [embedding], [document], [uri], [metadata])
        states[oracle.head_offset] = copy.deepcopy(oracle.get())
        if number < len(compacted):
            await system.compact(ref)
    info = await system.catalog.get_version(ref.id)
    manifest = empty_manifest(ref.id, space, 1)
    if info.version:
        manifest = decode_manifest(await system.objects.get(info.manifest_key))
    version = await open_shard(manifest, 0, system.blocks, {})
    answer = await system.log.read_tail(TailRequest(ref.id, 0, info.compacted_offset, 0, shard_range(0, 1)))
    return Log(version, answer.entries, states)


def make(
    compacted: Sequence[Sequence[Op]], tail: Sequence[Sequence[Op]], space: str = "l2", graph_rows: int = 10**9
) -> Log:
    """Each batch of ``compacted`` becomes a segment; those of ``tail`` stay in the log."""
    with threads_inline():
        return asyncio.run(_make(compacted, tail, space, graph_rows))


def snapshot_of(log: Log, overlay: Overlay, offset: int | None = None) -> Snapshot:
    return Snapshot(log.version, overlay.frozen, overlay.offset if offset is None else offset, LiveMasks())


# --- plain arithmetic


def measure(leaf: Leaf, space: str, record: Record) -> float | None:
    """What a record measures by a leaf; None where the leaf does not know it."""
    match leaf:
        case DenseLeaf(vector=vector):
            return float(exact_distances(space, vector, np.array([record["embedding"]], np.float32))[0])
        case SparseLeaf(key=key):
            if key not in record["metadata"]:
                return None
            own = record["metadata"][key]
            values = dict(zip(own["indices"], np.array(own["values"], np.float32).tolist(), strict=True))
            total = 0.0
            for index, weight in zip(leaf.indices.tolist(), leaf.values.tolist(), strict=True):
                total += weight * values.get(index, 0.0)
            return 1.0 - total
        case TextLeaf():
            words = Counter((record["document"] or "").split())
            if not words.keys() & set(leaf.terms):
                return None
            score = 0.0
            for term, weight in zip(leaf.terms, leaf.weights.tolist(), strict=True):
                norm = leaf.k1 * (1.0 - leaf.b + leaf.b * words.total() / leaf.average_length)
                score += weight * (words[term] * (leaf.k1 + 1.0) / (words[term] + norm)) if term in words else 0.0
            return 1.0 - score


def expected(leaf: Leaf, space: str, records: Sequence[Record]) -> list[Row]:
    known = [(measure(leaf, space, record), record["created_offset"], record["id"]) for record in records]
    best = sorted(item for item in known if item[0] is not None)[: leaf.k]
    return [(record_id, value) for value, _, record_id in best if value is not None]


def lists_of(snapshot: Snapshot, ranked: Ranked) -> list[list[Row]]:
    rows = hydrate(snapshot, ranked.found, Include(), with_origin=False)
    assert rows.num_rows == len(ranked.measures) == ranked.found.counts.sum()
    assert rows.column("created_offset").to_pylist() == ranked.found.created.tolist()
    pairs = list(zip(rows.column("id").to_pylist(), ranked.measures.tolist(), strict=True))
    ends = np.cumsum(ranked.found.counts).tolist()
    return [pairs[end - count : end] for end, count in zip(ends, ranked.found.counts.tolist(), strict=True)]


def search(snapshot: Snapshot, leaves: Sequence[Leaf], selection: Selection = EVERYTHING) -> list[list[Row]]:
    return lists_of(snapshot, search_leaves(snapshot, selection, leaves, Ask(0, exact=True), threads=1))


# --- what may happen


def sparse_vectors() -> st.SearchStrategy[dict[str, Any]]:
    entries = st.dictionaries(st.sampled_from((0, 1, 5, 4_294_967_295)), st.sampled_from(_NUMBERS), max_size=4)
    return entries.map(lambda found: {"indices": sorted(found), "values": [found[index] for index in sorted(found)]})


def batches() -> st.SearchStrategy[list[Op]]:
    ids = st.sampled_from([f"id-{n}" for n in range(8)])
    vectors = st.tuples(*[st.sampled_from(_NUMBERS)] * DIMENSION)
    documents = st.none() | st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)
    metadata = st.fixed_dictionaries({}, optional={"s": st.none() | sparse_vectors(), "n": st.integers(0, 3)})
    writing: Any = st.tuples(st.sampled_from(["add", "upsert", "upsert"]), ids, vectors, documents, st.none(), metadata)
    updating: Any = st.tuples(st.just("update"), ids, st.none() | vectors, documents, st.none(), metadata)
    deleting: Any = st.tuples(st.just("delete"), ids, st.none(), st.none(), st.none(), st.none())
    return st.lists(writing | writing | updating | deleting, min_size=1, max_size=8)


def leaves() -> st.SearchStrategy[Leaf]:
    k = st.integers(1, 9)
    dense = st.builds(DenseLeaf, st.tuples(*[st.sampled_from(_NUMBERS)] * DIMENSION).map(_float32), k)
    sparse = st.builds(_sparse_leaf, st.sampled_from(("s", "absent")), sparse_vectors(), k)
    text = st.builds(_text_leaf, st.sets(st.sampled_from((*WORDS, "absent"))), k)
    return dense | sparse | text


def _float32(vector: Sequence[float]) -> Any:
    return np.array(vector, np.float32)


def _sparse_leaf(key: str, vector: dict[str, Any], k: int) -> SparseLeaf:
    return SparseLeaf(key, np.array(vector["indices"], np.uint32), np.array(vector["values"], np.float64), k)


def _text_leaf(terms: set[str], k: int) -> TextLeaf:
    weights = np.linspace(0.7, 1.9, len(terms), dtype=np.float64)
    return TextLeaf(tuple(sorted(terms)), weights, k, average_length=2.5, k1=1.2, b=0.75, analyzer=PLAIN)


@examples(120)
@given(
    compacted=st.lists(batches(), max_size=3),
    tail=st.lists(batches(), max_size=4),
    wanted=st.lists(leaves(), max_size=5),
    space=st.sampled_from(("l2", "cosine", "ip")),
    n=st.none() | st.integers(0, 3),
    ids=st.none() | st.sets(st.integers(0, 9)),
)
def test_lists_are_those_of_every_snapshot(
    compacted: Any, tail: Any, wanted: list[Leaf], space: str, n: int | None, ids: set[int] | None
) -> None:
    log = make(compacted, tail, space)
    overlay = log.overlay()
    names = None if ids is None else [f"id-{number}" for number in sorted(ids)]
    where = None if n is None else parse_where({"n": {"$gte": n}})
    selection = Selection(where, None if names is None else pa.array(names, pa.string()))
    terms = TextStatistics((*sorted(WORDS), "none"), PLAIN)
    indices = SparseStatistics("s", np.array([0, 1, 4], np.uint32))
    for offset, records in log.states.items():
        if not overlay.serves(offset):
            continue
        snapshot = snapshot_of(log, overlay, offset)
        selected = [
            record
            for record in records
            if (names is None or record["id"] in names) and (n is None or record["metadata"].get("n", -1) >= n)
        ]
        assert search(snapshot, wanted, selection) == [expected(leaf, space, selected) for leaf in wanted]
        text, sparse, absent = statistics(snapshot, [terms, indices, SparseStatistics("no", indices.indices)])
        documents = [record["document"].split() for record in records if record["document"] is not None]
        assert (text.records, text.length) == (len(documents), sum(map(len, documents)))
        assert text.frequencies.tolist() == [sum(term in words for words in documents) for term in terms.terms]
        vectors = [record["metadata"]["s"] for record in records if "s" in record["metadata"]]
        assert (sparse.records, sparse.length) == (len(vectors), 0)
        assert sparse.frequencies.tolist() == [sum(i in vector["indices"] for vector in vectors) for i in (0, 1, 4)]
        assert (absent.records, absent.frequencies.tolist()) == (0, [0, 0, 0])


# --- where a record lies makes no difference


def many(count: int) -> list[Op]:
    random = np.random.default_rng(5)

    def one(number: int) -> Op:
        indices = np.unique(random.integers(0, 40, 12)).tolist()
        values = random.standard_normal(len(indices)).astype(np.float32).tolist()
        vector = tuple(random.standard_normal(DIMENSION).astype(np.float32).tolist())
        document = " ".join(random.choice(WORDS, random.integers(0, 9)))
        return ("add", f"id-{number}", vector, document, None, {"s": {"indices": indices, "values": values}})

    return [one(number) for number in range(count)]


def some_leaves(k: int) -> list[Leaf]:
    random = np.random.default_rng(6)
    query = {"indices": list(range(0, 40, 2)), "values": random.standard_normal(20).tolist()}
    dense = [DenseLeaf(random.standard_normal(DIMENSION).astype(np.float32), each) for each in (k, 3, k)]
    return [dense[0], _sparse_leaf("s", query, k), dense[1], _text_leaf(set(WORDS), k), dense[2]]


@pytest.mark.parametrize("space", ["l2", "cosine", "ip"])
def test_the_same_measures_in_segments_and_in_the_tail(space: str) -> None:
    ops = many(300)
    layouts = {
        "tail": make([], [ops], space),
        "small pieces": make([], [ops[at : at + 37] for at in range(0, 300, 37)], space),
        "segment": make([ops], [], space),
        "both": make([ops[:100], ops[100:170]], [ops[170:290], ops[290:]], space),
    }
    records = next(iter(layouts.values())).states[300]
    for k in (7, 300, 1000):
        wanted = [expected(leaf, space, records) for leaf in some_leaves(k)]
        for name, log in layouts.items():
            assert search(snapshot_of(log, log.overlay()), some_leaves(k)) == wanted, name


def test_plans_of_dense_leaves_and_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "SCAN_ROWS", 100)
    monkeypatch.setattr(hnsw, "WALK_NS", (0.0, 0.0))
    ops = many(400)
    log = make([ops[:300], ops[300:350]], [ops[350:]], graph_rows=100)
    snapshot = snapshot_of(log, log.overlay())
    wanted = search(snapshot, some_leaves(5))
    for exact, first in ((True, Strategy.SCAN), (False, Strategy.GRAPH)):
        ranked = search_leaves(snapshot, EVERYTHING, some_leaves(5), Ask(0, exact=exact), threads=1)
        plans = [tuple(plan.strategy for plan in of_leaf) for of_leaf in ranked.plans]
        assert plans == [(first, Strategy.SCAN)] * 3, "three dense leaves, two segments"
        assert lists_of(snapshot, ranked) == wanted
        assert ranked.found.counts.tolist() == [5, 5, 3, 5, 5]
        assert ranked.found.distance is None
    assert search_leaves(snapshot, EVERYTHING, [], Ask(0), threads=1).found.counts.tolist() == []


def test_an_empty_shard() -> None:
    log = make([], [])
    snapshot = snapshot_of(log, log.overlay())
    assert search(snapshot, some_leaves(4)) == [[], [], [], [], []]
    assert statistics(snapshot, [TextStatistics(("red",), PLAIN)])[0].frequencies.tolist() == [0]


def test_a_piece_of_the_tail_keeps_its_index() -> None:
    log = make([], [many(40), many(43)[40:], many(44)[43:]])
    overlay = Overlay(log.version)
    kept = []
    for entry in log.entries:
        overlay.advance([entry], entry.end_offset, DIMENSION)
        parts = overlay.frozen.parts
        assert overlay.frozen.pieces is not None
        assert [part.table for part in parts] == list(overlay.frozen.pieces.tables)
        kept.append(parts[0].term_index(PLAIN))
    assert kept[0] is kept[1] is kept[2]
    assert kept[0] is not overlay.frozen.parts[0].term_index(Analyzer())
