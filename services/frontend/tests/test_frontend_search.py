"""Searches over shards: the answer does not depend on how many there are, and every call is of one snapshot.

The query nodes are plain Python over dictionaries here; what searches mean is the oracle's word.
"""

from __future__ import annotations

import asyncio
import base64
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
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
from shoal_core.filters import And, Comparator, Compare, Filter, Text, TextMatcher
from shoal_core.hashing import hash_ids, shard_of
from shoal_core.limits import Limits
from shoal_core.rank_json import parse_search
from shoal_core.ranking import Abs, DenseQuery, GroupBy, Knn, Search, Select, SparseQuery, Sum, TextQuery, Val
from shoal_core.records import CREATED_OFFSET, DOCUMENT, EMBEDDING, ID, URI_KEY, metadata_key
from shoal_core.schema import Analyzer, Index, Schema, SparseConfig
from shoal_frontend import fanout as fanning
from shoal_frontend import search as searching
from shoal_frontend.cursor import Cursor
from shoal_frontend.fanout import Fanout, target_of
from shoal_frontend.search import search
from shoal_frontend.validate_search import check_searched, check_searches
from shoal_testing import oracle_search
from shoal_testing.strategies import Record, examples, from_row_table, to_row_table
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
class Shards:
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

    async def search(self, request: SearchRequest) -> Answer:
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
        rows = selected(
            self.states[offset], request.target, getattr(request, "ids", None), getattr(request, "where", None)
        )
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


async def ask(
    shards: Shards,
    *searches: Search,
    consistency: Consistency = STRONG,
    exact: bool = False,
    explain: bool = False,
    clock: bool = False,
) -> list[Answer]:
    """What the frontend answers."""
    there = collection(shards.shards, shards.schema)
    check_searches(searches, Limits())
    check_searched(searches, there, Limits())
    return await search(shards.fanout(clock), there, searches, consistency=consistency, exact=exact, explain=explain)


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


# --- the same answer from any number of shards

WORDS = ("sea", "ship", "ships", "sun", "red", "the")
SPARSE = st.dictionaries(st.integers(0, 4), st.sampled_from([0.5, 1.0, -2.0]), max_size=3).map(
    lambda items: {"indices": sorted(items), "values": [items[index] for index in sorted(items)]}
)
TEXTS = st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join)
VALUES = st.sampled_from([1, 1.0, 2, True, "x", "y", [1]])
METADATA = st.fixed_dictionaries({}, optional={"g": VALUES, "n": VALUES, "s": SPARSE, "w": SPARSE})
RECORDS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.none() | TEXTS, METADATA), min_size=1, max_size=16
).map(
    lambda rows: [
        record(f"id-{n}", 0.0, words, **metadata) | {"embedding": (float(x), float(y))}
        for n, (x, y, words, metadata) in enumerate(rows)
    ]
)


def _knn(query: st.SearchStrategy[Any], key: str) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {"query": query, "key": st.just(key), "limit": st.sampled_from([1, 2, 3, 5, 100])},
        optional={"default": st.sampled_from([0, 2.5, 100]), "return_rank": st.booleans()},
    ).map(lambda knn: {"$knn": knn})


LEAVES = st.one_of(
    _knn(st.lists(st.integers(0, 3), min_size=2, max_size=2), "#embedding"),
    _knn(SPARSE, "s"),
    _knn(SPARSE, "w"),
    _knn(TEXTS, "#document"),
)
RANKS = st.one_of(
    LEAVES,
    st.lists(LEAVES, min_size=1, max_size=3).map(lambda leaves: {"$sum": leaves}),
    st.tuples(LEAVES, LEAVES).map(lambda pair: {"$min": [pair[0], {"$mul": [{"$val": 0.5}, pair[1]]}]}),
    st.tuples(LEAVES, LEAVES).map(lambda pair: {"$div": {"left": pair[0], "right": pair[1]}}),
)
GROUPS = st.fixed_dictionaries(
    {
        "keys": st.sampled_from([["g"], ["g", "n"]]),
        "aggregate": st.tuples(
            st.sampled_from(["$min_k", "$max_k"]),
            st.sampled_from([["#score"], ["n"], ["n", "#score"]]),
            st.integers(1, 2),
        ).map(lambda parts: {parts[0]: {"keys": parts[1], "k": parts[2]}}),
    }
)
PAYLOADS = st.fixed_dictionaries(
    {"select": st.sampled_from([{"keys": ["#score"]}, {"keys": list(ALL)}, {"keys": ["#score", "g"]}])},
    optional={
        "rank": RANKS,
        "filter": st.sampled_from([{"g": 1}, {"g": {"$ne": "x"}}, {"#document": {"$contains": "s"}}]),
        "limit": st.fixed_dictionaries(
            {"limit": st.sampled_from([None, 0, 1, 4])}, optional={"offset": st.integers(0, 5)}
        ),
        "group_by": GROUPS,
    },
).map(lambda payload: payload if "rank" in payload else {k: v for k, v in payload.items() if k != "group_by"})


@examples(150)
@given(
    records=RECORDS, payloads=st.lists(PAYLOADS, min_size=1, max_size=3), some=st.none() | st.sets(st.integers(0, 20))
)
def test_answers_do_not_depend_on_the_number_of_shards(
    records: list[Record], payloads: list[Any], some: set[int] | None
) -> None:
    ids = None if some is None else tuple(f"id-{n}" for n in some)
    searches = [replace(parse_search(payload), ids=ids) for payload in payloads]

    async def scenario() -> None:
        answers: dict[int, list[list[dict[str, Any]]]] = {}
        told: dict[int, str] = {}
        for count in (1, 2, 5):
            shards = Shards(count)
            head = shards.write(*records)
            found = await ask(shards, *searches)
            answers[count] = [rows_of(answer) for answer in found]
            told[count] = repr(answers[count])  # a score may be nan
            assert all(answer.served_at.offset == head and answer.complete for answer in found)
            assert [answer.row_counts.tolist() for answer in found] == [[len(rows)] for rows in answers[count]]
        assert told[1] == told[2] == told[5]
        for payload, rows in zip(payloads, answers[1], strict=True):
            compare(rows, oracle_search.search(records_at(records), "l2", SCHEMA, payload, ids))

    asyncio.run(scenario())


def records_at(records: list[Record]) -> list[Record]:
    shards = Shards(1)
    return shards.states[shards.write(*records)]


def compare(rows: list[dict[str, Any]], expected: oracle_search.Found) -> None:
    """With the oracle's answer, but where near ties decide: the fake nodes sum in another order."""
    if not expected.settled:
        return
    assert [row["id"] for row in rows] == [row["id"] for row in expected.rows]
    for row, wanted in zip(rows, expected.rows, strict=True):
        assert row["document"] == wanted.get("document")
        assert row["embedding"] == wanted.get("embedding")
        assert row["metadata"] == wanted["metadata"]
        assert ("score" in row) == ("score" in wanted)
    scores, wanted_scores = ([row.get("score", 0.0) for row in part] for part in (rows, expected.rows))
    np.testing.assert_allclose(scores, wanted_scores, rtol=1e-9, atol=1e-9)


def test_large_answers_are_merged_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        shards = Shards(3)
        shards.write(*(record(f"id-{n}", n, "sea" * (n % 2), g=n % 3) for n in range(9)))
        by = GroupBy(("g",), ("#score",), 2)
        wanted = Search(rank=Sum((dense(0.0), text("sea", default=1.0))), group_by=by, select=SCORES)
        direct = await ask(shards, wanted)
        for module in (searching, fanning):
            monkeypatch.setattr(module, "MANY_ROWS", -1)
        beside = await ask(shards, wanted)
        assert rows_of(beside[0]) == rows_of(direct[0])
        assert direct[0].rows.num_rows == 6

    play(scenario)


# --- what is asked of shards


def test_what_many_records_have_is_fetched_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        shards = Shards(2)
        shards.write(*(record(f"id-{n}", n, g=n % 3) for n in range(11)))
        wanted = Search(rank=dense(0.0), group_by=GroupBy(("g",), ("#score",), 2), select=Select(metadatas=True))
        [whole] = await ask(shards, wanted)
        shards.calls.clear()
        monkeypatch.setattr(fanning, "_FETCHED_AT_ONCE", 2)
        [portions] = await ask(shards, wanted)
        assert rows_of(portions) == rows_of(whole)
        asked = [request.ids for request in shards.named("get")]
        assert max(map(len, asked)) == 2
        assert sorted(name for ids in asked for name in ids if len(ids)) == sorted(
            [f"id-{n}" for n in range(11)] + ids_of(whole)
        )

    play(scenario)


def test_frequencies_are_of_the_whole_collection_and_asked_once() -> None:
    async def scenario() -> None:
        shards = Shards(5)
        vectors = [{"indices": [1, 7], "values": [1.0, 2.0]}, {"indices": [7], "values": [1.0]}]
        names = [f"id-{n}" for n in range(20)]
        shards.write(
            *(record(name, 0, "sea ship" if n < 4 else "sun", w=vectors[n % 2], g=n) for n, name in enumerate(names))
        )
        query = SparseQuery(np.array([1, 7], np.uint32), np.array([1.0, 1.0], np.float32))
        rank = Sum((text("ship ship unheard", 100), Knn(query, "w", 100)))
        [answer] = await ask(shards, Search(rank=rank, where=parse_search({"filter": {"g": 0}}).where, select=SCORES))
        idf = math.log(1 + 16.5 / 4.5)
        average = (4 * 2 + 16) / 20
        bm25 = 2 * idf * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 2 / average))
        sparse = 1 * math.log(1 + 10.5 / 10.5) + 2 * math.log(1 + 0.5 / 20.5)
        assert ids_of(answer) == ["id-0"]
        assert answer.rows.column("score").to_pylist() == pytest.approx([1 - bm25 + 1 - sparse], rel=1e-12)
        asked = shards.named("statistics")
        assert [request.target.shard for request in asked] == [0, 1, 2, 3, 4]
        assert [len(request.asks) for request in asked] == [2] * 5
        [leaf, _] = shards.named("search")[0].leaves
        assert leaf.terms == ("ship",), "no document has the other"

    play(scenario)


def test_leaves_that_can_find_nothing_are_not_asked() -> None:
    async def scenario() -> None:
        shards = Shards(2)
        shards.write(*(record(f"id-{n}", n, "sea") for n in range(4)))
        alone = [Search(rank=text(words), select=SCORES) for words in ("", "the", "unheard")]
        for answer in await ask(shards, *alone):
            assert rows_of(answer) == []
            assert answer.rows.schema.field("score").type == pa.float64()
            assert answer.served_at.offset == 4
        assert shards.named("search") == []
        [answer] = await ask(shards, Search(rank=Sum((text("the", default=1.0), dense(0.0, 2))), select=SCORES))
        assert [(row["id"], row["score"]) for row in rows_of(answer)] == [("id-0", 1.0), ("id-1", 2.0)]
        assert [len(request.leaves) for request in shards.named("search")] == [1, 1]

    play(scenario)


def test_ids_are_asked_of_their_owners_and_none_of_nobody() -> None:
    async def scenario() -> None:
        shards = Shards(5)
        shards.write(*(record(f"id-{n}", n, "sea") for n in range(9)))
        names = ("id-3", "id-8", "nobody")
        [answer] = await ask(shards, Search(ids=names, rank=dense(9.0), select=SCORES))
        assert ids_of(answer) == ["id-8", "id-3"]
        owner = shard_of(hash_ids(pa.array(names)), 5).tolist()
        assert {request.target.shard for request in shards.named("search")} == set(owner)
        assert sorted(name for request in shards.named("search") for name in request.ids) == sorted(names)
        shards.calls.clear()
        for answer in await ask(shards, Search(ids=(), rank=text("sea")), Search(ids=())):
            assert rows_of(answer) == []
        assert [name for name, request in shards.calls if request.ids] == []
        assert shards.named("statistics") == shards.named("search") == []

    play(scenario)


def test_only_the_page_is_fetched_and_only_what_is_selected() -> None:
    async def scenario() -> None:
        shards = Shards(3)
        shards.write(*(record(f"id-{n}", n, f"text {n}", a=n, b="x") for n in range(9)))
        found = Search(rank=dense(0.0), limit=2, offset=3, select=Select(documents=True, keys=("a",)))
        [answer] = await ask(shards, found, exact=True)
        assert [(row["id"], row["document"], row["metadata"]) for row in rows_of(answer)] == [
            ("id-3", "text 3", {"a": 3}),
            ("id-4", "text 4", {"a": 4}),
        ]
        assert "score" not in answer.rows.column_names
        assert sorted(name for request in shards.named("get") for name in request.ids) == ["id-3", "id-4"]
        assert all(request.exact for request in shards.named("search"))
        shards.calls.clear()
        [answer] = await ask(shards, replace(found, select=SCORES))
        assert answer.rows.column_names == [ID, CREATED_OFFSET, "score"]
        assert shards.named("get") == []

    play(scenario)


def test_an_empty_collection_asks_no_node() -> None:
    async def scenario() -> None:
        shards = Shards(3)
        for answer in await ask(shards, Search(), Search(rank=text("sea"), select=SCORES)):
            assert (rows_of(answer), answer.row_counts.tolist(), answer.served_at) == ([], [0], ServedAt(0, 0))
        assert shards.calls == []

    play(scenario)


def test_searches_are_explained_with_the_stages_here() -> None:
    async def scenario() -> None:
        shards = Shards(2)
        shards.write(*(record(f"id-{n}", n, "sea") for n in range(4)))
        searches = [Search(rank=text("sea")), Search()]
        for answer in await ask(shards, *searches, explain=True):
            assert answer.explain == {"shards": [{"shard": 0}, {"shard": 1}]}
        [ranked, listed] = [answer.explain or {} for answer in await ask(shards, *searches, explain=True, clock=True)]
        stages = ranked["frontend"]["milliseconds"]
        assert list(stages) == ["statistics", "leaves", "score", "fetch"]
        assert all(value > 0 for value in stages.values())
        assert list(listed["frontend"]["milliseconds"]) == ["snapshot", "shards"]
        assert [answer.explain for answer in await ask(shards, *searches)] == [None, None]

    play(scenario)


# --- one snapshot


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("moment", ["statistics", "search", "get"])
def test_all_searches_of_a_call_move_on_together(shards: int, moment: str) -> None:
    async def scenario() -> None:
        there = Shards(shards)
        there.write(*(record(f"id-{n}", n, "sea", g=n % 2) for n in range(6)))
        pending = [record("late", 0.5, "sea", g=0)]

        def write_on(name: str) -> None:
            if name == moment and pending:
                there.write(pending.pop())

        there.before = write_on
        by = GroupBy(("g",), ("#score",), 2)
        answers = await ask(
            there,
            Search(rank=dense(0.0), group_by=by, select=SCORES),
            Search(rank=text("sea"), select=Select(documents=True)),
            Search(limit=3),
        )
        assert [answer.served_at.offset for answer in answers] == [7, 7, 7]
        assert ids_of(answers[0]) == ["id-0", "late", "id-1", "id-3"]
        assert len(ids_of(answers[1])) == 7
        offsets = {request.snapshot_offset for _, request in there.calls}
        assert offsets == {6, 7}

    play(scenario)


def test_a_snapshot_that_is_always_gone_is_given_up() -> None:
    async def scenario() -> None:
        shards = Shards(2)
        shards.write(record("a"))

        def write_on(name: str) -> None:
            shards.write(record("b"))

        shards.before = write_on
        with pytest.raises(SnapshotGone):
            await ask(shards, Search(rank=dense(0.0)))

    play(scenario)


# --- pages

PAGED = [
    Search(rank=dense(0.0, 30), limit=4, select=SCORES),
    Search(rank=Sum((text("sea", 30, 1.0), dense(3.0, 30, return_rank=True))), limit=3, offset=2, select=SCORES),
    Search(rank=dense(5.0, 30), group_by=GroupBy(("g",), ("#score",), 3), limit=5, select=SCORES),
    Search(limit=4, select=Select(documents=True)),
    Search(where=parse_search({"filter": {"g": {"$ne": 1}}}).where, limit=3, offset=1, select=Select(metadatas=True)),
]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("paged", PAGED)
def test_pages_are_of_the_first_ones_snapshot_and_together_one_read(paged: Search, shards: int) -> None:
    async def scenario() -> None:
        there = Shards(shards)
        there.write(*(record(f"id-{n}", n % 5, "sea" * (n % 2), g=n % 3) for n in range(14)))
        [whole] = await ask(there, replace(paged, limit=None))
        assert whole.cursor == ""
        pages: list[dict[str, Any]] = []
        cursor = ""
        while not pages or cursor:
            [page] = await ask(there, replace(paged, cursor=cursor))
            assert page.served_at.offset == 14
            assert page.row_counts.tolist() == [page.rows.num_rows]
            assert 0 < page.rows.num_rows <= (paged.limit or 0)
            pages += rows_of(page)
            cursor = page.cursor
            there.write(record(f"new-{len(pages)}", 0.1, "sea"), remove=("id-0", "id-13"))
        assert pages == rows_of(whole)
        for name, request in there.calls[-shards:]:
            assert request.consistency == as_of(14), name

    play(scenario)


def test_no_cursor_where_nothing_follows() -> None:
    async def scenario() -> None:
        shards = Shards(2)
        shards.write(*(record(f"id-{n}", n) for n in range(4)))
        for limit, following in [(4, False), (5, False), (0, False), (None, False), (3, True)]:
            for rank in (None, dense(0.0)):
                [answer] = await ask(shards, Search(rank=rank, limit=limit))
                assert bool(answer.cursor) == following

    play(scenario)


def test_each_search_of_a_call_is_of_its_own_cursors_snapshot() -> None:
    async def scenario() -> None:
        shards = Shards(2)
        shards.write(*(record(f"a-{n}", n) for n in range(3)))
        paged = Search(rank=dense(0.0), limit=2)
        [first] = await ask(shards, paged)
        shards.write(*(record(f"b-{n}", n) for n in range(3)))
        [second] = await ask(shards, paged)
        shards.write(record("c", 0.5))
        answers = await ask(
            shards, replace(paged, cursor=second.cursor), paged, replace(paged, cursor=first.cursor), paged
        )
        assert [answer.served_at.offset for answer in answers] == [6, 7, 3, 7]
        assert [ids_of(answer) for answer in answers] == [["a-1", "b-1"], ["a-0", "b-0"], ["a-2"], ["a-0", "b-0"]]

    play(scenario)


BAD_CURSORS = [
    "x",
    "\ud800",
    base64.urlsafe_b64encode(b"[" * 300).decode(),
    base64.urlsafe_b64encode(b"[" * 100_000).decode(),
    str(Cursor("other", "i", 1, 1, ranked=True)),
    str(Cursor("c", "before", 1, 1, ranked=True)),
    str(Cursor("c", "i", 1, 1)),
    *(str(Cursor("c", "i", number, 1, ranked=True)) for number in (-1, 2**64, True, 1.0, "1", None)),  # type: ignore[arg-type]
]


def test_cursors_that_are_none_or_of_something_else_are_refused() -> None:
    async def scenario() -> None:
        shards = Shards(2)
        shards.write(record("a"))
        for cursor in BAD_CURSORS:
            with pytest.raises(InvalidArgument) as caught:
                await ask(shards, Search(), Search(rank=dense(0.0), cursor=cursor))
            assert caught.value.field == "searches[1].cursor"
        with pytest.raises(InvalidArgument, match="another search"):
            await ask(shards, Search(cursor=str(Cursor("c", "i", 1, 1, ranked=True))))
        far = str(Cursor("c", "i", 1, 2**64 - 1, ranked=True))
        [answer] = await ask(shards, Search(rank=dense(0.0), cursor=far))
        assert rows_of(answer) == []

    play(scenario)


# --- as of


@pytest.mark.parametrize("shards", [1, 3])
def test_reads_as_of_are_at_the_end_of_a_batch(shards: int) -> None:
    async def scenario() -> None:
        there = Shards(shards)
        there.write(*(record(f"a-{n}", n, "sea") for n in range(3)))
        there.write(*(record(f"b-{n}", n, "sea") for n in range(3)))
        for offset, aligned in [(1, 0), (3, 3), (5, 3), (6, 6)]:
            there.calls.clear()
            at = as_of(offset)
            answers = await ask(
                there, Search(rank=text("sea"), select=Select(documents=True)), Search(limit=9), consistency=at
            )
            assert [len(ids_of(answer)) for answer in answers] == [aligned, aligned]
            assert [answer.served_at.offset for answer in answers] == [aligned, aligned]
            for name, request in there.calls[1:]:
                assert (request.consistency, request.snapshot_offset) == (at, aligned), name

    play(scenario)


def test_gets_counts_and_queries_as_of_over_shards() -> None:
    async def scenario() -> None:
        shards = Shards(3)
        shards.write(*(record(f"a-{n}", n, "old") for n in range(3)))
        shards.write(*(record(f"a-{n}", n, "new") for n in range(1, 6)))
        fanout, there = shards.fanout(), collection(3)
        for offset, aligned, names in [(0, 0, []), (2, 0, []), (7, 3, ["a-0", "a-1", "a-2"]), (8, 8, None)]:
            shards.calls.clear()
            at, target = as_of(offset), target_of(there)
            include = Include(documents=True)
            got = cast(Answer, await fanout.get(there, GetRequest(target, at, limit=4, include=include)))
            vectors = np.zeros((1, DIMENSION), np.float32)
            near = cast(Answer, await fanout.query(there, QueryRequest(target, vectors, 9, at, include=include)))
            counted = await fanout.count(there, CountRequest(target, at))
            assert got.served_at.offset == near.served_at.offset == counted.served_at.offset == aligned
            if names is not None:
                assert ids_of(got) == ids_of(near) == names
                assert counted.count == len(names)
                assert {row["document"] for row in rows_of(got)} <= {"old"}
            aligning = [request for _, request in shards.calls if request.snapshot_offset == 0]
            assert len(aligning) == (3 if offset else 0)
            assert {request.snapshot_offset for _, request in shards.calls if request not in aligning} <= {aligned}
            assert {request.consistency for _, request in shards.calls} <= {at}

    play(scenario)


def test_one_shard_answers_nothing_as_of_zero_and_the_rest_itself() -> None:
    async def scenario() -> None:
        shards = Shards(1)
        shards.write(record("a"))
        fanout, there = shards.fanout(), collection()
        got = cast(Answer, await fanout.get(there, GetRequest(target_of(there), as_of(0))))
        assert (ids_of(got), got.served_at, shards.calls) == ([], ServedAt(0, 0), [])
        got = cast(Answer, await fanout.get(there, GetRequest(target_of(there), as_of(1))))
        assert (ids_of(got), len(shards.calls)) == (["a"], 1)

    play(scenario)


def test_counts_of_shards_are_explained_together() -> None:
    async def scenario() -> None:
        shards = Shards(2)
        shards.write(record("a"), record("b"))
        there = collection(2)
        counted = await shards.fanout(clock=True).count(there, CountRequest(target_of(there), explain=True))
        assert counted.count == 2
        assert counted.explain is not None
        assert counted.explain["shards"] == [{"shard": 0}, {"shard": 1}]
        assert list(counted.explain["frontend"]["milliseconds"]) == ["snapshot", "shards"]

    play(scenario)


# --- validation


@pytest.mark.parametrize(
    ("searches", "place"),
    [
        ([], "searches"),
        ([Search()] * 17, "searches"),
        ([Search(), Search(limit=-1)], "searches[1].limit"),
        ([Search(limit=100_001)], "searches[0].limit"),
        ([Search(offset=-1)], "searches[0].offset"),
        ([Search(select=Select(keys=("#x",)))], "searches[0].select.keys"),
        ([Search(select=Select(keys=("",)))], "searches[0].select.keys"),
        ([Search(rank=Val(1.0))], "searches[0].rank"),
        ([Search(rank=Sum((dense(0.0), dense(0.0, 0))))], "searches[0].rank.$sum[1].$knn.limit"),
        ([Search(rank=Knn(TextQuery("x"), "k"))], "searches[0].rank.$knn.query"),
        ([Search(), Search(ids=("a", ""))], "searches[1].ids[1]"),
        ([Search(), Search(where=Compare("a", Comparator.EQ, math.nan))], "searches[1].where.a"),
        ([Search(where=Text(TextMatcher.REGEX, "("))], "searches[0].where.#document.$regex"),
        ([Search(where=And((Text(TextMatcher.CONTAINS, "x" * 5000),)))], "searches[0].where.#document.$contains"),
        ([Search(select=Select(keys=tuple(map(str, range(65)))))], "searches[0].select.keys"),
        ([Search(rank=text("x" * 32_769))], "searches[0].rank.$knn.query"),
        ([Search(rank=Sum((text("x" * 32_768),) * 3))] * 11, "searches"),
        ([Search(), Search(rank=Abs(Knn(TextQuery("x"))))], "searches[1].rank.$abs.$knn.query"),
        ([Search(group_by=GroupBy(("a",), ("b",), 1))], "searches[0].group_by"),
        ([Search(rank=dense(0.0), group_by=GroupBy(("a",), ("b",), 0))], "searches[0].group_by.aggregate.k"),
        ([Search(rank=dense(0.0), group_by=GroupBy((), ("b",), 1))], "searches[0].group_by.keys"),
        ([Search(rank=dense(0.0), group_by=GroupBy(("a",), (), 1))], "searches[0].group_by.aggregate.keys"),
    ],
)
def test_searches_out_of_bounds_are_refused(searches: list[Search], place: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_searches(searches, Limits())
    assert caught.value.field == place


def vector(*values: float) -> Search:
    return Search(rank=Sum((Val(1.0), Knn(DenseQuery(np.array(values, np.float32))))))


def test_vectors_must_suit_the_collection() -> None:
    there = collection()
    check_searched([vector(1, 2)], there, Limits())
    for wrong, kind in [(vector(1, 2, 3), DimensionMismatch), (vector(1, math.nan), InvalidArgument)]:
        with pytest.raises(kind) as caught:
            check_searched([Search(), wrong], there, Limits())
        assert type(caught.value) is kind
        assert caught.value.field == "searches[1].rank.$sum[1].$knn.query"
    check_searched([vector(1, 2, 3)], replace(there, dimension=None), Limits())


def test_indexes_that_are_off_are_not_searched_unless_a_scan_is_allowed() -> None:
    sparse = Knn(SparseQuery(np.array([1], np.uint32), np.array([1], np.float32)), "s")
    off = collection(schema=Schema(off=frozenset([Index.SPARSE]), keys={"#document": {Index.RANKED: False}}))
    for leaf in (sparse, text("sea")):
        searches = [Search(rank=leaf)]
        check_searched(searches, collection(), Limits())
        check_searched(searches, off, Limits(), allow_scan=True)
        with pytest.raises(InvalidArgument, match=f"index of key {leaf.key!r} is off") as caught:
            check_searched(searches, off, Limits())
        assert caught.value.field == "searches[0].rank.$knn.key"
    unread = replace(off, schema=Schema(off=frozenset(Index)))
    for where, place in (
        (Compare("a", Comparator.EQ, 1), "where.a"),
        (Text(TextMatcher.REGEX, "x"), "where.#document"),
    ):
        check_searched([Search(where=where)], unread, Limits(), allow_scan=True)
        with pytest.raises(InvalidArgument, match="is off") as caught:
            check_searched([Search(), Search(where=where)], unread, Limits())
        assert caught.value.field == f"searches[1].{place}"
    check_searched([Search(), vector(1, 2)], off, Limits())
    on = replace(off, schema=Schema(off=frozenset([Index.SPARSE]), keys={"s": {Index.SPARSE: True}}))
    check_searched([Search(rank=sparse)], on, Limits())
