"""A query node of this release beside a compactor of the next one, and what it lets go of with time."""

from __future__ import annotations

import json

import numpy as np
import pytest

from shoal_compactor.compactor import CompactorSettings
from shoal_compactor.flush import FlushSettings
from shoal_core.contracts import CollectionRef
from shoal_core.errors import NewerFormat
from shoal_core.records import ID
from shoal_testing.direct import DirectSystem
from shoal_testing.strategies import to_operation_batch


def _system() -> DirectSystem:
    return DirectSystem(settings=CompactorSettings(flush=FlushSettings(graph_rows=10**9, threads=1)))


async def _put(system: DirectSystem, ref: CollectionRef, *ids: str) -> None:
    await system.append(ref, [to_operation_batch([("upsert", name, (1.0, 2.0), None, None, None) for name in ids], 2)])


async def _ids(system: DirectSystem, ref: CollectionRef) -> list[str]:
    answer = await system.database.query(ref, np.ones((1, 2), np.float32), 100)
    return sorted(answer.rows.column(ID).to_pylist())


async def _as_if_newer(system: DirectSystem, ref: CollectionRef) -> None:
    """The current manifest, as a release would write it whose format this one does not know."""
    key = (await system.catalog.get_version(ref.id)).manifest_key
    later = {"format": 2, "parts": [json.loads(bytes(await system.objects.get(key)))]}
    await system.objects.delete([key])
    await system.objects.put(key, json.dumps(later).encode())


async def test_a_version_of_a_newer_format_does_not_stop_reads_of_what_is_open() -> None:
    system = _system()
    ref = await system.create()
    await _put(system, ref, "a")
    assert await _ids(system, ref) == ["a"]
    await system.compact(ref)
    await _as_if_newer(system, ref)
    for name in ("b", "c", "d"):
        await _put(system, ref, name)
    assert await _ids(system, ref) == ["a", "b", "c", "d"], "from the view and the log"


async def test_a_node_that_has_nothing_open_refuses_by_name_and_serves_the_others() -> None:
    system = _system()
    newer, other = await system.create("newer"), await system.create("other")
    for ref in (newer, other):
        await _put(system, ref, "a")
        await system.compact(ref)
    await _as_if_newer(system, newer)
    for _ in range(2):
        with pytest.raises(NewerFormat, match="newer release wrote this manifest: format 2"):
            await _ids(system, newer)
        assert await _ids(system, other) == ["a"]


async def test_shards_that_are_not_read_are_let_go_of() -> None:
    system = _system()
    read, unread = await system.create("read"), await system.create("unread")
    for ref in (read, unread):
        await _put(system, ref, "a")
        await system.compact(ref)
        await _ids(system, ref)
    await system.clock.advance(60)
    await _ids(system, read)
    assert await system.node.drop_idle(61_000) == 0
    assert await system.node.drop_idle(59_000) == 1
    assert await _ids(system, read) == await _ids(system, unread) == ["a"]
