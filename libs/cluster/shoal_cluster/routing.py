"""Routing: the services' contracts over whichever members the registry knows.

Any member of a role gives a correct answer; the assignment policy only says who answers best. So a call goes to the preferred members
first and, when they fail, to the others, until its deadline.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from shoal_cluster.assignment import AssignmentPolicy, log_key, query_key
from shoal_cluster.calls import Deadline, RetryPolicy, call_replicas, call_with_retry
from shoal_cluster.latency import LatencyTracker
from shoal_core.contracts import (
    Answer,
    AppendRequest,
    AppendResult,
    CountAnswer,
    CountRequest,
    EncodedAnswer,
    GetRequest,
    Head,
    Log,
    QueryNode,
    QueryRequest,
    SearchRequest,
    StatisticsAnswer,
    StatisticsRequest,
    Tail,
    TailRequest,
    Target,
)
from shoal_core.errors import OutcomeUnknown, ResourceExhausted, ShoalError, Unavailable
from shoal_core.ports import Clock, Member, Random, Registry

S = TypeVar("S")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class RoutingSettings:
    """How calls are routed.

    Attributes:
        timeout_ms: of a whole call, all tries included.
        attempt_timeout_ms: of one try.
        replicas: members preferred for a shard's queries.
        hedge: whether a slow query node is raced by a second one: beyond ``hedge_percentile`` of its latencies, but never before
            ``hedge_min_ms``.
        retry: between rounds over all members, which go on until the deadline.
    """

    timeout_ms: float = 30_000
    attempt_timeout_ms: float = 10_000
    replicas: int = 2
    hedge: bool = True
    hedge_percentile: float = 0.95
    hedge_min_ms: float = 10
    retry: RetryPolicy = RetryPolicy(max_attempts=1_000, initial_backoff_ms=20, max_backoff_ms=500)


@dataclass(slots=True)
class Router(Generic[S]):
    """Calls of one role. ``client_of`` returns a client of one member; it is kept by its maker."""

    role: str
    registry: Registry
    policy: AssignmentPolicy
    client_of: Callable[[Member], S]
    clock: Clock
    random: Random
    settings: RoutingSettings = field(default_factory=RoutingSettings)
    latencies: LatencyTracker = field(default_factory=LatencyTracker)

    def candidates(self, key: str, preferred: int) -> Sequence[Member]:
        """All members of the role: the preferred ones by latency, then the rest in the policy's order."""
        members = self.registry.view().of(self.role)
        if not members:
            return ()
        ranked = self.policy.assign(key, members, len(members))
        first = self.latencies.order(ranked[:preferred], lambda member: member.id, self.clock.monotonic())
        return (*first, *ranked[preferred:])

    def _hedge_after_ms(self, member: Member) -> float:
        settings = self.settings
        return self.latencies.hedge_after_ms(
            member.id, quantile=settings.hedge_percentile, floor_ms=settings.hedge_min_ms
        )

    async def call(
        self,
        key: str,
        operation: Callable[[S], Awaitable[R]],
        *,
        preferred: int = 1,
        hedge: bool = False,
        retryable: Callable[[ShoalError], bool],
    ) -> R:
        """Try the candidates in order, round after round, until one answers or the deadline passes.

        Raises the first error that is not retryable, or `DeadlineExceeded`.
        """
        deadline = Deadline.after(self.clock, self.settings.timeout_ms)

        async def round_() -> R:
            members = self.candidates(key, preferred)
            if not members:
                raise Unavailable(f"no {self.role} is registered; start one or wait for it")
            hedge_after = self._hedge_after_ms(members[0]) if hedge and len(members) > 1 else None
            return await call_replicas(
                members,
                lambda member: operation(self.client_of(member)),
                hedge_after_ms=hedge_after,
                attempt_timeout_ms=self.settings.attempt_timeout_ms,
                clock=self.clock,
                deadline=deadline,
                retryable=retryable,
                on_result=lambda member, ms, ok: self.latencies.record(member.id, ms, ok, self.clock.monotonic()),
            )

        return await call_with_retry(
            round_,
            policy=self.settings.retry,
            clock=self.clock,
            random=self.random,
            deadline=deadline,
            retryable=retryable,
            keeps_deadline=True,  # `call_replicas` does
        )


def is_transient(error: ShoalError) -> bool:
    """Whether another member, or the same one later, may do better. For calls that may be repeated."""
    return isinstance(error, Unavailable | OutcomeUnknown) or type(error) is ResourceExhausted


def nothing_happened(error: ShoalError) -> bool:
    """Whether a call that must not happen twice is known not to have happened."""
    return isinstance(error, Unavailable)


@dataclass(frozen=True, slots=True)
class RoutedLog:
    """`Log` over the logservice members: a collection's own node first."""

    router: Router[Log]

    async def append(self, request: AppendRequest) -> AppendResult:
        """See `Log`. Only a request with an idempotency key is repeated when its outcome is unknown."""
        retryable = is_transient if request.idempotency_key else nothing_happened
        key = log_key(request.collection_id)
        return await self.router.call(key, lambda log: log.append(request), retryable=retryable)

    async def read_index(self, collection_id: str, epoch: int) -> Head:
        """See `Log`."""
        key = log_key(collection_id)
        return await self.router.call(key, lambda log: log.read_index(collection_id, epoch), retryable=is_transient)

    async def read_tail(self, request: TailRequest) -> Tail:
        """See `Log`."""
        key = log_key(request.collection_id)
        return await self.router.call(key, lambda log: log.read_tail(request), retryable=is_transient)


@dataclass(frozen=True, slots=True)
class RoutedQueryNodes:
    """`QueryNode` over the querynode members: a shard's replicas first, hedged; then anybody."""

    router: Router[QueryNode]

    async def get(self, request: GetRequest, *, encoded: bool = False) -> Answer | EncodedAnswer:
        """See `QueryNode`."""
        return await self._call(request.target, lambda node: node.get(request, encoded=encoded))

    async def query(self, request: QueryRequest, *, encoded: bool = False) -> Answer | EncodedAnswer:
        """See `QueryNode`."""
        return await self._call(request.target, lambda node: node.query(request, encoded=encoded))

    async def count(self, request: CountRequest) -> CountAnswer:
        """See `QueryNode`."""
        return await self._call(request.target, lambda node: node.count(request))

    async def search(self, request: SearchRequest) -> Answer:
        """See `QueryNode`."""
        return await self._call(request.target, lambda node: node.search(request))

    async def statistics(self, request: StatisticsRequest) -> StatisticsAnswer:
        """See `QueryNode`."""
        return await self._call(request.target, lambda node: node.statistics(request))

    async def _call(self, target: Target, operation: Callable[[QueryNode], Awaitable[R]]) -> R:
        settings = self.router.settings
        key = query_key(target.collection_id, target.shard)
        return await self.router.call(
            key, operation, preferred=settings.replicas, hedge=settings.hedge, retryable=is_transient
        )
