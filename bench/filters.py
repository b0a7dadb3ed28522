"""Filters on WordNet's glosses (117,659) at four selectivities: a segment of Shoal beside DuckDB over the same rows, in one run.

    make bench ARGS="filters [--limit 10000] [--rounds 15]"

Each time is the median of a filter evaluated from scratch, parsing and planning included. DuckDB answers ``count(*)`` over the
Arrow table the segment was built from, and over its own table, loaded beforehand. The counts must agree, or it stops. Ratios
above 1 mean that Shoal is faster. Times on a shared machine vary, read the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_cli.wordnet import read_glosses
from shoal_core.filters import parse_where
from shoal_core.records import (
    CREATED_OFFSET,
    DOCUMENT,
    EMBEDDING,
    ID,
    UPDATED_OFFSET,
    Kind,
    MetadataField,
    embedding_array,
)
from shoal_index.build import build_segment
from shoal_index.filtering import Matching, select_matching
from shoal_index.segment import Segment, open_segment
from shoal_storage.blocks import BlockRef

SHARES = (0.5, 0.1, 0.01, 0.001)
LABELS = 5
MOSTLY = 0.8
SEED = 42

# Words and patterns whose share of the glosses is near the target.
WORDS = {0.5: " of ", 0.1: "with", 0.01: "through", 0.001: "coffee"}
PATTERNS = {0.5: r"\bthe\b", 0.1: "[a-z]+ed (by|with|in)", 0.01: "colou?r", 0.001: "(river|lake)s? in"}
JOINED_WORDS = {0.5: "e", 0.1: " of ", 0.01: "with", 0.001: "through"}

Where = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One filter in both languages, and the share of rows it was made for."""

    kind: str
    share: float
    where: Where
    sql: str


class Memory:
    """A block reader over what was built."""

    def __init__(self, objects: dict[str, pa.Buffer]) -> None:
        self._objects = objects

    async def get(self, ref: BlockRef) -> pa.Buffer:
        """The block's bytes."""
        return self._objects[ref.key]


def make_rows(glosses: pa.Table) -> pa.Table:
    """A row table of the glosses, with metadata columns of known shares and embeddings of no interest."""
    count = glosses.num_rows
    rng = np.random.default_rng(SEED)
    offsets = pa.array(np.arange(1, count + 1, dtype=np.uint64))
    labels = [f"{share}-{n}" for share in SHARES for n in range(LABELS)]
    return pa.table(
        {
            ID: glosses["id"],
            CREATED_OFFSET: offsets,
            UPDATED_OFFSET: offsets,
            DOCUMENT: glosses["text"],
            _column("grade", Kind.STRING): _words(rng, [str(share) for share in SHARES], list(SHARES), count),
            _column("label", Kind.STRING): _words(
                rng, labels, [s / LABELS for s in SHARES for _ in range(LABELS)], count
            ),
            _column("number", Kind.INT): pa.array(rng.permutation(count)),
            _column("open", Kind.BOOL): pa.array(rng.random(count) < MOSTLY),
            EMBEDDING: embedding_array(np.zeros((count, 1), dtype=np.float32)),
        }
    )


def _column(key: str, kind: Kind) -> str:
    return MetadataField(key, kind).column


def _words(rng: np.random.Generator, words: list[str], shares: list[float], count: int) -> pa.Array:
    """(count,) random words with these shares, the rest being "other"."""
    picked: npt.NDArray[np.int64] = rng.choice(len(words) + 1, count, p=[*shares, 1 - sum(shares)])
    return pa.array([*words, "other"]).take(pa.array(picked))


def make_cases(rows: pa.Table) -> Iterator[Case]:
    """Six kinds of filter at each share."""
    count = rows.num_rows
    grade, label, number = (
        f'"{_column(*of)}"' for of in (("grade", Kind.STRING), ("label", Kind.STRING), ("number", Kind.INT))
    )
    for share in SHARES:
        yield Case("equality", share, {"grade": str(share)}, f"{grade} = '{share}'")
    for share in SHARES:
        below = round(share * count)
        yield Case("range", share, {"number": {"$lt": below}}, f"{number} < {below}")
    for share in SHARES:
        labels = [f"{share}-{n}" for n in range(LABELS)]
        yield Case("$in", share, {"label": {"$in": labels}}, f"{label} IN ({', '.join(map(repr, labels))})")
    for share, word in WORDS.items():
        yield Case(f"$contains {word!r}", share, {"#document": {"$contains": word}}, f"contains({DOCUMENT}, '{word}')")
    for share, pattern in PATTERNS.items():
        where = {"#document": {"$regex": pattern}}
        yield Case(f"$regex {pattern}", share, where, f"regexp_matches({DOCUMENT}, '{pattern}')")
    texts = rows.column(DOCUMENT).to_pylist()
    for share, word in JOINED_WORDS.items():
        having = sum(word in text for text in texts)
        below = round(share * count / MOSTLY * count / max(1, having))
        parts = [{"open": True}, {"number": {"$lt": below}}, {"#document": {"$contains": word}}]
        sql = f"\"{_column('open', Kind.BOOL)}\" AND {number} < {below} AND contains({DOCUMENT}, '{word}')"
        yield Case(f"$and of 3, {word!r}", share, {"$and": parts}, sql)


async def open_rows(rows: pa.Table) -> Segment:
    """A segment over the rows, in memory, without a graph."""
    built = build_segment(rows, "l2", segment_id="s", tier=0, prefix="bench", threads=1, graph_rows=rows.num_rows)
    return await open_segment(built.ref, "l2", Memory({ref.key: block.data for ref, block in built.objects}))


def evaluate(segment: Segment, where: Where) -> Matching:
    """The rows that match, past the segment's memory of recent filters."""
    tree = parse_where(where)
    assert tree is not None
    return select_matching(tree, segment)


def first_value(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    """The first value of the first row."""
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def median_ms(run: Callable[[], object], rounds: int) -> float:
    """Of so many calls, after one that does not count."""
    run()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def measure(limit: int | None, rounds: int) -> None:
    """Measure and print one line for each filter."""
    rows = make_rows(read_glosses(limit=limit))
    segment = asyncio.run(open_rows(rows))
    sizes = {kind: sum(ref.size_bytes for ref in refs) / 1e6 for kind, refs in segment.ref.blocks.items()}
    connection = duckdb.connect()
    connection.register("arrow", rows.drop_columns([EMBEDDING]))
    connection.execute("CREATE TABLE own AS SELECT * FROM arrow")
    threads = first_value(connection, "SELECT current_setting('threads')")
    duck = f"DuckDB {duckdb.__version__} with {threads} threads"
    print(f"{rows.num_rows:,} glosses, median of {rounds}; {duck}, Shoal with 1")
    print("blocks, MB: " + ", ".join(f"{kind} {size:.1f}" for kind, size in sizes.items()))
    columns = f"{'Shoal':>8}  {'through':<24} {'Arrow':>8} {'ratio':>7} {'own':>8} {'ratio':>7}"
    print(f"{'filter':<36} {'target':>7} {'actual':>8} {columns}")
    for case in make_cases(rows):
        found = evaluate(segment, case.where)
        matched = int(np.count_nonzero(found.mask))
        ours = median_ms(partial(evaluate, segment, case.where), rounds)
        theirs = []
        for table in ("arrow", "own"):
            query = f"SELECT count(*) FROM {table} WHERE {case.sql}"
            counted = first_value(connection, query)
            if counted != matched:
                raise SystemExit(f"{case.where}: Shoal finds {matched} rows, DuckDB {counted}")
            theirs.append(median_ms(partial(first_value, connection, query), rounds))
        through = ", ".join(step.how for step in found.steps)
        others = " ".join(f"{other:>5.2f} ms {other / ours:>6.1f}x" for other in theirs)
        share = matched / rows.num_rows
        print(f"{case.kind:<36} {case.share:>7.1%} {share:>8.2%} {ours:>5.2f} ms  {through:<24} {others}", flush=True)


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=None, help="glosses; all by default")
    parser.add_argument("--rounds", type=int, default=15, help="evaluations of each filter")
    options = parser.parse_args(arguments)
    measure(options.limit, options.rounds)
