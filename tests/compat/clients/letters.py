"""A small deterministic embedding: the counts of the letters a to z, so that texts with the same letters are near each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from chromadb.api.types import Documents, EmbeddingFunction, Embeddings
from chromadb.utils.embedding_functions import register_embedding_function


def letters_of(text: str) -> list[float]:
    """(26,)."""
    return [float(text.lower().count(letter)) for letter in "abcdefghijklmnopqrstuvwxyz"]


@register_embedding_function
class Letters(EmbeddingFunction[Documents]):
    """As the client wants functions that it can make again when a collection is got by name."""

    def __init__(self) -> None:
        """Nothing to set."""

    def __call__(self, input: Documents) -> Embeddings:
        return [np.array(letters_of(text), dtype=np.float32) for text in input]

    @staticmethod
    def name() -> str:
        """Of the function, as it is stored with collections."""
        return "letters"

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> Letters:
        """From what is stored with a collection."""
        return Letters()

    def get_config(self) -> dict[str, Any]:
        """What is stored with a collection."""
        return {"alphabet": "a-z"}
