"""Exact search of a long tail: every vector, against 8-bit codes first.

    make bench ARGS="tail [--rows 10000,50000,200000] [--dimensions 384,128] [--space cosine] [--k 10] [--level v3]"

One thread, of whose processor time the best of several rounds counts, both ways in turn. Of queries by themselves and 100
together: microseconds a query, the ratio (above 1: codes are faster) and the share of rows that codes do not rule out; of codes:
bytes and nanoseconds for each row. Rows are a mixture (``clustered``) or without any structure (``random``), in the pieces that a
tail has; one in fifty is not live. Both answers are compared, to the bit.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from unittest import mock

import numpy as np
import numpy.typing as npt

from shoal_index.vector import native
from shoal_index.vector.column import VectorChunk, VectorColumn
from shoal_index.vector.engine import SPACES
from shoal_index.vector.exact import search_exact
from shoal_index.vector.scalar_codes import code_vectors, search_by_codes

Vectors = npt.NDArray[np.float32]

_ROUNDS = 5
_LIVE = 0.98
_TOGETHER = 100  # queries


def drawn(kind: str, rows: int, dimension: int) -> tuple[Vectors, Vectors]:
    """(rows, dimension) vectors and (100, dimension) queries of one distribution."""
    random = np.random.default_rng(rows + dimension)
    both = random.standard_normal((rows + _TOGETHER, dimension))
    if kind == "clustered":
        centres = random.standard_normal((rows // 100, dimension))
        both = 0.6 * both + centres[random.integers(0, len(centres), len(both))]
    vectors, queries = np.split(both.astype(np.float32), [rows])
    return vectors, queries


def pieces(vectors: Vectors) -> VectorColumn:
    """The vectors as a tail has them: each piece at least twice as long as the next."""
    cuts = [len(vectors) - len(vectors) // 2**n for n in range(1, 5)]
    return VectorColumn(
        [VectorChunk(part) for part in np.split(vectors, cuts)], np.arange(len(vectors), dtype=np.uint64)
    )


def in_turn(ways: Sequence[Callable[[], object]]) -> list[float]:
    """The least seconds of processor time of each."""
    best = [float("inf")] * len(ways)
    for _ in range(_ROUNDS):
        for number, way in enumerate(ways):
            started = time.process_time()
            way()
            best[number] = min(best[number], time.process_time() - started)
    return best


def compare(kind: str, rows: int, dimension: int, space: str, k: int) -> None:
    """One line."""
    vectors, queries = drawn(kind, rows, dimension)
    column = pieces(vectors)
    allowed = np.random.default_rng(1).random(rows) < _LIVE
    [coding] = in_turn([lambda: [code_vectors(chunk.vectors, space) for chunk in column.chunks]])
    codes = [code_vectors(chunk.vectors, space) for chunk in column.chunks]
    cells = []
    for asked in (queries[:1], queries):
        true = search_exact(column, space, asked, k, allowed=allowed)
        found, rescored = search_by_codes(column, codes, space, asked, k, allowed=allowed)
        assert np.array_equal(true.rows, found.rows)
        assert np.array_equal(true.distances, found.distances)
        scan = partial(search_exact, column, space, asked, k, allowed=allowed)
        by_codes = partial(search_by_codes, column, codes, space, asked, k, allowed=allowed)
        exact, coded = in_turn([scan, by_codes])
        each = 1e6 / len(asked)
        cells.append(
            f"{exact * each:8,.0f} {coded * each:8,.0f} {exact / coded:6.2f} {100 * rescored.mean() / rows:7.3f} %"
        )
    size = sum(part.size_bytes for part in codes) / rows
    print(
        f"{kind:9} {rows:7,} x {dimension:3} | {' | '.join(cells)} | {size:4.0f} B {coding / rows * 1e9:6,.0f} ns",
        flush=True,
    )


def main(arguments: Sequence[str]) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="bench tail")
    parser.add_argument("--rows", default="10000,50000,200000")
    parser.add_argument("--dimensions", default="384,128")
    parser.add_argument("--space", choices=SPACES, default="cosine")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--level", help="of x86-64; the highest that this CPU has, if not given")
    options = parser.parse_args(arguments)
    loaded = native.load(options.level or native.level())
    print(f"kernels {options.level or native.level()}, {options.space}, k = {options.k}; in microseconds a query")
    print(
        "                        |    one: exact, codes, ratio, rescored |   100: exact, codes, ratio, rescored | codes"
    )
    with mock.patch.object(native, "_loaded", return_value=loaded):
        for kind in ("clustered", "random"):
            for dimension in map(int, options.dimensions.split(",")):
                for rows in map(int, options.rows.split(",")):
                    compare(kind, rows, dimension, options.space, options.k)
