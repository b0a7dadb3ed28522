"""The doors between the core and the world: small protocols with a real, an in-process and a simulated implementation.

`Clock` · `Random` · `ObjectStore` · `Registry`. The stores of sysdb and the log, and the services as seen by each other, are
in `contracts`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """Time. Core code has no other."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never goes back."""
        ...

    def time_ns(self) -> int:
        """Wall-clock nanoseconds since the epoch, for display, telemetry, and ages of days: no rule depends on it."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""
        ...


class Random(Protocol):
    """Randomness. Core code has no other."""

    def uniform(self) -> float:
        """A float in [0, 1)."""
        ...

    def token(self) -> bytes:
        """16 random bytes, for identifiers."""
        ...


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One listed object: its key, size and wall-clock age as the store sees it."""

    key: str
    size_bytes: int
    modified_ns: int


class ObjectStore(Protocol):
    """Immutable objects by key. A put returns only when the object is durable.

    Keys are slash-separated, relative, of ``[A-Za-z0-9._=-/]``. An object is never overwritten.
    """

    async def put(self, key: str, data: bytes | memoryview | Sequence[bytes | memoryview]) -> None:
        """Create ``key``. An identical object there already is success; another one raises `AlreadyExists`.

        Resolves an ambiguous put by reading back. Raises `Unavailable` when the store cannot be reached.
        """
        ...

    async def get(self, key: str) -> memoryview:
        """The whole object. Raises `NotFound`, `Unavailable`."""
        ...

    async def get_range(self, key: str, start: int, length: int) -> memoryview:
        """``length`` bytes from ``start``. Raises `NotFound`, `Unavailable`."""
        ...

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete; an absent key is success."""
        ...

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Objects whose key starts with ``prefix``, in key order."""
        ...


@dataclass(frozen=True, slots=True)
class Member:
    """One process in the registry.

    Attributes:
        role: ``frontend``, ``logservice``, ``querynode``, ``compactor`` or ``sysdb``.
        id: unique per process start.
        address: ``host:port`` of its gRPC server.
        weight: share of work relative to others; 1.0 by default.
    """

    role: str
    id: str
    address: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class MembershipView:
    """What is known of the members: the registry's revision and the members by role, each sorted by id.

    ``connected`` is False while the registry cannot be reached and this is the last known view.
    """

    revision: int
    members: Mapping[str, tuple[Member, ...]]
    connected: bool = True

    def of(self, role: str) -> tuple[Member, ...]:
        """Members of one role, sorted by id; empty if none."""
        return self.members.get(role, ())


class Registry(Protocol):
    """The member registry (etcd, or one process). Its data is disposable: members re-register by themselves."""

    async def register(self, member: Member) -> None:
        """Announce this process under a lease that is kept alive until `close`; re-registers when the lease was lost."""
        ...

    async def deregister(self) -> None:
        """Withdraw what `register` announced (at the start of a drain)."""
        ...

    def view(self) -> MembershipView:
        """The last known view; never blocks and never fails."""
        ...

    def subscribe(self, listener: Callable[[MembershipView], None]) -> Callable[[], None]:
        """Call ``listener`` with every later view; returns a function that ends it."""
        ...

    async def start(self) -> None:
        """Begin to watch; returns once a first view is known or the registry proves unreachable."""
        ...

    async def close(self) -> None:
        """Withdraw, stop watching, release connections."""
        ...
