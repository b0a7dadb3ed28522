"""The functions that can be attached: what each writes for a version of its input.

The records are those that the reference system's functions write, as its clients read them. All have the embedding ``[0.0]``. One
of them, the *guard*, is written with every change; its ``completion_offset`` says which offset of the input the output is of.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shoal_compactor.function_settings import FunctionSettings
from shoal_core.records import DOCUMENT, ID, Kind, MetadataField
from shoal_index.value_counts import Counted, ValueCounts

COMPLETION_OFFSET = MetadataField("completion_offset", Kind.INT).column

_KEY, _TYPE, _VALUE, _LABEL = (MetadataField(k, Kind.STRING).column for k in ("key", "type", "value", "value_label"))
_COUNT = MetadataField("count", Kind.INT).column
_TOTAL = MetadataField("total_count", Kind.INT).column

_SUMMARY = "summary"
_TOTAL_VALUE = "total_count"
_PREFIXES = {"int": "i", "float": "f", "bool": "b", "str": "s", "sparse": "sv"}
_LONGEST_ID_BYTES = 512

_COLUMNS = {ID: pa.string(), DOCUMENT: pa.string(), _KEY: pa.string(), _TYPE: pa.string(), _VALUE: pa.string()} | {
    _LABEL: pa.string(),
    _COUNT: pa.int64(),
}


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """How a function's records are told from others in its output, and whether one has changed.

    Attributes:
        guard: the id of the guard.
        number: the metadata column whose value changes.
        required: metadata columns that every record has.
    """

    guard: str
    number: str
    required: tuple[str, ...]


COUNTER_OUTPUT = OutputFormat("function_output", _TOTAL, (_TOTAL,))
STATISTICS_OUTPUT = OutputFormat(f"{_SUMMARY}::s:{_TOTAL_VALUE}", _COUNT, (_KEY, _TYPE, _VALUE, _COUNT))


def counter_rows(records: int, offset: int) -> pa.Table:
    """What ``record_counter`` writes: one record with the number of live records."""
    return pa.table(
        {
            ID: [COUNTER_OUTPUT.guard],
            DOCUMENT: [f"{records} records at offset {offset}"],
            _TOTAL: pa.array([records], pa.int64()),
        }
    )


def statistics_rows(counts: ValueCounts, records: int, settings: FunctionSettings) -> pa.Table:
    """What ``statistics`` writes: a record per key, type and value, with how often it occurs, and the number of records.

    Where there are more values than are listed, a record of the key ``summary`` and the value ``omitted_values`` says for the key
    in its ``value_label`` how many are left out; one of the value ``omitted_keys`` says how many keys are. A value that is the
    summary's own is not listed: ``total_count`` as text of the key ``summary``.
    """
    chosen = _largest_keys(counts.counted, settings.keys)
    short = {name: _short(counted, settings.value_size_bytes) for name, counted in chosen.items()}
    most = _share([len(counted.values) for counted in short.values()], settings.values_per_key, settings.values)
    parts = [_summary(_TOTAL_VALUE, records)]
    for (key, type_), counted in chosen.items():
        listed = _most_frequent(short[key, type_], most)
        parts.append(_values(key, type_, listed))
        if len(listed.values) < len(counted.values):
            parts.append(_summary("omitted_values", len(counted.values) - len(listed.values), key, type_))
    omitted = len({key for key, _ in counts.counted}) - len({key for key, _ in chosen})
    if omitted:
        parts.append(_summary("omitted_keys", omitted))
    return pa.concat_tables(parts).combine_chunks()


def _summary(value: str, count: int, key: str | None = None, type_: str = "") -> pa.Table:
    guard = value == _TOTAL_VALUE
    row = {
        ID: STATISTICS_OUTPUT.guard if guard else _fallback_id(f"{value}:{type_}", key or ""),
        DOCUMENT: f"statistics about {_SUMMARY} for s:{value}",
        _KEY: _SUMMARY,
        _TYPE: "str",
        _VALUE: value,
        _LABEL: key,
        _COUNT: count,
    }
    return pa.Table.from_pylist([row], pa.schema(list(_COLUMNS.items())))


def _values(key: str, type_: str, counted: Counted) -> pa.Table:
    texts = _texts(counted.values, type_)
    prefix = _PREFIXES[type_]
    ids = _ids(key, prefix, texts)
    rows = len(texts)
    table = pa.table(
        {
            ID: ids,
            DOCUMENT: pc.binary_join_element_wise(f"statistics about {key} for {prefix}:", texts, ""),
            _KEY: pa.array([key] * rows, pa.string()),
            _TYPE: pa.array([type_] * rows, pa.string()),
            _VALUE: texts,
            _LABEL: pa.nulls(rows, pa.string()),
            _COUNT: pa.array(counted.counts),
        }
    )
    return table.filter(pc.not_equal(table.column(ID), STATISTICS_OUTPUT.guard)) if key == _SUMMARY else table


def _texts(values: pa.Array, type_: str) -> pa.Array:
    """Values as text, floats as in ``2.5000000000000000e0``."""
    if type_ == "float":
        return pa.array([_float_text(value) for value in values.to_pylist()], pa.string())
    return values.cast(pa.string())


def _float_text(value: float) -> str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else str(value)
    digits, _, exponent = f"{value:.16e}".partition("e")
    return f"{digits}e{int(exponent)}"


def _ids(key: str, prefix: str, texts: pa.Array) -> pa.Array:
    """``key::prefix:text``; something shorter and unmistakable where that is too long, or another key's might be the same."""
    if "::" in key:
        return pa.array([_fallback_id(f"{prefix}:{text}", key) for text in texts.to_pylist()], pa.string())
    ids = pc.binary_join_element_wise(f"{key}::{prefix}:", texts, "")
    long = np.flatnonzero(pc.binary_length(ids).to_numpy() > _LONGEST_ID_BYTES)
    if len(long) == 0:
        return ids
    found = ids.to_pylist()
    for at in long.tolist():
        found[at] = _fallback_id(f"{prefix}:{texts[at].as_py()}", key)
    return pa.array(found, pa.string())


def _fallback_id(value: str, key: str) -> str:
    """No other id begins with ``::``, as keys are not empty."""
    return f"::{hashlib.sha256(f'{len(key)}:{key}:{value}'.encode()).hexdigest()}"


def _largest_keys(counted: Mapping[tuple[str, str], Counted], most: int) -> Mapping[tuple[str, str], Counted]:
    """In order of key and type; of more than ``most`` keys those with the most occurrences, then the first by name."""
    occurrences: dict[str, int] = {}
    for (key, _), part in counted.items():
        occurrences[key] = occurrences.get(key, 0) + int(part.counts.sum())
    kept = set(sorted(occurrences, key=lambda key: (-occurrences[key], key))[:most])
    return {name: counted[name] for name in sorted(counted) if name[0] in kept}


def _share(sizes: list[int], each: int, total: int) -> int:
    """How many values each may list at most, so that all together are within ``total``."""
    least, most = 0, each
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if sum(min(size, middle) for size in sizes) <= total else (least, middle - 1)
    return least


def _short(counted: Counted, most_bytes: int) -> Counted:
    """Without the texts that are too long."""
    if not pa.types.is_large_string(counted.values.type):
        return counted
    kept = np.flatnonzero(pc.binary_length(counted.values).to_numpy() <= most_bytes)
    return Counted(counted.values.take(pa.array(kept)), counted.counts[kept])


def _most_frequent(counted: Counted, most: int) -> Counted:
    """The most frequent values, the smaller ones of those that are equally frequent."""
    if len(counted.values) <= most:
        return counted
    table = pa.table({"value": counted.values, "count": counted.counts})
    order = pc.select_k_unstable(table, most, [("count", "descending"), ("value", "ascending")])
    return Counted(counted.values.take(order), counted.counts[order.to_numpy()])
