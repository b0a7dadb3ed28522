"""What a read found, as the answer to its request."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from shoal_core.consistency import ServedAt
from shoal_core.contracts import Answer, GetRequest, QueryRequest, SearchRequest
from shoal_index.planner import SegmentPlan
from shoal_query.execute import Found, Selection, Snapshot
from shoal_query.explain import Reading, Shown, explain
from shoal_query.shard import Shard
from shoal_query.tail_search import TailScan


def answer_of(
    shard: Shard,
    reading: Reading,
    rows: pa.Table,
    found: Found,
    snapshot: Snapshot,
    selection: Selection,
    request: GetRequest | QueryRequest | SearchRequest,
    plans: Sequence[Sequence[SegmentPlan]] = (),
    scans: Sequence[TailScan] = (),
) -> Answer:
    """The answer, explained if the request asks for it. ``plans``, ``scans``: see `Shown`."""
    shown = None
    if request.explain:
        from_tail = int(np.count_nonzero(found.source == snapshot.tail))
        parts = selection, plans, rows, from_tail, shard.observed, scans
        shown = explain(Shown(reading, request.target, snapshot, *parts))
    searched = [plan for of_list in plans for plan in of_list]
    recall = None if isinstance(request, GetRequest) else shard.observed.estimate(_recall(searched))
    return Answer(rows, found.counts.astype(np.uint32), served_at(snapshot), explain=shown, recall=recall)


def served_at(snapshot: Snapshot) -> ServedAt:
    """The offset and version of a snapshot."""
    return ServedAt(snapshot.offset, snapshot.version.version)


def _recall(plans: Sequence[SegmentPlan]) -> float | None:
    """The least of what the segments are estimated to give; the tail gives all."""
    known = [plan.recall for plan in plans if plan.recall is not None]
    return min(known, default=1.0) if len(known) == len(plans) else None
