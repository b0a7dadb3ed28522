"""Vectors in 8-bit codes with bounds of what those leave out, and exact search that reads them first (native/codes.hpp).

A row that its code proves to be too far is not looked at; all others are measured like those of any scan. The answer is that of
`exact.search_exact`, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal_index.vector import native
from shoal_index.vector.column import VectorColumn
from shoal_index.vector.engine import Mask, Neighbours, Vectors, neighbours

CODED_ROWS = 20_000  # rows from which codes are worth their memory

_FEW = 32  # queries; more share what a scan reads, which with wide registers then is as fast as codes
_ROWS_PER_K = 10  # fewer, and too many of them are compared twice


@dataclass(frozen=True, slots=True)
class ScalarCodes:
    """Codes of n vectors, for one space.

    Attributes:
        codes: (n, width) int8, filled up with zeros to a multiple of 32.
        bounds: (3, n) float32: scales, lengths that codes leave out, and lengths that they stand for.
    """

    codes: npt.NDArray[np.int8]
    bounds: npt.NDArray[np.float32]

    @property
    def count(self) -> int:
        """Of vectors."""
        return len(self.codes)

    @property
    def size_bytes(self) -> int:
        """Of memory."""
        return self.codes.nbytes + self.bounds.nbytes


def prefers_codes(rows: int, queries: int, k: int) -> bool:
    """Whether a search of so many allowed rows is faster by codes, where there are some."""
    return rows >= max(CODED_ROWS, _ROWS_PER_K * k) and (queries < _FEW or native.level() == "v2")


def code_vectors(vectors: Vectors, space: str) -> ScalarCodes:
    """Code (n, dim) float32 vectors, row by row, each by its own scale."""
    return ScalarCodes(*native.code_rows(space, vectors))


def join_codes(parts: Sequence[ScalarCodes]) -> ScalarCodes:
    """Those of vectors one after another."""
    if len(parts) == 1:
        return parts[0]
    return ScalarCodes(
        np.concatenate([part.codes for part in parts]), np.concatenate([part.bounds for part in parts], axis=1)
    )


def search_by_codes(
    column: VectorColumn,
    codes: Sequence[ScalarCodes],
    space: str,
    queries: Vectors,
    k: int,
    *,
    allowed: Mask | None,
    threads: int = 1,
) -> tuple[Neighbours, npt.NDArray[np.int64]]:
    """What `exact.search_exact` answers; and (q,) how many rows each query was compared with in full.

    Args:
        codes: of each chunk of the column, made for this space.
        queries: (q, dim) float32.
        allowed: (n,) bool, or None for all rows.

    Raises:
        ValueError: the codes are not of so many rows.
    """
    found, rescored = native.scan_codes(
        column.handle(space),
        [part.codes for part in codes],
        [part.bounds for part in codes],
        queries,
        min(k, column.count),
        allowed=allowed,
        threads=threads,
    )
    return neighbours(found), rescored
