"""BM25 as the SDK offers it: vectors that are metadata values, and the configuration that Chroma's clients store."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from shoal.embedding import Bm25
from shoal_core.errors import InvalidArgument
from shoal_core.metadata import metadata_columns
from shoal_core.records import SPARSE_TYPE

TEXTS = ["The foxes are running after a fox", "the", ""]
# What ChromaBm25EmbeddingFunction of chromadb 1.5.9 answers.
FOXES_RUN = {
    "indices": [243905464, 1621867415],
    "values": np.array([1.6786885245901642, 1.904311073541843], np.float32).tolist(),
}
EMPTY: dict[str, list[float]] = {"indices": [], "values": []}


def test_documents_and_queries_are_encoded_alike() -> None:
    assert Bm25().embed_documents(TEXTS) == [FOXES_RUN, EMPTY, EMPTY]
    assert Bm25().embed_queries(TEXTS) == [FOXES_RUN, EMPTY, EMPTY]
    assert Bm25().embed_documents([]) == []
    assert Bm25(k=1, b=0).embed_documents(("fox fox",)) == [
        {"indices": [1621867415], "values": [np.float32(4 / 3).item()]}
    ]


def test_vectors_are_metadata_values_one_by_one_and_as_a_column() -> None:
    bm25 = Bm25()
    by_row = metadata_columns([{"bm25": vector} for vector in bm25.embed_documents(TEXTS)], len(TEXTS), deletes=False)
    by_column = metadata_columns({"bm25": bm25.encode(pa.array(TEXTS)).vectors}, len(TEXTS), deletes=False)
    (array,) = by_row.values()
    assert array.type == SPARSE_TYPE
    assert array.to_pylist() == [FOXES_RUN, EMPTY, EMPTY]
    assert {name: column.to_pylist() for name, column in by_column.items()} == {
        name: column.to_pylist() for name, column in by_row.items()
    }


def test_name_and_configuration() -> None:
    bm25 = Bm25(k=0.9, stopwords=("fox",))
    assert bm25.name == "chroma_bm25"
    again = Bm25.from_config(bm25.to_config())
    assert isinstance(again, Bm25)
    assert again == bm25


@pytest.mark.parametrize("texts", ["one text", [1], ["\ud800"], [None]])
def test_what_is_no_text_is_refused(texts: list[str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Bm25().embed_documents(texts)
    assert (caught.value.field or "").startswith("documents")
    with pytest.raises(InvalidArgument) as caught:
        Bm25().embed_queries(texts)
    assert (caught.value.field or "").startswith("query_texts")
