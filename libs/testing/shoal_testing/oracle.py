"""A collection as a dictionary: the reading of the semantics that every engine is compared with.

Written to be obviously right, not fast: records are dicts, every read scans all of them, arithmetic is float64. It shares no code
with the engine on purpose; not even the filter parser.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Json = Mapping[str, Any]
Record = dict[str, Any]


class Hit(NamedTuple):
    """One result of a query."""

    id: str
    distance: float


class Quarantined(NamedTuple):
    """A log row that could not create its record: it had no embedding."""

    offset: int
    id: str


class OracleCollection:
    """One collection: its live records by id, the last log offset and what was quarantined.

    A record is ``{"id", "embedding", "document", "uri", "metadata", "created_offset", "updated_offset"}``: the embedding a tuple of
    float32 values, the metadata a dict (empty for none), document and uri None where there is none.
    """

    def __init__(self, space: str, dimension: int) -> None:
        if space not in ("l2", "cosine", "ip"):
            raise ValueError(f"unknown space {space}")
        self.space = space
        self.dimension = dimension
        self.head_offset = 0
        self.quarantined: list[Quarantined] = []
        self._records: dict[str, Record] = {}

    # --- writes

    def apply(
        self,
        operation: str,
        ids: Sequence[str],
        embeddings: Sequence[Sequence[float] | None] | None = None,
        documents: Sequence[str | None] | None = None,
        uris: Sequence[str | None] | None = None,
        metadatas: Sequence[Json | None] | None = None,
    ) -> list[Quarantined]:
        """Append one ``add``, ``update``, ``upsert`` or ``delete`` of ``ids``, one log offset each; returns what it quarantined."""
        before = len(self.quarantined)
        for row, record_id in enumerate(ids):
            self.head_offset += 1
            given = {
                "embedding": self._vector(embeddings[row]) if embeddings is not None else None,
                "document": documents[row] if documents is not None else None,
                "uri": uris[row] if uris is not None else None,
                "metadata": (metadatas[row] if metadatas is not None else None) or {},
            }
            self._apply_one(operation, record_id, given)
        return self.quarantined[before:]

    def _vector(self, values: Sequence[float] | None) -> tuple[float, ...] | None:
        if values is None:
            return None
        vector = tuple(float(value) for value in np.asarray(values, dtype=np.float32))
        if len(vector) != self.dimension:
            raise ValueError(f"an embedding of dimension {len(vector)} in a collection of dimension {self.dimension}")
        return vector

    def _apply_one(self, operation: str, record_id: str, given: Record) -> None:
        exists = record_id in self._records
        match operation:
            case "add" if not exists:
                self._create(record_id, given)
            case "upsert" if not exists:
                self._create(record_id, given)
            case "update" | "upsert" if exists:
                self._merge(self._records[record_id], given)
            case "delete":
                self._records.pop(record_id, None)
            case "add" | "update":
                pass
            case _:
                raise ValueError(f"unknown operation {operation}")

    def _create(self, record_id: str, given: Record) -> None:
        if given["embedding"] is None:
            self.quarantined.append(Quarantined(self.head_offset, record_id))
            return
        record: Record = {"id": record_id, "embedding": None, "document": None, "uri": None, "metadata": {}}
        record["created_offset"] = self.head_offset
        self._records[record_id] = record
        self._merge(record, given)

    def _merge(self, record: Record, given: Record) -> None:
        for field in ("embedding", "document", "uri"):
            if given[field] is not None:
                record[field] = given[field]
        for key, value in given["metadata"].items():
            if value is None:
                record["metadata"].pop(key, None)
            else:
                record["metadata"][key] = value
        record["updated_offset"] = self.head_offset

    # --- reads

    def get(
        self,
        ids: Sequence[str] | None = None,
        where: Json | None = None,
        where_document: Json | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Record]:
        """The matching records in order of ``created_offset``."""
        wanted = None if ids is None else set(ids)
        found = [
            record
            for record in self._records.values()
            if (wanted is None or record["id"] in wanted)
            and (where is None or matches(record, where))
            and (where_document is None or matches_document(record, where_document))
        ]
        found.sort(key=lambda record: record["created_offset"])
        return found[offset:] if limit is None else found[offset : offset + limit]

    def count(self, where: Json | None = None, where_document: Json | None = None) -> int:
        """How many records match."""
        return len(self.get(where=where, where_document=where_document))

    def query(
        self,
        vectors: Sequence[Sequence[float]],
        k: int,
        ids: Sequence[str] | None = None,
        where: Json | None = None,
        where_document: Json | None = None,
    ) -> list[list[Hit]]:
        """The ``k`` nearest matching records of each vector, nearest first, ties by ``created_offset``."""
        records = self.get(ids, where, where_document)
        answers = []
        for values in vectors:
            vector = self._vector(values)
            assert vector is not None
            hits = [Hit(record["id"], distance(self.space, vector, record["embedding"])) for record in records]
            answers.append(sorted(hits, key=lambda hit: hit.distance)[:k])  # stable: ties stay in created order
        return answers


def distance(space: str, left: Sequence[float], right: Sequence[float]) -> float:
    """Distance of two vectors: squared L2, ``1 - cos`` (1.0 if either is zero) or ``1 - dot``."""
    if space == "l2":
        return math.fsum((a - b) ** 2 for a, b in zip(left, right, strict=True))
    dot = math.fsum(a * b for a, b in zip(left, right, strict=True))
    if space == "ip":
        return 1.0 - dot
    norms = math.sqrt(math.fsum(a * a for a in left)) * math.sqrt(math.fsum(b * b for b in right))
    return 1.0 if norms == 0.0 else 1.0 - dot / norms


# --- filters


def matches(record: Record, where: Json) -> bool:
    """Whether a record satisfies a ``where`` mapping in its JSON form."""
    [(key, operand)] = where.items()
    if key == "$and":
        return all(matches(record, child) for child in operand)
    if key == "$or":
        return any(matches(record, child) for child in operand)
    if key == "#document":
        return matches_document(record, operand)
    operator, value = next(iter(operand.items())) if isinstance(operand, Mapping) else ("$eq", operand)
    found = _value_of(record, key)
    match operator:
        case "$ne" | "$nin" | "$not_contains":
            return not _holds(found, {"$ne": "$eq", "$nin": "$in", "$not_contains": "$contains"}[operator], value)
        case "$exists":
            return (found is not None) == value
        case _:
            return _holds(found, operator, value)


def matches_document(record: Record, where: Json) -> bool:
    """Whether a record's document satisfies a ``where_document`` mapping in its JSON form."""
    [(operator, operand)] = where.items()
    document = record["document"]
    match operator:
        case "$and":
            return all(matches_document(record, child) for child in operand)
        case "$or":
            return any(matches_document(record, child) for child in operand)
        case "$contains":
            return document is not None and operand in document
        case "$not_contains":
            return document is None or operand not in document
        case "$regex":
            return document is not None and _searched(operand, document)
        case "$not_regex":
            return document is None or not _searched(operand, document)
        case _:
            raise ValueError(f"unknown operator {operator}")


def _searched(pattern: str, document: str) -> bool:
    """RE2's meaning of ``$``: the end of the text, and not also before a last line break as in Python."""
    return re.search(pattern.replace("$", r"\Z"), document) is not None


def _value_of(record: Record, key: str) -> Any:
    if key == "#id":
        return record["id"]
    if key == "#uri":
        return record["uri"]
    return record["metadata"].get(key)


def _holds(found: Any, operator: str, value: Any) -> bool:
    """A positive condition on a value that may be absent (None)."""
    match operator:
        case "$eq":
            return _same(found, value)
        case "$in":
            return any(_same(found, item) for item in value)
        case "$contains":
            return isinstance(found, list) and any(_same(item, value) for item in found)
    if _type(found) != _type(value) or _type(value) not in ("number", "string"):
        return False
    match operator:
        case "$gt":
            return bool(found > value)
        case "$gte":
            return bool(found >= value)
        case "$lt":
            return bool(found < value)
        case "$lte":
            return bool(found <= value)
        case _:
            raise ValueError(f"unknown operator {operator}")


def _same(left: Any, right: Any) -> bool:
    return _type(left) == _type(right) != "other" and bool(left == right)


def _type(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "other"
