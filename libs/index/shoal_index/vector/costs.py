"""What reading and comparing take, in nanoseconds on the machines that were measured. Only their proportions matter: the planner weighs
one way to search against another. What is ``shared`` is read once for several queries.
"""

from __future__ import annotations


def scan_row(dimension: int, *, shared: bool) -> float:
    """A row of an exact scan, the next in memory."""
    return 0.3 + 0.03 * dimension if shared else 10.0 + 0.38 * dimension


def measure_row(dimension: int) -> float:
    """A row somewhere in memory, whoever reads it."""
    return 100.0 + 0.3 * dimension


def rank_centroid(dimension: int, *, shared: bool) -> float:
    """A list's centroid, and its place among the others."""
    return 6.0 + 0.03 * dimension if shared else 8.0 + 0.1 * dimension


def look_up_code(pieces: int, *, shared: bool) -> float:
    """A vector of so many pieces, by its code."""
    return 0.6 + 0.018 * pieces if shared else 1.2 + 0.05 * pieces
