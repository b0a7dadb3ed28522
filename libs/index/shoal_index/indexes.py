"""The indexes of a segment beside those of its vectors: made from its rows, or merged from those of the segments it replaces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import pyarrow as pa

from shoal_core.records import DOCUMENT, Kind, MetadataField, metadata_fields
from shoal_core.schema import DOCUMENT_KEY, INDEX_OF, Index, Schema
from shoal_index.metadata import ValueIndex, pack_indexes, unpack_indexes
from shoal_index.planner import Way
from shoal_index.postings import Int64s
from shoal_index.sparse import SparseIndex
from shoal_index.terms import TermIndex
from shoal_index.trigrams import TrigramIndex

#: The kinds of block they are in.
INDEX_KINDS = ("values", "trigrams", "terms", "sparse")

_KEY = b"key"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Indexes:
    """What indexes a segment has.

    Attributes:
        values: by metadata column. sparse: by key.
        trigrams, terms: of the documents; None without documents and where the index is off.
    """

    values: Mapping[str, ValueIndex] = field(default_factory=dict)
    trigrams: TrigramIndex | None = None
    terms: TermIndex | None = None
    sparse: Mapping[str, SparseIndex] = field(default_factory=dict)

    def to_tables(self) -> dict[str, list[pa.Table]]:
        """As stored, by kind of block."""
        tables = {
            "values": pack_indexes(self.values),
            "trigrams": [] if self.trigrams is None else [self.trigrams.to_table()],
            "terms": [] if self.terms is None else [self.terms.to_table()],
            "sparse": [_labelled(index.to_table(), key) for key, index in sorted(self.sparse.items())],
        }
        return {kind: parts for kind, parts in tables.items() if parts}

    @classmethod
    def of_tables(cls, tables: Mapping[str, Sequence[pa.Table]], rows: int) -> Indexes:
        """The inverse of `to_tables` for a segment of ``rows`` rows, without copying. Kinds may be absent."""
        trigrams, terms = tables.get("trigrams"), tables.get("terms")
        return cls(
            values=dict(pair for table in tables.get("values", ()) for pair in unpack_indexes(table, rows)),
            trigrams=TrigramIndex.of_table(trigrams[0]) if trigrams else None,
            terms=TermIndex.of_table(terms[0]) if terms else None,
            sparse={_label(table): SparseIndex.of_table(table) for table in tables.get("sparse", ())},
        )


class Indexed(Protocol):
    """A segment, as a merge sees it."""

    @property
    def schema(self) -> pa.Schema: ...
    @property
    def indexes(self) -> Indexes: ...
    @property
    def ways(self) -> Sequence[Way]: ...


#: A segment that goes into a merge, and the (rows,) int64 map from its rows to the new ones, -1 for one that is left behind.
Input = tuple[Indexed, Int64s]


def make_indexes(table: pa.Table, schema: Schema, inputs: Sequence[Input] = ()) -> Indexes:
    """The indexes of a row table that the schema has on.

    Args:
        inputs: the segments whose rows these are, when it is a merge: an index that all of them have is merged, which costs
            less than to read the rows.
    """
    fields = [field for field in metadata_fields(table.column_names) if schema.enabled(field.key, INDEX_OF[field.kind])]
    making = _Making(table, inputs)
    return Indexes(
        values={found.column: making.values(found.column) for found in fields if found.kind is not Kind.SPARSE},
        trigrams=making.trigrams() if making.has_documents and schema.enabled(DOCUMENT_KEY, Index.SUBSTRING) else None,
        terms=making.terms(schema) if making.has_documents and schema.enabled(DOCUMENT_KEY, Index.RANKED) else None,
        sparse={found.key: making.sparse(found) for found in fields if found.kind is Kind.SPARSE},
    )


@dataclass(frozen=True, slots=True)
class _Making:
    table: pa.Table
    inputs: Sequence[Input]

    @property
    def has_documents(self) -> bool:
        return DOCUMENT in self.table.column_names

    def values(self, column: str) -> ValueIndex:
        parts = self._parts(column, lambda indexes: indexes.values.get(column))
        return ValueIndex.merge(parts, self.table.num_rows) if parts else ValueIndex.build(self.table.column(column))

    def trigrams(self) -> TrigramIndex:
        parts = self._parts(DOCUMENT, lambda indexes: indexes.trigrams)
        rows = self.table.num_rows
        return TrigramIndex.merge(parts, rows) if parts else TrigramIndex.build(self.table.column(DOCUMENT))

    def terms(self, schema: Schema) -> TermIndex:
        parts = self._parts(DOCUMENT, lambda indexes: indexes.terms)
        rows = self.table.num_rows
        return TermIndex.merge(parts, rows) if parts else TermIndex.build(self.table.column(DOCUMENT), schema.analyzer)

    def sparse(self, of: MetadataField) -> SparseIndex:
        parts = self._parts(of.column, lambda indexes: indexes.sparse.get(of.key))
        rows = self.table.num_rows
        return SparseIndex.merge(parts, rows) if parts else SparseIndex.build(self.table.column(of.column))

    def _parts(self, column: str, stored: Callable[[Indexes], _T | None]) -> list[tuple[_T, Int64s]]:
        """The stored indexes of the inputs that have the column, with their maps; none unless all of those have one."""
        having = [
            (stored(segment.indexes), new_row) for segment, new_row in self.inputs if column in segment.schema.names
        ]
        parts = [(index, new_row) for index, new_row in having if index is not None]
        return parts if len(parts) == len(having) else []


def _labelled(table: pa.Table, key: str) -> pa.Table:
    return table.replace_schema_metadata({_KEY: key.encode()})


def _label(table: pa.Table) -> str:
    return str(table.schema.metadata[_KEY].decode())
