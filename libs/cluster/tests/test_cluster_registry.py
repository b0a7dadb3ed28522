"""The etcd registry against a real etcd that is killed, frozen, wiped and compacted."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from shoal_cluster.etcd.client import EtcdClient
from shoal_cluster.registry import EtcdRegistry
from shoal_core.errors import InvalidArgument
from shoal_core.ports import Member, MembershipView
from shoal_runtime.servers import EtcdServer
from shoal_runtime.system import SystemClock, SystemRandom

pytestmark = pytest.mark.integration

TTL_S = 2
A = Member("querynode", "a", "127.0.0.1:7001")
B = Member("querynode", "b", "127.0.0.1:7002", weight=2.5)
LOG = Member("logservice", "l", "127.0.0.1:7003")

Open = Callable[[], EtcdRegistry]


@pytest.fixture
async def registries(etcd: EtcdServer) -> AsyncIterator[Open]:
    """Makes registries of one cluster and closes them at the end."""
    opened: list[EtcdRegistry] = []

    def open_registry() -> EtcdRegistry:
        client = EtcdClient([etcd.endpoint], timeout_ms=600)
        opened.append(EtcdRegistry(client, "test", clock=SystemClock(), random=SystemRandom(), lease_ttl_s=TTL_S))
        return opened[-1]

    yield open_registry
    await asyncio.gather(*(registry.close() for registry in opened))


def names(view: MembershipView) -> list[str]:
    return [member.id for role in sorted(view.members) for member in view.of(role)]


async def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> float:
    """Wait for a condition; the seconds it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout_s, "the condition did not come true in time"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


async def die(registry: EtcdRegistry) -> None:
    """What kill -9 does to a process: it withdraws nothing."""
    assert registry._keeper is not None
    registry._keeper.cancel()
    await asyncio.wait([registry._keeper])


async def test_members_see_each_other(registries: Open) -> None:
    one, two = registries(), registries()
    await asyncio.gather(one.start(), two.start())
    assert one.view() == MembershipView(one.view().revision, {}, True)
    await one.register(A)
    await two.register(B)
    await two.register(LOG)
    assert one.registered
    assert two.registered
    for registry in (one, two):
        await until(lambda r=registry: names(r.view()) == ["l", "a", "b"])  # type: ignore[misc]
        assert registry.view().of("querynode") == (A, B)
        assert registry.view().of("logservice") == (LOG,)
        assert registry.view().connected


async def test_a_later_watcher_gets_what_is_there(registries: Open) -> None:
    one, two = registries(), registries()
    await one.register(A)
    await two.start()
    assert names(two.view()) == ["a"]


async def test_listeners_hear_every_view_until_they_leave(registries: Open) -> None:
    one, two = registries(), registries()
    heard: list[list[str]] = []
    unsubscribe = two.subscribe(lambda view: heard.append(names(view)))
    await two.start()
    await one.register(A)
    await until(lambda: heard[-1:] == [["a"]])
    await one.deregister()
    await until(lambda: heard[-1] == [])
    assert heard == [[], ["a"], []]
    unsubscribe()
    await one.register(A)
    await until(lambda: names(two.view()) == ["a"])
    assert heard == [[], ["a"], []]


async def test_deregister_is_seen_at_once_and_keeps_watching(registries: Open) -> None:
    one, two = registries(), registries()
    await two.start()
    await one.start()
    await one.register(A)
    await until(lambda: names(two.view()) == ["a"])
    await one.deregister()
    assert not one._own
    assert await until(lambda: names(two.view()) == []) < 1
    await two.register(B)
    await until(lambda: names(one.view()) == ["b"])


async def test_a_killed_member_leaves_within_its_lease(registries: Open) -> None:
    one, two = registries(), registries()
    await two.start()
    await one.register(A)
    await until(lambda: names(two.view()) == ["a"])
    await die(one)
    took_s = await until(lambda: names(two.view()) == [])
    assert took_s < TTL_S + 2
    assert not one.registered


async def test_a_lease_outlives_its_time_to_live_while_kept(registries: Open) -> None:
    one, two = registries(), registries()
    seen: list[list[str]] = []
    await one.register(A)
    two.subscribe(lambda view: seen.append(names(view)))
    await two.start()
    await asyncio.sleep(TTL_S * 2)
    assert seen == [["a"]]
    assert one.registered


async def test_a_key_deleted_by_hand_comes_back(registries: Open) -> None:
    one = registries()
    await one.start()
    await one.register(A)
    await one._client.delete(b"/shoal/test/members/querynode/a")
    await until(lambda: names(one.view()) == [])
    await until(lambda: names(one.view()) == ["a"])


async def test_a_revoked_lease_comes_back(registries: Open) -> None:
    one = registries()
    await one.start()
    await one.register(A)
    lease_id = one._lease.lease_id
    await one._client.lease_revoke(lease_id)
    await until(lambda: names(one.view()) == ["a"] and one._lease.lease_id != lease_id)
    await until(lambda: one.registered)  # the watch may tell of the key before the put that made it is answered


async def test_a_restarted_process_with_the_same_id_replaces_the_old_one(registries: Open) -> None:
    old, new, watcher = registries(), registries(), registries()
    await watcher.start()
    await old.register(A)
    await die(old)
    moved = Member("querynode", "a", "127.0.0.1:7999")
    await new.register(moved)
    await until(lambda: watcher.view().of("querynode") == (moved,))
    await old.deregister()
    await asyncio.sleep(0.3)
    assert watcher.view().of("querynode") == (moved,)


async def test_the_last_view_serves_while_etcd_is_down(registries: Open, etcd: EtcdServer) -> None:
    one, two = registries(), registries()
    await asyncio.gather(one.start(), two.start())
    await one.register(A)
    await until(lambda: names(two.view()) == ["a"])
    etcd.kill()
    await until(lambda: not two.view().connected)
    assert names(two.view()) == ["a"]
    await until(lambda: not one.registered)
    assert names(two.view()) == ["a"]
    await etcd.start()
    await until(lambda: two.view().connected and one.registered)
    assert names(two.view()) == ["a"]
    await two.register(B)
    await until(lambda: names(one.view()) == names(two.view()) == ["a", "b"])


async def test_a_short_kill_and_restart_changes_nothing(registries: Open, etcd: EtcdServer) -> None:
    one, two = registries(), registries()
    await asyncio.gather(one.start(), two.start())
    await one.register(A)
    await until(lambda: names(two.view()) == ["a"])
    views: list[list[str]] = []
    two.subscribe(lambda view: views.append(names(view)))
    etcd.kill()
    await asyncio.gather(etcd.start(), until(lambda: not two.view().connected))
    await until(lambda: two.view().connected and one.registered)
    assert all(view == ["a"] for view in views)


@pytest.mark.parametrize("busy", [False, True], ids=["empty", "grown_past_the_old_revision"])
async def test_views_heal_after_etcd_lost_its_data(
    registries: Open, etcd: EtcdServer, tmp_path: Path, busy: bool
) -> None:
    one, two, dead = registries(), registries(), registries()
    await asyncio.gather(one.start(), two.start())
    await one.register(A)
    await two.register(B)
    await dead.register(LOG)
    await until(lambda: names(one.view()) == names(two.view()) == ["l", "a", "b"])
    views: list[list[str]] = []
    two.subscribe(lambda view: views.append(names(view)))
    etcd.kill()
    await die(dead)
    await etcd.stop()
    await asyncio.to_thread(shutil.rmtree, tmp_path / "etcd" / "data")
    await etcd.start()
    if busy:
        client = EtcdClient([etcd.endpoint])
        for _ in range(50):
            await client.put(b"other", b"")
        await client.close()
    await until(lambda: one.registered and two.registered and one.view().connected and two.view().connected)
    await until(lambda: names(one.view()) == names(two.view()) == ["a", "b"])
    if not busy:
        assert all(set(view) >= {"a", "b"} for view in views), "living members never leave the view"
    await one.deregister()
    await until(lambda: names(two.view()) == ["b"])


async def test_compaction_while_a_watcher_is_cut_off(registries: Open, etcd: EtcdServer) -> None:
    one, two = registries(), registries()
    await two.start()
    await one.register(A)
    await until(lambda: names(two.view()) == ["a"])
    assert two._watcher is not None
    channel = two._client
    two._client = EtcdClient(["127.0.0.1:1"], timeout_ms=300)  # nobody listens there
    etcd.kill()
    await etcd.start()
    await until(lambda: not two.view().connected)
    await one.register(B)
    await until(lambda: one.registered)
    await one._client.delete(b"/shoal/test/members/querynode/x")
    revision = await one._client.put(b"other", b"")
    await one._client.compact(revision)
    assert names(two.view()) == ["a"]
    unreachable, two._client = two._client, channel
    await until(lambda: two.view().connected)
    assert names(two.view()) == ["a", "b"]
    await unreachable.close()


async def test_a_frozen_etcd_is_a_lost_lease_and_then_heals(registries: Open, etcd: EtcdServer) -> None:
    one, two = registries(), registries()
    await asyncio.gather(one.start(), two.start())
    await one.register(A)
    await until(lambda: names(two.view()) == ["a"])
    os.kill(etcd.pid, signal.SIGSTOP)
    assert await until(lambda: not one.registered) < TTL_S + 0.5
    await until(lambda: not two.view().connected)
    assert names(two.view()) == ["a"]
    os.kill(etcd.pid, signal.SIGCONT)
    await until(lambda: one.registered and two.view().connected and names(two.view()) == ["a"])


async def test_starting_without_etcd_does_not_block(registries: Open, etcd: EtcdServer) -> None:
    etcd.kill()
    one = registries()
    began = time.monotonic()
    await one.start()
    await one.register(A)
    assert time.monotonic() - began < 3
    assert not one.registered
    assert one.view() == MembershipView(0, {}, False)
    await etcd.start()
    await until(lambda: one.registered and names(one.view()) == ["a"])


async def test_closing_without_etcd_does_not_hang(registries: Open, etcd: EtcdServer) -> None:
    one = registries()
    await one.start()
    await one.register(A)
    etcd.kill()
    began = time.monotonic()
    await one.close()
    assert time.monotonic() - began < TTL_S + 2


async def test_what_others_wrote_under_the_prefix_is_ignored(registries: Open) -> None:
    one = registries()
    await one.start()
    await one._client.put(b"/shoal/test/members/querynode/odd", b"not json")
    await one.register(A)
    await until(lambda: names(one.view()) == ["a"])


async def test_clusters_do_not_meet(registries: Open, etcd: EtcdServer) -> None:
    one = registries()
    client = EtcdClient([etcd.endpoint])
    other = EtcdRegistry(client, "test2", clock=SystemClock(), random=SystemRandom(), lease_ttl_s=TTL_S)
    await one.register(A)
    await other.start()
    assert names(other.view()) == []
    await other.close()


async def test_refuses_a_wrong_member(registries: Open) -> None:
    with pytest.raises(InvalidArgument, match=r"member\.role"):
        await registries().register(Member("", "a", "h:1"))
