"""The catalog of a process that alone appends: what it tells the log of, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from shoal_cli.embedded import EmbeddedCatalog
from shoal_log.log import LogService
from shoal_sysdb.catalog import CatalogService
from shoal_sysdb.store import PostgresCatalogStore

ID = "00000000-0000-0000-0000-000000000001"


class Told:
    """The log's side: what it heard."""

    def __init__(self) -> None:
        self.changed: list[str] = []

    def catalog_changed(self, collection_id: str) -> None:
        self.changed.append(collection_id)

    def everything_changed(self) -> None:
        self.changed.append("everything")


@pytest.mark.parametrize(
    ("name", "call", "heard"),
    [
        ("modify_collection", lambda catalog: catalog.modify_collection(ID, name="other"), ID),
        ("delete_collection", lambda catalog: catalog.delete_collection(ID), ID),
        ("reset", lambda catalog: catalog.reset(), "everything"),
    ],
)
async def test_a_change_whose_caller_gave_up_is_told_when_it_has_happened(
    monkeypatch: pytest.MonkeyPatch, name: str, call: Callable[[EmbeddedCatalog], Awaitable[object]], heard: str
) -> None:
    """Told at once, the log would ask the database before the change commits, and never again."""
    begun, committed = asyncio.Event(), asyncio.Event()

    async def change(self: CatalogService, *_arguments: Any, **_named: Any) -> None:
        begun.set()
        await committed.wait()

    monkeypatch.setattr(CatalogService, name, change)
    told = Told()
    catalog = EmbeddedCatalog(cast(PostgresCatalogStore, None), cast(LogService, told), max_upload_age_ms=1)
    caller = asyncio.ensure_future(call(catalog))
    await begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert told.changed == [], "the database still has the collection as it was"
    committed.set()
    await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
    assert told.changed == [heard]


async def test_a_change_is_told_before_its_caller_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()

    async def fails(self: CatalogService, _collection_id: str) -> None:
        raise ValueError("of the database")

    monkeypatch.setattr(CatalogService, "delete_collection", fails)
    catalog = EmbeddedCatalog(cast(PostgresCatalogStore, None), cast(LogService, told), max_upload_age_ms=1)
    with pytest.raises(ValueError, match="of the database"):
        await catalog.delete_collection(ID)
    assert told.changed == [ID]
