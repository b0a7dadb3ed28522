"""Shoal's default embedding function in the hands of Chroma's Python clients, and what either stores read by the other."""

from __future__ import annotations

import site
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromadb.api.types import EmbeddingFunction
from chromadb.utils.embedding_functions import known_embedding_functions

from conftest import TENANT, Chroma, done, host_and_port, sync_client

# Shoal and its model are in the project's own environment; what this one has goes first.
for folder in (Path(__file__).parents[3] / ".venv" / "lib").glob("python*/site-packages"):
    site.addsitedir(str(folder))

TEXTS = {"salt": "a large body of salt water", "nail": "a tool for driving nails", "loaf": "bread from flour"}


@pytest.fixture
def default() -> Iterator[Any]:
    """The function; the client's own registry, which keeps what it has stored, is as before afterwards."""
    from shoal.embedding import ChromaDefault

    before = dict(known_embedding_functions)
    yield ChromaDefault()
    known_embedding_functions.clear()
    known_embedding_functions.update(before)


async def test_text_in_text_out(chroma: Chroma, default: Any) -> None:
    things = await done(chroma.client.create_collection("things", embedding_function=default))
    await done(things.add(ids=[*TEXTS], documents=[*TEXTS.values()]))
    found = await done(things.query(query_texts=["the ocean", "a hammer"], n_results=1))
    assert found["documents"] == [[TEXTS["salt"]], [TEXTS["nail"]]]
    await done(things.update(ids=["loaf"], documents=["a hammer"]))
    again = await done(chroma.client.get_collection("things", embedding_function=default))
    assert (await done(again.query(query_texts=["a hammer"], n_results=1)))["ids"] == [["loaf"]]
    stored = again.configuration_json["embedding_function"]
    assert {name: stored[name] for name in ("type", "name", "config")} == {
        "type": "known",
        "name": "default",
        "config": {},
    }


async def test_what_the_sdk_stored_is_opened(chroma: Chroma, default: Any) -> None:
    """With a version beside the name."""
    from shoal.embedding import MiniLM
    from shoal.embedding.registry import stored_form

    host, port = host_and_port()
    url = f"http://{host}:{port}/api/v2/tenants/{TENANT}/databases/{chroma.database}/collections"
    body = {"name": "things", "configuration": {"embedding_function": stored_form(MiniLM())}}
    made = sync_client(chroma.database)._server._session.post(url, json=body)  # which says who calls
    assert made.status_code == 200, made.text
    things = await done(chroma.client.get_collection("things", embedding_function=default))
    await done(things.add(ids=[*TEXTS], documents=[*TEXTS.values()]))
    assert (await done(things.query(query_texts=["the ocean"], n_results=1)))["ids"] == [["salt"]]
    plain = await done(chroma.client.get_collection("things"))
    assert await done(plain.count()) == 3


async def test_the_vectors_are_those_of_the_function(chroma: Chroma, default: Any) -> None:
    things = await done(chroma.client.create_collection("things", embedding_function=default))
    await done(things.add(ids=[*TEXTS], documents=[*TEXTS.values()]))
    got = await done(things.get(include=["embeddings"]))
    np.testing.assert_allclose(got["embeddings"], default(input=[*TEXTS.values()]), atol=1e-5)


def test_it_is_called_as_the_clients_own_are(default: Any) -> None:
    """Whatever the protocol of the client's functions has, but what is made of others: retries and checks of a subclass."""
    for name in vars(EmbeddingFunction):
        if not name.startswith("_") and name != "embed_with_retries":
            assert callable(getattr(default, name)), name
    assert not default.is_legacy()


def test_what_shoal_stores_is_what_the_client_reads() -> None:
    """Of functions that both have: by the members of the client's own classes."""
    from shoal.embedding import HuggingFaceServer, Ollama, OpenAI, SentenceTransformer
    from shoal.embedding.registry import read_stored, stored_form, stored_function

    for function in (
        Ollama(model_name="m"),
        OpenAI(model_name="text-embedding-3-small", dimensions=256, api_key_env_var="CHROMA_OPENAI_API_KEY"),
        HuggingFaceServer(url="http://localhost:8080/embed"),
        SentenceTransformer(),
    ):
        form = stored_form(function)
        theirs = known_embedding_functions[form["name"]]
        theirs.validate_config(form["config"])
        bare = theirs.__new__(theirs)  # its constructor wants libraries and keys
        for member, value in form["config"].items():
            setattr(bare, member, value)
        assert theirs.get_config(bare) == form["config"]
        found = stored_function(
            {"embedding_function": {"type": "known", "name": form["name"], "config": theirs.get_config(bare)}}
        )
        assert found is not None
        assert read_stored(found) == function
