"""A whole system with short times: what was deleted is gone from the bucket, the log's tables and their files, and the rest is not."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import asyncpg
import pyarrow as pa
import pytest

from shoal_cli.embedded import EmbeddedSettings, EmbeddedSystem
from shoal_compactor.compactor import CompactorSettings
from shoal_compactor.garbage import GarbageSettings
from shoal_core.contracts import CollectionRef, NewCollection
from shoal_log import AppendSettings, LogSettings
from shoal_log.settings import TrimSettings
from shoal_testing.fake_catalog import DEFAULT_DATABASE, DEFAULT_TENANT
from shoal_testing.strategies import to_operation_batch

pytestmark = pytest.mark.integration

ERASED = "the telephone number of ada pepperpot"
KEPT = "a large body of salt water"
WAIT_S = 60.0
SETTINGS = EmbeddedSettings(
    log=LogSettings(
        append=AppendSettings(inline_limit_bytes=4_000),
        trim=TrimSettings(period_ms=1_000, interval_ms=200, retention_ms=0, version_retention_ms=0),
    ),
    compactor=CompactorSettings(
        min_records=1,
        poll_ms=50,
        erasure_deadline_ms=2_000,
        garbage=GarbageSettings(interval_ms=200, version_retention_ms=200, deleted_retention_ms=0, grace_ms=0),
    ),
)


def _holding(folder: Path, text: str) -> list[str]:
    """Files that hold the text. Blocks and payloads are not compressed, nor are rows of Postgres as small as these."""
    found = []
    for path in folder.rglob("*"):
        try:
            if path.is_file() and text.encode() in path.read_bytes():
                found.append(str(path))
        except FileNotFoundError:
            continue  # swept or dropped just now
    return found


@pytest.mark.parametrize("padding", [0, 10_000], ids=["inline", "object"])
async def test_a_deleted_record_leaves_no_bytes(tmp_path: Path, padding: int) -> None:
    system = EmbeddedSystem(tmp_path, SETTINGS)
    await system.start()
    try:
        await _play(system, tmp_path, "." * padding)
    finally:
        await system.close()


async def _play(system: EmbeddedSystem, path: Path, padding: str) -> None:
    objects, tables = path / "objects", path / "postgres" / "pgdata" / "base"
    new = NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, "people")
    await system.api.create_collection(new, get_or_create=False)
    ref = CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, "people")
    await system.api.write(ref, _batch(("add", "erased", ERASED + padding)))
    await system.api.write(ref, _batch(*(("add", f"id{number}", f"{KEPT} {number}") for number in range(20))))
    connection = await asyncpg.connect(_dsn(path / "postgres"))
    try:
        await connection.execute("CHECKPOINT")
        assert _holding(objects if padding else tables, ERASED)
        given_up_at = time.monotonic() + WAIT_S
        while not _holding(objects / "segments", ERASED):
            assert time.monotonic() < given_up_at
            await asyncio.sleep(0.1)
        await system.api.write(ref, _batch(("delete", "erased", None)))
        given_up_at = time.monotonic() + WAIT_S
        while found := _holding(objects, ERASED) + _holding(tables, ERASED):
            assert time.monotonic() < given_up_at, found
            await connection.execute("CHECKPOINT")  # removes what is left of files of dropped tables
            await asyncio.sleep(0.1)
    finally:
        await connection.close()
    assert _holding(objects, KEPT)
    assert (await system.api.count(ref)).count == 20


def _dsn(server: Path) -> str:
    port, password = (
        json.loads((server / "ports.json").read_text())["postgres"],
        (server / "password").read_text().strip(),
    )
    return f"postgresql://shoal:{password}@127.0.0.1:{port}/shoal"


def _batch(*rows: tuple[str, str, str | None]) -> pa.RecordBatch:
    return to_operation_batch(
        [(op, name, None if text is None else (1.0, 2.0), text, None, None) for op, name, text in rows], 2
    )
