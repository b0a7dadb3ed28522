"""What happens to each append of a group: plain functions over what the transaction found under its locks.

An append that cannot be done is a `ShoalError` as a value, for its caller alone; the others go on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from shoal_core.contracts import Head
from shoal_core.errors import (
    BackPressure,
    DimensionMismatch,
    IdempotencyMismatch,
    InvalidArgument,
    NotFound,
    ShoalError,
    StaleEpoch,
    StaleRead,
    UploadExpired,
    WriteConflict,
)
from shoal_log.batches import Batch
from shoal_log.settings import AppendSettings

Hashes: TypeAlias = npt.NDArray[np.uint64]
Key: TypeAlias = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class LogState:
    """A collection as one statement, or a transaction that holds its locks, sees it."""

    collection_id: str
    tenant: str
    epoch: int
    incarnation: str
    alive: bool
    dimension: int | None
    version: int
    compacted_offset: int
    compacted_bytes: int
    head_offset: int
    total_bytes: int
    set_hash: int
    trim_floor: int

    @property
    def head(self) -> Head:
        """As readers know it."""
        return Head(
            self.collection_id,
            self.epoch,
            self.incarnation,
            self.head_offset,
            self.version,
            self.compacted_offset,
            self.dimension,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """The condition of an append.

    Attributes:
        hashes: ascending id hashes of the read set.
        scanned_offset: the log was searched for them up to here before locking.
        conflict: and one was found.
    """

    read_offset: int
    hashes: Hashes
    scanned_offset: int
    conflict: bool


@dataclass(frozen=True, slots=True)
class Upload:
    """Where a payload went that is not stored inline."""

    intent_id: str
    object_key: str


@dataclass(frozen=True, slots=True, eq=False)
class Append:
    """One append, checked and ready for a group."""

    collection_id: str
    tenant: str
    epoch: int
    batch: Batch
    idempotency_key: str = ""
    check: Check | None = None
    upload: Upload | None = None

    @property
    def key(self) -> Key | None:
        """Under which its outcome is remembered."""
        return (self.tenant, self.collection_id, self.idempotency_key) if self.idempotency_key else None

    @property
    def cost_bytes(self) -> int:
        """What it adds to a transaction."""
        return self.batch.sorted_hashes.nbytes + (0 if self.upload else self.batch.size_bytes)


@dataclass(frozen=True, slots=True)
class Recorded:
    """The remembered outcome of an append with an idempotency key."""

    digest: bytes
    first_offset: int
    end_offset: int


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A batch in its place in the log. ``total_bytes`` and ``set_hash`` are cumulative, this entry included."""

    append: Append
    first_offset: int
    end_offset: int
    total_bytes: int
    set_hash: int


@dataclass(frozen=True, slots=True)
class Scanned:
    """The id hashes of an entry that came after a condition's scan."""

    end_offset: int
    hashes: Hashes


@dataclass(frozen=True, slots=True)
class Found:
    """What a transaction found under its locks. Collections that do not exist are absent from ``states``."""

    states: Mapping[str, LogState]
    recorded: Mapping[Key, Recorded] = field(default_factory=dict)
    scanned: Mapping[str, Sequence[Scanned]] = field(default_factory=dict)
    intents: frozenset[str] = frozenset()


Outcome: TypeAlias = Entry | Recorded | ShoalError


@dataclass(frozen=True, slots=True)
class Plan:
    """Outcomes in the order of the appends, and the collections as they will be."""

    outcomes: tuple[Outcome, ...]
    states: Mapping[str, LogState]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What is to be written."""
        return tuple(outcome for outcome in self.outcomes if isinstance(outcome, Entry))


def plan(appends: Sequence[Append], found: Found, settings: AppendSettings) -> Plan:
    """Decide a group in order of arrival; every append sees those ahead of it."""
    states = dict(found.states)
    recorded = dict(found.recorded)
    scanned = {collection_id: list(entries) for collection_id, entries in found.scanned.items()}
    outcomes: list[Outcome] = []
    for append in appends:
        state = states.get(append.collection_id)
        known = recorded.get(append.key) if append.key else None
        newer = scanned.setdefault(append.collection_id, [])
        outcome = decide(append, state, known, newer, found.intents, settings)
        outcomes.append(outcome)
        if state is None or not isinstance(outcome, Entry):
            continue
        states[append.collection_id] = after_append(state, outcome)
        newer.append(Scanned(outcome.end_offset, append.batch.sorted_hashes))
        if append.key:
            recorded[append.key] = Recorded(append.batch.checksum, outcome.first_offset, outcome.end_offset)
    return Plan(tuple(outcomes), states)


def decide(
    append: Append,
    state: LogState | None,
    known: Recorded | None,
    newer: Sequence[Scanned],
    intents: frozenset[str],
    settings: AppendSettings,
) -> Outcome:
    """The outcome of one append over a collection in ``state``. The remembered outcome of its key comes before anything."""
    if state is None or state.tenant != append.tenant:
        return NotFound(f"no collection {append.collection_id}", field="collection_id")
    if known is not None:
        return _replay(append, known)
    if not state.alive:
        return NotFound(f"collection {append.collection_id} was deleted", field="collection_id")
    if state.epoch != append.epoch:
        return StaleEpoch(f"epoch {append.epoch} is not {state.epoch}; look the collection up again", field="epoch")
    return (
        _dimension_error(append, state)
        or _back_pressure(append, state, settings)
        or _condition_error(append, state, newer)
        or _upload_error(append, intents, settings)
        or _place(append, state)
    )


def after_append(state: LogState, entry: Entry) -> LogState:
    """The collection once ``entry`` is written."""
    return replace(
        state,
        dimension=state.dimension if state.dimension is not None else entry.append.batch.dimension,
        head_offset=entry.end_offset,
        total_bytes=entry.total_bytes,
        set_hash=entry.set_hash,
    )


def add_to_set_hash(set_hash: int, first_offset: int, end_offset: int, checksum: bytes) -> int:
    """The set-hash with one more entry: a sum of 256-bit hashes, so it does not depend on their order."""
    element = first_offset.to_bytes(8, "little") + end_offset.to_bytes(8, "little") + checksum
    return (set_hash + int.from_bytes(hashlib.blake2b(element, digest_size=32).digest(), "little")) % (1 << 256)


def overlaps(wanted: Hashes, present: Hashes) -> bool:
    """Whether two ascending arrays have a value in common."""
    if len(wanted) == 0 or len(present) == 0:
        return False
    few, many = (wanted, present) if len(wanted) <= len(present) else (present, wanted)
    at = np.minimum(np.searchsorted(many, few), len(many) - 1)
    return bool(np.any(many[at] == few))


def _replay(append: Append, known: Recorded) -> Recorded | IdempotencyMismatch:
    if known.digest == append.batch.checksum:
        return known
    return IdempotencyMismatch("the key was used before with another payload; take a new one", field="idempotency_key")


def _dimension_error(append: Append, state: LogState) -> DimensionMismatch | None:
    given, wanted = append.batch.dimension, state.dimension
    if given is None or wanted is None or given == wanted:
        return None
    return DimensionMismatch(f"embeddings have dimension {given}, the collection has {wanted}", field="embeddings")


def _back_pressure(append: Append, state: LogState, settings: AppendSettings) -> BackPressure | None:
    size_bytes = state.total_bytes + append.batch.size_bytes - state.compacted_bytes
    records = state.head_offset + append.batch.rows - state.compacted_offset
    if size_bytes <= settings.uncompacted_size_bytes and records <= settings.uncompacted_records:
        return None
    return BackPressure(
        f"{records} records and {size_bytes} bytes would wait for compaction, the limits are "
        f"{settings.uncompacted_records} and {settings.uncompacted_size_bytes}; try again later",
        retry_after_ms=settings.backpressure_retry_ms,
    )


def _condition_error(append: Append, state: LogState, newer: Sequence[Scanned]) -> ShoalError | None:
    check = append.check
    if check is None:
        return None
    if check.read_offset > state.head_offset:
        return InvalidArgument(f"{check.read_offset} is above the head", field="condition.read_offset")
    if check.read_offset < state.trim_floor:
        return StaleRead(
            f"the log is kept from offset {state.trim_floor} on; read again", field="condition.read_offset"
        )
    since = (entry.hashes for entry in newer if entry.end_offset > check.scanned_offset)
    if check.conflict or any(overlaps(check.hashes, hashes) for hashes in since):
        return WriteConflict(f"a record of the read set was written after offset {check.read_offset}; read again")
    return None


def _upload_error(append: Append, intents: frozenset[str], settings: AppendSettings) -> UploadExpired | None:
    if append.upload is None or append.upload.intent_id in intents:
        return None
    return UploadExpired(f"the payload was uploaded more than {settings.max_upload_age_ms} ms ago; send it again")


def _place(append: Append, state: LogState) -> Entry:
    first, end = state.head_offset + 1, state.head_offset + append.batch.rows
    return Entry(
        append=append,
        first_offset=first,
        end_offset=end,
        total_bytes=state.total_bytes + append.batch.size_bytes,
        set_hash=add_to_set_hash(state.set_hash, first, end, append.batch.checksum),
    )
