"""Seeded random records, filters and requests, as users of the Python client make them: small values, so that filters match."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

WORDS = ["red", "blue", "Fish", "fish", "sky", "grün", "猫", "a", "42", "x-y", ""]
PATTERNS = [
    "fi",
    "^red",
    "sky$",
    r"\d+",
    "r.d",
    "(?i)FISH",
    "[a-c]+",
    "a|b",
    "^$",
    "猫",
    r"\bblue\b",
    "(",
    "(?=x)",
    "a{2,1}",
]
LISTS = ("tags", "nums")
KEYS = ["n", "f", "s", "b", "mixed", "tags", "nums", "absent"]
INCLUDES = ["documents", "metadatas", "embeddings", "uris"]


@dataclass(frozen=True)
class Request:
    """One call of a collection's or a client's method, by name."""

    method: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.method}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"


class Requests:
    """Random requests to one collection."""

    def __init__(self, random: Random, dimension: int, whole: bool, ids: int) -> None:
        """``whole``: embeddings of small whole numbers, which give equal distances. ``ids``: how many different ones."""
        self._random = random
        self._dimension = dimension
        self.whole = whole
        self._ids = [f"id-{number}" for number in range(ids)]

    def next(self) -> Request:
        """Another one; most of them valid."""
        makers: dict[Callable[[], Request], int] = {
            self._add: 16,
            self._upsert: 12,
            self._update: 12,
            self._delete: 8,
            self._get: 28,
            self._query: 24,
            self._count: 3,
            self._peek: 2,
        }
        (make,) = self._random.choices([*makers], [*makers.values()])
        return make()

    # --- writes

    def _add(self) -> Request:
        return Request("add", self._records(needs_embeddings=True))

    def _upsert(self) -> Request:
        return Request("upsert", self._records(needs_embeddings=True))

    def _update(self) -> Request:
        return Request("update", self._records(needs_embeddings=False, nulls=True))

    def _records(self, *, needs_embeddings: bool, nulls: bool = False) -> dict[str, Any]:
        random, count = self._random, self._random.randint(1, 6)
        records: dict[str, Any] = {"ids": self._some_ids(count)}
        count = len(records["ids"])
        if needs_embeddings or random.random() < 0.5:
            wrong = random.random() < 0.03
            records["embeddings"] = [self.vector(wrong=wrong) for _ in range(count)]
        if "embeddings" in records and random.random() < 0.7:
            records["documents"] = [self._text() for _ in range(count)]
        if random.random() < 0.8 or len(records) == 1:
            records["metadatas"] = [self._metadata(nulls=nulls) for _ in range(count)]
        if random.random() < 0.1:
            records["uris"] = [f"file://{random.randint(0, 9)}" for _ in range(count)]
        return records

    def _delete(self) -> Request:
        random = self._random
        arguments: dict[str, Any] = {}
        if random.random() < 0.6:
            arguments["ids"] = self._some_ids(random.randint(1, 3))
        if random.random() < 0.5 or not arguments:
            arguments["where"] = self.where()
        if random.random() < 0.2:
            arguments["where_document"] = self.where_document()
        if "ids" not in arguments and random.random() < 0.2:
            arguments["limit"] = random.randint(0, 3)
        return Request("delete", arguments)

    # --- reads

    def _get(self) -> Request:
        random = self._random
        arguments: dict[str, Any] = self._selection()
        if random.random() < 0.4:
            arguments["limit"] = random.choice([0, 1, 2, 5, 100])
        if random.random() < 0.3:
            arguments["offset"] = random.choice([0, 1, 3, 50])
        if random.random() < 0.5:
            arguments["include"] = random.sample(INCLUDES, random.randint(0, 4))
        return Request("get", arguments)

    def _query(self) -> Request:
        random = self._random
        wrong = random.random() < 0.03
        arguments: dict[str, Any] = {
            "query_embeddings": [self.vector(wrong=wrong) for _ in range(random.randint(1, 3))],
            "n_results": random.choice([1, 2, 5, 10, 200]),
            **self._selection(),
        }
        if random.random() < 0.5:
            arguments["include"] = [*random.sample(INCLUDES, random.randint(0, 4)), "distances"]
        return Request("query", arguments)

    def _count(self) -> Request:
        return Request("count", {})

    def _peek(self) -> Request:
        return Request("peek", {"limit": self._random.randint(1, 5)})

    def _selection(self) -> dict[str, Any]:
        random = self._random
        arguments: dict[str, Any] = {}
        if random.random() < 0.25:
            arguments["ids"] = self._some_ids(random.randint(1, 8))
        if random.random() < 0.6:
            arguments["where"] = self.where()
        if random.random() < 0.3:
            arguments["where_document"] = self.where_document()
        return arguments

    # --- values

    def vector(self, *, wrong: bool = False) -> list[float]:
        """Of the collection's dimension, or of another."""
        random, dimension = self._random, self._dimension + wrong
        if self.whole:
            return [float(random.randint(-2, 2)) for _ in range(dimension)]
        return [random.gauss(0.0, 1.0) for _ in range(dimension)]

    def _some_ids(self, count: int) -> list[str]:
        return self._random.sample(self._ids, min(count, len(self._ids)))

    def _text(self) -> str:
        return " ".join(self._random.choices(WORDS, k=self._random.randint(1, 4)))

    def _metadata(self, *, nulls: bool) -> dict[str, Any] | None:
        random = self._random
        if random.random() < 0.1:
            return None
        keys = random.sample(KEYS[:-1], random.randint(1, 4))
        return {key: None if nulls and random.random() < 0.2 else self._value(key) for key in keys}

    def _value(self, key: str) -> Any:
        random = self._random
        match key:
            case "n":
                return random.choice([-3, 0, 1, 2, 3, 2**40])
            case "f":
                return random.choice([-0.5, 0.0, 0.25, 1.0, 2.5, 1e9])
            case "s":
                return random.choice(WORDS)
            case "b":
                return random.random() < 0.5
            case "tags":
                return random.sample(WORDS, random.randint(1, 3))
            case "nums":
                return random.sample(range(5), random.randint(1, 3))
        return random.choice([1, 1.0, 2.5, "1", "red", True, False])

    def where(self, depth: int = 2) -> dict[str, Any]:
        """A filter of metadata."""
        random = self._random
        if depth and random.random() < 0.3:
            parts = [self.where(depth - 1) for _ in range(random.randint(2, 3))]
            return {random.choice(["$and", "$or"]): parts}
        key = random.choice(KEYS)
        value = self._scalar(key)
        operator = random.choice(
            ["", "$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$contains", "$not_contains"]
        )
        if key in LISTS and random.random() < 0.7:
            operator = random.choice(["$contains", "$not_contains"])
        match operator:
            case "":
                return {key: value}
            case "$in" | "$nin":
                same = [other for other in (self._scalar(key) for _ in range(3)) if type(other) is type(value)]
                return {key: {operator: [value, *same]}}
            case "$gt" | "$gte" | "$lt" | "$lte":
                return {key: {operator: value if isinstance(value, int | float) and value is not True else 1}}
        return {key: {operator: value}}

    def _scalar(self, key: str) -> Any:
        value = self._value(self._random.choice(KEYS) if self._random.random() < 0.1 else key)
        value = self._random.choice(value) if isinstance(value, list) else value
        if key in ("n", "nums") and isinstance(value, float):
            return int(value)  # comparing whole numbers with others is a known difference
        return value

    def where_document(self, depth: int = 1) -> dict[str, Any]:
        """A filter of documents."""
        random = self._random
        if depth and random.random() < 0.2:
            return {random.choice(["$and", "$or"]): [self.where_document(depth - 1) for _ in range(2)]}
        if random.random() < 0.5:
            return {random.choice(["$contains", "$not_contains"]): random.choice(WORDS[:-1])}
        return {random.choice(["$regex", "$not_regex"]): random.choice(PATTERNS)}
