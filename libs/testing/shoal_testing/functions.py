"""Attached functions beside a collection over fakes, and plain oracles of what they must have written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from shoal_compactor.flush import flush
from shoal_compactor.function_settings import FunctionSettings
from shoal_compactor.functions import FunctionRunner
from shoal_compactor.publish import Step, no_step
from shoal_core.contracts import AttachedFunction, Collection, NewFunction
from shoal_core.contracts.functions import STATISTICS
from shoal_core.records import ID, OP, Operation, decode_batch, metadata_key
from shoal_testing.compaction import LEASE_MS, CompactionWorld
from shoal_testing.fake_functions import MemoryFunctions
from shoal_testing.strategies import Record

#: What is counted: a key, a type and the text of a value.
Value = tuple[str, str, str]

_FUNCTIONS = 8


class FunctionWorld(CompactionWorld):
    """A `CompactionWorld` with functions."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.functions = MemoryFunctions(self.catalog)

    async def attach(self, function: str = STATISTICS, name: str = "fn") -> AttachedFunction:
        """A new function, writing into the collection ``<name>-out``."""
        new = NewFunction(name, function, f"{name}-out")
        return (await self.functions.attach_function(self.collection.id, new, limit=_FUNCTIONS))[0]

    async def attached(self, name: str = "fn") -> AttachedFunction:
        """As the catalog has it now."""
        return await self.functions.get_function(self.collection.id, name)

    def runner(self, holder: str = "r1", *, step: Step = no_step, **settings: Any) -> FunctionRunner:
        """A runner of this world that takes any function."""
        return FunctionRunner(
            holder,
            self.catalog,
            self.functions,
            self.log,
            self.objects,
            self.blocks,
            self.clock,
            lambda collection_id: True,
            FunctionSettings(**({"lease_ms": LEASE_MS} | settings)),
            step,
        )

    async def output(self, function: AttachedFunction) -> Collection:
        """The collection that it writes into."""
        return await self.catalog.get_collection_by_id(function.output_collection_id)

    async def flush_output(self, function: AttachedFunction) -> None:
        """Compact what it has written."""
        output = await self.output(function)
        lease = await self.catalog.claim(output.id, "flush", "flusher", ttl_ms=LEASE_MS)
        assert lease is not None
        await flush(
            output,
            lease,
            log=self.log,
            publisher=self.publisher(),
            blocks=self.blocks,
            settings=self.settings,
            now_ms=self.now_ms,
        )
        await self.catalog.release(lease)

    def written(self, function: AttachedFunction) -> dict[str, dict[str, Any]]:
        """The metadata of each record in its output, by replaying all that was written there."""
        records: dict[str, dict[str, Any]] = {}
        for entry in self.catalog.state(function.output_collection_id).entries:
            for row in decode_batch(entry.payload).to_pylist():
                if row[OP] == Operation.DELETE:
                    records.pop(row[ID], None)
                    continue
                assert row[OP] != Operation.UPSERT or row["embedding"] == [0.0]
                keys = ((metadata_key(name), value) for name, value in row.items())
                given = {key: value for key, value in keys if key is not None and value is not None}
                records[row[ID]] = records.get(row[ID], {}) | given
        return records


def counted(written: Mapping[str, Mapping[str, Any]]) -> dict[Value, int]:
    """The values and counts that ``statistics`` wrote, without its summary. Asserts that none is there twice."""
    rows = [record for record in written.values() if "completion_offset" not in record]
    found = {(row["key"], row["type"], row["value"]): row["count"] for row in rows}
    assert len(found) == len(rows)
    return found


def values_of(records: Iterable[Record]) -> dict[Value, int]:
    """What ``statistics`` must count."""
    counts: Counter[Value] = Counter()
    for record in records:
        for key, value in (record["metadata"] or {}).items():
            counts.update((key, *_typed(element)) for element in _elements(value))
    return dict(counts)


def _elements(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [("sparse", str(index)) for index in value["indices"]]
    return list(value) if isinstance(value, list | tuple) else [value]


def _typed(value: Any) -> tuple[str, str]:
    if isinstance(value, tuple):
        return value[0], value[1]
    if isinstance(value, bool):
        return "bool", "true" if value else "false"
    if isinstance(value, int):
        return "int", str(value)
    if isinstance(value, float):
        return "float", _float_text(value + 0.0)
    return "str", value


def _float_text(value: float) -> str:
    """A digit, sixteen more after the point, and the exponent without a plus sign or zeros."""
    if math.isinf(value):
        return str(value)
    text = f"{value:.16e}"
    return f"{text[: text.index('e')]}e{int(text[text.index('e') + 1 :])}"
