"""SQL of attached functions. Every method is one statement. A function of which a collection is deleted does not exist."""

from __future__ import annotations

import json
from uuid import UUID

from shoal_core.contracts import AttachedFunction, DueFunction, NewFunction
from shoal_sysdb.sql import AGE_MS, Row, Sql, dump_json

_COLUMNS = """f.id, f.name, f.function, i.tenant, i.database_name, i.database_id, f.input_collection_id,
    f.output_collection_id, o.name AS output_collection, f.params, f.completion_offset, f.failures, f.last_error"""
_LIVE = """attached_function f JOIN collection i ON i.id = f.input_collection_id AND i.deleted_at IS NULL
    JOIN collection o ON o.id = f.output_collection_id AND o.deleted_at IS NULL"""


class FunctionStatements:
    """Who computes what of which collection."""

    def __init__(self, sql: Sql) -> None:
        self._sql = sql

    async def find(self, collection_id: UUID, name: str) -> AttachedFunction | None:
        row = await self._sql.fetchrow(
            f"SELECT {_COLUMNS} FROM {_LIVE} WHERE f.input_collection_id = $1 AND f.name = $2", collection_id, name
        )
        return _function(row) if row else None

    async def count(self, collection_id: UUID) -> int:
        """How many functions read a collection."""
        count: int = await self._sql.fetchval(
            f"SELECT count(*) FROM {_LIVE} WHERE f.input_collection_id = $1", collection_id
        )
        return count

    async def is_output(self, collection_id: UUID) -> bool:
        """Whether a function writes into a collection."""
        return bool(
            await self._sql.fetchval(
                f"SELECT EXISTS (SELECT FROM {_LIVE} WHERE f.output_collection_id = $1)", collection_id
            )
        )

    async def drop_dead(self, collection_id: UUID) -> None:
        """Forget functions of the collection whose output is gone, so that their names are free."""
        await self._sql.execute(
            """DELETE FROM attached_function f USING collection o
            WHERE f.input_collection_id = $1 AND o.id = f.output_collection_id AND o.deleted_at IS NOT NULL""",
            collection_id,
        )

    async def insert(self, collection_id: UUID, output_id: UUID, new: NewFunction) -> bool:
        """False when the name is taken."""
        inserted = await self._sql.fetchval(
            """INSERT INTO attached_function (name, function, input_collection_id, output_collection_id, params)
            VALUES ($1, $2, $3, $4, $5) ON CONFLICT (input_collection_id, name) DO NOTHING RETURNING id""",
            new.name,
            new.function,
            collection_id,
            output_id,
            dump_json(new.params, "params"),
        )
        return inserted is not None

    async def delete(self, collection_id: UUID, name: str) -> bool:
        """False when there is none."""
        deleted = await self._sql.fetchval(
            f"""WITH found AS (SELECT f.id FROM {_LIVE} WHERE f.input_collection_id = $1 AND f.name = $2)
            DELETE FROM attached_function f USING found WHERE f.id = found.id RETURNING f.id""",
            collection_id,
            name,
        )
        return deleted is not None

    async def due(self, limit: int, skip: int) -> list[DueFunction]:
        """Least recently run first. Overdue since the oldest version known that goes beyond what is covered."""
        rows = await self._sql.fetch(
            f"""SELECT {_COLUMNS}, v.compacted_offset, {AGE_MS.format(since="oldest.created_at")} AS overdue_ms
            FROM {_LIVE}
            JOIN collection_version v ON v.collection_id = i.id AND v.version = i.version
            CROSS JOIN LATERAL (SELECT min(created_at) AS created_at FROM collection_version
                WHERE collection_id = i.id AND compacted_offset > f.completion_offset) oldest
            WHERE v.compacted_offset > f.completion_offset
                AND (f.retry_at IS NULL OR f.retry_at <= statement_timestamp())
            ORDER BY f.ran_at, f.id LIMIT $1 OFFSET $2""",
            limit,
            skip,
        )
        return [DueFunction(_function(row), row["compacted_offset"], row["overdue_ms"]) for row in rows]

    async def complete(self, collection_id: UUID, function_id: UUID, offset: int) -> bool:
        """False when it does not exist."""
        done = await self._sql.fetchval(
            f"""UPDATE attached_function u SET completion_offset = greatest(u.completion_offset, $3), failures = 0,
                last_error = '', retry_at = NULL, ran_at = clock_timestamp()
            FROM {_LIVE} WHERE u.id = f.id AND f.id = $2 AND f.input_collection_id = $1 RETURNING u.id""",
            collection_id,
            function_id,
            offset,
        )
        return done is not None

    async def fail(
        self, collection_id: UUID, function_id: UUID, error: str, retry_ms: int, longest_retry_ms: int
    ) -> bool:
        """False when it does not exist."""
        done = await self._sql.fetchval(
            f"""UPDATE attached_function u SET failures = u.failures + 1, last_error = $3, ran_at = clock_timestamp(),
                retry_at = clock_timestamp()
                    + make_interval(secs => least($4::float8 * 2 ^ least(u.failures, 30), $5::float8) / 1000)
            FROM {_LIVE} WHERE u.id = f.id AND f.id = $2 AND f.input_collection_id = $1 RETURNING u.id""",
            collection_id,
            function_id,
            error,
            retry_ms,
            longest_retry_ms,
        )
        return done is not None


def _function(row: Row) -> AttachedFunction:
    return AttachedFunction(
        id=str(row["id"]),
        name=row["name"],
        function=row["function"],
        tenant=row["tenant"],
        database=row["database_name"],
        database_id=str(row["database_id"]),
        input_collection_id=str(row["input_collection_id"]),
        output_collection_id=str(row["output_collection_id"]),
        output_collection=row["output_collection"],
        params=json.loads(row["params"]),
        completion_offset=row["completion_offset"],
        failures=row["failures"],
        last_error=row["last_error"],
    )
