"""sysdb's half of the contract about credentials: `shoal_core.contracts.Access` on Postgres.

Time is the database's, so all frontends agree on when a credential ends. Every method is one statement.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence

from shoal_core.contracts import Credential, CredentialKind, Grant, NewCredential, Role, ValidCredential
from shoal_core.errors import AlreadyExists, InvalidArgument, NotFound
from shoal_storage.postgres import Pool, connected, transaction
from shoal_sysdb.sql import Row, Sql

_TIME_MS = "(extract(epoch FROM {0}) * 1000)::bigint AS {0}_ms"
_COLUMNS = ", ".join(
    ["kind", "id", "label", "grants", *(_TIME_MS.format(name) for name in ("created_at", "expires_at", "revoked_at"))]
)
_INSERT = f"""INSERT INTO credential (kind, id, label, grants, verifier, expires_at)
VALUES ($1, $2, $3, $4, $5, clock_timestamp() + $6::bigint * interval '1 millisecond')
ON CONFLICT DO NOTHING RETURNING {_COLUMNS}"""
_FIND = """SELECT kind, id, grants, verifier,
    ceil(extract(epoch FROM expires_at - statement_timestamp()) * 1000)::bigint AS expires_in_ms
FROM credential
WHERE kind = $1 AND id = $2 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > statement_timestamp())"""
_LIST = f"""SELECT {_COLUMNS} FROM credential WHERE (id, kind) > ($1, $2) ORDER BY id, kind LIMIT $3"""
_REVOKE = """UPDATE credential SET revoked_at = coalesce(revoked_at, clock_timestamp())
WHERE kind = $1 AND id = $2 RETURNING id"""


class AccessService:
    """Implements `Access`. Any number of them may share a database."""

    def __init__(self, pool: Pool, *, acquire_timeout_ms: int = 5_000) -> None:
        self._pool = pool
        self._acquire_timeout_ms = acquire_timeout_ms

    async def create_credential(self, new: NewCredential) -> Credential:
        """See `Access.create_credential`."""
        if new.ttl_ms is not None and new.ttl_ms < 1:
            raise InvalidArgument(f"{new.ttl_ms} is below 1", field="ttl_ms")
        grants = json.dumps([[grant.role, grant.tenant, grant.database, grant.collection] for grant in new.grants])
        async with transaction(self._pool, acquire_timeout_ms=self._acquire_timeout_ms) as connection:
            sql: Sql = connection
            row = await sql.fetchrow(_INSERT, new.kind, new.id, new.label, grants, new.verifier, new.ttl_ms)
        if row is None:
            raise AlreadyExists(f"{new.kind} {new.id!r} exists, or was there before", field="id")
        return _credential_of(row)

    async def find_credential(self, kind: CredentialKind, credential_id: str) -> ValidCredential:
        """See `Access.find_credential`."""
        async with self._connection() as sql:
            row = await sql.fetchrow(_FIND, kind, credential_id)
        if row is None:
            raise _missing(kind, credential_id)
        return ValidCredential(
            CredentialKind(row["kind"]), row["id"], _grants_of(row), row["verifier"], row["expires_in_ms"]
        )

    async def list_credentials(self, *, after: str, limit: int) -> list[Credential]:
        """See `Access.list_credentials`."""
        credential_id, _, kind = after.rpartition("/")
        async with self._connection() as sql:
            rows: Sequence[Row] = await sql.fetch(_LIST, credential_id, kind, limit)
        return [_credential_of(row) for row in rows]

    async def revoke_credential(self, kind: CredentialKind, credential_id: str) -> None:
        """See `Access.revoke_credential`."""
        async with self._connection() as sql:
            if await sql.fetchval(_REVOKE, kind, credential_id) is None:
                raise _missing(kind, credential_id)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Sql]:
        async with connected(self._pool, acquire_timeout_ms=self._acquire_timeout_ms) as connection:
            yield connection


def _credential_of(row: Row) -> Credential:
    return Credential(
        kind=CredentialKind(row["kind"]),
        id=row["id"],
        label=row["label"],
        grants=_grants_of(row),
        created_at_ms=row["created_at_ms"],
        expires_at_ms=row["expires_at_ms"],
        revoked_at_ms=row["revoked_at_ms"],
    )


def _grants_of(row: Row) -> tuple[Grant, ...]:
    return tuple(Grant(Role(role), *scope) for role, *scope in json.loads(row["grants"]))


def _missing(kind: CredentialKind, credential_id: str) -> NotFound:
    return NotFound(f"no {kind} {credential_id!r}", field="id")
