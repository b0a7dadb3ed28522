"""Forks: collections that begin as what another one is at a moment.

A fork shares the objects of its source's current version, by a version row of its own that names the same manifest, and gets a
copy of the log after it, from which back-pressure keeps it short; payloads that are objects are shared too. The source's row is locked
against appends and publishes meanwhile, so version and head belong together. From then on neither knows of the other, but for the
sweeper: what a collection's forks, and forks of those, may still read is not garbage (`borrowing_versions`, `borrowed_payloads`).
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from shoal_core.contracts import VersionInfo
from shoal_core.errors import FailedPrecondition, Internal, ResourceExhausted
from shoal_sysdb.checks import name_taken, no_collection
from shoal_sysdb.sql import AGO, Sql, version_of

_HASH_SIZE_BYTES = 8  # of a record's id, which an entry holds beside its payload


@dataclass(frozen=True, slots=True)
class ForkLimits:
    """What may be forked.

    Attributes:
        forks: in a tree. The sweeper reads the manifests of all of them.
        tail_size_bytes: of the source's log after its current version, as far as Postgres holds it: appends wait while it is copied.
        retry_ms: hint to who would copy more; compaction shortens it.
    """

    forks: int = 256
    tail_size_bytes: int = 32 << 20
    retry_ms: int = 1_000


@dataclass(frozen=True, slots=True)
class Source:
    """What is forked, while its row is locked. ``forks``: in its tree, those not yet purged. ``tail_size_bytes``: to be copied."""

    name: str
    forks: int
    tail_records: int
    tail_size_bytes: int


async def fork(sql: ForkStatements, source_id: UUID, name: str, database: str, limits: ForkLimits) -> UUID:
    """Fork a collection within a transaction that holds its database; the fork's id.

    Raises `NotFound`, `AlreadyExists`, `FailedPrecondition` and `ResourceExhausted` for the limits.
    """
    if not await sql.share_source(source_id):
        raise no_collection(str(source_id))
    source = await sql.measure(source_id)
    if source.forks >= limits.forks:
        raise FailedPrecondition(
            f"the tree of collection {source.name!r} has {source.forks} forks, which is the most; delete some, or copy the records"
        )
    if source.tail_size_bytes > limits.tail_size_bytes:
        raise ResourceExhausted(
            f"{source.tail_size_bytes} bytes of the log are not compacted, at most {limits.tail_size_bytes} are copied; try again",
            retry_after_ms=limits.retry_ms,
        )
    fork_id = await sql.insert_fork(source_id, name)
    if fork_id is None:
        raise name_taken(name, database)
    await sql.copy_version(source_id, fork_id)
    await sql.copy_head(source_id, fork_id)
    copied = await sql.copy_tail(source_id, fork_id)
    if copied != source.tail_records:
        raise Internal(f"the log of collection {source_id} has a gap: {copied} of {source.tail_records} records")
    return fork_id


class ForkStatements:
    """What forks are made of, and what keeps the objects they share. Every method is one statement."""

    def __init__(self, sql: Sql) -> None:
        self._sql = sql

    async def share_source(self, source_id: UUID) -> bool:
        """Whether it is live; nobody appends to it, publishes or deletes it until the transaction ends."""
        statement = "SELECT id FROM collection WHERE id = $1 AND deleted_at IS NULL FOR SHARE"
        return await self._sql.fetchval(statement, source_id) is not None

    async def measure(self, source_id: UUID) -> Source:
        """The source must be locked."""
        row = await self._sql.fetchrow(
            """SELECT c.name, h.head_offset - coalesce(v.compacted_offset, 0) AS tail_records,
                (SELECT count(*) FROM collection other
                    WHERE other.ancestors @> ARRAY[coalesce(c.ancestors[1], c.id)] AND other.ancestors <> '{}') AS forks,
                (SELECT coalesce(sum(CASE WHEN object_key IS NULL THEN size_bytes ELSE 0 END
                        + $2::bigint * (end_offset - first_offset + 1)), 0)::bigint
                    FROM log_entry WHERE collection_id = c.id AND end_offset > coalesce(v.compacted_offset, 0)) AS tail_size_bytes
            FROM collection c JOIN log_head h ON h.collection_id = c.id
            LEFT JOIN collection_version v ON v.collection_id = c.id AND v.version = c.version
            WHERE c.id = $1""",
            source_id,
            _HASH_SIZE_BYTES,
        )
        return Source(row["name"], row["forks"], row["tail_records"], row["tail_size_bytes"])

    async def insert_fork(self, source_id: UUID, name: str) -> UUID | None:
        """None when the name is taken; waits for whoever is about to take it.

        Of its source's ancestors it gets the root, by which a tree is known, and those that are not purged: others lend nothing.
        """
        made: UUID | None = await self._sql.fetchval(
            """INSERT INTO collection (id, database_id, tenant, database_name, name, incarnation, dimension, space, shards,
                metadata, configuration, schema, version, ancestors)
            SELECT gen_random_uuid(), database_id, tenant, database_name, $2, gen_random_uuid(), dimension, space, shards,
                metadata, configuration, schema, version, ancestors[1:1] || ARRAY(
                    SELECT known.id FROM unnest(ancestors[2:]) WITH ORDINALITY AS ancestor (id, place)
                    JOIN collection known ON known.id = ancestor.id ORDER BY place) || id
            FROM collection WHERE id = $1
            ON CONFLICT (database_id, name) WHERE deleted_at IS NULL DO NOTHING RETURNING id""",
            source_id,
            name,
        )
        return made

    async def copy_version(self, source_id: UUID, fork_id: UUID) -> None:
        """The current one, under the number that its manifest has. Version 0 has no row."""
        await self._sql.execute(
            """INSERT INTO collection_version (collection_id, version, manifest_key, compacted_offset, compacted_bytes)
            SELECT $2, v.version, v.manifest_key, v.compacted_offset, v.compacted_bytes
            FROM collection c JOIN collection_version v ON v.collection_id = c.id AND v.version = c.version
            WHERE c.id = $1""",
            source_id,
            fork_id,
        )

    async def copy_head(self, source_id: UUID, fork_id: UUID) -> None:
        """Of the log before the version, the fork has nothing."""
        await self._sql.execute(
            """INSERT INTO log_head (collection_id, head_offset, total_bytes, set_hash, trim_floor, uncompacted_since)
            SELECT $2, h.head_offset, h.total_bytes, h.set_hash, coalesce(v.compacted_offset, 0), h.uncompacted_since
            FROM log_head h JOIN collection c ON c.id = h.collection_id
            LEFT JOIN collection_version v ON v.collection_id = c.id AND v.version = c.version
            WHERE h.collection_id = $1""",
            source_id,
            fork_id,
        )

    async def copy_tail(self, source_id: UUID, fork_id: UUID) -> int:
        """The log after the version; how many records it has."""
        copied: int = await self._sql.fetchval(
            """WITH copied AS (
                INSERT INTO log_entry (collection_id, first_offset, end_offset, committed_at, payload, object_key, size_bytes,
                    checksum, id_hashes, total_bytes, set_hash)
                SELECT $2, e.first_offset, e.end_offset, statement_timestamp(), e.payload, e.object_key, e.size_bytes,
                    e.checksum, e.id_hashes, e.total_bytes, e.set_hash
                FROM log_entry e WHERE e.collection_id = $1 AND e.end_offset > (
                    SELECT trim_floor FROM log_head WHERE collection_id = $2)
                RETURNING first_offset, end_offset
            ) SELECT coalesce(sum(end_offset - first_offset + 1), 0)::bigint FROM copied""",
            source_id,
            fork_id,
        )
        return copied

    async def count_live(self, collection_id: UUID) -> int | None:
        """Live forks in the collection's tree; None for a collection that is gone."""
        count: int | None = await self._sql.fetchval(
            """SELECT (SELECT count(*) FROM collection other WHERE other.deleted_at IS NULL AND other.ancestors <> '{}'
                AND other.ancestors @> ARRAY[coalesce(c.ancestors[1], c.id)])
            FROM collection c WHERE c.id = $1 AND c.deleted_at IS NULL""",
            collection_id,
        )
        return count

    async def borrowing_versions(
        self, collection_id: UUID, version_retention_ms: int, deleted_retention_ms: int
    ) -> list[VersionInfo]:
        """The oldest retained version of each descendant that lives, or was deleted within its retention.

        Later ones name no more of what they began with: to a version a compaction adds only objects of its own collection.
        """
        rows = await self._sql.fetch(
            f"""SELECT v.collection_id, v.version, v.manifest_key, v.compacted_offset
            FROM collection c JOIN collection_version v ON v.collection_id = c.id
            WHERE c.ancestors @> ARRAY[$1::uuid] AND c.ancestors <> '{{}}'
                AND (c.deleted_at IS NULL OR c.deleted_at > {AGO.format(ms="$3")})
                AND v.version = coalesce(
                    (SELECT max(old.version) FROM collection_version old
                        WHERE old.collection_id = c.id AND old.created_at <= {AGO.format(ms="$2")}),
                    (SELECT min(first.version) FROM collection_version first WHERE first.collection_id = c.id))""",
            collection_id,
            version_retention_ms,
            deleted_retention_ms,
        )
        return [version_of(row) for row in rows]

    async def borrowed_payloads(self, collection_id: UUID) -> list[str]:
        """Payloads of the collection's log that entries of others name."""
        rows = await self._sql.fetch(
            """SELECT DISTINCT object_key FROM log_entry
            WHERE object_key ~>=~ $2 AND object_key ~<~ $3 AND collection_id <> $1""",
            collection_id,
            f"log/{collection_id}/",
            f"log/{collection_id}0",  # the character after the slash
        )
        return [row["object_key"] for row in rows]
