"""Reads of every shape drawn from a `random.Random`, in their JSON forms, and the labels that say what of the language a read uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from shoal_testing.random_records import (
    GROUP_KEY,
    GROUPS,
    IDF_KEY,
    NUMBER_KEY,
    ODD_TEXTS,
    SPARSE_KEY,
    URIS,
    WORDS,
    draw_id,
    draw_scalar,
    draw_sparse,
    draw_vector,
)
from shoal_testing.strategies import FLOATS, INTS, KEYS, STRINGS

Json = dict[str, Any]
Label = tuple[str, str]

VERBS = ("get", "count", "query", "search", "pages")
_SHARES = {"get": 4, "count": 4, "query": 3, "search": 4, "pages": 1}
PATTERNS = (
    *("a", "^a", "an+a", "[ab]+", "é", "日|b", "", "(?i)B", "^$", "p{2}", r"\s", "[^a]", "a.b", "(?s)a.b", "(?m)^b$"),
    *(r"\bruns?\b", r"\w+-\w+", r"\d", r"[\w-]+e$", "(run|apple)s", "(?i)café", r"\Arun", r"\W$", r"\.", "^[^x]*$"),
)  # fmt: skip
_SUBSTRINGS = (*WORDS, "", "a", "an", "pple", "un", "日", "\n", "run", " of ", ", ", "é", "ss")
_ABSENT_KEY = "absent"


@dataclass(frozen=True, slots=True)
class Query:
    """One read: a verb and its arguments as JSON. ``at``, an offset, reads as of it."""

    verb: str
    arguments: Json

    @property
    def labels(self) -> frozenset[Label]:
        """What of the language it uses, as (operator, type)."""
        given = self.arguments
        found = {(self.verb, "as_of" if given.get("at") is not None else "now")}
        found |= set(_where_labels(given.get("where"))) | set(_document_labels(given.get("where_document")))
        if "payload" in given:
            found |= set(_payload_labels(given["payload"]))
        return frozenset(found)


def draw_query(random: Random, verbs: Sequence[str], head_offset: int, *, as_of: bool) -> Query:
    """One read of a collection whose log ends at ``head_offset``."""
    [verb] = random.choices(verbs, [_SHARES[verb] for verb in verbs])
    given: Json = {"at": random.randint(1, head_offset) if as_of and random.random() < 0.2 else None}
    if verb != "search":
        given["where"] = draw_where(random) if random.random() < 0.7 else None
        given["where_document"] = draw_where_document(random) if random.random() < 0.25 else None
    if verb != "count" and random.random() < 0.15:
        given["ids"] = [draw_id(random) for _ in range(random.choice((0, 1, 5, 40, 40)))]
    if verb == "get":
        given |= {"limit": random.choice((None, None, 0, 1, 3, 20)), "offset": random.choice((0, 0, 1, 4))}
    if verb == "pages":
        given |= {"limit": random.choice((6, 20, 40)), "offset": random.choice((0, 0, 3))}
    if verb == "query":
        given["vectors"] = [draw_vector(random) for _ in range(random.choice((1, 1, 1, 3)))]
        given["k"] = random.choice((0, 1, 3, 10, 200))
    if verb == "search":
        given["payload"] = draw_payload(random)
    return Query(verb, given)


# --- filters


def draw_where(random: Random, depth: int = 2) -> Json:
    """A ``where``: a condition, or nested ``$and`` and ``$or``."""
    if depth and random.random() < 0.35:
        children = [draw_where(random, depth - 1) for _ in range(random.choice((1, 2, 2, 3)))]
        return {random.choice(("$and", "$or")): children}
    share = random.random()
    if share < 0.1:
        return {"#id": _on_strings(random, [draw_id(random) for _ in range(4)], ("$eq", "$ne", "$in", "$nin"))}
    if share < 0.2:
        if random.random() < 0.3:
            return {"#uri": {"$exists": random.random() < 0.5}}
        operators = ("$eq", "$ne", "$in", "$nin", "$gt", "$gte", "$lt", "$lte")
        return {"#uri": _on_strings(random, list(URIS), operators)}
    if share < 0.3:
        return {"#document": _document_condition(random)}
    if share < 0.45:
        value = random.choice((random.randint(-5, 5), random.randint(-10, 10) / 2))
        return {NUMBER_KEY: {random.choice(("$eq", "$ne", "$gt", "$gte", "$lt", "$lte")): value}}
    key = random.choice((*KEYS, *KEYS, GROUP_KEY, SPARSE_KEY, _ABSENT_KEY))
    return {key: _condition(random, GROUPS[:8] if key == GROUP_KEY else None)}


def _condition(random: Random, pool: Sequence[Any] | None) -> Any:
    value = random.choice(pool) if pool else draw_scalar(random)
    share = random.random()
    if share < 0.1:
        return value
    if share < 0.2:
        return {"$exists": random.random() < 0.5}
    if share < 0.45:
        return {random.choice(("$eq", "$ne")): value}
    if share < 0.6:
        values: tuple[Any, ...] = random.choice(((*INTS, *FLOATS), INTS, FLOATS, STRINGS, (True, False)))
        return {random.choice(("$in", "$nin")): [random.choice(values) for _ in range(random.randint(1, 4))]}
    if share < 0.8:
        return {random.choice(("$contains", "$not_contains")): value}
    ordered: tuple[Any, ...] = random.choice((INTS, FLOATS, STRINGS))
    return {random.choice(("$gt", "$gte", "$lt", "$lte")): random.choice(ordered)}


def _on_strings(random: Random, values: Sequence[str], operators: Sequence[str]) -> Any:
    operator = random.choice(operators)
    if operator in ("$in", "$nin"):
        return {operator: list(values[: random.randint(1, 4)])}
    return {operator: random.choice(values)}


def draw_where_document(random: Random, depth: int = 1) -> Json:
    """A ``where_document``."""
    if depth and random.random() < 0.3:
        children = [draw_where_document(random, depth - 1) for _ in range(random.choice((1, 2, 3)))]
        return {random.choice(("$and", "$or")): children}
    return _document_condition(random)


def _document_condition(random: Random) -> Json:
    if random.random() < 0.5:
        text = random.choice(ODD_TEXTS if random.random() < 0.2 else _SUBSTRINGS)
        return {random.choice(("$contains", "$not_contains")): text}
    return {random.choice(("$regex", "$not_regex")): random.choice(PATTERNS)}


# --- searches


def draw_payload(random: Random) -> Json:
    """One search."""
    payload: Json = {}
    if random.random() < 0.4:
        payload["filter"] = draw_where(random)
    if random.random() < 0.9:
        payload["rank"] = _draw_rank(random)
        if random.random() < 0.35:
            payload["group_by"] = _draw_group_by(random)
    if random.random() < 0.7:
        payload["limit"] = {"offset": random.choice((0, 0, 0, 1, 4)), "limit": random.choice((None, None, 0, 1, 3, 10))}
    columns = ("#document", "#embedding", "#metadata", NUMBER_KEY, GROUP_KEY, *KEYS[:2])
    payload["select"] = {"keys": ["#score", *random.sample(columns, random.choice((0, 0, 1, 2)))]}
    return payload


def _draw_rank(random: Random) -> Json:
    share = random.random()
    if share < 0.25:
        return _draw_leaf(random)
    if share < 0.4:
        ranks = [_draw_leaf(random, fused=True) for _ in range(random.choice((1, 2, 2, 3)))]
        fused: Json = {"ranks": ranks, "k": random.choice((1, 10, 60))}
        if random.random() < 0.5:
            fused |= {"weights": [random.choice((0.5, 1, 2.25)) for _ in ranks], "normalize": random.random() < 0.5}
        return {"$rrf": fused}
    rank = _draw_tree(random, 3)
    return rank if any(label[0] == "$knn" for label in _rank_labels(rank)) else {"$sum": [rank, _draw_leaf(random)]}


def _draw_tree(random: Random, depth: int) -> Json:
    if not depth or random.random() < 0.2:
        return {"$val": random.choice((-2, 0, 0.5, 1, 3))} if random.random() < 0.3 else _draw_leaf(random)
    operator = random.choice(("$sum", "$mul", "$max", "$min", "$sub", "$div", "$abs", "$exp", "$log"))
    if operator in ("$abs", "$exp", "$log"):
        return {operator: _draw_tree(random, depth - 1)}
    if operator in ("$sub", "$div"):
        return {operator: {side: _draw_tree(random, depth - 1) for side in ("left", "right")}}
    return {operator: [_draw_tree(random, depth - 1) for _ in range(random.choice((1, 2, 2, 3)))]}


def _draw_leaf(random: Random, *, fused: bool = False) -> Json:
    leaf: Json = {"limit": random.choice((1, 4, 16, 100, 100))}
    kind = random.choice(("dense", "dense", "sparse", "idf", "text", "text"))
    if kind == "dense":
        leaf["query"] = list(draw_vector(random))
    elif kind == "text":
        words = [random.choice(WORDS) for _ in range(random.choice((0, 1, 2, 2, 4)))]
        leaf |= {"query": " ".join(words), "key": "#document"}
    else:
        leaf |= {"query": draw_sparse(random), "key": SPARSE_KEY if kind == "sparse" else IDF_KEY}
    if random.random() < 0.5:
        leaf["default"] = random.choice((0, 1, 2.5, 100))
    if fused or random.random() < 0.25:
        leaf["return_rank"] = True
    return {"$knn": leaf}


def _draw_group_by(random: Random) -> Json:
    keys = random.choice(([GROUP_KEY], [GROUP_KEY], ["a"], [GROUP_KEY, "b"], ["#uri"], ["absent"]))
    values = random.sample(("#score", "#score", NUMBER_KEY, GROUP_KEY, "a", "b", "#uri"), random.choice((1, 1, 2)))
    aggregate = {"keys": list(dict.fromkeys(values)), "k": random.choice((1, 2, 5))}
    return {"keys": keys, "aggregate": {random.choice(("$min_k", "$max_k")): aggregate}}


# --- labels


def _where_labels(where: Json | None) -> Iterator[Label]:
    if where is None:
        return
    [(key, operand)] = where.items()
    if key in ("$and", "$or"):
        yield (key, "where")
        for child in operand:
            yield from _where_labels(child)
    elif key == "#document":
        yield from _document_labels(operand)
    else:
        operator, value = next(iter(operand.items())) if isinstance(operand, Mapping) else ("(equal)", operand)
        for one in value if isinstance(value, list) else [value]:
            yield (operator, key if key[0] == "#" else type(one).__name__)


def _document_labels(where: Json | None) -> Iterator[Label]:
    if where is None:
        return
    [(operator, operand)] = where.items()
    if operator not in ("$and", "$or"):
        yield (operator, "document")
        return
    yield (operator, "where_document")
    for child in operand:
        yield from _document_labels(child)


def _payload_labels(payload: Json) -> Iterator[Label]:
    yield from _where_labels(payload.get("filter"))
    yield from _rank_labels(payload["rank"]) if "rank" in payload else [("rank", "none")]
    if "group_by" in payload:
        [(operator, aggregate)] = payload["group_by"]["aggregate"].items()
        for key in aggregate["keys"]:
            yield (operator, "#score" if key == "#score" else "metadata")
    for key in payload["select"]["keys"]:
        yield ("select", key if key[0] == "#" else "metadata")


def _rank_labels(rank: Json) -> Iterator[Label]:
    [(operator, operand)] = rank.items()
    if operator == "$knn":
        yield ("$knn", _kind_of(operand))
        for name in ("default", "return_rank"):
            if name in operand:
                yield ("$knn", name)
        return
    yield (operator, "rank")
    if operator == "$val":
        return
    parts = operand.get("ranks") or operand.values() if isinstance(operand, Mapping) else operand
    for part in [operand] if operator in ("$abs", "$exp", "$log") else parts:
        yield from _rank_labels(part)


def _kind_of(leaf: Json) -> str:
    if isinstance(leaf["query"], str):
        return "text"
    if isinstance(leaf["query"], Mapping):
        return "idf" if leaf["key"] == IDF_KEY else "sparse"
    return "dense"


_SCALARS = ("int", "float", "str", "bool")

#: Every label that the generator makes: a run in which one is missing has not tested what it says.
EXPECTED: frozenset[Label] = frozenset(
    [(operator, kind) for operator in ("$eq", "$ne", "(equal)", "$in", "$nin") for kind in _SCALARS]
    + [(operator, kind) for operator in ("$contains", "$not_contains") for kind in (*_SCALARS, "document")]
    + [(operator, kind) for operator in ("$gt", "$gte", "$lt", "$lte") for kind in (*_SCALARS[:3], "#uri")]
    + [(operator, key) for operator in ("$eq", "$ne", "$in", "$nin") for key in ("#id", "#uri")]
    + [("$exists", "bool"), ("$exists", "#uri"), ("$regex", "document"), ("$not_regex", "document")]
    + [(operator, place) for operator in ("$and", "$or") for place in ("where", "where_document")]
)
EXPECTED_OF_SEARCH: frozenset[Label] = frozenset(
    [("$knn", kind) for kind in ("dense", "sparse", "idf", "text", "default", "return_rank")]
    + [(operator, "rank") for operator in ("$val", "$sum", "$mul", "$max", "$min", "$sub", "$div", "$rrf")]
    + [(operator, "rank") for operator in ("$abs", "$exp", "$log")]
    + [(operator, kind) for operator in ("$min_k", "$max_k") for kind in ("#score", "metadata")]
    + [("select", kind) for kind in ("#document", "#embedding", "#metadata", "#score", "metadata")]
    + [("rank", "none")]
)
