"""JSON in pieces of bounded size, so that a large answer is never there whole.

A piece holds the interpreter's lock while it is written: pieces are small enough for other requests not to notice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

PIECE_BYTES = 128 << 10
SMALL_BYTES = 32 << 10  # rows that make no more than a piece or two, whatever is in them: written at once

Pieces: TypeAlias = Iterator[bytes]
Values: TypeAlias = Sequence[Any] | np.ndarray[Any, Any]
Weights: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Column:
    """How rows become a list: ``values`` makes its items, ``weights`` says about how many bytes each of them is as text."""

    values: Callable[[pa.Table], Values]
    weights: Callable[[pa.Table], Weights]


def encoded(value: Any) -> bytes:
    """JSON of plain data and arrays."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def object_pieces(members: Mapping[str, Iterable[bytes]]) -> Pieces:
    """``{"name":…,…}``."""
    mark = b"{"
    for name, value in members.items():
        yield mark + encoded(name) + b":"
        yield from value
        mark = b","
    yield b"}"


def list_pieces(items: Iterable[Iterable[bytes]]) -> Pieces:
    """``[…,…]``."""
    mark = b"["
    for item in items:
        yield mark
        yield from item
        mark = b","
    yield b"[]" if mark == b"[" else b"]"


def column_pieces(rows: pa.Table, column: Column | None) -> Pieces:
    """``[…]`` of all rows, or null for no column."""
    if column is None:
        yield b"null"
    else:
        parts = _slices(column.weights(rows))
        yield from list_pieces(_inner(column.values(rows.slice(start, end - start))) for start, end in parts)


def nested_pieces(rows: pa.Table, bounds: Sequence[int], column: Column | None) -> Pieces:
    """``[[…],…]``: one list for the rows between each bound and the next, or null for no column."""
    if column is None:
        yield b"null"
    else:
        yield from list_pieces(_groups(rows, np.asarray(bounds), column))


def _groups(rows: pa.Table, bounds: npt.NDArray[np.int64], column: Column) -> Iterator[Iterable[bytes]]:
    """Runs of groups that fit into a piece, and groups that need several."""
    weights = np.concatenate([[0], np.cumsum(column.weights(rows))])[bounds]
    for first, end in _slices(np.diff(weights)):
        start, stop = int(bounds[first]), int(bounds[end])
        part = rows.slice(start, stop - start)
        if end - first == 1:
            yield column_pieces(part, column)
            continue
        values = column.values(part)
        yield _inner([values[left:right] for left, right in pairwise((bounds[first : end + 1] - start).tolist())])


def _inner(values: Values) -> tuple[bytes]:
    """The items of a list, with commas but without brackets."""
    return (encoded(values)[1:-1],)


def _slices(weights: Weights) -> Iterator[tuple[int, int]]:
    """Neighbours of at most a piece together, or one alone that is larger."""
    total = np.cumsum(weights)
    start, before = 0, 0
    while start < len(total):
        end = max(start + 1, int(np.searchsorted(total, before + PIECE_BYTES, side="right")))
        yield start, end
        start, before = end, int(total[end - 1])
