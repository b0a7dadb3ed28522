"""The oracle's searches: filter, leaves, score, group, offset and limit, select; over payloads in their JSON form.

    {"filter": where, "rank": {"$knn": {...}}, "group_by": {"keys": [...], "aggregate": {"$min_k": {"keys": [...], "k": n}}},
     "limit": {"offset": n, "limit": n}, "select": {"keys": [...]}}

A ``$knn`` query is a list (dense), an object with ``indices`` and ``values`` (sparse) or, with the key ``#document``, a text.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from shoal_core.schema import Schema
from shoal_testing.oracle_filters import kind_of, matches, value_of
from shoal_testing.oracle_measures import Measured, measure_dense, measure_sparse, measure_text

Json = Mapping[str, Any]
Record = dict[str, Any]
Operand = tuple[dict[str, float], float | None]  # scores by id, and what stands in for the others

_ROUNDING = 1e-12
_LAST_DIGIT = 1e-15
_TYPES = ("bool", "number", "string")


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to a search.

    Attributes:
        rows: ``id`` and what was selected, best first. ``score`` is absent without a rank.
        errors: how far an engine's scores may be from those of the rows.
        settled: an engine that is off by no more answers in just this order; where False, near ties decide.
    """

    rows: list[Record]
    errors: list[float]
    settled: bool


def search(
    records: Sequence[Record],
    space: str,
    schema: Schema,
    payload: Json,
    ids: Collection[str] | None = None,
) -> Found:
    """One search over ``records``, which are all of the collection in order of creation."""
    where, rank = payload.get("filter"), payload.get("rank")
    chosen = [
        record for record in records if (ids is None or record["id"] in ids) and (not where or matches(record, where))
    ]
    page = payload.get("limit") or {}
    start, limit = page.get("offset") or 0, page.get("limit")
    stop = None if limit is None else start + limit
    wanted = (payload.get("select") or {}).get("keys", ())
    if rank is None:
        return Found([_select(record, wanted, None) for record in chosen[start:stop]], [], settled=True)
    expression = _Expression(records, chosen, space, schema)
    scored = expression.scored(rank)
    order = _ranked([record for record in chosen if record["id"] in scored], scored)
    settled = expression.settled and _settled([scored[record["id"]] for record in order])
    if group_by := payload.get("group_by"):
        order = _grouped(order, scored, group_by)
    rows = order[start:stop]
    shown = [_select(record, wanted, scored[record["id"]].value) for record in rows]
    return Found(shown, [scored[record["id"]].error for record in rows], settled)


def _select(record: Record, wanted: Sequence[str], score: float | None) -> Record:
    row: Record = {"id": record["id"]}
    if "#document" in wanted and record["document"] is not None:
        row["document"] = record["document"]
    if "#embedding" in wanted:
        row["embedding"] = record["embedding"]
    if "#score" in wanted and score is not None:
        row["score"] = score
    everything = "#metadata" in wanted
    row["metadata"] = {key: value for key, value in record["metadata"].items() if everything or key in wanted}
    return row


def _ranked(records: Sequence[Record], measured: Mapping[str, Measured]) -> list[Record]:
    """Lowest first, not-a-number last, ties as they come."""

    def key(record: Record) -> tuple[bool, float]:
        value = measured[record["id"]].value
        return (True, 0.0) if math.isnan(value) else (False, value)

    return sorted(records, key=key)


def _settled(ascending: Sequence[Measured]) -> bool:
    """Whether values that are off by their errors would be in the same order."""
    return all(_apart(left, right) for left, right in pairwise(ascending))


def _apart(left: Measured, right: Measured) -> bool:
    """Whether the order of two neighbours is sure: they are the same, so creation decides, or far enough apart."""
    if math.isnan(left.error) or math.isnan(right.error):
        return False
    if left.grounds == right.grounds or (left.exact and right.exact and left.value == right.value):
        return True
    if not (math.isfinite(left.value) and math.isfinite(right.value)):
        return True
    return right.value - left.value > left.error + right.error + _ROUNDING * max(abs(left.value), abs(right.value))


# --- scores


class _Expression:
    """Evaluates rank expressions over the records that match. ``settled``: the order of no leaf hung on near ties."""

    def __init__(self, records: Sequence[Record], chosen: Sequence[Record], space: str, schema: Schema) -> None:
        self.settled = True
        self._records, self._chosen, self._space, self._schema = records, chosen, space, schema
        self._leaves: dict[int, dict[str, Measured]] = {}  # by identity of the leaf's JSON

    def scored(self, rank: Json) -> dict[str, Measured]:
        """By id, what the expression supports; the errors are found by moving the measures by theirs."""
        with np.errstate(all="ignore"):
            scores, _ = self._evaluate(rank, 0)
            moved = [self._evaluate(rank, noise)[0] for noise in (1, 2, 3)]
        leaves = self._leaves.values()
        exact = all(measured.exact for leaf in leaves for measured in leaf.values())
        found = {}
        for record_id, value in scores.items():
            error = 3.0 * sum(_step(value, other[record_id]) for other in moved)
            grounds = tuple(leaf[record_id].grounds if record_id in leaf else None for leaf in leaves)
            found[record_id] = Measured(value, error, grounds, exact)
        return found

    def _evaluate(self, rank: Json, noise: int) -> Operand:
        [(operator, operand)] = rank.items()
        if operator == "$rrf":
            return self._evaluate(_rrf(operand), noise)
        if operator == "$knn":
            return {key: _noisy(found, noise) for key, found in self._leaf(operand).items()}, operand.get("default")
        if operator == "$val":
            return {}, float(operand)
        if operator in _UNARY:
            scores, default = self._evaluate(operand, noise)
            scores = {key: _applied(operator, value, noise) for key, value in scores.items()}
            return scores, None if default is None else _applied(operator, default, noise)
        parts = [operand["left"], operand["right"]] if operator in ("$sub", "$div") else operand
        first, *others = [self._evaluate(part, noise) for part in parts]
        for other in others:
            first = _combined(operator, first, other, noise)
        return first

    def _leaf(self, knn: Json) -> dict[str, Measured]:
        if id(knn) not in self._leaves:
            measured = self._measured(knn["query"], knn.get("key", "#embedding"))
            order = _ranked([record for record in self._chosen if record["id"] in measured], measured)
            limit = knn.get("limit", 16)
            ranked = [measured[record["id"]] for record in order]
            by_position = knn.get("return_rank", False)
            decisive = ranked[: limit + 1] if by_position else ranked[max(limit - 1, 0) : limit + 1]
            self.settled = self.settled and (limit == 0 or _settled(decisive))
            found = [Measured(float(n), 0.0, n, exact=True) for n in range(limit)] if by_position else ranked
            self._leaves[id(knn)] = {
                record["id"]: one for record, one in zip(order[:limit], found[:limit], strict=False)
            }
        return self._leaves[id(knn)]

    def _measured(self, query: Any, key: str) -> dict[str, Measured]:
        if isinstance(query, str):
            return measure_text(self._records, query, self._schema)
        if isinstance(query, Mapping):
            config = self._schema.sparse.get(key)
            return measure_sparse(self._records, key, query, idf=config is not None and config.idf)
        vector = tuple(np.asarray(query, np.float32).tolist())
        return {row["id"]: measure_dense(self._space, vector, row["embedding"]) for row in self._chosen}


def _rrf(operand: Json) -> Json:
    """Reciprocal rank fusion written out: minus the sum of weight / (k + rank)."""
    ranks, k = operand["ranks"], operand.get("k", 60)
    weights = operand.get("weights") or [1.0] * len(ranks)
    if operand.get("normalize"):
        weights = [weight / sum(weights) for weight in weights]
    terms = [
        {"$div": {"left": {"$val": weight}, "right": {"$sum": [{"$val": k}, rank]}}}
        for weight, rank in zip(weights, ranks, strict=True)
    ]
    return {"$mul": [{"$val": -1.0}, {"$sum": terms}]}


def _noisy(measured: Measured, noise: int) -> float:
    """A value moved by half to all of its error, the same for the same grounds."""
    if noise == 0 or measured.error == 0.0:
        return measured.value
    share = zlib.crc32(repr((measured.grounds, noise)).encode()) / 2**31 - 1.0
    return measured.value + math.copysign(0.5 + abs(share) / 2, share) * measured.error


def _applied(operator: str, value: float, noise: int) -> float:
    """A function of one score; the last digit of those that are not exact differs from library to library."""
    result = float(_UNARY[operator](value))
    if operator == "$abs" or not math.isfinite(result):
        return result
    return _noisy(Measured(result, _LAST_DIGIT * abs(result), value, exact=False), noise)


def _step(left: float, right: float) -> float:
    """How far apart; not-a-number for a number and none, or an infinity."""
    if left == right or (math.isnan(left) and math.isnan(right)):
        return 0.0
    step = abs(left - right)
    return step if math.isfinite(step) else math.nan


def _combined(operator: str, left: Operand, right: Operand, noise: int) -> Operand:
    (left_scores, left_default), (right_scores, right_default) = left, right
    keys = set(left_scores) | set(right_scores)
    if left_default is None:
        keys &= set(left_scores)
    if right_default is None:
        keys &= set(right_scores)
    scores = {
        key: _joined(operator, left_scores.get(key, left_default), right_scores.get(key, right_default), noise)
        for key in keys
    }
    if left_default is None or right_default is None:
        return scores, None
    return scores, _joined(operator, left_default, right_default, noise)


def _joined(operator: str, left: float | None, right: float | None, noise: int) -> float:
    assert left is not None, "a default stands in for every record that is missing"
    assert right is not None, "on either side"
    if operator in ("$max", "$min") and left == right:
        return left if noise else right  # 0 and -0: which is larger is left open
    return float(_BINARY[operator](left, right))


_UNARY: Mapping[str, Callable[[float], Any]] = {"$abs": np.abs, "$exp": np.exp, "$log": np.log}
_BINARY: Mapping[str, Callable[[float, float], Any]] = {
    "$sum": np.add,
    "$mul": np.multiply,
    "$max": np.fmax,
    "$min": np.fmin,
    "$sub": np.subtract,
    "$div": np.divide,
}


# --- groups


def _grouped(order: Sequence[Record], scored: Mapping[str, Measured], group_by: Json) -> list[Record]:
    """Those of ``order`` that are among the k best of their group, in the same order."""
    [(operator, aggregate)] = group_by["aggregate"].items()
    largest = operator == "$max_k"
    groups: dict[Any, list[Record]] = {}
    for record in order:
        group = tuple(_comparable(value_of(record, key)) for key in group_by["keys"])
        groups.setdefault(group, []).append(record)
    kept = set()
    for members in groups.values():
        for key in reversed(aggregate["keys"]):  # stable sorts over the order of score; the first key is sorted by last
            members.sort(key=partial(_aggregated, key=key, scored=scored, largest=largest), reverse=largest)
        kept |= {record["id"] for record in members[: aggregate["k"]]}
    return [record for record in order if record["id"] in kept]


def _aggregated(record: Record, key: str, scored: Mapping[str, Measured], *, largest: bool) -> tuple[int, Any]:
    """What orders by one key: by type, then value. None comes last, and so does a score that is not a number."""
    kind, value = _comparable(scored[record["id"]].value if key == "#score" else value_of(record, key))
    if kind < 0 or value != value:
        return (-1 if largest else len(_TYPES), 0)
    return (kind, value)


def _comparable(value: Any) -> tuple[int, Any]:
    """A value as one that equals only its like in type; lists and sparse vectors are as none."""
    kind = kind_of(value)
    return (-1, 0) if kind == "other" else (_TYPES.index(kind), value)
