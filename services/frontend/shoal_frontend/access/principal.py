"""Who calls, and what the grants come to. Decisions only: what is answered to a refusal is `guarded`'s."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal_core.contracts import ANY, Grant, Role
from shoal_core.errors import InvalidArgument
from shoal_frontend.access.verbs import PERMISSIONS, Permission

MAX_GRANTS = 64
MAX_PATTERN_BYTES = 513  # a name and the star


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller. ``id`` is for display, logs and limits: ``token:…``, ``user:…``, ``root``; empty for everybody."""

    id: str
    grants: tuple[Grant, ...]

    def owns(self) -> bool:
        """The whole system."""
        return any(grant.role is Role.OWNER for grant in self.grants)

    def may(self, permission: Permission, tenant: str, database: str, collection: str) -> bool:
        """With the collection of this name, whether or not there is one."""
        return any(
            permission in PERMISSIONS[grant.role]
            and matches(grant.tenant, tenant)
            and matches(grant.database, database)
            and matches(grant.collection, collection)
            for grant in self.grants
        )

    def may_all(self, permission: Permission, tenant: str, database: str) -> bool:
        """With every collection of a database, whatever its name."""
        return any(
            grant.collection == ANY
            and permission in PERMISSIONS[grant.role]
            and matches(grant.tenant, tenant)
            and matches(grant.database, database)
            for grant in self.grants
        )

    def may_tenant(self, permission: Permission, tenant: str) -> bool:
        """With all of a tenant."""
        return any(
            (grant.database, grant.collection) == (ANY, ANY)
            and permission in PERMISSIONS[grant.role]
            and matches(grant.tenant, tenant)
            for grant in self.grants
        )

    def sees_tenant(self, tenant: str) -> bool:
        """Whether any grant is about it."""
        return any(matches(grant.tenant, tenant) for grant in self.grants)

    def sees_database(self, tenant: str, database: str) -> bool:
        """Whether any grant is about it."""
        return any(matches(grant.tenant, tenant) and matches(grant.database, database) for grant in self.grants)

    def sees_all_databases(self, tenant: str) -> bool:
        """Whatever their names."""
        return any(grant.database == ANY and matches(grant.tenant, tenant) for grant in self.grants)

    def tenant(self) -> str:
        """The one tenant of all grants, ``*`` if there is not exactly one."""
        names = {grant.tenant for grant in self.grants}
        return ANY if len(names) != 1 or any(name.endswith(ANY) for name in names) else names.pop()

    def databases(self) -> list[str]:
        """The databases of all grants in order, ``["*"]`` if they have no certain names."""
        names = sorted({grant.database for grant in self.grants})
        return [ANY] if self.tenant() == ANY or any(name.endswith(ANY) for name in names) else names


def matches(pattern: str, name: str) -> bool:
    """Whether a part of a grant is about a name."""
    return name.startswith(pattern[:-1]) if pattern.endswith(ANY) else pattern == name


def check_grants(grants: Sequence[Grant]) -> None:
    """Raise `InvalidArgument` for none or too many, for a pattern that is none, and for a role in a scope it does not have."""
    if not 0 < len(grants) <= MAX_GRANTS:
        raise InvalidArgument(f"give 1 to {MAX_GRANTS} grants, not {len(grants)}", field="grants")
    for at, grant in enumerate(grants):
        for part in ("tenant", "database", "collection"):
            pattern: str = getattr(grant, part)
            if not pattern or ANY in pattern[:-1] or len(pattern.encode("utf-8", "replace")) > MAX_PATTERN_BYTES:
                raise InvalidArgument(
                    f"{pattern!r} is no name, no prefix with a * at its end, and not *", field=f"grants[{at}].{part}"
                )
        narrowed = (grant.database, grant.collection) != (ANY, ANY)
        if grant.role is Role.ADMIN and narrowed:
            raise InvalidArgument(
                "an admin has all of a tenant; leave database and collection out", field=f"grants[{at}]"
            )
        if grant.role is Role.OWNER and (narrowed or grant.tenant != ANY):
            raise InvalidArgument("an owner has the whole system; its tenant is *", field=f"grants[{at}]")


OWNER = (Grant(Role.OWNER, ANY),)
EVERYBODY = Principal("", OWNER)
"""Who calls where there is no authentication."""
