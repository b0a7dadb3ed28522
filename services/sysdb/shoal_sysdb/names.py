"""SQL of tenants, databases and collections. Every method is one statement."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from shoal_core.contracts import Collection, Database, Json, NewCollection, Tenant
from shoal_core.errors import Internal
from shoal_core.schema import Schema
from shoal_sysdb.sql import COLLECTION_COLUMNS, Sql, collection_of, database_of, dump_json


class NameStatements:
    """Who is who. Methods that find return None for what does not exist or is deleted."""

    def __init__(self, sql: Sql) -> None:
        self._sql = sql

    # --- tenants and databases ---------------------------------------------------------------------------------------

    async def insert_tenant(self, name: str) -> bool:
        """False when it exists."""
        statement = """INSERT INTO tenant AS t (name) VALUES ($1)
            ON CONFLICT (name) DO UPDATE SET deleted_at = NULL WHERE t.deleted_at IS NOT NULL RETURNING name"""
        return await self._sql.fetchval(statement, name) is not None

    async def find_tenant(self, name: str) -> Tenant | None:
        row = await self._sql.fetchrow(
            "SELECT name, resource_name FROM tenant WHERE name = $1 AND deleted_at IS NULL", name
        )
        return Tenant(row["name"], row["resource_name"]) if row else None

    async def share_tenant(self, name: str) -> bool:
        """Whether it exists; it cannot be deleted until the transaction ends."""
        statement = "SELECT name FROM tenant WHERE name = $1 AND deleted_at IS NULL FOR SHARE"
        return await self._sql.fetchval(statement, name) is not None

    async def lock_tenant(self, name: str) -> Tenant | None:
        """The tenant, locked against changes."""
        row = await self._sql.fetchrow(
            "SELECT name, resource_name FROM tenant WHERE name = $1 AND deleted_at IS NULL FOR NO KEY UPDATE", name
        )
        return Tenant(row["name"], row["resource_name"]) if row else None

    async def find_tenant_by_resource_name(self, resource_name: str) -> str | None:
        """Its name."""
        found: str | None = await self._sql.fetchval(
            "SELECT name FROM tenant WHERE resource_name = $1 AND deleted_at IS NULL", resource_name
        )
        return found

    async def update_tenant(self, name: str, resource_name: str) -> None:
        await self._sql.execute("UPDATE tenant SET resource_name = $2 WHERE name = $1", name, resource_name)

    async def insert_database(self, tenant: str, name: str) -> Database | None:
        """None when it exists."""
        row = await self._sql.fetchrow(
            """INSERT INTO database (id, tenant, name) VALUES (gen_random_uuid(), $1, $2)
            ON CONFLICT (tenant, name) WHERE deleted_at IS NULL DO NOTHING RETURNING id, tenant, name""",
            tenant,
            name,
        )
        return database_of(row) if row else None

    async def find_database(self, tenant: str, name: str) -> Database | None:
        row = await self._sql.fetchrow(
            "SELECT id, tenant, name FROM database WHERE tenant = $1 AND name = $2 AND deleted_at IS NULL", tenant, name
        )
        return database_of(row) if row else None

    async def list_databases(self, tenant: str, limit: int, offset: int) -> list[Database]:
        rows = await self._sql.fetch(
            """SELECT id, tenant, name FROM database WHERE tenant = $1 AND deleted_at IS NULL
            ORDER BY name LIMIT $2 OFFSET $3""",
            tenant,
            limit,
            offset,
        )
        return [database_of(row) for row in rows]

    async def share_database(self, tenant: str, name: str) -> UUID | None:
        """Its id; it cannot be deleted until the transaction ends."""
        found: UUID | None = await self._sql.fetchval(
            "SELECT id FROM database WHERE tenant = $1 AND name = $2 AND deleted_at IS NULL FOR SHARE", tenant, name
        )
        return found

    async def lock_database(self, tenant: str, name: str) -> UUID | None:
        """Its id; no collection is created in it until the transaction ends."""
        found: UUID | None = await self._sql.fetchval(
            "SELECT id FROM database WHERE tenant = $1 AND name = $2 AND deleted_at IS NULL FOR NO KEY UPDATE",
            tenant,
            name,
        )
        return found

    async def lock_databases(self) -> list[UUID]:
        """Ids of all databases, locked in ascending id; no collection is created in them until the transaction ends."""
        rows = await self._sql.fetch("SELECT id FROM database WHERE deleted_at IS NULL ORDER BY id FOR NO KEY UPDATE")
        return [row["id"] for row in rows]

    async def delete_databases(self, database_ids: Sequence[UUID]) -> None:
        await self._sql.execute("UPDATE database SET deleted_at = clock_timestamp() WHERE id = ANY ($1)", database_ids)

    async def lock_tenants(self) -> list[str]:
        """Names of all tenants, locked in order of name; no database is created in them until the transaction ends."""
        rows = await self._sql.fetch("SELECT name FROM tenant WHERE deleted_at IS NULL ORDER BY name FOR NO KEY UPDATE")
        return [row["name"] for row in rows]

    async def delete_tenants(self, names: Sequence[str], kept: str) -> None:
        """All of them but ``kept``, which loses its resource name. Their rows stay, as their deleted databases name them."""
        await self._sql.execute(
            """UPDATE tenant SET resource_name = NULL, deleted_at = CASE WHEN name <> $2 THEN clock_timestamp() END
            WHERE name = ANY ($1)""",
            names,
            kept,
        )

    # --- collections -------------------------------------------------------------------------------------------------

    async def insert_collection(self, database_id: UUID, new: NewCollection) -> Collection | None:
        """None when the name is taken; waits for whoever is about to take it."""
        row = await self._sql.fetchrow(
            f"""INSERT INTO collection AS c (id, database_id, tenant, database_name, name, incarnation, dimension, space,
                shards, metadata, configuration, schema)
            VALUES (gen_random_uuid(), $1, $2, $3, $4, gen_random_uuid(), $5, $6, $7, $8, $9, $10)
            ON CONFLICT (database_id, name) WHERE deleted_at IS NULL DO NOTHING RETURNING {COLLECTION_COLUMNS}""",
            database_id,
            new.tenant,
            new.database,
            new.name,
            new.dimension,
            new.space,
            new.shards,
            dump_json(new.metadata, "metadata"),
            dump_json(new.configuration, "configuration"),
            dump_json(new.schema.to_json(), "schema"),
        )
        return collection_of(row) if row else None

    async def insert_log_head(self, collection_id: UUID) -> None:
        await self._sql.execute("INSERT INTO log_head (collection_id) VALUES ($1)", collection_id)

    async def find_collection(self, tenant: str, database: str, name: str) -> Collection | None:
        row = await self._sql.fetchrow(
            f"""SELECT {COLLECTION_COLUMNS} FROM collection c JOIN database d ON d.id = c.database_id
            WHERE d.tenant = $1 AND d.name = $2 AND d.deleted_at IS NULL AND c.name = $3 AND c.deleted_at IS NULL""",
            tenant,
            database,
            name,
        )
        return collection_of(row) if row else None

    async def find_collection_by_id(self, collection_id: UUID) -> Collection | None:
        row = await self._sql.fetchrow(
            f"SELECT {COLLECTION_COLUMNS} FROM collection c WHERE id = $1 AND deleted_at IS NULL", collection_id
        )
        return collection_of(row) if row else None

    async def list_collections(self, tenant: str, database: str, limit: int, offset: int) -> list[Collection]:
        rows = await self._sql.fetch(
            f"""SELECT {COLLECTION_COLUMNS} FROM collection c JOIN database d ON d.id = c.database_id
            WHERE d.tenant = $1 AND d.name = $2 AND d.deleted_at IS NULL AND c.deleted_at IS NULL
            ORDER BY c.created_at, c.id LIMIT $3 OFFSET $4""",
            tenant,
            database,
            limit,
            offset,
        )
        return [collection_of(row) for row in rows]

    async def count_collections(self, tenant: str, database: str) -> int:
        count: int = await self._sql.fetchval(
            """SELECT count(*) FROM collection c JOIN database d ON d.id = c.database_id
            WHERE d.tenant = $1 AND d.name = $2 AND d.deleted_at IS NULL AND c.deleted_at IS NULL""",
            tenant,
            database,
        )
        return count

    async def lock_collection(self, collection_id: UUID) -> Collection | None:
        """The live collection, locked against everything, appends included. None when it is gone."""
        row = await self._sql.fetchrow(
            f"SELECT {COLLECTION_COLUMNS} FROM collection c WHERE id = $1 AND deleted_at IS NULL FOR UPDATE",
            collection_id,
        )
        return collection_of(row) if row else None

    async def lock_collections_of(self, database_ids: Sequence[UUID]) -> list[UUID]:
        """Ids of the live collections of databases, locked in ascending id."""
        rows = await self._sql.fetch(
            "SELECT id FROM collection WHERE database_id = ANY ($1) AND deleted_at IS NULL ORDER BY id FOR UPDATE",
            database_ids,
        )
        return [row["id"] for row in rows]

    async def lock_log_heads(self, collection_ids: Sequence[UUID]) -> None:
        await self._sql.execute(
            "SELECT FROM log_head WHERE collection_id = ANY ($1) ORDER BY collection_id FOR UPDATE", collection_ids
        )

    async def update_collection(
        self,
        collection_id: UUID,
        name: str | None,
        metadata: Json | None,
        configuration: Json | None,
        schema: Schema | None,
    ) -> Collection:
        """Replace what is not None and grow the epoch; the row must be locked."""
        row = await self._sql.fetchrow(
            f"""UPDATE collection AS c SET name = coalesce($2, name), metadata = coalesce($3, metadata),
                configuration = coalesce($4, configuration), schema = coalesce($5, schema), epoch = epoch + 1
            WHERE id = $1 RETURNING {COLLECTION_COLUMNS}""",
            collection_id,
            name,
            dump_json(metadata, "metadata"),
            dump_json(configuration, "configuration"),
            dump_json(None if schema is None else schema.to_json(), "schema"),
        )
        if row is None:
            raise Internal(f"collection {collection_id} vanished under its lock")
        return collection_of(row)

    async def delete_collections(self, collection_ids: Sequence[UUID]) -> None:
        """Mark as deleted; rows and log heads must be locked. What they hold is left to garbage collection."""
        await self._sql.execute(
            "UPDATE collection SET deleted_at = clock_timestamp(), epoch = epoch + 1 WHERE id = ANY ($1)",
            collection_ids,
        )

    async def forget_backlog(self, collection_ids: Sequence[UUID]) -> None:
        """Take log heads off the scheduler's index."""
        await self._sql.execute(
            "UPDATE log_head SET uncompacted_since = NULL WHERE collection_id = ANY ($1)", collection_ids
        )
