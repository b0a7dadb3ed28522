"""Functions attached to collections, which run with compaction."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from chromadb.api.functions import RECORD_COUNTER_FUNCTION
from chromadb.errors import NotFoundError
from chromadb.utils.statistics import attach_statistics_function, detach_statistics_function, get_statistics

from conftest import sync_client

_ROUNDS, _POLL_S = 300, 0.2


def test_a_record_counter(database: str) -> None:
    """With the sync client: the async one has no functions."""
    collection = sync_client(database).create_collection("things", embedding_function=None)
    attached, created = collection.attach_function(RECORD_COUNTER_FUNCTION, "counter", "counts")
    assert (attached.name, created) == ("counter", True)
    _, created = collection.attach_function(RECORD_COUNTER_FUNCTION, "counter", "counts")
    assert created is False
    got = collection.get_attached_function("counter")
    assert (got.name, got.output_collection) == ("counter", "counts")
    assert collection.detach_function("counter", delete_output_collection=True)
    with pytest.raises(NotFoundError):
        collection.get_attached_function("counter")


def test_statistics(database: str) -> None:
    client = sync_client(database)
    collection: Any = client.create_collection("things", embedding_function=None)
    _, created = attach_statistics_function(collection, "things-statistics")
    assert created
    count = 200
    metadatas: list[Any] = [{"color": "red" if number % 4 else "blue"} for number in range(count)]
    collection.add(
        ids=[f"{n}" for n in range(count)], embeddings=[[float(n)] for n in range(count)], metadatas=metadatas
    )
    asyncio.run(_counted(collection, count))
    statistics = get_statistics(collection, "things-statistics")
    assert statistics["statistics"]["color"] == {"red": {"count": 150}, "blue": {"count": 50}}
    assert detach_statistics_function(collection, delete_stats_collection=True)


async def _counted(collection: Any, count: int) -> None:
    """Wait for the compaction with which the function runs."""
    for _ in range(_ROUNDS):
        try:
            if get_statistics(collection, "things-statistics").get("summary", {}).get("total_count") == count:
                return
        except NotFoundError:
            pass  # its output is made when it runs first
        await asyncio.sleep(_POLL_S)
    raise AssertionError("the statistics were not counted")
