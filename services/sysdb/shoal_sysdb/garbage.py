"""SQL of garbage collection: what is kept, what has run out, and forgetting it. Methods are one statement each, but for the last two.

Retentions and ages are by the database's clock. A version is retained while it is current and for ``version_retention_ms`` after it
was replaced: the oldest retained one is the newest that is as old as that. What is deleted here is looked at again within the
statement that deletes it, so several sweepers may act on what they read a while ago.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from shoal_core.contracts import ExpiredUpload, GarbageCollection, VersionInfo
from shoal_core.errors import Internal
from shoal_sysdb.sql import AGE_MS, AGO, Sql

# Without such a version every row is retained: none has been replaced for so long.
_OLDEST_RETAINED = f"""(SELECT coalesce(max(old.version), 0) FROM collection_version old
    WHERE old.collection_id = $1 AND old.created_at <= {AGO.format(ms="$2")})"""


class GarbageStatements:
    """What the sweeper asks and forgets."""

    def __init__(self, sql: Sql) -> None:
        self._sql = sql

    # --- uploads -----------------------------------------------------------------------------------------------------

    async def expired_uploads(self, age_ms: int, limit: int) -> list[ExpiredUpload]:
        """Intents older than ``age_ms``, oldest first, but for those that a transaction is using just now."""
        rows = await self._sql.fetch(
            f"""SELECT id, collection_id, {AGE_MS.format(since="created_at")} - $1::bigint AS overdue_ms FROM upload_intent
            WHERE created_at < {AGO.format(ms="$1")} ORDER BY created_at LIMIT $2 FOR KEY SHARE SKIP LOCKED""",
            age_ms,
            limit,
        )
        return [ExpiredUpload(str(row["id"]), str(row["collection_id"]), row["overdue_ms"]) for row in rows]

    async def drop_uploads(self, upload_ids: Sequence[UUID], age_ms: int) -> None:
        """Forget intents that are older than ``age_ms``."""
        await self._sql.execute(
            f"DELETE FROM upload_intent WHERE id = ANY ($1) AND created_at < {AGO.format(ms='$2')}", upload_ids, age_ms
        )

    async def needed_payloads(self, keys: Sequence[str]) -> list[str]:
        """In one statement, as an append turns an upload into an entry in one transaction."""
        rows = await self._sql.fetch(
            """SELECT asked.key FROM unnest($1::text[]) AS asked (key)
            WHERE EXISTS (SELECT FROM log_entry e WHERE e.object_key = asked.key)
                OR EXISTS (SELECT FROM upload_intent i WHERE i.id::text = split_part(asked.key, '/', 3))""",
            keys,
        )
        return [row["key"] for row in rows]

    # --- versions ----------------------------------------------------------------------------------------------------

    async def find_collections(
        self, after: UUID, limit: int, version_retention_ms: int, deleted_retention_ms: int, everything: bool
    ) -> list[GarbageCollection]:
        """In order of id. A version was replaced when the next one came: the second oldest of two that are old enough."""
        rows = await self._sql.fetch(
            f"""WITH expired AS (
                SELECT collection_id, (array_agg(created_at ORDER BY version))[2] AS replaced_at FROM collection_version
                WHERE collection_id > $1 AND created_at <= {AGO.format(ms="$3")} GROUP BY collection_id HAVING count(*) > 1
            )
            SELECT c.id, c.deleted_at IS NOT NULL AS deleted, greatest(0, CASE
                WHEN c.deleted_at IS NULL THEN {AGE_MS.format(since="e.replaced_at")} - $3::bigint
                ELSE {AGE_MS.format(since="c.deleted_at")} - $4::bigint END) AS overdue_ms
            FROM collection c LEFT JOIN expired e ON e.collection_id = c.id
            WHERE c.id > $1 AND CASE WHEN c.deleted_at IS NULL THEN $5 OR e.collection_id IS NOT NULL
                ELSE c.deleted_at <= {AGO.format(ms="$4")} END
            ORDER BY c.id LIMIT $2""",
            after,
            limit,
            version_retention_ms,
            deleted_retention_ms,
            everything,
        )
        return [GarbageCollection(str(row["id"]), row["deleted"], row["overdue_ms"]) for row in rows]

    async def find_roots(
        self, collection_id: UUID, upload_ids: Sequence[UUID], version_retention_ms: int
    ) -> tuple[list[VersionInfo], list[str]] | None:
        """Retained versions, ascending, and the uploads that have an intent; None for a collection that is gone.

        In one statement, as a publish turns an upload into a version in one transaction.
        """
        rows = await self._sql.fetch(
            f"""SELECT c.version AS current, v.version, v.manifest_key, v.compacted_offset, NULL::uuid AS upload_id
            FROM collection c LEFT JOIN collection_version v ON v.collection_id = c.id AND v.version >= {_OLDEST_RETAINED}
            WHERE c.id = $1 AND c.deleted_at IS NULL
            UNION ALL SELECT NULL, NULL, NULL, NULL, id FROM upload_intent WHERE id = ANY ($3)
            ORDER BY version""",
            collection_id,
            version_retention_ms,
            upload_ids,
        )
        known = [row for row in rows if row["upload_id"] is None]
        if not known:
            return None
        versions = [
            VersionInfo(str(collection_id), row["version"], row["manifest_key"], row["compacted_offset"])
            for row in known
            if row["version"] is not None
        ]
        current: int = known[0]["current"]
        if current != (versions[-1].version if versions else 0):
            raise Internal(f"collection {collection_id} has no row for its current version {current}")
        return versions, [str(row["upload_id"]) for row in rows if row["upload_id"] is not None]

    async def drop_versions(self, collection_id: UUID, version_retention_ms: int, below: int) -> int:
        """Forget versions below ``below`` that are not retained. How many went."""
        rows = await self._sql.fetch(
            f"""DELETE FROM collection_version WHERE collection_id = $1 AND version < $3 AND version < {_OLDEST_RETAINED}
            RETURNING version""",
            collection_id,
            version_retention_ms,
            below,
        )
        return len(rows)

    # --- deleted collections -----------------------------------------------------------------------------------------

    async def deleted_for(self, collection_id: UUID) -> int | None:
        """Milliseconds since the deletion, -1 for a live collection, None for one that is not known."""
        age_ms: int | None = await self._sql.fetchval(
            f"""SELECT CASE WHEN deleted_at IS NULL THEN -1 ELSE {AGE_MS.format(since="deleted_at")} END
            FROM collection WHERE id = $1""",
            collection_id,
        )
        return age_ms

    async def drop_log_entries(self, collection_id: UUID, limit: int) -> int:
        """Forget the oldest log entries of a deleted collection. How many went.

        Takes no lock on the collection, as trimming locks partitions before collections; what is deleted stays deleted.
        """
        count: int = await self._sql.fetchval(
            """WITH gone AS (
                DELETE FROM log_entry e USING collection c
                WHERE c.id = $1 AND c.deleted_at IS NOT NULL AND e.collection_id = $1 AND e.end_offset <= (
                    SELECT max(end_offset) FROM (
                        SELECT end_offset FROM log_entry WHERE collection_id = $1 ORDER BY end_offset LIMIT $2
                    ) AS page)
                RETURNING 1
            ) SELECT count(*) FROM gone""",
            collection_id,
            limit,
        )
        return count

    async def lock_deleted(self, collection_id: UUID) -> bool:
        """Lock a deleted collection, then its log head. False when another has purged it."""
        locked = await self._sql.fetchval(
            "SELECT id FROM collection WHERE id = $1 AND deleted_at IS NOT NULL FOR UPDATE", collection_id
        )
        if locked is None:
            return False
        await self._sql.execute("SELECT FROM log_head WHERE collection_id = $1 FOR UPDATE", collection_id)
        return True

    async def purge(self, collection_id: UUID) -> None:
        """Forget a collection that is locked and has no log entries. Outcomes of its writes are forgotten by their age."""
        for table in ("collection_version", "lease", "log_head"):
            await self._sql.execute(f"DELETE FROM {table} WHERE collection_id = $1", collection_id)
        await self._sql.execute("DELETE FROM collection WHERE id = $1", collection_id)
