"""How far compaction is behind the log, over all collections: for operators, not for any decision."""

from __future__ import annotations

from dataclasses import dataclass

LAG = """SELECT count(*) AS collections, coalesce(sum(late.records), 0)::bigint AS records,
        coalesce(max(late.records), 0)::bigint AS max_records, coalesce(max(late.age_ms), 0)::bigint AS max_age_ms
    FROM (
        SELECT h.head_offset - coalesce(v.compacted_offset, 0) AS records,
            greatest(0, extract(epoch FROM statement_timestamp() - h.uncompacted_since) * 1000) AS age_ms
        FROM log_head h JOIN collection c ON c.id = h.collection_id AND c.deleted_at IS NULL
        LEFT JOIN collection_version v ON v.collection_id = c.id AND v.version = c.version
        WHERE h.uncompacted_since IS NOT NULL
    ) AS late WHERE late.records > 0"""


@dataclass(frozen=True, slots=True)
class LogLag:
    """How far compaction is behind.

    Attributes:
        collections, records: those with un-compacted records, and how many these are together.
        max_records, max_age_ms: of the collection with the most, and of the one whose oldest has waited longest.
    """

    collections: int
    records: int
    max_records: int
    max_age_ms: int
