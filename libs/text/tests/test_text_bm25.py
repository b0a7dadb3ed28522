"""BM25 as an embedding function: the numbers of the reference's Python client, and its configuration.

``chroma_bm25_golden.json`` holds what ChromaBm25EmbeddingFunction of chromadb 1.5.9 makes of some sixty texts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shoal_core.errors import InvalidArgument
from shoal_core.records import SPARSE_TYPE
from shoal_text.bm25 import Bm25Function

GOLDEN = json.loads(Path(__file__).with_name("chroma_bm25_golden.json").read_text())


@pytest.mark.parametrize("case", GOLDEN, ids=["default", "own settings"])
def test_vectors_are_those_of_the_reference(case: dict[str, Any]) -> None:
    expected = case["vectors"]
    function = Bm25Function.from_config(case["config"] | {"include_tokens": True})
    column = function.encode(pa.array([vector["text"] for vector in expected]))
    assert column.vectors.type == SPARSE_TYPE
    assert column.tokens is not None
    for found, tokens, vector in zip(column.vectors.to_pylist(), column.tokens.to_pylist(), expected, strict=True):
        assert found["indices"] == vector["indices"], vector["text"]
        assert found["values"] == np.array(vector["values"], np.float32).tolist(), vector["text"]
        assert tokens == vector["tokens"], vector["text"]


def test_the_golden_texts_cover_something() -> None:
    vectors = GOLDEN[0]["vectors"]
    assert len(vectors) > 50
    assert sum(len(vector["indices"]) for vector in vectors) > 200


def test_tokens_with_the_same_hash_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = {"fox": -(2**31), "dog": 5, "cat": -5}
    monkeypatch.setattr("mmh3.hash", hashes.__getitem__)
    column = Bm25Function(k=1.0, b=0.0, include_tokens=True).encode(
        pa.array(["dog cat fox", "cat fox", "dog dog cat cat"])
    )
    assert column.vectors.to_pylist() == [
        {"indices": [5, 2**31], "values": [np.float32(2 * 2 / 3), 1.0]},
        {"indices": [5, 2**31], "values": [1.0, 1.0]},
        {"indices": [5], "values": [np.float32(4 * 2 / 5)]},
    ]
    assert column.tokens is not None
    assert column.tokens.to_pylist() == [["dog", "fox"], ["cat", "fox"], ["dog"]]


def test_a_null_is_a_null_and_no_terms_are_an_empty_vector() -> None:
    documents = pa.chunked_array([pa.array(["x", None, "the"]), pa.array(["fox"])])[1:]
    column = Bm25Function().encode(documents)
    assert [vector and len(vector["indices"]) for vector in column.vectors.to_pylist()] == [None, 0, 1]
    assert column.tokens is None
    assert len(Bm25Function().encode(pa.array([], pa.string())).vectors) == 0


def test_configuration_round_trip() -> None:
    assert Bm25Function().to_config() == {
        "k": 1.2,
        "b": 0.75,
        "avg_doc_length": 256.0,
        "token_max_length": 40,
        "include_tokens": False,
    }
    function = Bm25Function(0.9, 0.4, 10.0, 5, ("fox",), True)
    assert function.to_config()["stopwords"] == ["fox"]
    assert Bm25Function.from_config(json.loads(json.dumps(function.to_config()))) == function
    assert Bm25Function.from_config({}) == Bm25Function()
    assert [Bm25Function.from_config(case["config"]).to_config() for case in GOLDEN] == [
        case["config"] for case in GOLDEN
    ]


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"k": -1}, "k"),
        ({"k": "1"}, "k"),
        ({"b": 1.5}, "b"),
        ({"b": float("nan")}, "b"),
        ({"avg_doc_length": 0}, "avg_doc_length"),
        ({"token_max_length": True}, "token_max_length"),
        ({"stopwords": "the"}, "stopwords"),
        ({"stopwords": [1]}, "stopwords"),
        ({"include_tokens": 1}, "include_tokens"),
        ({"language": "english"}, "language"),
    ],
)
def test_what_is_refused_is_named(config: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Bm25Function.from_config(config)
    assert caught.value.field == field
