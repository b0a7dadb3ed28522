"""Searches and rank expressions as users build them: objects that write the JSON form of `shoal_core.rank_json`.

    nearest = shoal.Knn("a lost fish", limit=100)
    words = shoal.Knn("lost fish", key="#document", limit=100, default=1.0)
    shoal.Search(where={"year": {"$gte": 2000}}, rank=0.7 * nearest + 0.3 * words, limit=10)

Lower scores are better. What an expression scores, and how operands combine where one lacks a record, is in `shoal_core.ranking`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np

from shoal._prepare import Where, id_list
from shoal_core.errors import InvalidArgument

Json: TypeAlias = Mapping[str, Any]


class Rank:
    """A rank expression. ``+ - * /`` and ``abs`` take other expressions and numbers; nothing is computed here."""

    __slots__ = ()
    __array_ufunc__: ClassVar[None] = None  # numpy's numbers leave the operators to us

    def to_json(self) -> dict[str, Any]:
        """See `shoal_core.rank_json`; queries may be arrays."""
        raise NotImplementedError

    def exp(self) -> Rank:
        """e to the power of it."""
        return Expression({"$exp": self.to_json()})

    def log(self) -> Rank:
        """The natural logarithm."""
        return Expression({"$log": self.to_json()})

    def max(self, other: Operand) -> Rank:
        """The larger one."""
        return _joined("$max", self, other)

    def min(self, other: Operand) -> Rank:
        """The smaller one."""
        return _joined("$min", self, other)

    def __abs__(self) -> Rank:
        return Expression({"$abs": self.to_json()})

    def __neg__(self) -> Rank:
        return _joined("$mul", -1.0, self)

    def __add__(self, other: Operand) -> Rank:
        return _joined("$sum", self, other)

    def __radd__(self, other: Operand) -> Rank:
        return _joined("$sum", other, self)

    def __mul__(self, other: Operand) -> Rank:
        return _joined("$mul", self, other)

    def __rmul__(self, other: Operand) -> Rank:
        return _joined("$mul", other, self)

    def __sub__(self, other: Operand) -> Rank:
        return _sides("$sub", self, other)

    def __rsub__(self, other: Operand) -> Rank:
        return _sides("$sub", other, self)

    def __truediv__(self, other: Operand) -> Rank:
        return _sides("$div", self, other)

    def __rtruediv__(self, other: Operand) -> Rank:
        return _sides("$div", other, self)


Operand: TypeAlias = Rank | Json | float


@dataclass(frozen=True, slots=True, eq=False)
class Knn(Rank):
    """The ``limit`` best records of the collection that match the search's filter, by one query.

    Attributes:
        query: a vector (dim,), a sparse vector ``{"indices": [...], "values": [...]}``, or a text. A text is ranked by BM25
            with the key ``#document``; with ``#embedding`` the collection's embedding function makes a vector of it, with
            another key the function that the schema names for it.
        key: ``#embedding``, ``#document`` or the metadata key of sparse vectors.
        default: what a record that is not among them scores; None leaves it out.
        return_rank: score by position, from 0, instead of by distance or 1 − BM25.
    """

    query: Any
    key: str = "#embedding"
    limit: int = 16
    default: float | None = None
    return_rank: bool = False

    def to_json(self) -> dict[str, Any]:
        """See `Rank.to_json`."""
        return {"$knn": {name: getattr(self, name) for name in ("query", "key", "limit", "default", "return_rank")}}


@dataclass(frozen=True, slots=True, eq=False)
class Val(Rank):
    """A constant. A number stands for it in expressions."""

    value: float

    def to_json(self) -> dict[str, Any]:
        """See `Rank.to_json`."""
        return {"$val": self.value}


@dataclass(frozen=True, slots=True, eq=False)
class Expression(Rank):
    """What operators and `rrf` make."""

    json: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """See `Rank.to_json`."""
        return self.json


def rrf(
    ranks: Sequence[Rank | Json], k: float = 60.0, weights: Sequence[float] | None = None, normalize: bool = False
) -> Rank:
    """Reciprocal rank fusion: −Σ wᵢ / (k + rankᵢ) (Cormack, Clarke and Büttcher 2009).

    A record counts only if every list has it, or its `Knn` has a default, which then is a position such as 1000.

    Args:
        ranks: each a `Knn` with ``return_rank``, or an expression of such.
        k: positive; the larger, the less the first positions stand out.
        weights: one per rank, not negative; None for 1 each.
        normalize: divide the weights by their sum.
    """
    given = {"ranks": [_json_of(rank) for rank in ranks], "k": k, "weights": weights, "normalize": normalize}
    return Expression({"$rrf": given})


@dataclass(frozen=True, slots=True)
class MinK:
    """Of each group, the ``k`` records with the smallest values of ``keys``: metadata keys or ``#score``; later ones break ties."""

    keys: Sequence[str] | str = "#score"
    k: int = 1

    def to_json(self) -> dict[str, Any]:
        """See `shoal_core.rank_json`."""
        return {"$min_k": {"keys": _names(self.keys, "group_by.aggregate.$min_k.keys"), "k": self.k}}


@dataclass(frozen=True, slots=True)
class MaxK:
    """As `MinK`, those with the largest."""

    keys: Sequence[str] | str = "#score"
    k: int = 1

    def to_json(self) -> dict[str, Any]:
        """See `shoal_core.rank_json`."""
        return {"$max_k": {"keys": _names(self.keys, "group_by.aggregate.$max_k.keys"), "k": self.k}}


@dataclass(frozen=True, slots=True)
class GroupBy:
    """Keep the best of each group; the answer stays in order of score.

    Attributes:
        keys: metadata keys whose values make the group. Records without a key are a group of their own.
    """

    keys: Sequence[str] | str
    aggregate: MinK | MaxK = MinK()

    def to_json(self) -> dict[str, Any]:
        """See `shoal_core.rank_json`."""
        return {"keys": _names(self.keys, "group_by.keys"), "aggregate": self.aggregate.to_json()}


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """One search: filter, rank, group, cut, select.

    Attributes:
        where: as `Collection.get` has it; ``#id`` and ``#document`` are keys too.
        ids: only these; None for all.
        rank: None: matching records in order of creation, without scores.
        group_by: needs a rank.
        limit: None for all that the rank finds.
        select: of ``#document``, ``#metadata``, ``#embedding``, ``#score``, ``#uri`` and single metadata keys.
        cursor: of a `SearchResult`, for the page after it, from the same snapshot; ``offset`` does not apply then.
    """

    where: Where | None = None
    ids: Any = None
    rank: Rank | Json | None = None
    group_by: GroupBy | Json | None = None
    limit: int | None = None
    offset: int = 0
    select: Sequence[str] | str = ("#document", "#metadata", "#score")
    cursor: str = ""

    def to_json(self) -> dict[str, Any]:
        """The payload; see `shoal_core.rank_json`. Raises `InvalidArgument`."""
        group_by = self.group_by.to_json() if isinstance(self.group_by, GroupBy) else self.group_by
        return {
            "where": self._where(),
            "rank": None if self.rank is None else _json_of(self.rank),
            "group_by": group_by,
            "limit": {"limit": self.limit, "offset": self.offset},
            "select": {"keys": _names(self.select, "select")},
            "cursor": self.cursor,
        }

    def _where(self) -> Json | None:
        ids = id_list(self.ids)
        if ids is None:
            return self.where
        if not self.where or not isinstance(self.where, Mapping):
            return self.where if self.where else {"query_ids": list(ids)}
        # A key may be called query_ids too.
        conditions = {"$and": [self.where]} if "query_ids" in self.where else self.where
        return {**conditions, "query_ids": list(ids)}


def _json_of(operand: Operand) -> dict[str, Any]:
    if isinstance(operand, Rank):
        return operand.to_json()
    if isinstance(operand, Mapping):
        return dict(operand)
    if isinstance(operand, int | float | np.number) and not isinstance(operand, bool):
        return {"$val": operand}
    raise InvalidArgument(f"expected a rank expression or a number, got {type(operand).__name__}", field="rank")


def _joined(operator: str, left: Operand, right: Operand) -> Expression:
    """Of several operands; a chain becomes one list, in the same order of evaluation."""
    first = _json_of(left)
    chained = first.get(operator)
    operands = chained if isinstance(chained, list) else [first]
    return Expression({operator: [*operands, _json_of(right)]})


def _sides(operator: str, left: Operand, right: Operand) -> Expression:
    return Expression({operator: {"left": _json_of(left), "right": _json_of(right)}})


def _names(keys: Sequence[str] | str, field: str) -> list[str]:
    if isinstance(keys, str):
        return [keys]
    if not isinstance(keys, Iterable):
        raise InvalidArgument(f"expected keys, got {type(keys).__name__}", field=field)
    return list(keys)
