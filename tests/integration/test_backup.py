"""A copy of a data directory that nobody has open is a backup."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from shoal_cli.embedded import EmbeddedSystem
from shoal_core.contracts import CollectionRef, NewCollection
from shoal_testing.fake_catalog import DEFAULT_DATABASE, DEFAULT_TENANT
from shoal_testing.strategies import to_operation_batch

pytestmark = pytest.mark.integration

REF = CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, "things")


async def _write(system: EmbeddedSystem, *ids: str) -> None:
    rows = [("upsert", name, (1.0, 2.0), None, None, None) for name in ids]
    await system.api.write(REF, to_operation_batch(rows, 2))


async def test_what_was_copied_is_what_comes_back(tmp_path: Path) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    system = EmbeddedSystem(original)
    await system.start()
    try:
        await system.api.create_collection(NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, "things"))
        await _write(system, "a", "b")
        await system.compactor.compact((await system.api.get_collection(REF)).id, merge=True)
        await _write(system, "c")
    finally:
        await system.close()
    await asyncio.to_thread(lambda: subprocess.run(["cp", "--archive", str(original), str(copy)], check=True))
    for path, written in ((original, "d"), (copy, "e")):
        system = EmbeddedSystem(path)
        await system.start()
        try:
            assert (await system.api.count(REF)).count == 3
            await _write(system, written)
            assert (await system.api.count(REF)).count == 4
        finally:
            await system.close()
