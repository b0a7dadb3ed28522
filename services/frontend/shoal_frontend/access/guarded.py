"""The public API as one principal sees it: every verb checks before it delegates.

What a principal may not see is answered as what does not exist, in the same words; what it sees and may not do is
`PermissionDenied`. Names decide about collections. A collection that is given by its id is looked up once and its name then sent along
with the id, so that a rename is noticed where a stale epoch is: a remembered name is never trusted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.consistency import STRONG, Consistency
from shoal_core.contracts import (
    Answer,
    Collection,
    CollectionRef,
    Condition,
    CountAnswer,
    Database,
    EncodedAnswer,
    Include,
    IndexingStatus,
    Json,
    NewCollection,
    Tenant,
    WriteResult,
)
from shoal_core.errors import NotFound, PermissionDenied
from shoal_core.filters import Filter
from shoal_core.limits import Limits
from shoal_core.ranking import Search
from shoal_core.schema import Schema
from shoal_frontend.access.gate import Gate
from shoal_frontend.access.principal import Principal
from shoal_frontend.access.verbs import VERBS, Permission
from shoal_frontend.api import Api
from shoal_frontend.validate import check_page

T = TypeVar("T")

_IDS_ONLY = Include()
_READ, _EDIT = Permission.READ, Permission.EDIT


class KnownNames:
    """Names of collections by reference, for principals who may not see all of a database; least recently used first out."""

    def __init__(self, capacity: int = 10_000) -> None:
        self._capacity = capacity
        self._names: OrderedDict[CollectionRef, str] = OrderedDict()

    def get(self, ref: CollectionRef) -> str | None:
        """The name as it was, if it is known."""
        name = self._names.get(ref)
        if name is not None:
            self._names.move_to_end(ref)
        return name

    def learn(self, ref: CollectionRef, name: str) -> None:
        """Remember it."""
        self._names[ref] = name
        self._names.move_to_end(ref)
        while len(self._names) > self._capacity:
            self._names.popitem(last=False)

    def forget(self, ref: CollectionRef) -> None:
        """Look it up again next time."""
        self._names.pop(ref, None)


@dataclass(frozen=True, slots=True)
class Guarded:
    """Implements `Api`; see the module. Cheap: one is made per request.

    ``names`` are shared by all principals of a process.
    """

    api: Api
    principal: Principal
    gate: Gate
    names: KnownNames
    limits: Limits = Limits()

    # --- tenants and databases

    async def create_tenant(self, name: str) -> None:
        self._check_owner("create_tenant")
        await self._pass("create_tenant", name, lambda: self.api.create_tenant(name))

    async def get_tenant(self, name: str) -> Tenant:
        if not self.principal.sees_tenant(name):
            raise _no_tenant(name)
        return await self._pass("get_tenant", name, lambda: self.api.get_tenant(name), _no_tenant(name))

    async def name_tenant(self, name: str, resource_name: str) -> None:
        self._check_owner("name_tenant")
        await self._pass("name_tenant", name, lambda: self.api.name_tenant(name, resource_name))

    async def create_database(self, tenant: str, name: str) -> Database:
        self._check_tenant("create_database", tenant)

        async def create() -> Database:
            await self.gate.check_new_database(self.api, tenant)
            return await self.api.create_database(tenant, name)

        return await self._pass("create_database", tenant, create, _no_tenant(tenant))

    async def get_database(self, tenant: str, name: str) -> Database:
        missing = _no_database(tenant, name)
        if not self.principal.sees_database(tenant, name):
            raise missing
        return await self._pass("get_database", tenant, lambda: self.api.get_database(tenant, name), missing)

    async def list_databases(self, tenant: str, *, limit: int = 100, offset: int = 0) -> list[Database]:
        check_page(limit, offset, self.limits.page_size)
        if not self.principal.sees_tenant(tenant):
            return []

        async def visible() -> list[Database]:
            if self.principal.sees_all_databases(tenant):
                return await self.api.list_databases(tenant, limit=limit, offset=offset)
            return await self._visible(
                lambda size, at: self.api.list_databases(tenant, limit=size, offset=at),
                lambda database: self.principal.sees_database(tenant, database.name),
                limit,
                offset,
            )

        return await self._pass("list_databases", tenant, visible)

    async def delete_database(self, tenant: str, name: str) -> None:
        missing = _no_database(tenant, name)
        if not self.principal.sees_database(tenant, name):
            raise missing
        self._check_tenant("delete_database", tenant)
        await self._pass("delete_database", tenant, lambda: self.api.delete_database(tenant, name), missing)

    # --- collections

    async def create_collection(self, new: NewCollection, *, get_or_create: bool = False) -> tuple[Collection, bool]:
        """Who may only read gets a collection that is there, too, where that will do."""
        tenant, database, missing = new.tenant, new.database, _no_database(new.tenant, new.database)
        if not self.principal.sees_database(tenant, database):
            raise missing
        if not self.principal.may(_EDIT, tenant, database, new.name):
            if not (get_or_create and self.principal.may(_READ, tenant, database, new.name)):
                raise _not_allowed("create_collection")
            try:
                return await self.get_collection(CollectionRef(tenant, database, new.name)), False
            except NotFound:
                raise _not_allowed("create_collection") from None
        return await self._pass("create_collection", tenant, lambda: self._create(new, get_or_create), missing)

    async def _create(self, new: NewCollection, get_or_create: bool) -> tuple[Collection, bool]:
        if get_or_create and not self.gate.unlimited:
            try:
                return await self.api.get_collection(CollectionRef(new.tenant, new.database, new.name)), False
            except NotFound:
                pass
        await self.gate.check_new_collection(self.api, new)
        return await self.api.create_collection(new, get_or_create=get_or_create)

    async def get_collection(self, ref: CollectionRef) -> Collection:
        return await self._on("get_collection", ref, lambda found: self.api.get_collection(found))

    async def get_collection_by_resource_name(self, resource_name: str, database: str, name: str) -> Collection:
        """Whose tenant it is shows only when it is found, so it counts as a request of the principal's own."""

        async def find() -> Collection | None:
            found = await self.api.get_collection_by_resource_name(resource_name, database, name)
            return found if self.principal.may(_READ, found.tenant, found.database, found.name) else None

        missing = NotFound(f"no collection {resource_name}:{database}:{name}", field="name")
        found = await self._pass("get_collection_by_resource_name", self.principal.tenant(), find, missing)
        if found is None:
            raise missing
        return found

    async def list_collections(
        self, tenant: str, database: str, *, limit: int = 100, offset: int = 0
    ) -> list[Collection]:
        check_page(limit, offset, self.limits.page_size)
        if not self.principal.sees_database(tenant, database):
            return []
        return await self._pass(
            "list_collections", tenant, lambda: self._list_collections(tenant, database, limit, offset)
        )

    async def count_collections(self, tenant: str, database: str) -> int:
        if not self.principal.sees_database(tenant, database):
            return 0

        async def count() -> int:
            if self.principal.may_all(_READ, tenant, database):
                return await self.api.count_collections(tenant, database)
            return len(await self._list_collections(tenant, database, None, 0))

        return await self._pass("count_collections", tenant, count)

    async def _list_collections(self, tenant: str, database: str, limit: int | None, offset: int) -> list[Collection]:
        if limit is not None and self.principal.may_all(_READ, tenant, database):
            return await self.api.list_collections(tenant, database, limit=limit, offset=offset)
        return await self._visible(
            lambda size, at: self.api.list_collections(tenant, database, limit=size, offset=at),
            lambda collection: self.principal.may(_READ, tenant, database, collection.name),
            limit,
            offset,
        )

    async def modify_collection(
        self,
        ref: CollectionRef,
        *,
        name: str | None = None,
        metadata: Json | None = None,
        configuration: Json | None = None,
        schema: Schema | None = None,
    ) -> Collection:
        async def modify(found: CollectionRef) -> Collection:
            self._check_new_name("modify_collection", ref, name)
            changed = await self.api.modify_collection(
                found, name=name, metadata=metadata, configuration=configuration, schema=schema
            )
            self.names.forget(ref)
            return changed

        return await self._on("modify_collection", ref, modify)

    async def delete_collection(self, ref: CollectionRef) -> None:
        await self._on("delete_collection", ref, lambda found: self.api.delete_collection(found))

    async def fork_collection(self, ref: CollectionRef, name: str) -> Collection:
        """Who may read the one and could make the other."""

        async def fork(found: CollectionRef) -> Collection:
            self._check_new_name("fork_collection", ref, name)
            await self.gate.check_new_collection(self.api, NewCollection(ref.tenant, ref.database, name))
            return await self.api.fork_collection(found, name)

        return await self._on("fork_collection", ref, fork)

    async def count_forks(self, ref: CollectionRef) -> int:
        return await self._on("count_forks", ref, lambda found: self.api.count_forks(found))

    # --- writes

    async def write(
        self,
        ref: CollectionRef,
        batch: pa.RecordBatch,
        *,
        idempotency_key: str = "",
        condition: Condition | None = None,
        outcomes: bool = False,
    ) -> WriteResult:
        async def write(found: CollectionRef) -> WriteResult:
            self.gate.quotas(ref.tenant).check_batch(batch)
            return await self.api.write(
                found, batch, idempotency_key=idempotency_key, condition=condition, outcomes=outcomes
            )

        return await self._on("write", ref, write)

    async def delete_where(
        self,
        ref: CollectionRef,
        *,
        ids: Sequence[str] | None,
        where: Filter | None,
        limit: int | None = None,
        idempotency_key: str = "",
        allow_scan: bool = False,
    ) -> WriteResult:
        return await self._on(
            "delete_where",
            ref,
            lambda found: self.api.delete_where(
                found, ids=ids, where=where, limit=limit, idempotency_key=idempotency_key, allow_scan=allow_scan
            ),
        )

    # --- reads

    async def get(
        self,
        ref: CollectionRef,
        *,
        ids: Sequence[str] | None = None,
        where: Filter | None = None,
        limit: int | None = None,
        offset: int = 0,
        include: Include = _IDS_ONLY,
        consistency: Consistency = STRONG,
        explain: bool = False,
        allow_scan: bool = False,
        cursor: str | None = None,
    ) -> Answer:
        async def get(found: CollectionRef) -> Answer:
            self.gate.quotas(ref.tenant).check_get(ids, limit)
            return await self.api.get(
                found,
                ids=ids,
                where=where,
                limit=limit,
                offset=offset,
                include=include,
                consistency=consistency,
                explain=explain,
                allow_scan=allow_scan,
                cursor=cursor,
            )

        return await self._on("get", ref, get)

    async def get_encoded(
        self,
        ref: CollectionRef,
        *,
        ids: Sequence[str] | None,
        where: Filter | None,
        limit: int | None,
        offset: int,
        include: Include,
        consistency: Consistency,
        explain: bool,
        allow_scan: bool,
        cursor: str | None,
    ) -> Answer | EncodedAnswer:
        async def get(found: CollectionRef) -> Answer | EncodedAnswer:
            self.gate.quotas(ref.tenant).check_get(ids, limit)
            return await self.api.get_encoded(
                found,
                ids=ids,
                where=where,
                limit=limit,
                offset=offset,
                include=include,
                consistency=consistency,
                explain=explain,
                allow_scan=allow_scan,
                cursor=cursor,
            )

        return await self._on("get_encoded", ref, get)

    async def query(
        self,
        ref: CollectionRef,
        vectors: npt.NDArray[np.float32],
        k: int,
        *,
        ids: Sequence[str] | None = None,
        where: Filter | None = None,
        include: Include = _IDS_ONLY,
        consistency: Consistency = STRONG,
        ef: int = 0,
        exact: bool = False,
        explain: bool = False,
        allow_scan: bool = False,
    ) -> Answer:
        async def query(found: CollectionRef) -> Answer:
            self.gate.quotas(ref.tenant).check_query(vectors, k)
            return await self.api.query(
                found,
                vectors,
                k,
                ids=ids,
                where=where,
                include=include,
                consistency=consistency,
                ef=ef,
                exact=exact,
                explain=explain,
                allow_scan=allow_scan,
            )

        return await self._on("query", ref, query)

    async def query_encoded(
        self,
        ref: CollectionRef,
        vectors: npt.NDArray[np.float32],
        k: int,
        *,
        ids: Sequence[str] | None,
        where: Filter | None,
        include: Include,
        consistency: Consistency,
        ef: int,
        exact: bool,
        explain: bool,
        allow_scan: bool,
    ) -> Answer | EncodedAnswer:
        async def query(found: CollectionRef) -> Answer | EncodedAnswer:
            self.gate.quotas(ref.tenant).check_query(vectors, k)
            return await self.api.query_encoded(
                found,
                vectors,
                k,
                ids=ids,
                where=where,
                include=include,
                consistency=consistency,
                ef=ef,
                exact=exact,
                explain=explain,
                allow_scan=allow_scan,
            )

        return await self._on("query_encoded", ref, query)

    async def search(
        self,
        ref: CollectionRef,
        searches: Sequence[Search],
        *,
        consistency: Consistency = STRONG,
        exact: bool = False,
        explain: bool = False,
        allow_scan: bool = False,
    ) -> list[Answer]:
        async def search(found: CollectionRef) -> list[Answer]:
            self.gate.quotas(ref.tenant).check_searches(searches)
            return await self.api.search(
                found, searches, consistency=consistency, exact=exact, explain=explain, allow_scan=allow_scan
            )

        return await self._on("search", ref, search)

    async def count(
        self,
        ref: CollectionRef,
        *,
        where: Filter | None = None,
        consistency: Consistency = STRONG,
        explain: bool = False,
        allow_scan: bool = False,
    ) -> CountAnswer:
        return await self._on(
            "count",
            ref,
            lambda found: self.api.count(
                found, where=where, consistency=consistency, explain=explain, allow_scan=allow_scan
            ),
        )

    async def indexing_status(self, ref: CollectionRef) -> IndexingStatus:
        return await self._on("indexing_status", ref, lambda found: self.api.indexing_status(found))

    async def reset(self) -> None:
        self._check_owner("reset")
        await self.api.reset()

    async def status(self) -> Json:
        self._check_owner("status")
        return await self.api.status()

    # --- the checks

    async def _on(self, verb: str, ref: CollectionRef, call: Callable[[CollectionRef], Awaitable[T]]) -> T:
        """``call`` with the collection, if the principal may do ``verb`` with it. Raises `NotFound`, `PermissionDenied`."""
        permission, missing = VERBS[verb].permission, _no_collection(ref)
        if not self.principal.sees_database(ref.tenant, ref.database):
            raise missing

        async def checked() -> T:
            if ref.id and not self.principal.may_all(permission, ref.tenant, ref.database):
                return await self._by_id(verb, ref, call)
            if not ref.id:
                self._check_name(verb, ref, ref.name)
            return await call(ref)

        return await self._pass(verb, ref.tenant, checked, missing)

    async def _by_id(self, verb: str, ref: CollectionRef, call: Callable[[CollectionRef], Awaitable[T]]) -> T:
        """``call`` with id and name. `NotFound` means that nothing was done yet, see `Names`: then the name is looked up again."""
        name = self.names.get(ref)
        if name is not None:
            try:
                self._check_name(verb, ref, name)
                return await call(replace(ref, name=name))
            except (NotFound, PermissionDenied):
                self.names.forget(ref)
        found = await self.api.get_collection(ref)
        self._check_name(verb, ref, found.name)
        self.names.learn(ref, found.name)
        return await call(replace(ref, name=found.name))

    def _check_name(self, verb: str, ref: CollectionRef, name: str) -> None:
        if self.principal.may(VERBS[verb].permission, ref.tenant, ref.database, name):
            return
        if self.principal.may(_READ, ref.tenant, ref.database, name):
            raise _not_allowed(verb)
        raise _no_collection(ref)

    def _check_new_name(self, verb: str, ref: CollectionRef, name: str | None) -> None:
        """A collection may only get a name with which the principal could have made it."""
        if name is not None and not self.principal.may(_EDIT, ref.tenant, ref.database, name):
            raise _not_allowed(verb)

    def _check_tenant(self, verb: str, tenant: str) -> None:
        if not self.principal.sees_tenant(tenant):
            raise _no_tenant(tenant)
        if not self.principal.may_tenant(VERBS[verb].permission, tenant):
            raise _not_allowed(verb)

    def _check_owner(self, verb: str) -> None:
        if not self.principal.owns():
            raise _not_allowed(verb)

    async def _pass(
        self, verb: str, tenant: str, call: Callable[[], Awaitable[T]], missing: NotFound | None = None
    ) -> T:
        """``call()`` through the gate; what is not found is ``missing``, whatever the reason."""
        try:
            return await self.gate.passed(self.principal.id, tenant, VERBS[verb].load, call)
        except NotFound:
            if missing is None:
                raise
            raise missing from None

    async def _visible(
        self,
        page: Callable[[int, int], Awaitable[list[T]]],
        visible: Callable[[T], bool],
        limit: int | None,
        offset: int,
    ) -> list[T]:
        """The page at ``offset`` of what is visible; all of it without a limit. It looks at everything before it."""
        found: list[T] = []
        enough = None if limit is None else offset + limit
        size, at = self.limits.page_size, 0
        while enough is None or len(found) < enough:
            part = await page(size, at)
            found += filter(visible, part)
            at += len(part)
            if len(part) < size:
                break
        return found[offset:enough]


def _no_tenant(name: str) -> NotFound:
    return NotFound(f"no tenant {name!r}", field="tenant")


def _no_database(tenant: str, name: str) -> NotFound:
    return NotFound(f"no database {name!r} in tenant {tenant!r}", field="database")


def _no_collection(ref: CollectionRef) -> NotFound:
    what = ref.id or ref.name
    return NotFound(f"no collection {what!r} in database {ref.database!r} of tenant {ref.tenant!r}", field="collection")


def _not_allowed(verb: str) -> PermissionDenied:
    return PermissionDenied(f"these credentials do not allow {verb.removesuffix('_encoded').replace('_', ' ')} here")
