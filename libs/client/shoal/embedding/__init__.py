"""Embedding functions: texts in, vectors out.

`default_embedding_function()` is what collections use unless told otherwise; `Ollama`, `OpenAI` (and what speaks its protocol) and
`HuggingFaceServer` ask a service; `SentenceTransformer` and `CallableEmbedding` run here; `Prefixed` puts a prefix before the texts
of each side. `Gateway` calls any of them within bounds. `Bm25` makes sparse vectors, which are metadata.
Importing this package loads no model, no inference runtime and no HTTP library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal.embedding.chroma import ChromaDefault
from shoal.embedding.core import Counters
from shoal.embedding.gateway import Gateway
from shoal.embedding.limits import GatewayLimits
from shoal.embedding.local_functions import SentenceTransformer
from shoal.embedding.minilm import MiniLM
from shoal.embedding.prefixed import Prefixed
from shoal.embedding.protocol import (
    CallableEmbedding,
    EmbeddingFunction,
    RemoteFunction,
    Request,
    Side,
    Vectors,
    check_vectors,
    embed_documents,
    embed_queries,
)
from shoal.embedding.registry import Function
from shoal.embedding.services import HuggingFaceServer, Ollama, OpenAI

if TYPE_CHECKING:
    from shoal.embedding.bm25 import Bm25, SparseVector

__all__ = [
    "Bm25",
    "CallableEmbedding",
    "ChromaDefault",
    "Counters",
    "EmbeddingFunction",
    "Function",
    "Gateway",
    "GatewayLimits",
    "HuggingFaceServer",
    "MiniLM",
    "Ollama",
    "OpenAI",
    "Prefixed",
    "RemoteFunction",
    "Request",
    "SentenceTransformer",
    "Side",
    "SparseVector",
    "Vectors",
    "check_vectors",
    "default_embedding_function",
    "embed_documents",
    "embed_queries",
]


def __getattr__(name: str) -> Any:
    """``Bm25`` and ``SparseVector`` on first use: most programs need no text analysis, and it takes a while to load."""
    if name not in ("Bm25", "SparseVector"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from shoal.embedding import bm25

    return getattr(bm25, name)


def default_embedding_function() -> MiniLM:
    """all-MiniLM-L6-v2 on every core of this process; nothing is loaded before its first text."""
    return MiniLM()
