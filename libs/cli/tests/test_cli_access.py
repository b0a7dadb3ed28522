"""``shoal access`` and the settings of access, against a system in this process that wants to know who calls."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import grpc.aio
import pytest
from typer.testing import CliRunner

from shoal import aio, tls_credentials
from shoal_cli import certificates, up
from shoal_cli.access import admin_of, parse_grant, parse_ttl_ms, shown
from shoal_cli.entry import authenticates, gate_settings
from shoal_cli.main import app
from shoal_cli.up import embedded_server
from shoal_core.contracts import CredentialKind, Grant, Role
from shoal_core.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from shoal_frontend.access.gate import GateSettings, TenantLimits
from shoal_frontend.access.limiter import Rates
from shoal_frontend.access.quotas import Quotas
from shoal_runtime.audit import configure_audit
from shoal_runtime.config import Config, load
from shoal_runtime.frontend_sections import AccessSection, FrontendSection
from shoal_wire.clients import PublicClient

ROOT = "root-token-root-token-root-token"


@pytest.mark.parametrize(
    ("text", "grant"),
    [
        ("reader:acme", Grant(Role.READER, "acme")),
        ("writer:acme/main", Grant(Role.WRITER, "acme", "main")),
        ("editor:acme/main/docs*", Grant(Role.EDITOR, "acme", "main", "docs*")),
        ("owner", Grant(Role.OWNER, "*")),
    ],
)
def test_grants_as_the_command_line_spells_them(text: str, grant: Grant) -> None:
    assert parse_grant(text) == grant
    assert parse_grant(shown(grant)) == grant


@pytest.mark.parametrize("text", ["", "reader", "king:acme", "reader:", "reader:a//c", "reader:a/b/c/d"])
def test_grants_that_are_none(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_grant(text)


def test_lives() -> None:
    assert (parse_ttl_ms(""), parse_ttl_ms("90d"), parse_ttl_ms("5s")) == (None, 7_776_000_000, 5_000)
    for text in ("90", "-1d", "1w", "d"):
        with pytest.raises(InvalidArgument):
            parse_ttl_ms(text)


def test_a_root_token_turns_authentication_on() -> None:
    assert not authenticates(AccessSection())
    assert authenticates(AccessSection(enabled=True))
    assert authenticates(load({"frontend": {"access": {"root_token": ROOT}}}).frontend.access)


def test_tenants_have_what_they_do_not_say_from_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gate_settings(FrontendSection()) == GateSettings()
    own = '{"acme": {"rates": {"reads_per_s": 9}, "quotas": {"results": 0}}}'
    monkeypatch.setenv("SHOAL_FRONTEND__TENANTS", own)
    monkeypatch.setenv("SHOAL_FRONTEND__TENANT__RATES__READS_PER_S", "5")
    monkeypatch.setenv("SHOAL_FRONTEND__TENANT__RATES__CONCURRENT", "7")
    monkeypatch.setenv("SHOAL_FRONTEND__TENANT__QUOTAS__RESULTS", "300")
    monkeypatch.setenv("SHOAL_FRONTEND__CORS_ALLOW_ORIGINS", "https://a.example, https://b.example")
    frontend = load().frontend
    assert frontend.cors_allow_origins == ("https://a.example", "https://b.example")
    settings = gate_settings(frontend)
    assert settings.tenant == TenantLimits(Rates(reads_per_s=5, concurrent=7), Quotas(results=300))
    assert settings.tenants == {"acme": TenantLimits(Rates(reads_per_s=9, concurrent=7), Quotas())}


@pytest.mark.integration
async def test_from_the_root_token_to_a_revoked_one(tmp_path: Path) -> None:
    section = load({"frontend": {"access": {"root_token": ROOT, "cache_ttl_ms": 0}}}).frontend
    async with embedded_server(tmp_path / "data", "127.0.0.1:0", config=Config(frontend=section)) as (address, _):
        for nobody in ("", "wrong", "x" * 32):
            async with await aio.connect(address, token=nobody) as client:
                with pytest.raises(Unauthenticated):
                    await client.status()
        async with await aio.connect(address, token=ROOT) as root:
            await root.status()
        async with admin_of(address, ROOT) as admin:
            grants = [parse_grant("writer:default_tenant/default_database/docs*")]
            credential, token = await admin.create_token("for tests", grants)
            await admin.create_user("ann", "correct horse battery", "", grants)
            assert {item.id for item in await admin.list_credentials()} == {credential.id, "ann"}
        async with admin_of(address, token) as admin:
            assert await admin.whoami() == (f"token:{credential.id}", tuple(grants))
            with pytest.raises(PermissionDenied):
                await admin.create_token("", [Grant(Role.OWNER, "*")])
        async with await aio.connect(address, token=ROOT) as root:
            docs = await root.create_collection("docs")
            await root.create_collection("others")
        async with await aio.connect(address, token=token) as client:
            found = await client.get_collection("docs")
            await found.add(ids=["a"], embeddings=[[1.0, 2.0]])
            assert (await found.get(ids=["a"])).ids == ["a"]
            assert [item.name for item in await client.list_collections()] == ["docs"]
            with pytest.raises(NotFound):
                await client.get_collection("others")
            with pytest.raises(PermissionDenied):
                await client.delete_collection("docs")
        await _calls_at_once_do_not_mix(address, token)
        async with admin_of(address, ROOT) as admin:
            await admin.revoke_credential(CredentialKind.TOKEN, credential.id)
        async with await aio.connect(address, token=token) as client:
            with pytest.raises(Unauthenticated):
                await client.get_collection("docs")
        assert docs.name == "docs"


async def _calls_at_once_do_not_mix(address: str, token: str) -> None:
    """Over one channel, each call has the session of its own credentials."""
    async with grpc.aio.insecure_channel(address) as channel:
        root, other, nobody = (PublicClient(channel, token=each) for each in (ROOT, token, ""))
        calls = [
            client.list_collections("default_tenant", "default_database")
            for _ in range(20)
            for client in (root, other, nobody)
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
    seen = [type(item).__name__ if isinstance(item, BaseException) else len(item) for item in answers]
    assert seen == [2, 1, "Unauthenticated"] * 20


@pytest.mark.integration
async def test_nobody_makes_credentials_before_callers_are_known(tmp_path: Path) -> None:
    async with embedded_server(tmp_path / "data", "127.0.0.1:0") as (address, _), admin_of(address, "") as admin:
        with pytest.raises(FailedPrecondition, match="root_token"):
            await admin.create_token("", [Grant(Role.OWNER, "*")])
        with pytest.raises(FailedPrecondition):
            await admin.list_credentials()


@pytest.mark.integration
async def test_the_commands(tmp_path: Path) -> None:
    section = load({"frontend": {"access": {"root_token": ROOT}}}).frontend
    async with embedded_server(tmp_path / "data", "127.0.0.1:0", config=Config(frontend=section)) as (address, _):

        async def shoal(*arguments: str, token: str = ROOT) -> tuple[int, str]:
            environment = {"SHOAL_TOKEN": token, "SHOAL_PASSWORD": "correct horse battery"}
            command = ["access", *arguments, "--address", address]
            result = await asyncio.to_thread(CliRunner().invoke, app, command, env=environment)
            return result.exit_code, result.output

        code, output = await shoal("token", "create", "--grant", "reader:acme", "--label", "ci", "--ttl", "1d")
        assert code == 0
        token = output.strip().splitlines()[-1]
        credential_id = token.split("_")[1]
        assert (await shoal("user", "create", "ann", "--grant", "admin:acme"))[0] == 0
        code, output = await shoal("token", "list", "--json")
        assert credential_id in output
        assert token not in output
        assert "ann" in (await shoal("user", "list"))[1]
        assert (await shoal("token", "revoke", credential_id))[0] == 0
        code, output = await shoal("token", "list", token=token)
        assert code == 1
        assert token not in output


@pytest.mark.integration
async def test_one_process_speaks_tls_and_has_an_audit_log(tmp_path: Path) -> None:
    certificates.make(tmp_path / "tls", "shoal.internal", [], 1)
    files = {"cert_file": tmp_path / "tls" / "frontend.crt", "key_file": tmp_path / "tls" / "frontend.key"}
    audit = tmp_path / "audit.log"
    config = load({"frontend": {"tls": files, "access": {"root_token": ROOT}}, "audit": {"file": audit}})
    try:
        async with embedded_server(tmp_path / "data", "127.0.0.1:0", config=config) as (address, _):
            credentials = tls_credentials(tmp_path / "tls" / "ca.crt")
            async with await aio.connect(address, token=ROOT, credentials=credentials) as root:
                await root.create_collection("docs")
            async with await aio.connect(address, token=ROOT, timeout_ms=1_000) as plain:
                with pytest.raises(Unavailable):
                    await plain.status()
    finally:
        configure_audit(None)  # closes the file
    assert [json.loads(line)["message"] for line in audit.read_text().splitlines()] == ["create_collection done"]


def test_a_cluster_is_told_about_frontends_compactors_and_the_audit_log(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "FRONTEND__ALLOW_RESET",
        "AUDIT__FILE",
        "COMPACTOR__FLUSH__CODED_GRAPHS",
        "FRONTEND__LISTEN",
        "COMPACTOR__LISTEN",
        "QUERYNODE__THREADS",
    ):
        monkeypatch.setenv(f"SHOAL_{name}", "x")
    assert set(up._passed_on()) == {
        "SHOAL_FRONTEND__ALLOW_RESET",
        "SHOAL_AUDIT__FILE",
        "SHOAL_COMPACTOR__FLUSH__CODED_GRAPHS",
    }
