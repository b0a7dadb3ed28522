"""Fan-out: one read over all shards of a collection at one snapshot, merged exactly.

A single shard answers for itself, at a head that it reads while it searches. Several shards must agree on the snapshot: the frontend
reads the head first, every shard serves exactly that offset, and if a shard has only a newer version loaded the read starts again.
Answers are ranked first on ids and distances; documents and the rest are fetched for the winners only, at the same snapshot.
A read AS_OF an offset is at the end of a batch, which one shard names; nodes may serve it from an older version, so it never moves on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal_core.consistency import Consistency, ReadLevel, ServedAt
from shoal_core.contracts import (
    Answer,
    Catalog,
    Collection,
    CountAnswer,
    CountRequest,
    EncodedAnswer,
    GetRequest,
    Include,
    Json,
    Log,
    QueryNode,
    QueryRequest,
    Target,
)
from shoal_core.errors import InvalidArgument, SnapshotGone, StaleEpoch
from shoal_core.hashing import hash_ids, shard_of
from shoal_core.ports import Clock
from shoal_core.records import CREATED_OFFSET, ID, concat_rows, empty_rows
from shoal_core.schema import VectorConfig
from shoal_frontend.apart import MANY_ROWS, apart

DISTANCE = "distance"
SHARD = "#shard"
_ATTEMPTS = 8
_FETCHED_AT_ONCE = 10_000  # ids of one request

T = TypeVar("T")
R = TypeVar("R", GetRequest, QueryRequest, CountRequest)


def target_of(collection: Collection, shard: int = 0) -> Target:
    """One shard of a collection."""
    return Target(collection.id, collection.epoch, collection.space, shard, collection.shards)


@dataclass(slots=True)
class Stages:
    """Milliseconds of a read in the frontend, stage by stage; nothing without a clock."""

    clock: Clock | None
    milliseconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(init=False)

    def __post_init__(self) -> None:
        self._since = self._now()

    def done(self, stage: str) -> None:
        """A stage ends, the next begins."""
        now = self._now()
        self.milliseconds[stage] = round((now - self._since) * 1000 + self.milliseconds.get(stage, 0.0), 3)
        self._since = now

    def _now(self) -> float:
        return 0.0 if self.clock is None else self.clock.monotonic()


@dataclass(frozen=True, slots=True)
class Fanout:
    """Reads over shards. ``clock``: with one, explained reads say how long each stage took here."""

    nodes: QueryNode
    log: Log
    catalog: Catalog
    clock: Clock | None = None

    async def get(
        self, collection: Collection, request: GetRequest, *, encoded: bool = False
    ) -> Answer | EncodedAnswer:
        """A get of any number of shards; ``request.target`` is replaced."""
        if _answers_itself(collection, request.consistency):
            return await self.nodes.get(_of_first_shard(request, collection), encoded=encoded)
        stages = Stages(self.clock)
        return await self.at_one_snapshot(
            collection, request.consistency, lambda at: self.get_at(collection, request, at, stages)
        )

    async def query(
        self, collection: Collection, request: QueryRequest, *, encoded: bool = False
    ) -> Answer | EncodedAnswer:
        """A query of any number of shards; ``request.target`` is replaced."""
        if _answers_itself(collection, request.consistency):
            return await self.nodes.query(_of_first_shard(request, collection), encoded=encoded)
        stages = Stages(self.clock)
        return await self.at_one_snapshot(
            collection, request.consistency, lambda at: self._query(collection, request, at, stages)
        )

    async def count(self, collection: Collection, request: CountRequest) -> CountAnswer:
        """A count of any number of shards; ``request.target`` is replaced."""
        if _answers_itself(collection, request.consistency):
            return await self.nodes.count(_of_first_shard(request, collection))
        stages = Stages(self.clock)

        async def count_at(offset: int) -> CountAnswer:
            stages.done("snapshot")
            if offset == 0:
                return CountAnswer(0, ServedAt(0, 0))
            asks = [
                self.nodes.count(replace(request, target=target_of(collection, shard), snapshot_offset=offset))
                for shard in range(collection.shards)
            ]
            answers = await all_answers(asks)
            stages.done("shards")
            explain = explained_together(answers, stages)
            return CountAnswer(sum(answer.count for answer in answers), served_at(answers), explain)

        return await self.at_one_snapshot(collection, request.consistency, count_at)

    async def segments(self, collection: Collection) -> int:
        """How many segments the query nodes have loaded."""
        requests = [
            GetRequest(target_of(collection, shard), limit=0, explain=True) for shard in range(collection.shards)
        ]
        answers = await all_answers([self._node_get(request) for request in requests])
        return sum(len(part["segments"]) for answer in answers for part in (answer.explain or {})["shards"])

    async def at_one_snapshot(
        self, collection: Collection, consistency: Consistency, read: Callable[[int], Awaitable[T]]
    ) -> T:
        """Call ``read`` with a snapshot offset, anew when a shard has moved past it. 0 is before everything: ask no shard.

        All requests of ``read`` must carry both the offset and ``consistency``.
        """
        if consistency.level is ReadLevel.AS_OF:
            return await read(await self._aligned_offset(collection, consistency))
        for _ in range(_ATTEMPTS):
            try:
                return await read(await self._snapshot_offset(collection, consistency))
            except SnapshotGone:
                continue
        raise SnapshotGone(f"versions were published faster than {_ATTEMPTS} reads could finish; try again")

    async def _aligned_offset(self, collection: Collection, consistency: Consistency) -> int:
        """The end of the last batch at or below the offset asked for."""
        if consistency.offset == 0:
            await self.log.read_index(collection.id, collection.epoch)  # is it there, and by this name?
            return 0
        answer = await self._node_get(GetRequest(target_of(collection), consistency, limit=0))
        return answer.served_at.offset

    async def _snapshot_offset(self, collection: Collection, consistency: Consistency) -> int:
        if consistency.level is ReadLevel.INDEX_ONLY:
            return await self._compacted_offset(collection)
        head = (await self.log.read_index(collection.id, collection.epoch)).head_offset
        if consistency.level is ReadLevel.SESSION and head < consistency.offset:
            raise InvalidArgument(
                f"offset {consistency.offset} lies beyond the log's end at {head}; is the token of this collection?",
                field="consistency.offset",
            )
        return head

    async def _compacted_offset(self, collection: Collection) -> int:
        """Without the log, which would say that the collection was renamed."""
        now = await self.catalog.get_collection_by_id(collection.id)
        if now.epoch != collection.epoch:
            raise StaleEpoch(f"collection {now.id} is at epoch {now.epoch}, not {collection.epoch}; look it up again")
        return (await self.catalog.get_version(collection.id)).compacted_offset

    async def get_at(
        self, collection: Collection, request: GetRequest, offset: int, stages: Stages | None = None
    ) -> Answer:
        """A get at a snapshot that is taken already; ``request.target`` is replaced."""
        stages = stages or Stages(self.clock)
        stages.done("snapshot")
        if offset == 0:
            return _nothing(1)
        if collection.shards == 1:
            return await self._node_get(replace(request, target=target_of(collection), snapshot_offset=offset))
        paged = request.limit is not None
        page = request.offset + (request.limit or 0)
        first = replace(
            request,
            snapshot_offset=offset,
            limit=page if paged else None,
            offset=0,
            include=Include() if paged else request.include,
        )
        shards = await self.owners(collection, request.ids)
        answers = await all_answers(
            [
                self._node_get(replace(first, target=target_of(collection, shard), ids=ids))
                for shard, ids in shards.items()
            ]
        )
        stages.done("shards")
        if not answers:
            return replace(_nothing(1), served_at=ServedAt(offset, 0))
        chosen = slice(request.offset, page if paged else None)
        rows = await apart(row_count(answers) > MANY_ROWS, _oldest, shards, answers, chosen)
        if paged and request.include != Include():
            rows = await self.hydrated(collection, rows, request.include, offset, request.consistency)
            stages.done("fetch")
        return merged_answer(rows.drop_columns([SHARD]), np.array([rows.num_rows], np.uint32), answers, stages)

    async def _query(self, collection: Collection, request: QueryRequest, offset: int, stages: Stages) -> Answer:
        stages.done("snapshot")
        if offset == 0:
            return _nothing(len(request.vectors))
        first = replace(request, snapshot_offset=offset, include=Include(distances=True))
        shards = await self.owners(collection, request.ids)
        answers = await all_answers(
            [
                self._node_query(replace(first, target=target_of(collection, shard), ids=ids))
                for shard, ids in shards.items()
            ]
        )
        stages.done("shards")
        if not answers:
            return replace(_nothing(len(request.vectors)), served_at=ServedAt(offset, 0))
        limits = [request.k] * len(request.vectors)
        rows, counts = await apart(row_count(answers) > MANY_ROWS, nearest, shards, answers, DISTANCE, limits)
        if replace(request.include, distances=False) != Include():
            rows = await self.hydrated(collection, rows, request.include, offset, request.consistency)
            stages.done("fetch")
        return merged_answer(rows.drop_columns([SHARD]), counts, answers, stages)

    async def hydrated(
        self, collection: Collection, rows: pa.Table, include: Include, offset: int, consistency: Consistency
    ) -> pa.Table:
        """The rows, which have a column ``SHARD``, with those asked for, fetched from their shards at the same snapshot."""
        many = rows.num_rows > MANY_ROWS
        asks = [
            self._node_get(
                GetRequest(target_of(collection, shard), consistency, snapshot_offset=offset, ids=ids, include=include)
            )
            for shard, ids in await apart(many, _ids_by_shard, rows)
        ]
        if not asks:
            return rows
        return await apart(many, _with_columns, rows, await all_answers(asks))

    async def owners(self, collection: Collection, ids: Sequence[str] | None) -> dict[int, tuple[str, ...] | None]:
        """The shards to ask, each with the ids it owns, or None for all."""
        many = ids is not None and len(ids) > MANY_ROWS
        return await apart(many, owners, ids, collection.shards)

    async def _node_get(self, request: GetRequest) -> Answer:
        return cast(Answer, await self.nodes.get(request))

    async def _node_query(self, request: QueryRequest) -> Answer:
        return cast(Answer, await self.nodes.query(request))


def _of_first_shard(request: R, collection: Collection) -> R:
    target = target_of(collection)
    return request if request.target == target else replace(request, target=target)


def _answers_itself(collection: Collection, consistency: Consistency) -> bool:
    """Whether the one shard does it all; nothing is AS_OF 0, which to a node is no offset."""
    return collection.shards == 1 and (consistency.level is not ReadLevel.AS_OF or consistency.offset > 0)


async def all_answers(asks: Sequence[Awaitable[T]]) -> list[T]:
    """All answers; the first failure cancels the rest and is raised as it is."""
    tasks = [asyncio.ensure_future(ask) for ask in asks]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def owners(ids: Sequence[str] | None, shards: int) -> dict[int, tuple[str, ...] | None]:
    """The shards to ask, each with the ids it owns, or None for all."""
    if ids is None:
        return dict.fromkeys(range(shards))
    names = pa.array(dict.fromkeys(ids), pa.string())
    owner = shard_of(hash_ids(names), shards)
    return {
        int(shard): tuple(names.take(pa.array(np.flatnonzero(owner == shard))).to_pylist())
        for shard in np.unique(owner)
    }


def joined(shards: Iterable[int], answers: Sequence[Answer]) -> pa.Table:
    """The rows of all answers, each with the number of the shard it came from, in a column ``SHARD``."""
    return concat_rows(
        [
            answer.rows.append_column(SHARD, pa.array(np.full(answer.rows.num_rows, shard)))
            for shard, answer in zip(shards, answers, strict=True)
        ]
    )


def _ids_by_shard(rows: pa.Table) -> list[tuple[int, tuple[str, ...]]]:
    """The distinct ids of rows with a column ``SHARD``, in portions that make messages of a bounded size."""
    shards = rows.column(SHARD).to_numpy()
    portions = []
    for shard in np.unique(shards).tolist():
        ids = rows.column(ID).take(pa.array(np.flatnonzero(shards == shard))).unique()
        portions += [
            (shard, tuple(ids.slice(start, _FETCHED_AT_ONCE).to_pylist()))
            for start in range(0, len(ids), _FETCHED_AT_ONCE)
        ]
    return portions


def _with_columns(rows: pa.Table, answers: Sequence[Answer]) -> pa.Table:
    """The rows with the columns that were fetched, by id. Raises `SnapshotGone` if one is missing."""
    fetched = concat_rows([answer.rows for answer in answers])
    at = pc.index_in(rows.column(ID), value_set=fetched.column(ID).combine_chunks())
    if at.null_count:
        raise SnapshotGone("a shard no longer serves the snapshot; take a new one")
    extra = [name for name in fetched.column_names if name not in rows.column_names]
    found = fetched.select(extra).combine_chunks().take(at.combine_chunks())
    for name in extra:
        rows = rows.append_column(name, found.column(name))
    return rows


def _oldest(shards: Iterable[int], answers: Sequence[Answer], chosen: slice) -> pa.Table:
    """Of the rows of all shards in order of creation, those chosen."""
    rows = joined(shards, answers)
    return rows_at(rows, np.argsort(rows.column(CREATED_OFFSET).to_numpy(), kind="stable")[chosen])


def effort_of(config: VectorConfig, effort: int, recall: float) -> int:
    """Of searches in a collection: what the request says, or else what the collection says, unless the request asks for a recall."""
    return effort or (0 if recall else config.ef_search)


def row_count(answers: Sequence[Answer]) -> int:
    """Rows of all answers."""
    return sum(answer.rows.num_rows for answer in answers)


def rows_at(rows: pa.Table, at: npt.NDArray[np.int64]) -> pa.Table:
    """The rows at these positions."""
    return rows.combine_chunks().take(pa.array(at))


def nearest(
    shards: Iterable[int], answers: Sequence[Answer], column: str, limits: Sequence[int]
) -> tuple[pa.Table, npt.NDArray[np.uint32]]:
    """Of the rows of all shards, per query the best by a column, equals in order of creation; and how many there are.

    ``limits`` says how many are wanted of each query.
    """
    rows = joined(shards, answers)
    most = np.array(limits, dtype=np.int64)
    query = np.concatenate([np.repeat(np.arange(len(most)), answer.row_counts) for answer in answers])
    order = np.lexsort((rows.column(CREATED_OFFSET).to_numpy(), rows.column(column).to_numpy(), query))
    totals = np.bincount(query, minlength=len(most))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(totals) - totals, totals)
    return rows_at(rows, order[rank < np.repeat(most, totals)]), np.minimum(totals, most).astype(np.uint32)


def served_at(answers: Sequence[Any]) -> ServedAt:
    """The common offset and the oldest version that served it."""
    return ServedAt(answers[0].served_at.offset, min(answer.served_at.version for answer in answers))


def explained_together(answers: Sequence[Answer | CountAnswer], stages: Stages) -> Json | None:
    """What the shards explained, one after another, and the stages here; None if they did not."""
    parts = [answer.explain for answer in answers if answer.explain is not None]
    if not parts:
        return None
    together: dict[str, Any] = {"shards": [shard for part in parts for shard in part["shards"]]}
    return together if stages.clock is None else together | {"frontend": {"milliseconds": dict(stages.milliseconds)}}


def merged_answer(rows: pa.Table, counts: npt.NDArray[np.uint32], answers: Sequence[Answer], stages: Stages) -> Answer:
    """The answer that the shards' answers make, with these rows."""
    explain = explained_together(answers, stages)
    reason = next((answer.reason for answer in answers if not answer.complete), "")
    complete = all(answer.complete for answer in answers)
    estimates = [answer.recall for answer in answers if answer.recall is not None]
    recall = min(estimates) if estimates and len(estimates) == len(answers) else None
    return Answer(rows, counts, served_at(answers), complete, reason, explain, recall=recall)


def _nothing(queries: int) -> Answer:
    rows = empty_rows(None).select([ID, CREATED_OFFSET])
    return Answer(rows, np.zeros(queries, dtype=np.uint32), ServedAt(0, 0))
