"""Embedding functions: texts in, vectors out, in the client.

`default_embedding_function()` is what collections use unless told otherwise; `CallableEmbedding` adapts any callable, `Bounded`
keeps its calls within bounds. `Bm25` makes sparse vectors, which are metadata.
Importing this package loads no model and no inference runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from shoal.embedding.bounded import Bounded
from shoal.embedding.minilm import NAME as MINILM_NAME
from shoal.embedding.minilm import MiniLM
from shoal.embedding.protocol import (
    CallableEmbedding,
    EmbeddingFunction,
    Vectors,
    check_vectors,
    embed_documents,
    embed_queries,
)
from shoal_core.errors import InvalidArgument

if TYPE_CHECKING:
    from shoal.embedding.bm25 import Bm25, SparseVector

__all__ = [
    "Bm25",
    "Bounded",
    "CallableEmbedding",
    "EmbeddingFunction",
    "MiniLM",
    "SparseVector",
    "Vectors",
    "by_name",
    "check_vectors",
    "default_embedding_function",
    "embed_documents",
    "embed_queries",
]

_BUILT_IN: Final[Mapping[str, Callable[[], EmbeddingFunction]]] = MappingProxyType(
    {"default": MiniLM, MINILM_NAME: MiniLM}
)


def __getattr__(name: str) -> Any:
    """``Bm25`` and ``SparseVector`` on first use: most programs need no text analysis, and it takes a while to load."""
    if name not in ("Bm25", "SparseVector"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from shoal.embedding import bm25

    return getattr(bm25, name)


def default_embedding_function() -> EmbeddingFunction:
    """all-MiniLM-L6-v2 on every core of this process; nothing is loaded before its first text."""
    return MiniLM()


def by_name(name: str) -> EmbeddingFunction:
    """The built-in embedding function that a collection's stored `name` stands for.

    Raises:
        InvalidArgument: the name is not built in; pass the function itself to the collection.
    """
    make = _BUILT_IN.get(name)
    if make is None:
        known = ", ".join(sorted(_BUILT_IN))
        raise InvalidArgument(
            f"no embedding function {name!r} is built in (there are: {known}); pass the function itself",
            field="embedding_function",
        )
    return make()
