"""Searches as the public API takes them, put to the oracle."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pyarrow as pa

from shoal_core.errors import InvalidArgument
from shoal_core.ranking import (
    Abs,
    DenseQuery,
    Div,
    Exp,
    GroupBy,
    Knn,
    Log,
    Rank,
    Search,
    SparseQuery,
    Sub,
    Val,
    children_of,
)
from shoal_testing.oracle import OracleState


def search_rows(state: OracleState, search: Search, ids: Collection[str]) -> tuple[list[str], pa.Array | None]:
    """The ids that a search finds among ``ids``, in order, and their scores if it has a rank."""
    payload: dict[str, Any] = {"limit": {"limit": search.limit, "offset": search.offset}}
    payload["select"] = {"keys": ["#score"]}
    if search.rank is not None:
        payload["rank"] = rank_json(search.rank)
    if search.group_by is not None:
        payload["group_by"] = group_by_json(search.group_by)
    found = state.search(payload, ids).rows
    scores = None if search.rank is None else pa.array([row["score"] for row in found], pa.float64())
    return [row["id"] for row in found], scores


def rank_json(rank: Rank) -> dict[str, Any]:
    """The JSON form of an expression."""
    name = f"${type(rank).__name__.lower()}"
    parts = [rank_json(child) for child in children_of(rank)]
    match rank:
        case Knn():
            given = {"key": rank.key, "limit": rank.limit, "default": rank.default, "return_rank": rank.return_rank}
            return {"$knn": {"query": query_json(rank), **given}}
        case Val(value):
            return {"$val": value}
        case Sub() | Div():
            return {name: dict(zip(("left", "right"), parts, strict=True))}
        case Abs() | Exp() | Log():
            return {name: parts[0]}
        case _:
            return {name: parts}


def query_json(leaf: Knn) -> Any:
    """The query of a leaf. Raises `InvalidArgument` for a text that no server can embed."""
    if isinstance(leaf.query, DenseQuery):
        return leaf.query.vector.tolist()
    if isinstance(leaf.query, SparseQuery):
        return {"indices": leaf.query.indices.tolist(), "values": leaf.query.values.tolist()}
    if leaf.key != "#document":
        raise InvalidArgument("a text reached the server")
    return leaf.query.text


def group_by_json(group_by: GroupBy) -> dict[str, Any]:
    """The JSON form of a grouping."""
    aggregate = {"keys": list(group_by.aggregate), "k": group_by.k}
    return {
        "keys": list(group_by.keys),
        "aggregate": {"$max_k" if group_by.largest else "$min_k": aggregate},
    }
