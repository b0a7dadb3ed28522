"""Searches over shards: the answer does not depend on how many there are, and every call is of one snapshot.

The query nodes are plain Python over dictionaries here; what searches mean is the oracle's word.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_core.consistency import STRONG, Consistency, ReadLevel, ServedAt, as_of
from shoal_core.contracts import (
    Answer,
    Collection,
    CountAnswer,
    CountRequest,
    DenseLeaf,
    GetRequest,
    Head,
    Include,
    Leaf,
    QueryRequest,
    SearchRequest,
    SparseLeaf,
    Statistics,
    StatisticsAnswer,
    StatisticsRequest,
    Target,
    TextLeaf,
    TextStatistics,
)
from shoal_core.errors import DimensionMismatch, InvalidArgument, OffsetExpired, SnapshotGone
from shoal_core.evaluate import evaluate
from shoal_core.filters import Filter
from shoal_core.hashing import hash_ids, shard_of
from shoal_core.limits import Limits
from shoal_core.rank_json import parse_search
from shoal_core.ranking import DenseQuery, GroupBy, Knn, Search, Select, SparseQuery, Sum, TextQuery, Val
from shoal_core.records import CREATED_OFFSET, DOCUMENT, EMBEDDING, ID, URI_KEY, metadata_key
from shoal_core.schema import Analyzer, Index, Schema, SparseConfig
from shoal_frontend import search as searching
from shoal_frontend.cursor import Cursor
from shoal_frontend.fanout import Fanout, target_of
from shoal_frontend.search import search
from shoal_frontend.validate_search import check_searched, check_searches
from shoal_testing import oracle_search
from shoal_testing.strategies import QUICK, Record, from_row_table, to_row_table
from shoal_text.analysis import analyze_text

SCHEMA = Schema(analyzer=Analyzer(stop_words=("the",)), sparse={"w": SparseConfig(idf=True)})
DIMENSION = 2
ALL = ("#document", "#embedding", "#metadata", "#score")


def collection(shards: int = 1, schema: Schema = SCHEMA) -> Collection:
    return Collection("c", "t", "d", "name", 1, "i", "l2", shards, DIMENSION, None, {}, schema)


def record(name: str, at: float = 0.0, text: str | None = None, **metadata: Any) -> dict[str, Any]:
    return {"id": name, "embedding": (at, 0.0), "document": text, "uri": None, "metadata": metadata}


# --- the system: a log of which only the head counts, and nodes over the collection's states by offset


@dataclass
class System:
    """The log, the clock and every query node. A node serves an older state only AS_OF its offset, as if it had moved on.

    ``before`` is called with the name of each call of a node.
    """

    shards: int
    schema: Schema = SCHEMA
    states: dict[int, list[Record]] = field(default_factory=lambda: {0: []})
    calls: list[tuple[str, Any]] = field(default_factory=list)
    before: Callable[[str], None] = lambda name: None
    seconds: float = 0.0

    def write(self, *records: dict[str, Any], remove: Iterable[str] = ()) -> int:
        """One batch; its end offset."""
        head = max(self.states)
        gone = {*remove, *(new["id"] for new in records)}
        kept = [old for old in self.states[head] if old["id"] not in gone]
        added = [new | dict.fromkeys((CREATED_OFFSET, "updated_offset"), head + n) for n, new in enumerate(records, 1)]
        end = head + max(len(gone), 1)
        self.states[end] = kept + added
        return end

    async def search(
        self,
        *searches: Search,
        consistency: Consistency = STRONG,
        exact: bool = False,
        explain: bool = False,
        clock: bool = False,
    ) -> list[Answer]:
        """What the frontend answers."""
        checked = collection(self.shards, self.schema)
        check_searches(searches, Limits())
        check_searched(searches, checked, Limits())
        return await search(
            self.fanout(clock), checked, searches, consistency=consistency, exact=exact, explain=explain
        )

    def fanout(self, clock: bool = False) -> Fanout:
        system = cast(Any, self)
        return Fanout(system, system, system, system if clock else None)

    def named(self, name: str) -> list[Any]:
        """Requests of one method."""
        return [request for called, request in self.calls if called == name]

    # the clock and the log

    def monotonic(self) -> float:
        self.seconds += 0.001
        return self.seconds

    async def read_index(self, collection_id: str, epoch: int) -> Head:
        return Head(collection_id, epoch, "i", max(self.states), 1, 0, DIMENSION)

    # the query nodes

    async def get(self, request: GetRequest, *, encoded: bool = False) -> Answer:
        rows, served_at = await self._rows("get", request)
        rows = [row for row in rows if row[CREATED_OFFSET] > request.after_created]
        end = None if request.limit is None else request.offset + request.limit
        return self._answer(shown(rows[request.offset : end], request.include), [], served_at, request)

    async def query(self, request: QueryRequest, *, encoded: bool = False) -> Answer:
        leaves = tuple(DenseLeaf(vector, request.k) for vector in request.vectors)
        table, counts, served_at = await self._leaves("query", request, leaves)
        found = table.append_column("distance", table.column("score").cast(pa.float32())).drop_columns(["score"])
        return self._answer(found, counts, served_at, request)

    async def count(self, request: CountRequest) -> CountAnswer:
        rows, served_at = await self._rows("count", request)
        explain = {"shards": [{"shard": request.target.shard}]} if request.explain else None
        return CountAnswer(len(rows), served_at, explain)

    async def search_shard(self, request: SearchRequest) -> Answer:
        table, counts, served_at = await self._leaves("search", request, request.leaves)
        return self._answer(table, counts, served_at, request)

    async def statistics(self, request: StatisticsRequest) -> StatisticsAnswer:
        rows, served_at = await self._rows("statistics", request)
        found = []
        for ask in request.asks:
            if isinstance(ask, TextStatistics):
                texts = [analyze_text(row["document"], ask.analyzer) for row in rows if row["document"] is not None]
                having = [sum(term in text for text in texts) for term in ask.terms]
                found.append(Statistics(len(texts), sum(map(len, texts)), np.array(having, np.int64)))
            else:
                vectors = [row["metadata"][ask.key] for row in rows if ask.key in row["metadata"]]
                having = [sum(index in vector["indices"] for vector in vectors) for index in ask.indices.tolist()]
                found.append(Statistics(len(vectors), 0, np.array(having, np.int64)))
        return StatisticsAnswer(tuple(found), served_at)

    async def _leaves(
        self, name: str, request: QueryRequest | SearchRequest, leaves: Sequence[Leaf]
    ) -> tuple[pa.Table, list[int], ServedAt]:
        rows, served_at = await self._rows(name, request)
        found: list[tuple[Record, float]] = []
        counts = []
        for leaf in leaves:
            measured = [(row, value) for row in rows if (value := measure(row, leaf)) is not None]
            measured.sort(key=lambda pair: (pair[1], pair[0][CREATED_OFFSET]))
            found += measured[: leaf.k]
            counts.append(len(measured[: leaf.k]))
        table = shown([row for row, _ in found], Include())
        return table.append_column("score", pa.array([value for _, value in found], pa.float64())), counts, served_at

    async def _rows(self, name: str, request: Any) -> tuple[list[Record], ServedAt]:
        self.calls.append((name, request))
        self.before(name)
        await asyncio.sleep(0)
        offset = self._offset(request.consistency, request.snapshot_offset)
        rows = selected(self.states[offset], request.target, getattr(request, "ids", None), getattr(request, "where", None))
        return rows, ServedAt(offset, 1 + request.target.shard)

    def _offset(self, consistency: Consistency, snapshot_offset: int) -> int:
        if consistency.level is ReadLevel.AS_OF:
            if snapshot_offset and snapshot_offset not in self.states:
                raise OffsetExpired("no such snapshot")
            return max(end for end in self.states if end <= (snapshot_offset or consistency.offset))
        if snapshot_offset not in (0, max(self.states)):
            raise SnapshotGone("a newer version is loaded")
        return max(self.states)

    def _answer(self, rows: pa.Table, counts: list[int], served_at: ServedAt, request: Any) -> Answer:
        explain = {"shards": [{"shard": request.target.shard}]} if request.explain else None
        if request.explain:
            rows = rows.append_column("origin", pa.array(np.zeros(rows.num_rows, np.uint8)))
        return Answer(rows, np.array(counts or [rows.num_rows], np.uint32), served_at, explain=explain)


class Nodes(System):
    """The query nodes' side of a system: there, ``search`` is of one shard."""


def selected(rows: list[Record], target: Target, ids: Sequence[str] | None, where: Filter | None) -> list[Record]:
    if not rows:
        return []
    shard = shard_of(hash_ids(pa.array([row["id"] for row in rows])), target.shards)
    matching = np.ones(len(rows), bool) if where is None else evaluate(where, to_row_table(rows, DIMENSION))
    return [
        row
        for row, owner, matches in zip(rows, shard.tolist(), matching.tolist(), strict=True)
        if owner == target.shard and matches and (ids is None or row["id"] in ids)
    ]


def shown(rows: Sequence[Record], include: Include) -> pa.Table:
    table = to_row_table(rows, DIMENSION)
    wanted = {ID, CREATED_OFFSET}
    wanted |= {DOCUMENT} if include.documents else set()
    wanted |= {EMBEDDING} if include.embeddings else set()
    for name in table.column_names:
        key = metadata_key(name)
        if key is not None and (key in include.keys or (include.metadatas and key != URI_KEY)):
            wanted.add(name)
    return table.select([name for name in table.column_names if name in wanted])


def measure(row: Record, leaf: Leaf) -> float | None:
    match leaf:
        case DenseLeaf(vector):
            return math.fsum((a - b) ** 2 for a, b in zip(vector.tolist(), row["embedding"], strict=True))
        case SparseLeaf(key, indices, values):
            if key not in row["metadata"]:
                return None
            stored = dict(zip(row["metadata"][key]["indices"], row["metadata"][key]["values"], strict=True))
            given = zip(indices.tolist(), values.tolist(), strict=True)
            return 1.0 - math.fsum(weight * stored.get(index, 0.0) for index, weight in given)
        case TextLeaf(terms, weights):
            words = Counter(analyze_text(row["document"] or "", leaf.analyzer))
            if not any(words[term] for term in terms):
                return None
            spread = leaf.k1 * (1 - leaf.b + leaf.b * words.total() / leaf.average_length)
            gains = zip(terms, weights.tolist(), strict=True)
            return 1.0 - math.fsum(w * words[t] * (leaf.k1 + 1) / (words[t] + spread) for t, w in gains)


def rows_of(answer: Answer) -> list[dict[str, Any]]:
    return from_row_table(answer.rows)


def ids_of(answer: Answer) -> list[str]:
    ids: list[str] = answer.rows.column(ID).to_pylist()
    return ids


def play(scenario: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
    asyncio.run(scenario(*arguments))


def dense(at: float, limit: int = 16, default: float | None = None, return_rank: bool = False) -> Knn:
    return Knn(DenseQuery(np.array([at, 0.0], np.float32)), "#embedding", limit, default, return_rank)


def text(words: str, limit: int = 16, default: float | None = None, return_rank: bool = False) -> Knn:
    return Knn(TextQuery(words), "#document", limit, default, return_rank)


SCORES = Select(scores=True)
"""What most searches here ask for."""
