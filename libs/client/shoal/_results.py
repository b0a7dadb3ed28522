"""What reads return: Arrow columns, seen as the lists and arrays that users expect, made when first looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal._columns import URI_COLUMN
from shoal._render import render_table
from shoal_core.consistency import ServedAt, VersionToken
from shoal_core.contracts import Answer, Include, Json
from shoal_core.errors import InvalidArgument
from shoal_core.records import DOCUMENT, EMBEDDING, ID, MetadataField, embedding_matrix, metadata_fields, one_chunk

Vectors = npt.NDArray[np.float32]
Metadata = dict[str, Any]

DISTANCE = "distance"
SCORE = "score"
_ORIGIN = "origin"
_COLUMNS = ("ids", "documents", "metadatas", "embeddings", "uris", "distances")
_TAKEN = frozenset({ID, DOCUMENT, EMBEDDING, "uri", DISTANCE, _ORIGIN, "query"})
_SHOWN_ROWS = 10
_SHOWN_QUERIES = 3

T = TypeVar("T", bound=Sequence[Any] | npt.NDArray[Any])


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a result. What was not included is None, metadata an empty dict.

    Attributes:
        embedding: (dim,) float32.
    """

    id: str
    document: str | None = None
    metadata: Metadata | None = None
    embedding: Vectors | None = None
    uri: str | None = None
    distance: float | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What `Collection.load` wrote. ``token``: of the write with the highest offset; None if there was nothing to write."""

    records: int
    batches: int
    token: VersionToken | None


def include_of(include: Sequence[str]) -> Include:
    """Columns by name. Raises `InvalidArgument` for an unknown one."""
    names = {include} if isinstance(include, str) else set(include)
    if unknown := names - set(_COLUMNS):
        known = ", ".join(_COLUMNS[1:])
        raise InvalidArgument(f"unknown column {sorted(map(str, unknown))[0]!r}; one of {known}", field="include")
    return Include(
        documents="documents" in names,
        metadatas="metadatas" in names,
        embeddings="embeddings" in names,
        distances="distances" in names,
        uris="uris" in names,
    )


@dataclass(frozen=True, repr=False, eq=False)
class GetResult:
    """Records in columns; ``result["ids"]`` works like ``result.ids``, iterating gives `Record`s.

    Attributes:
        rows: the columns as they came.
        served_at: the snapshot that served it: ``offset`` of the log, ``version`` of the index.
        complete: False when fewer rows came back than match; ``reason`` says why.
        explain: the plan and its cost, if asked for.
        cursor: for the next page, of the same snapshot; empty if there is none or it was not asked for.
    """

    columns: ClassVar[tuple[str, ...]] = _COLUMNS

    rows: pa.Table
    include: Include
    served_at: ServedAt
    complete: bool = True
    reason: str = ""
    explain: Json | None = None
    cursor: str = ""

    @cached_property
    def ids(self) -> list[str]:
        """In the order of the rows."""
        found: list[str] = self.rows.column(ID).to_pylist()
        return found

    @cached_property
    def documents(self) -> list[str | None] | None:
        """None per record without one; None altogether if not included."""
        return self._texts(DOCUMENT) if self.include.documents else None

    @cached_property
    def uris(self) -> list[str | None] | None:
        """None per record without one; None altogether if not included."""
        return self._texts(URI_COLUMN) if self.include.uris else None

    @cached_property
    def metadatas(self) -> list[Metadata] | None:
        """A dict per record, empty for none; None altogether if not included."""
        if not self.include.metadatas and not self.include.keys:
            return None
        found: list[Metadata] = [{} for _ in range(len(self))]
        for field in self._metadata_fields():
            column = self.rows.column(field.column)
            present = np.flatnonzero(np.asarray(column.is_valid())).tolist()
            for row, value in zip(present, column.drop_null().to_pylist(), strict=True):
                found[row][field.key] = value
        return found

    @cached_property
    def embeddings(self) -> Vectors | None:
        """(n, dim) float32 over the answer's memory; None if not included."""
        if not self.include.embeddings:
            return None
        if EMBEDDING not in self.rows.column_names:
            return np.empty((len(self), 0), dtype=np.float32)
        return embedding_matrix(self.rows.column(EMBEDDING))

    @cached_property
    def distances(self) -> npt.NDArray[np.float32] | None:
        """(n,) float32; None for a get or if not included."""
        if not self.include.distances or DISTANCE not in self.rows.column_names:
            return None
        found: npt.NDArray[np.float32] = one_chunk(self.rows.column(DISTANCE)).to_numpy(zero_copy_only=False)
        return found

    def to_arrow(self) -> pa.Table:
        """Columns ``id``, ``document``, ``embedding``, ``uri``, ``distance``, ``score`` as included, and one per metadata key.

        `Collection.add(table=...)` reads it back. A key with values of several kinds, or named like another column, keeps its
        column's full name ``m:<kind>:<key>``.
        """
        fields = self._metadata_fields() if self.include.metadatas or self.include.keys else []
        keys = [field.key for field in fields]
        taken = _TAKEN.union(self.rows.column_names)
        names = {field.column: field.key for field in fields if keys.count(field.key) == 1 and field.key not in taken}
        wanted = [ID, *(name for name in (DOCUMENT, EMBEDDING) if name in self.rows.column_names)]
        wanted += [URI_COLUMN] if self.include.uris and URI_COLUMN in self.rows.column_names else []
        wanted += [name for name in (DISTANCE, SCORE, _ORIGIN) if name in self.rows.column_names]
        wanted += [field.column for field in fields]
        return self.rows.select(wanted).rename_columns(
            [{URI_COLUMN: "uri", **names}.get(name, name) for name in wanted]
        )

    def keys(self) -> tuple[str, ...]:
        """The columns that this result has."""
        return ("ids", *(name for name in self.columns[1:] if getattr(self, name) is not None))

    def to_dict(self) -> dict[str, Any]:
        """The columns by name."""
        return {name: self[name] for name in self.keys()}

    def __getitem__(self, name: str) -> Any:
        if name not in self.columns:
            raise KeyError(f"{name!r}: a result has {', '.join(self.columns)}")
        return getattr(self, name)

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    def __iter__(self) -> Iterator[Record]:
        return (self.record(row) for row in range(len(self)))

    def record(self, row: int) -> Record:
        """One row."""
        return Record(
            self.ids[row],
            None if self.documents is None else self.documents[row],
            None if self.metadatas is None else self.metadatas[row],
            None if self.embeddings is None else self.embeddings[row],
            None if self.uris is None else self.uris[row],
            None if self.distances is None else float(self.distances[row]),
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {_counted(len(self), 'record')}{self._where()}\n{self._body()}".rstrip("\n")

    def _where(self) -> str:
        flaw = "" if self.complete else f", INCOMPLETE: {self.reason}"
        return f" at offset {self.served_at.offset}, version {self.served_at.version}{flaw}"

    def _body(self) -> str:
        if not len(self):
            return ""
        head = replace(self, rows=self.rows.slice(0, _SHOWN_ROWS))
        names = head.keys()
        columns = {name.removesuffix("s"): list(head[name]) for name in names}
        more = len(self) - len(head)
        return render_table(columns) + (f"\n… {more} more" if more else "")

    def _texts(self, name: str) -> list[str | None]:
        if name not in self.rows.column_names:
            return [None] * len(self)
        found: list[str | None] = self.rows.column(name).to_pylist()
        return found

    def _metadata_fields(self) -> list[MetadataField]:
        return [field for field in metadata_fields(self.rows.column_names) if not field.key.startswith("#")]


@dataclass(frozen=True, repr=False, eq=False)
class QueryResult:
    """The nearest records of each query; every column is a list with one entry per query, ``result[i]`` is one query's.

    Attributes:
        row_counts: (q,) uint32, rows of each query.
        rows, served_at, complete, reason, explain: see `GetResult`.
        recall: the share of the true nearest that it is estimated to have found; None if nothing was measured.
    """

    rows: pa.Table
    row_counts: npt.NDArray[np.uint32]
    include: Include
    served_at: ServedAt
    complete: bool = True
    reason: str = ""
    explain: Json | None = None
    recall: float | None = None

    @cached_property
    def ids(self) -> list[list[str]]:
        """Nearest first."""
        return self._split(self._all.ids)

    @cached_property
    def documents(self) -> list[list[str | None]] | None:
        """See `GetResult.documents`."""
        return None if self._all.documents is None else self._split(self._all.documents)

    @cached_property
    def metadatas(self) -> list[list[Metadata]] | None:
        """See `GetResult.metadatas`."""
        return None if self._all.metadatas is None else self._split(self._all.metadatas)

    @cached_property
    def uris(self) -> list[list[str | None]] | None:
        """See `GetResult.uris`."""
        return None if self._all.uris is None else self._split(self._all.uris)

    @cached_property
    def embeddings(self) -> list[Vectors] | None:
        """Per query (n, dim) float32."""
        return None if self._all.embeddings is None else self._split(self._all.embeddings)

    @cached_property
    def distances(self) -> list[npt.NDArray[np.float32]] | None:
        """Per query (n,) float32, ascending: squared L2, ``1 - cos`` or ``1 - dot``."""
        return None if self._all.distances is None else self._split(self._all.distances)

    def to_arrow(self) -> pa.Table:
        """As `GetResult.to_arrow`, with a first column ``query`` uint32: the number of the query of each row."""
        number = np.repeat(np.arange(len(self), dtype=np.uint32), self.row_counts)
        return self._all.to_arrow().add_column(0, "query", pa.array(number))

    def keys(self) -> tuple[str, ...]:
        """The columns that this result has."""
        return self._all.keys()

    def to_dict(self) -> dict[str, Any]:
        """The columns by name."""
        return {name: self[name] for name in self.keys()}

    def __getitem__(self, item: str | int) -> Any:
        if isinstance(item, int):
            return self.query(item)
        if item not in _COLUMNS:
            raise KeyError(f"{item!r}: a result has {', '.join(_COLUMNS)}")
        return getattr(self, item)

    def query(self, number: int) -> GetResult:
        """The rows of one query. Raises `IndexError`."""
        number = range(len(self))[number]
        rows = self.rows.slice(self._bounds[number], self._bounds[number + 1] - self._bounds[number])
        return GetResult(rows, self.include, self.served_at, self.complete, self.reason, self.explain)

    def __len__(self) -> int:
        return len(self.row_counts)

    def __iter__(self) -> Iterator[GetResult]:
        return (self.query(number) for number in range(len(self)))

    def __repr__(self) -> str:
        parts = [f"QueryResult: {_counted(len(self), 'query', 'queries')}{self._all._where()}"]
        for number, found in enumerate(self):
            if number == _SHOWN_QUERIES:
                parts.append(f"… {len(self) - number} more")
                break
            parts += [f"query {number}: {_counted(len(found), 'record')}", found._body()]
        return "\n".join(part for part in parts if part)

    @cached_property
    def _all(self) -> GetResult:
        return GetResult(self.rows, self.include, self.served_at, self.complete, self.reason, self.explain)

    @cached_property
    def _bounds(self) -> list[int]:
        bounds: list[int] = [0, *np.cumsum(self.row_counts, dtype=np.int64).tolist()]
        return bounds

    def _split(self, column: T) -> list[T]:
        bounds = self._bounds
        return [column[start:end] for start, end in pairwise(bounds)]  # type: ignore[misc]


def get_result(answer: Answer, include: Include) -> GetResult:
    """The result of a get."""
    return GetResult(
        answer.rows, include, answer.served_at, answer.complete, answer.reason, answer.explain, answer.cursor
    )


def query_result(answer: Answer, include: Include) -> QueryResult:
    """The result of a query."""
    return QueryResult(
        answer.rows,
        answer.row_counts,
        include,
        answer.served_at,
        answer.complete,
        answer.reason,
        answer.explain,
        answer.recall,
    )


def _counted(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
