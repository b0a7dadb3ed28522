"""What the statements of `names` and `versions` have in common. A connection is known here by what it can do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

from shoal_core.contracts import Collection, Database, Json, VersionInfo
from shoal_core.errors import InvalidArgument
from shoal_core.schema import parse_schema

Row: TypeAlias = Mapping[str, Any]

COLLECTION_COLUMNS = """c.id, c.tenant, c.database_name, c.name, c.epoch, c.incarnation, c.dimension, c.space, c.shards,
    c.metadata, c.configuration, c.schema, c.version AS published_version, coalesce((SELECT published.compacted_offset
        FROM collection_version published WHERE published.collection_id = c.id AND published.version = c.version), 0)
        AS published_offset"""
AGO = "statement_timestamp() - make_interval(secs => {ms}::float8 / 1000)"
AGE_MS = "greatest(0, extract(epoch FROM statement_timestamp() - {since}) * 1000)::bigint"


class Sql(Protocol):
    """A connection, with or without a transaction around it."""

    async def fetch(self, query: str, /, *args: object) -> list[Any]: ...

    async def fetchrow(self, query: str, /, *args: object) -> Any: ...

    async def fetchval(self, query: str, /, *args: object) -> Any: ...

    async def execute(self, query: str, /, *args: object) -> Any: ...


def database_of(row: Row) -> Database:
    """From ``id, tenant, name``."""
    return Database(id=str(row["id"]), tenant=row["tenant"], name=row["name"])


def collection_of(row: Row) -> Collection:
    """From `COLLECTION_COLUMNS`. Raises `InvalidArgument` for a schema that cannot be read: what stored it is to be rolled back."""
    metadata = row["metadata"]
    return Collection(
        id=str(row["id"]),
        tenant=row["tenant"],
        database=row["database_name"],
        name=row["name"],
        epoch=row["epoch"],
        incarnation=str(row["incarnation"]),
        space=row["space"],
        shards=row["shards"],
        dimension=row["dimension"],
        metadata=None if metadata is None else json.loads(metadata),
        configuration=json.loads(row["configuration"]),
        schema=parse_schema(json.loads(row["schema"])),
        version=row["published_version"],
        compacted_offset=row["published_offset"],
    )


def version_of(row: Row) -> VersionInfo:
    """From ``collection_id, version, manifest_key, compacted_offset``."""
    return VersionInfo(str(row["collection_id"]), row["version"], row["manifest_key"], row["compacted_offset"])


def dump_json(value: Json | None, field: str) -> str | None:
    """JSON text as it will come back: key order and number forms included (the column is ``json``, not ``jsonb``)."""
    if value is None:
        return None
    try:
        return json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"is not JSON: {error}", field=field) from error
