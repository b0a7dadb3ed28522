"""The one way in, for HTTP and gRPC: shows credentials, gets the API as its principal sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shoal_core.limits import Limits
from shoal_frontend.access.authenticator import Authenticator
from shoal_frontend.access.checks import Checks, KnownNames
from shoal_frontend.access.gate import Gate
from shoal_frontend.access.guarded import Guarded
from shoal_frontend.access.presented import presented
from shoal_frontend.access.principal import EVERYBODY, Principal
from shoal_frontend.api import Api


@dataclass(frozen=True, slots=True)
class Session:
    """One request: who sent it, and what it may use."""

    principal: Principal
    api: Api


class Entrance:
    """See the module.

    Args:
        api: unguarded; nothing else that serves requests may have it.
        gate: rates and quotas.
        authenticator: None: everybody may do everything.
    """

    def __init__(
        self,
        api: Api,
        gate: Gate,
        authenticator: Authenticator | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._api = api
        self._authenticator = authenticator
        self._gate = gate
        self._limits = limits or Limits()
        self._names = KnownNames()
        self._everybody = Session(EVERYBODY, api if gate.unlimited else self._guarded(EVERYBODY))

    @property
    def is_open(self) -> bool:
        """Whether everybody may do everything."""
        return self._authenticator is None

    async def admit(self, header: Callable[[str], str | None]) -> Session:
        """The session of a request with these headers, see `presented`. Raises as `Authenticator.principal_of`."""
        if self._authenticator is None:
            return self._everybody
        principal = await self._authenticator.principal_of(presented(header))
        return Session(principal, self._guarded(principal))

    def _guarded(self, principal: Principal) -> Guarded:
        checks = Checks(self._api, principal, self._gate, self._names, self._limits)
        return Guarded(self._api, principal, self._gate, checks)
