"""Copies of collections."""

from __future__ import annotations

import pytest
from chromadb.errors import ChromaError

from conftest import Chroma, done


async def test_fork(chroma: Chroma) -> None:
    source = await chroma.create(metadata={"topic": "fish"})
    await done(source.add(ids=["a", "b"], embeddings=[[1.0, 0.0], [0.0, 1.0]], documents=["red", "blue"]))
    fork = await done(source.fork("copy"))
    assert (fork.name, fork.metadata) == ("copy", {"topic": "fish"})
    assert fork.id != source.id
    await done(source.add(ids=["c"], embeddings=[[1.0, 1.0]]))
    await done(fork.delete(ids=["a"]))
    await done(fork.upsert(ids=["d"], embeddings=[[2.0, 2.0]], documents=["green"]))
    assert (await done(source.get()))["ids"] == ["a", "b", "c"]
    got = await done(fork.get())
    assert (got["ids"], got["documents"]) == (["b", "d"], ["blue", "green"])
    found = await done(fork.query(query_embeddings=[[0.0, 1.0]], n_results=1))
    assert found["ids"] == [["b"]]
    assert await done(source.fork_count()) == 1
    with pytest.raises(ChromaError, match="already exists"):
        await done(source.fork("copy"))
    await done(chroma.client.delete_collection("things"))
    assert await done(fork.count()) == 2
