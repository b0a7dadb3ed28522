"""Routing in virtual time: who is called, in which order, for how long, and what is never called twice."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest

from shoal_cluster.assignment import ModuloPolicy, RendezvousPolicy, log_key, query_key
from shoal_cluster.membership import membership_view
from shoal_cluster.routed_catalog import RoutedCatalog
from shoal_cluster.routed_functions import RoutedFunctions
from shoal_cluster.routing import RoutedLog, RoutedQueryNodes, Router, RoutingSettings, is_transient, nothing_happened
from shoal_core.consistency import ServedAt, VersionToken
from shoal_core.contracts import (
    AppendRequest,
    AppendResult,
    CountAnswer,
    CountRequest,
    GetRequest,
    Lease,
    NewFunction,
    SearchRequest,
    StatisticsRequest,
    TailRequest,
    Target,
)
from shoal_core.errors import (
    BackPressure,
    DeadlineExceeded,
    Internal,
    NotFound,
    OutcomeUnknown,
    ResourceExhausted,
    ShoalError,
    SnapshotGone,
    StaleEpoch,
    Unavailable,
    WriteConflict,
)
from shoal_core.ports import Member, MembershipView
from shoal_core.schema import Bm25, Schema
from shoal_testing.virtual_clock import SeededRandom, VirtualClock

ROLE = "querynode"
KEY = query_key("c", 0)
SETTINGS = RoutingSettings(timeout_ms=1_000, attempt_timeout_ms=200)


class Members:
    """A registry whose view the test sets."""

    def __init__(self, *members: Member) -> None:
        self.members = list(members)

    def view(self) -> MembershipView:
        return membership_view(1, self.members)

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"routing needs the view, not {name}")


Behaviour = Callable[[], Awaitable[str]]


@dataclass
class World:
    """Members, how each answers, and who was called when."""

    clock: VirtualClock = field(default_factory=VirtualClock)
    registry: Members = field(default_factory=Members)
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    calls: list[tuple[str, float]] = field(default_factory=list)
    running: int = 0

    def router(self, settings: RoutingSettings = SETTINGS, *, role: str = ROLE) -> Router[Any]:
        registry: Any = self.registry
        return Router(role, registry, RendezvousPolicy(), self.client, self.clock, SeededRandom(), settings)

    def add(self, *names: str, role: str = ROLE, weight: float = 1.0) -> None:
        self.registry.members += [Member(role, name, f"{name}:1", weight) for name in names]

    def client(self, member: Member) -> Any:
        return Client(self, member.id)

    async def ask(self, name: str) -> str:
        """What a member does when called."""
        self.calls.append((name, round(self.clock.monotonic() * 1000)))
        self.running += 1
        try:
            return await self.behaviours.get(name, self.answer(name))()
        finally:
            self.running -= 1

    def answer(self, name: str, after_ms: float = 0) -> Behaviour:
        async def answer() -> str:
            await self.clock.sleep(after_ms / 1000)
            return name

        return answer

    def fail(self, error: ShoalError, after_ms: float = 0) -> Behaviour:
        async def fail() -> str:
            await self.clock.sleep(after_ms / 1000)
            raise error

        return fail

    @property
    def called(self) -> list[str]:
        return [name for name, _ in self.calls]

    def order(self, key: str = KEY) -> list[str]:
        """The policy's order of preference."""
        members = self.registry.view().of(ROLE)
        return [member.id for member in RendezvousPolicy().assign(key, members, len(members))]

    async def call(self, router: Router[Any] | None = None, **fields: Any) -> str:
        routed = router or self.router()
        return await self.clock.run(
            routed.call(KEY, lambda client: client.ask(), **({"retryable": is_transient} | fields))
        )


@dataclass
class Client:
    """A client of one member for every contract used here."""

    world: World
    name: str

    async def ask(self) -> str:
        return await self.world.ask(self.name)

    async def append(self, request: AppendRequest) -> AppendResult:
        return AppendResult(VersionToken(await self.world.ask(self.name), "i", 1), 1)

    async def read_index(self, collection_id: str, epoch: int) -> Any:
        return await self.world.ask(self.name)

    async def read_tail(self, request: TailRequest) -> Any:
        return await self.world.ask(self.name)

    async def get(self, request: GetRequest, *, encoded: bool = False) -> Any:
        return (await self.world.ask(self.name), encoded)

    async def query(self, request: Any, *, encoded: bool = False) -> Any:
        return (await self.world.ask(self.name), encoded)

    async def count(self, request: CountRequest) -> CountAnswer:
        await self.world.ask(self.name)
        return CountAnswer(1, ServedAt(1, 1))

    async def search(self, request: SearchRequest) -> Any:
        return (await self.world.ask(self.name), request)

    async def statistics(self, request: StatisticsRequest) -> Any:
        return (await self.world.ask(self.name), request)

    async def version_at(self, collection_id: str, offset: int) -> Any:
        return (await self.world.ask(self.name), collection_id, offset)

    async def modify_collection(self, collection_id: str, **changes: Any) -> Any:
        return (await self.world.ask(self.name), collection_id, changes)

    async def attach_function(self, *args: Any, **more: Any) -> Any:
        return (await self.world.ask(self.name), args, more)

    get_function = detach_function = due_functions = complete_function = fail_function = attach_function


@pytest.fixture
def world() -> World:
    made = World()
    made.add(*(f"node-{n}" for n in range(4)))
    return made


# --- order


async def test_the_preferred_member_is_called_and_nobody_else(world: World) -> None:
    assert await world.call() == world.order()[0]
    assert len(world.calls) == 1


async def test_keys_spread_over_members_and_stay(world: World) -> None:
    router = world.router()
    firsts = {key: router.candidates(key, 1)[0].id for key in (query_key("c", shard) for shard in range(50))}
    assert set(firsts.values()) == {f"node-{n}" for n in range(4)}
    world.registry.members = [member for member in world.registry.members if member.id != "node-2"]
    for key, first in firsts.items():
        if first != "node-2":
            assert router.candidates(key, 1)[0].id == first


async def test_all_members_are_candidates_the_preferred_by_latency(world: World) -> None:
    router = world.router()
    order = world.order()
    assert [member.id for member in router.candidates(KEY, 2)] == order
    for _ in range(5):
        router.latencies.record(order[0], 100, True, world.clock.monotonic())
        router.latencies.record(order[1], 5, True, world.clock.monotonic())
    assert [member.id for member in router.candidates(KEY, 2)] == [order[1], order[0], *order[2:]]
    assert [member.id for member in router.candidates(KEY, 1)] == order, "a log has one owner, however slow"
    await world.clock.advance(60)
    assert [member.id for member in router.candidates(KEY, 2)] == order, "old latencies say nothing"


async def test_members_of_other_roles_and_without_weight_are_no_candidates(world: World) -> None:
    world.add("other", role="logservice")
    world.add("drained", weight=0.0)
    names = {member.id for member in world.router().candidates(KEY, 2)}
    assert names == {f"node-{n}" for n in range(4)}


async def test_another_policy_may_be_used(world: World) -> None:
    router = world.router()
    router.policy = ModuloPolicy()
    assert sorted(member.id for member in router.candidates(KEY, 2)) == sorted(world.order())


# --- failover


async def test_a_failure_goes_to_the_next_at_once(world: World) -> None:
    order = world.order()
    for name in order[:3]:
        world.behaviours[name] = world.fail(Unavailable("down"))
    assert await world.call() == order[3]
    assert world.calls == [(name, 0) for name in order]


async def test_a_member_that_hangs_is_left_after_its_time(world: World) -> None:
    order = world.order()
    world.behaviours[order[0]] = world.answer(order[0], after_ms=10**9)
    assert await world.call() == order[1]
    assert world.calls == [(order[0], 0), (order[1], 200)]
    assert world.running == 0, "the call that was given up is cancelled"


@pytest.mark.parametrize(
    "error", [NotFound, StaleEpoch, WriteConflict, BackPressure, SnapshotGone, Internal, DeadlineExceeded]
)
async def test_an_error_that_another_member_would_give_too_is_raised(world: World, error: type[ShoalError]) -> None:
    first = world.order()[0]
    world.behaviours[first] = world.fail(error("no"))
    with pytest.raises(error, match="no"):
        await world.call()
    assert world.called == [first]


@pytest.mark.parametrize("error", [Unavailable, OutcomeUnknown, ResourceExhausted])
async def test_an_error_of_the_moment_is_tried_elsewhere(world: World, error: type[ShoalError]) -> None:
    order = world.order()
    world.behaviours[order[0]] = world.fail(error("busy"))
    assert await world.call() == order[1]


def test_what_may_be_repeated() -> None:
    assert [is_transient(error("")) for error in (Unavailable, OutcomeUnknown, ResourceExhausted)] == [True] * 3
    assert [is_transient(error("")) for error in (BackPressure, SnapshotGone, DeadlineExceeded)] == [False] * 3
    assert nothing_happened(Unavailable(""))
    assert [nothing_happened(error("")) for error in (OutcomeUnknown, ResourceExhausted, BackPressure)] == [False] * 3


# --- rounds


async def test_rounds_go_on_until_the_deadline(world: World) -> None:
    for name in world.order():
        world.behaviours[name] = world.fail(Unavailable(f"{name} is down"))
    with pytest.raises(DeadlineExceeded, match="is down"):
        await world.call()
    assert world.clock.monotonic() <= 1.0
    rounds = [world.called[n : n + 4] for n in range(0, len(world.called), 4)]
    assert len(rounds) >= 4
    assert all(sorted(names) == sorted(world.order()) for names in rounds)
    starts = [at for _, at in world.calls][::4]
    pauses = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert all(pause > 0 for pause in pauses), "there is a pause between rounds"
    assert max(pauses) <= 500


async def test_the_deadline_ends_a_call_that_hangs(world: World) -> None:
    for name in world.order():
        world.behaviours[name] = world.answer(name, after_ms=10**9)
    with pytest.raises(DeadlineExceeded):
        await world.call()
    assert world.clock.monotonic() == pytest.approx(1.0)
    assert world.running == 0


async def test_a_member_that_recovers_is_found_in_a_later_round(world: World) -> None:
    for name in world.order():
        world.behaviours[name] = world.fail(Unavailable("down"))

    async def recover() -> None:
        await world.clock.sleep(0.3)
        world.behaviours.clear()

    async def both() -> str:
        task = asyncio.ensure_future(recover())
        answer = await world.router().call(KEY, lambda client: client.ask(), retryable=is_transient)
        await task
        return str(answer)

    assert await world.clock.run(both()) == world.order()[0]
    assert 0.3 <= world.clock.monotonic() < 1.0


# --- members that come and go


@pytest.mark.parametrize("weightless", [False, True])
async def test_members_that_join_during_the_call(weightless: bool) -> None:

    world = World()
    if weightless:
        world.add("drained", weight=0.0)

    async def join() -> None:
        await world.clock.sleep(0.4)
        world.add("late")

    async def both() -> str:
        task = asyncio.ensure_future(join())
        answer = await world.router().call(KEY, lambda client: client.ask(), retryable=is_transient)
        await task
        return str(answer)

    assert await world.clock.run(both()) == "late"


@pytest.mark.parametrize("retryable", [is_transient, nothing_happened])
async def test_without_members_the_call_says_so(retryable: Callable[[ShoalError], bool]) -> None:
    world = World()
    world.add("other", role="logservice")
    with pytest.raises(DeadlineExceeded, match="no querynode is registered"):
        await world.call(retryable=retryable)


async def test_a_member_that_left_is_not_called_in_the_next_round(world: World) -> None:
    order = world.order()
    for name in order:
        world.behaviours[name] = world.fail(Unavailable("down"))

    async def leave() -> str:
        world.registry.members = [member for member in world.registry.members if member.id == order[3]]
        world.behaviours[order[3]] = world.answer(order[3])
        raise Unavailable("leaving")

    world.behaviours[order[3]] = leave
    assert await world.call() == order[3]
    assert world.called == [*order, order[3]]


# --- hedging


async def test_a_slow_replica_is_hedged_and_the_loser_cancelled(world: World) -> None:
    order = world.order()
    router = world.router()
    for _ in range(32):
        router.latencies.record(order[0], 20, True, world.clock.monotonic())
    world.behaviours[order[0]] = world.answer(order[0], after_ms=150)
    world.behaviours[order[1]] = world.answer(order[1], after_ms=10)
    assert await world.call(router, preferred=2, hedge=True) == order[1]
    assert world.calls == [(order[0], 0), (order[1], 20)]
    assert world.clock.monotonic() == pytest.approx(0.03)
    assert world.running == 0


async def test_a_hedge_that_fails_leaves_the_first_call_alone(world: World) -> None:
    order = world.order()
    router = world.router()
    for _ in range(32):
        router.latencies.record(order[0], 20, True, world.clock.monotonic())
    world.behaviours[order[0]] = world.answer(order[0], after_ms=150)
    world.behaviours[order[1]] = world.fail(Unavailable("down"))
    assert await world.call(router, preferred=2, hedge=True) in (order[0], order[2])
    assert world.running == 0


@pytest.mark.parametrize("count", [1, 4])
async def test_no_hedge_where_there_is_nobody_or_none_is_wanted(count: int) -> None:
    world = World()
    world.add(*(f"node-{n}" for n in range(count)))
    first = world.order()[0]
    router = world.router()
    for _ in range(32):
        router.latencies.record(first, 1, True, world.clock.monotonic())
    world.behaviours[first] = world.answer(first, after_ms=150)
    assert await world.call(router, hedge=count == 1) == first
    assert world.called == [first]


async def test_latencies_are_learned_from_calls(world: World) -> None:
    order = world.order()
    router = world.router()
    world.behaviours[order[0]] = world.answer(order[0], after_ms=80)
    for _ in range(3):
        await world.call(router, preferred=2)
    assert router.latencies.ewma_ms(order[0], world.clock.monotonic()) == pytest.approx(80)
    world.behaviours[order[0]] = world.fail(Unavailable("down"))
    await world.call(router, preferred=2)
    world.calls.clear()
    assert await world.call(router, preferred=2) == order[1]
    assert world.called == [order[1]], "after a failure the other replica comes first"


# --- the log


def appending(key: str = "") -> AppendRequest:
    return AppendRequest("c", 1, "t", pa.py_buffer(b"payload"), key)


@pytest.fixture
def log_world() -> World:
    made = World()
    made.add(*(f"log-{n}" for n in range(3)), role="logservice")
    return made


def log_order(world: World) -> list[str]:
    members = world.registry.view().of("logservice")
    return [member.id for member in RendezvousPolicy().assign(log_key("c"), members, len(members))]


async def append(world: World, key: str) -> str:
    log = RoutedLog(world.router(role="logservice"))
    return (await world.clock.run(log.append(appending(key)))).token.collection_id


async def test_appends_go_to_the_collections_own_node(log_world: World) -> None:
    assert await append(log_world, "") == log_order(log_world)[0]


async def test_an_append_without_a_key_is_not_repeated_when_its_outcome_is_unknown(log_world: World) -> None:
    order = log_order(log_world)
    log_world.behaviours[order[0]] = log_world.fail(OutcomeUnknown("the connection broke"))
    with pytest.raises(OutcomeUnknown):
        await append(log_world, "")
    assert log_world.called == [order[0]]


async def test_an_append_with_a_key_is_repeated_when_its_outcome_is_unknown(log_world: World) -> None:
    order = log_order(log_world)
    log_world.behaviours[order[0]] = log_world.fail(OutcomeUnknown("the connection broke"))
    assert await append(log_world, "key") == order[1]


@pytest.mark.parametrize("key", ["", "key"])
async def test_an_append_that_did_not_happen_is_repeated(log_world: World, key: str) -> None:
    order = log_order(log_world)
    log_world.behaviours[order[0]] = log_world.fail(Unavailable("nothing was written"))
    assert await append(log_world, key) == order[1]


@pytest.mark.parametrize("error", [ResourceExhausted, BackPressure, WriteConflict])
async def test_a_refused_append_without_a_key_is_not_repeated(log_world: World, error: type[ShoalError]) -> None:
    order = log_order(log_world)
    log_world.behaviours[order[0]] = log_world.fail(error("no"))
    with pytest.raises(error):
        await append(log_world, "")
    assert log_world.called == [order[0]]


async def test_an_append_with_a_key_that_takes_too_long_is_tried_elsewhere(log_world: World) -> None:
    order = log_order(log_world)
    log_world.behaviours[order[0]] = log_world.answer(order[0], after_ms=10**9)
    assert await append(log_world, "key") == order[1]


async def test_an_append_without_a_key_that_takes_too_long_is_not_repeated(log_world: World) -> None:
    order = log_order(log_world)
    log_world.behaviours[order[0]] = log_world.answer(order[0], after_ms=10**9)
    with pytest.raises((OutcomeUnknown, DeadlineExceeded)):
        await append(log_world, "")
    assert log_world.called == [order[0]], "it may have been written"


async def test_reads_of_the_log_may_be_repeated(log_world: World) -> None:
    order = log_order(log_world)
    log_world.behaviours[order[0]] = log_world.fail(OutcomeUnknown("the connection broke"))
    log: Any = RoutedLog(log_world.router(role="logservice"))
    assert await log_world.clock.run(log.read_index("c", 1)) == order[1]
    assert await log_world.clock.run(log.read_tail(TailRequest("c", 1, 0))) == order[1]


# --- query nodes


async def test_queries_go_to_the_replicas_of_their_shard(world: World) -> None:
    nodes: Any = RoutedQueryNodes(world.router())
    for shard in range(8):
        target = Target("c", 1, "l2", shard, 8)
        first = world.order(query_key("c", shard))[0]
        assert await world.clock.run(nodes.get(GetRequest(target), encoded=True)) == (first, True)
        assert (await world.clock.run(nodes.count(CountRequest(target)))).count == 1
        assert world.called[-2:] == [first, first]


async def test_queries_fail_over_beyond_their_replicas(world: World) -> None:
    order = world.order()
    for name in order[:3]:
        world.behaviours[name] = world.fail(Unavailable("down"))
    nodes: Any = RoutedQueryNodes(world.router())
    assert await world.clock.run(nodes.get(GetRequest(Target("c", 1, "l2", 0, 1)))) == (order[3], False)


@pytest.mark.parametrize("error", [SnapshotGone, StaleEpoch, NotFound])
async def test_what_the_frontend_must_decide_is_not_retried(world: World, error: type[ShoalError]) -> None:
    order = world.order()
    world.behaviours[order[0]] = world.fail(error("decide"))
    nodes: Any = RoutedQueryNodes(world.router())
    with pytest.raises(error):
        await world.clock.run(nodes.count(CountRequest(Target("c", 1, "l2", 0, 1))))
    assert world.called == [order[0]]


TARGET = Target("c", 1, "l2", 0, 1)
SEARCH_CALLS = [("search", SearchRequest(TARGET, (), 5)), ("statistics", StatisticsRequest(TARGET, (), 5))]


@pytest.mark.parametrize(("method", "request_"), SEARCH_CALLS)
async def test_parts_of_a_search_fail_over_beyond_their_replicas(world: World, method: str, request_: Any) -> None:
    order = world.order()
    for name in order[:3]:
        world.behaviours[name] = world.fail(Unavailable("down"))
    nodes: Any = RoutedQueryNodes(world.router())
    assert await world.clock.run(getattr(nodes, method)(request_)) == (order[3], request_)


@pytest.mark.parametrize(("method", "request_"), SEARCH_CALLS)
async def test_parts_of_a_search_are_hedged(world: World, method: str, request_: Any) -> None:
    order = world.order()
    router = world.router()
    for name in order[:2]:
        for _ in range(32):
            router.latencies.record(name, 20, True, world.clock.monotonic())
    world.behaviours[order[0]] = world.answer(order[0], after_ms=150)
    world.behaviours[order[1]] = world.answer(order[1], after_ms=10)
    nodes: Any = RoutedQueryNodes(router)
    assert await world.clock.run(getattr(nodes, method)(request_)) == (order[1], request_)
    assert world.calls == [(order[0], 0), (order[1], 20)]


# --- the catalog


def catalog_world() -> tuple[World, list[str]]:
    made = World()
    made.add(*(f"sysdb-{n}" for n in range(3)), role="sysdb")
    members = made.registry.view().of("sysdb")
    return made, [member.id for member in RendezvousPolicy().assign("c", members, len(members))]


async def test_the_version_at_an_offset_may_be_asked_for_again() -> None:
    world, order = catalog_world()
    world.behaviours[order[0]] = world.fail(OutcomeUnknown("the connection broke"))
    catalog: Any = RoutedCatalog(world.router(role="sysdb"))
    assert await world.clock.run(catalog.version_at("c", 7)) == (order[1], "c", 7)


async def test_a_schema_is_passed_on_and_changed_once() -> None:
    world, order = catalog_world()
    catalog: Any = RoutedCatalog(world.router(role="sysdb"))
    schema = Schema(bm25=Bm25(k1=2.0))
    changes = {"name": None, "metadata": None, "configuration": None, "schema": schema}
    assert await world.clock.run(catalog.modify_collection("c", schema=schema)) == (order[0], "c", changes)
    world.behaviours[order[0]] = world.fail(OutcomeUnknown("the connection broke"))
    with pytest.raises(OutcomeUnknown):
        await world.clock.run(catalog.modify_collection("c", schema=schema))
    assert world.called == [order[0]] * 2


# --- attached functions

LEASE = Lease("c", "functions", "me", 1)
FUNCTION_CALLS = [
    ("attach_function", ("c", NewFunction("f", "statistics", "o")), {"limit": 8}, True),
    ("get_function", ("c", "f"), {}, True),
    ("detach_function", ("c", "f"), {}, False),
    ("complete_function", (LEASE, "f", 9), {}, True),
    ("fail_function", (LEASE, "f", "why"), {"retry_ms": 1, "longest_retry_ms": 2}, False),
]


@pytest.mark.parametrize(("method", "args", "more", "repeats"), FUNCTION_CALLS)
async def test_verbs_of_functions_are_passed_on_and_repeated_where_that_does_no_harm(
    method: str, args: tuple[Any, ...], more: dict[str, Any], repeats: bool
) -> None:
    world, order = catalog_world()
    functions: Any = RoutedFunctions(world.router(role="sysdb"))
    assert await world.clock.run(getattr(functions, method)(*args, **more)) in (None, (order[0], args, more))
    world.behaviours[order[0]] = world.fail(OutcomeUnknown("the connection broke"))
    if repeats:
        assert await world.clock.run(getattr(functions, method)(*args, **more)) in (None, (order[1], args, more))
        assert world.called == [order[0], order[0], order[1]]
    else:
        with pytest.raises(OutcomeUnknown):
            await world.clock.run(getattr(functions, method)(*args, **more))


async def test_what_is_due_may_be_asked_of_any_member() -> None:
    world, _ = catalog_world()
    functions: Any = RoutedFunctions(world.router(role="sysdb"))
    assert (await world.clock.run(functions.due_functions(limit=3, skip=6)))[1:] == ((), {"limit": 3, "skip": 6})
