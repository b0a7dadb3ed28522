"""A collection as a dictionary: the reading of the semantics that every engine is compared with.

Written to be obviously right, not fast: records are dicts, every read scans all of them, arithmetic is float64. It shares no code
with the engine on purpose; not even the filter parser. Filters are in `oracle_filters`, measures in `oracle_measures`, searches in
`oracle_search`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shoal_core.schema import Schema
from shoal_testing import oracle_search
from shoal_testing.oracle_filters import matches, matches_document
from shoal_testing.oracle_measures import distance

__all__ = ["Hit", "OracleCollection", "OracleState", "Quarantined", "distance", "matches", "matches_document"]

Json = Mapping[str, Any]
Record = dict[str, Any]
Op = tuple[str, str, Sequence[float] | None, str | None, str | None, Json | None]


class Hit(NamedTuple):
    """One result of a query."""

    id: str
    distance: float


class Quarantined(NamedTuple):
    """A log row that could not create its record: it had no embedding."""

    offset: int
    id: str


class OracleState:
    """What a collection holds at one offset.

    A record is ``{"id", "embedding", "document", "uri", "metadata", "created_offset", "updated_offset"}``: the embedding a tuple of
    float32 values, the metadata a dict (empty for none), document and uri None where there is none.
    """

    def __init__(self, space: str, schema: Schema, head_offset: int, records: dict[str, Record]) -> None:
        self.space = space
        self.schema = schema
        self.head_offset = head_offset
        self._records = records

    def get(
        self,
        ids: Collection[str] | None = None,
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

    def pages(
        self,
        ids: Collection[str] | None = None,
        where: Json | None = None,
        where_document: Json | None = None,
        *,
        limit: int,
        offset: int = 0,
    ) -> list[list[Record]]:
        """What a cursor turns over: the matching records after the first ``offset``, in full pages but the last."""
        found = self.get(ids, where, where_document, offset=offset)
        return [found[start : start + limit] for start in range(0, len(found), limit)]

    def count(self, where: Json | None = None, where_document: Json | None = None) -> int:
        """How many records match."""
        return len(self.get(where=where, where_document=where_document))

    def query(
        self,
        vectors: Sequence[Sequence[float]],
        k: int,
        ids: Collection[str] | None = None,
        where: Json | None = None,
        where_document: Json | None = None,
    ) -> list[list[Hit]]:
        """The ``k`` nearest matching records of each vector, nearest first, ties by ``created_offset``."""
        records = self.get(ids, where, where_document)
        answers = []
        for values in vectors:
            vector = _float32(values)
            hits = [Hit(record["id"], distance(self.space, vector, record["embedding"])) for record in records]
            answers.append(sorted(hits, key=lambda hit: hit.distance)[:k])  # stable: ties stay in created order
        return answers

    def search(self, payload: Json, ids: Collection[str] | None = None) -> oracle_search.Found:
        """One search, its payload as in `oracle_search`."""
        return oracle_search.search(self.get(), self.space, self.schema, payload, ids)


class OracleCollection(OracleState):
    """One collection: its live records by id, the last log offset, what was quarantined and, if kept, every earlier state."""

    def __init__(self, space: str, dimension: int, schema: Schema | None = None, *, keep_history: bool = False) -> None:
        if space not in ("l2", "cosine", "ip"):
            raise ValueError(f"unknown space {space}")
        super().__init__(space, schema or Schema(), 0, {})
        self.dimension = dimension
        self.quarantined: list[Quarantined] = []
        self._keep_history = keep_history
        self._history: list[OracleState] = [OracleState(space, self.schema, 0, {})]

    def at(self, offset: int) -> OracleState:
        """The state at the end of the last batch at or below ``offset``."""
        if not self._keep_history:
            raise ValueError("this oracle does not keep its history")
        return self._history[bisect_right(self._history, offset, key=lambda state: state.head_offset) - 1]

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
        """One batch: ``add``, ``update``, ``upsert`` or ``delete`` of ``ids``. Returns what it quarantined."""
        before = len(self.quarantined)
        columns = [
            values if values is not None else [None] * len(ids) for values in (embeddings, documents, uris, metadatas)
        ]
        self.write(zip([operation] * len(ids), ids, *columns, strict=True))
        return self.quarantined[before:]

    def write(self, ops: Iterable[Op]) -> list[str]:
        """One batch of mixed operations, one log offset each. Returns their outcomes: ``added``, ``existed``, ``updated``,
        ``missing`` or ``deleted``."""
        outcomes = []
        for operation, record_id, embedding, document, uri, metadata in ops:
            self.head_offset += 1
            given = {
                "embedding": None if embedding is None else self._vector(embedding),
                "document": document,
                "uri": uri,
                "metadata": metadata or {},
            }
            outcomes.append(self._apply_one(operation, record_id, given))
        if self._keep_history:
            self._history.append(OracleState(self.space, self.schema, self.head_offset, dict(self._records)))
        return outcomes

    def delete_where(
        self, ids: Collection[str] | None = None, where: Json | None = None, limit: int | None = None
    ) -> int:
        """Delete what matches; ids alone are deleted unread. Returns how many deletions were written."""
        if where is None and limit is None:
            found = list(dict.fromkeys(ids or ()))
        else:
            found = [record["id"] for record in self.get(ids, where, limit=limit)]
        if found:
            self.apply("delete", found)
        return len(found)

    def _vector(self, values: Sequence[float]) -> tuple[float, ...]:
        vector = _float32(values)
        if len(vector) != self.dimension:
            raise ValueError(f"an embedding of dimension {len(vector)} in a collection of dimension {self.dimension}")
        return vector

    def _apply_one(self, operation: str, record_id: str, given: Record) -> str:
        exists = record_id in self._records
        match operation:
            case "add" | "upsert" if not exists:
                return self._create(record_id, given)
            case "update" | "upsert" if exists:
                self._records[record_id] = self._merged(self._records[record_id], given)
                return "updated"
            case "delete" if exists:
                del self._records[record_id]
                return "deleted"
            case "add":
                return "existed"
            case "update" | "delete":
                return "missing"
            case _:
                raise ValueError(f"unknown operation {operation}")

    def _create(self, record_id: str, given: Record) -> str:
        if given["embedding"] is None:
            self.quarantined.append(Quarantined(self.head_offset, record_id))
            return "missing"
        record: Record = {"id": record_id, "embedding": None, "document": None, "uri": None, "metadata": {}}
        record["created_offset"] = self.head_offset
        self._records[record_id] = self._merged(record, given)
        return "added"

    def _merged(self, old: Record, given: Record) -> Record:
        """A new record: earlier states keep the old one."""
        record = old | {name: given[name] for name in ("embedding", "document", "uri") if given[name] is not None}
        metadata = old["metadata"] | given["metadata"]
        record["metadata"] = {key: value for key, value in metadata.items() if value is not None}
        record["updated_offset"] = self.head_offset
        return record


def _float32(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(np.asarray(values, dtype=np.float32).tolist())
