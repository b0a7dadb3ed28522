"""The one way in, for HTTP and gRPC: shows credentials, gets the API as its principal sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shoal_core.audit import Audit, AuditEvent, Outcome, no_audit
from shoal_core.errors import ResourceExhausted, Unauthenticated
from shoal_core.limits import Limits
from shoal_frontend.access.authenticator import Authenticator
from shoal_frontend.access.checks import Checks, KnownNames
from shoal_frontend.access.gate import Gate
from shoal_frontend.access.guarded import Guarded
from shoal_frontend.access.presented import Presented, presented
from shoal_frontend.access.principal import EVERYBODY, Principal
from shoal_frontend.access.secrets import parse_token
from shoal_frontend.api import Api

MAX_CLAIM_CHARACTERS = 128


@dataclass(frozen=True, slots=True)
class Session:
    """One request: who sent it and from where, and what it may use."""

    principal: Principal
    api: Api
    peer: str = ""


class Entrance:
    """See the module.

    Args:
        api: unguarded; nothing else that serves requests may have it.
        gate: rates and quotas.
        authenticator: None: everybody may do everything.
        audit: hears of refusals and of administrative verbs.
    """

    def __init__(
        self,
        api: Api,
        gate: Gate,
        authenticator: Authenticator | None = None,
        limits: Limits | None = None,
        audit: Audit = no_audit,
    ) -> None:
        self._api = api
        self._authenticator = authenticator
        self._gate = gate
        self._limits = limits or Limits()
        self._names = KnownNames()
        self.audit = audit
        self._unguarded = Session(EVERYBODY, api) if gate.unlimited and audit is no_audit else None

    @property
    def is_open(self) -> bool:
        """Whether everybody may do everything."""
        return self._authenticator is None

    async def admit(self, header: Callable[[str], str | None], peer: str = "") -> Session:
        """The session of a request with these headers, see `presented`, from ``peer``. Raises as `Authenticator.principal_of`."""
        if self._authenticator is None:
            return self._unguarded or self._session(EVERYBODY, peer)
        shown = presented(header)
        try:
            principal = await self._authenticator.principal_of(shown)
        except (Unauthenticated, ResourceExhausted) as error:
            who, reason = claimed(shown), type(error).__name__
            self.audit(AuditEvent("authenticate", Outcome.REFUSED, peer=peer, detail=who, reason=reason))
            raise
        return self._session(principal, peer)

    def _session(self, principal: Principal, peer: str) -> Session:
        checks = Checks(self._api, principal, self._gate, self._names, self._limits, self.audit, peer)
        return Session(principal, Guarded(self._api, principal, self._gate, checks), peer)


def claimed(shown: Presented | None) -> str:
    """Whom credentials claim to be, without anything secret of them."""
    if shown is None:
        return "nobody"
    if shown.user is not None:
        return f"user:{shown.user[:MAX_CLAIM_CHARACTERS]}"
    token = parse_token(shown.secret)
    return "an unreadable token" if token is None else f"token:{token.id}"
