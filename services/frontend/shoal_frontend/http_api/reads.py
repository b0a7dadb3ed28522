"""Bodies that ask for records → the arguments of the public verbs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal_core.consistency import STRONG, Consistency, ReadLevel
from shoal_core.contracts import Include
from shoal_core.errors import InvalidArgument
from shoal_core.filters import Filter, all_of, parse_where, parse_where_document
from shoal_core.limits import Limits
from shoal_core.rank_json import parse_search
from shoal_core.ranking import Search
from shoal_frontend.http_api.bodies import items, strings, whole
from shoal_frontend.http_api.body_error import BodyError, member, one_of
from shoal_frontend.http_api.vectors import parse_vectors

_COLUMNS = ("distances", "documents", "embeddings", "metadatas", "uris")
_DEFAULT_RESULTS = 10
_BOUNDED_STALENESS_MS = 1_000
_LEVELS = {
    "index_and_wal": STRONG,
    "index_only": Consistency(ReadLevel.INDEX_ONLY),
    "index_and_bounded_wal": Consistency(ReadLevel.BOUNDED, staleness_ms=_BOUNDED_STALENESS_MS),
}


@dataclass(frozen=True, slots=True)
class Selection:
    """Which records. ``ids``: None for all."""

    ids: Sequence[str] | None
    where: Filter | None


@dataclass(frozen=True, slots=True)
class GetBody:
    """``{ids?, where?, where_document?, limit?, offset?, include?}``. ``include``: as it is echoed."""

    selection: Selection
    limit: int | None
    offset: int
    include: list[str]


@dataclass(frozen=True, slots=True, eq=False)
class QueryBody:
    """``{query_embeddings, ids?, where?, where_document?, n_results?, include?}``. ``vectors``: (q, dim); None for no query.
    ``texts``: of ``query_texts`` instead, where the server embeds; None without.
    """

    selection: Selection
    vectors: npt.NDArray[np.float32] | None
    k: int
    include: list[str]
    texts: list[str] | None = None


@dataclass(frozen=True, slots=True)
class DeleteBody:
    """``{ids?, where?, where_document?, limit?}``."""

    selection: Selection
    limit: int | None


@dataclass(frozen=True, slots=True)
class SearchBody:
    """``{searches, read_level?}``. ``selected``: per search the keys asked for, as they are echoed."""

    searches: list[Search]
    selected: list[list[str]]
    consistency: Consistency


def include_of(names: Sequence[str]) -> Include:
    """The columns of an answer by name."""
    return Include(
        documents="documents" in names,
        metadatas="metadatas" in names,
        embeddings="embeddings" in names,
        distances="distances" in names,
        uris="uris" in names,
    )


def parse_get(body: Mapping[str, Any], limits: Limits) -> GetBody:
    """Raises `BodyError`, `InvalidArgument`."""
    include = _include(body, ["documents", "metadatas"])
    limit, offset = whole(body, "limit"), whole(body, "offset")
    return GetBody(_selection_to_read(body, limits), limit, offset or 0, include)


def parse_query(body: Mapping[str, Any], limits: Limits, *, embeds: bool = False) -> QueryBody:
    """``embeds``: the body may have ``query_texts`` instead. Raises `BodyError`, `InvalidArgument`, `DimensionMismatch`."""
    texts = None
    if embeds and body.get("query_embeddings") is None and body.get("query_texts") is not None:
        texts = strings(body["query_texts"], "query_texts")
    vectors = None if texts is not None else parse_vectors(member(body, "query_embeddings", ""), "query_embeddings")
    k = whole(body, "n_results")
    include = _include(body, ["documents", "metadatas", "distances"])
    return QueryBody(
        _selection_to_read(body, limits),
        None if vectors is None else vectors.matrix,
        _DEFAULT_RESULTS if k is None else k,
        include,
        texts or None,
    )


def parse_delete(body: Mapping[str, Any], limits: Limits) -> DeleteBody:
    """Raises `BodyError`, `InvalidArgument`."""
    limit, selection = whole(body, "limit"), _selection(body, limits)
    if limit is not None and selection.where is None:
        message = "limit can only be specified when a where clause is provided"
        raise InvalidArgument(f"Validation error: limit, where: {message}")
    if selection.ids is not None and not selection.ids and selection.where is None:
        raise InvalidArgument("Validation error: ids, where: Either ids or where must be specified")
    return DeleteBody(selection, limit)


def parse_searches(body: Mapping[str, Any], limits: Limits) -> SearchBody:
    """Raises `BodyError`, `InvalidArgument` naming the place in the searches."""
    payloads = items(member(body, "searches", ""), "searches")
    level = body.get("read_level")
    known = STRONG if level is None else _LEVELS[one_of(level, _LEVELS, "read_level")]
    searches = [parse_search(payload, limits, place=f"searches[{at}]") for at, payload in enumerate(payloads)]
    return SearchBody(searches, [_selected(payload) for payload in payloads], known)


def level_of(value: str | None) -> Consistency:
    """The ``read_level`` of a query string."""
    if value is None:
        return STRONG
    try:
        return _LEVELS[one_of(value, _LEVELS, "read_level")]
    except BodyError as error:
        problem = error.message.partition(": ")[2]
        raise InvalidArgument(f"Failed to deserialize query string: {problem}") from error


def _selection(body: Mapping[str, Any], limits: Limits) -> Selection:
    ids = body.get("ids")
    if ids is not None:
        ids = strings(ids, "ids")
    try:
        where = parse_where(body.get("where"), limits)
    except InvalidArgument as error:
        raise InvalidArgument("Invalid where clause") from error
    try:
        where_document = parse_where_document(body.get("where_document"), limits)
    except InvalidArgument as error:
        raise InvalidArgument("Invalid where document clause") from error
    return Selection(ids, all_of(where, where_document))


def _selection_to_read(body: Mapping[str, Any], limits: Limits) -> Selection:
    """Without empty ids: no record has one, and to ask for it is no error."""
    selection = _selection(body, limits)
    if selection.ids is None or "" not in selection.ids:
        return selection
    return Selection([id_ for id_ in selection.ids if id_], selection.where)


def _include(body: Mapping[str, Any], default: list[str]) -> list[str]:
    given = body.get("include")
    if given is None:
        return default
    return [one_of(name, _COLUMNS, f"include[{at}]") for at, name in enumerate(items(given, "include"))]


def _selected(payload: Mapping[str, Any]) -> list[str]:
    """Of a payload that `parse_search` has accepted."""
    select = payload.get("select") or {}
    return list(dict.fromkeys(select.get("keys") or []))
