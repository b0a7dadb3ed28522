"""What is checked before a verb of the public API is called for a principal, and what a refusal looks like."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from shoal_core.audit import Audit, AuditEvent, Outcome
from shoal_core.contracts import CollectionRef
from shoal_core.errors import NotFound, PermissionDenied, ShoalError
from shoal_core.limits import Limits
from shoal_frontend.access.gate import Gate
from shoal_frontend.access.principal import Principal
from shoal_frontend.access.verbs import VERBS, Permission, is_administrative
from shoal_frontend.api import Api

T = TypeVar("T")
E = TypeVar("E", bound=ShoalError)

_FUNCTION = "function"  # the field of errors about attached functions


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
class Checks:
    """Of one principal. They raise `NotFound` for what it may not see, `PermissionDenied` for what it may not do.

    ``names`` are shared by all principals of a process. ``audit`` hears of every refusal, and of administrative verbs how they ended;
    ``peer`` is where the request came from; ``told``: errors that the audit log has heard of.
    """

    api: Api
    principal: Principal
    gate: Gate
    names: KnownNames
    limits: Limits
    audit: Audit
    peer: str = ""
    told: list[BaseException] = field(default_factory=list)

    async def on(
        self, verb: str, ref: CollectionRef, call: Callable[[CollectionRef], Awaitable[T]], *, detail: str = ""
    ) -> T:
        """``call`` with the collection, if the principal may do ``verb`` with it. Raises `NotFound`, `PermissionDenied`."""
        permission = VERBS[verb].permission
        if not self.principal.sees_database(ref.tenant, ref.database):
            raise self.refused(verb, ref, no_collection(ref))

        async def checked() -> T:
            if ref.id and not self.principal.may_all(permission, ref.tenant, ref.database):
                return await self._by_id(verb, ref, call)
            if not ref.id and (error := self._refusal(verb, ref, ref.name)) is not None:
                raise self.refused(verb, ref, error)
            return await call(ref)

        return await self.passed(verb, ref, checked, lambda: no_collection(ref), detail=detail)

    async def _by_id(self, verb: str, ref: CollectionRef, call: Callable[[CollectionRef], Awaitable[T]]) -> T:
        """``call`` with id and name. `NotFound` means that nothing was done yet, see `Names`: then the name is looked up again."""
        name = self.names.get(ref)
        if name is not None and self._refusal(verb, ref, name) is None:
            try:
                return await call(replace(ref, name=name))
            except (NotFound, PermissionDenied) as error:
                self.names.forget(ref)
                if self._is_told(error):
                    raise
        found = await self.api.get_collection(ref)
        if (refusal := self._refusal(verb, ref, found.name)) is not None:
            self.names.forget(ref)
            raise self.refused(verb, replace(ref, name=found.name), refusal)
        self.names.learn(ref, found.name)
        return await call(replace(ref, name=found.name))

    def _refusal(self, verb: str, ref: CollectionRef, name: str) -> ShoalError | None:
        if self.principal.may(VERBS[verb].permission, ref.tenant, ref.database, name):
            return None
        if self.principal.may(Permission.READ, ref.tenant, ref.database, name):
            return not_allowed(verb)
        return no_collection(ref)

    def new_name(self, verb: str, ref: CollectionRef, name: str | None) -> None:
        """A collection may only get a name with which the principal could have made it."""
        if name is not None and not self.principal.may(Permission.EDIT, ref.tenant, ref.database, name):
            raise self.refused(verb, ref, not_allowed(verb), detail=name)

    def tenant(self, verb: str, tenant: str) -> None:
        """Raise unless the principal may do ``verb`` with all of a tenant."""
        where = CollectionRef(tenant, "")
        if not self.principal.sees_tenant(tenant):
            raise self.refused(verb, where, no_tenant(tenant))
        if not self.principal.may_tenant(VERBS[verb].permission, tenant):
            raise self.refused(verb, where, not_allowed(verb))

    def owner(self, verb: str, tenant: str = "") -> None:
        """Raise unless the principal owns the system."""
        if not self.principal.owns():
            raise self.refused(verb, CollectionRef(tenant, ""), not_allowed(verb))

    async def passed(
        self,
        verb: str,
        where: CollectionRef,
        call: Callable[[], Awaitable[T]],
        missing: Callable[[], NotFound] | None = None,
        *,
        detail: str = "",
    ) -> T:
        """``call()`` through the gate; what is not found is ``missing()``, whatever the reason, but for functions of what is."""
        try:
            result = await self.gate.passed(self.principal.id, where.tenant, VERBS[verb].load, call)
        except BaseException as error:
            self._failed(verb, where, detail, error)
            if not isinstance(error, NotFound) or missing is None or error.field == _FUNCTION:
                raise
            raise missing() from None
        if is_administrative(verb):
            self._record(verb, Outcome.DONE, where, detail)
        return result

    def refused(self, verb: str, where: CollectionRef, error: E, *, detail: str = "") -> E:
        """``error``, which the audit log has heard of."""
        self.told.append(error)
        self._record(verb, Outcome.REFUSED, where, detail, type(error).__name__)
        return error

    def _failed(self, verb: str, where: CollectionRef, detail: str, error: BaseException) -> None:
        refused = isinstance(error, PermissionDenied)
        if not self._is_told(error) and (refused or is_administrative(verb)):
            outcome = Outcome.REFUSED if refused else Outcome.FAILED
            self._record(verb, outcome, where, detail, type(error).__name__)

    def _is_told(self, error: BaseException) -> bool:
        return any(error is known for known in self.told)

    def _record(self, verb: str, outcome: Outcome, where: CollectionRef, detail: str, reason: str = "") -> None:
        who, peer, what = self.principal.id, self.peer, where.name or where.id
        self.audit(AuditEvent(verb, outcome, who, peer, where.tenant, where.database, what, detail, reason))

    async def visible(
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


def no_tenant(name: str) -> NotFound:
    """What is answered for a tenant that is not there, or not to be seen."""
    return NotFound(f"no tenant {name!r}", field="tenant")


def no_database(tenant: str, name: str) -> NotFound:
    """The same for a database."""
    return NotFound(f"no database {name!r} in tenant {tenant!r}", field="database")


def no_collection(ref: CollectionRef) -> NotFound:
    """The same for a collection."""
    what = ref.id or ref.name
    return NotFound(f"no collection {what!r} in database {ref.database!r} of tenant {ref.tenant!r}", field="collection")


def not_allowed(verb: str) -> PermissionDenied:
    """What is answered for what is to be seen, and not to be done."""
    return PermissionDenied(f"these credentials do not allow {verb.removesuffix('_encoded').replace('_', ' ')} here")
