"""The JSON form of searches and rank expressions, and the limits of both.

    search:    {"filter": where, "rank": rank, "group_by": …, "limit": {"offset", "limit"}, "select": {"keys": […]}, "cursor": text}
    where:     see `filters`; a list under "query_ids" beside it names the only ids
    rank:      {"$knn": {"query", "key", "limit", "default", "return_rank"}} · {"$val": number} · {"$sum": […]} and $mul, $max, $min ·
               {"$sub": {"left", "right"}} and $div · {"$abs": rank} and $exp, $log ·
               {"$rrf": {"ranks": […], "k", "weights", "normalize"}}, which is short for the expression of `scoring.rrf`
    query:     a list of numbers · {"indices": […], "values": […]} · a text, whose words are looked up in documents, or whose vector
               is compared with embeddings (where something embeds)
    group_by:  {"keys": […], "aggregate": {"$min_k" or "$max_k": {"keys": […], "k"}}}

`filter` may be called `where`. Errors name the place: ``searches[0].rank.$sum[1].$knn.limit``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal_core.errors import InvalidArgument
from shoal_core.filters import DOCUMENT_KEY, Filter, parse_where
from shoal_core.limits import Limits
from shoal_core.ranking import (
    EMBEDDING_KEY,
    SCORE_KEY,
    Abs,
    DenseQuery,
    Div,
    Exp,
    GroupBy,
    Knn,
    Log,
    Max,
    Min,
    Mul,
    Rank,
    Search,
    Select,
    SparseQuery,
    Sub,
    Sum,
    TextQuery,
    Val,
    children_of,
)
from shoal_core.records import URI_KEY
from shoal_core.scoring import rrf

_SEARCH = ("filter", "where", "rank", "group_by", "limit", "select", "cursor")
_LISTS: Mapping[str, type[Sum | Mul | Max | Min]] = {"$sum": Sum, "$mul": Mul, "$max": Max, "$min": Min}
_PAIRS: Mapping[str, type[Sub | Div]] = {"$sub": Sub, "$div": Div}
_FUNCTIONS: Mapping[str, type[Abs | Exp | Log]] = {"$abs": Abs, "$exp": Exp, "$log": Log}


# --- searches


def parse_search(payload: Any, limits: Limits | None = None, *, place: str = "search") -> Search:
    """The search of one JSON payload. Raises `InvalidArgument` naming the place."""
    limits = limits or Limits()
    items = _object(payload, place, _SEARCH).items()
    given = {name: value for name, value in items if value is not None and value != {}}
    if "filter" in given and "where" in given:
        raise InvalidArgument("the same as filter; give one of them", field=f"{place}.where")
    name = "where" if "where" in given else "filter"
    ids, where = _filter(given.get(name), f"{place}.{name}", limits)
    page = _object(given.get("limit", {}), f"{place}.limit", ("offset", "limit"))
    offset, limit, cursor = page.get("offset"), page.get("limit"), given.get("cursor", "")
    if not isinstance(cursor, str):
        raise InvalidArgument("expected what an answer returned", field=f"{place}.cursor")
    return Search(
        where,
        ids,
        parse_rank(given["rank"], limits, place=f"{place}.rank") if "rank" in given else None,
        parse_group_by(given.get("group_by"), limits, place=f"{place}.group_by"),
        None if limit is None else _whole(limit, f"{place}.limit.limit", 0, limits.get_results),
        0 if offset is None else _whole(offset, f"{place}.limit.offset", 0, 2**63 - 1),
        _select(given.get("select", {}), f"{place}.select", limits),
        cursor,
    )


def parse_group_by(value: Any, limits: Limits | None = None, *, place: str = "group_by") -> GroupBy | None:
    """The grouping of its JSON form; None for None. Raises `InvalidArgument` naming the place."""
    if value is None:
        return None
    given = _object(value, place, ("keys", "aggregate"))
    name, operand = _single(given.get("aggregate"), f"{place}.aggregate")
    if name not in ("$min_k", "$max_k"):
        raise InvalidArgument(f"unknown aggregate {name}; $min_k or $max_k", field=f"{place}.aggregate")
    inner = f"{place}.aggregate.{name}"
    best = _object(operand, inner, ("keys", "k"))
    group_by = GroupBy(
        _strings(given.get("keys"), f"{place}.keys"),
        _strings(best.get("keys"), f"{inner}.keys"),
        _whole(best.get("k"), f"{inner}.k", 1, 2**63 - 1),
        name == "$max_k",
    )
    check_group_by(group_by, limits or Limits(), place)
    return group_by


def check_group_by(group_by: GroupBy, limits: Limits, place: str) -> None:
    """Raise `InvalidArgument` for a grouping out of bounds."""
    for keys, inner in ((group_by.keys, place), (group_by.aggregate, f"{place}.aggregate")):
        if not 1 <= len(keys) <= limits.group_by_keys:
            raise InvalidArgument(f"{len(keys)} keys; 1 to {limits.group_by_keys} are allowed", field=f"{inner}.keys")
        for number, key in enumerate(keys):
            if key != SCORE_KEY or inner == place:
                check_metadata_key(key, limits, f"{inner}.keys[{number}]")
    if not 1 <= group_by.k < 2**63:
        raise InvalidArgument(f"{group_by.k}; at least 1 of a group is kept", field=f"{place}.aggregate.k")


def check_metadata_key(key: str, limits: Limits, place: str) -> None:
    """Raise `InvalidArgument` unless records may have this metadata key; ``#uri`` is one."""
    size = len(key.encode(errors="replace"))
    if not 1 <= size <= limits.metadata_key_size_bytes or (key[0] in "#$" and key != URI_KEY):
        raise InvalidArgument(f"{key[:64]!r} is not a metadata key", field=place)


def _filter(value: Any, place: str, limits: Limits) -> tuple[tuple[str, ...] | None, Filter | None]:
    """A list under ``query_ids`` is not a condition on a key of that name: conditions are scalars or objects."""
    if value is None:
        return None, None
    where = dict(_object(value, place))
    ids = None
    if isinstance(where.get("query_ids"), list | tuple):
        ids = _strings(where.pop("query_ids"), f"{place}.query_ids")
    try:
        return ids, parse_where(where, limits) if where else None
    except InvalidArgument as error:
        raise InvalidArgument(error.message, field=place + error.field.removeprefix("where")) from error


def _select(value: Any, place: str, limits: Limits) -> Select:
    keys = _object(value, place, ("keys",)).get("keys")
    names = () if keys is None else _strings(keys, f"{place}.keys")
    flags = {DOCUMENT_KEY: "documents", EMBEDDING_KEY: "embeddings", "#metadata": "metadatas", SCORE_KEY: "scores"}
    keys = tuple(dict.fromkeys(name for name in names if name not in flags))
    select = Select(**{flags[name]: True for name in names if name in flags}, keys=keys)
    check_selected(keys, limits, f"{place}.keys")
    return select


def check_selected(keys: Sequence[str], limits: Limits, place: str) -> None:
    """Raise `InvalidArgument` for too many single columns, or one that no record has."""
    if len(keys) > limits.select_keys:
        raise InvalidArgument(f"{len(keys)} keys, at most {limits.select_keys}", field=place)
    for key in keys:
        check_metadata_key(key, limits, place)


# --- rank expressions


def parse_rank(value: Any, limits: Limits | None = None, *, place: str = "rank") -> Rank:
    """The expression of its JSON form. Raises `InvalidArgument` naming the place."""
    limits = limits or Limits()
    rank = _parse(value, place, 1, limits)
    check_rank(rank, limits, place)
    return rank


def check_rank(rank: Rank, limits: Limits, place: str) -> None:
    """Raise `InvalidArgument` if the expression is too large or too deep, or a part of it means nothing."""
    level, nodes, leaves = [(rank, place)], 0, 0
    for depth in range(1, limits.rank_depth + 2):
        if not level:
            break
        if depth > limits.rank_depth:
            raise InvalidArgument(f"nested deeper than {limits.rank_depth} levels", field=place)
        nodes += len(level)
        if nodes > limits.rank_nodes:
            raise InvalidArgument(f"more than {limits.rank_nodes} parts", field=place)
        for node, where in level:
            _check_node(node, limits, where)
            leaves += isinstance(node, Knn)
        level = [part for node, where in level for part in _places(node, where)]
    if leaves > limits.rank_leaves:
        raise InvalidArgument(f"{leaves} times $knn, at most {limits.rank_leaves}", field=place)
    if not leaves:
        raise InvalidArgument("a constant ranks nothing; rank by a $knn", field=place)


def placed_leaves(rank: Rank, place: str) -> list[tuple[Knn, str]]:
    """The leaves, left to right, and where they are."""
    if isinstance(rank, Knn):
        return [(rank, place)]
    return [leaf for child, where in _places(rank, place) for leaf in placed_leaves(child, where)]


def _places(node: Rank, place: str) -> list[tuple[Rank, str]]:
    """The operands and where they are."""
    children = children_of(node)
    if isinstance(node, tuple(_LISTS.values())):
        return [(child, f"{place}.{_name(node)}[{number}]") for number, child in enumerate(children)]
    ends = (".left", ".right") if len(children) == 2 else ("",)
    return [(child, f"{place}.{_name(node)}{end}") for child, end in zip(children, ends, strict=bool(children))]


def _name(node: Rank) -> str:
    return f"${type(node).__name__.lower()}"


def _check_node(node: Rank, limits: Limits, place: str) -> None:
    match node:
        case Knn():
            _check_leaf(node, limits, f"{place}.$knn")
        case Val(value) if value != value:
            raise InvalidArgument("not a number", field=f"{place}.$val")
        case Sum(children) | Mul(children) | Max(children) | Min(children) if not children:
            raise InvalidArgument("expected a non-empty list", field=f"{place}.{_name(node)}")


def _check_leaf(leaf: Knn, limits: Limits, place: str) -> None:
    if not 1 <= leaf.limit <= limits.query_results:
        raise InvalidArgument(f"{leaf.limit}; 1 to {limits.query_results} are allowed", field=f"{place}.limit")
    if leaf.default is not None and leaf.default != leaf.default:
        raise InvalidArgument("not a number", field=f"{place}.default")
    match leaf.query:
        case DenseQuery() if leaf.key != EMBEDDING_KEY:
            message = f"a vector is compared with {EMBEDDING_KEY}; for a sparse one give indices and values"
            raise InvalidArgument(message, field=f"{place}.key")
        case TextQuery() if leaf.key not in (DOCUMENT_KEY, EMBEDDING_KEY):
            message = (
                f"a text is ranked against {DOCUMENT_KEY} or {EMBEDDING_KEY}; for another key the client embeds it"
            )
            raise InvalidArgument(message, field=f"{place}.query")
        case TextQuery(text) if (size := len(text.encode(errors="replace"))) > limits.query_text_size_bytes:
            raise InvalidArgument(f"{size} bytes, at most {limits.query_text_size_bytes}", field=f"{place}.query")
        case SparseQuery():
            check_metadata_key(leaf.key, limits, f"{place}.key")
            _check_sparse(leaf.query, limits, f"{place}.query")


def _parse(value: Any, place: str, depth: int, limits: Limits) -> Rank:
    if depth > limits.rank_depth:
        raise InvalidArgument(f"nested deeper than {limits.rank_depth} levels", field=place)
    name, operand = _single(value, place)
    place = f"{place}.{name}"
    if name in _LISTS:
        parts = enumerate(_list(operand, place, limits.rank_nodes))
        return _LISTS[name](tuple(_parse(part, f"{place}[{i}]", depth + 1, limits) for i, part in parts))
    if name in _PAIRS:
        given = _object(operand, place, ("left", "right"))
        left, right = (_parse(given.get(side), f"{place}.{side}", depth + 1, limits) for side in ("left", "right"))
        return _PAIRS[name](left, right)
    if name in _FUNCTIONS:
        return _FUNCTIONS[name](_parse(operand, place, depth + 1, limits))
    match name:
        case "$val":
            return Val(_number(operand, place))
        case "$knn":
            return _leaf(operand, place, limits)
        case "$rrf":
            return _rrf(operand, place, depth, limits)
        case _:
            raise InvalidArgument("unknown operator", field=place)


def _rrf(value: Any, place: str, depth: int, limits: Limits) -> Rank:
    given = _object(value, place, ("ranks", "k", "weights", "normalize"))
    parts = enumerate(_list(given.get("ranks"), f"{place}.ranks", limits.rank_leaves))
    ranks = [_parse(part, f"{place}.ranks[{i}]", depth + 1, limits) for i, part in parts]
    weights, inner = given.get("weights"), f"{place}.weights"
    if weights is not None:
        weights = [_number(item, f"{inner}[{i}]") for i, item in enumerate(_list(weights, inner, limits.rank_leaves))]
    k = _number(given.get("k", 60.0), f"{place}.k")
    return rrf(ranks, k=k, weights=weights, normalize=_flag(given, "normalize", place), place=place)


def _leaf(value: Any, place: str, limits: Limits) -> Knn:
    given = _object(value, place, ("query", "key", "limit", "default", "return_rank"))
    key, default = given.get("key", EMBEDDING_KEY), given.get("default")
    if not isinstance(key, str):
        raise InvalidArgument("expected a string", field=f"{place}.key")
    leaf = Knn(
        _query(given.get("query"), f"{place}.query", limits),
        key,
        _whole(given.get("limit", 16), f"{place}.limit", 1, limits.query_results),
        None if default is None else _number(default, f"{place}.default"),
        _flag(given, "return_rank", place),
    )
    _check_leaf(leaf, limits, place)
    return leaf


def _query(value: Any, place: str, limits: Limits) -> DenseQuery | SparseQuery | TextQuery:
    if isinstance(value, str):
        return TextQuery(_unicode(value, place))
    if isinstance(value, Mapping):
        return _sparse(value, place, limits)
    if isinstance(value, list | tuple | np.ndarray):
        return DenseQuery(_floats(value, place, limits.dimension))
    raise InvalidArgument("expected numbers, a sparse vector or a text", field=place)


def _sparse(value: Any, place: str, limits: Limits) -> SparseQuery:
    given = _object(value, place, ("#type", "indices", "values", "tokens"))
    if given.get("#type", "sparse_vector") != "sparse_vector":
        raise InvalidArgument("expected sparse_vector", field=f"{place}.#type")
    indices = _list(given.get("indices"), f"{place}.indices", limits.metadata_list_length, least=0)
    whole = [_whole(index, f"{place}.indices[{i}]", 0, 2**32 - 1) for i, index in enumerate(indices)]
    values = _floats(given.get("values"), f"{place}.values", limits.metadata_list_length, least=0)
    return SparseQuery(np.array(whole, np.uint32), values)


def _check_sparse(query: SparseQuery, limits: Limits, place: str) -> None:
    if query.indices.ndim != 1 or query.indices.shape != query.values.shape:
        raise InvalidArgument("indices and values differ in length", field=place)
    if len(query.indices) > limits.metadata_list_length:
        raise InvalidArgument(f"more than {limits.metadata_list_length} elements", field=f"{place}.indices")
    if (query.indices[1:] <= query.indices[:-1]).any():
        raise InvalidArgument("indices must be strictly ascending", field=f"{place}.indices")
    if not np.isfinite(query.values).all():
        raise InvalidArgument("NaN and infinite numbers cannot be searched", field=f"{place}.values")


# --- pieces


def _single(value: Any, place: str) -> tuple[str, Any]:
    given = _object(value, place)
    if len(given) != 1:
        raise InvalidArgument(f"expected exactly one operator, got {len(given)}", field=place)
    return next(iter(given.items()))


def _object(value: Any, place: str, names: Sequence[str] | None = None) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise InvalidArgument(f"expected an object, got {type(value).__name__}", field=place)
    for name in value:
        if names is not None and name not in names:
            raise InvalidArgument(f"unknown; one of {', '.join(names)}", field=f"{place}.{name[:64]}")
    return value


def _list(value: Any, place: str, most: int, least: int = 1) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise InvalidArgument(f"expected a list, got {type(value).__name__}", field=place)
    if not least <= len(value) <= most:
        raise InvalidArgument(f"{len(value)} elements; {least} to {most} are allowed", field=place)
    return value


def _strings(value: Any, place: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise InvalidArgument("expected a list of strings", field=place)
    return tuple(_unicode(item, place) for item in value)


def _unicode(text: str, place: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument("not valid Unicode: it has a lone surrogate", field=place) from error
    return text


def _flag(given: Mapping[str, Any], name: str, place: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise InvalidArgument("expected true or false", field=f"{place}.{name}")
    return value


def _whole(value: Any, place: str, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidArgument(f"{value!r:.40}; a whole number from {least} to {most}", field=place)
    return value


def _number(value: Any, place: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
        raise InvalidArgument(f"{value!r:.40} is not a number", field=place)
    try:
        return float(value)
    except OverflowError as error:
        raise InvalidArgument("too large for a float64", field=place) from error


def _floats(value: Any, place: str, most: int, least: int = 1) -> npt.NDArray[np.float32]:
    """Finite float32 numbers."""
    if not isinstance(value, np.ndarray):
        items = _list(value, place, most, least)
        wrong = next((i for i, item in enumerate(items) if type(item) not in (int, float)), None)
        if wrong is not None:
            raise InvalidArgument(f"{items[wrong]!r:.40} is not a number", field=f"{place}[{wrong}]")
    try:
        with np.errstate(over="ignore"):
            numbers = np.array(value, np.float64).astype(np.float32)
    except (OverflowError, TypeError, ValueError) as error:
        raise InvalidArgument("expected numbers that fit a float32", field=place) from error
    if numbers.ndim != 1 or not least <= len(numbers) <= most:
        raise InvalidArgument(f"{numbers.shape}; a list of {least} to {most} numbers is allowed", field=place)
    if not np.isfinite(numbers).all():
        at = int(np.argmin(np.isfinite(numbers)))
        raise InvalidArgument("not a finite float32", field=f"{place}[{at}]")
    return numbers
