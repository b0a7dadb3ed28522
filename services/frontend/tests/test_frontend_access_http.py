"""The HTTP side with credentials: headers, 401 and 403 and 404, identity, what is open, rates, quotas, other origins."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from services.frontend.tests.frontend_http_support import Answered, Http
from shoal_core.audit import AuditEvent
from shoal_core.contracts import CollectionRef, Grant, NewCollection, Role
from shoal_frontend.access.admin import Admin
from shoal_frontend.access.authenticator import Authenticator, AuthenticatorSettings
from shoal_frontend.access.entrance import Entrance
from shoal_frontend.access.gate import Gate, GateSettings, TenantLimits
from shoal_frontend.access.limiter import Rates
from shoal_frontend.access.principal import EVERYBODY
from shoal_frontend.access.quotas import Quotas
from shoal_frontend.access.secrets import PasswordCost
from shoal_frontend.http_api.app import create_app
from shoal_frontend.http_api.gateway import Gateway
from shoal_testing.direct import DirectSystem
from shoal_testing.fakes import MemoryAccess

ROOT = "root-token-root-token-root-token"
CHEAP = PasswordCost(log2_n=4, r=1, p=1)
PASSWORD = "correct horse battery"
ACME = "/api/v2/tenants/acme"
MAIN = f"{ACME}/databases/main"
BODY = {"ids": ["a"], "embeddings": [[1.0, 2.0]]}


class Site:
    """Two tenants, each with a database `main` and the collections `docs` and `docs2`."""

    def __init__(self, settings: GateSettings | None = None, *, closed: bool = True, **more: Any) -> None:
        self.system = DirectSystem()
        clock, random = self.system.clock, self.system.random
        self.access = MemoryAccess(clock)
        self.admin = Admin(self.access, EVERYBODY, random, cost=CHEAP)
        authenticator = Authenticator(self.access, clock, random, AuthenticatorSettings(ROOT), CHEAP)
        self.events: list[AuditEvent] = []
        gate = Gate(clock, settings)
        entrance = Entrance(self.system.database, gate, authenticator if closed else None, audit=self.events.append)
        self.http = Http(create_app(Gateway(entrance, clock, random, **more)))
        self.ids: dict[str, str] = {}

    async def start(self) -> Site:
        for tenant in ("acme", "zeta"):
            await self.system.catalog.create_tenant(tenant)
            await self.system.catalog.create_database(tenant, "main")
            for name in ("docs", "docs2"):
                made, _ = await self.system.database.create_collection(NewCollection(tenant, "main", name))
                self.ids[f"{tenant}/{name}"] = made.id
        return self

    async def token(self, *grants: Grant) -> str:
        return (await self.admin.create_token("", grants))[1]

    async def __call__(self, method: str, path: str, body: Any = None, *, token: str = "") -> Answered:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return await self.http(method, path, body, headers=headers)


async def test_without_credentials_only_what_is_open_answers() -> None:
    site = await Site().start()
    for path in ("", "/heartbeat", "/healthcheck", "/pre-flight-checks", "/version"):
        assert (await site("GET", f"/api/v2{path}")).status == 200
    assert (await site("GET", "/health")).status == 200
    assert (await site("GET", "/api/v1/anything")).status == 410
    answer = await site("GET", MAIN)
    assert answer.error[:2] == (401, "ChromaError")
    assert answer.headers["www-authenticate"] == 'Bearer realm="shoal", Basic realm="shoal", charset="UTF-8"'
    assert "chroma-trace-id" in answer.headers


async def test_nothing_of_a_body_is_read_before_the_credentials() -> None:
    site = await Site().start()
    path = f"{MAIN}/collections/{site.ids['acme/docs']}/add"
    assert (await site.http("POST", path, b"{", connected=False)).status == 401


async def test_the_headers_that_clients_send() -> None:
    site = await Site().start()
    token = await site.token(Grant(Role.READER, "acme"))
    await site.admin.create_user("ann", PASSWORD, "", (Grant(Role.READER, "acme"),))
    basic = base64.b64encode(f"ann:{PASSWORD}".encode()).decode()
    for headers in (
        {"authorization": f"Bearer {token}"},
        {"x-chroma-token": token},
        {"x-chroma-token": f"Bearer {token}"},
        {"authorization": f"Basic {basic}"},
        {"authorization": f"Bearer {ROOT}"},
    ):
        assert (await site.http("GET", MAIN, headers=headers)).status == 200, headers
    for headers in ({"authorization": f"Bearer {token}x"}, {"authorization": "Basic eDp5"}, {"x-chroma-token": ""}):
        assert (await site.http("GET", MAIN, headers=headers)).status == 401, headers


@pytest.mark.parametrize(
    ("grants", "tenant", "databases"),
    [
        ((Grant(Role.READER, "acme"),), "acme", ["*"]),
        ((Grant(Role.READER, "acme", "main"),), "acme", ["main"]),
        ((Grant(Role.READER, "acme", "main"), Grant(Role.WRITER, "acme", "b", "x*")), "acme", ["b", "main"]),
        ((Grant(Role.READER, "acme", "ma*"),), "acme", ["*"]),
        ((Grant(Role.READER, "acme", "main"), Grant(Role.READER, "zeta", "main")), "*", ["*"]),
        ((Grant(Role.OWNER, "*"),), "*", ["*"]),
    ],
)
async def test_identity_names_what_there_is_one_of(
    grants: tuple[Grant, ...], tenant: str, databases: list[str]
) -> None:
    site = await Site().start()
    answer = await site("GET", "/api/v2/auth/identity", token=await site.token(*grants))
    assert answer.json["tenant"] == tenant
    assert answer.json["databases"] == databases
    assert answer.json["user_id"].startswith("token:")


async def test_identity_without_authentication_is_as_before() -> None:
    site = await Site(closed=False).start()
    assert (await site("GET", "/api/v2/auth/identity")).json == {
        "user_id": "",
        "tenant": "default_tenant",
        "databases": ["default_database"],
    }


async def test_each_role_may_do_what_it_says_and_no_more() -> None:
    def attempts(site: Site) -> list[tuple[str, str, str, Any]]:
        docs, collection = f"{MAIN}/collections/docs", f"{MAIN}/collections/{site.ids['acme/docs']}"
        return [
            ("reader", "GET", docs, None),
            ("reader", "POST", f"{collection}/get", {}),
            ("reader", "GET", f"{ACME}/databases", None),
            ("writer", "POST", f"{collection}/add", BODY),
            ("writer", "POST", f"{collection}/delete", {"ids": ["a"]}),
            ("editor", "PUT", collection, {"new_metadata": {"a": 1}}),
            ("editor", "POST", f"{MAIN}/collections", {"name": "other"}),
            ("editor", "DELETE", f"{MAIN}/collections/docs2", None),
            ("admin", "POST", f"{ACME}/databases", {"name": "further"}),
            ("admin", "DELETE", MAIN, None),
            ("owner", "POST", "/api/v2/tenants", {"name": "new-tenant"}),
        ]

    order = ["reader", "writer", "editor", "admin", "owner"]
    for role in order:
        site = await Site().start()
        token = await site.token(Grant(Role(role), "*" if role == "owner" else "acme"))
        for needed, method, path, body in attempts(site):
            status = (await site(method, path, body, token=token)).status
            allowed = order.index(role) >= order.index(needed)
            assert (status < 300) if allowed else (status == 403), (role, method, path, status)


async def test_what_may_not_be_seen_is_answered_as_what_is_not_there() -> None:
    site = await Site().start()
    token = await site.token(Grant(Role.EDITOR, "acme", "main", "docs"))
    seen, hidden, foreign = (site.ids[key] for key in ("acme/docs", "acme/docs2", "zeta/docs"))
    absent = "00000000-0000-4000-8000-000000000000"

    async def error(method: str, path: str, body: Any = None) -> Any:
        return (await site(method, path, body, token=token)).error

    for verb, body in (("get", {}), ("add", BODY)):
        assert (await site("POST", f"{MAIN}/collections/{seen}/{verb}", body, token=token)).status < 300
        for other in (hidden, foreign, absent):
            expected = (404, "NotFoundError", f"Collection [{other}] does not exist.")
            assert await error("POST", f"{MAIN}/collections/{other}/{verb}", body) == expected
    for path in (f"{MAIN}/collections/docs2", f"{MAIN}/collections/nothing"):
        assert (await error("GET", path))[:2] == (404, "NotFoundError")
    for tenant in ("zeta", "nobody"):
        assert (await error("GET", f"/api/v2/tenants/{tenant}"))[2] == f"Tenant [{tenant}] not found"
    names = [item["name"] for item in (await site("GET", f"{MAIN}/collections", token=token)).json]
    assert names == ["docs"]
    assert (await site("GET", f"{MAIN}/collections_count", token=token)).json == 1


async def test_a_rename_out_of_reach_is_noticed_at_once() -> None:
    site = await Site().start()
    token = await site.token(Grant(Role.WRITER, "acme", "main", "docs*"))
    path = f"{MAIN}/collections/{site.ids['acme/docs']}"
    assert (await site("POST", f"{path}/add", BODY, token=token)).status == 201
    ref = CollectionRef("acme", "main", id=site.ids["acme/docs"])
    await site.system.database.modify_collection(ref, name="secret")
    assert (await site("POST", f"{path}/add", BODY, token=token)).status == 404
    assert (await site("POST", f"{path}/get", {}, token=token)).status == 404
    await site.system.database.modify_collection(ref, name="docs3")
    assert (await site("POST", f"{path}/get", {}, token=token)).status == 200


@pytest.mark.parametrize("name", ["secret", "free"])
async def test_nothing_gets_a_name_outside_of_the_grant(name: str) -> None:
    site = await Site().start()
    await site.system.database.create_collection(NewCollection("acme", "main", "secret"))
    token = await site.token(Grant(Role.EDITOR, "acme", "main", "docs*"))
    path = f"{MAIN}/collections/{site.ids['acme/docs']}"
    renamed = await site("PUT", path, {"new_name": name}, token=token)
    made = await site("POST", f"{MAIN}/collections", {"name": name}, token=token)
    assert renamed.error == (403, "ChromaError", "these credentials do not allow modify collection here")
    assert made.error == (403, "ChromaError", "these credentials do not allow create collection here")
    assert (await site("PUT", path, {"new_name": "docs9"}, token=token)).status == 200


async def test_a_reader_gets_or_creates_only_what_is_there() -> None:
    site = await Site().start()
    token = await site.token(Grant(Role.READER, "acme"))
    body = {"name": "docs", "get_or_create": True}
    answer = await site("POST", f"{MAIN}/collections", body, token=token)
    assert answer.json["id"] == site.ids["acme/docs"]
    assert (await site("POST", f"{MAIN}/collections", body | {"name": "new"}, token=token)).status == 403


async def test_guarded_reads_by_id_ask_the_catalog_no_more_often() -> None:
    site = await Site().start()
    token = await site.token(Grant(Role.READER, "acme", "main", "docs*"))
    path = f"{MAIN}/collections/{site.ids['acme/docs']}/count"
    await site("GET", path, token=token)
    calls: list[str] = []
    real = site.system.catalog.get_collection_by_id

    async def counted(collection_id: str) -> Any:
        calls.append(collection_id)
        return await real(collection_id)

    site.system.catalog.get_collection_by_id = counted  # type: ignore[method-assign]
    for _ in range(5):
        assert (await site("GET", path, token=token)).status == 200
    assert calls == []


async def test_too_many_requests_are_told_when_to_come_back() -> None:
    rates = TenantLimits(Rates(reads_per_s=0.4, read_burst=2))
    site = await Site(GateSettings(tenant=rates, tenants={"zeta": TenantLimits()})).start()
    for _ in range(2):
        assert (await site("GET", MAIN, token=ROOT)).status == 200
    answer = await site("GET", MAIN, token=ROOT)
    assert answer.error[:2] == (429, "Backoff")
    assert answer.headers["retry-after"] == "3"
    assert (await site("GET", "/api/v2/tenants/zeta/databases/main", token=ROOT)).status == 200
    await site.system.clock.advance(3)
    assert (await site("GET", MAIN, token=ROOT)).status == 200


async def test_credentials_have_rates_of_their_own_and_refusals_leave_nothing_counted() -> None:
    site = await Site(GateSettings(credential=Rates(writes_per_s=1, write_burst=1, concurrent=1))).start()
    one, two = await site.token(Grant(Role.ADMIN, "acme")), await site.token(Grant(Role.ADMIN, "acme"))
    path = f"{MAIN}/collections/{site.ids['acme/docs']}/add"
    assert (await site("POST", path, BODY, token=one)).status == 201
    assert (await site("POST", path, BODY, token=one)).status == 429
    assert (await site("POST", path, BODY, token=two)).status == 201
    assert (await site("GET", MAIN, token=one)).status == 200


async def test_what_a_credential_may_not_do_does_not_use_up_its_tenants_rate() -> None:
    tenant, credential = Rates(writes_per_s=0.001, write_burst=2), Rates(writes_per_s=0.001, write_burst=1)
    site = await Site(GateSettings(tenant=TenantLimits(rates=tenant), credential=credential)).start()
    one, two = await site.token(Grant(Role.ADMIN, "acme")), await site.token(Grant(Role.ADMIN, "acme"))
    path = f"{MAIN}/collections/{site.ids['acme/docs']}/add"
    assert [(await site("POST", path, BODY, token=one)).status for _ in range(5)] == [201, 429, 429, 429, 429]
    assert (await site("POST", path, BODY, token=two)).status == 201


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize(
    ("quotas", "method", "path", "body"),
    [
        (Quotas(databases=1), "POST", f"{ACME}/databases", {"name": "second"}),
        (Quotas(collections=2), "POST", f"{MAIN}/collections", {"name": "third"}),
        (Quotas(collections_per_database=2), "POST", f"{MAIN}/collections", {"name": "third", "get_or_create": True}),
        (Quotas(batch_records=1), "POST", "add", {"ids": ["a", "b"], "embeddings": [[1.0], [2.0]]}),
        (Quotas(batch_records=1), "POST", "delete", {"ids": ["a", "b"]}),
        (Quotas(dimension=1), "POST", "add", BODY),
        (Quotas(document_size_bytes=3), "POST", "add", BODY | {"documents": ["äöü"]}),
        (Quotas(results=3), "POST", "get", {}),
        (Quotas(results=3), "POST", "get", {"limit": 4}),
        (Quotas(results=3), "POST", "query", {"query_embeddings": [[1.0, 2.0]], "n_results": 4}),
        (Quotas(results=3), "POST", "search", {"searches": [{"limit": {"limit": 4}}]}),
    ],
)
async def test_quotas(quotas: Quotas, method: str, path: str, body: Any, closed: bool) -> None:
    site = await Site(GateSettings(tenant=TenantLimits(quotas=quotas)), closed=closed).start()
    path = path if path.startswith("/") else f"{MAIN}/collections/{site.ids['acme/docs']}/{path}"
    status, name, message = (await site(method, path, body, token=ROOT)).error
    assert (status, name) == (422, "ChromaError")
    assert message.startswith("Quota exceeded")


async def test_within_quotas_all_is_well() -> None:
    quotas = Quotas(2, 3, 3, 10, 4, 100, 10)
    site = await Site(GateSettings(tenant=TenantLimits(quotas=quotas))).start()
    collection = f"{MAIN}/collections/{site.ids['acme/docs']}"
    for method, path, body in (
        ("POST", f"{ACME}/databases", {"name": "second"}),
        ("POST", f"{MAIN}/collections", {"name": "third"}),
        ("POST", f"{MAIN}/collections", {"name": "docs", "get_or_create": True}),
        ("POST", f"{collection}/add", BODY | {"documents": ["x" * 100]}),
        ("POST", f"{collection}/get", {"ids": ["a"]}),
        ("POST", f"{collection}/query", {"query_embeddings": [[1.0, 2.0]]}),
    ):
        assert (await site(method, path, body, token=ROOT)).status < 300, (method, path)


async def test_pages_from_elsewhere_do_not_get_by_without_a_type() -> None:
    site = await Site(closed=False, cors_allow_origins=("https://app.example.com",)).start()
    path = f"{MAIN}/collections/{site.ids['acme/docs']}/add"
    for origin, status in (("https://evil.example.com", 415), ("null", 415), ("https://app.example.com", 201)):
        answer = await site.http("POST", path, BODY, headers={"origin": origin})
        assert (origin, answer.status) == (origin, status)
    own = await site.http("POST", path, BODY, headers={"origin": "http://shoal:1", "host": "shoal:1"})
    assert own.status == 201


async def test_other_origins_only_where_they_are_named() -> None:
    origin = {"origin": "https://app.example.com"}
    preflight = origin | {"access-control-request-method": "POST", "access-control-request-headers": "x-chroma-token"}
    site = await Site(cors_allow_origins=("https://app.example.com",)).start()
    answer = await site.http("OPTIONS", MAIN, headers=preflight)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "https://app.example.com"
    assert "x-chroma-token" in answer.headers["access-control-allow-headers"]
    answer = await site.http("GET", MAIN, headers=origin)
    assert answer.status == 401
    assert answer.headers["access-control-allow-origin"] == "https://app.example.com"
    assert "chroma-trace-id" in answer.headers["access-control-expose-headers"]
    other = await site.http("GET", MAIN, headers={"origin": "https://evil.example.com"})
    assert "access-control-allow-origin" not in other.headers
    off = await Site().start()
    assert "access-control-allow-origin" not in (await off.http("GET", MAIN, headers=origin)).headers
