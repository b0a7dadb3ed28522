"""The meaning of a rank expression: what its leaves found becomes one score per record, and the best of each group.

Every part of an expression is a triple: the records it supports, their values, and what it stands in with elsewhere, its default.
`ranking` says how they combine. Arithmetic is IEEE 754 in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal_core.errors import InvalidArgument
from shoal_core.ranking import (
    SCORE_KEY,
    Abs,
    Div,
    Exp,
    GroupBy,
    Knn,
    Log,
    Max,
    Min,
    Mul,
    Rank,
    Sub,
    Sum,
    Val,
    leaves_of,
)
from shoal_core.records import Kind, MetadataField, one_chunk

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class LeafHits:
    """What one leaf found, best first: ``keys`` (n,) int64, distinct record numbers from 0, and ``measures`` (n,) float64."""

    keys: Ints
    measures: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """``keys`` (m,) int64 ascending: the records that the expression supports; ``scores`` (m,) float64."""

    keys: Ints
    scores: Floats


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Of an expression over u records: ``support`` (u,), ``values`` (u,) that count where it supports, ``default`` elsewhere."""

    support: Mask
    values: Floats
    default: float | None


def score(rank: Rank, hits: Sequence[LeafHits]) -> Scored:
    """The scores of an expression. ``hits`` has one element per leaf, in the order of `leaves_of`."""
    records = 1 + max((int(leaf.keys.max(initial=-1)) for leaf in hits), default=-1)
    with np.errstate(all="ignore"):
        part = _part(rank, iter(hits), records)
    keys = np.flatnonzero(part.support)
    return Scored(keys, part.values[keys])


def best_first(scores: Floats, created: npt.NDArray[np.uint64]) -> Ints:
    """(n,) positions in order of score, then of creation; not-a-number last."""
    return np.lexsort((created, scores))


def rrf(
    ranks: Sequence[Rank],
    *,
    k: float = 60.0,
    weights: Sequence[float] | None = None,
    normalize: bool = False,
    place: str = "rrf",
) -> Rank:
    """Reciprocal rank fusion as an expression: −Σ wᵢ / (k + rankᵢ) (Cormack, Clarke and Büttcher 2009).

    A record counts only if every list has it or its leaf has a default, which then is a position such as 1000.

    Args:
        ranks: expressions whose leaves have ``return_rank``.
        k: positive; the larger, the less the first positions stand out.
        weights: one per rank, not negative; None for 1 each.
        normalize: divide the weights by their sum, which must be positive then.
        place: what errors call it.
    """
    if not ranks:
        raise InvalidArgument("nothing to fuse; give one rank or more", field=f"{place}.ranks")
    for number, rank in enumerate(ranks):
        if not all(leaf.return_rank for leaf in leaves_of(rank)):
            raise InvalidArgument("fuses positions; set return_rank", field=f"{place}.ranks[{number}]")
    if not 0 < k < np.inf:
        raise InvalidArgument(f"{k}; a positive number is needed", field=f"{place}.k")
    shares = [1.0] * len(ranks) if weights is None else [float(weight) for weight in weights]
    if len(shares) != len(ranks):
        raise InvalidArgument(f"{len(shares)} weights for {len(ranks)} ranks", field=f"{place}.weights")
    for number, share in enumerate(shares):
        if not 0 <= share < np.inf:
            raise InvalidArgument(f"{share}; weights are 0 or more", field=f"{place}.weights[{number}]")
    if normalize:
        total = sum(shares)
        if not 0 < total < np.inf:
            raise InvalidArgument(f"a sum of {total} cannot be normalized", field=f"{place}.weights")
        shares = [share / total for share in shares]
    terms = tuple(Div(Val(share), Sum((Val(float(k)), rank))) for share, rank in zip(shares, ranks, strict=True))
    return Mul((Val(-1.0), Sum(terms)))


def _part(rank: Rank, hits: Iterator[LeafHits], records: int) -> _Part:
    def joined(op: Callable[..., Floats], *children: Rank) -> _Part:
        parts = [_part(child, hits, records) for child in children]
        return functools.reduce(functools.partial(_combined, op), parts)

    def mapped(op: Callable[..., Floats], child: Rank) -> _Part:
        part = _part(child, hits, records)
        return _Part(part.support, op(part.values), None if part.default is None else float(op(part.default)))

    match rank:
        case Knn():
            return _leaf(rank, next(hits), records)
        case Val(value):
            return _Part(np.zeros(records, dtype=bool), np.zeros(records), float(value))
        case Sum(children):
            return joined(np.add, *children)
        case Mul(children):
            return joined(np.multiply, *children)
        case Max(children):
            return joined(_larger, *children)
        case Min(children):
            return joined(_smaller, *children)
        case Sub(left, right):
            return joined(np.subtract, left, right)
        case Div(left, right):
            return joined(np.divide, left, right)
        case Abs(child):
            return mapped(np.abs, child)
        case Exp(child):
            return mapped(np.exp, child)
        case Log(child):
            return mapped(np.log, child)


def _leaf(leaf: Knn, hits: LeafHits, records: int) -> _Part:
    support, values = np.zeros(records, dtype=bool), np.zeros(records)
    support[hits.keys] = True
    values[hits.keys] = np.arange(len(hits.keys)) if leaf.return_rank else hits.measures
    return _Part(support, values, None if leaf.default is None else float(leaf.default))


def _combined(op: Callable[..., Floats], left: _Part, right: _Part) -> _Part:
    values = op(_everywhere(left), _everywhere(right))
    if left.default is not None and right.default is not None:
        return _Part(left.support | right.support, values, float(op(left.default, right.default)))
    if left.default is None and right.default is None:
        return _Part(left.support & right.support, values, None)
    return _Part(right.support if right.default is None else left.support, values, None)


def _everywhere(part: _Part) -> Floats:
    return part.values if part.default is None else np.where(part.support, part.values, part.default)


# --- groups

_NULL, _BOOL, _NUMBER, _STRING = 3, 0, 1, 2


def best_of_groups(rows: pa.Table, group_by: GroupBy, scores: Floats, created: npt.NDArray[np.uint64]) -> Mask:
    """(n,) bool: the rows among the ``k`` best of their group. ``rows`` has the metadata columns of the keys, as far as any row has it.

    Lists and sparse vectors count as no value.
    """
    group = np.zeros(rows.num_rows, dtype=np.int64)
    for key in group_by.keys:
        codes, _ = _codes(rows, key)
        group = np.unique(group * (codes.max(initial=0) + 1) + codes, return_inverse=True)[1]
    aggregates = []
    for key in group_by.aggregate:
        codes, null = _score_codes(scores) if key == SCORE_KEY else _codes(rows, key)
        aggregates.append(np.where(null, 1, -codes) if group_by.largest else codes)
    order = np.lexsort((created, scores, *reversed(aggregates), group))
    sizes = np.bincount(group)
    kept = np.zeros(rows.num_rows, dtype=bool)
    kept[order] = np.arange(rows.num_rows) - np.repeat(np.cumsum(sizes) - sizes, sizes) < group_by.k
    return kept


def _codes(rows: pa.Table, key: str) -> tuple[Ints, Mask]:
    """(n,) dense int64 codes in the order of the key's values, equal for equal ones, no value last; and where there is none.

    A number is its nearest float64 and what the rounding took away: together they order int64 and float64 exactly.
    """
    types = np.full(rows.num_rows, _NULL)
    nearest, rest = np.zeros(rows.num_rows), np.zeros(rows.num_rows, dtype=np.int64)
    for kind in (Kind.BOOL, Kind.INT, Kind.FLOAT, Kind.STRING):
        name = MetadataField(key, kind).column
        if name not in rows.column_names:
            continue
        column = one_chunk(rows.column(name))
        valid = np.asarray(pc.is_valid(column))
        values = column.drop_null()
        match kind:
            case Kind.BOOL:
                types[valid], rest[valid] = _BOOL, values.cast(pa.int8()).to_numpy()
            case Kind.INT:
                types[valid], nearest[valid] = _NUMBER, values.to_numpy()
                rest[valid] = _lost_by_rounding(values.to_numpy())
            case Kind.FLOAT:
                types[valid], nearest[valid] = _NUMBER, values.to_numpy()
            case Kind.STRING:
                types[valid], rest[valid] = _STRING, _string_order(values)
    return _dense(types, nearest, rest)


def _score_codes(scores: Floats) -> tuple[Ints, Mask]:
    return _dense(np.full(len(scores), _NUMBER), scores, np.zeros(len(scores), dtype=np.int64))


def _dense(types: Ints, nearest: Floats, rest: Ints) -> tuple[Ints, Mask]:
    types = np.where(np.isnan(nearest), _NULL, types)
    nearest = np.nan_to_num(nearest, nan=0.0, posinf=np.inf, neginf=-np.inf)
    order = np.lexsort((rest, nearest, types))
    columns = [column[order] for column in (types, nearest, rest)]
    starts = functools.reduce(np.logical_or, (column[1:] != column[:-1] for column in columns))
    codes = np.zeros(len(types), dtype=np.int64)
    codes[order[1:]] = np.cumsum(starts)
    return codes, types == _NULL


def _lost_by_rounding(values: Ints) -> Ints:
    """(n,) int64: each value less its nearest float64, exactly; 2⁶³, which no int64 is, by way of its neighbour."""
    nearest = values.astype(np.float64)
    beyond = nearest >= 2.0**63
    whole = np.where(beyond, 0.0, nearest).astype(np.int64)
    return np.where(beyond, values - np.int64(2**63 - 1) - 1, values - whole)


def _string_order(values: pa.Array) -> Ints:
    """(n,) int64: the place of each string among the distinct ones, by code point."""
    encoded = values.dictionary_encode()
    places = np.empty(len(encoded.dictionary), dtype=np.int64)
    places[pc.sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(places))
    return places[encoded.indices.to_numpy()]


def _larger(left: Floats, right: Floats) -> Floats:
    """The larger, passing over not-a-number. +0 is larger than −0: numpy's choice depends on the place in the array."""
    found: Floats = np.where((left == 0) & (right == 0), left + right, np.fmax(left, right))
    return found


def _smaller(left: Floats, right: Floats) -> Floats:
    return -_larger(-left, -right)
