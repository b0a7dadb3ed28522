"""Collections and operations drawn in bulk from a `random.Random`: faster than hypothesis, the same for the same seed.

Values are of the pools of `strategies`, so that they collide and cross the borders of their types; vectors and sparse values are
small whole numbers and quarters, so that most distances are exact and ties real.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from shoal_core.schema import Analyzer, Bm25, Index, Schema, SparseConfig
from shoal_testing.strategies import FLOATS, INTS, KEYS, STRINGS, Op, Vector

DIMENSION = 4
SHARDS = (1, 2, 5)
LAYOUTS = ("tail", "mixed", "compacted")
SPACES = ("l2", "cosine", "ip")

#: Metadata keys: of any type (`KEYS`), of numbers, of few values to group by, of sparse vectors without and with idf.
NUMBER_KEY, GROUP_KEY, SPARSE_KEY, IDF_KEY = "n", "g", "s", "w"
SPARSE_DIMENSIONS = (0, 1, 2, 3, 7, 2**31, 2**32 - 1)
URIS = ("", "file:///a", "file:///b", "é")
GROUPS = (1, 1.0, 2, True, False, "1", "x", "", [1, 2], ["x"])
WORDS = (
    *("apple", "apples", "Banana", "the", "of", "running", "runs", "run", "café", "CAFÉ", "naïve", "ΣΑΣ", "straße", "日本"),
    *("x", "a1_b", "don't", "state-of-the-art", "ﬁne", "İstanbul", "e\u0301", "\U0001f600", "wordlongerthanmost", "!"),
)  # fmt: skip
STOP_WORDS = ("the", "of")
ODD_TEXTS = ("", " ", "a", "\n", "a\nb\n", "日", "aaaa", "\u2028x", "ab\tab", "AbAb")
_SEPARATORS = (" ", " ", " ", ", ", "\n", "  ")
_ODD_IDS = ("é", "日本語", "x" * 300, "a\0", " ", "12345678", "r", "R1")
_POOL = 80  # ids
_WILD = (0.0, 1.0, -1.0, 0.5, 2.0**-120, 2.0**60, -(2.0**60))
_FILTER_INDEXES = (Index.INT, Index.FLOAT, Index.BOOL, Index.STRING, Index.SUBSTRING, Index.RANKED, Index.SPARSE)


@dataclass(frozen=True, slots=True)
class Plan:
    """One state to read: a collection and what is done to it.

    Attributes:
        layout: ``tail``: nothing is compacted; ``mixed``: compacted in between, written after; ``compacted``: all is, and merged.
        steps: ``("write", ops)``, ``("delete", where)``, ``("flush", None)`` and ``("merge", None)``.
    """

    number: int
    shards: int
    layout: str
    space: str
    schema: Schema
    steps: tuple[tuple[str, Any], ...]


def draw_plan(number: int, seed: int, *, scale: int = 1) -> Plan:
    """State ``number`` of a run: shards, layouts and spaces go round, the rest is drawn. It has some 90 · ``scale`` records at most."""
    random = Random(f"{seed}/{number}")
    pool = _POOL * scale
    layout = LAYOUTS[number % 3]
    steps: list[tuple[str, Any]] = []
    wild = number % 7 == 5
    for batch in range(random.randint(4, 8)):
        steps.append(("write", draw_batch(random, scale * random.randint(5, 40), wild=wild, pool=pool)))
        if batch == 1 and number % 5 == 0:
            steps.append(("write", _identical(random)))
        if layout == "mixed" and random.random() < 0.5:
            steps.append((random.choice(("flush", "merge")), None))
        if random.random() < 0.3:
            steps.append(("delete", _small_where(random)))
    if layout == "mixed":
        steps += [("flush", None), ("write", draw_batch(random, scale * random.randint(1, 20), wild=wild, pool=pool))]
    if layout == "compacted":
        steps += [("flush", None), ("write", draw_batch(random, scale * 5, wild=wild, pool=pool)), ("merge", None)]
    return Plan(number, SHARDS[number // 3 % 3], layout, SPACES[number // 9 % 3], draw_schema(random), tuple(steps))


def draw_schema(random: Random) -> Schema:
    """Some indexes off, an analyzer whose stop words are spelled out, parameters of BM25, one key with idf."""
    english = random.random() < 0.5
    analyzer = Analyzer(
        tokenizer=random.choice(("words", "words", "whitespace")),
        language="english" if english else "none",
        token_length=random.choice((40, 12)),
        stop_words=STOP_WORDS if english or random.random() < 0.3 else None,
    )
    off = random.sample(_FILTER_INDEXES, random.choice((0, 0, 1, 3)))
    keys = {random.choice(KEYS): {random.choice(_FILTER_INDEXES[:4]): random.random() < 0.5}}
    bm25 = random.choice((Bm25(), Bm25(0.0, 0.75), Bm25(2.0, 0.0), Bm25(0.5, 1.0)))
    return Schema(frozenset(off), keys, analyzer, bm25, sparse={IDF_KEY: SparseConfig(idf=True)})


# --- operations


def draw_batch(random: Random, size: int, *, wild: bool = False, pool: int = _POOL) -> list[Op]:
    """One batch of mixed operations that validation accepts; ``wild`` for vectors of any norm, ``pool`` ids."""
    return [_operation(random, wild, pool) for _ in range(size)]


def _operation(random: Random, wild: bool, pool: int) -> Op:
    operation = random.choice(("add", "add", "add", "upsert", "upsert", "update", "update", "delete"))
    record_id = draw_id(random, pool)
    if operation == "delete":
        return (operation, record_id, None, None, None, None)
    needed = operation != "update" or random.random() < 0.4
    uri = random.choice(URIS) if random.random() < 0.4 else None
    vector = draw_vector(random, wild) if needed else None
    return (operation, record_id, vector, draw_document(random), uri, draw_metadata(random))


def _identical(random: Random) -> list[Op]:
    vector = draw_vector(random)
    return [("upsert", f"same{n}", vector, draw_document(random), None, draw_metadata(random)) for n in range(60)]


def draw_id(random: Random, pool: int = _POOL) -> str:
    """Of a pool, or an odd one."""
    return random.choice(_ODD_IDS) if random.random() < 0.1 else f"r{random.randrange(pool)}"


def draw_vector(random: Random, wild: bool = False) -> Vector:
    """On a grid of whole numbers, at times zero; ``wild``: often of tiny and huge norm, or any."""
    if wild and random.random() < 0.5:
        return tuple(random.choice(_WILD) for _ in range(DIMENSION))
    if random.random() < 0.05:
        return (0.0,) * DIMENSION
    return tuple(float(random.randint(-3, 3)) for _ in range(DIMENSION))


def draw_document(random: Random) -> str | None:
    """None, words that repeat, or odd ones."""
    share = random.random()
    if share < 0.15:
        return None
    if share < 0.3:
        return random.choice(ODD_TEXTS)
    return "".join(random.choice(WORDS) + random.choice(_SEPARATORS) for _ in range(random.randint(1, 8)))


def draw_metadata(random: Random) -> dict[str, Any] | None:
    """A few keys; null, which deletes, at times."""
    if random.random() < 0.1:
        return None
    found: dict[str, Any] = {key: draw_value(random) for key in KEYS if random.random() < 0.5}
    if random.random() < 0.6:
        found[NUMBER_KEY] = random.randint(-5, 5)
    if random.random() < 0.6:
        found[GROUP_KEY] = random.choice(GROUPS)
    for key in (SPARSE_KEY, IDF_KEY):
        if random.random() < 0.5:
            found[key] = draw_sparse(random)
    for key in found:
        if random.random() < 0.06:
            found[key] = None
    return found


def draw_scalar(random: Random) -> Any:
    """An int, a float, a string or a bool."""
    return random.choice(random.choice((INTS, FLOATS, STRINGS, (True, False))))


def draw_value(random: Random) -> Any:
    """A scalar, a list of scalars of one type, at times a sparse vector."""
    share = random.random()
    if share < 0.65:
        return draw_scalar(random)
    if share < 0.95:
        pool: tuple[Any, ...] = random.choice((INTS, FLOATS, STRINGS, (True, False)))
        return [random.choice(pool) for _ in range(random.randint(1, 3))]
    return draw_sparse(random)


def draw_sparse(random: Random) -> dict[str, Any]:
    """A sparse vector over few dimensions; values are quarters, negative ones too; at times empty."""
    indices = sorted(random.sample(SPARSE_DIMENSIONS, random.choice((0, 1, 2, 2, 3, 4))))
    return {"indices": indices, "values": [random.choice((-1, 1)) * random.randint(1, 12) / 4 for _ in indices]}


def _small_where(random: Random) -> dict[str, Any]:
    return random.choice(
        (
            {NUMBER_KEY: random.randint(-5, 5)},
            {GROUP_KEY: random.choice(("x", True, 2))},
            {"#id": {"$in": [draw_id(random) for _ in range(4)]}},
            {"#document": {"$contains": random.choice(WORDS)}},
        )
    )
