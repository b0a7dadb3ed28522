"""The default embedding function for Chroma's client, which knows functions by their methods; chromadb is not imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.embedding.gateway import Gateway
from shoal.embedding.minilm import DEFAULT_NAME, MiniLM
from shoal_core.errors import InvalidArgument


class ChromaDefault:
    """all-MiniLM-L6-v2 as Chroma's client calls its functions: the model of its own default one, without a download.

        collection = chromadb.HttpClient().create_collection("films", embedding_function=ChromaDefault())

    The client stores it as ``default``, which every client has: those of Chroma make their own of it, and the SDK this one.

    Args:
        function: with other settings of this process, or in a gateway of one's own.
    """

    def __init__(self, function: MiniLM | Gateway | None = None) -> None:
        given = MiniLM() if function is None else function
        self._gateway = given if isinstance(given, Gateway) else Gateway(given)
        if self._gateway.name != DEFAULT_NAME:
            raise InvalidArgument(f"{self._gateway.name!r} is not the default function", field="function")

    def __call__(self, input: Sequence[str]) -> list[NDArray[np.float32]]:
        """A vector of each document."""
        return list(self._gateway.embed_documents(list(input)))

    def embed_query(self, input: Sequence[str]) -> list[NDArray[np.float32]]:
        """A vector of each query."""
        return list(self._gateway.embed_queries(list(input)))

    @staticmethod
    def name() -> str:
        """``default``."""
        return DEFAULT_NAME

    def get_config(self) -> dict[str, Any]:
        """Empty."""
        return {}

    @staticmethod
    def build_from_config(config: Mapping[str, Any]) -> ChromaDefault:
        """Whatever the configuration, as in the client."""
        return ChromaDefault()

    @staticmethod
    def validate_config(config: Mapping[str, Any]) -> None:
        """Any will do, as in the client."""

    def validate_config_update(self, old_config: Mapping[str, Any], new_config: Mapping[str, Any]) -> None:
        """There is nothing to change."""

    def default_space(self) -> str:
        """``cosine``."""
        return "cosine"

    def supported_spaces(self) -> list[str]:
        """All."""
        return ["cosine", "l2", "ip"]

    def is_legacy(self) -> bool:
        """It can be stored."""
        return False
