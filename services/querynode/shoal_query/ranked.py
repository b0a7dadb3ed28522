"""Ranked lists of one shard at one snapshot: the best records by vectors, sparse vectors and text. Pure; runs in a worker thread.

Every list is searched in each segment and in each piece of the tail, and merged. A record measures the same, to the bit, wherever
it lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from shoal_core.contracts import (
    DenseLeaf,
    Leaf,
    SparseLeaf,
    SparseStatistics,
    Statistics,
    TextLeaf,
    TextStatistics,
)
from shoal_index.planner import Ask, SegmentPlan
from shoal_index.segment import Segment
from shoal_index.sparse import count_sparse, scan_sparse
from shoal_index.vector.engine import Mask, Neighbours, Rows, order_by_distance
from shoal_query.execute import Found, Selection, Snapshot, allowed_rows
from shoal_query.tail import Piece
from shoal_query.tail_search import TailScan, search_tail

SCORE = "score"

Measures = npt.NDArray[np.float64]
_NOTHING = (np.empty(0, np.int64), np.empty(0, np.float64))


@dataclass(frozen=True, slots=True)
class Ranked:
    """Several lists, one after another.

    Attributes:
        found: the rows, without distances; one count per leaf.
        measures: (n,) float64 of each row, ascending within a list.
        plans: per dense leaf how each segment was searched.
        scans: of the tail, for each ``k`` of dense leaves.
    """

    found: Found
    measures: Measures
    plans: tuple[tuple[SegmentPlan, ...], ...]
    scans: tuple[TailScan, ...]


@dataclass(frozen=True, slots=True)
class _Hits:
    """What one source has for one leaf, in any order, at least its ``k`` best rows."""

    leaf: int
    source: int
    rows: Rows
    measures: Measures


def search_leaves(
    snapshot: Snapshot, selection: Selection, leaves: Sequence[Leaf], ask: Ask, *, threads: int
) -> Ranked:
    """The ``k`` best selected rows of each leaf: ascending by measure, then by ``created_offset``.

    Args:
        ask: of dense leaves, but for their number and ``k``.
    """
    allowed = [allowed_rows(snapshot, source, selection) for source in range(snapshot.tail + 1)]
    hits, plans, scans = _search_vectors(snapshot, allowed, leaves, ask, threads=threads)
    for number, leaf in enumerate(leaves):
        if isinstance(leaf, DenseLeaf):
            continue
        for source, view in enumerate(snapshot.version.segments):
            hits.append(_Hits(number, source, *_in_segment(view.segment, allowed[source], leaf)))
        for start, piece, mask in _pieces(snapshot, allowed[-1]):
            rows, measures = _in_piece(piece, mask, leaf)
            hits.append(_Hits(number, snapshot.tail, rows + start, measures))
    return Ranked(*_merge(snapshot, hits, [leaf.k for leaf in leaves]), plans, scans)


def statistics(snapshot: Snapshot, asks: Sequence[TextStatistics | SparseStatistics]) -> tuple[Statistics, ...]:
    """What inverse document frequencies are made of, one per ask: exactly those of the live rows."""
    found = []
    for ask in asks:
        parts = list(_in_all(snapshot, ask))
        frequencies = np.zeros(len(ask.terms if isinstance(ask, TextStatistics) else ask.indices), dtype=np.int64)
        for part in parts:
            frequencies += part.frequencies
        found.append(Statistics(sum(part.records for part in parts), sum(part.length for part in parts), frequencies))
    return tuple(found)


def _pieces(snapshot: Snapshot, mask: Mask | None) -> Iterator[tuple[int, Piece, Mask]]:
    """The tail's pieces that have any row of the mask: where they begin, they, and their part of the mask."""
    assert mask is not None, "the tail has a mask at every offset"
    start = 0
    for piece in snapshot.frozen.parts:
        end = start + piece.table.num_rows
        if mask[start:end].any():
            yield start, piece, mask[start:end]
        start = end


def _merge(snapshot: Snapshot, hits: Sequence[_Hits], limits: Sequence[int]) -> tuple[Found, Measures]:
    """Of each leaf the best over all sources, as many as its limit says; equal measures in order of creation."""
    created_of = [*(view.segment.created for view in snapshot.version.segments), snapshot.frozen.created]
    leaf = np.concatenate([np.empty(0, np.int64), *(np.full(len(hit.rows), hit.leaf) for hit in hits)])
    source = np.concatenate([np.empty(0, np.int64), *(np.full(len(hit.rows), hit.source) for hit in hits)])
    row = np.concatenate([np.empty(0, np.int64), *(hit.rows for hit in hits)])
    created = np.concatenate([np.empty(0, np.uint64), *(created_of[hit.source][hit.rows] for hit in hits)])
    measures = np.concatenate([np.empty(0), *(hit.measures for hit in hits)])
    best = [
        at[order_by_distance(measures[at], created[at], k)]
        for n, k in enumerate(limits)
        for at in [np.flatnonzero(leaf == n)]
    ]
    counts = np.array([len(part) for part in best], dtype=np.int64)
    chosen = np.concatenate([np.empty(0, np.int64), *best])
    return Found(source[chosen], row[chosen], created[chosen], None, counts), measures[chosen]


# --- vectors -----------------------------------------------------------------------------------------------------------


def _search_vectors(
    snapshot: Snapshot, allowed: Sequence[Mask | None], leaves: Sequence[Leaf], ask: Ask, *, threads: int
) -> tuple[list[_Hits], tuple[tuple[SegmentPlan, ...], ...], tuple[TailScan, ...]]:
    """Hits and plans of the dense leaves, and scans of the tail; those with the same ``k`` are one search."""
    dense = {number: leaf for number, leaf in enumerate(leaves) if isinstance(leaf, DenseLeaf)}
    hits: list[_Hits] = []
    scans: list[TailScan] = []
    plans: dict[int, list[SegmentPlan]] = {number: [] for number in dense}
    for k in sorted({leaf.k for leaf in dense.values()}):
        numbers = [number for number, leaf in dense.items() if leaf.k == k]
        vectors = np.stack([dense[number].vector for number in numbers])
        wanted = replace(ask, k=k, queries=len(vectors))
        for source, view in enumerate(snapshot.version.segments):
            near, plan = view.segment.search(vectors, wanted, allowed=allowed[source], threads=threads)
            hits.extend(_split(numbers, source, near))
            for number in numbers:
                plans[number].append(plan)
        space, mask = snapshot.version.space, allowed[-1]
        near, scan = search_tail(snapshot.frozen, space, vectors, k, allowed=mask, threads=threads)
        hits.extend(_split(numbers, snapshot.tail, near))
        scans.append(scan)
    return hits, tuple(map(tuple, plans.values())), tuple(scans)


def _split(leaves: Sequence[int], source: int, near: Neighbours) -> Iterator[_Hits]:
    """The neighbours of each query as hits of its leaf."""
    ends = np.cumsum(near.counts)
    for leaf, end, count in zip(leaves, ends.tolist(), near.counts.tolist(), strict=True):
        own = slice(end - count, end)
        yield _Hits(leaf, source, near.rows[own], near.distances[own].astype(np.float64))


# --- sparse vectors and text -------------------------------------------------------------------------------------------


def _in_segment(segment: Segment, mask: Mask | None, leaf: SparseLeaf | TextLeaf) -> tuple[Rows, Measures]:
    if isinstance(leaf, TextLeaf):
        return _by_text(segment, mask, leaf)
    index = segment.sparse_index(leaf.key)
    if index is None:
        return _NOTHING
    return index.search(leaf.indices, leaf.values, leaf.k, allowed=mask, ties=segment.created)


def _in_piece(piece: Piece, mask: Mask, leaf: SparseLeaf | TextLeaf) -> tuple[Rows, Measures]:
    if isinstance(leaf, TextLeaf):
        return _by_text(piece, mask, leaf)
    column = piece.sparse(leaf.key)
    if column is None:
        return _NOTHING
    measures, present = scan_sparse(column, leaf.indices, leaf.values)
    rows = np.flatnonzero(present & mask)
    best = order_by_distance(measures[rows], piece.created[rows], leaf.k)
    return rows[best], measures[rows[best]]


def _by_text(texts: Segment | Piece, mask: Mask | None, leaf: TextLeaf) -> tuple[Rows, Measures]:
    index = texts.term_index(leaf.analyzer)
    rows, scores = index.score(
        leaf.terms, leaf.weights, average_length=leaf.average_length, k1=leaf.k1, b=leaf.b, allowed=mask
    )
    measures = 1.0 - scores
    best = order_by_distance(measures, texts.created[rows], leaf.k)
    return rows[best], measures[best]


# --- statistics --------------------------------------------------------------------------------------------------------


def _in_all(snapshot: Snapshot, ask: TextStatistics | SparseStatistics) -> Iterator[Statistics]:
    for source, view in enumerate(snapshot.version.segments):
        segment, live = view.segment, snapshot.live(source)
        if isinstance(ask, TextStatistics):
            yield segment.term_index(ask.analyzer).statistics(ask.terms, live)
        elif (index := segment.sparse_index(ask.key)) is not None:
            yield index.statistics(ask.indices, live)
    for _, piece, mask in _pieces(snapshot, snapshot.frozen.visible(snapshot.offset)):
        if isinstance(ask, TextStatistics):
            yield piece.term_index(ask.analyzer).statistics(ask.terms, mask)
        elif (column := piece.sparse(ask.key)) is not None:
            yield count_sparse(column, ask.indices, mask)
