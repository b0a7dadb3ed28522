"""Assignment: golden vectors, and the properties that make it worth having."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_cluster.assignment import (
    AssignmentPolicy,
    ModuloPolicy,
    RendezvousPolicy,
    bounded_load,
    compaction_key,
    hash64,
    log_key,
    query_key,
    rendezvous_score,
)
from shoal_core.errors import InvalidArgument
from shoal_core.ports import Member
from shoal_testing.strategies import examples

NODES = tuple(Member("querynode", f"node-{i}", f"10.0.0.{i}:7000") for i in range(5))
COLLECTION = "0190a3b2-0000-7000-8000-000000000001"
POLICIES: tuple[AssignmentPolicy, ...] = (RendezvousPolicy(), ModuloPolicy())

weights = st.floats(min_value=0.25, max_value=8, allow_nan=False)
member_sets = st.lists(
    st.tuples(st.text("abcdefgh-0123456789", min_size=1, max_size=8), weights),
    min_size=1,
    max_size=12,
    unique_by=lambda entry: entry[0],
).map(lambda entries: tuple(Member("querynode", name, "h:1", weight) for name, weight in entries))
key_sets = st.lists(st.text(max_size=20), max_size=60, unique=True)


def ids(members: tuple[Member, ...]) -> list[str]:
    return [member.id for member in members]


class TestGoldenVectors:
    """These may never change: nodes of two releases must agree while one replaces the other."""

    def test_keys(self) -> None:
        assert log_key("c1") == "log/c1"
        assert query_key("c1", 3) == "query/c1/3"
        assert compaction_key("c1") == "compaction/c1"

    def test_hash(self) -> None:
        assert hash64("") == 0xE4A6A0577479B2B4
        assert hash64("log/c1", "node-0") == 0x307823A798875037
        assert hash64("schlüssel") == 0xC4CDAEDB3341551A

    def test_score(self) -> None:
        assert rendezvous_score("log/c1", NODES[0]) == pytest.approx(0.6008723611068676, rel=1e-12)

    @pytest.mark.parametrize(
        ("key", "expected"),
        [
            (log_key(COLLECTION), "24031"),
            (compaction_key(COLLECTION), "42301"),
            (query_key(COLLECTION, 0), "42031"),
            (query_key(COLLECTION, 1), "42130"),
            (query_key(COLLECTION, 2), "40123"),
            ("log/c1", "31240"),
        ],
    )
    def test_rendezvous(self, key: str, expected: str) -> None:
        assert "".join(m.id[-1] for m in RendezvousPolicy().assign(key, NODES, 5)) == expected

    def test_rendezvous_weighted(self) -> None:
        weighted = [Member("q", f"node-{i}", "h:1", weight) for i, weight in enumerate((0.5, 1, 2, 4, 0))]
        got = ["".join(m.id[-1] for m in RendezvousPolicy().assign(query_key("c", s), weighted, 5)) for s in range(6)]
        assert got == ["3210", "3201", "2301", "2310", "3120", "3021"]

    @pytest.mark.parametrize(
        ("key", "expected"),
        [
            (log_key(COLLECTION), "234"),
            (compaction_key(COLLECTION), "012"),
            (query_key(COLLECTION, 0), "401"),
            (query_key(COLLECTION, 1), "234"),
            (query_key(COLLECTION, 2), "012"),
            ("log/c1", "340"),
        ],
    )
    def test_modulo(self, key: str, expected: str) -> None:
        assert "".join(m.id[-1] for m in ModuloPolicy().assign(key, NODES, 3)) == expected

    def test_bounded_load(self) -> None:
        placed = bounded_load([log_key(f"c{i}") for i in range(10)], NODES, 1.0)
        assert "".join(placed[log_key(f"c{i}")].id[-1] for i in range(10)) == "1323204401"


@pytest.mark.parametrize("policy", POLICIES, ids=["rendezvous", "modulo"])
class TestEveryPolicy:
    @examples(50)
    @given(key=st.text(max_size=20), members=member_sets, replicas=st.integers(1, 15), data=st.data())
    def test_distinct_bounded_and_independent_of_order(
        self, policy: AssignmentPolicy, key: str, members: tuple[Member, ...], replicas: int, data: st.DataObject
    ) -> None:
        chosen = policy.assign(key, members, replicas)
        assert len(set(ids(chosen))) == len(chosen) == min(replicas, len(members))
        assert policy.assign(key, data.draw(st.permutations(members)), replicas) == chosen

    @examples(50)
    @given(key=st.text(max_size=20), members=member_sets, replicas=st.integers(1, 12))
    def test_fewer_replicas_are_a_prefix(
        self, policy: AssignmentPolicy, key: str, members: tuple[Member, ...], replicas: int
    ) -> None:
        assert policy.assign(key, members, replicas) == policy.assign(key, members, len(members))[:replicas]

    def test_weight_zero_is_never_chosen(self, policy: AssignmentPolicy) -> None:
        drained = Member("querynode", "drained", "h:1", 0.0)
        assert all(drained not in policy.assign(str(i), (*NODES, drained), 6) for i in range(50))
        assert policy.assign("k", (drained,), 1) == ()

    def test_no_members(self, policy: AssignmentPolicy) -> None:
        assert policy.assign("k", (), 2) == ()

    def test_replicas_below_one(self, policy: AssignmentPolicy) -> None:
        with pytest.raises(InvalidArgument, match="replicas"):
            policy.assign("k", NODES, 0)


class TestRendezvous:
    @examples(50)
    @given(key=st.text(max_size=20), members=member_sets, data=st.data())
    def test_a_leaving_member_only_closes_its_gap(
        self, key: str, members: tuple[Member, ...], data: st.DataObject
    ) -> None:
        gone = data.draw(st.sampled_from(members))
        before = RendezvousPolicy().assign(key, members, len(members))
        rest = tuple(m for m in members if m != gone)
        assert RendezvousPolicy().assign(key, rest, len(members)) == tuple(m for m in before if m != gone)

    def test_weights_are_shares(self) -> None:
        members = [Member("q", f"n{i}", "h:1", weight) for i, weight in enumerate((1.0, 2.0, 5.0))]
        counts = Counter(RendezvousPolicy().assign(f"k{i}", members, 1)[0].id for i in range(8_000))
        assert [counts[f"n{i}"] / 1_000 for i in range(3)] == pytest.approx([1, 2, 5], rel=0.1)

    def test_a_growing_weight_only_attracts(self) -> None:
        grown = (Member("querynode", "node-0", "h:1", 3.0), *NODES[1:])
        for i in range(500):
            before, after = (RendezvousPolicy().assign(f"k{i}", members, 1)[0].id for members in (NODES, grown))
            assert after in (before, "node-0")


class TestBoundedLoad:
    @examples(60)
    @given(keys=key_sets, members=member_sets, factor=st.floats(1, 3), data=st.data())
    def test_every_key_has_a_place_within_the_bound(
        self, keys: list[str], members: tuple[Member, ...], factor: float, data: st.DataObject
    ) -> None:
        placed = bounded_load(keys, members, factor)
        assert placed.keys() == set(keys)
        total = math.fsum(m.weight for m in members)
        counts = Counter(member.id for member in placed.values())
        for member in members:
            assert counts[member.id] <= math.ceil(factor * len(keys) * member.weight / total)
        assert bounded_load(data.draw(st.permutations(keys)), members, factor) == placed

    def test_with_room_it_is_the_plain_policy(self) -> None:
        keys = [f"k{i}" for i in range(100)]
        plain = {key: RendezvousPolicy().assign(key, NODES, 1)[0] for key in keys}
        assert bounded_load(keys, NODES, 5.0) == plain

    def test_with_another_policy(self) -> None:
        counts = Counter(m.id for m in bounded_load(map(str, range(100)), NODES, 1.0, ModuloPolicy()).values())
        assert set(counts.values()) == {20}

    def test_few_keys_move_when_a_member_leaves(self) -> None:
        keys = [f"k{i}" for i in range(1_000)]
        before, after = bounded_load(keys, NODES), bounded_load(keys, NODES[:-1])
        moved = sum(before[key] != after[key] for key in keys if before[key] != NODES[-1])
        assert moved < 100

    def test_nobody_to_serve(self) -> None:
        assert bounded_load(["k"], ()) == {}

    @pytest.mark.parametrize("factor", [0.99, math.nan])
    def test_factor_below_one(self, factor: float) -> None:
        with pytest.raises(InvalidArgument, match="factor"):
            bounded_load(["k"], NODES, factor)
