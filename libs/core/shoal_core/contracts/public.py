"""The verbs of the public API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.consistency import STRONG, Consistency, VersionToken
from shoal_core.contracts.catalog import Collection, Database, Json, NewCollection, Tenant
from shoal_core.contracts.functions import AttachedFunction, NewFunction
from shoal_core.contracts.log import Condition
from shoal_core.contracts.query import Answer, CountAnswer, Include
from shoal_core.filters import Filter
from shoal_core.ranking import Search
from shoal_core.schema import Schema


@dataclass(frozen=True, slots=True)
class CollectionRef:
    """A collection as a user names it: by id or by name, within a tenant and database.

    Beside an id, a name only says what the collection must be called: under another name it is not found.
    """

    tenant: str
    database: str
    name: str = ""
    id: str = ""


class Outcome(IntEnum):
    """What became of one record of a batch. The numbers travel on the wire."""

    ADDED = 1
    EXISTED = 2  # an add of an id that was there: nothing was done
    UPDATED = 3
    MISSING = 4  # an update or delete of an id that was not there: nothing was done
    DELETED = 5


@dataclass(frozen=True, slots=True)
class WriteResult:
    """An accepted batch.

    Attributes:
        records: operations in the batch; of a delete by filter, the records that matched.
        outcomes: one byte per record, see `Outcome`, where asked for: from a look-up at the offset before the batch. None: accepted.
        read_offset: of a delete by filter, the snapshot at which the matches were found. None of them was written between it
            and the delete; a record that came to match after it stays.
    """

    token: VersionToken
    first_offset: int
    records: int
    outcomes: bytes | None = None
    read_offset: int | None = None


@dataclass(frozen=True, slots=True)
class IndexingStatus:
    """How far compaction is: all of the log up to ``head_offset``, indexed up to ``indexed_offset``.

    ``segments`` counts what the query nodes have loaded, which may be a moment behind ``version``.
    """

    head_offset: int
    indexed_offset: int
    version: int
    segments: int


class PublicApi(Protocol):
    """The verbs of the public API, as the SDK calls them; implemented by the frontend's `database` and by its gRPC client."""

    async def create_tenant(self, name: str) -> None: ...

    async def get_tenant(self, name: str) -> Tenant: ...

    async def name_tenant(self, name: str, resource_name: str) -> None: ...

    async def create_database(self, tenant: str, name: str) -> Database: ...

    async def get_database(self, tenant: str, name: str) -> Database: ...

    async def list_databases(self, tenant: str, *, limit: int = 100, offset: int = 0) -> list[Database]: ...

    async def delete_database(self, tenant: str, name: str) -> None: ...

    async def create_collection(
        self, new: NewCollection, *, get_or_create: bool = False
    ) -> tuple[Collection, bool]: ...

    async def get_collection(self, ref: CollectionRef) -> Collection: ...

    async def get_collection_by_resource_name(self, resource_name: str, database: str, name: str) -> Collection: ...

    async def list_collections(
        self, tenant: str, database: str, *, limit: int = 100, offset: int = 0
    ) -> list[Collection]: ...

    async def count_collections(self, tenant: str, database: str) -> int: ...

    async def modify_collection(
        self,
        ref: CollectionRef,
        *,
        name: str | None = None,
        metadata: Json | None = None,
        configuration: Json | None = None,
        schema: Schema | None = None,
    ) -> Collection: ...

    async def delete_collection(self, ref: CollectionRef) -> None: ...

    async def fork_collection(self, ref: CollectionRef, name: str) -> Collection: ...

    async def count_forks(self, ref: CollectionRef) -> int: ...

    async def write(
        self,
        ref: CollectionRef,
        batch: pa.RecordBatch,
        *,
        idempotency_key: str = "",
        condition: Condition | None = None,
        outcomes: bool = False,
    ) -> WriteResult:
        """Append one operation batch (see `records`), atomically.

        Args:
            condition: append only if none of these ids was written since; raises `WriteConflict`, `StaleRead`.
            outcomes: also say what became of each record.
        """
        ...

    async def delete_where(
        self,
        ref: CollectionRef,
        *,
        ids: Sequence[str] | None,
        where: Filter | None,
        limit: int | None = None,
        idempotency_key: str = "",
        allow_scan: bool = False,
    ) -> WriteResult:
        """Delete what matches at one strong snapshot (``read_offset``); records inserted after it stay. ``records`` says how many.

        Again with the key of a delete that happened, it finds nothing (``records`` is 0), or raises `IdempotencyMismatch` where
        other records have come to match since. More matches than one batch may have are `InvalidArgument` unless limited.
        """
        ...

    async def get(
        self,
        ref: CollectionRef,
        *,
        ids: Sequence[str] | None = None,
        where: Filter | None = None,
        limit: int | None = None,
        offset: int = 0,
        include: Include = Include(),
        consistency: Consistency = STRONG,
        explain: bool = False,
        allow_scan: bool = False,
        cursor: str | None = None,
    ) -> Answer:
        """Records by ids and filter, in order of creation.

        Args:
            allow_scan: a filter on a key whose index is off is answered by reading all records instead of refused.
            cursor: of the answer before, for the page after it; ``""`` for a first page whose answer shall have one. Pages come
                from one snapshot. ``offset`` and ``consistency`` apply to the first page only. Needs a limit.
        """
        ...

    async def query(
        self,
        ref: CollectionRef,
        vectors: npt.NDArray[np.float32],
        k: int,
        *,
        ids: Sequence[str] | None = None,
        where: Filter | None = None,
        include: Include = Include(),
        consistency: Consistency = STRONG,
        ef: int = 0,
        exact: bool = False,
        explain: bool = False,
        allow_scan: bool = False,
        texts: Sequence[str] | None = None,
        recall: float = 0.0,
    ) -> Answer:
        """The nearest of each vector, with the effort that the ``recall`` needs, 0 for the collection's, or with ``ef``.

        ``texts`` instead, with vectors of shape (0, 0): the server embeds them, if it is configured to. Raises
        `FailedPrecondition` if it is not.
        """
        ...

    async def search(
        self,
        ref: CollectionRef,
        searches: Sequence[Search],
        *,
        consistency: Consistency = STRONG,
        exact: bool = False,
        explain: bool = False,
        allow_scan: bool = False,
        recall: float = 0.0,
    ) -> list[Answer]:
        """One answer per search, all from one snapshot but for those with a cursor, which are of the cursor's.

        Rows carry ``score`` (float64) where it is selected.
        """
        ...

    async def count(
        self,
        ref: CollectionRef,
        *,
        where: Filter | None = None,
        consistency: Consistency = STRONG,
        explain: bool = False,
        allow_scan: bool = False,
    ) -> CountAnswer: ...

    async def indexing_status(self, ref: CollectionRef) -> IndexingStatus: ...

    async def reset(self) -> None:
        """Delete everything. Raises `PermissionDenied` where the configuration does not allow it."""
        ...

    async def attach_function(self, ref: CollectionRef, new: NewFunction) -> tuple[AttachedFunction, bool]:
        """Attach a function that follows the collection; its output collection is made beside it. See `Functions`."""
        ...

    async def get_function(self, ref: CollectionRef, name: str) -> AttachedFunction: ...

    async def detach_function(self, ref: CollectionRef, name: str, *, delete_output: bool = False) -> None:
        """End a function, and with ``delete_output`` its output collection too."""
        ...

    async def status(self) -> Json:
        """Members by role, collections with their lag, limits: for `shoal status`."""
        ...
