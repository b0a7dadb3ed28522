"""The public API as one principal sees it: every verb checks before it delegates.

What a principal may not see is answered as what does not exist, in the same words; what it sees and may not do is
`PermissionDenied`. Names decide about collections. A collection that is given by its id is looked up once and its name then sent along
with the id, so that a rename is noticed where a stale epoch is: a remembered name is never trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.consistency import STRONG, Consistency
from shoal_core.contracts import (
    Answer,
    AttachedFunction,
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
    NewFunction,
    Tenant,
    WriteResult,
)
from shoal_core.errors import NotFound
from shoal_core.filters import Filter
from shoal_core.ranking import Search
from shoal_core.schema import Schema
from shoal_frontend.access.checks import Checks, no_database, no_tenant, not_allowed
from shoal_frontend.access.gate import Gate
from shoal_frontend.access.principal import Principal
from shoal_frontend.access.verbs import Permission
from shoal_frontend.api import Api
from shoal_frontend.validate import check_page

T = TypeVar("T")

_IDS_ONLY = Include()
_READ, _EDIT = Permission.READ, Permission.EDIT


@dataclass(frozen=True, slots=True)
class Guarded:
    """Implements `Api`; see the module. Cheap: one is made per request."""

    api: Api
    principal: Principal
    gate: Gate
    checks: Checks

    # --- tenants and databases

    async def create_tenant(self, name: str) -> None:
        self.checks.owner("create_tenant", name)
        await self.checks.passed("create_tenant", CollectionRef(name, ""), lambda: self.api.create_tenant(name))

    async def get_tenant(self, name: str) -> Tenant:
        where = CollectionRef(name, "")
        if not self.principal.sees_tenant(name):
            raise self.checks.refused("get_tenant", where, no_tenant(name))
        return await self.checks.passed("get_tenant", where, lambda: self.api.get_tenant(name), lambda: no_tenant(name))

    async def name_tenant(self, name: str, resource_name: str) -> None:
        self.checks.owner("name_tenant", name)
        await self.checks.passed(
            "name_tenant",
            CollectionRef(name, ""),
            lambda: self.api.name_tenant(name, resource_name),
            detail=resource_name,
        )

    async def create_database(self, tenant: str, name: str) -> Database:
        self.checks.tenant("create_database", tenant)

        async def create() -> Database:
            await self.gate.check_new_database(self.api, tenant)
            return await self.api.create_database(tenant, name)

        return await self.checks.passed(
            "create_database", CollectionRef(tenant, name), create, lambda: no_tenant(tenant)
        )

    async def get_database(self, tenant: str, name: str) -> Database:
        where = CollectionRef(tenant, name)
        if not self.principal.sees_database(tenant, name):
            raise self.checks.refused("get_database", where, no_database(tenant, name))
        return await self.checks.passed(
            "get_database", where, lambda: self.api.get_database(tenant, name), lambda: no_database(tenant, name)
        )

    async def list_databases(self, tenant: str, *, limit: int = 100, offset: int = 0) -> list[Database]:
        check_page(limit, offset, self.checks.limits.page_size)
        where = CollectionRef(tenant, "")
        if not self.principal.sees_tenant(tenant):
            self.checks.refused("list_databases", where, no_tenant(tenant))
            return []

        async def visible() -> list[Database]:
            if self.principal.sees_all_databases(tenant):
                return await self.api.list_databases(tenant, limit=limit, offset=offset)
            return await self.checks.visible(
                lambda size, at: self.api.list_databases(tenant, limit=size, offset=at),
                lambda database: self.principal.sees_database(tenant, database.name),
                limit,
                offset,
            )

        return await self.checks.passed("list_databases", where, visible)

    async def delete_database(self, tenant: str, name: str) -> None:
        where = CollectionRef(tenant, name)
        if not self.principal.sees_database(tenant, name):
            raise self.checks.refused("delete_database", where, no_database(tenant, name))
        self.checks.tenant("delete_database", tenant)
        await self.checks.passed(
            "delete_database",
            where,
            lambda: self.api.delete_database(tenant, name),
            lambda: no_database(tenant, name),
        )

    # --- collections

    async def create_collection(self, new: NewCollection, *, get_or_create: bool = False) -> tuple[Collection, bool]:
        """Who may only read gets a collection that is there, too, where that will do."""
        tenant, database = new.tenant, new.database
        ref = CollectionRef(tenant, database, new.name)
        if not self.principal.sees_database(tenant, database):
            raise self.checks.refused("create_collection", ref, no_database(tenant, database))
        if not self.principal.may(_EDIT, tenant, database, new.name):
            if not (get_or_create and self.principal.may(_READ, tenant, database, new.name)):
                raise self.checks.refused("create_collection", ref, not_allowed("create_collection"))
            try:
                return await self.get_collection(ref), False
            except NotFound:
                raise self.checks.refused("create_collection", ref, not_allowed("create_collection")) from None
        return await self.checks.passed(
            "create_collection",
            ref,
            lambda: self._create(new, get_or_create),
            lambda: no_database(tenant, database),
        )

    async def _create(self, new: NewCollection, get_or_create: bool) -> tuple[Collection, bool]:
        if get_or_create and not self.gate.unlimited:
            try:
                return await self.api.get_collection(CollectionRef(new.tenant, new.database, new.name)), False
            except NotFound:
                pass
        await self.gate.check_new_collection(self.api, new)
        return await self.api.create_collection(new, get_or_create=get_or_create)

    async def get_collection(self, ref: CollectionRef) -> Collection:
        return await self.checks.on("get_collection", ref, lambda found: self.api.get_collection(found))

    async def get_collection_by_resource_name(self, resource_name: str, database: str, name: str) -> Collection:
        """Whose tenant it is shows only when it is found, so it counts as a request of the principal's own."""

        async def find() -> Collection | None:
            found = await self.api.get_collection_by_resource_name(resource_name, database, name)
            return found if self.principal.may(_READ, found.tenant, found.database, found.name) else None

        def missing() -> NotFound:
            return NotFound(f"no collection {resource_name}:{database}:{name}", field="name")

        found = await self.checks.passed(
            "get_collection_by_resource_name", CollectionRef(self.principal.tenant(), database, name), find, missing
        )
        if found is None:
            where = CollectionRef(resource_name, database, name)
            raise self.checks.refused("get_collection_by_resource_name", where, missing())
        return found

    async def list_collections(
        self, tenant: str, database: str, *, limit: int = 100, offset: int = 0
    ) -> list[Collection]:
        check_page(limit, offset, self.checks.limits.page_size)
        where = CollectionRef(tenant, database)
        if not self.principal.sees_database(tenant, database):
            self.checks.refused("list_collections", where, no_database(tenant, database))
            return []
        return await self.checks.passed(
            "list_collections", where, lambda: self._list_collections(tenant, database, limit, offset)
        )

    async def count_collections(self, tenant: str, database: str) -> int:
        where = CollectionRef(tenant, database)
        if not self.principal.sees_database(tenant, database):
            self.checks.refused("count_collections", where, no_database(tenant, database))
            return 0

        async def count() -> int:
            if self.principal.may_all(_READ, tenant, database):
                return await self.api.count_collections(tenant, database)
            return len(await self._list_collections(tenant, database, None, 0))

        return await self.checks.passed("count_collections", where, count)

    async def _list_collections(self, tenant: str, database: str, limit: int | None, offset: int) -> list[Collection]:
        if limit is not None and self.principal.may_all(_READ, tenant, database):
            return await self.api.list_collections(tenant, database, limit=limit, offset=offset)
        return await self.checks.visible(
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
            self.checks.new_name("modify_collection", ref, name)
            changed = await self.api.modify_collection(
                found, name=name, metadata=metadata, configuration=configuration, schema=schema
            )
            self.checks.names.forget(ref)
            return changed

        return await self.checks.on("modify_collection", ref, modify, detail=name or "")

    async def delete_collection(self, ref: CollectionRef) -> None:
        await self.checks.on("delete_collection", ref, lambda found: self.api.delete_collection(found))

    async def fork_collection(self, ref: CollectionRef, name: str) -> Collection:
        """Who may read the one and could make the other."""

        async def fork(found: CollectionRef) -> Collection:
            self.checks.new_name("fork_collection", ref, name)
            await self.gate.check_new_collection(self.api, NewCollection(ref.tenant, ref.database, name))
            return await self.api.fork_collection(found, name)

        return await self.checks.on("fork_collection", ref, fork, detail=name)

    async def count_forks(self, ref: CollectionRef) -> int:
        return await self.checks.on("count_forks", ref, lambda found: self.api.count_forks(found))

    # --- functions

    async def attach_function(self, ref: CollectionRef, new: NewFunction) -> tuple[AttachedFunction, bool]:
        """Who may change the one and could make the other."""

        async def attach(found: CollectionRef) -> tuple[AttachedFunction, bool]:
            self.checks.new_name("attach_function", ref, new.output_collection)
            await self.gate.check_new_collection(
                self.api, NewCollection(ref.tenant, ref.database, new.output_collection)
            )
            return await self.api.attach_function(found, new)

        return await self.checks.on("attach_function", ref, attach, detail=new.name)

    async def get_function(self, ref: CollectionRef, name: str) -> AttachedFunction:
        return await self.checks.on("get_function", ref, lambda found: self.api.get_function(found, name))

    async def detach_function(self, ref: CollectionRef, name: str, *, delete_output: bool = False) -> None:
        async def detach(found: CollectionRef) -> None:
            if delete_output:
                function = await self.api.get_function(found, name)
                self.checks.new_name("detach_function", ref, function.output_collection)
            await self.api.detach_function(found, name, delete_output=delete_output)

        await self.checks.on("detach_function", ref, detach, detail=name)

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

        return await self.checks.on("write", ref, write)

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
        async def delete(found: CollectionRef) -> WriteResult:
            self.gate.quotas(ref.tenant).check_delete(ids)
            return await self.api.delete_where(
                found, ids=ids, where=where, limit=limit, idempotency_key=idempotency_key, allow_scan=allow_scan
            )

        return await self.checks.on("delete_where", ref, delete)

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

        return await self.checks.on("get", ref, get)

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

        return await self.checks.on("get_encoded", ref, get)

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
        texts: Sequence[str] | None = None,
        recall: float = 0.0,
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
                texts=texts,
                recall=recall,
            )

        return await self.checks.on("query", ref, query)

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
        texts: Sequence[str] | None = None,
        recall: float = 0.0,
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
                texts=texts,
                recall=recall,
            )

        return await self.checks.on("query_encoded", ref, query)

    async def search(
        self,
        ref: CollectionRef,
        searches: Sequence[Search],
        *,
        consistency: Consistency = STRONG,
        exact: bool = False,
        explain: bool = False,
        allow_scan: bool = False,
        recall: float = 0.0,
    ) -> list[Answer]:
        async def search(found: CollectionRef) -> list[Answer]:
            self.gate.quotas(ref.tenant).check_searches(searches)
            return await self.api.search(
                found,
                searches,
                consistency=consistency,
                exact=exact,
                explain=explain,
                allow_scan=allow_scan,
                recall=recall,
            )

        return await self.checks.on("search", ref, search)

    async def count(
        self,
        ref: CollectionRef,
        *,
        where: Filter | None = None,
        consistency: Consistency = STRONG,
        explain: bool = False,
        allow_scan: bool = False,
    ) -> CountAnswer:
        return await self.checks.on(
            "count",
            ref,
            lambda found: self.api.count(
                found, where=where, consistency=consistency, explain=explain, allow_scan=allow_scan
            ),
        )

    async def indexing_status(self, ref: CollectionRef) -> IndexingStatus:
        return await self.checks.on("indexing_status", ref, lambda found: self.api.indexing_status(found))

    async def reset(self) -> None:
        self.checks.owner("reset")
        await self.checks.passed("reset", CollectionRef("", ""), self.api.reset)

    async def status(self) -> Json:
        self.checks.owner("status")
        return await self.api.status()
