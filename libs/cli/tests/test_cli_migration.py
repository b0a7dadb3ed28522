"""``shoal migrate``, and a sysdb that leaves the schema alone."""

from __future__ import annotations

import asyncio
import sys

import pytest
from pydantic import SecretStr

from shoal_cli.migration import run_migrations
from shoal_core.errors import InvalidArgument
from shoal_runtime.config import Config
from shoal_runtime.sections import PostgresSection
from shoal_sysdb.migrate import load_migrations


async def test_it_needs_a_database() -> None:
    with pytest.raises(InvalidArgument, match=r"^postgres\.dsn: "):
        await run_migrations(Config())


@pytest.mark.integration
async def test_it_says_what_it_did(fresh_database: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(postgres=PostgresSection(dsn=SecretStr(fresh_database)))
    names = [migration.name for migration in load_migrations()]
    end = f"the database has schema version {len(names)}"
    await run_migrations(config)
    assert capsys.readouterr().out.splitlines() == [*(f"applied {name}" for name in names), end]
    await asyncio.gather(*(run_migrations(config) for _ in range(3)))
    assert capsys.readouterr().out.splitlines() == [end] * 3


@pytest.mark.integration
async def test_sysdb_starts_only_on_its_own_schema(fresh_database: str, etcd_endpoint: str) -> None:
    settings = {
        "postgres.dsn": fresh_database,
        "etcd.endpoints": etcd_endpoint,
        "sysdb.listen": "127.0.0.1:0",
        "sysdb.metrics": "",
        "sysdb.migrate_at_start": "false",
    }
    flags = [text for name, value in settings.items() for text in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "shoal_cli", "serve", "sysdb", *flags]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert b"shoal: FailedPrecondition: " in errors
    assert b"run `shoal migrate`" in errors
