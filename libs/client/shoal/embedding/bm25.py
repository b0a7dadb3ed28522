"""BM25 as sparse vectors, made in the client: for collections whose sparse vectors came from Chroma's function of that name.

Full-text search by BM25 proper needs no embedding function: every collection ranks its documents itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import pyarrow as pa

from shoal.embedding.protocol import check_texts
from shoal_text.bm25 import Bm25Function


class SparseVector(TypedDict):
    """A metadata value. ``indices`` ascend and have a value each."""

    indices: list[int]
    values: list[float]


class Bm25(Bm25Function):
    """Texts → sparse vectors, with the numbers of Chroma's Python client.

        bm25 = Bm25()
        collection.add(ids=ids, documents=texts, metadatas=[{"bm25": vector} for vector in bm25.embed_documents(texts)])

    `encode` does the same for an Arrow column; `to_config` and `from_config` write and read what Chroma's clients store.
    """

    __slots__ = ()

    @property
    def name(self) -> str:
        """``chroma_bm25``."""
        return self.NAME

    def embed_documents(self, texts: Sequence[str]) -> list[SparseVector]:
        """One vector per text, in their order; one without terms is empty. Raises `InvalidArgument` for what is no text."""
        return self._embed(texts, "documents")

    def embed_queries(self, texts: Sequence[str]) -> list[SparseVector]:
        """As `embed_documents`, for texts that are searched with."""
        return self._embed(texts, "query_texts")

    def _embed(self, texts: Sequence[str], field: str) -> list[SparseVector]:
        check_texts(texts, field)
        vectors: list[SparseVector] = self.encode(pa.array(texts, pa.string())).vectors.to_pylist()
        return vectors
