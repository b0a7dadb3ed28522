"""The runner of attached functions, beside the compactor: brings outputs up to the compacted offset of their inputs.

It looks for functions that are behind, whatever the reason: a flush was published, a function was attached to a collection that is
compacted already, a run failed or its process died. A run recomputes the output from the input's current version, so what went
wrong before is put right, and writes what differs (see `outputs`). Compaction neither waits for it nor fails with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from shoal_compactor.builtin import COUNTER_OUTPUT, STATISTICS_OUTPUT, counter_rows, statistics_rows
from shoal_compactor.counting import SegmentCounts
from shoal_compactor.function_settings import FunctionSettings
from shoal_compactor.leases import release, renewing
from shoal_compactor.outputs import read_output, write_output
from shoal_compactor.publish import Publisher, Step, no_step
from shoal_core.contracts import AttachedFunction, Catalog, DueFunction, Functions, Lease, Log
from shoal_core.contracts.functions import FUNCTIONS_LEASE, RECORD_COUNTER
from shoal_core.errors import Conflict, Fenced, NotFound, ShoalError
from shoal_core.ports import Clock, ObjectStore
from shoal_index.segment import BlockReader
from shoal_storage.manifest import Manifest
from shoal_wire.spans import root_span

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class FunctionCounters:
    """What a runner has done since its start. ``records``: written to outputs."""

    runs: int = 0
    records: int = 0
    failures: int = 0
    lost_races: int = 0


@dataclass(slots=True)
class FunctionRunner:
    """See the module. ``mine`` says whether this process is the preferred one for a collection id."""

    holder: str
    catalog: Catalog
    functions: Functions
    log: Log
    objects: ObjectStore
    blocks: BlockReader
    clock: Clock
    mine: Callable[[str], bool]
    settings: FunctionSettings = field(default_factory=FunctionSettings)
    step: Step = no_step
    counters: FunctionCounters = field(default_factory=FunctionCounters)
    _counts: SegmentCounts = field(init=False)

    def __post_init__(self) -> None:
        self._counts = SegmentCounts(self.blocks, self.settings.cache_size_bytes)

    async def run(self) -> None:
        """Work until cancelled. A failure of one function is recorded with it and does not stop the others."""
        while True:
            try:
                await self.run_due()
            except ShoalError as error:
                _log.warning("a round of functions ended: %s", error)
            except Exception:
                _log.exception("a round of functions ended")
            await self.clock.sleep(self.settings.poll_ms / 1000)

    async def run_due(self) -> int:
        """Run what a look shows to be behind; how many functions were tried."""
        inputs: dict[str, list[AttachedFunction]] = {}
        for item in await self._due():
            inputs.setdefault(item.function.input_collection_id, []).append(item.function)
        gate = asyncio.Semaphore(self.settings.parallel_jobs)

        async def work(collection_id: str, functions: Sequence[AttachedFunction]) -> None:
            async with gate:
                await self._run_input(collection_id, functions)

        await asyncio.gather(*(work(name, functions) for name, functions in inputs.items()))
        return sum(map(len, inputs.values()))

    async def _due(self) -> list[DueFunction]:
        """Up to a page of what this runner takes, however many others are behind that it does not take."""
        taken: list[DueFunction] = []
        skip = 0
        while len(taken) < self.settings.page:
            found = await self.functions.due_functions(limit=self.settings.page, skip=skip)
            taken += filter(self._takes, found)
            skip += len(found)
            if len(found) < self.settings.page:
                break
        return taken[: self.settings.page]

    def _takes(self, item: DueFunction) -> bool:
        return self.mine(item.function.input_collection_id) or item.overdue_ms > self.settings.orphan_age_ms

    async def _run_input(self, collection_id: str, functions: Sequence[AttachedFunction]) -> None:
        """Run the functions of one collection under its lease."""
        with root_span("compactor functions", {"shoal.collection.id": collection_id}):
            await self._run_leased(collection_id, functions)

    async def _run_leased(self, collection_id: str, functions: Sequence[AttachedFunction]) -> None:
        try:
            lease = await self.catalog.claim(collection_id, FUNCTIONS_LEASE, self.holder, ttl_ms=self.settings.lease_ms)
            if lease is None:
                return
            try:
                async with renewing(self.catalog, lease, self.clock, self.settings.lease_ms):
                    for function in functions:
                        await self._try(lease, function)
            finally:
                await release(self.catalog, lease)
        except Fenced as error:
            self.counters.lost_races += 1
            _log.info("lost a race over the functions of collection %s: %s", collection_id, error)
        except ShoalError as error:
            _log.warning("cannot run the functions of collection %s: %s", collection_id, error)

    async def _try(self, lease: Lease, function: AttachedFunction) -> None:
        """One run; a failure is recorded. Raises `Fenced`, and what recording a failure raises."""
        try:
            await self._run(lease, function)
        except Fenced:
            raise
        except Conflict as error:
            self.counters.lost_races += 1
            _log.info("function %r of collection %s lost a race: %s", function.name, lease.collection_id, error)
        except Exception as error:
            if isinstance(error, NotFound) and await self._is_over(function):
                return
            self.counters.failures += 1
            if isinstance(error, ShoalError):
                _log.warning("function %r of collection %s failed: %s", function.name, lease.collection_id, error)
            else:
                _log.exception("function %r of collection %s failed", function.name, lease.collection_id)
            await self._record_failure(lease, function, error)

    async def _record_failure(self, lease: Lease, function: AttachedFunction, error: Exception) -> None:
        text = str(error) if isinstance(error, ShoalError) else f"{type(error).__name__}, see the compactor's log"
        settings = self.settings
        try:
            await self.functions.fail_function(
                lease,
                function.id,
                text,
                retry_ms=settings.retry_ms,
                longest_retry_ms=settings.longest_retry_ms,
            )
        except NotFound:
            _log.info("function %r of collection %s ended while it ran", function.name, lease.collection_id)

    async def _is_over(self, function: AttachedFunction) -> bool:
        """Whether it was detached or one of its collections deleted meanwhile, or else something is lost."""
        try:
            found = await self.functions.get_function(function.input_collection_id, function.name)
        except NotFound:
            return True
        except ShoalError:
            return False
        return found.id != function.id

    async def _run(self, lease: Lease, function: AttachedFunction) -> None:
        """Bring the output to the input's current version, and record that."""
        publisher = Publisher(self.catalog, self.objects, self.step)
        manifest = await publisher.current(await self.catalog.get_collection_by_id(function.input_collection_id))
        offset = manifest.compacted_offset
        await self.step("function-begun")
        output = await self.catalog.get_collection_by_id(function.output_collection_id)
        form = COUNTER_OUTPUT if function.function == RECORD_COUNTER else STATISTICS_OUTPUT
        there = await read_output(output, form, log=self.log, publisher=publisher, blocks=self.blocks)
        await self.step("function-read")
        if there.completion_offset < offset:
            wanted = await self._compute(function, manifest)
            await self.step("function-computed")
            self.counters.records += await write_output(
                output,
                there,
                wanted,
                form,
                offset,
                function_id=function.id,
                publisher=publisher,
                log=self.log,
                settings=self.settings,
            )
        await self.functions.complete_function(lease, function.id, offset)
        await self.step("function-completed")
        self.counters.runs += 1

    async def _compute(self, function: AttachedFunction, manifest: Manifest) -> pa.Table:
        if function.function == RECORD_COUNTER:
            return counter_rows(manifest.records, manifest.compacted_offset)
        counts = await self._counts.of(manifest)
        return await asyncio.to_thread(statistics_rows, counts, manifest.records, self.settings)
