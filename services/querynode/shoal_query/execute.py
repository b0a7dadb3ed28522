"""Executing a read of one shard at one snapshot: filter, search, overlay, merge, hydrate. Pure; runs in a worker thread.

Sources are the version's segments, in order, and last the tail's overlay.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal_core.contracts import Include
from shoal_core.evaluate import columns_of, evaluate
from shoal_core.filters import Filter
from shoal_core.records import (
    CREATED_OFFSET,
    DOCUMENT,
    EMBEDDING,
    ID,
    URI_KEY,
    Kind,
    MetadataField,
    concat_rows,
    empty_rows,
    metadata_fields,
)
from shoal_index.planner import Ask, SegmentPlan
from shoal_index.segment import in_order
from shoal_index.vector.by_mask import ByMask
from shoal_index.vector.engine import Mask, Neighbours, Rows, Vectors, no_neighbours, order_by_distance
from shoal_index.version import ShardVersion
from shoal_query.tail import Frozen, ids_of
from shoal_query.tail_search import NOT_SEARCHED, TailScan, search_tail

DISTANCE = "distance"
ORIGIN = "origin"
_URI = MetadataField(URI_KEY, Kind.STRING).column


@dataclass(frozen=True, slots=True)
class _Live:
    """Of one segment, with so many rows hidden: the mask of its live rows, and of those that match filters."""

    hidden: int
    mask: Mask
    matching: ByMask[Mask] = field(default_factory=ByMask)


@dataclass(slots=True)
class LiveMasks:
    """Per segment the mask of rows that are live at the newest offset asked for; made once per change, not per read."""

    _kept: dict[int, _Live] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Of all that is kept."""
        return sum(
            kept.mask.nbytes + sum(each.nbytes for each in kept.matching.values())
            for kept in tuple(self._kept.values())
        )

    def of_matching(self, segment: int, live: Mask, matching: Mask) -> Mask:
        """Those of the live rows that match; nobody may write to them where they are kept: of the newest mask of live rows."""
        kept = self._kept.get(segment)
        if kept is None or kept.mask is not live:
            return live & matching
        return kept.matching.of(matching, lambda: _read_only(live & matching))

    def of(self, version: ShardVersion, segment: int, hidden: Rows) -> Mask | None:
        """(rows,) bool that nobody may write to, or None when every row is live. ``hidden`` only ever grows at its end."""
        view = version.segments[segment]
        if len(hidden) == 0 and view.dead is None:
            return None
        kept = self._kept.get(segment)
        if kept is not None and kept.hidden == len(hidden):
            return kept.mask
        if kept is None or kept.hidden > len(hidden):
            grown, known = np.ones(view.ref.rows, dtype=bool) if view.dead is None else ~view.dead, 0
        else:
            grown, known = kept.mask.copy(), kept.hidden
        grown[hidden[known:]] = False
        self._kept[segment] = _Live(len(hidden), _read_only(grown))
        return grown


def _read_only(mask: Mask) -> Mask:
    mask.flags.writeable = False
    return mask


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A version and an overlay of it, at one offset that the overlay serves."""

    version: ShardVersion
    frozen: Frozen
    offset: int
    masks: LiveMasks

    @property
    def tail(self) -> int:
        """The source number of the overlay."""
        return len(self.version.segments)

    def live(self, segment: int) -> Mask | None:
        """Rows of a segment that are live at the snapshot; None for all."""
        return self.masks.of(self.version, segment, self.frozen.hidden_rows(segment, self.offset))


@dataclass(frozen=True, slots=True)
class Selection:
    """What a read may answer: a filter and a set of ids, both or neither."""

    where: Filter | None = None
    ids: pa.Array | None = None


def allowed_rows(snapshot: Snapshot, source: int, selection: Selection) -> Mask | None:
    """Rows of a source that are live and selected; None for all of them."""
    if source == snapshot.tail:
        return _allowed_tail(snapshot, selection)
    mask = snapshot.live(source)
    segment = snapshot.version.segments[source].segment
    if selection.where is not None:
        matching = segment.matching(selection.where)
        mask = matching if mask is None else snapshot.masks.of_matching(source, mask, matching)
    if selection.ids is not None:
        named = np.zeros(segment.rows, dtype=bool)
        rows = segment.locate(selection.ids)
        named[rows[rows >= 0]] = True
        mask = named if mask is None else mask & named
    return mask


def _allowed_tail(snapshot: Snapshot, selection: Selection) -> Mask:
    frozen = snapshot.frozen
    mask = frozen.visible(snapshot.offset)
    if frozen.pieces is None or not mask.any():
        return mask
    if selection.where is not None:
        mask &= evaluate(selection.where, tail_columns(frozen, selection.where))
    if selection.ids is not None:
        mask &= pc.is_in(ids_of(frozen), value_set=selection.ids).to_numpy()
    return mask


def tail_columns(frozen: Frozen, where: Filter) -> pa.Table:
    """The columns of the overlay, which has rows, that a filter reads, and the id."""
    assert frozen.pieces is not None
    parts = [table.select(sorted(columns_of(where, table.schema) | {ID})) for table in frozen.pieces.tables]
    return concat_rows(parts)


# --- query -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Search:
    """A nearest-neighbour search: (q, dim) float32 vectors, and what is wanted of their neighbours."""

    vectors: Vectors
    ask: Ask
    threads: int


@dataclass(frozen=True, slots=True)
class Found:
    """Rows of queries, in columns, one query after another. ``source``: segment position, or the number of segments for the tail."""

    source: npt.NDArray[np.int64]
    row: Rows
    created: npt.NDArray[np.uint64]
    distance: npt.NDArray[np.float32] | None
    counts: npt.NDArray[np.int64]

    def of_queries(self, first: int, last: int) -> Found:
        """Those of the queries from one number to before another."""
        start = int(self.counts[:first].sum())
        rows = slice(start, start + int(self.counts[first:last].sum()))
        distance = None if self.distance is None else self.distance[rows]
        return Found(self.source[rows], self.row[rows], self.created[rows], distance, self.counts[first:last])


@dataclass(frozen=True, slots=True)
class SegmentHits:
    """The nearest rows of one segment and how it was searched."""

    near: Neighbours
    plan: SegmentPlan


def search_segment(snapshot: Snapshot, source: int, selection: Selection, search: Search) -> SegmentHits:
    """Search one segment at the snapshot."""
    mask = allowed_rows(snapshot, source, selection)
    segment = snapshot.version.segments[source].segment
    near, plan = segment.search(search.vectors, search.ask, allowed=mask, threads=search.threads)
    return SegmentHits(near, plan)


def search_segments(snapshot: Snapshot, selection: Selection, search: Search) -> list[SegmentHits]:
    """Search every segment at the snapshot."""
    return [search_segment(snapshot, source, selection, search) for source in range(snapshot.tail)]


def finish_search(
    snapshot: Snapshot, searched_at: int, hits: Sequence[SegmentHits], selection: Selection, search: Search
) -> tuple[Found, list[SegmentHits], TailScan]:
    """Merge segment hits found at the older offset ``searched_at`` with the tail, as of the snapshot.

    Rows that the tail replaced in between are dropped; a segment that loses any is searched again, deeper by way of its mask.
    """
    current = [_refresh(snapshot, searched_at, source, hit, selection, search) for source, hit in enumerate(hits)]
    sources = [
        (source, hit.near, snapshot.version.segments[source].segment.created) for source, hit in enumerate(current)
    ]
    if snapshot.frozen.pieces is None:
        return _merge(sources, len(search.vectors), search.ask.k), current, NOT_SEARCHED
    mask = allowed_rows(snapshot, snapshot.tail, selection)
    tail, scan = search_tail(
        snapshot.frozen, snapshot.version.space, search.vectors, search.ask.k, allowed=mask, threads=search.threads
    )
    sources.append((snapshot.tail, tail, snapshot.frozen.created))
    return _merge(sources, len(search.vectors), search.ask.k), current, scan


def _refresh(
    snapshot: Snapshot, searched_at: int, source: int, hit: SegmentHits, selection: Selection, search: Search
) -> SegmentHits:
    before = len(snapshot.frozen.hidden_rows(source, searched_at))
    fresh = snapshot.frozen.hidden_rows(source, snapshot.offset)[before:]
    if len(fresh) == 0 or not np.isin(hit.near.rows, fresh).any():
        return hit
    return search_segment(snapshot, source, selection, search)


def _merge(sources: Sequence[tuple[int, Neighbours, npt.NDArray[np.uint64]]], queries: int, k: int) -> Found:
    """Per query the k nearest over all sources, the tail among them; equal distances in order of creation."""
    sources = [each for each in sources if len(each[1].rows)]
    if not sources:
        return _merged(0, no_neighbours(queries), np.empty(0, dtype=np.uint64))
    if len(sources) == 1:  # is in this order already
        return _merged(*sources[0])
    source = np.concatenate([np.full(len(near.rows), number) for number, near, _ in sources])
    row = np.concatenate([near.rows for _, near, _ in sources])
    distance = np.concatenate([near.distances for _, near, _ in sources])
    created = np.concatenate([created[near.rows] for _, near, created in sources])
    query = np.concatenate([np.repeat(np.arange(queries), near.counts) for _, near, _ in sources])
    order = np.lexsort((created, distance, query)) if queries > 1 else order_by_distance(distance, created, k)
    totals = np.bincount(query, minlength=queries)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(totals) - totals, totals) if queries > 1 else None
    chosen = order if rank is None else order[rank < k]
    return Found(source[chosen], row[chosen], created[chosen], distance[chosen], np.minimum(totals, k))


def _merged(source: int, near: Neighbours, created: npt.NDArray[np.uint64]) -> Found:
    """What one source found."""
    return Found(np.full(len(near.rows), source), near.rows, created[near.rows], near.distances, near.counts)


# --- get and count -----------------------------------------------------------------------------------------------------


def select_rows(
    snapshot: Snapshot, selection: Selection, limit: int | None, offset: int, after_created: int = 0
) -> Found:
    """Selected rows created after an offset, in order of creation, cut to the page."""
    rows, sources, created = [], [], []
    end = None if limit is None else offset + limit
    for source in range(snapshot.tail + 1):
        in_tail = source == snapshot.tail
        all_created = snapshot.frozen.created if in_tail else snapshot.version.segments[source].segment.created
        if in_tail:
            found = _selected(snapshot, source, selection, 0, len(all_created), None)
            found = found[all_created[found] > after_created]
        else:  # is in order of creation: no row is on an earlier page than those before it
            first = int(np.searchsorted(all_created, np.uint64(after_created), side="right"))
            found = _selected(snapshot, source, selection, first, len(all_created), end)
        rows.append(found)
        sources.append(np.full(len(found), source))
        created.append(all_created[found])
    joined = np.concatenate(created)
    page = np.argsort(joined, kind="stable")[offset:end]
    counts = np.array([len(page)], dtype=np.int64)
    return Found(np.concatenate(sources)[page], np.concatenate(rows)[page], joined[page], None, counts)


def _selected(snapshot: Snapshot, source: int, selection: Selection, first: int, count: int, most: int | None) -> Rows:
    """The ``most`` first selected rows of a source of ``count`` rows, from the row ``first`` on."""
    if selection.ids is not None and source != snapshot.tail:
        rows = _named(snapshot, source, selection.ids, selection.where)
        return rows[np.searchsorted(rows, first) :][:most]
    mask = allowed_rows(snapshot, source, selection)
    if mask is None:
        return np.arange(first, count if most is None else min(count, first + most))
    return np.flatnonzero(mask[first:])[:most] + first


def _named(snapshot: Snapshot, source: int, ids: pa.Array, where: Filter | None) -> Rows:
    """Rows of a segment by their ids, without a mask over all rows."""
    segment = snapshot.version.segments[source].segment
    rows = segment.locate(ids)
    rows = np.sort(rows[rows >= 0])
    live = snapshot.live(source)
    if live is not None:
        rows = rows[live[rows]]
    return rows if where is None else rows[segment.matching(where)[rows]]


def count_rows(snapshot: Snapshot, selection: Selection) -> int:
    """How many rows are selected."""
    total = 0
    for source in range(snapshot.tail + 1):
        mask = allowed_rows(snapshot, source, selection)
        total += snapshot.version.segments[source].ref.rows if mask is None else int(np.count_nonzero(mask))
    return total


# --- hydrate -----------------------------------------------------------------------------------------------------------


def hydrate(snapshot: Snapshot, found: Found, include: Include, *, with_origin: bool) -> pa.Table:
    """The rows found, with the columns asked for, in their order."""
    rows = _rows_of(snapshot, found, include)
    if found.distance is not None:
        rows = rows.append_column(DISTANCE, pa.array(found.distance))
    if with_origin:
        rows = rows.append_column(ORIGIN, pa.array((found.source == snapshot.tail).astype(np.uint8)))
    return rows


def _rows_of(snapshot: Snapshot, found: Found, include: Include) -> pa.Table:
    if len(found.source) == 0:
        return empty_rows(None).select([ID, CREATED_OFFSET])
    first = int(found.source[0])
    if bool((found.source == first).all()):
        return _take(snapshot, first, found.row, include)
    positions = [(source, np.flatnonzero(found.source == source)) for source in np.unique(found.source).tolist()]
    tables = [_take(snapshot, source, found.row[at], include) for source, at in positions]
    return in_order(tables, [at for _, at in positions])


def _take(snapshot: Snapshot, source: int, rows: Rows, include: Include) -> pa.Table:
    if source == snapshot.tail:
        assert snapshot.frozen.pieces is not None
        pieces = snapshot.frozen.pieces
        names = dict.fromkeys(name for table in pieces.tables for name in table.schema.names)
        return pieces.take(rows, _columns(names, metadata_fields(names), include))
    segment = snapshot.version.segments[source].segment
    columns = _columns(segment.schema.names, segment.fields, include)
    return segment.take(rows, [*columns, EMBEDDING] if include.embeddings else columns)


def _columns(available: Collection[str], fields: Sequence[MetadataField], include: Include) -> list[str]:
    wanted = [ID, CREATED_OFFSET]
    if include.documents and DOCUMENT in available:
        wanted.append(DOCUMENT)
    if include.embeddings and EMBEDDING in available:
        wanted.append(EMBEDDING)
    if include.metadatas or include.keys:
        users = (field for field in fields if field.key != URI_KEY)
        wanted.extend(field.column for field in users if include.metadatas or field.key in include.keys)
    if (include.uris or URI_KEY in include.keys) and _URI in available:
        wanted.append(_URI)
    return wanted
