"""What vectors in two lists would save: how many codes and lists a search must look through, with copies of vectors near a boundary.

    make bench ARGS="closure [--set wordnet384 glove100] [--queries 250]"

The centroids are those of a segment. A vector is copied to its second nearest list if that is at most so many times as far, squared,
as the nearest. Counted is how many codes are scanned, nearest lists first, until so many of the true ten nearest were among them,
the same number for all queries, as effort is counted. Nothing is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.engine_datasets import EngineData
from bench.engines import SETS, TARGETS, K, evenly
from shoal_index.vector.clusters_build import build_clusters
from shoal_index.vector.column import VectorChunk, VectorColumn
from shoal_index.vector.engine import unit_vectors

_FARTHER = (1.0, 1.02, 1.05, 1.1, np.inf)  # 1: no copies; inf: of every vector
_AT_ONCE = 8_192

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def two_nearest(vectors: Floats, centroids: Floats) -> tuple[Rows, Floats]:
    """(n, 2) the nearest lists of each vector, and (n,) how many times as far the second is as the first, squared."""
    lists, farther = [], []
    for start in range(0, len(vectors), _AT_ONCE):
        part = vectors[start : start + _AT_ONCE]
        far = (part * part).sum(axis=1)[:, None] - 2 * part @ centroids.T + (centroids * centroids).sum(axis=1)
        two = np.argpartition(far, 2, axis=1)[:, :2]
        two = np.take_along_axis(two, np.argsort(np.take_along_axis(far, two, axis=1), axis=1), axis=1)
        first, second = np.take_along_axis(far, two, axis=1).T
        lists.append(two)
        farther.append(second / np.maximum(first, 1e-9))
    return np.concatenate(lists), np.concatenate(farther)


def measure(data: EngineData, count: int) -> None:
    """Print the figures of one set."""
    data = evenly(data, max(1, len(data.queries) // count))
    base, queries = np.asarray(data.base), np.asarray(data.queries)
    if data.space == "cosine":
        base, queries = unit_vectors(base), unit_vectors(queries)
    column = VectorColumn([VectorChunk(base)], np.arange(len(base), dtype=np.uint64))
    clusters = build_clusters(column, data.space, np.ones(len(base), dtype=bool), threads=2)
    centroids = clusters.centroids + clusters.origin
    print(f"\n{data.name}: {len(base)} x {base.shape[1]}, {data.space}, {len(centroids)} lists")
    lists, farther = two_nearest(base, centroids)
    order = np.argsort((centroids * centroids).sum(axis=1) - 2 * queries @ centroids.T, axis=1)
    place = np.argsort(order, axis=1)  # of each list, for each query
    true = np.asarray(data.neighbours)[:, :K]
    for limit in _FARTHER:
        copied = farther <= limit if limit > 1 else np.zeros(len(base), dtype=bool)
        sizes = np.bincount(lists[:, 0], minlength=len(centroids))
        sizes += np.bincount(lists[copied, 1], minlength=len(centroids))
        scanned = np.cumsum(sizes[order], axis=1)
        first, second = (np.take_along_axis(place, lists[true, number], axis=1) for number in (0, 1))
        found = np.where(copied[true], np.minimum(first, second), first)
        codes = np.take_along_axis(scanned, found, axis=1)
        needed = [float(np.quantile(codes, target)) for target in TARGETS]
        looked = [float((scanned < most).sum(axis=1).mean()) + 1 for most in needed]
        told = ", ".join(f"{most:.0f} ({some:.0f})" for most, some in zip(needed, looked, strict=True))
        print(f"up to {limit:4} times as far: {1 + copied.mean():.2f} copies; codes (lists) at {TARGETS}: {told}")


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench closure", description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(__file__).resolve().parents[1] / ".cache")
    parser.add_argument("--set", choices=[*SETS], nargs="*", default=["wordnet384", "glove100"])
    parser.add_argument("--queries", type=int, default=250)
    given = parser.parse_args(arguments)
    for name in given.set:
        measure(SETS[name](given.cache), given.queries)
