"""What each verb of the public API takes: the one table, as plain data. A verb that is not here cannot be called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, auto

from shoal_core.contracts import Role


class Permission(IntEnum):
    """What a role allows."""

    READ = auto()  # records, and that there are tenants, databases and collections
    WRITE = auto()  # records
    EDIT = auto()  # collections: make, change, delete
    ADMINISTER = auto()  # databases: make, delete
    OWN = auto()  # tenants, credentials, the whole system


class Load(IntEnum):
    """Which rate a verb counts against."""

    READ = auto()
    WRITE = auto()


@dataclass(frozen=True, slots=True)
class Verb:
    """What a verb takes and costs."""

    permission: Permission
    load: Load


_READ, _WRITE, _EDIT = Permission.READ, Permission.WRITE, Permission.EDIT

PERMISSIONS: Mapping[Role, frozenset[Permission]] = {
    Role.READER: frozenset({_READ}),
    Role.WRITER: frozenset({_READ, _WRITE}),
    Role.EDITOR: frozenset({_READ, _WRITE, _EDIT}),
    Role.ADMIN: frozenset({_READ, _WRITE, _EDIT, Permission.ADMINISTER}),
    Role.OWNER: frozenset(Permission),
}

VERBS: Mapping[str, Verb] = {
    "create_tenant": Verb(Permission.OWN, Load.WRITE),
    "get_tenant": Verb(_READ, Load.READ),
    "name_tenant": Verb(Permission.OWN, Load.WRITE),
    "create_database": Verb(Permission.ADMINISTER, Load.WRITE),
    "get_database": Verb(_READ, Load.READ),
    "list_databases": Verb(_READ, Load.READ),
    "delete_database": Verb(Permission.ADMINISTER, Load.WRITE),
    "create_collection": Verb(_EDIT, Load.WRITE),
    "get_collection": Verb(_READ, Load.READ),
    "get_collection_by_resource_name": Verb(_READ, Load.READ),
    "list_collections": Verb(_READ, Load.READ),
    "count_collections": Verb(_READ, Load.READ),
    "modify_collection": Verb(_EDIT, Load.WRITE),
    "delete_collection": Verb(_EDIT, Load.WRITE),
    "fork_collection": Verb(_READ, Load.WRITE),  # and to edit what it makes
    "count_forks": Verb(_READ, Load.READ),
    "attach_function": Verb(_EDIT, Load.WRITE),
    "get_function": Verb(_READ, Load.READ),
    "detach_function": Verb(_EDIT, Load.WRITE),
    "write": Verb(_WRITE, Load.WRITE),
    "delete_where": Verb(_WRITE, Load.WRITE),
    "get": Verb(_READ, Load.READ),
    "get_encoded": Verb(_READ, Load.READ),
    "query": Verb(_READ, Load.READ),
    "query_encoded": Verb(_READ, Load.READ),
    "search": Verb(_READ, Load.READ),
    "count": Verb(_READ, Load.READ),
    "indexing_status": Verb(_READ, Load.READ),
    "reset": Verb(Permission.OWN, Load.WRITE),
    "status": Verb(Permission.OWN, Load.READ),
}


def is_administrative(verb: str) -> bool:
    """Whether a verb changes something other than records: the audit log has these."""
    what = VERBS[verb]
    return what.load is Load.WRITE and what.permission is not Permission.WRITE
