"""Learned sparse functions: the libraries' vectors as they are, sides apart, from configurations that Chroma's clients store."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shoal._sparse import sparse_queries, sparse_vectors
from shoal.embedding import sparse_functions
from shoal.embedding.protocol import Side
from shoal.embedding.sparse_functions import sparse_function
from shoal_core.errors import FailedPrecondition, InvalidArgument
from shoal_core.schema import Schema, SparseConfig

FASTEMBED: dict[str, Any] = {
    "model_name": "prithivida/Splade_PP_en_v1",
    "task": "document",
    "query_config": {"task": "query"},
    "cache_dir": None,
    "threads": 2,
    "cuda": None,
    "device_ids": None,
    "lazy_load": None,
}
HUGGING_FACE: dict[str, Any] = {
    "model_name": "naver/splade-v3",
    "device": "cpu",
    "task": "document",
    "query_config": None,
    "kwargs": {},
}


@pytest.fixture(autouse=True)
def nothing_is_loaded() -> Iterator[None]:
    for cached in (sparse_functions._fastembed_model, sparse_functions._sparse_encoder):
        cached.cache_clear()
    yield
    for cached in (sparse_functions._fastembed_model, sparse_functions._sparse_encoder):
        cached.cache_clear()


class Model:
    """Of both libraries: the length of a text at index 7, and 1 at index 3 for documents, 2 for queries."""

    made: dict[str, Any]

    def __init__(self, name: str, **settings: Any) -> None:
        Model.made = {"name": name, **settings}

    def embed(self, texts: Sequence[str]) -> Iterator[Any]:
        return (SimpleNamespace(indices=np.array([7, 3]), values=np.array([len(text), 1.0])) for text in texts)

    def query_embed(self, texts: Sequence[str]) -> Iterator[Any]:
        return (SimpleNamespace(indices=np.array([7, 3]), values=np.array([len(text), 2.0])) for text in texts)

    def encode_document(self, texts: Sequence[str]) -> list[Any]:
        return [np.array([0, 0, 0, 1, 0, 0, 0, len(text)], np.float32) for text in texts]

    def encode_query(self, texts: Sequence[str]) -> list[Any]:
        return [np.array([0, 0, 0, 2, 0, 0, 0, len(text)], np.float32) for text in texts]


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastembed", SimpleNamespace(SparseTextEmbedding=Model))
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SparseEncoder=Model))


def schema_of(name: str, config: Any) -> Schema:
    return Schema(
        sparse={"s": SparseConfig(source_key="#document", embedding_function={"name": name, "config": config})}
    )


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize(
    ("name", "config", "of_queries"), [("fastembed_sparse", FASTEMBED, 2.0), ("huggingface_sparse", HUGGING_FACE, 1.0)]
)
def test_vectors_are_the_librarys_in_the_order_of_the_texts(name: str, config: Any, of_queries: float) -> None:
    schema = schema_of(name, config)
    found = sparse_vectors(pa.array(["a", None, "ccc"]), "s", schema, Side.DOCUMENTS)
    assert found.to_pylist() == [
        {"indices": [3, 7], "values": [1.0, 1.0]},
        None,
        {"indices": [3, 7], "values": [1.0, 3.0]},
    ]
    assert sparse_queries(["dddd"], "s", schema) == [{"indices": [3, 7], "values": [of_queries, 4.0]}]
    assert Model.made["name"] == config["model_name"]
    assert Model.made["local_files_only"], "nothing is downloaded"
    assert not Model.made.get("trust_remote_code", False)
    assert sparse_vectors(pa.array([None], pa.string()), "s", schema, Side.DOCUMENTS).to_pylist() == [None]


@pytest.mark.parametrize(
    ("name", "config", "place"),
    [
        ("fastembed_sparse", {}, "model_name"),
        ("fastembed_sparse", {**FASTEMBED, "task": "both"}, "task"),
        ("fastembed_sparse", {**FASTEMBED, "query_config": {}}, "query_config"),
        ("fastembed_sparse", {**FASTEMBED, "device_ids": [0]}, "device_ids"),
        ("huggingface_sparse", {**HUGGING_FACE, "kwargs": {"revision": "x"}}, "kwargs"),
        ("huggingface_sparse", {**HUGGING_FACE, "trust_remote_code": True}, "trust_remote_code"),
        ("huggingface_sparse", {**HUGGING_FACE, "api_key": "sesame"}, "api_key"),
        ("huggingface_sparse", ["x"], "config"),
    ],
)
def test_what_is_no_configuration_is_said(name: str, config: Any, place: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        sparse_function({"name": name, "config": config}, "here")
    assert place in caught.value.field
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(("name", "config"), [("fastembed_sparse", FASTEMBED), ("huggingface_sparse", HUGGING_FACE)])
def test_a_library_or_a_model_that_is_missing_is_said(name: str, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    function, texts = sparse_function({"name": name, "config": config}, "here"), pa.array(["a"])
    for module in ("fastembed", "sentence_transformers"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(FailedPrecondition, match="not installed"):
        function.encode(texts, Side.DOCUMENTS)

    def absent(*_: Any, **__: Any) -> None:
        raise OSError("no such file")

    monkeypatch.setitem(sys.modules, "fastembed", SimpleNamespace(SparseTextEmbedding=absent))
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SparseEncoder=absent))
    with pytest.raises(FailedPrecondition, match="not on this machine"):
        function.encode(texts, Side.DOCUMENTS)


@pytest.mark.usefixtures("libraries")
def test_what_does_not_fit_the_texts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    function = sparse_function({"name": "fastembed_sparse", "config": FASTEMBED}, "here")
    monkeypatch.setattr(Model, "embed", lambda self, texts: iter(()))
    with pytest.raises(InvalidArgument, match="0 sparse vectors for 1 texts"):
        function.encode(pa.array(["a"]), Side.DOCUMENTS)
    short = SimpleNamespace(indices=np.array([1, 2]), values=np.array([1.0]))
    monkeypatch.setattr(Model, "embed", lambda self, texts: iter([short]))
    with pytest.raises(InvalidArgument, match="not as many"):
        function.encode(pa.array(["a"]), Side.DOCUMENTS)


def test_another_function_is_not_built_in() -> None:
    with pytest.raises(FailedPrecondition, match="'chroma-cloud-splade' is not built in"):
        sparse_function({"name": "chroma-cloud-splade", "config": {}}, "here")
