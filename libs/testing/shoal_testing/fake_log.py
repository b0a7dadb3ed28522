"""The log in memory over a `MemoryCatalog`; held to the same contract cases as the log service."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pyarrow as pa

from shoal_core.consistency import VersionToken
from shoal_core.contracts import AppendRequest, AppendResult, Condition, HashRange, Head, Tail, TailEntry, TailRequest
from shoal_core.errors import (
    BackPressure,
    DimensionMismatch,
    IdempotencyMismatch,
    InvalidArgument,
    NotFound,
    OffsetExpired,
    StaleEpoch,
    StaleRead,
    WriteConflict,
)
from shoal_core.hashing import hash_ids
from shoal_core.records import ID, decode_batch, dimension_of, encode_batch
from shoal_testing.fake_catalog import MemoryCatalog
from shoal_testing.fake_state import CollectionState, Hook, StoredEntry


class MemoryLog:
    """A `Log` of the collections of ``catalog``; also holds what sysdb and the log share on Postgres: heads and trim floors.

    Attributes:
        before, after: called with the method's name around `append`, `read_index` and `read_tail`, to raise what a service far
            away might: `Unavailable` before, `OutcomeUnknown` after.
        uncompacted_records, uncompacted_size_bytes: back-pressure beyond.
    """

    def __init__(
        self,
        catalog: MemoryCatalog,
        *,
        uncompacted_records: int = 1_000_000,
        uncompacted_size_bytes: int = 2 << 30,
    ) -> None:
        self.before: Hook = lambda name: None
        self.after: Hook = lambda name: None
        self.uncompacted_records = uncompacted_records
        self.uncompacted_size_bytes = uncompacted_size_bytes
        self._catalog = catalog

    async def append(self, request: AppendRequest) -> AppendResult:
        """See `Log.append`."""
        self.before("append")
        result = self._append(request)
        self.after("append")
        return result

    async def read_index(self, collection_id: str, epoch: int) -> Head:
        """See `Log.read_index`. Epoch 0 is not checked."""
        self.before("read_index")
        state = self._catalog.state(collection_id)
        _check_epoch(state, epoch)
        self.after("read_index")
        return state.head

    async def read_tail(self, request: TailRequest) -> Tail:
        """See `Log.read_tail`."""
        self.before("read_tail")
        state = self._catalog.state(request.collection_id)
        _check_epoch(state, request.epoch)
        up_to = request.up_to_offset or state.head_offset
        if request.after_offset < state.trim_floor:
            raise OffsetExpired(
                f"the log is kept from offset {state.trim_floor} on, {request.after_offset} is gone",
                field="after_offset",
            )
        for name, offset in (("after_offset", request.after_offset), ("up_to_offset", up_to)):
            if not state.is_batch_end(offset):
                raise InvalidArgument(f"{offset} is not the end of a batch", field=name)
        if request.after_offset > up_to:
            raise InvalidArgument(f"{request.after_offset} is above {up_to}", field="after_offset")
        entries: list[TailEntry] = []
        size_bytes = 0
        for stored in state.entries:
            if not request.after_offset < stored.end_offset <= up_to:
                continue
            entry = _cut(stored, request.hash_range)
            size_bytes += entry.payload.size
            if entries and size_bytes > request.max_size_bytes:
                break
            entries.append(entry)
        through = entries[-1].end_offset if entries else up_to
        self.after("read_tail")
        return Tail(state.head, tuple(entries), through)

    def trim(self, collection_id: str, offset: int) -> None:
        """Forget entries up to ``offset``, the end of a batch that is compacted."""
        state = self._catalog.state(collection_id)
        if not state.is_batch_end(offset) or offset > state.current.compacted_offset:
            raise InvalidArgument(f"{offset} is not the end of a compacted batch", field="offset")
        state.trim_floor = offset
        state.entries = [entry for entry in state.entries if entry.end_offset > offset]

    def _append(self, request: AppendRequest) -> AppendResult:
        batch = decode_batch(request.payload)
        if batch.num_rows == 0:
            raise InvalidArgument("has no records", field="payload")
        state = self._catalog.any_state(request.collection_id)
        made = state.collection
        if made.tenant != request.tenant:
            raise NotFound(f"no collection {request.collection_id}", field="collection_id")
        digest = hashlib.sha256(request.payload).digest()
        known = state.recorded.get(request.idempotency_key)
        if known is not None:
            if known[0] != digest:
                raise IdempotencyMismatch("the key was used before with another payload", field="idempotency_key")
            return AppendResult(VersionToken(made.id, made.incarnation, known[2]), known[1], replayed=True)
        self._catalog.state(request.collection_id)
        _check_epoch(state, request.epoch, always=True)
        dimension = dimension_of(batch.schema)
        if dimension is not None and made.dimension is not None and dimension != made.dimension:
            raise DimensionMismatch(
                f"embeddings have dimension {dimension}, the collection has {made.dimension}", field="embeddings"
            )
        self._check_pressure(state, batch.num_rows, request.payload.size)
        if request.condition is not None:
            _check_condition(state, request.condition)
        first = state.head_offset + 1
        state.head_offset += batch.num_rows
        state.total_bytes += request.payload.size
        if made.dimension is None:
            state.collection = replace(made, dimension=dimension)
        ids = frozenset(batch.column(ID).to_pylist())
        now_ms = self._catalog.now_ms()
        state.entries.append(
            StoredEntry(first, state.head_offset, request.payload, ids, state.total_bytes, committed_ms=now_ms)
        )
        if request.idempotency_key:
            state.recorded[request.idempotency_key] = (digest, first, state.head_offset)
        return AppendResult(VersionToken(made.id, made.incarnation, state.head_offset), first)

    def _check_pressure(self, state: CollectionState, rows: int, size_bytes: int) -> None:
        records = state.head_offset + rows - state.current.compacted_offset
        waiting = size_bytes + sum(entry.payload.size for entry in state.uncompacted)
        if records > self.uncompacted_records or waiting > self.uncompacted_size_bytes:
            raise BackPressure(f"{records} records of {waiting} bytes would wait for compaction", retry_after_ms=1000)


def _check_epoch(state: CollectionState, epoch: int, *, always: bool = False) -> None:
    if epoch != state.collection.epoch and (epoch or always):
        raise StaleEpoch(f"epoch {epoch} is not {state.collection.epoch}; look the collection up again", field="epoch")


def _check_condition(state: CollectionState, condition: Condition) -> None:
    name, read_offset = "condition.read_offset", condition.read_offset
    if read_offset > state.head_offset:
        raise InvalidArgument(f"{read_offset} is above the head", field=name)
    if read_offset < state.trim_floor:
        raise StaleRead(f"the log is kept from offset {state.trim_floor} on; read again", field=name)
    wanted = set(condition.read_ids)
    if any(entry.end_offset > read_offset and not wanted.isdisjoint(entry.ids) for entry in state.entries):
        raise WriteConflict(f"a record of the read set was written after offset {read_offset}; read again")


def _cut(stored: StoredEntry, hash_range: HashRange) -> TailEntry:
    """The rows of an entry in a hash range."""
    if hash_range.is_everything:
        return TailEntry(stored.first_offset, stored.end_offset, stored.payload)
    batch = decode_batch(stored.payload)
    hashes = hash_ids(batch.column(ID))
    rows = np.flatnonzero((hashes >= np.uint64(hash_range.start)) & (hashes <= np.uint64(hash_range.last)))
    if len(rows) == batch.num_rows:
        return TailEntry(stored.first_offset, stored.end_offset, stored.payload)
    offsets = (stored.first_offset + rows).astype(np.uint64)
    payload = encode_batch(batch.take(pa.array(rows))) if len(rows) else pa.py_buffer(b"")
    return TailEntry(stored.first_offset, stored.end_offset, payload, offsets)
