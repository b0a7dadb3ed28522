"""Searches as given → what the public API takes, with texts embedded; and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal._columns import check_dimension
from shoal._embedder import Embedder
from shoal._prepare import plain, run
from shoal._results import SCORE, GetResult, Record
from shoal._search import Json, Rank, Search
from shoal._sparse import sparse_queries
from shoal_core import ranking
from shoal_core.contracts import Answer, Include
from shoal_core.errors import InvalidArgument
from shoal_core.limits import Limits
from shoal_core.ranking import EMBEDDING_KEY, DenseQuery, Select
from shoal_core.records import URI_KEY, one_chunk
from shoal_core.schema import DOCUMENT_KEY, Schema

SearchLike: TypeAlias = Search | Json

# A level of an expression is at most two mappings and a list; a filter beside it is no deeper.
_CONTAINERS_PER_LEVEL = 3


@dataclass(frozen=True, repr=False, eq=False)
class SearchResult(GetResult):
    """Records in order of score, in columns; iterating gives `Record`s. What was not selected is None.

    Attributes:
        rows, served_at, complete, reason, explain: see `GetResult`.
        cursor: `Search.cursor` of the next page, from the same snapshot; empty if there is none.
        recall: of its lists by vectors; see `QueryResult`.
    """

    recall: float | None = None

    columns: ClassVar[tuple[str, ...]] = ("ids", "documents", "metadatas", "embeddings", "uris", "scores")

    @cached_property
    def scores(self) -> npt.NDArray[np.float64] | None:
        """(n,) float64, ascending, not-a-number last; None if not selected, or for a search without a rank."""
        if SCORE not in self.rows.column_names:
            return None
        found: npt.NDArray[np.float64] = one_chunk(self.rows.column(SCORE)).to_numpy(zero_copy_only=False)
        return found

    def record(self, row: int) -> Record:
        """One row."""
        score = None if self.scores is None else float(self.scores[row])
        return replace(super().record(row), score=score)


@dataclass(frozen=True, slots=True)
class Texts:
    """What makes vectors of query texts: the collection's embedding function, and those that its schema names."""

    embedder: Embedder
    schema: Schema
    dimension: int | None

    async def embed(self, leaves: Sequence[dict[str, Any]]) -> None:
        """Put vectors in the place of the texts under ``query``. Raises `InvalidArgument`, `FailedPrecondition`."""
        for key in dict.fromkeys(leaf.get("key", EMBEDDING_KEY) for leaf in leaves):
            chosen = [leaf for leaf in leaves if leaf.get("key", EMBEDDING_KEY) == key]
            texts = [leaf["query"] for leaf in chosen]
            vectors: Sequence[Any] | npt.NDArray[np.float32]
            if key == EMBEDDING_KEY:
                vectors = await self.embedder.queries(texts, self.dimension, "searches")
            else:
                vectors = await run(partial(sparse_queries, texts, key, self.schema), apart=True)
            for leaf, vector in zip(chosen, vectors, strict=True):
                leaf["query"] = vector


async def read_searches(
    searches: SearchLike | Sequence[SearchLike], texts: Texts, limits: Limits
) -> list[ranking.Search]:
    """Checked and with texts embedded. Raises `InvalidArgument` naming the place, `FailedPrecondition`."""
    given = [searches] if isinstance(searches, Search | Mapping) else searches
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise InvalidArgument(f"expected searches, got {type(searches).__name__}", field="searches")
    if not 1 <= len(given) <= limits.searches:
        raise InvalidArgument(f"{len(given)}; 1 to {limits.searches} in one call are allowed", field="searches")
    leaves: list[dict[str, Any]] = []
    payloads = [_payload(item, f"searches[{number}]", limits, leaves) for number, item in enumerate(given)]

    await texts.embed(leaves)

    def parse() -> list[ranking.Search]:
        return [_parsed(payload, f"searches[{n}]", texts.dimension, limits) for n, payload in enumerate(payloads)]

    return await run(parse, apart=bool(leaves))


def search_result(answer: Answer, select: Select) -> SearchResult:
    """The result of a search."""
    include = Include(
        documents=select.documents,
        metadatas=select.metadatas,
        embeddings=select.embeddings,
        uris=URI_KEY in select.keys,
        keys=tuple(key for key in select.keys if key != URI_KEY),
    )
    return SearchResult(
        answer.rows,
        include,
        answer.served_at,
        answer.complete,
        answer.reason,
        answer.explain,
        answer.cursor,
        answer.recall,
    )


def _payload(item: SearchLike, place: str, limits: Limits, leaves: list[dict[str, Any]]) -> dict[str, Any]:
    """A copy without numpy's types, but for query vectors. What the client has to embed is added to ``leaves``."""
    if not isinstance(item, Search | Mapping):
        raise InvalidArgument(f"expected a search, got {type(item).__name__}", field=place)
    try:
        payload = item.to_json() if isinstance(item, Search) else item
    except InvalidArgument as error:
        raise InvalidArgument(error.message, field=f"{place}.{error.field}") from error
    levels = _CONTAINERS_PER_LEVEL * (max(limits.rank_depth, limits.filter_depth) + 1)
    return {
        name: _copied(value, levels, leaves) if name == "rank" else plain(value, levels)
        for name, value in payload.items()
    }


def _copied(value: Any, levels: int, leaves: list[dict[str, Any]]) -> Any:
    if levels and isinstance(value, Rank):
        return _copied(value.to_json(), levels, leaves)
    if levels and isinstance(value, Mapping):
        return {
            name: _leaf(item, leaves)
            if name == "$knn" and isinstance(item, Mapping)
            else _copied(item, levels - 1, leaves)
            for name, item in value.items()
        }
    if levels and isinstance(value, list | tuple):
        return [_copied(item, levels - 1, leaves) for item in value]
    return plain(value, 0)


def _leaf(operand: Json, leaves: list[dict[str, Any]]) -> dict[str, Any]:
    query, key = operand.get("query"), operand.get("key", EMBEDDING_KEY)
    copy = {name: plain(value, 2) for name, value in operand.items()}
    if isinstance(query, np.ndarray):
        copy["query"] = query
    if isinstance(query, str) and isinstance(key, str) and key != DOCUMENT_KEY:
        leaves.append(copy)
    return copy


def _parsed(payload: Json, place: str, dimension: int | None, limits: Limits) -> ranking.Search:
    # It takes half of pyarrow along, which a client that does not search can do without.
    from shoal_core.rank_json import parse_search, placed_leaves

    search = parse_search(payload, limits, place=place)
    for leaf, where in placed_leaves(search.rank, f"{place}.rank") if search.rank is not None else ():
        if isinstance(leaf.query, DenseQuery):
            check_dimension(len(leaf.query.vector), dimension, f"{where}.$knn.query")
    return search
