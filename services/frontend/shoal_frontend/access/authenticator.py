"""From what a request shows to who it is. Remembers for a while, so that a request costs a hash and no more."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field

from shoal_core.contracts import Access, CredentialKind, ValidCredential
from shoal_core.errors import InvalidArgument, NotFound, ResourceExhausted, Unauthenticated
from shoal_core.ports import Clock, Random
from shoal_frontend.access.limiter import BUSY_RETRY_MS, Limiter, Rates
from shoal_frontend.access.presented import Presented
from shoal_frontend.access.principal import OWNER, Principal
from shoal_frontend.access.secrets import (
    ROOT_TOKEN_MIN_LENGTH,
    PasswordCost,
    check_password,
    digest,
    hash_password,
    parse_token,
    same,
)
from shoal_frontend.access.verbs import Load

ROOT = Principal("root", OWNER)

_WRONG = "these credentials are wrong, have expired or were revoked"


@dataclass(frozen=True, slots=True)
class AuthenticatorSettings:
    """How callers are told.

    Attributes:
        root_token: owns the system; empty: there is none.
        cache_ttl_ms: how long a credential is remembered, good or bad; so long may a revoked one still work.
        cached_credentials: remembered at a time.
        password_checks: passwords hashed at a time; ``waiting_password_checks`` more wait, the rest are refused.
        password_attempts_per_s: per user name, after the first ``password_burst``; right ones do not count.
    """

    root_token: str = field(default="", repr=False)
    cache_ttl_ms: int = 3_000
    cached_credentials: int = 10_000
    password_checks: int = 2
    waiting_password_checks: int = 64
    password_attempts_per_s: float = 0.2
    password_burst: int = 10


@dataclass(frozen=True, slots=True)
class _Known:
    """``principal`` is None for what is no credential. ``verifier``: that a password was found to be right by."""

    principal: Principal | None
    until_s: float
    verifier: bytes = b""


class Authenticator:
    """See the module. Secrets are in neither its memory nor its errors: it remembers by a keyed hash.

    Raises `InvalidArgument` for a root token that is too short.
    """

    def __init__(
        self,
        access: Access,
        clock: Clock,
        random: Random,
        settings: AuthenticatorSettings | None = None,
        cost: PasswordCost | None = None,
    ) -> None:
        self._access = access
        self._clock = clock
        self._settings = settings or AuthenticatorSettings()
        root_token = self._settings.root_token
        if root_token and len(root_token) < ROOT_TOKEN_MIN_LENGTH:
            raise InvalidArgument(
                f"at least {ROOT_TOKEN_MIN_LENGTH} characters are needed", field="frontend.access.root_token"
            )
        self._root = digest(root_token) if root_token else None
        self._key = random.token()
        self._salt = random.token()
        self._cost = cost or PasswordCost()
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._pending: dict[bytes, asyncio.Task[Principal | None]] = {}
        self._hashing = asyncio.Semaphore(self._settings.password_checks)
        self._hashes = 0
        rates = Rates(writes_per_s=self._settings.password_attempts_per_s, write_burst=self._settings.password_burst)
        self._attempts = Limiter("user", clock, lambda name: rates, capacity=self._settings.cached_credentials)

    async def principal_of(self, shown: Presented | None) -> Principal:
        """Who it is. Raises `Unauthenticated`, `ResourceExhausted` (too many passwords tried), `Unavailable` (sysdb)."""
        if shown is None:
            raise Unauthenticated("give a token or a user name with a password; this server wants to know who calls")
        if shown.user is None and self._root is not None and same(digest(shown.secret), self._root):
            return ROOT
        if shown.user is None and parse_token(shown.secret) is None:
            raise Unauthenticated(_WRONG)
        key = self._hash(shown)
        known = self._known.get(key)
        if known is None or known.until_s <= self._clock.monotonic():
            principal = await self._once(key, shown, known)
        else:
            self._known.move_to_end(key)
            principal = known.principal
        if principal is None:
            raise Unauthenticated(_WRONG)
        return principal

    async def _once(self, key: bytes, shown: Presented, known: _Known | None) -> Principal | None:
        """`_look_up`, once for all who ask the same at the same time."""
        task = self._pending.get(key)
        if task is None:
            task = self._pending[key] = asyncio.create_task(self._look_up(key, shown, known))
            task.add_done_callback(lambda ended: self._ended(key, ended))
        return await asyncio.shield(task)

    def _ended(self, key: bytes, task: asyncio.Task[Principal | None]) -> None:
        del self._pending[key]
        if not task.cancelled():
            task.exception()  # whoever asked may have gone

    async def _look_up(self, key: bytes, shown: Presented, known: _Known | None) -> Principal | None:
        asked_at_s = self._clock.monotonic()
        found = await self._right_one(shown, known)
        ttl_ms = self._settings.cache_ttl_ms
        if found is None:
            if len(self._known) >= self._settings.cached_credentials:
                return None  # strangers do not push out those who are known
            entry = _Known(None, asked_at_s + ttl_ms / 1000)
        else:
            if found.expires_in_ms is not None:
                ttl_ms = min(ttl_ms, found.expires_in_ms)
            principal = Principal(f"{found.kind}:{found.id}", found.grants)
            entry = _Known(principal, asked_at_s + ttl_ms / 1000, found.verifier)
        self._known[key] = entry
        self._known.move_to_end(key)
        while len(self._known) > self._settings.cached_credentials:
            self._known.popitem(last=False)
        return entry.principal

    async def _right_one(self, shown: Presented, known: _Known | None) -> ValidCredential | None:
        if shown.user is not None:
            return await self._user(shown.user, shown.secret, known)
        token = parse_token(shown.secret)
        found = None if token is None else await self._find(CredentialKind.TOKEN, token.id)
        if token is None or found is None or not same(token.verifier, found.verifier):
            return None
        return found

    async def _user(self, name: str, password: str, known: _Known | None) -> ValidCredential | None:
        """For a name that is not there as much is computed as for one that is."""
        found = await self._find(CredentialKind.USER, name)
        if found is not None and known is not None and known.verifier and same(known.verifier, found.verifier):
            return found
        if self._hashes >= self._settings.password_checks + self._settings.waiting_password_checks:
            raise ResourceExhausted("too many passwords are being checked; try again", retry_after_ms=BUSY_RETRY_MS)
        self._attempts.enter(name, Load.WRITE)
        self._hashes += 1
        try:
            async with self._hashing:
                if found is None:
                    await asyncio.to_thread(hash_password, password, self._salt, self._cost)
                    return None
                if not await asyncio.to_thread(check_password, password, found.verifier):
                    return None
        finally:
            self._hashes -= 1
            self._attempts.leave(name)
        self._attempts.refund(name, Load.WRITE)
        return found

    async def _find(self, kind: CredentialKind, credential_id: str) -> ValidCredential | None:
        try:
            return await self._access.find_credential(kind, credential_id)
        except NotFound:
            return None

    def _hash(self, shown: Presented) -> bytes:
        parts = f"{len(shown.user or '')}:{shown.user or ''}:{shown.user is None}:{shown.secret}"
        return hashlib.blake2b(parts.encode("utf-8", "surrogatepass"), key=self._key, digest_size=16).digest()
