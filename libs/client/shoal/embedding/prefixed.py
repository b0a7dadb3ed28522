"""Texts with a prefix for each side, as models of the E5 and BGE families want them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from shoal.embedding.protocol import EmbeddingFunction, RemoteFunction, Side
from shoal_core.errors import InvalidArgument

if TYPE_CHECKING:
    from shoal.embedding.core import Backend


@dataclass(frozen=True, slots=True)
class Prefixed:
    """A function whose texts begin with what their side wants.

        Prefixed(SentenceTransformer(model_name="intfloat/e5-small-v2"), document_prefix="passage: ", query_prefix="query: ")

    Attributes:
        function: a local or a remote one.
    """

    NAME: ClassVar[str] = "prefixed"

    function: EmbeddingFunction | RemoteFunction
    document_prefix: str = ""
    query_prefix: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.function, type) or not isinstance(self.function, EmbeddingFunction | RemoteFunction):
            raise InvalidArgument(f"{self.function!r} is neither a local nor a remote function", field="function")

    @property
    def name(self) -> str:
        """``prefixed``."""
        return self.NAME

    @property
    def dimension(self) -> int | None:
        """Of the function within."""
        return self.function.dimension


class PrefixedBackend:
    """Puts prefixes before the texts of another backend."""

    def __init__(self, backend: Backend, prefixed: Prefixed) -> None:
        self._backend = backend
        self._prefixes = {Side.DOCUMENTS: prefixed.document_prefix, Side.QUERIES: prefixed.query_prefix}

    async def call(self, texts: Sequence[str], side: Side) -> object:
        """See `Backend.call`."""
        prefix = self._prefixes[side]
        return await self._backend.call([prefix + text for text in texts] if prefix else texts, side)
