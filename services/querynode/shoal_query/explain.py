"""What an explained read says of one shard: how it was planned, what it found and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from shoal_core.contracts import Json, Target
from shoal_core.ports import Clock
from shoal_index.planner import SegmentPlan, Strategy
from shoal_query.execute import Selection, Snapshot, allowed_rows
from shoal_storage.cache import ReadMeter


@dataclass(slots=True)
class Stages:
    """Milliseconds of a read, stage by stage."""

    clock: Clock
    milliseconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(init=False)

    def __post_init__(self) -> None:
        self._since = self.clock.monotonic()

    def done(self, stage: str) -> None:
        """A stage ends, the next begins."""
        now = self.clock.monotonic()
        self.milliseconds[stage] = round((now - self._since) * 1000 + self.milliseconds.get(stage, 0.0), 3)
        self._since = now


@dataclass(frozen=True, slots=True)
class Shown:
    """What an explanation is made from.

    Attributes:
        plans: per ranked list and segment how vectors were searched; empty for reads that search none.
        rows: the answer; None for a count.
        before: what the shard had read when the read began.
    """

    node: str
    target: Target
    snapshot: Snapshot
    selection: Selection
    stages: Stages
    before: ReadMeter
    read: ReadMeter
    plans: Sequence[Sequence[SegmentPlan]] = ()
    rows: pa.Table | None = None
    from_tail: int = 0


def explain(shown: Shown) -> Json:
    """The explanation as JSON: one element of the list ``shards``."""
    snapshot = shown.snapshot
    segments = [_segment(shown, number) for number in range(snapshot.tail)]
    tail = allowed_rows(snapshot, snapshot.tail, shown.selection)
    tail_matched = 0 if tail is None else int(np.count_nonzero(tail))
    answered = 0 if shown.rows is None else shown.rows.num_rows
    compared = sum(_compared_bytes(shown, plan) for plans in shown.plans for plan in plans)
    shard = {
        "node": shown.node,
        "shard": shown.target.shard,
        "version": snapshot.version.version,
        "offset": snapshot.offset,
        "segments": segments,
        "tail": {
            "records": int(np.count_nonzero(snapshot.frozen.visible(snapshot.offset))),
            "matched": tail_matched,
            "after": snapshot.version.compacted_offset,
            "up_to": snapshot.offset,
        },
        "matched": tail_matched + sum(segment["matched"] for segment in segments),
        "answered": {"segments": answered - shown.from_tail, "tail": shown.from_tail},
        "milliseconds": dict(shown.stages.milliseconds),
        "bytes": {
            "memory": compared + (0 if shown.rows is None else int(shown.rows.nbytes)),
            "cache": shown.read.memory_bytes - shown.before.memory_bytes,
            "disk": shown.read.disk_bytes - shown.before.disk_bytes,
            "store": shown.read.store_bytes - shown.before.store_bytes,
        },
    }
    return {"shards": [shard]}


def _segment(shown: Shown, number: int) -> dict[str, Any]:
    view = shown.snapshot.version.segments[number]
    mask = allowed_rows(shown.snapshot, number, shown.selection)
    matched = view.ref.rows if mask is None else int(np.count_nonzero(mask))
    entry: dict[str, Any] = {
        "id": view.ref.id,
        "tier": view.ref.tier,
        "rows": view.ref.rows,
        "live": view.ref.live,
        "matched": matched,
    }
    if shown.selection.where is not None:
        matching = view.segment.select(shown.selection.where)
        steps = [
            {"condition": step.condition, "how": step.how, "estimated": step.estimated, "matched": step.matched}
            for step in matching.steps
        ]
        entry["filter"] = {"estimated": matching.estimated, "matched": int(matching.mask.sum()), "steps": steps}
    if shown.plans:
        entry |= _plan(shown.plans[0][number])
    if len(shown.plans) > 1:
        entry["lists"] = [_plan(plans[number]) for plans in shown.plans]
    return entry


def _plan(plan: SegmentPlan) -> Mapping[str, object]:
    rejected = [{"strategy": str(strategy), "reason": reason} for strategy, reason in plan.rejected]
    return {"strategy": str(plan.strategy), "ef": plan.ef, "rejected": rejected}


def _compared_bytes(shown: Shown, plan: SegmentPlan) -> int:
    """Of the vectors compared exactly; what a graph visits on its way is its own."""
    dimension = shown.snapshot.version.dimension or 0
    return 0 if plan.strategy is Strategy.NOTHING else plan.compared * dimension * 4
