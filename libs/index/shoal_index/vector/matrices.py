"""Matrices as they are stored: a column of lists of one size."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Number = TypeVar("Number", np.float32, np.uint8, np.uint32)


def lists_of(matrix: npt.NDArray[np.generic]) -> pa.Array:
    """The rows of a matrix (n, width), not copied."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])


def matrix_of(column: pa.ChunkedArray, dtype: type[Number]) -> npt.NDArray[Number]:
    """The inverse of `lists_of`, not copied. Raises `ValueError` for numbers of another type, or a column of several chunks."""
    (array,) = column.chunks or [pa.array([], column.type)]
    width = array.type.list_size
    flat: npt.NDArray[Number] = array.values.slice(array.offset * width, len(array) * width).to_numpy()
    if flat.dtype != dtype:
        raise ValueError(f"expected numbers of type {dtype.__name__}, found {flat.dtype}")
    return flat.reshape(-1, width)
