"""The frontend's entrance, and what it embeds, from the configuration."""

from __future__ import annotations

from shoal_core.audit import Audit, no_audit
from shoal_core.contracts import Access
from shoal_core.limits import Limits
from shoal_core.ports import Clock, Random
from shoal_frontend.access.authenticator import Authenticator, AuthenticatorSettings
from shoal_frontend.access.entrance import Entrance
from shoal_frontend.access.gate import Gate, GateSettings, TenantLimits
from shoal_frontend.access.limiter import Rates
from shoal_frontend.access.listening import check_listening
from shoal_frontend.api import Api
from shoal_frontend.embedding import EmbeddingSettings, FunctionSettings
from shoal_runtime.frontend_sections import AccessSection, EmbeddingSection, FrontendSection, TenantSection
from shoal_runtime.sections import settings_of
from shoal_runtime.server import split_address


def authenticates(section: AccessSection) -> bool:
    """Whether callers must show credentials."""
    return section.enabled or bool(section.root_token.get_secret_value())


def check_addresses(section: FrontendSection, **addresses: str) -> None:
    """Raise `InvalidArgument` for an address, by the setting that has it, on which strangers would be served unasked."""
    for field, address in addresses.items():
        if address:
            check_listening(
                split_address(address, field)[0],
                field,
                authenticates=authenticates(section.access),
                allow_unauthenticated=section.access.allow_unauthenticated,
            )


def make_entrance(
    section: FrontendSection,
    api: Api,
    access: Access,
    clock: Clock,
    random: Random,
    limits: Limits,
    audit: Audit = no_audit,
) -> Entrance:
    """The one way to ``api``. Raises `InvalidArgument` for settings that cannot work."""
    settings = settings_of(
        AuthenticatorSettings, section.access, root_token=section.access.root_token.get_secret_value()
    )
    authenticator = Authenticator(access, clock, random, settings) if authenticates(section.access) else None
    return Entrance(api, Gate(clock, gate_settings(section)), authenticator, limits, audit)


def embedding_settings(section: EmbeddingSection) -> EmbeddingSettings | None:
    """The functions that the server offers; None for none."""
    if not section.functions:
        return None
    functions = {name: settings_of(FunctionSettings, function) for name, function in section.functions.items()}
    return settings_of(EmbeddingSettings, section, functions=functions)


def gate_settings(section: FrontendSection) -> GateSettings:
    """Rates and quotas. A tenant's own leave out what is as for all tenants."""
    return GateSettings(
        settings_of(TenantLimits, section.tenant),
        {name: settings_of(TenantLimits, _over(section.tenant, own)) for name, own in section.tenants.items()},
        settings_of(Rates, section.credential),
        section.counted_keys,
    )


def _over(default: TenantSection, own: TenantSection) -> TenantSection:
    return default.model_copy(
        update={
            name: part.model_copy(update={field: getattr(mine, field) for field in mine.model_fields_set})
            for name, part, mine in (
                ("rates", default.rates, own.rates),
                ("quotas", default.quotas, own.quotas),
            )
        }
    )
