"""The nearest rows of a tail: exact, by a scan of its vectors, or of their codes first where it has some."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shoal_index.vector.engine import Mask, Neighbours, Vectors, no_neighbours
from shoal_index.vector.exact import search_exact
from shoal_index.vector.scalar_codes import prefers_codes, search_by_codes
from shoal_query.tail import Frozen


@dataclass(frozen=True, slots=True)
class TailScan:
    """How a tail was searched.

    Attributes:
        strategy: ``nothing``, ``scan`` or ``codes``.
        rescored: rows that all queries together were compared with in full, after their codes.
    """

    strategy: str
    rescored: int = 0


NOT_SEARCHED = TailScan("nothing")


def search_tail(
    frozen: Frozen, space: str, queries: Vectors, k: int, *, allowed: Mask | None, threads: int
) -> tuple[Neighbours, TailScan]:
    """The ``k`` nearest of the allowed rows, exactly.

    Args:
        queries: (q, dim) float32.
        allowed: (n,) bool.
    """
    assert allowed is not None, "the tail has a mask at every offset"
    count = int(np.count_nonzero(allowed))
    if frozen.vectors is None or not count:
        return no_neighbours(len(queries)), NOT_SEARCHED
    codes = [part.codes for part in frozen.parts if part.codes is not None]
    if len(codes) < len(frozen.parts) or not prefers_codes(count, len(queries), k):
        return search_exact(frozen.vectors, space, queries, k, allowed=allowed, threads=threads), TailScan("scan")
    near, rescored = search_by_codes(frozen.vectors, codes, space, queries, k, allowed=allowed, threads=threads)
    return near, TailScan("codes", int(rescored.sum()))
