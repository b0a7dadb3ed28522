"""What the audit log hears: administrative verbs however they end, refusals, who and where; and nothing secret."""

from __future__ import annotations

import pytest

from services.frontend.tests.test_frontend_access_http import CHEAP, MAIN, PASSWORD, ROOT, Site
from shoal_core.audit import AuditEvent, Outcome
from shoal_core.contracts import CollectionRef, CredentialKind, Grant, Role
from shoal_core.errors import InvalidArgument, NotFound, PermissionDenied
from shoal_frontend.access.admin import Admin
from shoal_frontend.access.authenticator import Authenticator, AuthenticatorSettings
from shoal_frontend.access.entrance import Entrance, claimed
from shoal_frontend.access.gate import Gate
from shoal_frontend.access.presented import Presented
from shoal_frontend.access.principal import EVERYBODY, Principal
from shoal_frontend.access.verbs import VERBS, is_administrative
from shoal_frontend.api import Api
from shoal_testing.fakes import MemoryAccess


async def test_administrative_verbs_are_those_that_change_more_than_records() -> None:
    assert {verb for verb in VERBS if is_administrative(verb)} == {
        "create_tenant",
        "name_tenant",
        "create_database",
        "delete_database",
        "create_collection",
        "modify_collection",
        "delete_collection",
        "fork_collection",
        "attach_function",
        "detach_function",
        "reset",
    }


async def test_a_collection_from_its_making_to_its_end() -> None:
    site = await Site().start()
    token = await site.token(Grant(Role.EDITOR, "acme"))
    site.events.clear()
    made = await site("POST", f"{MAIN}/collections", {"name": "new"}, token=token)
    path = f"{MAIN}/collections/{made.json['id']}"
    await site("POST", f"{path}/add", {"ids": ["a"], "embeddings": [[1.0, 2.0]]}, token=token)
    await site("PUT", path, {"new_name": "newer"}, token=token)
    await site("POST", f"{path}/get", {}, token=token)
    await site("DELETE", f"{MAIN}/collections/newer", token=token)
    again = await site("DELETE", f"{MAIN}/collections/newer", token=token)
    assert again.status == 404
    who = f"token:{token.split('_')[1]}" if "_" in token else ""
    changes = [event for event in site.events if is_administrative(event.verb)]
    assert [(event.verb, event.outcome, event.detail, event.reason) for event in changes] == [
        ("create_collection", Outcome.DONE, "", ""),
        ("modify_collection", Outcome.DONE, "newer", ""),
        ("delete_collection", Outcome.DONE, "", ""),
        ("delete_collection", Outcome.FAILED, "", "NotFound"),
    ]
    assert changes == site.events  # reads and writes of records are not in it
    assert {(event.tenant, event.database) for event in changes} == {("acme", "main")}
    assert all(event.principal.startswith("token:") and event.principal.startswith(who) for event in changes)
    assert changes[0].collection == "new"
    assert changes[1].collection == made.json["id"]


@pytest.mark.parametrize(
    ("verb", "method", "path", "status"),
    [
        ("get", "POST", "/api/v2/tenants/zeta/databases/main/collections/{zeta/docs}/get", 404),
        ("get_collection", "GET", "/api/v2/tenants/zeta/databases/main/collections/docs", 404),
        ("list_collections", "GET", "/api/v2/tenants/zeta/databases/main/collections", 200),
        ("count_collections", "GET", "/api/v2/tenants/zeta/databases/main/collections_count", 200),
        ("list_databases", "GET", "/api/v2/tenants/zeta/databases", 200),
        ("get_database", "GET", "/api/v2/tenants/zeta/databases/main", 404),
        ("get_tenant", "GET", "/api/v2/tenants/zeta", 404),
        ("delete_database", "DELETE", "/api/v2/tenants/zeta/databases/main", 404),
        ("delete_collection", "DELETE", "/api/v2/tenants/zeta/databases/main/collections/docs", 404),
    ],
)
async def test_another_tenants_token_is_refused_and_heard_of(verb: str, method: str, path: str, status: int) -> None:
    site = await Site().start()
    token = await site.token(Grant(Role.ADMIN, "acme"))
    site.events.clear()
    url = path.replace("{zeta/docs}", site.ids["zeta/docs"])
    answer = await site(method, url, {} if method == "POST" else None, token=token)
    assert answer.status == status
    assert [(event.verb, event.outcome, event.tenant) for event in site.events] == [(verb, Outcome.REFUSED, "zeta")]


async def test_a_role_that_does_not_suffice_is_refused_and_heard_of() -> None:
    site = await Site().start()
    token = await site.token(Grant(Role.READER, "acme", "main", "docs"))
    site.events.clear()
    path = f"{MAIN}/collections/{site.ids['acme/docs']}"
    body = {"ids": ["a"], "embeddings": [[1.0, 2.0]]}
    assert (await site("POST", f"{path}/add", body, token=token)).status == 403
    assert (await site("POST", f"{MAIN}/collections", {"name": "other"}, token=token)).status == 403
    assert (await site("POST", "/api/v2/tenants", {"name": "mine"}, token=token)).status == 403
    assert [(event.verb, event.outcome, event.reason) for event in site.events] == [
        ("write", Outcome.REFUSED, "PermissionDenied"),
        ("create_collection", Outcome.REFUSED, "PermissionDenied"),
        ("create_tenant", Outcome.REFUSED, "PermissionDenied"),
    ]
    assert [event.collection for event in site.events] == ["docs", "other", ""]


async def test_a_collection_beside_the_ones_granted_is_refused_once() -> None:
    site = await Site().start()
    token = await site.token(Grant(Role.READER, "acme", "main", "docs"))
    path = f"{MAIN}/collections/{site.ids['acme/docs2']}/get"
    site.events.clear()
    for _ in range(2):  # the second time its name might have been remembered
        assert (await site("POST", path, {}, token=token)).status == 404
    assert [(event.verb, event.outcome, event.collection) for event in site.events] == [
        ("get", Outcome.REFUSED, "docs2")
    ] * 2


@pytest.mark.parametrize("known", [False, True])
async def test_what_is_refused_is_heard_of_once(known: bool) -> None:
    """Whether its name was known or not, and whatever the refusal passes on its way out."""
    site = await Site().start()
    token = await site.token(Grant(Role.EDITOR, "acme", "main", "docs"), Grant(Role.READER, "acme", "main", "none"))
    path = f"{MAIN}/collections/{site.ids['acme/docs']}"
    if known:
        assert (await site("POST", f"{path}/get", {}, token=token)).status == 200
    site.events.clear()
    assert (await site("DELETE", f"{MAIN}/collections/docs2", token=token)).status == 404
    assert (await site("PUT", path, {"new_name": "mine"}, token=token)).status == 403
    assert (await site("POST", f"{path}/fork", {"new_name": "mine"}, token=token)).status == 403
    assert [(event.verb, event.outcome, event.detail) for event in site.events] == [
        ("delete_collection", Outcome.REFUSED, ""),
        ("modify_collection", Outcome.REFUSED, "mine"),
        ("fork_collection", Outcome.REFUSED, "mine"),
    ]


async def test_what_the_system_itself_does_not_allow_is_a_refusal() -> None:
    site = await Site().start()
    assert (await site("POST", "/api/v2/reset", {}, token=ROOT)).status == 403
    assert [(event.verb, event.outcome, event.principal) for event in site.events][-1:] == [
        ("reset", Outcome.REFUSED, "root")
    ]


async def test_who_is_not_let_in_is_heard_of_with_a_claim_and_no_secret() -> None:
    site = await Site().start()
    token = await site.token(Grant(Role.READER, "acme"))
    site.events.clear()
    forged = token[:-1] + ("0" if token[-1] != "0" else "1")
    for shown in ("", forged, "no token at all"):
        assert (await site("GET", MAIN, token=shown)).status == 401
    assert [(event.verb, event.outcome, event.reason) for event in site.events] == [
        ("authenticate", Outcome.REFUSED, "Unauthenticated")
    ] * 3
    claims = [event.detail for event in site.events]
    assert claims[0] == "nobody"
    assert claims[1].startswith("token:")
    assert claims[2] == "an unreadable token"
    assert token[-20:-1] not in repr(site.events)
    assert "no token at all" not in repr(site.events)
    assert claimed(Presented(PASSWORD, "ann")) == "user:ann"


async def test_credentials_that_are_made_and_revoked() -> None:
    events: list[AuditEvent] = []
    site = await Site().start()
    admin = Admin(site.access, EVERYBODY, site.system.random, cost=CHEAP, audit=events.append, peer="10.0.0.9:1")
    made, token = await admin.create_token("ci", (Grant(Role.WRITER, "acme", "main"),))
    await admin.create_user("ann", PASSWORD, "", (Grant(Role.OWNER, "*"),))
    await admin.revoke_credential(CredentialKind.TOKEN, made.id)
    with pytest.raises(NotFound):
        await admin.revoke_credential(CredentialKind.TOKEN, "0123456789abcdef")
    with pytest.raises(InvalidArgument):
        await admin.create_token("", ())
    assert [(event.verb, event.outcome, event.detail) for event in events] == [
        ("create_token", Outcome.DONE, f"token:{made.id} writer:acme/main/*"),
        ("create_user", Outcome.DONE, "user:ann owner:*/*/*"),
        ("revoke_credential", Outcome.DONE, f"token:{made.id}"),
        ("revoke_credential", Outcome.FAILED, "token:0123456789abcdef"),
        ("create_token", Outcome.FAILED, events[-1].detail),
    ]
    assert {event.peer for event in events} == {"10.0.0.9:1"}
    assert PASSWORD not in repr(events)
    assert token not in repr(events)


async def test_who_does_not_own_the_system_makes_no_credentials() -> None:
    events: list[AuditEvent] = []
    site = await Site().start()
    somebody = Principal("user:ann", (Grant(Role.ADMIN, "acme"),))
    admin = Admin(site.access, somebody, site.system.random, cost=CHEAP, audit=events.append)
    with pytest.raises(PermissionDenied):
        await admin.list_credentials()
    assert [(event.verb, event.outcome, event.principal) for event in events] == [
        ("list_credentials", Outcome.REFUSED, "user:ann")
    ]


async def test_where_everybody_may_do_everything_changes_are_heard_of_all_the_same() -> None:
    site = await Site(closed=False).start()
    site.events.clear()
    assert (await site("DELETE", f"{MAIN}/collections/docs")).status == 200
    assert [(event.verb, event.outcome, event.principal) for event in site.events] == [
        ("delete_collection", Outcome.DONE, "")
    ]


async def test_without_an_audit_log_and_limits_nothing_stands_between() -> None:
    site = await Site().start()
    session = await Entrance(site.system.database, Gate(site.system.clock)).admit(lambda name: None)
    assert session.api is site.system.database


async def test_a_crash_of_a_verb_is_heard_of() -> None:
    site = await Site().start()
    events: list[AuditEvent] = []

    class Broken:
        async def delete_collection(self, ref: CollectionRef) -> None:
            raise RuntimeError("a defect")

    authenticator = Authenticator(
        MemoryAccess(site.system.clock), site.system.clock, site.system.random, AuthenticatorSettings(ROOT), CHEAP
    )
    broken: Api = Broken()  # type: ignore[assignment]
    entrance = Entrance(broken, Gate(site.system.clock), authenticator, audit=events.append)
    session = await entrance.admit({"authorization": f"Bearer {ROOT}"}.get, "10.0.0.9:1")
    with pytest.raises(RuntimeError):
        await session.api.delete_collection(CollectionRef("acme", "main", "docs"))
    assert events == [
        AuditEvent(
            "delete_collection", Outcome.FAILED, "root", "10.0.0.9:1", "acme", "main", "docs", reason="RuntimeError"
        )
    ]
