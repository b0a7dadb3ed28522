"""The compiled kernels of native/, which let other threads run meanwhile.

There is a module for each level of x86-64 instructions; the highest one that this CPU has is loaded, so that one installation runs on
old and new machines. Arrays are checked for their size there, and for their type and order here.
"""

from __future__ import annotations

import importlib
import platform
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from shoal_core.errors import FailedPrecondition

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Handle = object  # of what a kernel holds on to

SPACES: Final = ("l2", "cosine", "ip")  # by their number in native/vectors.hpp

_LEVELS = (4, 3, 2)
_CODE_STEP = 32  # kCodeStep of native/codes.hpp
_TURNED_STEP = 64  # kStep of native/rotation.hpp
_LINKS_STEP = 32  # kCoded of native/look_up.hpp


class Nearest(NamedTuple):
    """Of each query up to k rows, nearest first: (q, k) int64 ``rows`` and float32 ``distances``, of which ``counts`` (q,) int64
    are filled, ``total`` together.
    """

    rows: npt.NDArray[np.int64]
    distances: Floats
    counts: npt.NDArray[np.int64]
    total: int


def level() -> str:
    """Of the kernels in use: ``v4`` and so on, of x86-64, or ``native``."""
    return _loaded().__name__.rpartition("_")[2]


def distances(space: str, query: Array, vectors: Array) -> Floats:
    """(n,) float32 distances of float32 vectors (n, dim) from a query (dim,), summed in float64."""
    query, vectors = contiguous(query, np.float32), contiguous(vectors, np.float32)
    out = np.empty(len(vectors), dtype=np.float32)
    _loaded().distances(SPACES.index(space), query, vectors, vectors.shape[1], out)
    return out


def lengths(vectors: Array) -> tuple[Floats, Floats]:
    """(n,) float32 squared lengths of float32 vectors (n, dim), and (n,) float32 reciprocals of the lengths.

    A reciprocal is not a number where a vector is so short that float32 cannot tell its direction, or zero.
    """
    vectors = contiguous(vectors, np.float32)
    squares, inverses = np.empty(len(vectors), dtype=np.float32), np.empty(len(vectors), dtype=np.float32)
    _loaded().lengths(vectors, vectors.shape[1], squares, inverses)
    return squares, inverses


def make_vectors(
    chunks: Sequence[Floats],
    starts: npt.NDArray[np.int64],
    ties: npt.NDArray[np.uint64],
    *,
    shift: int,
    space: str,
    squares: Floats,
    inverses: Floats,
) -> Handle:
    """Vectors by row number; it holds on to the arrays.

    Args:
        chunks: (n_i, dim) float32 each, in C order.
        starts: (chunks + 1,) the first row of each, and the number of rows.
        ties: (n,) what orders rows of equal distance.
        shift: chunks but the last have 2 to the power of it rows; -1: they do not.
        squares, inverses: (n,) see `lengths`.
    """
    return _loaded().vectors(
        tuple(chunks),
        starts,
        squares if space == "l2" else None,
        inverses if space == "cosine" else None,
        ties,
        shift,
        chunks[0].shape[1],
        SPACES.index(space),
        float(squares.max()),
    )


def make_graph(
    rows: int, links: Array, upper_rows: Array, upper_starts: Array, upper_links: Array, levels: int, entry: int
) -> Handle:
    """A graph whose links were checked; it holds on to the arrays, which are uint32 in C order. See `hnsw.Graph`."""
    widths = links.shape[1], upper_links.shape[1]
    return _loaded().graph(rows, links, upper_rows, upper_starts, upper_links, *widths, levels, entry)


def scan(vectors: Handle, queries: Array, k: int, *, allowed: npt.NDArray[np.bool_] | None, threads: int) -> Nearest:
    """The ``k`` nearest of the allowed vectors, fewer if fewer are allowed, exactly; see `search_graph`."""
    queries = contiguous(queries, np.float32)
    among = 0
    if allowed is not None:
        allowed = contiguous(allowed, np.bool_)
        among = int(np.count_nonzero(allowed))
        k = min(k, among)
    count, rows, far, counts = _output(queries, k)
    if not count or not k:
        return Nearest(rows, far, counts, 0)
    total = _loaded().scan(vectors, queries, count, allowed, among, k, threads, rows, far, counts)
    return Nearest(rows, far, counts, total)


def code_rows(space: str, vectors: Array) -> tuple[npt.NDArray[np.int8], Floats]:
    """8-bit codes of float32 vectors (n, dim), and what bounds their error; see `scalar_codes.ScalarCodes`."""
    vectors = contiguous(vectors, np.float32)
    count, dimension = vectors.shape
    codes = np.zeros((count, -(-dimension // _CODE_STEP) * _CODE_STEP), dtype=np.int8)
    bounds = np.empty((3, count), dtype=np.float32)
    _loaded().code_rows(SPACES.index(space), vectors, dimension, codes, bounds)
    return codes, bounds


def scan_codes(
    vectors: Handle,
    codes: Sequence[npt.NDArray[np.int8]],
    bounds: Sequence[Floats],
    queries: Array,
    k: int,
    *,
    allowed: npt.NDArray[np.bool_] | None,
    threads: int,
) -> tuple[Nearest, npt.NDArray[np.int64]]:
    """What `scan` finds, by way of the codes of each chunk, in C order; and (q,) rows that they did not rule out."""
    queries = contiguous(queries, np.float32)
    among = 0
    if allowed is not None:
        allowed = contiguous(allowed, np.bool_)
        among = int(np.count_nonzero(allowed))
        k = min(k, among)
    count, rows, far, counts = _output(queries, k)
    rescored = np.zeros(count, dtype=np.int64)
    if not count or not k:
        return Nearest(rows, far, counts, 0), rescored
    coded = tuple(codes), tuple(bounds)
    total = _loaded().scan_codes(
        vectors, *coded, queries, count, allowed, among, k, threads, rows, far, counts, rescored
    )
    return Nearest(rows, far, counts, total), rescored


def search_graph(
    vectors: Handle,
    graph: Handle,
    queries: Array,
    k: int,
    *,
    ef: int,
    allowed: npt.NDArray[np.bool_] | None,
    threads: int,
) -> tuple[Nearest, npt.NDArray[np.int64]]:
    """Near rows by a walk of the graph that keeps the ``ef`` best; of a query fewer than ``k`` where it reaches no more. And (q,) how
    many rows each query was compared with.

    Args:
        queries: (q, dim) float32.
        allowed: (n,) rows that may be answered; None for all.
    """
    queries = contiguous(queries, np.float32)
    count, rows, far, counts = _output(queries, k)
    compared = np.zeros(count, dtype=np.int64)
    if not count or not k:
        return Nearest(rows, far, counts, 0), compared
    if allowed is not None:
        allowed = contiguous(allowed, np.bool_)
    total = _loaded().search_graph(vectors, graph, queries, count, k, ef, allowed, threads, rows, far, counts, compared)
    return Nearest(rows, far, counts, total), compared


def record_bytes(dimension: int, links: int) -> int:
    """Bytes of a row's codes in a graph so many links wide; see `coded_graph.LinkCodes`."""
    width = -(-dimension // _TURNED_STEP) * _TURNED_STEP
    return -(-links // _LINKS_STEP) * (width // 8 + 8) * _LINKS_STEP


def code_graph(
    vectors: Handle, graph: Handle, origin: Floats, chunks: Sequence[npt.NDArray[np.uint8]], *, shift: int, threads: int
) -> None:
    """Fill chunks of zeros, of 2 to the power of ``shift`` rows each but the last, with the codes of all links."""
    _loaded().code_graph(vectors, graph, contiguous(origin, np.float32), tuple(chunks), shift, threads)


def make_coded_graph(
    rows: int, links: int, origin: Floats, chunks: Sequence[npt.NDArray[np.uint8]], shift: int
) -> Handle:
    """Codes of a graph so many links wide; it holds on to the arrays, which are in C order. See `coded_graph.LinkCodes`."""
    return _loaded().coded_graph(rows, links, len(origin), origin, tuple(chunks), shift)


def search_coded_graph(
    vectors: Handle,
    graph: Handle,
    codes: Handle,
    queries: Array,
    k: int,
    *,
    ef: int,
    allowed: npt.NDArray[np.bool_] | None,
    threads: int,
) -> tuple[Nearest, npt.NDArray[np.int64]]:
    """What `search_graph` does, by codes of links; and (q,) how many rows each query visited, which are those that were measured."""
    queries = contiguous(queries, np.float32)
    count, rows, far, counts = _output(queries, k)
    compared = np.zeros(count, dtype=np.int64)
    if not count or not k:
        return Nearest(rows, far, counts, 0), compared
    if allowed is not None:
        allowed = contiguous(allowed, np.bool_)
    total = _loaded().search_coded_graph(
        vectors, graph, codes, queries, count, k, ef, allowed, threads, rows, far, counts, compared
    )
    return Nearest(rows, far, counts, total), compared


def make_clusters(
    rows: int,
    origin: Floats | None,
    centroids: Floats,
    squares: Floats | None,
    codebook: Floats,
    starts: npt.NDArray[np.int64],
    members: npt.NDArray[np.uint32],
    codes: npt.NDArray[np.uint8],
    biases: Floats | None,
) -> Handle:
    """Posting lists whose members were checked; it holds on to the arrays. See `clusters.Clusters`."""
    lists, dimension = centroids.shape
    pieces, width, _ = codebook.shape
    return _loaded().clusters(
        rows, dimension, lists, pieces, width, origin, centroids, squares, codebook, starts, members, codes, biases
    )


def search_clusters(
    vectors: Handle,
    clusters: Handle,
    queries: Array,
    k: int,
    *,
    probes: int,
    refined: int,
    allowed: npt.NDArray[np.bool_] | None,
    allowed_counts: npt.NDArray[np.int32],
    allowed_bits: npt.NDArray[np.uint32],
    threads: int,
) -> tuple[Nearest, npt.NDArray[np.int64]]:
    """Near rows from the ``probes`` nearest lists, and more of them where they have fewer than ``k``; and (q,) codes compared.

    Args:
        refined: rows whose distance is measured, the best by their codes.
        allowed_counts: (lists,) of allowed rows, -1 where yet unknown: what the search has to count is written to it.
        allowed_bits: (blocks,) bit i is set if the i-th row of a block is allowed; of lists that were counted, and written alike.
    """
    queries = contiguous(queries, np.float32)
    count, rows, far, counts = _output(queries, k)
    compared = np.zeros(count, dtype=np.int64)
    if not count or not k:
        return Nearest(rows, far, counts, 0), compared
    if allowed is not None:
        allowed = contiguous(allowed, np.bool_)
    total = _loaded().search_clusters(
        vectors,
        clusters,
        queries,
        count,
        k,
        probes,
        refined,
        allowed,
        allowed_counts,
        allowed_bits,
        threads,
        rows,
        far,
        counts,
        compared,
    )
    return Nearest(rows, far, counts, total), compared


def code_vectors(
    vectors: Floats, lists: npt.NDArray[np.int64], centroids: Floats, codebook: Floats, *, threads: int
) -> tuple[npt.NDArray[np.uint8], Floats]:
    """(n, pieces) the nearest of a piece's 16 residuals for each piece of vectors (n, dim) less their lists' centroids, and (n,)
    squared lengths of what that stands for.

    Args:
        codebook: (pieces, width, 16) float32.
    """
    vectors, centroids = contiguous(vectors, np.float32), contiguous(centroids, np.float32)
    lists, codebook = contiguous(lists, np.int64), contiguous(codebook, np.float32)
    count, dimension = vectors.shape
    pieces, width, _ = codebook.shape
    codes, squares = np.empty((count, pieces), dtype=np.uint8), np.empty(count, dtype=np.float32)
    shapes = count, dimension, len(centroids), pieces, width
    _loaded().code_vectors(vectors, lists, centroids, codebook, *shapes, threads, codes, squares)
    return codes, squares


def contiguous(array: Array, dtype: npt.DTypeLike) -> Array:
    """The array in C order and of this type, copied only if need be."""
    return np.ascontiguousarray(array, dtype=dtype)


def _output(queries: Array, k: int) -> tuple[int, npt.NDArray[np.int64], Floats, npt.NDArray[np.int64]]:
    count = len(queries)
    shape = (count, k)
    return count, np.empty(shape, np.int64), np.empty(shape, np.float32), np.zeros(count, np.int64)


@cache
def _loaded() -> ModuleType:
    if platform.machine() not in ("x86_64", "AMD64"):
        return load("native")
    has: int = load("cpu").level()
    if has < _LEVELS[-1]:
        raise FailedPrecondition("this CPU lacks SSE4.2 and POPCNT (x86-64-v2), which Shoal needs")
    return load(f"v{next(level for level in _LEVELS if level <= has)}")


def load(name: str) -> ModuleType:
    """The kernels of one level. Raises `FailedPrecondition`."""
    try:
        return importlib.import_module(f"shoal_index.vector._kernels_{name}")
    except ImportError as error:
        raise FailedPrecondition(f"the kernels for {name} are not compiled ({error}): run make setup here") from error
