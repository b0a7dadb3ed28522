"""The catalog in memory, with a clock of the test's choice; held to the same contract cases as sysdb."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from shoal_core.contracts import (
    Backlog,
    BorrowedObjects,
    Collection,
    Database,
    ExpiredUpload,
    GarbageCollection,
    GarbageRoots,
    Json,
    Lease,
    NewCollection,
    PublishRequest,
    Tenant,
    VersionInfo,
)
from shoal_core.errors import (
    AlreadyExists,
    FailedPrecondition,
    Fenced,
    InvalidArgument,
    NotFound,
    UploadExpired,
    VersionConflict,
)
from shoal_core.ports import Clock, Random
from shoal_core.schema import Schema, check_change
from shoal_testing.fake_garbage import borrowing_versions, expired_uploads, find_garbage, find_roots, purge
from shoal_testing.fake_state import (
    CollectionState,
    Hook,
    LeaseState,
    UploadState,
    as_json,
    as_schema,
    check_new,
    check_ttl,
)
from shoal_testing.virtual_clock import SeededRandom

DEFAULT_TENANT = "default_tenant"
DEFAULT_DATABASE = "default_database"
_RELEASED = float("-inf")


class MemoryCatalog:
    """A `Catalog` that lives as long as it does, with the default tenant and database in it.

    Args:
        clock: dates leases, uploads and appends.
        random: for ids.
        max_upload_age_ms: publish refuses uploads that began longer ago.
        max_forks: in a tree.

    Attributes:
        before, after: called with the method's name around `backlog`, `claim`, `renew`, `begin_upload`, `publish`,
            `get_version` and `version_at`, to raise what a service far away might: `Unavailable` before, `OutcomeUnknown` after.
        payload_keys: payloads that an entry names; the log beside it keeps all payloads in itself, so only tests put any here.
    """

    def __init__(
        self,
        clock: Clock,
        random: Random | None = None,
        *,
        max_upload_age_ms: int = 15 * 60 * 1000,
        max_forks: int = 256,
    ) -> None:
        self.before: Hook = lambda name: None
        self.after: Hook = lambda name: None
        self.payload_keys: set[str] = set()
        self._clock = clock
        self._random = random or SeededRandom()
        self._max_upload_age_ms = max_upload_age_ms
        self._max_forks = max_forks
        self._databases: dict[tuple[str, str], Database] = {}
        self._tenants = {DEFAULT_TENANT: Tenant(DEFAULT_TENANT)}
        self._states: dict[str, CollectionState] = {}
        self._leases: dict[tuple[str, str], LeaseState] = {}
        self._uploads: dict[str, UploadState] = {}
        self._add_database(DEFAULT_TENANT, DEFAULT_DATABASE)

    def now_ms(self) -> float:
        """The clock that everything here is dated with."""
        return self._clock.monotonic() * 1000

    def state(self, collection_id: str) -> CollectionState:
        """The state of a live collection, for the log and for tests. Raises `NotFound`."""
        state = self._states.get(collection_id)
        if state is None or not state.alive:
            raise NotFound(f"no collection {collection_id!r}", field="collection_id")
        return state

    def any_state(self, collection_id: str) -> CollectionState:
        """Also of a deleted one. Raises `NotFound`."""
        state = self._states.get(collection_id)
        if state is None:
            raise NotFound(f"no collection {collection_id!r}", field="collection_id")
        return state

    def lease_epoch(self, collection_id: str, kind: str) -> int:
        """The epoch of the newest lease of a live collection, 0 where there was none. Raises `NotFound`."""
        self.state(collection_id)
        held = self._leases.get((collection_id, kind))
        return held.epoch if held else 0

    def new_id(self) -> str:
        """The text of a new UUID."""
        return self._uuid()

    # --- tenants and databases ---------------------------------------------------------------------------------------

    async def create_tenant(self, name: str) -> None:
        """See `Catalog.create_tenant`."""
        if name in self._tenants:
            raise AlreadyExists(f"tenant {name!r} exists", field="name")
        self._tenants[name] = Tenant(name)

    async def get_tenant(self, name: str) -> Tenant:
        """See `Catalog.get_tenant`."""
        if name not in self._tenants:
            raise NotFound(f"no tenant {name!r}", field="tenant")
        return self._tenants[name]

    async def name_tenant(self, name: str, resource_name: str) -> None:
        """See `Catalog.name_tenant`."""
        if not resource_name:
            raise InvalidArgument("is empty", field="resource_name")
        tenant = await self.get_tenant(name)
        holder = self._of_resource_name(resource_name)
        if holder == name:
            return
        if tenant.resource_name is not None or holder is not None:
            raise AlreadyExists(
                f"{name!r} has a resource name, or another has {resource_name!r}", field="resource_name"
            )
        self._tenants[name] = Tenant(name, resource_name)

    def _of_resource_name(self, resource_name: str) -> str | None:
        return next((item.name for item in self._tenants.values() if item.resource_name == resource_name), None)

    async def create_database(self, tenant: str, name: str) -> Database:
        """See `Catalog.create_database`."""
        await self.get_tenant(tenant)
        if (tenant, name) in self._databases:
            raise AlreadyExists(f"database {name!r} exists in tenant {tenant!r}", field="name")
        return self._add_database(tenant, name)

    async def get_database(self, tenant: str, name: str) -> Database:
        """See `Catalog.get_database`."""
        found = self._databases.get((tenant, name))
        if found is None:
            raise NotFound(f"no database {name!r} in tenant {tenant!r}", field="database")
        return found

    async def list_databases(self, tenant: str, *, limit: int, offset: int) -> list[Database]:
        """See `Catalog.list_databases`; empty for an unknown tenant."""
        found = sorted((item for item in self._databases.values() if item.tenant == tenant), key=lambda item: item.name)
        return found[offset : offset + limit]

    async def delete_database(self, tenant: str, name: str) -> None:
        """See `Catalog.delete_database`."""
        await self.get_database(tenant, name)
        for state in self._live(tenant, name):
            state.delete(self.now_ms())
        del self._databases[tenant, name]

    async def reset(self) -> None:
        """See `Catalog.reset`."""
        for state in self._states.values():
            if state.alive:
                state.delete(self.now_ms())
        self._databases.clear()
        self._tenants = {DEFAULT_TENANT: Tenant(DEFAULT_TENANT)}
        self._add_database(DEFAULT_TENANT, DEFAULT_DATABASE)

    def _add_database(self, tenant: str, name: str) -> Database:
        made = self._databases[tenant, name] = Database(self._uuid(), tenant, name)
        return made

    # --- collections -------------------------------------------------------------------------------------------------

    async def create_collection(self, new: NewCollection, *, get_or_create: bool) -> tuple[Collection, bool]:
        """See `Catalog.create_collection`. An existing collection is returned as it is, whatever ``new`` says."""
        check_new(new)
        await self.get_database(new.tenant, new.database)
        existing = self._named(new.tenant, new.database, new.name)
        if existing is not None and get_or_create:
            return existing.collection, False
        if existing is not None:
            raise _name_taken(new.name)
        made = Collection(
            id=self._uuid(),
            tenant=new.tenant,
            database=new.database,
            name=new.name,
            epoch=1,
            incarnation=self._uuid(),
            space=new.space,
            shards=new.shards,
            dimension=new.dimension,
            metadata=as_json(new.metadata, "metadata"),
            configuration=as_json(new.configuration, "configuration") or {},
            schema=as_schema(new.schema),
        )
        self._states[made.id] = CollectionState(made, [VersionInfo(made.id, 0, "", 0)], [self.now_ms()])
        return made, True

    async def get_collection(self, tenant: str, database: str, name: str) -> Collection:
        """See `Catalog.get_collection`."""
        found = self._named(tenant, database, name)
        if found is None:
            raise NotFound(f"no collection {name!r} in database {database!r} of tenant {tenant!r}", field="name")
        return found.collection

    async def get_collection_by_id(self, collection_id: str) -> Collection:
        """See `Catalog.get_collection_by_id`."""
        return self.state(collection_id).collection

    async def get_collection_by_resource_name(self, resource_name: str, database: str, name: str) -> Collection:
        """See `Catalog.get_collection_by_resource_name`."""
        tenant = self._of_resource_name(resource_name)
        if tenant is None:
            raise NotFound(f"no tenant has the resource name {resource_name!r}", field="resource_name")
        return await self.get_collection(tenant, database, name)

    async def fork_collection(self, collection_id: str, name: str) -> Collection:
        """See `Catalog.fork_collection`. Any length of log is copied."""
        source = self.state(collection_id)
        made = source.collection
        root = (*source.ancestors, made.id)[0]
        if sum(root in state.ancestors for state in self._states.values()) >= self._max_forks:
            raise FailedPrecondition(f"the tree of {made.name!r} has {self._max_forks} forks, which is the most")
        if self._named(made.tenant, made.database, name) is not None:
            raise _name_taken(name)
        fork = source.fork(self._uuid(), self._uuid(), name, self.now_ms())
        self._states[fork.collection.id] = fork
        return fork.collection

    async def count_forks(self, collection_id: str) -> int:
        """See `Catalog.count_forks`."""
        root = (*self.state(collection_id).ancestors, collection_id)[0]
        return sum(state.alive and root in state.ancestors for state in self._states.values())

    async def list_collections(self, tenant: str, database: str, *, limit: int, offset: int) -> list[Collection]:
        """See `Catalog.list_collections`; empty for an unknown database."""
        return [state.collection for state in self._live(tenant, database)[offset : offset + limit]]

    async def count_collections(self, tenant: str, database: str) -> int:
        """See `Catalog.count_collections`."""
        return len(self._live(tenant, database))

    async def modify_collection(
        self,
        collection_id: str,
        *,
        name: str | None = None,
        metadata: Json | None = None,
        configuration: Json | None = None,
        schema: Schema | None = None,
    ) -> Collection:
        """See `Catalog.modify_collection`."""
        state = self.state(collection_id)
        made = state.collection
        if schema is not None:
            check_change(made.schema, schema)
        if name is not None and name != made.name and self._named(made.tenant, made.database, name) is not None:
            raise _name_taken(name)
        kept = as_json(configuration, "configuration")
        state.collection = replace(
            made,
            name=made.name if name is None else name,
            metadata=made.metadata if metadata is None else as_json(metadata, "metadata"),
            configuration=made.configuration if kept is None else kept,
            schema=made.schema if schema is None else as_schema(schema),
            epoch=made.epoch + 1,
        )
        return state.collection

    async def delete_collection(self, collection_id: str) -> None:
        """See `Catalog.delete_collection`."""
        self.state(collection_id).delete(self.now_ms())

    def _live(self, tenant: str, database: str) -> list[CollectionState]:
        """Live collections of a database in order of creation."""
        wanted = (tenant, database)
        states = (state for state in self._states.values() if state.alive)
        return [state for state in states if (state.collection.tenant, state.collection.database) == wanted]

    def _named(self, tenant: str, database: str, name: str) -> CollectionState | None:
        return next((state for state in self._live(tenant, database) if state.collection.name == name), None)

    # --- jobs --------------------------------------------------------------------------------------------------------

    async def backlog(self, *, limit: int, min_records: int, min_age_ms: int) -> list[Backlog]:
        """See `Catalog.backlog`. Tenants take turns at filling the page; the page is oldest first."""
        self.before("backlog")
        found = (state.backlog(self.now_ms()) for state in self._states.values())
        due = [item for item in found if item is not None and _is_due(item, min_records, min_age_ms)]
        due.sort(key=lambda item: (-item.age_ms, item.collection.id))
        turns: dict[str, int] = {}
        ranked = []
        for item in due:
            turn = turns[item.collection.tenant] = turns.get(item.collection.tenant, 0) + 1
            ranked.append((turn, -item.age_ms, item.collection.id, item))
        page = sorted(ranked, key=lambda entry: entry[:3])[:limit]
        self.after("backlog")
        return [item for *_, item in sorted(page, key=lambda entry: entry[1:3])]

    async def claim(self, collection_id: str, kind: str, holder: str, *, ttl_ms: int) -> Lease | None:
        """See `Catalog.claim`. None for a collection that is gone, too: there is nothing to do there."""
        self.before("claim")
        check_ttl(ttl_ms)
        state = self._states.get(collection_id)
        held = self._leases.get((collection_id, kind))
        if state is None or not state.alive or (held is not None and held.expires_ms > self.now_ms()):
            return None
        epoch = 1 if held is None else held.epoch + 1
        self._leases[collection_id, kind] = LeaseState(holder, epoch, self.now_ms() + ttl_ms)
        self.after("claim")
        return Lease(collection_id, kind, holder, epoch)

    async def renew(self, lease: Lease, *, ttl_ms: int) -> None:
        """See `Catalog.renew`. A lease that has run out may be renewed until another claims; a released one may not."""
        self.before("renew")
        check_ttl(ttl_ms)
        held = self._leases.get((lease.collection_id, lease.kind))
        if held is None or held.epoch != lease.epoch or held.expires_ms == _RELEASED:
            raise _fenced(lease)
        held.expires_ms = self.now_ms() + ttl_ms
        self.after("renew")

    async def release(self, lease: Lease) -> None:
        """See `Catalog.release`."""
        held = self._leases.get((lease.collection_id, lease.kind))
        if held is not None and held.epoch == lease.epoch:
            held.expires_ms = _RELEASED

    async def begin_upload(self, collection_id: str) -> str:
        """See `Catalog.begin_upload`. Raises `NotFound`."""
        self.before("begin_upload")
        self.state(collection_id)
        upload_id = self._uuid()
        self._uploads[upload_id] = UploadState(collection_id, self.now_ms())
        self.after("begin_upload")
        return upload_id

    # --- versions ----------------------------------------------------------------------------------------------------

    async def publish(self, request: PublishRequest) -> VersionInfo:
        """See `Catalog.publish`. Repeating a publish that has succeeded succeeds, whatever happened since."""
        self.before("publish")
        info = self._publish(request)
        self.after("publish")
        return info

    def _publish(self, request: PublishRequest) -> VersionInfo:
        lease = request.lease
        if not request.manifest_key:
            raise InvalidArgument("is empty", field="manifest_key")
        state = self.state(lease.collection_id)
        version = request.expected_version + 1
        done = state.find(version) if version > 0 else None
        if done is not None and done.manifest_key == request.manifest_key:
            return done
        held = self._leases.get((lease.collection_id, lease.kind))
        if held is None or held.epoch != lease.epoch:
            raise _fenced(lease)
        if state.current.version != request.expected_version:
            raise VersionConflict(
                f"the current version is {state.current.version}, not {request.expected_version}; rebase the manifest on it"
            )
        upload = self._uploads.get(request.upload_id)
        oldest_ms = self.now_ms() - self._max_upload_age_ms
        if upload is None or upload.collection_id != lease.collection_id or upload.began_ms <= oldest_ms:
            raise UploadExpired(
                f"no upload {request.upload_id!r} of the last {self._max_upload_age_ms} ms; begin another and upload again",
                field="upload_id",
            )
        state.check_compactable(request.compacted_offset)
        del self._uploads[request.upload_id]
        info = VersionInfo(lease.collection_id, version, request.manifest_key, request.compacted_offset)
        state.publish(info, self.now_ms())
        return info

    async def get_version(self, collection_id: str, version: int | None = None) -> VersionInfo:
        """See `Catalog.get_version`."""
        self.before("get_version")
        state = self.state(collection_id)
        wanted = state.current.version if version is None else version
        found = state.find(wanted)
        if found is None:
            raise NotFound(f"no version {version} of collection {collection_id}")
        self.after("get_version")
        return found

    async def version_at(self, collection_id: str, offset: int) -> VersionInfo:
        """See `Catalog.version_at`."""
        self.before("version_at")
        if offset < 0:
            raise InvalidArgument(f"{offset} is negative", field="offset")
        found = self.state(collection_id).version_at(offset)
        self.after("version_at")
        return found

    # --- garbage collection ------------------------------------------------------------------------------------------

    async def expired_uploads(self, *, limit: int) -> list[ExpiredUpload]:
        """See `Catalog.expired_uploads`."""
        return expired_uploads(self._uploads, self.now_ms() - 2 * self._max_upload_age_ms)[:limit]

    async def drop_uploads(self, upload_ids: Sequence[str]) -> None:
        """See `Catalog.drop_uploads`."""
        expired = {upload.id for upload in expired_uploads(self._uploads, self.now_ms() - 2 * self._max_upload_age_ms)}
        for upload_id in expired.intersection(upload_ids):
            del self._uploads[upload_id]

    async def collections_with_garbage(
        self,
        *,
        after: str,
        limit: int,
        version_retention_ms: int,
        deleted_retention_ms: int,
        everything: bool = False,
    ) -> list[GarbageCollection]:
        """See `Catalog.collections_with_garbage`."""
        now_ms = self.now_ms()
        found = find_garbage(self._states, now_ms - version_retention_ms, now_ms - deleted_retention_ms, everything)
        return [item for item in found if item.collection_id > after][:limit]

    async def garbage_roots(
        self, collection_id: str, upload_ids: Sequence[str], *, version_retention_ms: int
    ) -> GarbageRoots:
        """See `Catalog.garbage_roots`."""
        cutoff_ms = self.now_ms() - version_retention_ms
        return find_roots(self.state(collection_id), cutoff_ms, self._uploads.keys() & set(upload_ids))

    async def borrowed_objects(
        self, collection_id: str, *, version_retention_ms: int, deleted_retention_ms: int
    ) -> BorrowedObjects:
        """See `Catalog.borrowed_objects`. No fork names a payload here."""
        now_ms = self.now_ms()
        cutoffs = now_ms - version_retention_ms, now_ms - deleted_retention_ms
        return BorrowedObjects(borrowing_versions(self._states.values(), collection_id, *cutoffs), frozenset())

    async def needed_payloads(self, keys: Sequence[str]) -> frozenset[str]:
        """See `Catalog.needed_payloads`."""
        return frozenset(key for key in keys if key in self.payload_keys or key.rpartition("/")[2] in self._uploads)

    async def drop_versions(self, collection_id: str, *, below: int, version_retention_ms: int) -> int:
        """See `Catalog.drop_versions`."""
        state = self.any_state(collection_id)
        before = max(state.oldest, 1)
        state.oldest = max(before, min(below, state.oldest_retained(self.now_ms() - version_retention_ms)))
        return state.oldest - before

    async def purge_collection(self, collection_id: str, *, deleted_retention_ms: int, limit: int) -> bool:
        """See `Catalog.purge_collection`."""
        return purge(self._states, collection_id, self.now_ms() - deleted_retention_ms, limit)

    def _uuid(self) -> str:
        return str(UUID(bytes=self._random.token(), version=4))


def _is_due(item: Backlog, min_records: int, min_age_ms: int) -> bool:
    return item.head_offset - item.compacted_offset >= min_records or item.age_ms >= min_age_ms


def _name_taken(name: str) -> AlreadyExists:
    return AlreadyExists(f"collection {name!r} exists", field="name")


def _fenced(lease: Lease) -> Fenced:
    return Fenced(f"lease epoch {lease.epoch} of {lease.kind} on {lease.collection_id} is over; stop this job")
