"""Searches so brief that to hand them to a thread takes longer than they do: those run on the event loop.

A hand-over and the way back cost a hundred microseconds and more, during which the interpreter changes threads twice. A search that is
reckoned to take no longer is not worth it. What is reckoned holds as far as the planner's costs do: they know nothing of records
much larger than others, or of pages that the system took away. So what ran is measured as well, and when it took long, or waited for a
disk, searches of that shard go to threads for a while.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from shoal_core.contracts import Include
from shoal_core.ports import Clock
from shoal_index.vector import costs
from shoal_index.version import SegmentView
from shoal_query.execute import Search, Selection, Snapshot

T = TypeVar("T")

LONGEST_S = 0.003  # of processor time
PAUSE_S = 5.0

_ROWS = 500_000  # of a segment: what masks of it cost is not reckoned
_SEGMENTS = 4
_COLUMNS = 16  # of metadata
_ANSWERED = 100  # rows
_ANSWERED_BYTES = 64 << 10
_LARGEST_MULTIPLE = 4  # of what one read may take, for several
_TAIL_SCANS = 2  # of every row: for its length, the first time after a fold, and to compare it


@dataclass(slots=True)
class BriefSearches:
    """Whether searches of one shard may run on the event loop.

    Attributes:
        used: see `Services.thread_use`.
    """

    clock: Clock
    used: Callable[[], tuple[float, int]]
    _paused_until: float = -math.inf

    def may_run(
        self,
        snapshot: Snapshot,
        selection: Selection,
        search: Search,
        include: Include,
        *,
        within_us: int,
        reads: int = 1,
    ) -> bool:
        """Whether to `run` this one, which serves so many reads."""
        if self.clock.monotonic() < self._paused_until:
            return False
        return is_brief(snapshot, selection, search, include, within_us=within_us, reads=reads)

    def run(self, work: Callable[[], T], *, reads: int = 1) -> T:
        """The result of ``work``, which is for so many reads, at once."""
        cpu_s, faults = self.used()
        try:
            return work()
        finally:
            cpu_then_s, faults_then = self.used()
            if cpu_then_s - cpu_s > LONGEST_S * min(reads, _LARGEST_MULTIPLE) or faults_then > faults:
                self._paused_until = self.clock.monotonic() + PAUSE_S


def is_brief(
    snapshot: Snapshot, selection: Selection, search: Search, include: Include, *, within_us: int, reads: int = 1
) -> bool:
    """Whether a search is reckoned to be over within so many microseconds, and to fetch few rows; never within 0. For several reads,
    which would hold the event loop one after another, it may take some times as long.

    Not with a filter or ids, whose evaluation is not reckoned; nor where vectors may have to be read from disk, or anything is yet to
    be made that takes a look at every row.
    """
    if selection.where is not None or selection.ids is not None or search.ask.paged:
        return False
    queries, dimension = search.vectors.shape
    version, ask = snapshot.version, search.ask
    operations = max(snapshot.offset, snapshot.frozen.offset) - version.compacted_offset
    times = min(reads, _LARGEST_MULTIPLE)
    left_ns = 1_000 * within_us * times - queries * operations * _TAIL_SCANS * costs.scan_row(dimension, shared=False)
    if (
        left_ns <= 0
        or len(version.segments) > _SEGMENTS
        or not _fetches_little(snapshot, queries * ask.k, include, times)
    ):
        return False
    if not all(_is_ready(held, version.space) for held in version.segments):
        return False
    for number, held in enumerate(version.segments):
        left_ns -= queries * held.segment.plan(ask, snapshot.live(number)).cost_ns
    return left_ns >= 0


def _is_ready(held: SegmentView, space: str) -> bool:
    """Whether the plan's cost is all of it: with few rows that may be answered a search may look at more than was planned."""
    ref = held.ref
    return ref.rows <= min(_ROWS, 2 * ref.live) and held.segment.vectors.is_prepared(space)


def _fetches_little(snapshot: Snapshot, answered: int, include: Include, times: int) -> bool:
    """Whether so many rows of mean size come to few bytes in few columns, or to so many times as many."""
    if answered > times * _ANSWERED:
        return False
    if not (include.documents or include.metadatas or include.embeddings or include.uris or include.keys):
        return True
    segments = [held.segment for held in snapshot.version.segments]
    parts, rows = snapshot.frozen.parts, max(len(snapshot.frozen.created), 1)
    sizes = [segment.row_bytes for segment in segments] + [sum(part.size_bytes for part in parts) / rows]
    columns = max((len(segment.fields) for segment in segments), default=0)
    embedding = 4 * (snapshot.version.dimension or 0) if include.embeddings else 0
    return columns <= _COLUMNS and answered * (max(sizes) + embedding) <= times * _ANSWERED_BYTES
