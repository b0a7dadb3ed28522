"""What an explained read says of one shard: how it was planned, what it found and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from shoal_core.contracts import Json, Target
from shoal_core.ports import Clock
from shoal_index.planner import SegmentPlan, Strategy
from shoal_query.execute import Selection, Snapshot, allowed_rows, tail_columns
from shoal_query.recall_check import ObservedRecall
from shoal_query.tail_search import TailScan
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
class Reading:
    """A read under way.

    Attributes:
        kernels: tells by library what computes distances on the node.
        read, before: what the shard has read, now and when the read began.
    """

    node: str
    kernels: Callable[[], Mapping[str, str]]
    stages: Stages
    read: ReadMeter
    before: ReadMeter


@dataclass(frozen=True, slots=True)
class Shown:
    """What an explanation is made from.

    Attributes:
        plans: per ranked list and segment how vectors were searched; empty for reads that search none.
        rows: the answer; None for a count.
        scans: of the tail's vectors; one for each length of a ranked list.
    """

    reading: Reading
    target: Target
    snapshot: Snapshot
    selection: Selection
    plans: Sequence[Sequence[SegmentPlan]] = ()
    rows: pa.Table | None = None
    from_tail: int = 0
    observed: ObservedRecall | None = None
    scans: Sequence[TailScan] = ()


def explain(shown: Shown) -> Json:
    """The explanation as JSON: one element of the list ``shards``.

    Bytes of a filter are those of its evaluation, which a segment may have kept from an earlier read.
    """
    reading, snapshot = shown.reading, shown.snapshot
    segments = [_segment(shown, number) for number in range(snapshot.tail)]
    tail = allowed_rows(snapshot, snapshot.tail, shown.selection)
    tail_matched = 0 if tail is None else int(np.count_nonzero(tail))
    answered = 0 if shown.rows is None else shown.rows.num_rows
    compared = sum(_compared_bytes(shown, plan) for plans in shown.plans for plan in plans)
    filtered = _filtered_bytes(snapshot, shown.selection)
    shard = {
        "node": reading.node,
        "kernels": dict(reading.kernels()),
        "shard": shown.target.shard,
        "version": snapshot.version.version,
        "offset": snapshot.offset,
        "segments": segments,
        "tail": {
            "records": int(np.count_nonzero(snapshot.frozen.visible(snapshot.offset))),
            "matched": tail_matched,
            "after": snapshot.version.compacted_offset,
            "up_to": snapshot.offset,
            **_scans(shown.scans),
        },
        "matched": tail_matched + sum(segment["matched"] for segment in segments),
        "answered": {"segments": answered - shown.from_tail, "tail": shown.from_tail},
        "recall": _observed(shown.observed),
        "milliseconds": dict(reading.stages.milliseconds),
        "bytes": {
            "memory": filtered + compared + (0 if shown.rows is None else int(shown.rows.nbytes)),
            "cache": reading.read.memory_bytes - reading.before.memory_bytes,
            "disk": reading.read.disk_bytes - reading.before.disk_bytes,
            "store": reading.read.store_bytes - reading.before.store_bytes,
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
        entry["filter"] = {
            "estimated": matching.estimated,
            "matched": int(np.count_nonzero(matching.mask)),
            "steps": [asdict(step) | {"rejected": _rejected(step.rejected)} for step in matching.steps],
        }
    if shown.plans:
        entry |= _plan(shown.plans[0][number])
    if len(shown.plans) > 1:
        entry["lists"] = [_plan(plans[number]) for plans in shown.plans]
    return entry


def _plan(plan: SegmentPlan) -> Mapping[str, object]:
    return {
        "strategy": str(plan.strategy),
        "effort": plan.effort,
        "recall": plan.recall,
        "rejected": _rejected(plan.rejected),
    }


def _scans(scans: Sequence[TailScan]) -> Mapping[str, object]:
    """How the tail's vectors were searched; ``rescored``: rows that their codes did not rule out, of all queries together."""
    if not scans:
        return {}
    by_codes = [scan for scan in scans if scan.strategy == "codes"]
    if not by_codes:
        return {"strategy": scans[0].strategy}
    return {"strategy": "codes", "rescored": sum(scan.rescored for scan in by_codes)}


def _observed(observed: ObservedRecall | None) -> Json | None:
    """What live queries got, where any were asked again exactly; ``factor`` below 1: searches look harder than the curves say."""
    if observed is None or not observed.checks:
        return None
    return {"checks": round(observed.checks), "observed": observed.recall, "factor": round(observed.factor, 3)}


def _rejected(found: Sequence[tuple[str, str]]) -> list[Json]:
    return [{"strategy": str(strategy), "reason": reason} for strategy, reason in found]


def _filtered_bytes(snapshot: Snapshot, selection: Selection) -> int:
    """What the filter's evaluation reads, in the segments and in the tail."""
    if selection.where is None:
        return 0
    matchings = [view.segment.select(selection.where) for view in snapshot.version.segments]
    visible = bool(snapshot.frozen.visible(snapshot.offset).any())
    tail = int(tail_columns(snapshot.frozen, selection.where).nbytes) if visible else 0
    return tail + sum(step.read_bytes for matching in matchings for step in matching.steps)


def _compared_bytes(shown: Shown, plan: SegmentPlan) -> int:
    """Of the vectors compared exactly; what a graph visits on its way is its own."""
    dimension = shown.snapshot.version.dimension or 0
    return 0 if plan.strategy is Strategy.NOTHING else plan.compared * dimension * 4
