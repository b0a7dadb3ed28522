"""Filters over a segment: through its indexes where they are, by `evaluate` over its columns where they are not.

Counts come first: value indexes know how many rows a condition matches without looking at them. Conditions joined by "and" are
tried from the rarest, and once the rows left are so few that looking at them costs less than another index or scan, the rest is
verified on those rows only. What was done is part of the answer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.evaluate import columns_of, evaluate
from shoal_core.filters import (
    And,
    Comparator,
    Compare,
    Exists,
    Filter,
    IdIn,
    ListContains,
    Membership,
    Or,
    Text,
    TextMatcher,
)
from shoal_core.records import ID, Kind, MetadataField
from shoal_index.metadata import Codes, ValueIndex
from shoal_index.postings import Mask

if TYPE_CHECKING:
    from shoal_index.trigrams import TrigramIndex

# Nanoseconds, measured over 117,000 rows (`bench/`); only their proportions matter.
_POSTING_NS = 1.5
_VALIDITY_NS = 0.3
_ID_NS = 500
_TRIGRAMS_NS = 300_000
_SCAN_NS = 2.0
_TEXT_NS = 300
_TAKE_NS = 25.0
_TAKE_TEXT_NS = 100.0
_VERIFY_NS = 50_000
_CANDIDATE_NS = 0.5

_CONDITION_CHARACTERS = 120
_ID_BYTES = 12  # a hash and a row number
_POSITIVE = {TextMatcher.NOT_CONTAINS: TextMatcher.CONTAINS, TextMatcher.NOT_REGEX: TextMatcher.REGEX}


@dataclass(frozen=True, slots=True)
class Step:
    """One condition as it was evaluated.

    Attributes:
        how: ``values``, ``trigrams`` or ``ids`` for an index, ``validity`` (of columns), ``scan`` (of all rows), ``verify`` (of the
            rows that were left).
        estimated: rows expected to match; None where only looking tells. Exact for ``values`` and ``validity``.
        matched: rows that did, among those looked at.
        read_bytes: of the postings and bitmaps, the columns or the rows looked at.
        rejected: other ways to evaluate it, each with the reason.
    """

    condition: str
    how: str
    estimated: int | None
    matched: int
    read_bytes: int
    rejected: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Matching:
    """The rows of a segment that match a filter: (n,) bool, not to be changed, and how they were found.

    ``size_bytes``: of the mask and of the filter, for those who keep both.
    """

    mask: Mask
    estimated: int
    steps: tuple[Step, ...]
    size_bytes: int


class Source(Protocol):
    """What a filter is evaluated over: a segment."""

    @property
    def rows(self) -> int: ...
    @property
    def schema(self) -> pa.Schema: ...
    @property
    def values(self) -> Mapping[str, ValueIndex]: ...
    @property
    def trigrams(self) -> TrigramIndex | None: ...
    def columns(self, names: Sequence[str]) -> pa.Table: ...
    def take(self, rows: npt.NDArray[np.int64], columns: Sequence[str]) -> pa.Table: ...
    def locate(self, ids: pa.Array) -> npt.NDArray[np.int64]: ...


def select_matching(tree: Filter, source: Source) -> Matching:
    """The rows that match. Raises `InvalidArgument` for a malformed regular expression."""
    plan = _plan(tree, source)
    steps: list[Step] = []
    mask = _run(plan, source, None, steps)
    mask.flags.writeable = False
    estimated = source.rows if plan.estimate is None else plan.estimate
    return Matching(mask, estimated, tuple(steps), mask.nbytes + _size_bytes(tree))


def _size_bytes(tree: Filter) -> int:
    """About what the values of a filter take in memory."""
    match tree:
        case And(children) | Or(children):
            return sum(map(_size_bytes, children))
        case Membership(_, values) | IdIn(values):
            return sum(map(sys.getsizeof, values))
        case Compare(_, _, value) | ListContains(_, value) | Text(_, value):
            return sys.getsizeof(value)
        case Exists(key):
            return sys.getsizeof(key)


# --- planning ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """A condition with its estimate (see `Step`; of several joined, an upper bound) and what it costs to find its rows.

    Attributes:
        children: of ``and`` and ``or``.
        hits: of ``values``, those that match, by index; the condition is their union or, ``negated``, the complement.
    """

    tree: Filter
    how: str
    estimate: int | None
    cost_ns: float
    children: tuple[_Plan, ...] = ()
    hits: tuple[tuple[ValueIndex, Codes], ...] = ()
    negated: bool = False


def _plan(tree: Filter, source: Source) -> _Plan:
    match tree:
        case And(children) | Or(children):
            return _plan_joined(tree, [_plan(child, source) for child in children], source.rows)
        case IdIn(ids, negated):
            return _Plan(tree, "ids", source.rows if negated else min(len(ids), source.rows), _ID_NS * len(ids))
        case Exists(_, expected):
            names = columns_of(tree, source.schema)
            columns = source.columns([ID, *sorted(names)])
            found = sum(columns.num_rows - columns.column(name).null_count for name in names)
            return _Plan(tree, "validity", found if expected else source.rows - found, _VALIDITY_NS * source.rows)
        case Text():
            if source.trigrams is None:
                return _Plan(tree, "scan", None, _TEXT_NS * source.rows)
            return _Plan(tree, "trigrams", None, _TRIGRAMS_NS)
        case Compare() | Membership() | ListContains():
            return _plan_values(tree, source)


def _plan_joined(tree: And | Or, children: Sequence[_Plan], rows: int) -> _Plan:
    how = "and" if isinstance(tree, And) else "or"
    flat = [inner for child in children for inner in (child.children if child.how == how else (child,))]
    joined = _joined_ranges(flat, rows) if how == "and" else tuple(flat)
    known = [child.estimate for child in joined if child.estimate is not None]
    cost_ns = sum(child.cost_ns for child in joined)
    if how == "and":
        return _Plan(tree, how, min(known, default=None), cost_ns, joined)
    return _Plan(tree, how, min(rows, sum(known)) if len(known) == len(joined) else None, cost_ns, joined)


def _joined_ranges(children: Sequence[_Plan], rows: int) -> tuple[_Plan, ...]:
    """The same conditions with comparisons of one key as one range, whose count is exact."""
    groups: dict[object, list[_Plan]] = {}
    for child in children:
        groups.setdefault(_range_of(child) or id(child), []).append(child)
    return tuple(group[0] if len(group) == 1 else _one_range(group, rows) for group in groups.values())


def _range_of(plan: _Plan) -> tuple[object, ...] | None:
    """What two comparisons have in common that are ranges of the same values; None for other conditions."""
    if not isinstance(plan.tree, Compare) or plan.how != "values" or plan.negated:
        return None
    return (plan.tree.key, *(id(index) for index, _ in plan.hits))


def _one_range(group: Sequence[_Plan], rows: int) -> _Plan:
    spans: list[tuple[ValueIndex, Codes]] = []
    for column in zip(*(plan.hits for plan in group), strict=True):
        slices = [codes for _, codes in column if isinstance(codes, slice)]
        first, last = max(codes.start for codes in slices), min(codes.stop for codes in slices)
        spans.append((column[0][0], slice(first, max(first, last))))
    return _values_plan(And(tuple(plan.tree for plan in group)), spans, rows)


def _plan_values(tree: Compare | Membership | ListContains, source: Source) -> _Plan:
    columns = [name for kind in _kinds(tree) if (name := MetadataField(tree.key, kind).column) in source.schema.names]
    if not all(name in source.values for name in columns):
        return _Plan(tree, "scan", None, _SCAN_NS * source.rows * len(columns))
    hits = [(index, _hits(tree, index)) for index in (source.values[name] for name in columns)]
    return _values_plan(tree, hits, source.rows, _is_negated(tree))


def _values_plan(tree: Filter, hits: Sequence[tuple[ValueIndex, Codes]], rows: int, negated: bool = False) -> _Plan:
    found = sum(index.count(codes) for index, codes in hits)
    cost_ns = _POSTING_NS * min(found, rows // 4)  # where more match, bitmaps or the complement are at hand
    return _Plan(tree, "values", rows - found if negated else found, cost_ns, (), tuple(hits), negated)


def _is_negated(tree: Compare | Membership | ListContains) -> bool:
    return tree.comparator is Comparator.NE if isinstance(tree, Compare) else tree.negated


def _kinds(tree: Compare | Membership | ListContains) -> tuple[Kind, ...]:
    """The kinds of value that can match."""
    value = tree.values[0] if isinstance(tree, Membership) else tree.value
    lists = isinstance(tree, ListContains)
    if isinstance(value, bool):
        return (Kind.BOOLS if lists else Kind.BOOL,)
    if isinstance(value, str):
        return (Kind.STRINGS if lists else Kind.STRING,)
    return (Kind.INTS, Kind.FLOATS) if lists else (Kind.INT, Kind.FLOAT)


def _hits(tree: Compare | Membership | ListContains, index: ValueIndex) -> Codes:
    match tree:
        case Membership(_, values):
            return index.among(values)
        case Compare(_, comparator, value) if comparator is not Comparator.NE:
            return index.compared(comparator, value)
        case _:
            return index.compared(Comparator.EQ, tree.value)


# --- running -----------------------------------------------------------------------------------------------------------


def _run(plan: _Plan, source: Source, within: Mask | None, steps: list[Step]) -> Mask:
    """The rows that match. Those outside ``within`` may be answered wrongly: the caller drops them."""
    if plan.how == "and":
        return _run_all(plan, source, steps)
    if plan.how == "or":
        return np.logical_or.reduce([_run(child, source, within, steps) for child in plan.children])
    how, estimate = plan.how, plan.estimate
    if isinstance(plan.tree, Text) and source.trigrams is not None:
        mask, how, estimate, read_bytes = _run_text(plan.tree, source, source.trigrams, within)
    elif how == "values":
        masks = [index.mask(codes) for index, codes in plan.hits]
        mask = np.logical_or.reduce(masks) if masks else np.zeros(source.rows, dtype=bool)
        mask = ~mask if plan.negated else mask
        read_bytes = sum(index.read_bytes(codes) for index, codes in plan.hits)
    elif isinstance(plan.tree, IdIn):
        rows = source.locate(pa.array(plan.tree.ids, pa.string()))
        mask = _mask_of(rows[rows >= 0], source.rows) ^ plan.tree.negated
        read_bytes = _ID_BYTES * len(plan.tree.ids)
    else:
        mask, read_bytes = _scan(plan.tree, source)
    rejected = _against_index(plan.tree, source) if how == "scan" else ()
    if within is not None:
        rejected += (("verify", f"{np.count_nonzero(within)} rows were left, too many to look at each"),)
    matched = int(np.count_nonzero(mask))
    steps.append(Step(_condition(plan.tree), how, estimate, matched, read_bytes, rejected))
    return mask


def _against_index(tree: Filter, source: Source) -> tuple[tuple[str, str], ...]:
    """Why a condition is evaluated by a scan."""
    if not isinstance(tree, Text):
        return (("values", "this segment has no index of the key"),)
    if source.trigrams is None:
        return (("trigrams", "this segment has no index of the documents"),)
    return (("trigrams", "no part of the pattern leaves few enough documents"),)


def _run_all(plan: _Plan, source: Source, steps: list[Step]) -> Mask:
    """The conjunction, rarest first. No child is left out when no row is left: a malformed pattern is an error all the same."""
    mask: Mask | None = None
    left = source.rows
    for child in sorted(plan.children, key=_by_rarity):
        if mask is None:
            mask = _run(child, source, None, steps)
        elif _verify_ns(child.tree, left, source) < child.cost_ns:
            rows, read_bytes = _verified(child.tree, np.flatnonzero(mask), source)
            rejected = ((child.how, f"only {left} rows were left, looking at them costs less"),)
            steps.append(Step(_condition(child.tree), "verify", child.estimate, len(rows), read_bytes, rejected))
            mask = _mask_of(rows, source.rows)
        else:
            mask = mask & _run(child, source, mask, steps)
        left = int(np.count_nonzero(mask))
    return np.ones(source.rows, dtype=bool) if mask is None else mask


def _by_rarity(plan: _Plan) -> tuple[bool, float]:
    """Known estimates first, then by cost: a scan of documents comes last."""
    return (True, plan.cost_ns) if plan.estimate is None else (False, plan.estimate)


def _run_text(
    tree: Text, source: Source, trigrams: TrigramIndex, within: Mask | None
) -> tuple[Mask, str, int | None, int]:
    """Mask, how it was found, the number of candidates and the bytes read."""
    matcher = _POSITIVE.get(tree.matcher, tree.matcher)
    candidates = trigrams.candidates(matcher, tree.pattern)
    if candidates is None:
        mask, read_bytes = _scan(tree, source)
        return mask, "scan", None, read_bytes
    rows, read_bytes = candidates.rows.astype(np.int64), candidates.read_bytes
    if not candidates.exact:
        rows = rows if within is None else rows[within[rows]]
        rows, taken_bytes = _verified(Text(matcher, tree.pattern), rows, source)
        read_bytes += taken_bytes
    mask = _mask_of(rows, source.rows)
    return ~mask if matcher is not tree.matcher else mask, "trigrams", candidates.count, read_bytes


def _scan(tree: Filter, source: Source) -> tuple[Mask, int]:
    """The rows that match, of all, and the bytes read."""
    table = source.columns(_columns(tree, source))
    return np.array(evaluate(tree, table)), _read_bytes(tree, table)


def _verified(tree: Filter, rows: npt.NDArray[np.int64], source: Source) -> tuple[npt.NDArray[np.int64], int]:
    """Those of the rows that match, and the bytes read."""
    table = source.take(rows, _columns(tree, source))
    return rows[evaluate(tree, table)], _read_bytes(tree, table)


def _read_bytes(tree: Filter, table: pa.Table) -> int:
    """Bytes of the columns that `evaluate` reads, or only of their validity."""
    names = sorted(columns_of(tree, table.schema))
    return len(names) * (table.num_rows // 8 + 1) if isinstance(tree, Exists) else int(table.select(names).nbytes)


def _columns(tree: Filter, source: Source) -> list[str]:
    """What `evaluate` needs; at least one column, which knows the number of rows."""
    return sorted(columns_of(tree, source.schema) or {ID})


def _verify_ns(tree: Filter, left: int, source: Source) -> float:
    """What it costs to look at ``left`` of the rows."""
    return _VERIFY_NS + _CANDIDATE_NS * source.rows + left * _row_ns(tree, source)


def _row_ns(tree: Filter, source: Source) -> float:
    if isinstance(tree, And | Or):
        return sum(_row_ns(child, source) for child in tree.children)
    if isinstance(tree, Text):
        return _TAKE_TEXT_NS + _TEXT_NS
    return _TAKE_NS * max(1, len(columns_of(tree, source.schema)))


def _mask_of(rows: npt.NDArray[np.int64], count: int) -> Mask:
    mask = np.zeros(count, dtype=bool)
    mask[rows] = True
    return mask


# --- explaining --------------------------------------------------------------------------------------------------------


def _condition(tree: Filter) -> str:
    """The condition as people write it, shortened."""
    text = json.dumps(_json_of(tree), ensure_ascii=False)
    return text if len(text) <= _CONDITION_CHARACTERS else f"{text[: _CONDITION_CHARACTERS - 1]}…"


def _json_of(tree: Filter) -> dict[str, Any]:
    match tree:
        case And(children):
            return {"$and": [_json_of(child) for child in children]}
        case Or(children):
            return {"$or": [_json_of(child) for child in children]}
        case Compare(key, comparator, value):
            return {key: {str(comparator): value}}
        case Membership(key, values, negated):
            return {key: {"$nin" if negated else "$in": values[:_CONDITION_CHARACTERS]}}
        case ListContains(key, value, negated):
            return {key: {"$not_contains" if negated else "$contains": value}}
        case Exists(key, expected):
            return {key: {"$exists": expected}}
        case IdIn(ids, negated):
            return {"#id": {"$nin" if negated else "$in": ids[:_CONDITION_CHARACTERS]}}
        case Text(matcher, pattern):
            return {"#document": {str(matcher): pattern}}
