"""Embeddings of a JSON body → one float32 matrix."""

from __future__ import annotations

from binascii import a2b_base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from pybase64 import b64decode

from shoal_core.errors import DimensionMismatch, InvalidArgument
from shoal_frontend.http_api.bodies import items
from shoal_frontend.http_api.body_error import BodyError, wrong_type

_NUMBERS = frozenset({int, float})


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """Embeddings.

    Attributes:
        matrix: (n, dim) float32; zeros in rows that are null.
        valid: (n,) bool.
    """

    matrix: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]


def wrong_dimension(expected: int, got: int) -> DimensionMismatch:
    """The error in the words that clients know."""
    return DimensionMismatch(f"Collection expecting embedding with dimension of {expected}, got {got}")


def parse_vectors(value: Any, name: str, *, nulls: bool = False) -> Vectors | None:
    """Lists of numbers, or base64 texts of little-endian float32; None where there are none or all are null.

    Args:
        value: as JSON has it, or the array that was made of it (see `matrices`).
        nulls: rows may be null.

    Raises:
        BodyError: rows are of other types.
        DimensionMismatch: the rows differ in length.
        InvalidArgument: a row is empty, or no base64 of whole numbers.
    """
    if isinstance(value, np.ndarray):
        return Vectors(value, np.ones(len(value), dtype=bool))
    rows = items(value, name)
    present = [row for row in rows if row is not None] if nulls else rows
    if not present:
        return None
    kinds = set(map(type, present))
    if kinds == {list} and set(map(type, chain.from_iterable(present))) <= _NUMBERS:
        found = _of_lists(present, name)  # numpy alone would take texts and bools for numbers
    elif kinds == {str}:
        found = _of_texts(present, name)
    else:
        raise _no_vectors(rows, name, nulls)
    valid = np.ones(len(rows), dtype=bool)
    if len(present) < len(rows):
        valid = np.fromiter((row is not None for row in rows), dtype=bool, count=len(rows))
        matrix = np.zeros((len(rows), found.shape[1]), dtype=np.float32)
        matrix[valid] = found
        found = matrix
    return Vectors(found, valid)


def _of_lists(rows: Sequence[list[Any]], name: str) -> npt.NDArray[np.float32]:
    _check_lengths([*map(len, rows)], name)
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused as such
        return np.array(rows, dtype=np.float32)


def _of_texts(rows: Sequence[str], name: str) -> npt.NDArray[np.float32]:
    parts = _decoded(rows, name)
    sizes = [*map(len, parts)]
    if any(size % 4 for size in sizes):
        raise InvalidArgument(f"Validation error: {name}: base64 of float32 has a multiple of 4 bytes")
    _check_lengths([size // 4 for size in sizes], name)
    numbers = np.frombuffer(b"".join(parts), dtype="<f4").astype(np.float32, copy=False)
    return numbers.reshape(len(rows), -1)


def _decoded(rows: Sequence[str], name: str) -> list[bytes]:
    """Quickly; the other decoder has the last word, and says what is wrong."""
    try:
        return [*map(partial(b64decode, validate=True), rows)]
    except ValueError:
        pass
    try:
        return [*map(partial(a2b_base64, strict_mode=True), rows)]
    except ValueError as error:
        raise InvalidArgument(f"Validation error: {name}: not base64: {error}") from error


def _check_lengths(lengths: Sequence[int], name: str) -> None:
    if min(lengths) == 0:
        raise InvalidArgument(f"Validation error: {name}: Each embedding must have at least 1 dimension")
    if min(lengths) < max(lengths):
        raise DimensionMismatch("Inconsistent dimensions in provided embeddings")


def _no_vectors(rows: Sequence[Any], name: str, nulls: bool) -> BodyError:
    """The first number that is none, or what is no row."""
    for row, vector in enumerate(rows):
        if isinstance(vector, list):
            wrong = next((at for at, number in enumerate(vector) if type(number) not in _NUMBERS), None)
            if wrong is not None:
                return wrong_type(vector[wrong], "f32", f"{name}[{row}][{wrong}]")
        elif not (isinstance(vector, str) or (nulls and vector is None)):
            return wrong_type(vector, "a sequence of numbers", f"{name}[{row}]")
    return BodyError("some rows are lists and some base64 texts; all must be of one form", name)
