"""Two worlds that differ only in what a caller may not see: whatever it does, it must not be able to tell them apart.

In the full world there are other tenants, databases and collections, with the same names as the caller's own or names that begin
alike. The bare world has only what the caller's grants are about. The caller knows everything of the full world: names, ids, cursors.
It does the same in both, and gets the same answers; and what it may not see is afterwards as it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from services.frontend.tests.frontend_http_support import Answered, Http
from shoal_core.contracts import (
    CollectionRef,
    CredentialKind,
    Grant,
    Include,
    NewCollection,
    NewCredential,
    Role,
)
from shoal_core.errors import ShoalError
from shoal_core.records import DOCUMENT, EMBEDDING, ID, OP, Operation, embedding_array
from shoal_frontend.access.authenticator import Authenticator
from shoal_frontend.access.entrance import Entrance
from shoal_frontend.access.gate import Gate
from shoal_frontend.access.principal import Principal
from shoal_frontend.access.secrets import Token
from shoal_frontend.api import Api
from shoal_frontend.http_api.app import create_app
from shoal_frontend.http_api.gateway import Gateway
from shoal_testing.direct import DirectSystem
from shoal_testing.fakes import MemoryAccess

TENANTS = ("acme", "acme2", "acm", "zeta")
DATABASES = ("main", "main2", "mai")
COLLECTIONS = ("docs", "docs2", "doc", "things")
TOKEN = Token("0123456789abcdef", "ab" * 32)
ABSENT_ID = "00000000-0000-4000-8000-000000000000"

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Place:
    """A collection by its names."""

    tenant: str
    database: str
    collection: str


@dataclass(frozen=True)
class Plan:
    """What there is, and who asks. ``grant`` is None for the world without authentication, where paths alone keep apart."""

    places: tuple[Place, ...]
    grant: Grant | None
    home: tuple[str, str] = ("acme", "main")

    def sees_tenant(self, tenant: str) -> bool:
        """Whether the tenant is in the bare world."""
        if self.grant is None:
            return tenant == self.home[0]
        return self._principal.sees_tenant(tenant)

    def sees_database(self, tenant: str, database: str) -> bool:
        """Whether the database is."""
        if self.grant is None:
            return (tenant, database) == self.home
        return self._principal.sees_database(tenant, database)

    def sees(self, place: Place) -> bool:
        """Whether the collection is."""
        if self.grant is None:
            return (place.tenant, place.database) == self.home
        grant = self.grant
        covered = grant.collection in ("*", place.collection) or (
            grant.collection.endswith("*") and place.collection.startswith(grant.collection[:-1])
        )
        return self.sees_database(place.tenant, place.database) and covered

    @property
    def _principal(self) -> Principal:
        assert self.grant is not None
        return Principal("", (self.grant,))


@dataclass
class World:
    """One of the two. ``ids`` of its collections by place."""

    plan: Plan
    full: bool
    system: DirectSystem
    ids: dict[Place, str] = field(default_factory=dict)
    cursors: dict[Place, str] = field(default_factory=dict)
    foreign: frozenset[str] = frozenset()
    _seen: dict[str, str] = field(default_factory=dict)

    async def start(self) -> World:
        """Make everything that is in it."""
        plan, catalog, database = self.plan, self.system.catalog, self.system.database
        for tenant in TENANTS:
            if not (self.full or plan.sees_tenant(tenant)):
                continue
            await catalog.create_tenant(tenant)
            await catalog.name_tenant(tenant, resource_name(tenant))
            for name in DATABASES:
                if self.full or plan.sees_database(tenant, name):
                    await catalog.create_database(tenant, name)
        # Of the visible ones first, so that they are in the same order in both worlds.
        for place in sorted(plan.places, key=lambda each: (not plan.sees(each), str(each))):
            if not (self.full or plan.sees(place)):
                continue
            made, _ = await database.create_collection(
                NewCollection(place.tenant, place.database, place.collection, metadata={"of": str(place)})
            )
            self.ids[place] = made.id
            ref = CollectionRef(place.tenant, place.database, id=made.id)
            await database.write(ref, upserts(["a", "b", "c"], str(place)))
            page = await database.get(ref, limit=1, include=Include(documents=True), cursor="")
            self.cursors[place] = page.cursor or ""
        access = MemoryAccess(self.system.clock)
        if plan.grant is not None:
            await access.create_credential(
                NewCredential(CredentialKind.TOKEN, TOKEN.id, "", (plan.grant,), TOKEN.verifier)
            )
        authenticator = None if plan.grant is None else Authenticator(access, self.system.clock, self.system.random)
        self.entrance = Entrance(database, Gate(self.system.clock), authenticator)
        gateway = Gateway(self.entrance, self.system.clock, self.system.random)
        self.http = Http(create_app(gateway))
        return self

    async def api(self) -> Api:
        """The verbs as the caller has them."""
        headers = {"authorization": f"Bearer {TOKEN.text}"}
        return (await self.entrance.admit(headers.get)).api

    def known(self, place: Place, full: World) -> str:
        """The id by which the caller knows a collection: its own in this world, another's in the full one."""
        return self.ids.get(place) or full.ids.get(place) or ABSENT_ID

    async def request(self, method: str, path: str, body: Any) -> Answered:
        """Over HTTP, with the caller's token."""
        headers = {"x-chroma-token": TOKEN.text} if self.plan.grant is not None else {}
        return await self.http(method, path, body, headers=headers)

    def plain(self, value: Any) -> Any:
        """Without what differs from run to run: ids of the world's own count by their first appearance."""
        match value:
            case ShoalError():
                return (type(value).__name__, self.plain(str(value)))
            case pa.Table() | pa.RecordBatch():
                return self.plain(value.to_pylist())
            case np.ndarray():
                return value.tolist()
            case str():
                return _UUID.sub(lambda found: self._numbered(found[0]), value)
            case dict():
                return {key: self.plain(item) for key, item in value.items() if key not in ("cursor", "read_token")}
            case list() | tuple():
                return [self.plain(item) for item in value]
        if is_dataclass(value):
            return self.plain({each.name: getattr(value, each.name) for each in fields(value)})
        return value

    def _numbered(self, uuid: str) -> str:
        if uuid in self.foreign or uuid == ABSENT_ID:
            return uuid
        return self._seen.setdefault(uuid, f"#{len(self._seen)}")

    async def hidden(self) -> list[Any]:
        """All that the caller may not see, as it is now."""
        catalog, database, plan = self.system.catalog, self.system.database, self.plan
        found: list[Any] = []
        for tenant in TENANTS:
            if not plan.sees_tenant(tenant):
                found.append([tenant, await catalog.list_databases(tenant, limit=100, offset=0)])
            for name in DATABASES:
                for collection in await catalog.list_collections(tenant, name, limit=100, offset=0):
                    if plan.sees(Place(tenant, name, collection.name)):
                        continue
                    ref = CollectionRef(tenant, name, id=collection.id)
                    answer = await database.get(ref, include=Include(documents=True, embeddings=True))
                    found.append([collection, answer.rows.to_pylist()])
        return found


async def two_worlds(plan: Plan) -> tuple[World, World]:
    """The full one and the bare one."""
    full = await World(plan, True, DirectSystem(seed=1)).start()
    bare = await World(plan, False, DirectSystem(seed=2)).start()  # no id of one world is made in the other
    foreign = frozenset(id_ for place, id_ in full.ids.items() if not plan.sees(place))
    full.foreign = bare.foreign = foreign
    for world in (full, bare):  # ids of what both have are numbered alike
        for place in sorted(world.ids, key=str):
            if plan.sees(place):
                world.plain(world.ids[place])
    return full, bare


def resource_name(tenant: str) -> str:
    """By which a tenant's collections can be named."""
    return f"of-{tenant}"


def upserts(ids: Sequence[str], text: str) -> pa.RecordBatch:
    """A batch of records that say whose they are."""
    return pa.record_batch(
        {
            OP: pa.array([Operation.UPSERT] * len(ids), pa.uint8()),
            ID: pa.array(ids, pa.string()),
            EMBEDDING: embedding_array(np.arange(2 * len(ids), dtype=np.float32).reshape(-1, 2)),
            DOCUMENT: pa.array([text] * len(ids), pa.string()),
        }
    )


def places() -> Iterator[Place]:
    """All that there may be."""
    for tenant in TENANTS:
        for database in DATABASES:
            for collection in COLLECTIONS:
                yield Place(tenant, database, collection)


def grants() -> Iterator[Grant]:
    """Kinds of grants of one tenant."""
    for role in (Role.READER, Role.WRITER, Role.EDITOR):
        for database in ("*", "main", "main*"):
            for collection in ("*", "docs", "docs*"):
                yield Grant(role, "acme", database, collection)
    yield Grant(Role.ADMIN, "acme")
