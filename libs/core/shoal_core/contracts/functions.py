"""What sysdb promises of attached functions: what computes something of one collection and writes it into another.

A function lives as long as its input and its output collection do: deleting either ends it. The output collection is made when the
function is attached, in the database of the input, and belongs to no other function; it cannot be an input, so there are no chains
and no cycles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from shoal_core.contracts.catalog import Json, Lease

RECORD_COUNTER = "record_counter"
STATISTICS = "statistics"
FUNCTIONS = (RECORD_COUNTER, STATISTICS)

#: The kind of lease under which the functions of an input collection run.
FUNCTIONS_LEASE = "functions"


@dataclass(frozen=True, slots=True)
class NewFunction:
    """What a function is attached with.

    Attributes:
        name: unique among those of the input collection.
        function: one of `FUNCTIONS`.
        output_collection: the name of the collection that is made for what it writes.
        params: of the function; those that there are take none.
    """

    name: str
    function: str
    output_collection: str
    params: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AttachedFunction:
    """A function as the catalog knows it.

    Attributes:
        id: UUID text. database_id: that of the database of both collections.
        output_collection: the name that the output collection has now.
        completion_offset: the output covers the input's log up to here, or is about to.
        failures: runs in a row that failed; ``last_error`` says why the last of them did.
    """

    id: str
    name: str
    function: str
    tenant: str
    database: str
    database_id: str
    input_collection_id: str
    output_collection_id: str
    output_collection: str
    params: Mapping[str, Any]
    completion_offset: int = 0
    failures: int = 0
    last_error: str = ""


@dataclass(frozen=True, slots=True)
class DueFunction:
    """A function that is behind its input. ``overdue_ms``: since when, by the database's clock."""

    function: AttachedFunction
    compacted_offset: int
    overdue_ms: int


class Functions(Protocol):
    """sysdb: attached functions. Names and sizes are checked by the frontend; what depends on others is checked here."""

    async def attach_function(
        self, collection_id: str, new: NewFunction, *, limit: int
    ) -> tuple[AttachedFunction, bool]:
        """Attach a function and make its output collection, in one transaction; whether this call did it.

        Attaching the same again returns what is there.

        Args:
            limit: functions that a collection may have.

        Raises:
            NotFound: the input collection, or the kind of function.
            AlreadyExists: the name has another function (field ``name``), or there is such a collection
                (field ``output_collection``).
            InvalidArgument: the input collection is the output of a function.
            FailedPrecondition: the collection has ``limit`` functions.
        """
        ...

    async def get_function(self, collection_id: str, name: str) -> AttachedFunction:
        """Raises `NotFound`."""
        ...

    async def detach_function(self, collection_id: str, name: str) -> None:
        """End it and leave its output collection, an ordinary one from then on. A run under way may still write once.

        Raises `NotFound`.
        """
        ...

    async def due_functions(self, *, limit: int, skip: int = 0) -> list[DueFunction]:
        """Functions whose input is compacted beyond what they cover, least recently run first. Those that failed wait.

        ``skip``: so many of them, which an earlier page had.
        """
        ...

    async def complete_function(self, lease: Lease, function_id: str, offset: int) -> None:
        """Record that the output covers the input up to ``offset``; it never goes back. Failures are forgotten.

        Raises `Fenced`, `NotFound`.
        """
        ...

    async def fail_function(
        self, lease: Lease, function_id: str, error: str, *, retry_ms: int, longest_retry_ms: int
    ) -> None:
        """Record that a run failed. It is not due again for ``retry_ms``, twice as long after each further failure.

        Raises `Fenced`, `NotFound`.
        """
        ...
