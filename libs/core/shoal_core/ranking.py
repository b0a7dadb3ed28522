"""Rank expressions: how a search scores records, as a tree of plain data. Lower scores are better.

A leaf (`Knn`) is a list of the nearest records by one vector or text, over the whole collection. What an expression scores is its
*support*: a leaf supports the records it found; a constant supports none but stands for any. Two operands with no default combine
where both have a record; an operand with a default stands in with it where the other has a record; two with defaults combine where
either has one. `shoal_core.scoring` computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from shoal_core.filters import Filter

EMBEDDING_KEY = "#embedding"
SCORE_KEY = "#score"


@dataclass(frozen=True, slots=True, eq=False)
class DenseQuery:
    """A vector (dim,) float32, compared with embeddings in the collection's space."""

    vector: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class SparseQuery:
    """A sparse vector: (n,) uint32 ascending ``indices`` and (n,) float32 ``values``. Its measure is 1 − dot product."""

    indices: npt.NDArray[np.uint32]
    values: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TextQuery:
    """A text whose terms are looked up in documents. Its measure is 1 − BM25; documents with none of the terms are not found.

    Under ``#embedding`` it stands for its vector, which is put in its place before anything is searched.
    """

    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Knn:
    """The ``limit`` best records of the collection, among those that match the search's filter, by one query.

    Attributes:
        key: ``#embedding`` for a dense query, a metadata key for a sparse one, ``#document`` or ``#embedding`` for a text.
        default: what a record that is not among them scores; None leaves it out.
        return_rank: score by position, from 0, instead of by measure.
    """

    query: DenseQuery | SparseQuery | TextQuery
    key: str = EMBEDDING_KEY
    limit: int = 16
    default: float | None = None
    return_rank: bool = False


@dataclass(frozen=True, slots=True)
class Val:
    """A constant."""

    value: float


@dataclass(frozen=True, slots=True)
class Sum:
    """Of all the children."""

    children: tuple[Rank, ...]


@dataclass(frozen=True, slots=True)
class Mul:
    """The product of all the children."""

    children: tuple[Rank, ...]


@dataclass(frozen=True, slots=True)
class Max:
    """The largest of the children; not-a-number only where all are."""

    children: tuple[Rank, ...]


@dataclass(frozen=True, slots=True)
class Min:
    """The smallest of the children; not-a-number only where all are."""

    children: tuple[Rank, ...]


@dataclass(frozen=True, slots=True)
class Sub:
    """Left minus right."""

    left: Rank
    right: Rank


@dataclass(frozen=True, slots=True)
class Div:
    """Left by right, as IEEE 754 has it."""

    left: Rank
    right: Rank


@dataclass(frozen=True, slots=True)
class Abs:
    """The absolute value."""

    child: Rank


@dataclass(frozen=True, slots=True)
class Exp:
    """e to the power of the child."""

    child: Rank


@dataclass(frozen=True, slots=True)
class Log:
    """The natural logarithm."""

    child: Rank


Rank = Knn | Val | Sum | Mul | Max | Min | Sub | Div | Abs | Exp | Log


@dataclass(frozen=True, slots=True)
class GroupBy:
    """Keep the best ``k`` records of each group; the answer stays in order of score.

    Attributes:
        keys: metadata keys whose values, type included, make the group. Records without a key are a group of their own.
        aggregate: metadata keys or ``#score``; the first decides, the next break ties. Records without the value come last.
        largest: keep those with the largest values (``$max_k``) instead of the smallest (``$min_k``).
    """

    keys: tuple[str, ...]
    aggregate: tuple[str, ...]
    k: int
    largest: bool = False


@dataclass(frozen=True, slots=True)
class Select:
    """Columns of a search's answer besides ids. ``keys``: single metadata keys, where not all ``metadatas`` are wanted."""

    documents: bool = False
    embeddings: bool = False
    metadatas: bool = False
    scores: bool = False
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Search:
    """One search.

    Attributes:
        ids: only these; None for all.
        rank: None: matching records in order of creation, unscored.
        limit: None for all that are left.
        cursor: the page after that answer, from the same snapshot; ``offset`` does not apply then.
    """

    where: Filter | None = None
    ids: tuple[str, ...] | None = None
    rank: Rank | None = None
    group_by: GroupBy | None = None
    limit: int | None = None
    offset: int = 0
    select: Select = Select()
    cursor: str = ""


def children_of(rank: Rank) -> tuple[Rank, ...]:
    """The operands of an expression."""
    match rank:
        case Sum(children) | Mul(children) | Max(children) | Min(children):
            return children
        case Sub(left, right) | Div(left, right):
            return (left, right)
        case Abs(child) | Exp(child) | Log(child):
            return (child,)
        case _:
            return ()


def leaves_of(rank: Rank) -> Iterator[Knn]:
    """The leaves, left to right."""
    if isinstance(rank, Knn):
        yield rank
    for child in children_of(rank):
        yield from leaves_of(child)


def with_leaves(rank: Rank, change: Callable[[Knn], Knn]) -> Rank:
    """The expression with each leaf replaced by what it is changed to."""
    match rank:
        case Knn():
            return change(rank)
        case Sum(children) | Mul(children) | Max(children) | Min(children):
            return replace(rank, children=tuple(with_leaves(child, change) for child in children))
        case Sub(left, right) | Div(left, right):
            return replace(rank, left=with_leaves(left, change), right=with_leaves(right, change))
        case Abs(child) | Exp(child) | Log(child):
            return replace(rank, child=with_leaves(child, change))
        case _:
            return rank
