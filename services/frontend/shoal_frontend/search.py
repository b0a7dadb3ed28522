"""Searches over the shards of a collection. Each call is of one snapshot, whatever the number of shards.

A ranked search: document frequencies of its terms over all shards, the best of each leaf over all shards, scores, groups, one page, its
columns. A page after the first does it again at the snapshot of the first and skips what was shown. A search without rank is a get,
and its cursor is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.consistency import STRONG, Consistency, ServedAt, as_of
from shoal_core.contracts import (
    Answer,
    Collection,
    DenseLeaf,
    GetRequest,
    Include,
    Leaf,
    SearchRequest,
    SparseLeaf,
    SparseStatistics,
    Statistics,
    StatisticsRequest,
    TextLeaf,
    TextStatistics,
)
from shoal_core.ranking import (
    SCORE_KEY,
    DenseQuery,
    GroupBy,
    Knn,
    Rank,
    Search,
    Select,
    SparseQuery,
    TextQuery,
    leaves_of,
)
from shoal_core.records import CREATED_OFFSET, ID
from shoal_core.schema import Schema
from shoal_core.scoring import LeafHits, best_first, best_of_groups, score
from shoal_frontend.apart import MANY_ROWS, apart
from shoal_frontend.cursor import Cursor, with_cursor
from shoal_frontend.fanout import (
    SHARD,
    Fanout,
    Stages,
    all_answers,
    effort_of,
    merged_answer,
    nearest,
    row_count,
    rows_at,
    target_of,
)
from shoal_text.analysis import analyze_text

SCORE = "score"

Ask = TextStatistics | SparseStatistics
Floats = npt.NDArray[np.float64]


async def search(
    fanout: Fanout,
    collection: Collection,
    searches: Sequence[Search],
    *,
    consistency: Consistency = STRONG,
    exact: bool = False,
    explain: bool = False,
    recall: float = 0.0,
) -> list[Answer]:
    """One answer per search, all from one snapshot; those with a cursor are of the cursor's.

    The searches have passed `validate_search`. Raises what query nodes raise, and `InvalidArgument` for what is no cursor.
    """
    cursors = [_cursor_of(item, collection, f"searches[{number}].cursor") for number, item in enumerate(searches)]
    demands = [consistency if cursor is None else as_of(cursor.offset) for cursor in cursors]

    async def serve(demand: Consistency) -> dict[int, Answer]:
        numbers = [number for number, other in enumerate(demands) if other == demand]

        async def read(offset: int) -> list[Answer]:
            at = _Read(fanout, collection, demand, offset, exact, explain, recall)
            return await all_answers([at.answer(searches[number], cursors[number]) for number in numbers])

        return dict(zip(numbers, await fanout.at_one_snapshot(collection, demand, read), strict=True))

    parts = await all_answers([serve(demand) for demand in dict.fromkeys(demands)])
    return [part[number] for number in range(len(searches)) for part in parts if number in part]


@dataclass(frozen=True, slots=True)
class _Read:
    """Searches at one snapshot offset."""

    fanout: Fanout
    collection: Collection
    consistency: Consistency
    offset: int
    exact: bool
    explain: bool
    recall: float

    async def answer(self, item: Search, cursor: Cursor | None) -> Answer:
        if item.rank is None:
            return await self._listed(item, cursor)
        return await self._ranked(item, item.rank, cursor)

    async def _listed(self, item: Search, cursor: Cursor | None) -> Answer:
        """In order of creation."""
        request = GetRequest(
            target_of(self.collection),
            self.consistency,
            ids=item.ids,
            where=item.where,
            limit=item.limit + 1 if item.limit else item.limit,
            offset=item.offset if cursor is None else 0,
            include=_include(item.select),
            explain=self.explain,
            after_created=0 if cursor is None else cursor.position,
        )
        return with_cursor(await self.fanout.get_at(self.collection, request, self.offset), self.collection, item.limit)

    async def _ranked(self, item: Search, rank: Rank, cursor: Cursor | None) -> Answer:
        stages = Stages(self.fanout.clock)
        shards = await self.fanout.owners(self.collection, item.ids) if self.offset else {}
        leaves = await self._leaves(list(leaves_of(rank))) if shards else []
        stages.done("statistics")
        answers = await self._hits(item, shards, [leaf for leaf in leaves if leaf is not None])
        stages.done("leaves")
        rows = _no_rows()
        if answers:
            rows = await apart(row_count(answers) > MANY_ROWS, _scored, rank, leaves, shards, answers)
        stages.done("score")
        if item.group_by is not None and rows.num_rows:
            rows = await self._grouped(rows, item.group_by)
            stages.done("group")
        return await self._page(item, cursor, rows, answers, stages)

    async def _leaves(self, leaves: Sequence[Knn]) -> list[Leaf | None]:
        """What shards are asked; None where nothing can be found."""
        schema = self.collection.schema
        texts = any(
            isinstance(leaf.query, TextQuery) for leaf in leaves
        )  # which are analysed, not as quickly as it seems
        asks = await apart(texts, lambda: [_ask(leaf, schema) for leaf in leaves])
        statistics = iter(await self._statistics([ask for ask, _ in asks if ask is not None]))
        return [
            _leaf(leaf, schema, ask, amounts, None if ask is None else next(statistics))
            for leaf, (ask, amounts) in zip(leaves, asks, strict=True)
        ]

    async def _statistics(self, asks: Sequence[Ask]) -> list[Statistics]:
        """Of the whole collection, whatever the search's filter and ids."""
        if not asks:
            return []
        answers = await all_answers(
            [
                self.fanout.nodes.statistics(
                    StatisticsRequest(target_of(self.collection, shard), tuple(asks), self.offset, self.consistency)
                )
                for shard in range(self.collection.shards)
            ]
        )
        return [_sum(parts) for parts in zip(*(answer.statistics for answer in answers), strict=True)]

    async def _hits(
        self, item: Search, shards: dict[int, tuple[str, ...] | None], leaves: Sequence[Leaf]
    ) -> list[Answer]:
        if not leaves:
            return []
        return await all_answers(
            [
                self.fanout.nodes.search(
                    SearchRequest(
                        target_of(self.collection, shard),
                        tuple(leaves),
                        self.offset,
                        self.consistency,
                        ids,
                        item.where,
                        self.exact,
                        self.explain,
                        effort_of(self.collection.schema.vector, 0, self.recall),
                        self.recall or self.collection.schema.vector.recall,
                    )
                )
                for shard, ids in shards.items()
            ]
        )

    async def _grouped(self, rows: pa.Table, group_by: GroupBy) -> pa.Table:
        keys = dict.fromkeys(key for key in (*group_by.keys, *group_by.aggregate) if key != SCORE_KEY)
        known = await self._fetched(rows, Include(keys=tuple(keys)))
        scores, created = (rows.column(name).to_numpy() for name in (SCORE, CREATED_OFFSET))
        kept = await apart(rows.num_rows > MANY_ROWS, best_of_groups, known, group_by, scores, created)
        return rows_at(rows, np.flatnonzero(kept))

    async def _page(
        self, item: Search, cursor: Cursor | None, rows: pa.Table, answers: Sequence[Answer], stages: Stages
    ) -> Answer:
        total = rows.num_rows
        start = min(item.offset if cursor is None else cursor.position, total)
        end = total if item.limit is None else min(start + item.limit, total)
        page = await self._fetched(rows.slice(start, end - start), _include(item.select))
        stages.done("fetch")
        page = page.drop_columns([SHARD] if item.select.scores else [SHARD, SCORE])
        counts = np.array([page.num_rows], np.uint32)
        if not answers:
            return Answer(page, counts, ServedAt(self.offset, 0))
        answer = merged_answer(page, counts, answers, stages)
        if not item.limit or end == total:
            return answer
        following = Cursor(self.collection.id, self.collection.incarnation, self.offset, end, ranked=True)
        return replace(answer, cursor=str(following))

    async def _fetched(self, rows: pa.Table, include: Include) -> pa.Table:
        if include == Include():
            return rows
        return await self.fanout.hydrated(self.collection, rows, include, self.offset, self.consistency)


def _cursor_of(item: Search, collection: Collection, field: str) -> Cursor | None:
    if not item.cursor:
        return None
    return Cursor.parse(item.cursor, collection, ranked=item.rank is not None, field=field)


def _include(select: Select) -> Include:
    return Include(
        documents=select.documents, metadatas=select.metadatas, embeddings=select.embeddings, keys=select.keys
    )


def _ask(leaf: Knn, schema: Schema) -> tuple[Ask | None, Floats]:
    """The statistics that a leaf's weights need, and (n,) what they multiply: occurrences of terms, or query values."""
    if isinstance(leaf.query, DenseQuery):
        return None, np.empty(0)
    if isinstance(leaf.query, SparseQuery):
        config = schema.sparse.get(leaf.key)
        weighted = config is not None and config.idf
        return SparseStatistics(leaf.key, leaf.query.indices) if weighted else None, leaf.query.values.astype(float)
    occurrences = Counter(analyze_text(leaf.query.text, schema.analyzer))
    terms = sorted(occurrences)
    amounts = np.array([occurrences[term] for term in terms], dtype=np.float64)
    return TextStatistics(tuple(terms), schema.analyzer) if terms else None, amounts


def _leaf(leaf: Knn, schema: Schema, ask: Ask | None, amounts: Floats, found: Statistics | None) -> Leaf | None:
    if isinstance(leaf.query, DenseQuery):
        return DenseLeaf(leaf.query.vector, leaf.limit)
    if isinstance(leaf.query, SparseQuery):
        weights = amounts if found is None else amounts * _idf(found)
        return SparseLeaf(leaf.key, leaf.query.indices, weights, leaf.limit)
    if not isinstance(ask, TextStatistics) or found is None:
        return None
    known = np.flatnonzero(found.frequencies)  # no document has any of the others
    if not len(known):
        return None
    return TextLeaf(
        tuple(ask.terms[at] for at in known.tolist()),
        (amounts * _idf(found))[known],
        leaf.limit,
        found.length / found.records,
        schema.bm25.k1,
        schema.bm25.b,
        schema.analyzer,
    )


def _idf(found: Statistics) -> Floats:
    """ln(1 + (N − n + ½) / (n + ½))."""
    weights: Floats = np.log1p((found.records - found.frequencies + 0.5) / (found.frequencies + 0.5))
    return weights


def _sum(parts: Sequence[Statistics]) -> Statistics:
    return Statistics(
        sum(part.records for part in parts),
        sum(part.length for part in parts),
        np.sum([part.frequencies for part in parts], axis=0, dtype=np.int64),
    )


def _no_rows() -> pa.Table:
    fields = [(ID, pa.string()), (CREATED_OFFSET, pa.uint64()), (SHARD, pa.int64()), (SCORE, pa.float64())]
    return pa.schema(fields).empty_table()


def _scored(rank: Rank, leaves: Sequence[Leaf | None], shards: Iterable[int], answers: Sequence[Answer]) -> pa.Table:
    """The records that the expression supports, best first, with the columns of `_no_rows`.

    Args:
        leaves: of the expression, in its order; None for one that was not asked.
        shards: that the answers are of.
    """
    rows, counts = nearest(shards, answers, SCORE, [leaf.k for leaf in leaves if leaf is not None])
    created, first, number = np.unique(rows.column(CREATED_OFFSET).to_numpy(), return_index=True, return_inverse=True)
    bounds = np.cumsum(counts)[:-1]
    keys, measures = np.split(number, bounds), np.split(rows.column(SCORE).to_numpy(), bounds)
    found = iter([LeafHits(*pair) for pair in zip(keys, measures, strict=True)])
    nothing = LeafHits(np.empty(0, np.int64), np.empty(0))
    scored = score(rank, [nothing if leaf is None else next(found) for leaf in leaves])
    order = best_first(scored.scores, created[scored.keys])
    best = rows_at(rows.select([ID, CREATED_OFFSET, SHARD]), first[scored.keys[order]])
    return best.append_column(SCORE, pa.array(scored.scores[order], pa.float64()))
