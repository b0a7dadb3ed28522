"""Every route and every verb that a caller could try another's names, ids, cursors and tokens on.

A route that is missing here makes a test fail: add it with a body that would do the most harm. ``{collection}`` in a path becomes
what the route takes there, an id or a name, of the caller or of another.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shoal_core.consistency import as_of
from shoal_core.contracts import CollectionRef, Condition, Include, NewCollection, NewFunction
from shoal_core.ranking import DenseQuery, Knn, Search, Select
from shoal_frontend.api import Api
from tests.isolation.isolation_worlds import resource_name, upserts

TENANT = "/api/v2/tenants/{tenant}"
DATABASE = f"{TENANT}/databases/{{database}}"
COLLECTION = f"{DATABASE}/collections/{{collection}}"


@dataclass(frozen=True)
class Aim:
    """What a request is aimed at: the names of its path, and what another's it tries to get at.

    Attributes:
        name, id: of the collection aimed at, which may be elsewhere than the path says.
        new_name: for what is made, renamed or forked.
        cursor: of a page of that collection.
        other_id: of a further collection.
    """

    tenant: str
    database: str
    name: str
    id: str
    new_name: str
    cursor: str
    other_id: str


@dataclass(frozen=True)
class Shot:
    """How to try a route: what it takes as ``{collection}``, and its body.

    ``tenant_wide``: it is about more than one database, which without authentication is nobody's secret.
    """

    collection: str = "id"
    body: Callable[[Aim], Any] = lambda aim: None
    tenant_wide: bool = False


def _records(aim: Aim) -> Any:
    return {"ids": ["a", "n"], "embeddings": [[1.0, 2.0], [3.0, 4.0]], "documents": ["mine", "mine"]}


ROUTES: Mapping[tuple[str, str], Shot] = {
    ("GET", "/api/v2/auth/identity"): Shot(),
    ("POST", "/api/v2/reset"): Shot(tenant_wide=True),
    ("POST", "/api/v2/tenants"): Shot(body=lambda aim: {"name": aim.tenant}, tenant_wide=True),
    ("GET", TENANT): Shot(tenant_wide=True),
    ("PATCH", TENANT): Shot(body=lambda aim: {"resource_name": "res"}, tenant_wide=True),
    ("POST", f"{TENANT}/databases"): Shot(body=lambda aim: {"name": aim.database}, tenant_wide=True),
    ("GET", f"{TENANT}/databases"): Shot(tenant_wide=True),
    ("GET", DATABASE): Shot(),
    ("DELETE", DATABASE): Shot(),
    ("POST", f"{DATABASE}/collections"): Shot(
        body=lambda aim: {"name": aim.new_name, "get_or_create": aim.new_name < "docs2"}
    ),
    ("GET", f"{DATABASE}/collections"): Shot(),
    ("GET", f"{DATABASE}/collections_count"): Shot(),
    ("GET", f"{DATABASE}/collections/by-id/{{collection}}"): Shot(),
    ("GET", COLLECTION): Shot("name"),
    ("PUT", COLLECTION): Shot(body=lambda aim: {"new_name": aim.new_name, "new_metadata": {"x": 1}}),
    ("DELETE", COLLECTION): Shot("name"),
    ("GET", "/api/v2/collections/{crn}"): Shot(tenant_wide=True),
    ("POST", f"{COLLECTION}/add"): Shot(body=_records),
    ("POST", f"{COLLECTION}/update"): Shot(body=_records),
    ("POST", f"{COLLECTION}/upsert"): Shot(body=_records),
    ("POST", f"{COLLECTION}/delete"): Shot(body=lambda aim: {"ids": ["a"]}),
    ("GET", f"{COLLECTION}/count"): Shot(),
    ("GET", f"{COLLECTION}/indexing_status"): Shot(),
    ("POST", f"{COLLECTION}/get"): Shot(body=lambda aim: {"include": ["documents", "embeddings", "metadatas"]}),
    ("POST", f"{COLLECTION}/query"): Shot(
        body=lambda aim: {"query_embeddings": [[0.0, 1.0]], "include": ["documents"]}
    ),
    ("POST", f"{COLLECTION}/search"): Shot(
        body=lambda aim: {"searches": [{"limit": {"limit": 5, "offset": 0}, "select": {"keys": ["#document"]}}]}
    ),
    ("POST", f"{COLLECTION}/fork"): Shot(body=lambda aim: {"new_name": aim.new_name}),
    ("GET", f"{COLLECTION}/fork_count"): Shot(),
    ("POST", f"{COLLECTION}/conditional/get"): Shot(body=lambda aim: {"ids": ["a"]}),
    ("POST", f"{COLLECTION}/conditional/commit"): Shot(
        body=lambda aim: {
            "read_token": 1 << 13,  # of a first snapshot
            "read_ids": ["a"],
            "operations": [{"operation": "upsert", "payload": _records(aim)}],
        }
    ),
    ("POST", f"{COLLECTION}/functions/attach"): Shot(
        body=lambda aim: {
            "name": "f",
            "function_id": "record_counter",
            "output_collection": aim.new_name,
            "params": {},
        }
    ),
    ("GET", f"{COLLECTION}/functions/{{name}}"): Shot(),
    ("POST", f"{COLLECTION}/attached_functions/{{name}}/add_input"): Shot(
        body=lambda aim: {"input_collection_id": aim.other_id}
    ),
    ("POST", f"{COLLECTION}/attached_functions/{{name}}/detach"): Shot(body=lambda aim: {"delete_output": True}),
}


def filled(path: str, aim: Aim, shot: Shot) -> str:
    """The path of a request."""
    collection = aim.id if shot.collection == "id" else aim.name
    crn = f"{resource_name(aim.tenant)}:{aim.database}:{aim.name}"
    return path.format(tenant=aim.tenant, database=aim.database, collection=collection, name="f", crn=crn)


@dataclass(frozen=True)
class Call:
    """How to try a verb of the public API. ``tenant_wide`` as in `Shot`."""

    call: Callable[[Api, Aim, CollectionRef], Awaitable[Any]]
    tenant_wide: bool = False


_ALL = Include(documents=True, metadatas=True, embeddings=True)
_VECTORS = np.array([[0.0, 1.0]], np.float32)
_ENCODED: dict[str, Any] = {"ids": None, "where": None, "include": _ALL, "explain": False, "allow_scan": False}


def _new(aim: Aim) -> NewCollection:
    return NewCollection(aim.tenant, aim.database, aim.new_name)


CALLS: Mapping[str, Call] = {
    "create_tenant": Call(lambda api, aim, ref: api.create_tenant(aim.tenant), tenant_wide=True),
    "get_tenant": Call(lambda api, aim, ref: api.get_tenant(aim.tenant), tenant_wide=True),
    "name_tenant": Call(lambda api, aim, ref: api.name_tenant(aim.tenant, "res"), tenant_wide=True),
    "create_database": Call(lambda api, aim, ref: api.create_database(aim.tenant, aim.database), tenant_wide=True),
    "get_database": Call(lambda api, aim, ref: api.get_database(aim.tenant, aim.database)),
    "list_databases": Call(lambda api, aim, ref: api.list_databases(aim.tenant), tenant_wide=True),
    "delete_database": Call(lambda api, aim, ref: api.delete_database(aim.tenant, aim.database)),
    "create_collection": Call(
        lambda api, aim, ref: api.create_collection(_new(aim), get_or_create=aim.new_name < "docs2")
    ),
    "get_collection": Call(lambda api, aim, ref: api.get_collection(ref)),
    "get_collection_by_resource_name": Call(
        lambda api, aim, ref: api.get_collection_by_resource_name(resource_name(aim.tenant), aim.database, aim.name),
        tenant_wide=True,
    ),
    "list_collections": Call(lambda api, aim, ref: api.list_collections(aim.tenant, aim.database, limit=2, offset=1)),
    "count_collections": Call(lambda api, aim, ref: api.count_collections(aim.tenant, aim.database)),
    "modify_collection": Call(lambda api, aim, ref: api.modify_collection(ref, name=aim.new_name, metadata={"x": 1})),
    "delete_collection": Call(lambda api, aim, ref: api.delete_collection(ref)),
    "attach_function": Call(
        lambda api, aim, ref: api.attach_function(ref, NewFunction("f", "record_counter", aim.new_name))
    ),
    "get_function": Call(lambda api, aim, ref: api.get_function(ref, "f")),
    "detach_function": Call(lambda api, aim, ref: api.detach_function(ref, "f", delete_output=True)),
    "fork_collection": Call(lambda api, aim, ref: api.fork_collection(ref, aim.new_name)),
    "count_forks": Call(lambda api, aim, ref: api.count_forks(ref)),
    "write": Call(
        lambda api, aim, ref: api.write(
            ref, upserts(["a", "n"], "mine"), condition=Condition(1, ("a",)), outcomes=True, idempotency_key="k"
        )
    ),
    "delete_where": Call(lambda api, aim, ref: api.delete_where(ref, ids=["a"], where=None)),
    "get": Call(lambda api, aim, ref: api.get(ref, include=_ALL, limit=2, cursor=aim.cursor)),
    "get_encoded": Call(
        lambda api, aim, ref: api.get_encoded(ref, limit=9, offset=0, consistency=as_of(2), cursor=None, **_ENCODED)
    ),
    "query": Call(lambda api, aim, ref: api.query(ref, _VECTORS, 2, include=_ALL)),
    "query_encoded": Call(
        lambda api, aim, ref: api.query_encoded(ref, _VECTORS, 2, consistency=as_of(2), ef=0, exact=False, **_ENCODED)
    ),
    "search": Call(
        lambda api, aim, ref: api.search(
            ref,
            [
                Search(rank=Knn(DenseQuery(_VECTORS[0]), limit=3), limit=3, select=Select(documents=True)),
                Search(limit=2, cursor=aim.cursor, select=Select(documents=True)),
            ],
        )
    ),
    "count": Call(lambda api, aim, ref: api.count(ref)),
    "indexing_status": Call(lambda api, aim, ref: api.indexing_status(ref)),
    "reset": Call(lambda api, aim, ref: api.reset(), tenant_wide=True),
    "status": Call(lambda api, aim, ref: api.status(), tenant_wide=True),
}
