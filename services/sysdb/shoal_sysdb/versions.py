"""SQL of jobs: backlog, leases, uploads and versions. Every method is one statement."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from shoal_core.contracts import Backlog, VersionInfo
from shoal_core.errors import Internal
from shoal_sysdb.sql import AGE_MS, COLLECTION_COLUMNS, Row, Sql, collection_of, version_of

_HIGHEST_OFFSET = 2**63 - 1  # of a bigint


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """A row of ``collection_version``; ``age_ms`` by the database's clock."""

    info: VersionInfo
    compacted_bytes: int
    age_ms: int


@dataclass(frozen=True, slots=True)
class VersionAt:
    """What an offset can be read from; None if nothing. ``oldest_offset``: nothing below it can be read."""

    info: VersionInfo | None
    oldest_offset: int


class VersionStatements:
    """What background jobs do to collections. Methods that find return None for what does not exist or is deleted."""

    def __init__(self, sql: Sql) -> None:
        self._sql = sql

    # --- jobs --------------------------------------------------------------------------------------------------------

    async def backlog(self, limit: int, min_records: int, min_age_ms: int) -> list[Backlog]:
        """Turn by turn over the tenants, each giving its oldest; the page itself is oldest first."""
        rows = await self._sql.fetch(
            f"""WITH dirty AS (
                SELECT {COLLECTION_COLUMNS}, c.version, h.head_offset, coalesce(v.compacted_offset, 0) AS compacted_offset,
                    h.total_bytes - coalesce(v.compacted_bytes, 0) AS uncompacted_bytes, h.uncompacted_since,
                    {AGE_MS.format(since="h.uncompacted_since")} AS age_ms
                FROM log_head h JOIN collection c ON c.id = h.collection_id
                LEFT JOIN collection_version v ON v.collection_id = c.id AND v.version = c.version
                WHERE h.uncompacted_since IS NOT NULL AND c.deleted_at IS NULL
                    AND h.head_offset > coalesce(v.compacted_offset, 0)
            ), due AS (
                SELECT *, row_number() OVER (PARTITION BY tenant ORDER BY uncompacted_since, id) AS turn FROM dirty
                WHERE head_offset - compacted_offset >= $2 OR age_ms >= $3
            ), page AS (SELECT * FROM due ORDER BY turn, uncompacted_since, id LIMIT $1)
            SELECT * FROM page ORDER BY uncompacted_since, id""",
            limit,
            min_records,
            min_age_ms,
        )
        return [
            Backlog(
                collection=collection_of(row),
                head_offset=row["head_offset"],
                compacted_offset=row["compacted_offset"],
                uncompacted_bytes=row["uncompacted_bytes"],
                age_ms=row["age_ms"],
                version=row["version"],
            )
            for row in rows
        ]

    async def claim_lease(self, collection_id: UUID, kind: str, holder: str, ttl_ms: int) -> int | None:
        """The new epoch, or None when the lease is alive, another is claiming it or the collection is gone.

        One statement, so that no claimer can stall between taking the row and committing it.
        """
        epoch: int | None = await self._sql.fetchval(
            """WITH free AS (
                SELECT l.collection_id, l.kind FROM lease l JOIN collection c ON c.id = l.collection_id
                WHERE l.collection_id = $1 AND l.kind = $2 AND l.expires_at <= clock_timestamp() AND c.deleted_at IS NULL
                FOR UPDATE OF l SKIP LOCKED
            ), taken AS (
                UPDATE lease l SET holder = $3, epoch = l.epoch + 1,
                    expires_at = clock_timestamp() + make_interval(secs => $4::float8 / 1000)
                FROM free WHERE l.collection_id = free.collection_id AND l.kind = free.kind RETURNING l.epoch
            ), fresh AS (
                INSERT INTO lease (collection_id, kind, holder, epoch, expires_at)
                SELECT id, $2, $3, 1, clock_timestamp() + make_interval(secs => $4::float8 / 1000) FROM collection c
                WHERE id = $1 AND deleted_at IS NULL
                    AND NOT EXISTS (SELECT FROM lease l WHERE l.collection_id = c.id AND l.kind = $2)
                ON CONFLICT DO NOTHING RETURNING epoch
            ) SELECT epoch FROM taken UNION ALL SELECT epoch FROM fresh""",
            collection_id,
            kind,
            holder,
            ttl_ms,
        )
        return epoch

    async def renew_lease(self, collection_id: UUID, kind: str, epoch: int, ttl_ms: int) -> bool:
        """False when the epoch is not the newest or was released."""
        renewed = await self._sql.fetchval(
            """UPDATE lease SET expires_at = clock_timestamp() + make_interval(secs => $4::float8 / 1000)
            WHERE collection_id = $1 AND kind = $2 AND epoch = $3 AND expires_at > '-infinity' RETURNING epoch""",
            collection_id,
            kind,
            epoch,
            ttl_ms,
        )
        return renewed is not None

    async def release_lease(self, collection_id: UUID, kind: str, epoch: int) -> None:
        """The row stays, so that its epoch is never given out again."""
        await self._sql.execute(
            "UPDATE lease SET expires_at = '-infinity' WHERE collection_id = $1 AND kind = $2 AND epoch = $3",
            collection_id,
            kind,
            epoch,
        )

    async def share_lease_epoch(self, collection_id: UUID, kind: str) -> int | None:
        """The newest epoch; nobody can claim a newer one until the transaction ends."""
        epoch: int | None = await self._sql.fetchval(
            "SELECT epoch FROM lease WHERE collection_id = $1 AND kind = $2 FOR SHARE", collection_id, kind
        )
        return epoch

    # --- versions ----------------------------------------------------------------------------------------------------

    async def insert_upload(self, collection_id: UUID) -> str | None:
        """The intent's id, or None when the collection is gone."""
        found = await self._sql.fetchval(
            """INSERT INTO upload_intent (id, collection_id)
            SELECT gen_random_uuid(), id FROM collection WHERE id = $1 AND deleted_at IS NULL RETURNING id""",
            collection_id,
        )
        return str(found) if found else None

    async def take_upload(self, upload_id: UUID, collection_id: UUID, max_age_ms: int) -> bool:
        """Delete the intent; False when there is none that young."""
        taken = await self._sql.fetchval(
            """DELETE FROM upload_intent WHERE id = $1 AND collection_id = $2
                AND created_at > clock_timestamp() - make_interval(secs => $3::float8 / 1000) RETURNING id""",
            upload_id,
            collection_id,
            max_age_ms,
        )
        return taken is not None

    async def lock_version(self, collection_id: UUID) -> int | None:
        """The current version number of a live collection, locked against other publishes and deletion."""
        version: int | None = await self._sql.fetchval(
            "SELECT version FROM collection WHERE id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE", collection_id
        )
        return version

    async def lock_log_head(self, collection_id: UUID) -> int:
        """The head offset."""
        head: int | None = await self._sql.fetchval(
            "SELECT head_offset FROM log_head WHERE collection_id = $1 FOR NO KEY UPDATE", collection_id
        )
        if head is None:
            raise Internal(f"collection {collection_id} has no log head")
        return head

    async def find_version(self, collection_id: UUID, version: int | None) -> PublishedVersion | None:
        """A version of a live collection; None for ``version`` means the current one. Version 0 always exists."""
        row = await self._sql.fetchrow(
            f"""SELECT c.id AS collection_id, coalesce($2, c.version) AS version, v.manifest_key, v.compacted_offset,
                v.compacted_bytes, {AGE_MS.format(since="v.created_at")} AS age_ms
            FROM collection c LEFT JOIN collection_version v
                ON v.collection_id = c.id AND v.version = coalesce($2, c.version)
            WHERE c.id = $1 AND c.deleted_at IS NULL""",
            collection_id,
            version,
        )
        if row is None or (row["manifest_key"] is None and row["version"] != 0):
            return None
        if row["version"] == 0:
            return PublishedVersion(VersionInfo(str(collection_id), 0, "", 0), compacted_bytes=0, age_ms=0)
        return _version(row)

    async def version_at(self, collection_id: UUID, offset: int) -> VersionAt | None:
        """The newest version compacted up to ``offset`` or less, from where on the log is kept. None: no such live collection.

        A reader needs the objects of the version and the log from its compacted offset on:

        * Compacted offsets never fall from one version to the next, so the newest version at or below the offset has the least
          log to replay, and if the log from there on is trimmed, it is for every older one.
        * Rows are a run without gaps up to the current version: `GarbageStatements.drop_versions` deletes all that is below the
          oldest retained version in one statement. The retained versions are such a run too, within it. So if one of them
          covers the offset, the newest row that does is retained.
        * Rows outlive objects. Where no retained version covers the offset, the one found may have lost objects, or lose them
          any moment: a reader who misses one reports `OffsetExpired`. Once the row is gone as well, version 0 takes its place
          if the log is kept from its start: it needs no objects and has no row.
        * The trim floor spares neither all rows nor all retained versions: the log is trimmed up to the version that was
          current the trimmer's retention ago, or up to the oldest row if that is higher. While the sweeper's retention (15
          minutes by default) is the shorter (the trimmer's is 24 hours), all retained versions are at or above the floor, so an
          offset can be read for as long as a version that covers it is retained. With other settings the floor decides.

        Floor and rows are of one instant, being read by one statement.
        """
        row = await self._sql.fetchrow(
            """SELECT h.trim_floor, v.version, v.manifest_key, v.compacted_offset, CASE WHEN h.trim_floor > 0 THEN (
                SELECT coalesce(min(compacted_offset), h.trim_floor) FROM collection_version
                WHERE collection_id = c.id AND compacted_offset >= h.trim_floor) ELSE 0 END AS oldest_offset
            FROM collection c JOIN log_head h ON h.collection_id = c.id LEFT JOIN LATERAL (
                SELECT version, manifest_key, compacted_offset FROM collection_version
                WHERE collection_id = c.id AND compacted_offset BETWEEN h.trim_floor AND $2
                ORDER BY version DESC LIMIT 1) v ON true
            WHERE c.id = $1 AND c.deleted_at IS NULL""",
            collection_id,
            min(offset, _HIGHEST_OFFSET),
        )
        if row is None:
            return None
        info = VersionInfo(str(collection_id), 0, "", 0) if row["trim_floor"] == 0 else None
        if row["version"] is not None:
            info = VersionInfo(str(collection_id), row["version"], row["manifest_key"], row["compacted_offset"])
        return VersionAt(info, row["oldest_offset"])

    async def bytes_at(self, collection_id: UUID, end_offset: int) -> int | None:
        """``total_bytes`` of the entry that ends exactly there, or None."""
        found: int | None = await self._sql.fetchval(
            "SELECT total_bytes FROM log_entry WHERE collection_id = $1 AND end_offset = $2", collection_id, end_offset
        )
        return found

    async def insert_version(self, collection_id: UUID, version: PublishedVersion) -> None:
        """Make it the current one; the collection must be locked."""
        await self._sql.execute(
            """WITH made AS (
                INSERT INTO collection_version (collection_id, version, manifest_key, compacted_offset, compacted_bytes)
                VALUES ($1, $2, $3, $4, $5))
            UPDATE collection SET version = $2 WHERE id = $1""",
            collection_id,
            version.info.version,
            version.info.manifest_key,
            version.info.compacted_offset,
            version.compacted_bytes,
        )

    async def advance_backlog(self, collection_id: UUID, compacted_offset: int) -> None:
        """Date the backlog from the first entry after the offset; the log head must be locked."""
        await self._sql.execute(
            """UPDATE log_head SET uncompacted_since = (
                SELECT committed_at FROM log_entry WHERE collection_id = $1 AND end_offset > $2
                ORDER BY end_offset LIMIT 1)
            WHERE collection_id = $1""",
            collection_id,
            compacted_offset,
        )


def _version(row: Row) -> PublishedVersion:
    return PublishedVersion(version_of(row), compacted_bytes=row["compacted_bytes"], age_ms=row["age_ms"])
