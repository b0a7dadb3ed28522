"""How often each metadata value occurs, counted column by column. Counts of parts add up to those of the whole.

A scalar is one occurrence, a list one per element, a sparse vector one per index. ``1`` and ``[1]`` are the same value, ``1`` and
``1.0`` are not. -0.0 is 0.0. What users did not write (keys that start with #) is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shoal_core.records import Kind, MetadataField, metadata_fields
from shoal_index.postings import Int64s

#: What kinds of column hold the same type of value.
TYPE_OF: Mapping[Kind, str] = {
    Kind.INT: "int",
    Kind.INTS: "int",
    Kind.FLOAT: "float",
    Kind.FLOATS: "float",
    Kind.BOOL: "bool",
    Kind.BOOLS: "bool",
    Kind.STRING: "str",
    Kind.STRINGS: "str",
    Kind.SPARSE: "sparse",
}


@dataclass(frozen=True, slots=True, eq=False)
class Counted:
    """The values of one key and type.

    Attributes:
        values: (d,) distinct; strings are large_string.
        counts: (d,) int64, none of them 0.
    """

    values: pa.Array
    counts: Int64s

    @property
    def size_bytes(self) -> int:
        """In memory."""
        return int(self.values.nbytes) + self.counts.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class ValueCounts:
    """Of some rows. ``counted``: by key and type (see `TYPE_OF`); what has no value is not there."""

    counted: Mapping[tuple[str, str], Counted]

    @property
    def size_bytes(self) -> int:
        """In memory."""
        return sum(part.size_bytes for part in self.counted.values())


def counted_columns(names: Sequence[str]) -> list[str]:
    """Those of the columns of a row table that are counted."""
    return [field.column for field in _fields(names)]


def count_values(table: pa.Table) -> ValueCounts:
    """The counts of a row table."""
    found: dict[tuple[str, str], list[Counted]] = {}
    for field in _fields(table.column_names):
        counted = _count(_elements(table.column(field.column), field.kind))
        if len(counted.values):
            found.setdefault((field.key, TYPE_OF[field.kind]), []).append(counted)
    return ValueCounts({name: _sum([(part, 1) for part in parts]) for name, parts in found.items()})


def sum_counts(parts: Sequence[tuple[ValueCounts, int]]) -> ValueCounts:
    """The counts of several parts, each with 1 to be added or -1 to be taken away."""
    found: dict[tuple[str, str], list[tuple[Counted, int]]] = {}
    for counts, sign in parts:
        for name, counted in counts.counted.items():
            found.setdefault(name, []).append((counted, sign))
    summed = {name: _sum(pairs) for name, pairs in found.items()}
    return ValueCounts({name: counted for name, counted in summed.items() if len(counted.values)})


def _fields(names: Sequence[str]) -> list[MetadataField]:
    return [field for field in metadata_fields(names) if not field.key.startswith("#")]


def _elements(column: pa.ChunkedArray, kind: Kind) -> pa.ChunkedArray:
    if kind is Kind.SPARSE:
        column = pc.struct_field(column, "indices")
    if pa.types.is_list(column.type):
        column = pc.list_flatten(column)
    column = column.drop_null()
    if not pa.types.is_floating(column.type):
        return column
    return pa.chunked_array([pa.array(column.to_numpy() + 0.0)])


def _count(elements: pa.ChunkedArray) -> Counted:
    found = pc.value_counts(elements)
    values = found.field("values")
    if pa.types.is_string(values.type):
        values = values.cast(pa.large_string())  # whose offsets cannot overflow when parts are joined
    return Counted(values, found.field("counts").to_numpy())


def _sum(parts: Sequence[tuple[Counted, int]]) -> Counted:
    if len(parts) == 1 and parts[0][1] == 1:
        return parts[0][0]
    values = pa.chunked_array([counted.values for counted, _ in parts]).combine_chunks().dictionary_encode()
    counts = np.concatenate([counted.counts * sign for counted, sign in parts])
    summed = np.zeros(len(values.dictionary), dtype=np.int64)
    np.add.at(summed, values.indices.to_numpy(), counts)  # ten times as quick as Arrow's group_by
    kept = np.flatnonzero(summed)
    return Counted(values.dictionary.take(pa.array(kept)), summed[kept])
