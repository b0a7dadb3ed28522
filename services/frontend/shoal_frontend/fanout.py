"""Fan-out: one read over all shards of a collection at one snapshot, merged exactly.

A single shard answers for itself, at a head that it reads while it searches. Several shards must agree on the snapshot: the frontend
reads the head first, every shard serves exactly that offset, and if a shard has only a newer version loaded the read starts again.
Answers are ranked first on ids and distances; documents and the rest are fetched for the winners only, at the same snapshot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal_core.consistency import ReadLevel, ServedAt
from shoal_core.contracts import (
    Answer,
    Catalog,
    Collection,
    CountAnswer,
    CountRequest,
    EncodedAnswer,
    GetRequest,
    Include,
    Log,
    QueryNode,
    QueryRequest,
    Target,
)
from shoal_core.errors import SnapshotGone, StaleEpoch, Unimplemented
from shoal_core.hashing import hash_ids, shard_of
from shoal_core.records import CREATED_OFFSET, ID, concat_rows, empty_rows

DISTANCE = "distance"
_SHARD = "#shard"
_ATTEMPTS = 8

T = TypeVar("T")


def target_of(collection: Collection, shard: int = 0) -> Target:
    """One shard of a collection."""
    return Target(collection.id, collection.epoch, collection.space, shard, collection.shards)


@dataclass(frozen=True, slots=True)
class Fanout:
    """Reads over shards."""

    nodes: QueryNode
    log: Log
    catalog: Catalog

    async def get(
        self, collection: Collection, request: GetRequest, *, encoded: bool = False
    ) -> Answer | EncodedAnswer:
        """A get of any number of shards; ``request.target`` is replaced."""
        if collection.shards == 1:
            return await self.nodes.get(replace(request, target=target_of(collection)), encoded=encoded)
        return await self._at_one_snapshot(
            collection, request.consistency.level, lambda at: self._get(collection, request, at)
        )

    async def query(
        self, collection: Collection, request: QueryRequest, *, encoded: bool = False
    ) -> Answer | EncodedAnswer:
        """A query of any number of shards; ``request.target`` is replaced."""
        if collection.shards == 1:
            return await self.nodes.query(replace(request, target=target_of(collection)), encoded=encoded)
        return await self._at_one_snapshot(
            collection, request.consistency.level, lambda at: self._query(collection, request, at)
        )

    async def count(self, collection: Collection, request: CountRequest) -> CountAnswer:
        """A count of any number of shards; ``request.target`` is replaced."""
        if collection.shards == 1:
            return await self.nodes.count(replace(request, target=target_of(collection)))

        async def count_at(offset: int) -> CountAnswer:
            if offset == 0:
                return CountAnswer(0, ServedAt(0, 0))
            asks = [
                self.nodes.count(replace(request, target=target_of(collection, shard), snapshot_offset=offset))
                for shard in range(collection.shards)
            ]
            answers = await _all(asks)
            return CountAnswer(sum(answer.count for answer in answers), _served_at(answers))

        return await self._at_one_snapshot(collection, request.consistency.level, count_at)

    async def _at_one_snapshot(
        self, collection: Collection, level: ReadLevel, read: Callable[[int], Awaitable[T]]
    ) -> T:
        """Call ``read`` with a snapshot offset, anew when a shard has moved past it."""
        for _ in range(_ATTEMPTS):
            try:
                return await read(await self._snapshot_offset(collection, level))
            except SnapshotGone:
                continue
        raise SnapshotGone(f"versions were published faster than {_ATTEMPTS} reads could finish; try again")

    async def _snapshot_offset(self, collection: Collection, level: ReadLevel) -> int:
        if level is ReadLevel.AS_OF:
            raise Unimplemented("as_of reads are not served yet; read at strong or session", field="consistency")
        if level is ReadLevel.INDEX_ONLY:
            return await self._compacted_offset(collection)
        return (await self.log.read_index(collection.id, collection.epoch)).head_offset

    async def _compacted_offset(self, collection: Collection) -> int:
        """Without the log, which would say that the collection was renamed."""
        now = await self.catalog.get_collection_by_id(collection.id)
        if now.epoch != collection.epoch:
            raise StaleEpoch(f"collection {now.id} is at epoch {now.epoch}, not {collection.epoch}; look it up again")
        return (await self.catalog.get_version(collection.id)).compacted_offset

    async def _get(self, collection: Collection, request: GetRequest, offset: int) -> Answer:
        if offset == 0:
            return _nothing(1)
        paged = request.limit is not None
        page = request.offset + (request.limit or 0)
        first = replace(
            request,
            snapshot_offset=offset,
            limit=page if paged else None,
            offset=0,
            include=Include() if paged else request.include,
        )
        shards = _owners(request.ids, collection.shards)
        answers = await _all(
            [
                self._node_get(replace(first, target=target_of(collection, shard), ids=ids))
                for shard, ids in shards.items()
            ]
        )
        if not answers:
            return replace(_nothing(1), served_at=ServedAt(offset, 0))
        rows = _joined(shards, answers)
        order = np.argsort(rows.column(CREATED_OFFSET).to_numpy(), kind="stable")
        chosen = order[request.offset : page] if paged else order[request.offset :]
        rows = _rows_at(rows, chosen)
        if paged and request.include != Include():
            rows = await self._hydrated(collection, rows, request.include, offset)
        return _answer(rows.drop_columns([_SHARD]), np.array([len(chosen)], np.uint32), answers)

    async def _query(self, collection: Collection, request: QueryRequest, offset: int) -> Answer:
        if offset == 0:
            return _nothing(len(request.vectors))
        first = replace(request, snapshot_offset=offset, include=Include(distances=True))
        shards = _owners(request.ids, collection.shards)
        answers = await _all(
            [
                self._node_query(replace(first, target=target_of(collection, shard), ids=ids))
                for shard, ids in shards.items()
            ]
        )
        if not answers:
            return replace(_nothing(len(request.vectors)), served_at=ServedAt(offset, 0))
        rows, counts = _nearest(shards, answers, len(request.vectors), request.k)
        if replace(request.include, distances=False) != Include():
            rows = await self._hydrated(collection, rows, request.include, offset)
        return _answer(rows.drop_columns([_SHARD]), counts, answers)

    async def _hydrated(self, collection: Collection, rows: pa.Table, include: Include, offset: int) -> pa.Table:
        """The rows with the columns asked for, fetched from the shards that have them, at the same snapshot."""
        shards = rows.column(_SHARD).to_numpy()
        asks = []
        for shard in np.unique(shards).tolist():
            ids = rows.column(ID).take(pa.array(np.flatnonzero(shards == shard))).unique()
            request = GetRequest(
                target_of(collection, shard), snapshot_offset=offset, ids=tuple(ids.to_pylist()), include=include
            )
            asks.append(self._node_get(request))
        if not asks:
            return rows
        fetched = concat_rows([answer.rows for answer in await _all(asks)])
        at = pc.index_in(rows.column(ID), value_set=fetched.column(ID).combine_chunks())
        if at.null_count:
            raise SnapshotGone("a shard no longer serves the snapshot; take a new one")
        extra = [name for name in fetched.column_names if name not in rows.column_names]
        found = fetched.select(extra).combine_chunks().take(at.combine_chunks())
        for name in extra:
            rows = rows.append_column(name, found.column(name))
        return rows

    async def _node_get(self, request: GetRequest) -> Answer:
        return cast(Answer, await self.nodes.get(request))

    async def _node_query(self, request: QueryRequest) -> Answer:
        return cast(Answer, await self.nodes.query(request))


async def _all(asks: Sequence[Awaitable[T]]) -> list[T]:
    """All answers; the first failure cancels the rest and is raised as it is."""
    tasks = [asyncio.ensure_future(ask) for ask in asks]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _owners(ids: Sequence[str] | None, shards: int) -> dict[int, tuple[str, ...] | None]:
    """The shards to ask, each with the ids it owns, or None for all."""
    if ids is None:
        return dict.fromkeys(range(shards))
    names = pa.array(dict.fromkeys(ids), pa.string())
    owner = shard_of(hash_ids(names), shards)
    return {
        int(shard): tuple(names.take(pa.array(np.flatnonzero(owner == shard))).to_pylist())
        for shard in np.unique(owner)
    }


def _joined(shards: Iterable[int], answers: Sequence[Answer]) -> pa.Table:
    """The rows of all answers, each with the number of the shard it came from."""
    return concat_rows(
        [
            answer.rows.append_column(_SHARD, pa.array(np.full(answer.rows.num_rows, shard)))
            for shard, answer in zip(shards, answers, strict=True)
        ]
    )


def _rows_at(rows: pa.Table, at: npt.NDArray[np.int64]) -> pa.Table:
    return rows.combine_chunks().take(pa.array(at))


def _nearest(
    shards: Iterable[int], answers: Sequence[Answer], queries: int, k: int
) -> tuple[pa.Table, npt.NDArray[np.uint32]]:
    """Per query the k nearest over all shards, equal distances in order of creation; and how many there are."""
    rows = _joined(shards, answers)
    query = np.concatenate([np.repeat(np.arange(queries), answer.row_counts) for answer in answers])
    order = np.lexsort((rows.column(CREATED_OFFSET).to_numpy(), rows.column(DISTANCE).to_numpy(), query))
    totals = np.bincount(query, minlength=queries)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(totals) - totals, totals)
    return _rows_at(rows, order[rank < k]), np.minimum(totals, k).astype(np.uint32)


def _served_at(answers: Sequence[Any]) -> ServedAt:
    """The common offset and the oldest version that served it."""
    return ServedAt(answers[0].served_at.offset, min(answer.served_at.version for answer in answers))


def _answer(rows: pa.Table, counts: npt.NDArray[np.uint32], answers: Sequence[Answer]) -> Answer:
    explained = [answer.explain for answer in answers if answer.explain is not None]
    explain = {"shards": [shard for part in explained for shard in part["shards"]]} if explained else None
    reason = next((answer.reason for answer in answers if not answer.complete), "")
    return Answer(rows, counts, _served_at(answers), all(answer.complete for answer in answers), reason, explain)


def _nothing(queries: int) -> Answer:
    rows = empty_rows(None).select([ID, CREATED_OFFSET])
    return Answer(rows, np.zeros(queries, dtype=np.uint32), ServedAt(0, 0))
