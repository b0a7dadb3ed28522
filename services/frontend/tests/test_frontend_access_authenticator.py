"""Who it is: headers, tokens, passwords, what is remembered and for how long, and what an attacker gets."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from shoal_core.contracts import CredentialKind, Grant, NewCredential, Role, ValidCredential
from shoal_core.errors import InvalidArgument, PermissionDenied, ResourceExhausted, Unauthenticated, Unavailable
from shoal_frontend.access.admin import Admin
from shoal_frontend.access.authenticator import ROOT, Authenticator, AuthenticatorSettings
from shoal_frontend.access.presented import Presented, presented
from shoal_frontend.access.principal import EVERYBODY, Principal, check_grants
from shoal_frontend.access.secrets import PasswordCost, check_password, hash_password, new_token, parse_token
from shoal_testing.fakes import MemoryAccess
from shoal_testing.virtual_clock import SeededRandom, VirtualClock

CHEAP = PasswordCost(log2_n=4, r=1, p=1)
READER = (Grant(Role.READER, "acme"),)
ROOT_TOKEN = "r" * 32
PASSWORD = "correct horse battery"


class Site:
    """An authenticator over credentials in memory."""

    def __init__(self, **settings: Any) -> None:
        self.clock = VirtualClock()
        self.access = MemoryAccess(self.clock)
        self.random = SeededRandom(1)
        self.admin = Admin(self.access, EVERYBODY, self.random, cost=CHEAP)
        self.authenticator = Authenticator(
            self.access, self.clock, self.random, AuthenticatorSettings(**settings), CHEAP
        )

    async def token(self, **more: Any) -> str:
        return (await self.admin.create_token("", READER, **more))[1]

    async def user(self, name: str = "ann") -> None:
        await self.admin.create_user(name, PASSWORD, "", READER)

    async def who(self, secret: str, user: str | None = None) -> Principal:
        return await self.authenticator.principal_of(Presented(secret, user))


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"authorization": "Bearer t"}, Presented("t")),
        ({"authorization": "bearer  t "}, Presented("t")),
        ({"x-chroma-token": "t"}, Presented("t")),
        ({"x-chroma-token": "Bearer t"}, Presented("t")),
        ({"authorization": basic("ann:a:b")}, Presented("a:b", "ann")),
        ({"authorization": "Bearer t", "x-chroma-token": "u"}, Presented("t")),
        ({"authorization": "Digest t", "x-chroma-token": "u"}, None),
        ({"authorization": "Bearer"}, None),
        ({"authorization": "Basic !!!"}, None),
        ({"authorization": basic("ann")}, None),
        ({"authorization": basic(":x")}, None),
        ({"authorization": basic("ann:")}, None),
        ({"authorization": "Basic " + base64.b64encode(b"\xff:\xff").decode()}, None),
        ({"authorization": ""}, None),
        ({"x-chroma-token": "t" * 5000}, None),
        ({}, None),
    ],
)
def test_what_headers_show(headers: dict[str, str], expected: Presented | None) -> None:
    assert presented(headers.get) == expected


def test_secrets_are_shown_nowhere() -> None:
    token = new_token(SeededRandom())
    assert token.secret not in repr(token)
    assert "hunter2" not in repr(Presented("hunter2", "ann"))
    assert "hunter2" not in repr(AuthenticatorSettings(root_token="hunter2"))
    assert parse_token(token.text) == token
    assert parse_token(token.text + "0") is None


def test_passwords_are_salted_and_checked() -> None:
    one, two = (hash_password(PASSWORD, salt, CHEAP) for salt in (b"a" * 16, b"b" * 16))
    assert one != two
    assert check_password(PASSWORD, one)
    assert check_password(PASSWORD, two)
    assert not check_password(PASSWORD + "!", one)
    assert PASSWORD.encode() not in one
    assert check_password(PASSWORD, hash_password(PASSWORD, b"c" * 16, PasswordCost()))


async def test_tokens() -> None:
    site = Site()
    token = await site.token()
    who = await site.who(token)
    assert (who.id, who.grants) == (f"token:{token.split('_')[1]}", READER)
    wrong = token[:-1] + ("0" if token[-1] != "0" else "1")
    for bad in (wrong, "xyzzy", "shoal_0000000000000000_" + "0" * 64):
        with pytest.raises(Unauthenticated) as caught:
            await site.who(bad)
        assert bad not in str(caught.value)
    with pytest.raises(Unauthenticated):
        await site.authenticator.principal_of(None)


async def test_a_request_costs_no_look_up_while_the_credential_is_remembered() -> None:
    site = Site()
    token = await site.token()
    await asyncio.gather(*(site.who(token) for _ in range(20)))
    assert site.access.finds == 1
    await site.clock.advance(2.9)
    await site.who(token)
    assert site.access.finds == 1
    await site.clock.advance(0.2)
    await site.who(token)
    assert site.access.finds == 2


async def test_bad_ones_are_remembered_too() -> None:
    site = Site()
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            await site.who("shoal_0000000000000000_" + "0" * 64)
    assert site.access.finds == 1


@pytest.mark.parametrize("kind", list(CredentialKind))
async def test_revocation_arrives_within_the_time_that_is_stated(kind: CredentialKind) -> None:
    site = Site(cache_ttl_ms=1_000)
    if kind is CredentialKind.USER:
        await site.user()
        shown, credential_id = Presented(PASSWORD, "ann"), "ann"
    else:
        token = await site.token()
        shown, credential_id = Presented(token), token.split("_")[1]
    await site.authenticator.principal_of(shown)
    await site.admin.revoke_credential(kind, credential_id)
    await site.clock.advance(1.0)
    with pytest.raises(Unauthenticated):
        await site.authenticator.principal_of(shown)


async def test_a_credential_ends_when_it_expires_even_while_remembered() -> None:
    site = Site(cache_ttl_ms=60_000)
    token = await site.token(ttl_ms=5_000)
    await site.who(token)
    await site.clock.advance(4.9)
    await site.who(token)
    await site.clock.advance(0.1)
    with pytest.raises(Unauthenticated):
        await site.who(token)


async def test_what_is_remembered_is_bounded() -> None:
    site = Site(cached_credentials=3)
    tokens = [await site.token() for _ in range(5)]
    for token in tokens:
        await site.who(token)
    await site.who(tokens[-1])
    assert site.access.finds == 5
    await site.who(tokens[0])
    assert site.access.finds == 6


async def test_strangers_do_not_push_out_those_who_are_known() -> None:
    site = Site(cached_credentials=3)
    token = await site.token()
    await site.who(token)
    for number in range(10):
        for bad in (f"xyzzy{number}", f"shoal_{number:016x}_" + "0" * 64):
            with pytest.raises(Unauthenticated):
                await site.who(bad)
    assert site.access.finds == 11  # nothing is looked up for what was never a token
    await site.who(token)
    assert site.access.finds == 11


async def test_the_root_token_owns_the_system_and_asks_nobody() -> None:
    site = Site(root_token=ROOT_TOKEN)
    assert await site.who(ROOT_TOKEN) is ROOT
    assert site.access.finds == 0
    with pytest.raises(Unauthenticated):
        await site.who(ROOT_TOKEN, "root")
    with pytest.raises(InvalidArgument) as caught:
        Site(root_token="short")
    assert "short" not in str(caught.value)


async def test_passwords_are_hashed_once_and_verified_again_without() -> None:
    site = Site(password_burst=1, password_attempts_per_s=0.001)
    await site.user()
    for _ in range(5):
        assert (await site.who(PASSWORD, "ann")).id == "user:ann"
        await site.clock.advance(4)  # forgotten; looked up again, but not hashed again, or the limit would be hit
    assert site.access.finds == 5


async def test_wrong_passwords_are_limited_per_name_and_the_right_one_is_not() -> None:
    site = Site(password_burst=3, password_attempts_per_s=0.1)
    await site.user()
    await site.user("bob")
    await site.who(PASSWORD, "ann")
    for number in range(3):
        with pytest.raises(Unauthenticated):
            await site.who(f"wrong{number}", "ann")
    with pytest.raises(ResourceExhausted) as caught:
        await site.who("wrong9", "ann")
    assert 0 < caught.value.retry_after_ms <= 10_001
    assert (await site.who(PASSWORD, "ann")).id == "user:ann"
    assert (await site.who(PASSWORD, "bob")).id == "user:bob"
    await site.clock.advance(caught.value.retry_after_ms / 1000)
    with pytest.raises(Unauthenticated):
        await site.who("wrong9", "ann")


async def test_names_that_are_not_there_are_treated_alike() -> None:
    site = Site(password_burst=2)
    for number in range(2):
        with pytest.raises(Unauthenticated):
            await site.who(f"wrong{number}", "nobody")
    with pytest.raises(ResourceExhausted):
        await site.who("wrong9", "nobody")


async def test_only_so_many_passwords_are_hashed_at_a_time() -> None:
    site = Site(password_checks=1, waiting_password_checks=1)
    for name in "abc":
        await site.user(name)
    results = await asyncio.gather(*(site.who(PASSWORD, name) for name in "abc"), return_exceptions=True)
    assert [type(result).__name__ for result in results].count("ResourceExhausted") == 1


async def test_without_sysdb_nobody_new_comes_in_and_nobody_stays_longer() -> None:
    site = Site()
    token = await site.token()
    await site.who(token)

    async def gone(kind: CredentialKind, credential_id: str) -> ValidCredential:
        raise Unavailable("gone")

    site.access.find_credential = gone  # type: ignore[method-assign]
    await site.who(token)
    await site.clock.advance(3)
    with pytest.raises(Unavailable):
        await site.who(token)


async def test_who_gives_up_does_not_spoil_it_for_the_others() -> None:
    site = Site()
    token = await site.token()
    arrived, go = asyncio.Event(), asyncio.Event()
    find = site.access.find_credential

    async def slow(kind: CredentialKind, credential_id: str) -> ValidCredential:
        arrived.set()
        await go.wait()
        return await find(kind, credential_id)

    site.access.find_credential = slow  # type: ignore[method-assign]
    first, second = asyncio.create_task(site.who(token)), asyncio.create_task(site.who(token))
    await arrived.wait()
    first.cancel()
    go.set()
    assert (await second).grants == READER


@pytest.mark.parametrize(
    ("grants", "field"),
    [
        ([], "grants"),
        ([Grant(Role.READER, "a")] * 65, "grants"),
        ([Grant(Role.READER, "")], "grants[0].tenant"),
        ([Grant(Role.READER, "a", "b*c")], "grants[0].database"),
        ([Grant(Role.READER, "a", "b", "**")], "grants[0].collection"),
        ([Grant(Role.READER, "a", "b", "c" * 600)], "grants[0].collection"),
        ([Grant(Role.READER, "a"), Grant(Role.ADMIN, "a", "b")], "grants[1]"),
        ([Grant(Role.OWNER, "a")], "grants[0]"),
    ],
)
def test_grants_that_cannot_be(grants: list[Grant], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_grants(grants)
    assert caught.value.field == field


async def test_only_the_owner_manages_credentials() -> None:
    site = Site()
    admin = Admin(site.access, Principal("token:x", (Grant(Role.ADMIN, "acme"),)), site.random, cost=CHEAP)
    for call in (
        admin.create_token("", READER),
        admin.create_user("ann", PASSWORD, "", READER),
        admin.list_credentials(),
        admin.revoke_credential(CredentialKind.USER, "ann"),
    ):
        with pytest.raises(PermissionDenied):
            await call
    assert (await admin.whoami())[0] == "token:x"


@pytest.mark.parametrize(
    ("name", "password", "field"),
    [("a:b", PASSWORD, "name"), ("", PASSWORD, "name"), ("ann", "short", "password"), ("ann", "x" * 2000, "password")],
)
async def test_users_that_cannot_be(name: str, password: str, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await Site().admin.create_user(name, password, "", READER)
    assert caught.value.field == field
    assert password not in str(caught.value)


async def test_nothing_at_rest_is_a_secret() -> None:
    site = Site()
    token = await site.token()
    await site.user()
    kept = repr(site.access.__dict__)
    assert token not in kept
    assert token.split("_")[2] not in kept
    assert PASSWORD not in kept
    found = await site.access.find_credential(CredentialKind.TOKEN, token.split("_")[1])
    assert NewCredential(found.kind, found.id, "", found.grants, found.verifier).verifier != token.encode()
