"""`Functions` over the sysdb members; see `routed_catalog`."""

from __future__ import annotations

from dataclasses import dataclass

from shoal_cluster.routing import Router, is_transient, nothing_happened
from shoal_core.contracts import AttachedFunction, DueFunction, Functions, Lease, NewFunction


@dataclass(frozen=True, slots=True)
class RoutedFunctions:
    """See the module and `Functions`."""

    router: Router[Functions]

    async def attach_function(
        self, collection_id: str, new: NewFunction, *, limit: int
    ) -> tuple[AttachedFunction, bool]:
        """See `Functions`. Attaching again finds what a try before attached."""
        return await self.router.call(
            collection_id,
            lambda functions: functions.attach_function(collection_id, new, limit=limit),
            retryable=is_transient,
        )

    async def get_function(self, collection_id: str, name: str) -> AttachedFunction:
        return await self.router.call(
            collection_id, lambda functions: functions.get_function(collection_id, name), retryable=is_transient
        )

    async def detach_function(self, collection_id: str, name: str) -> None:
        await self.router.call(
            collection_id, lambda functions: functions.detach_function(collection_id, name), retryable=nothing_happened
        )

    async def due_functions(self, *, limit: int, skip: int = 0) -> list[DueFunction]:
        return await self.router.call(
            "functions", lambda functions: functions.due_functions(limit=limit, skip=skip), retryable=is_transient
        )

    async def complete_function(self, lease: Lease, function_id: str, offset: int) -> None:
        await self.router.call(
            lease.collection_id,
            lambda functions: functions.complete_function(lease, function_id, offset),
            retryable=is_transient,
        )

    async def fail_function(
        self, lease: Lease, function_id: str, error: str, *, retry_ms: int, longest_retry_ms: int
    ) -> None:
        await self.router.call(
            lease.collection_id,
            lambda functions: functions.fail_function(
                lease, function_id, error, retry_ms=retry_ms, longest_retry_ms=longest_retry_ms
            ),
            retryable=nothing_happened,
        )
