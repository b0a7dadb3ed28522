"""sysdb's half of `shoal_core.contracts.Functions`, on Postgres.

Whether a function may be attached is decided under the lock of its input collection. Its output collection is always a new one, so
whether a collection is an output is settled before anybody can attach something to it.
"""

from __future__ import annotations

from uuid import UUID

from shoal_core.contracts import AttachedFunction, Collection, DueFunction, Lease, NewCollection, NewFunction
from shoal_core.contracts.functions import FUNCTIONS
from shoal_core.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from shoal_sysdb.checks import fenced, no_collection, parse_collection_id, parse_uuid
from shoal_sysdb.store import CatalogSession, PostgresCatalogStore

_LONGEST_ERROR = 500


class FunctionsService:
    """Implements `Functions`. Any number of them may share a database."""

    def __init__(self, store: PostgresCatalogStore) -> None:
        self._store = store

    async def attach_function(
        self, collection_id: str, new: NewFunction, *, limit: int
    ) -> tuple[AttachedFunction, bool]:
        """See `Functions.attach_function`."""
        wanted = parse_collection_id(collection_id)
        if new.function not in FUNCTIONS:
            raise NotFound(
                f"function not found: {new.function[:64]!r}; one of {', '.join(FUNCTIONS)}", field="function"
            )
        async with self._store.transaction() as sql:
            source, database_id = await _lock_source(sql, wanted)
            if await sql.functions.is_output(wanted):
                raise InvalidArgument("cannot attach function to an output collection", field="collection")
            await sql.functions.drop_dead(wanted)
            found = await sql.functions.find(wanted, new.name)
            if found is not None:
                check_same(found, new)
                return found, False
            if await sql.functions.count(wanted) >= limit:
                raise FailedPrecondition(f"a collection has at most {limit} functions; detach one first")
            return await _attach(sql, source, database_id, new), True

    async def get_function(self, collection_id: str, name: str) -> AttachedFunction:
        """See `Functions.get_function`."""
        async with self._store.session() as sql:
            found = await sql.functions.find(parse_collection_id(collection_id), name)
        if found is None:
            raise no_function(name)
        return found

    async def detach_function(self, collection_id: str, name: str) -> None:
        """See `Functions.detach_function`."""
        async with self._store.session() as sql:
            if not await sql.functions.delete(parse_collection_id(collection_id), name):
                raise no_function(name)

    async def due_functions(self, *, limit: int, skip: int = 0) -> list[DueFunction]:
        """See `Functions.due_functions`."""
        async with self._store.session() as sql:
            return await sql.functions.due(limit, skip)

    async def complete_function(self, lease: Lease, function_id: str, offset: int) -> None:
        """See `Functions.complete_function`."""
        wanted, known = parse_collection_id(lease.collection_id), parse_uuid(function_id)
        async with self._store.transaction() as sql:
            await _check_lease(sql, wanted, lease)
            if known is None or not await sql.functions.complete(wanted, known, offset):
                raise no_function(function_id)

    async def fail_function(
        self, lease: Lease, function_id: str, error: str, *, retry_ms: int, longest_retry_ms: int
    ) -> None:
        """See `Functions.fail_function`."""
        wanted, known = parse_collection_id(lease.collection_id), parse_uuid(function_id)
        text = error[:_LONGEST_ERROR].replace("\0", "")
        async with self._store.transaction() as sql:
            await _check_lease(sql, wanted, lease)
            if known is None or not await sql.functions.fail(wanted, known, text, retry_ms, longest_retry_ms):
                raise no_function(function_id)


async def _lock_source(sql: CatalogSession, collection_id: UUID) -> tuple[Collection, UUID]:
    """The input collection, locked, and its database, which is not deleted meanwhile. Locks go by the order of `store`."""
    found = await sql.names.find_collection_by_id(collection_id)
    database_id = None if found is None else await sql.names.share_database(found.tenant, found.database)
    source = None if database_id is None else await sql.names.lock_collection(collection_id)
    if database_id is None or source is None:
        raise no_collection(str(collection_id))
    return source, database_id


async def _attach(sql: CatalogSession, source: Collection, database_id: UUID, new: NewFunction) -> AttachedFunction:
    source_id = UUID(source.id)
    output = await sql.names.insert_collection(database_id, output_of(source, new))
    if output is None:
        raise output_taken(new)
    await sql.names.insert_log_head(UUID(output.id))
    inserted = await sql.functions.insert(source_id, UUID(output.id), new)
    attached = await sql.functions.find(source_id, new.name) if inserted else None
    if attached is None:
        raise Unavailable(f"the function {new.name!r} is just being ended; try again")
    return attached


async def _check_lease(sql: CatalogSession, collection_id: UUID, lease: Lease) -> None:
    if await sql.versions.share_lease_epoch(collection_id, lease.kind) != lease.epoch:
        raise fenced(lease)


def output_of(source: Collection, new: NewFunction) -> NewCollection:
    """The output collection: beside its input; its records have the embedding ``[0.0]``."""
    return NewCollection(source.tenant, source.database, new.output_collection, dimension=1)


def check_same(found: AttachedFunction, new: NewFunction) -> None:
    """Raise `AlreadyExists` when the name has another function."""
    same = (found.function, found.output_collection, dict(found.params)) == (
        new.function,
        new.output_collection,
        dict(new.params),
    )
    if not same:
        raise AlreadyExists(
            f"collection already has an attached function: name={found.name}, function={found.function}, "
            f"output_collection={found.output_collection}",
            field="name",
        )


def output_taken(new: NewFunction) -> AlreadyExists:
    """Another collection has the name of the output."""
    return AlreadyExists(f"Output collection [{new.output_collection}] already exists", field="output_collection")


def no_function(name: str) -> NotFound:
    """The collection has no such function."""
    return NotFound(f"Attached Function [{name[:600]}] does not exist", field="function")
