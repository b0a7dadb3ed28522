"""What reading and comparing take, in nanoseconds on the machines that were measured. What is ``shared`` is read once for several.

The planner weighs one way to search against another, for which only proportions matter; query nodes tell by them which searches are
brief (`querynode.brief_search_us`).
"""

from __future__ import annotations


def scan_row(dimension: int, *, shared: bool, share: float = 1.0) -> float:
    """A row of an exact scan, the next in memory if it is one of a large ``share`` of them, else somewhere; where several queries
    share it, comparing takes longer than reading.
    """
    if shared:
        return 0.3 + 0.03 * dimension
    next_in_memory = 10.0 + 0.38 * dimension
    return share * next_in_memory + (1.0 - share) * max(measure_row(dimension), next_in_memory)


def measure_row(dimension: int) -> float:
    """A row somewhere in memory, whoever reads it."""
    return 160.0 + 0.25 * dimension


def rank_centroid(dimension: int, *, shared: bool) -> float:
    """A list's centroid, and its place among the others."""
    return 7.0 + 0.035 * dimension if shared else 8.0 + 0.14 * dimension


def look_up_code(pieces: int, *, shared: bool) -> float:
    """A vector of so many pieces, by its code."""
    return 1.8 + 0.012 * pieces if shared else 2.4 + 0.045 * pieces
