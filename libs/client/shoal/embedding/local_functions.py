"""Functions in this process besides the default one: sentence-transformers where it is installed."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar, Final

from shoal.embedding.protocol import Vectors, check_texts, check_vectors
from shoal_core.errors import FailedPrecondition, InvalidArgument

_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceTransformer:
    """A model of sentence-transformers that is on this machine already: nothing is downloaded, and no code of a model is run.

    Attributes:
        model_name: as on the hub: ``all-MiniLM-L6-v2`` or ``owner/name``.
        device: of PyTorch.
        normalize_embeddings: to unit length.
        kwargs: of Chroma's configurations; only empty.
    """

    NAME: ClassVar[str] = "sentence_transformer"
    RELEVANT: ClassVar[tuple[str, ...]] = ("model_name", "normalize_embeddings")

    model_name: str = "all-MiniLM-L6-v2"
    device: str = "cpu"
    normalize_embeddings: bool = False
    kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not _HUB_NAME.fullmatch(self.model_name):
            raise InvalidArgument("expected a model's name on the hub", field="model_name")
        if self.kwargs:
            raise InvalidArgument("arguments of the library are not taken from data", field="kwargs")

    @property
    def name(self) -> str:
        """``sentence_transformer``."""
        return self.NAME

    @property
    def dimension(self) -> None:
        """Known once it was loaded."""
        return

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """See `EmbeddingFunction`. Raises `FailedPrecondition` where the library or the model is not there."""
        return self._embed(texts, "documents")

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """As `embed_documents`, as in Chroma's client: models with a prompt per side need `Prefixed`."""
        return self._embed(texts, "query_texts")

    def _embed(self, texts: Sequence[str], place: str) -> Vectors:
        check_texts(texts, place)
        model = _loaded(self.model_name, self.device)
        answer = model.encode(
            list(texts),
            convert_to_numpy=True,
            normalize_embeddings=self.normalize_embeddings,
            show_progress_bar=False,
        )
        return check_vectors(answer, len(texts), dimension=None, name=self.NAME, field=place)


@functools.lru_cache(maxsize=4)
def _loaded(model_name: str, device: str) -> Any:
    try:
        library = import_module("sentence_transformers")
    except ImportError as error:
        raise FailedPrecondition(
            "the function needs the package 'sentence-transformers', which is not installed", field="embedding_function"
        ) from error
    try:
        return library.SentenceTransformer(
            model_name,
            device=device,
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True},
        )
    except (OSError, ValueError) as error:
        raise FailedPrecondition(
            f"the model {model_name!r} of sentence-transformers is not on this machine; download it there first",
            field="embedding_function",
        ) from error
