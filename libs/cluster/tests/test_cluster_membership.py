"""The state machines of the registry, and the registry of one process."""

from __future__ import annotations

import math

import pytest

from shoal_cluster.etcd.client import KeyValue, Snapshot, WatchEvent, channel_options, channel_target, prefix_end
from shoal_cluster.membership import (
    LeaseState,
    MembershipState,
    decode_member,
    encode_member,
    member_key,
    members_prefix,
    validate_member,
)
from shoal_cluster.registry import StaticRegistry
from shoal_core.errors import InvalidArgument
from shoal_core.ports import Member, MembershipView

PREFIX = members_prefix("test")
A, B, C = (Member("querynode", name, f"10.0.0.{i}:7000", 1.0) for i, name in enumerate("abc"))


def key(member: Member) -> bytes:
    return member_key("test", member)


def snapshot(revision: int, *members: Member, cluster_id: int = 1, raft_term: int = 2) -> Snapshot:
    pairs = tuple(KeyValue(key(m), encode_member(m), revision) for m in members)
    return Snapshot(cluster_id, raft_term, revision, pairs)


def put(member: Member, revision: int) -> WatchEvent:
    return WatchEvent(key(member), encode_member(member), revision)


def gone(member: Member, revision: int) -> WatchEvent:
    return WatchEvent(key(member), None, revision)


def names(view: MembershipView) -> str:
    return "".join(member.id for member in view.of("querynode"))


class TestEncoding:
    def test_key_and_value(self) -> None:
        assert key(A) == b"/shoal/test/members/querynode/a"
        assert decode_member(PREFIX, key(A), encode_member(A)) == A

    def test_weight_may_be_missing(self) -> None:
        assert decode_member(PREFIX, key(A), b'{"address": "h:1"}') == Member("querynode", "a", "h:1", 1.0)

    @pytest.mark.parametrize(
        "value",
        [
            b"",
            b"\xff",
            b"[]",
            b"{}",
            b'"x"',
            b'{"address": ""}',
            b'{"address": "h:1", "weight": -1}',
            b'{"address": "h:1", "weight": "x"}',
            b'{"address": "h:1", "weight": NaN}',
        ],
    )
    def test_what_others_wrote_is_ignored(self, value: bytes) -> None:
        assert decode_member(PREFIX, key(A), value) is None

    @pytest.mark.parametrize(
        ("more", "serves"),
        [
            ('"wire_min": 1, "wire_max": 1', True),
            ('"wire_min": 1, "wire_max": 2, "later": [1]', True),
            ('"wire_min": 2, "wire_max": 3', False),
            ('"wire_min": 0, "wire_max": 0', False),
            ('"wire_min": "x"', False),
        ],
    )
    def test_a_member_is_seen_if_it_serves_this_wire_version(self, more: str, serves: bool) -> None:
        found = decode_member(PREFIX, key(A), f'{{"address": "h:1", {more}}}'.encode())
        assert found == (Member("querynode", "a", "h:1") if serves else None)

    @pytest.mark.parametrize("tail", [b"", b"querynode", b"querynode/", b"querynode/a/b", b"querynode/\xff"])
    def test_other_keys_are_ignored(self, tail: bytes) -> None:
        assert decode_member(PREFIX, PREFIX + tail, encode_member(A)) is None

    @pytest.mark.parametrize(
        ("member", "field"),
        [
            (Member("", "a", "h:1"), "role"),
            (Member("query/node", "a", "h:1"), "role"),
            (Member("querynode", "a/b", "h:1"), "id"),
            (Member("querynode", "a", ""), "address"),
            (Member("querynode", "a", "h:1", math.inf), "weight"),
            (Member("querynode", "a", "h:1", -0.5), "weight"),
        ],
    )
    def test_validation_names_the_field(self, member: Member, field: str) -> None:
        with pytest.raises(InvalidArgument, match=f"member.{field}"):
            validate_member(member)


class TestMembershipState:
    def test_starts_empty_and_unconnected(self) -> None:
        view = MembershipState(PREFIX, linger_s=10).view()
        assert (view.revision, view.of("querynode"), view.connected) == (0, (), False)

    def test_list_then_changes(self) -> None:
        state = MembershipState(PREFIX, linger_s=10)
        state.listed(snapshot(5, B, A), now=0)
        assert names(state.view()) == "ab"
        state.changed((put(C, 6), gone(A, 7)))
        assert names(state.view()) == "bc"
        assert state.view().revision == 7
        assert state.view().connected

    def test_events_that_the_list_covers_are_skipped(self) -> None:
        state = MembershipState(PREFIX, linger_s=10)
        state.listed(snapshot(8, A), now=0)
        state.changed((gone(A, 4), put(B, 7), put(C, 9)))
        assert names(state.view()) == "ac"

    def test_all_events_of_one_revision_count(self) -> None:
        state = MembershipState(PREFIX, linger_s=10)
        state.listed(snapshot(8, A), now=0)
        state.changed((gone(A, 9), put(B, 9), put(C, 9)))
        assert names(state.view()) == "bc"

    def test_a_changed_member_is_replaced_and_an_unreadable_one_leaves(self) -> None:
        state = MembershipState(PREFIX, linger_s=10)
        state.listed(snapshot(1, A, B), now=0)
        moved = Member("querynode", "a", "10.9.9.9:7000", 2.0)
        state.changed((put(moved, 2), WatchEvent(key(B), b"?", 3)))
        assert state.view().of("querynode") == (moved,)

    def test_the_last_view_stays_while_disconnected(self) -> None:
        state = MembershipState(PREFIX, linger_s=10)
        state.listed(snapshot(5, A), now=0)
        state.disconnected()
        assert names(state.view()) == "a"
        assert not state.view().connected

    def test_a_later_list_of_the_same_store_replaces(self) -> None:
        state = MembershipState(PREFIX, linger_s=10)
        state.listed(snapshot(5, A, B), now=0)
        state.disconnected()
        state.listed(snapshot(9, B, raft_term=3), now=1)
        assert names(state.view()) == "b"
        assert state.expires_at() is None

    @pytest.mark.parametrize(
        "lost",
        [snapshot(1), snapshot(90, cluster_id=7), snapshot(90, raft_term=1)],
        ids=["revision", "cluster", "term"],
    )
    def test_members_of_a_lost_store_linger(self, lost: Snapshot) -> None:
        state = MembershipState(PREFIX, linger_s=10)
        state.listed(snapshot(50, A, B), now=0)
        state.disconnected()
        state.listed(lost, now=100)
        assert names(state.view()) == "ab"
        assert state.view().connected
        state.changed((put(A, lost.revision + 1),))
        assert state.expires_at() == 110
        state.expire(109)
        assert names(state.view()) == "ab"
        state.expire(110)
        assert names(state.view()) == "a"
        assert state.expires_at() is None

    def test_a_lingering_member_that_withdraws_is_gone(self) -> None:
        state = MembershipState(PREFIX, linger_s=10)
        state.listed(snapshot(50, A), now=0)
        state.listed(snapshot(1), now=1)
        state.changed((put(A, 2), gone(A, 3)))
        assert names(state.view()) == ""

    def test_notices_that_an_own_key_vanished(self) -> None:
        state = MembershipState(PREFIX, linger_s=10)
        assert not state.has_lost(key(A), 5)
        state.listed(snapshot(4), now=0)
        assert not state.has_lost(key(A), 5), "the put is newer than what was seen"
        state.changed((put(A, 5),))
        assert not state.has_lost(key(A), 5)
        state.changed((gone(A, 6),))
        assert state.has_lost(key(A), 5)
        state.disconnected()
        assert not state.has_lost(key(A), 5)


class TestLeaseState:
    def test_life_of_a_lease(self) -> None:
        lease = LeaseState()
        assert not lease.held(0)
        lease.granted(77, 6.0, sent_at=10)
        lease.put(b"k", 3)
        assert lease.renew_at() == 12
        assert lease.held(15.9)
        assert not lease.held(16)
        lease.renewed(6.0, sent_at=15)
        assert lease.held(20.9)
        assert lease.put_revisions == {b"k": 3}

    def test_unknown_to_etcd_is_lost(self) -> None:
        lease = LeaseState()
        lease.granted(77, 6.0, sent_at=0)
        lease.put(b"k", 3)
        lease.renewed(0.0, sent_at=1)
        assert not lease.held(1)
        assert lease.put_revisions == {}

    def test_a_new_lease_has_no_keys(self) -> None:
        lease = LeaseState()
        lease.granted(77, 6.0, sent_at=0)
        lease.put(b"k", 3)
        lease.granted(78, 6.0, sent_at=9)
        assert lease.put_revisions == {}


class TestStaticRegistry:
    async def test_fixed_members_and_own(self) -> None:
        registry = StaticRegistry([B])
        heard: list[str] = []
        unsubscribe = registry.subscribe(lambda view: heard.append(names(view)))
        await registry.start()
        assert names(registry.view()) == "b"
        await registry.register(A)
        await registry.register(C)
        assert names(registry.view()) == "abc"
        assert registry.view().connected
        await registry.deregister()
        unsubscribe()
        unsubscribe()
        await registry.register(A)
        await registry.close()
        assert names(registry.view()) == "b"
        assert heard == ["ab", "abc", "b"]

    async def test_a_failing_listener_keeps_nobody_from_hearing(self, caplog: pytest.LogCaptureFixture) -> None:
        registry = StaticRegistry()
        heard: list[str] = []

        def fail(_: MembershipView) -> None:
            raise RuntimeError("listener")

        registry.subscribe(fail)
        registry.subscribe(lambda view: heard.append(names(view)))
        await registry.register(A)
        assert heard == ["a"]
        assert "listener" in caplog.text

    async def test_refuses_a_wrong_member(self) -> None:
        with pytest.raises(InvalidArgument, match=r"member\.id"):
            StaticRegistry([Member("querynode", "", "h:1")])
        with pytest.raises(InvalidArgument, match=r"member\.role"):
            await StaticRegistry().register(Member("", "a", "h:1"))


class TestEndpoints:
    @pytest.mark.parametrize(
        ("endpoints", "target"),
        [
            (("127.0.0.1:2379",), "ipv4:127.0.0.1:2379"),
            (("10.0.0.1:2379", "10.0.0.2:2379"), "ipv4:10.0.0.1:2379,10.0.0.2:2379"),
            (("[::1]:2379", "[::2]:2379"), "ipv6:[::1]:2379,[::2]:2379"),
            (("etcd.shoal.svc:2379",), "dns:///etcd.shoal.svc:2379"),
        ],
    )
    def test_target(self, endpoints: tuple[str, ...], target: str) -> None:
        assert channel_target(endpoints) == target

    @pytest.mark.parametrize(
        "endpoints", [(), ("127.0.0.1",), (":2379",), ("etcd-0:2379", "etcd-1:2379"), ("10.0.0.1:1", "[::1]:1")]
    )
    def test_refused(self, endpoints: tuple[str, ...]) -> None:
        with pytest.raises(InvalidArgument, match=r"etcd\.endpoints"):
            channel_target(endpoints)

    def test_probes_are_rare_enough_for_etcd(self) -> None:
        """At its default settings etcd closes the connection on the third probe that came within 5 s."""
        options = dict(channel_options(1_000))
        assert int(options["grpc.keepalive_time_ms"]) > 5_000
        assert int(options["grpc.http2.ping_timeout_ms"]) <= 2_000

    @pytest.mark.parametrize(
        ("prefix", "end"), [(b"/a/", b"/a0"), (b"a\xff", b"b"), (b"\xff\xff", b"\0"), (b"", b"\0")]
    )
    def test_prefix_end(self, prefix: bytes, end: bytes) -> None:
        assert prefix_end(prefix) == end
