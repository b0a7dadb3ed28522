"""The cases that every `Access` is held to.

A test module subclasses `AccessContract` under a name that starts with ``Test`` and defines a fixture ``stored``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from shoal_core.contracts import Access, CredentialKind, Grant, NewCredential, Role
from shoal_core.contracts.access import position_of
from shoal_core.errors import AlreadyExists, InvalidArgument, NotFound

TOKEN, USER = CredentialKind.TOKEN, CredentialKind.USER
GRANTS = (Grant(Role.READER, "a"), Grant(Role.EDITOR, "b*", "dä", 'c"*'), Grant(Role.OWNER, "*"))
HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class StoredAccess:
    """Credentials, none yet; ``age`` makes the time pass that credentials are dated with, by an hour."""

    access: Access
    age: Callable[[], Awaitable[None]]


def new(credential_id: str, kind: CredentialKind = TOKEN, *, ttl_ms: int | None = None) -> NewCredential:
    """A credential with `GRANTS`."""
    return NewCredential(kind, credential_id, "for tests", GRANTS, b"\x00\xffverifier", ttl_ms)


class AccessContract:
    """All cases."""

    async def test_what_was_created_is_found(self, stored: StoredAccess) -> None:
        made = await stored.access.create_credential(new("x"))
        assert (made.kind, made.id, made.label, made.grants) == (TOKEN, "x", "for tests", GRANTS)
        assert made.created_at_ms > 0
        assert (made.expires_at_ms, made.revoked_at_ms) == (None, None)
        found = await stored.access.find_credential(TOKEN, "x")
        assert (found.kind, found.id, found.grants, found.verifier) == (TOKEN, "x", GRANTS, b"\x00\xffverifier")
        assert found.expires_in_ms is None

    async def test_kinds_are_apart(self, stored: StoredAccess) -> None:
        await stored.access.create_credential(new("x", TOKEN))
        with pytest.raises(NotFound):
            await stored.access.find_credential(USER, "x")
        await stored.access.create_credential(new("x", USER))
        await stored.access.revoke_credential(TOKEN, "x")
        assert (await stored.access.find_credential(USER, "x")).kind is USER

    async def test_an_id_is_taken_for_ever(self, stored: StoredAccess) -> None:
        await stored.access.create_credential(new("x"))
        with pytest.raises(AlreadyExists):
            await stored.access.create_credential(new("x"))
        await stored.access.revoke_credential(TOKEN, "x")
        with pytest.raises(AlreadyExists):
            await stored.access.create_credential(new("x"))

    async def test_one_of_many_at_once_gets_the_id(self, stored: StoredAccess) -> None:
        made = await asyncio.gather(
            *(stored.access.create_credential(new("x")) for _ in range(8)), return_exceptions=True
        )
        assert sorted(type(each).__name__ for each in made) == ["AlreadyExists"] * 7 + ["Credential"]

    async def test_revoking_is_for_good_and_may_be_repeated(self, stored: StoredAccess) -> None:
        await stored.access.create_credential(new("x"))
        await stored.access.revoke_credential(TOKEN, "x")
        (first,) = await stored.access.list_credentials(after="", limit=9)
        assert first.revoked_at_ms is not None
        await stored.age()
        await stored.access.revoke_credential(TOKEN, "x")
        with pytest.raises(NotFound):
            await stored.access.find_credential(TOKEN, "x")
        (again,) = await stored.access.list_credentials(after="", limit=9)
        assert again.revoked_at_ms is not None

    async def test_what_is_not_there(self, stored: StoredAccess) -> None:
        for credential_id in ("x", "", "ä" * 300):
            with pytest.raises(NotFound):
                await stored.access.find_credential(TOKEN, credential_id)
            with pytest.raises(NotFound):
                await stored.access.revoke_credential(TOKEN, credential_id)
        assert await stored.access.list_credentials(after="", limit=9) == []

    async def test_credentials_expire(self, stored: StoredAccess) -> None:
        made = await stored.access.create_credential(new("x", ttl_ms=HOUR_MS))
        await stored.access.create_credential(new("y", ttl_ms=3 * HOUR_MS))
        assert made.expires_at_ms is not None
        assert made.expires_at_ms - made.created_at_ms in range(HOUR_MS - 5_000, HOUR_MS + 5_000)
        left_ms = (await stored.access.find_credential(TOKEN, "x")).expires_in_ms
        assert left_ms is not None
        assert 0 < left_ms <= HOUR_MS
        await stored.age()
        with pytest.raises(NotFound):
            await stored.access.find_credential(TOKEN, "x")
        left_ms = (await stored.access.find_credential(TOKEN, "y")).expires_in_ms
        assert left_ms is not None
        assert left_ms <= 2 * HOUR_MS

    async def test_a_life_of_nothing_is_refused(self, stored: StoredAccess) -> None:
        with pytest.raises(InvalidArgument) as caught:
            await stored.access.create_credential(new("x", ttl_ms=0))
        assert caught.value.field == "ttl_ms"

    async def test_pages_are_in_order_of_id_then_kind(self, stored: StoredAccess) -> None:
        for credential_id in ("b", "B", "ä", "a/b", "a"):
            await stored.access.create_credential(new(credential_id))
        await stored.access.create_credential(new("a", USER))
        listed: list[tuple[str, str]] = []
        after = ""
        while page := await stored.access.list_credentials(after=after, limit=2):
            assert len(page) <= 2
            listed += [(item.id, item.kind) for item in page]
            after = position_of(page[-1])
        ids = ("B", "a", "a", "a/b", "b", "ä")
        assert listed == list(zip(ids, ("token", "token", "user", "token", "token", "token"), strict=True))
