"""What the log service promises: ordered appends, the read index, tails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.consistency import VersionToken


@dataclass(frozen=True, slots=True)
class HashRange:
    """Id hashes ``start <= hash <= last`` of a shard, unsigned 64-bit, both ends included."""

    start: int
    last: int

    @property
    def is_everything(self) -> bool:
        """Whether every hash is in it."""
        return self.start == 0 and self.last == 2**64 - 1


def shard_range(shard: int, shards: int) -> HashRange:
    """The hash range of shard ``shard`` of ``shards``: equal parts of the 64-bit space, in order."""
    return HashRange((shard << 64) // shards, (((shard + 1) << 64) // shards) - 1)


EVERYTHING = shard_range(0, 1)


@dataclass(frozen=True, slots=True)
class Condition:
    """An optimistic write: fail with `WriteConflict` if any of these ids was written after ``read_offset``."""

    read_offset: int
    read_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AppendRequest:
    """One atomic batch.

    Attributes:
        payload: an operation batch as Arrow IPC (see `records.encode_batch`).
        idempotency_key: a retry with the same key returns the first outcome; empty for none.
    """

    collection_id: str
    epoch: int
    tenant: str
    payload: pa.Buffer
    idempotency_key: str = ""
    condition: Condition | None = None


@dataclass(frozen=True, slots=True)
class AppendResult:
    """Where the batch went: offsets ``first_offset..token.offset``. ``replayed``: an earlier try had already written it."""

    token: VersionToken
    first_offset: int
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Head:
    """The read index of one collection: head offset, catalog epoch and current version, all of one instant."""

    collection_id: str
    epoch: int
    incarnation: str
    head_offset: int
    version: int
    compacted_offset: int
    dimension: int | None


@dataclass(frozen=True, slots=True)
class TailRequest:
    """Ask for the head and the tail in one call.

    Attributes:
        epoch: the catalog epoch the caller believes in; 0 to skip the check (compactor).
        after_offset: entries after this offset; must be the end of a batch.
        up_to_offset: 0 for a fresh head; else entries up to this end of a batch, with no head looked up if it is known.
        hash_range: only records with an id hash in it.
    """

    collection_id: str
    epoch: int
    after_offset: int
    up_to_offset: int = 0
    hash_range: HashRange = EVERYTHING
    max_size_bytes: int = 32 << 20


@dataclass(frozen=True, slots=True)
class TailEntry:
    """One batch of the log, cut to the hash range.

    Attributes:
        first_offset, end_offset: of the whole batch.
        payload: operation batch as Arrow IPC; empty when no record of it is in the range.
        offsets: uint64 offset of each row of the payload; None when they are ``first_offset..end_offset``.
    """

    first_offset: int
    end_offset: int
    payload: pa.Buffer
    offsets: npt.NDArray[np.uint64] | None = None


@dataclass(frozen=True, slots=True)
class Tail:
    """The head and the entries after the offset asked for, in order, without gaps, up to ``through_offset``.

    ``through_offset`` is below the head when ``max_size_bytes`` was reached: ask again from there.
    """

    head: Head
    entries: tuple[TailEntry, ...]
    through_offset: int


class Log(Protocol):
    """logservice."""

    async def append(self, request: AppendRequest) -> AppendResult:
        """Durable when it returns.

        Raises `StaleEpoch`, `NotFound`, `DimensionMismatch`, `WriteConflict`, `StaleRead`, `IdempotencyMismatch`,
        `BackPressure`, `Unavailable` (nothing written), `OutcomeUnknown`.
        """
        ...

    async def read_index(self, collection_id: str, epoch: int) -> Head:
        """The head of an instant after the call began. Raises `StaleEpoch`, `NotFound`, `Unavailable`."""
        ...

    async def read_tail(self, request: TailRequest) -> Tail:
        """Raises `StaleEpoch`, `NotFound`, `OffsetExpired`, `Unavailable`."""
        ...
