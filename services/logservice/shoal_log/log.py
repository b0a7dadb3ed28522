"""The log of every collection, assembled: the `Log` protocol over Postgres and object storage."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from uuid import UUID

import numpy as np
import pyarrow as pa

from shoal_core.contracts import AppendRequest, AppendResult, Condition, Head, Tail, TailRequest
from shoal_core.errors import InvalidArgument, NotFound, ResourceExhausted, ShoalError, StaleEpoch
from shoal_core.hashing import hash_ids
from shoal_core.ports import Clock, ObjectStore, Random
from shoal_log.append import GroupCommitter
from shoal_log.batches import Batch, check_batch
from shoal_log.decide import Append, Check, LogState, Plan, overlaps
from shoal_log.groups import Admission
from shoal_log.heads import CommittedHeads, KnownHeads
from shoal_log.lag import LogLag
from shoal_log.payloads import Payloads
from shoal_log.read_index import SharedReadIndex
from shoal_log.settings import LogCounters, LogSettings
from shoal_log.store import LogStore
from shoal_log.tail import LoadedEntry, TailCache, TailReader
from shoal_log.trim import Trimmer, TrimReport
from shoal_log.trim_store import PartitionStore
from shoal_storage.postgres import Pool
from shoal_wire.spans import root_span

_USUAL_ID = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAX_OFFSET = 2**63 - 1


_log = logging.getLogger(__name__)


class LogService:
    """One log node. Any number may serve the same database; none owns a collection.

    Args:
        dsn: of the Postgres that sysdb has migrated.
        objects: where large payloads go.
        exclusive: this process alone appends to the database (one machine, data directory locked). The committed head in
            memory is then the read index, without a round trip, and whoever publishes or changes the catalog in this
            process must tell `published` and `catalog_changed` before answering.
        on_group: see `GroupCommitter`.

    Attributes:
        counters: what happened since start.
    """

    def __init__(
        self,
        dsn: str,
        objects: ObjectStore,
        clock: Clock,
        random: Random,
        settings: LogSettings | None = None,
        *,
        exclusive: bool = False,
        on_group: Callable[[int, float], None] = lambda appends, duration_ms: None,
    ) -> None:
        self._dsn = dsn
        self._objects = objects
        self._clock = clock
        self._random = random
        self._settings = settings or LogSettings()
        self._exclusive = exclusive
        self._on_group = on_group
        self.counters = LogCounters()
        self._admission = Admission(
            items=self._settings.append.admitted_items,
            size_bytes=self._settings.append.admitted_size_bytes,
            retry_after_ms=self._settings.append.admission_retry_ms,
        )
        self._cache = TailCache(self._settings.tail.cache_size_bytes)
        self._known = KnownHeads(self._settings.tail.known_heads)
        self._committed_heads: CommittedHeads | None = None
        self._maintenance: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect and make the partitions of the present. Raises `Unavailable`, `FailedPrecondition`."""
        append, tail = self._settings.append, self._settings.tail
        self._store = await LogStore.open(self._dsn, self._settings, self.counters)
        acquire_timeout_ms = self._settings.acquire_timeout_ms
        partitions = PartitionStore(self._store.append_pool, acquire_timeout_ms=acquire_timeout_ms)
        self._trimmer = Trimmer(partitions, self._settings.trim, self.counters)
        try:
            await self._trimmer.ensure_partitions()
        except BaseException:
            await self._store.close()
            raise
        self._payloads = Payloads(
            self._objects,
            self._store.begin_upload,
            self._random,
            inline_limit_bytes=append.inline_limit_bytes,
            uploads=append.uploads,
        )
        self._read_index = SharedReadIndex(
            self._store, self.counters, collections=tail.read_index_collections, in_flight=tail.read_index_statements
        )
        if self._exclusive:
            self._committed_heads = CommittedHeads(self._read_index.state, tail.known_heads)
        self._tail = TailReader(self._store, self._payloads, self._cache, tail, self.counters)
        self._committer = GroupCommitter(
            self._store,
            append,
            self._clock,
            self._random,
            self.counters,
            committed=self._on_commit,
            in_doubt=self._on_doubt,
            make_partition=self._trimmer.ensure_partitions,
            on_group=self._on_group,
        )
        self._maintenance = asyncio.get_running_loop().create_task(self._maintain())

    async def close(self) -> None:
        """Finish the appends under way, stop, disconnect."""
        if self._maintenance is None:
            return
        self._maintenance.cancel()
        await asyncio.gather(self._maintenance, return_exceptions=True)
        self._maintenance = None
        await self._committer.close(self._settings.drain_timeout_ms)
        await self._read_index.close()
        await self._store.close()

    # --- Log ---------------------------------------------------------------------------------------------------------

    async def append(self, request: AppendRequest) -> AppendResult:
        """See `Log.append`. Also raises `InvalidArgument`, `ResourceExhausted` (this node is full), `UploadExpired`."""
        collection_id = _check_id(request.collection_id)
        self._check_request(request)
        size_bytes = int(request.payload.size)
        try:
            self._admission.enter(size_bytes)
        except ResourceExhausted:
            self.counters.refused_admissions += 1
            raise
        try:
            batch = await self._check_payload(request.payload)
            upload = await self._payloads.put(collection_id, batch)
            self.counters.uploads += upload is not None
            check = await self._scan(collection_id, request.condition) if request.condition else None
            return await self._committer.append(
                Append(collection_id, request.tenant, request.epoch, batch, request.idempotency_key, check, upload)
            )
        finally:
            self._admission.leave(size_bytes)

    async def read_index(self, collection_id: str, epoch: int) -> Head:
        """See `Log.read_index`. Epoch 0 is not checked."""
        return (await self._fresh_state(_check_id(collection_id), epoch)).head

    async def read_tail(self, request: TailRequest) -> Tail:
        """See `Log.read_tail`. Also raises `InvalidArgument`, `Corrupt`.

        The answer is cut to ``max_size_bytes`` of payload, but holds at least one batch if there is one.
        """
        collection_id = _check_id(request.collection_id)
        _check_offset(request.after_offset, "after_offset")
        _check_offset(request.up_to_offset, "up_to_offset")
        state = self._known_state(collection_id, request) if request.up_to_offset else None
        return await self._tail.read(request, state or await self._fresh_state(collection_id, request.epoch))

    # --- for the process around it -----------------------------------------------------------------------------------

    @property
    def admitted(self) -> tuple[int, int]:
        """Appends begun and not yet answered, and their bytes."""
        return self._admission.items, self._admission.size_bytes

    @property
    def pools(self) -> Mapping[str, Pool]:
        """Connections to Postgres, by what they are for."""
        return self._store.pools

    async def lag(self) -> LogLag:
        """How far compaction is behind the log, over all collections of the database. Raises `Unavailable`."""
        return await self._store.lag()

    async def trim(self) -> TrimReport:
        """Drop what nobody needs any more, objects included. Runs by itself every ``trim.interval_ms``."""
        report = await self._trimmer.trim()
        if report.dropped and self._committed_heads is not None:
            self._committed_heads.everything_changed()
        await self._payloads.delete(list(report.object_keys))
        return report

    def published(self, collection_id: str, version: int, compacted_offset: int) -> None:
        """With ``exclusive``: a publish of this process committed. Call it before answering."""
        if self._committed_heads is not None:
            self._committed_heads.published(collection_id, version, compacted_offset)

    def catalog_changed(self, collection_id: str) -> None:
        """With ``exclusive``: a collection was modified or deleted by this process. Call it before answering."""
        self._known.forget(collection_id)
        if self._committed_heads is not None:
            self._committed_heads.catalog_changed(collection_id)

    def everything_changed(self) -> None:
        """As `catalog_changed`, for all collections."""
        self._known.clear()
        if self._committed_heads is not None:
            self._committed_heads.everything_changed()

    # --- within ------------------------------------------------------------------------------------------------------

    def _check_request(self, request: AppendRequest) -> None:
        limits = self._settings.limits
        _check_text(request.tenant, "tenant", limits.name_size_bytes)
        _check_text(request.idempotency_key, "idempotency_key", limits.idempotency_key_size_bytes)
        if request.payload.size > self._settings.append.payload_size_bytes:
            raise InvalidArgument(
                f"has {request.payload.size} bytes, the limit is {self._settings.append.payload_size_bytes}; "
                "split the batch",
                field="payload",
            )
        if request.condition is None:
            return
        _check_offset(request.condition.read_offset, "condition.read_offset")
        if len(request.condition.read_ids) > self._settings.append.condition_ids:
            raise InvalidArgument(
                f"has {len(request.condition.read_ids)} ids, the limit is {self._settings.append.condition_ids}",
                field="condition.read_ids",
            )

    async def _check_payload(self, payload: pa.Buffer) -> Batch:
        if payload.size <= self._settings.append.offload_size_bytes:
            return check_batch(payload, self._settings.limits)
        return await asyncio.to_thread(check_batch, payload, self._settings.limits)

    async def _scan(self, collection_id: str, condition: Condition) -> Check:
        """Search what is committed by now, so that little is left to search under the locks."""
        try:
            wanted = np.unique(hash_ids(pa.array(condition.read_ids, pa.string())))
        except (pa.ArrowException, TypeError, UnicodeEncodeError) as error:
            raise InvalidArgument(f"are not all strings: {error}", field="condition.read_ids") from error
        scanned_offset, limit = condition.read_offset, self._settings.append.scan_entries
        while True:
            page = await self._store.scan_page(collection_id, scanned_offset, limit)
            scanned_offset = page[-1].end_offset if page else scanned_offset
            conflict = any(overlaps(wanted, entry.hashes) for entry in page)
            if conflict or len(page) < limit:
                return Check(condition.read_offset, wanted, scanned_offset, conflict)

    async def _fresh_state(self, collection_id: str, epoch: int) -> LogState:
        source = self._committed_heads or self._read_index
        state = await source.state(collection_id)
        if epoch > state.epoch and self._committed_heads is not None:
            # Epochs come from the catalog: a change whose outcome this process never heard of did commit.
            self._committed_heads.catalog_changed(collection_id)
            state = await source.state(collection_id)
        if not state.alive:
            self._known.forget(collection_id)
            raise NotFound(f"collection {collection_id} was deleted", field="collection_id")
        self._known.learn(state)
        if epoch not in (0, state.epoch):
            raise StaleEpoch(f"epoch {epoch} is not {state.epoch}; look the collection up again", field="epoch")
        return state

    def _known_state(self, collection_id: str, request: TailRequest) -> LogState | None:
        """What is known of a collection, if that says that the offset asked for exists."""
        state = self._known.get(collection_id)
        if state is None or state.head_offset < request.up_to_offset or request.epoch not in (0, state.epoch):
            return None
        return state

    def _on_commit(self, plan: Plan) -> None:
        for state in plan.states.values():
            if not state.alive:
                continue
            self._known.learn(state)
            if self._committed_heads is not None:
                self._committed_heads.committed(state)
        for entry in plan.entries:
            batch = entry.append.batch
            log = (entry.append.collection_id, plan.states[entry.append.collection_id].incarnation)
            loaded = LoadedEntry(entry.first_offset, entry.end_offset, batch.payload, batch.row_hashes)
            self._cache.put(log, loaded)

    def _on_doubt(self, collection_ids: Iterable[str]) -> None:
        for collection_id in collection_ids:
            self.catalog_changed(collection_id)

    async def _maintain(self) -> None:
        trim = self._settings.trim
        while True:
            await self._clock.sleep(trim.interval_ms / 1000)
            try:
                with root_span("log maintenance"):
                    await self._trimmer.ensure_partitions()
                    await self.trim()
            except (ShoalError, OSError) as error:
                self.counters.maintenance_failures += 1  # appends make a missing partition themselves
                _log.warning("maintenance of the log failed: %s", error)


def _check_id(text: str) -> str:
    """A UUID in its usual form. Raises `NotFound`: no collection has another id."""
    if isinstance(text, str) and _USUAL_ID.fullmatch(text):
        return text
    try:
        return str(UUID(text))
    except (ValueError, AttributeError, TypeError) as error:
        raise NotFound(f"no collection {text!r}", field="collection_id") from error


def _check_offset(offset: int, field: str) -> None:
    if not 0 <= offset <= _MAX_OFFSET:
        raise InvalidArgument(f"{offset} is not within 0..{_MAX_OFFSET}", field=field)


def _check_text(text: str, field: str, size_bytes: int) -> None:
    """What Postgres can store: one item that it cannot would fail its group."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"is not Unicode text: {error}", field=field) from error
    if size > size_bytes:
        raise InvalidArgument(f"has {size} bytes, the limit is {size_bytes}", field=field)
    if "\0" in text:
        raise InvalidArgument("contains the character U+0000", field=field)
