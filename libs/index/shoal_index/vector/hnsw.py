"""HNSW graphs through hnswlib (Malkov and Yashunin 2016; the library's own parameters M and ef_construction).

hnswlib sets ``ef`` on the whole index and is not safe for a search beside an insert. Here an index is immutable once built, and
searches of different effort take turns.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hnswlib
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_index.vector.engine import Rows, Vectors, unit_vectors

M = 16
EF_CONSTRUCTION = 100
_ADDED_ROWS = 16_384  # at a time: normalising needs a copy in float64


def build_graph(
    vectors: list[Vectors], space: str, *, threads: int, ef_construction: int = EF_CONSTRUCTION, m: int = M
) -> pa.Buffer:
    """A graph over the vectors, given as (n_i, dim) float32 pieces in row order, serialised."""
    rows = sum(len(part) for part in vectors)
    index = _new_index(space, vectors[0].shape[1])
    index.init_index(max_elements=rows, ef_construction=ef_construction, M=m)
    start = 0
    for part in vectors:
        for first in range(0, len(part), _ADDED_ROWS):
            added = _normal(part[first : first + _ADDED_ROWS], space)
            index.add_items(added, np.arange(start, start + len(added)), num_threads=threads)
            start += len(added)
    with _memory_file() as (descriptor, path):
        index.save_index(path)
        size = os.fstat(descriptor).st_size
        return pa.py_buffer(os.pread(descriptor, size, 0)) if size < 2**31 - 4096 else _read_large(descriptor, size)


class Graph:
    """A serialised graph, opened for searching."""

    def __init__(self, data: pa.Buffer, space: str, dimension: int, rows: int) -> None:
        self._space = space
        self._turns = _Turns()
        self._index = _new_index(space, dimension)
        with _memory_file() as (descriptor, path):
            with open(descriptor, "wb", closefd=False) as file:
                file.write(data)
            self._index.load_index(path, max_elements=rows)

    def search(self, queries: Vectors, k: int, *, ef: int, threads: int) -> Rows | None:
        """(q, k) int64 rows near each query, nearest first; None when the graph cannot reach k rows."""
        effort = max(ef, k)
        with self._turns.taking(effort, lambda: self._index.set_ef(effort)):
            try:
                labels, _ = self._index.knn_query(_normal(queries, self._space), k=k, num_threads=threads)
            except RuntimeError:
                return None  # fewer than k rows reachable: the caller scans
        found: npt.NDArray[np.int64] = labels.astype(np.int64)
        return found


def _normal(vectors: Vectors, space: str) -> Vectors:
    """For cosine, vectors of length 1: hnswlib's own normalisation is in float32, which loses the direction of short vectors."""
    return unit_vectors(vectors) if space == "cosine" else vectors


class _Turns:
    """Lets holders of the same value in together, and holders of another one when those have left. Fair: nobody overtakes."""

    def __init__(self) -> None:
        self._door = threading.Lock()
        self._changed = threading.Condition()
        self._value: int | None = None
        self._inside = 0

    @contextmanager
    def taking(self, value: int, change: Callable[[], object]) -> Iterator[None]:
        with self._door, self._changed:
            if self._value != value:
                self._changed.wait_for(lambda: self._inside == 0)
                change()
                self._value = value
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify()


def _new_index(space: str, dimension: int) -> Any:
    return hnswlib.Index(space=space, dim=dimension)  # type: ignore[call-overload]


@contextmanager
def _memory_file() -> Iterator[tuple[int, str]]:
    """An anonymous file in memory and a path to it: hnswlib reads and writes files only."""
    descriptor = os.memfd_create("graph")
    try:
        yield descriptor, f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _read_large(descriptor: int, size: int) -> pa.Buffer:
    whole = pa.allocate_buffer(size)
    view = memoryview(whole)
    start = 0
    while start < size:
        start += os.preadv(descriptor, [view[start : start + (1 << 30)]], start)
    return whole
