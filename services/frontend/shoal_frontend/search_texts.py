"""Texts that searches compare with embeddings: the server makes one vector of each, and puts it in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from shoal_core.ranking import EMBEDDING_KEY, DenseQuery, Knn, Search, TextQuery, leaves_of, with_leaves

Vector = npt.NDArray[np.float32]


def texts_to_embed(searches: Sequence[Search]) -> dict[str, int]:
    """Each distinct text, and the number of the first search that has it."""
    found: dict[str, int] = {}
    for number, item in enumerate(searches):
        for leaf in () if item.rank is None else leaves_of(item.rank):
            text = text_of(leaf)
            if text is not None:
                found.setdefault(text, number)
    return found


def with_vectors(searches: Sequence[Search], vectors: Mapping[str, Vector]) -> list[Search]:
    """The searches with the vector (dim,) of each such text in its place."""

    def change(leaf: Knn) -> Knn:
        text = text_of(leaf)
        return leaf if text is None else replace(leaf, query=DenseQuery(vectors[text]))

    return [item if item.rank is None else replace(item, rank=with_leaves(item.rank, change)) for item in searches]


def text_of(leaf: Knn) -> str | None:
    """The text that stands for its vector, if that is what the leaf's query is."""
    return leaf.query.text if leaf.key == EMBEDDING_KEY and isinstance(leaf.query, TextQuery) else None
