"""Data sets of the benchmarks, made once from installed packages and kept in a cache folder that git ignores.

    python bench/datasets.py --cache .cache --threads 1 [--limit 10000]

A build may be stopped at any time; the next one goes on after the last finished chunk. What is made depends on nothing
but the packages' files.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shoal.embedding import MiniLM
from shoal.embedding.minilm import MODEL_SHA256
from shoal_cli.wordnet import read_glosses

QUERIES: Final = 1000
NEIGHBOURS: Final = 100
MAX_TOKENS: Final = 128
SEED: Final = 42

_CHUNK: Final = 2048
_QUERY_BLOCK: Final = 100

Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class WordNet384:
    """WordNet's glosses as unit vectors of all-MiniLM-L6-v2, held-out queries, and their exact neighbours by cosine.

    Attributes:
        base: float32 (n, 384), read-only and mapped from disk.
        queries: float32 (q, 384), not part of `base`.
        neighbours: int32 (q, 100), rows of `base`, nearest first; ties by row.
        scores: float32 (q, 100), the inner products.
        meta: one row per row of `base`: id, text, pos, domain, word_count.
        query_meta: the same for the queries.
    """

    base: NDArray[np.float32]
    queries: NDArray[np.float32]
    neighbours: NDArray[np.int32]
    scores: NDArray[np.float32]
    meta: pa.Table
    query_meta: pa.Table


def wordnet384(
    cache_dir: Path,
    limit: int | None = None,
    *,
    threads: int | None = None,
    on_progress: Report | None = None,
) -> WordNet384:
    """The set in `cache_dir`, built first if it is not there; a second process waits for the one that builds.

    All 117,659 glosses: 116,659 base rows and 1,000 queries. With `limit`, so many glosses spread evenly over all of
    them, and a tenth as queries if that is fewer than 1,000; 10,000 is the cut for CI.

    Args:
        cache_dir: folder of all data sets, such as ``.cache`` at the repository's root.
        limit: number of glosses, at least 1,000; None takes all.
        threads: of the embedding; None takes every core.
        on_progress: called with (texts embedded, texts in total) after every chunk of 2,048.
    """
    if limit is not None and limit < QUERIES:
        raise ValueError(f"limit must be at least {QUERIES}, got {limit}")
    folder = cache_dir / ("wordnet384" if limit is None else f"wordnet384-{limit}")
    folder.mkdir(parents=True, exist_ok=True)
    (cache_dir / ".gitignore").write_text("*\n")
    with locked(folder / "lock"):
        glosses = read_glosses(limit=limit)
        source = _fingerprint(glosses)
        if read_json(folder / "complete.json") != source:
            vectors = _embed(folder, _texts(glosses), source, threads, on_progress)
            _split(folder, glosses, vectors)
            write_json(folder / "complete.json", source)
            (folder / "vectors.npy").unlink()
    return _load(folder)


def _load(folder: Path) -> WordNet384:
    return WordNet384(
        base=np.load(folder / "base.npy", mmap_mode="r"),
        queries=np.load(folder / "queries.npy"),
        neighbours=np.load(folder / "neighbours.npy"),
        scores=np.load(folder / "scores.npy"),
        meta=pq.read_table(folder / "meta.parquet"),
        query_meta=pq.read_table(folder / "query_meta.parquet"),
    )


def _embed(
    folder: Path, texts: list[str], source: dict[str, Any], threads: int | None, on_progress: Report | None
) -> NDArray[np.float32]:
    """All vectors in `vectors.npy`; `progress.json` tells how many rows of it are done, and of what."""
    path = folder / "vectors.npy"
    model = MiniLM(threads=threads, max_tokens=MAX_TOKENS)
    progress = read_json(folder / "progress.json") or {}
    done = int(progress.get("done", 0)) if progress.get("source") == source and path.exists() else 0
    if not done:
        np.lib.format.open_memmap(path, "w+", np.float32, (len(texts), model.dimension)).flush()
    vectors: np.memmap[Any, np.dtype[np.float32]] = np.lib.format.open_memmap(path, "r+")
    for start in range(done, len(texts), _CHUNK):
        chunk = texts[start : start + _CHUNK]
        vectors[start : start + len(chunk)] = model.embed_documents(chunk)
        vectors.flush()
        write_json(folder / "progress.json", {"source": source, "done": start + len(chunk)})
        if on_progress is not None:
            on_progress(start + len(chunk), len(texts))
    return vectors


def _split(folder: Path, glosses: pa.Table, vectors: NDArray[np.float32]) -> None:
    """Takes the queries out of the base, finds their neighbours and writes the files of the set."""
    held_out = min(QUERIES, len(vectors) // 10)
    rows = np.sort(np.random.default_rng(SEED).choice(len(vectors), held_out, replace=False))
    stay = np.ones(len(vectors), dtype=np.bool_)
    stay[rows] = False
    base, queries = vectors[stay], vectors[rows]
    neighbours, scores = exact_neighbours(base, queries, NEIGHBOURS)
    arrays = {"base": base, "queries": queries, "neighbours": neighbours, "scores": scores}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    pq.write_table(glosses.filter(pa.array(stay)), folder / "meta.parquet")
    pq.write_table(glosses.take(rows), folder / "query_meta.parquet")


def exact_neighbours(
    base: NDArray[np.float32], queries: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The `count` rows of `base` with the largest inner products: (rows int32, products float32), both (q, count)."""
    rows = np.empty((len(queries), count), dtype=np.int32)
    scores = np.empty((len(queries), count), dtype=np.float32)
    for start in range(0, len(queries), _QUERY_BLOCK):
        products = queries[start : start + _QUERY_BLOCK] @ base.T
        # In ascending row order, so that the stable sort below breaks ties by row.
        best = np.sort(np.argpartition(-products, count - 1, axis=1)[:, :count], axis=1)
        values = np.take_along_axis(products, best, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        rows[start : start + _QUERY_BLOCK] = np.take_along_axis(best, order, axis=1)
        scores[start : start + _QUERY_BLOCK] = np.take_along_axis(values, order, axis=1)
    return rows, scores


def _fingerprint(glosses: pa.Table) -> dict[str, Any]:
    """What the vectors and the split are made of; a cache made of something else is built again."""
    digest = hashlib.sha256()
    for text in _texts(glosses):
        digest.update(text.encode() + b"\n")
    return {"texts": digest.hexdigest(), "model": MODEL_SHA256, "max_tokens": MAX_TOKENS, "seed": SEED}


def _texts(glosses: pa.Table) -> list[str]:
    return cast("list[str]", glosses["text"].to_pylist())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other processes that lock the same file waiting."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_json(path: Path) -> Any:
    """What the file holds, or None if there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replaces the file in one step."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value))
    os.replace(temporary, path)


def main() -> None:
    """Builds the set and prints its shape."""
    parser = argparse.ArgumentParser(description="Build the wordnet384 data set.")
    parser.add_argument("--cache", type=Path, default=Path(__file__).resolve().parents[1] / ".cache")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()

    def report(done: int, total: int) -> None:
        print(f"{done}/{total}", flush=True)

    made = wordnet384(arguments.cache, arguments.limit, threads=arguments.threads, on_progress=report)
    print(f"base {made.base.shape}, queries {made.queries.shape}, in {arguments.cache}")


if __name__ == "__main__":
    main()
