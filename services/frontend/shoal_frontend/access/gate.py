"""Rates and quotas put together: what a request has to pass besides permissions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from shoal_core.contracts import NewCollection, PublicApi
from shoal_core.errors import ResourceExhausted
from shoal_core.ports import Clock
from shoal_frontend.access.limiter import Limiter, Rates, rates_of
from shoal_frontend.access.quotas import UNLIMITED, Quotas
from shoal_frontend.access.verbs import Load

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """Of one tenant."""

    rates: Rates = Rates()
    quotas: Quotas = UNLIMITED


@dataclass(frozen=True, slots=True)
class GateSettings:
    """What is limited; nothing by default. Rates are of this process: with n frontends a tenant may have n times as much.

    Attributes:
        tenant: of every tenant without limits of its own.
        tenants: tenants with limits of their own.
        credential: of every credential, over all tenants.
        keys: tenants, and credentials, whose rates are counted at a time.
    """

    tenant: TenantLimits = TenantLimits()
    tenants: Mapping[str, TenantLimits] = field(default_factory=dict)
    credential: Rates = Rates()
    keys: int = 10_000

    def unlimited(self) -> bool:
        """Whether there is nothing to do."""
        return not self.tenants and self.tenant == TenantLimits() and self.credential == Rates()


class Gate:
    """See the module."""

    def __init__(self, clock: Clock, settings: GateSettings | None = None) -> None:
        self._settings = settings or GateSettings()
        self.unlimited = self._settings.unlimited()
        own = {name: limits.rates for name, limits in self._settings.tenants.items()}
        keys = self._settings.keys
        self._tenants = Limiter("tenant", clock, rates_of(self._settings.tenant.rates, own), capacity=keys)
        self._credentials = Limiter("credential", clock, rates_of(self._settings.credential, {}), capacity=keys)

    def quotas(self, tenant: str) -> Quotas:
        """Of a tenant."""
        return self._settings.tenants.get(tenant, self._settings.tenant).quotas

    async def passed(self, credential: str, tenant: str, load: Load, call: Callable[[], Awaitable[T]]) -> T:
        """``call()``, counted. ``credential`` is empty where nobody is known. Raises `ResourceExhausted`."""
        if self.unlimited:
            return await call()
        self._tenants.enter(tenant, load)
        try:
            if credential:
                self._enter(credential, tenant, load)
            try:
                return await call()
            finally:
                if credential:
                    self._credentials.leave(credential)
        finally:
            self._tenants.leave(tenant)

    def _enter(self, credential: str, tenant: str, load: Load) -> None:
        """A credential's; what it may not do does not count against its tenant, which others use too."""
        try:
            self._credentials.enter(credential, load)
        except ResourceExhausted:
            self._tenants.refund(tenant, load)
            raise

    async def check_new_database(self, api: PublicApi, tenant: str) -> None:
        """Whether the tenant may have another database. Approximate: two made at once may both pass.

        Raises `QuotaExceeded`, as the next.
        """
        quotas = self.quotas(tenant)
        if quotas.databases:
            last = await api.list_databases(tenant, limit=1, offset=quotas.databases - 1)
            quotas.check_count("databases", quotas.databases if last else 0)

    async def check_new_collection(self, api: PublicApi, new: NewCollection) -> None:
        """Whether the tenant may have another collection, of this dimension. Approximate in the same way."""
        quotas = self.quotas(new.tenant)
        quotas.check_dimension(new.dimension)
        if quotas.collections_per_database:
            quotas.check_count("collections_per_database", await api.count_collections(new.tenant, new.database))
        if quotas.collections:
            quotas.check_count("collections", await _count_collections(api, new.tenant, quotas.collections))


async def _count_collections(api: PublicApi, tenant: str, enough: int, page: int = 100) -> int:
    """Of all databases, as far as it matters."""
    total, offset = 0, 0
    while True:
        databases = await api.list_databases(tenant, limit=page, offset=offset)
        for database in databases:
            total += await api.count_collections(tenant, database.name)
            if total >= enough:
                return total
        if len(databases) < page:
            return total
        offset += page
