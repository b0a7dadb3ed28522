"""Forgetting everything, on a server of this test's own that allows it."""

from __future__ import annotations

from typing import Any

import pytest
from chromadb.errors import NotFoundError

from conftest import TENANT, sync_client


def test_reset(admin: Any) -> None:
    client = sync_client("default_database")
    old = client.create_collection("things", embedding_function=None)
    old.add(ids=["a"], embeddings=[[1.0, 2.0]])
    admin.create_tenant("other-tenant")
    admin.create_database("other-database", TENANT)
    assert client.reset() is True
    assert client.list_collections() == []
    for lookup in (
        lambda: admin.get_tenant("other-tenant"),
        lambda: admin.get_database("other-database", TENANT),
        old.count,
    ):
        with pytest.raises(NotFoundError):
            lookup()
    new = client.create_collection("things", embedding_function=None)
    new.add(ids=["b"], embeddings=[[1.0, 2.0, 3.0]])
    assert new.get()["ids"] == ["b"]
