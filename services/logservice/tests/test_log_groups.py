"""Which appends go into which transaction."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from shoal_core.errors import ResourceExhausted
from shoal_log.groups import MAIN, Admission, GroupQueue


@dataclass(frozen=True)
class Item:
    """``c1`` is the first item of collection ``c``."""

    name: str
    cost_bytes: int = 1

    @property
    def collection_id(self) -> str:
        return self.name[0]


def queue_of(*names: str, group_items: int = 100, group_size_bytes: int = 100, lanes: int = 2) -> GroupQueue[Item]:
    queue: GroupQueue[Item] = GroupQueue(group_items=group_items, group_size_bytes=group_size_bytes, lanes=lanes)
    for name in names:
        queue.offer(Item(name))
    return queue


def names(items: list[Item]) -> str:
    return " ".join(item.name for item in items)


def test_what_is_queued_goes_together_over_all_collections() -> None:
    queue = queue_of("a1", "b1", "a2")
    assert queue.startable() == [MAIN]
    assert names(queue.take(MAIN)) == "a1 b1 a2"
    assert queue.startable() == []
    queue.offer(Item("a3"))
    assert queue.startable() == []  # its turn comes when the lane's server asks again
    assert queue.has_work(MAIN)
    assert names(queue.take(MAIN)) == "a3"
    queue.finish(MAIN)
    assert queue.startable() == []


def test_a_group_is_bounded_by_count_and_bytes_and_never_empty() -> None:
    queue = queue_of("a1", "a2", "a3", group_items=2)
    assert names(queue.take(MAIN)) == "a1 a2"
    assert names(queue.take(MAIN)) == "a3"
    queue = queue_of(group_size_bytes=10)
    for size_bytes in (4, 6, 1, 50, 1):
        queue.offer(Item("a", size_bytes))
    assert [[item.cost_bytes for item in queue.take(MAIN)] for _ in range(4)] == [[4, 6], [1], [50], [1]]
    assert queue.take(MAIN) == []


def test_set_apart_collections_have_lanes_of_their_own_in_their_old_order() -> None:
    queue = queue_of("a1", "b1", "a2")
    queue.startable()
    group = queue.take(MAIN)
    for name in ("a3", "c1", "b2"):
        queue.offer(Item(name))
    queue.set_apart(group)
    queue.offer(Item("a4"))
    assert queue.startable() == ["a", "b"]
    assert names(queue.take("a")) == "a1 a2 a3 a4"
    assert names(queue.take("b")) == "b1 b2"
    assert names(queue.take(MAIN)) == "c1"


def test_a_collection_whose_lane_is_at_work_does_not_use_the_main_lane() -> None:
    queue = queue_of("a1")
    queue.startable()
    queue.set_apart(queue.take(MAIN))
    queue.finish(MAIN)
    assert queue.startable() == ["a"]
    queue.take("a")
    queue.offer(Item("a2"))
    assert queue.take(MAIN) == []
    assert queue.startable() == []
    queue.finish("a")
    assert queue.startable() == ["a"]
    assert names(queue.take("a")) == "a2"
    queue.finish("a")
    queue.offer(Item("a3"))
    assert names(queue.take(MAIN)) == "a3"


def test_a_stuck_collection_stays_apart_until_a_group_of_its_own_succeeds() -> None:
    queue = queue_of("a1")
    queue.startable()
    queue.set_apart(queue.take(MAIN))
    queue.finish(MAIN)
    queue.startable()
    queue.take("a")
    queue.finish("a", stuck=True)
    queue.offer(Item("a2"))
    assert queue.take(MAIN) == []
    assert queue.startable() == ["a"]
    assert names(queue.take("a")) == "a2"
    queue.finish("a")
    queue.offer(Item("a3"))
    assert names(queue.take(MAIN)) == "a3"


def test_lanes_are_bounded_and_take_turns() -> None:
    queue = queue_of("a1", "b1", "c1", lanes=2)
    queue.startable()
    queue.set_apart(queue.take(MAIN))
    queue.finish(MAIN)
    assert queue.startable() == ["a", "b"]
    queue.take("a")
    queue.offer(Item("a2"))
    queue.finish("a", stuck=True)
    assert queue.startable() == ["c"]  # before "a", which had its turn
    queue.take("b")
    queue.finish("b")
    assert queue.startable() == ["a"]


def test_stuck_collections_with_nothing_to_do_are_kept_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_log.groups._KEPT_APART", 3)
    letters = "abcdefgh"
    queue = queue_of(*(f"{letter}1" for letter in letters), lanes=2)
    queue.startable()
    queue.set_apart(queue.take(MAIN))
    queue.finish(MAIN)
    served = []
    while lanes := queue.startable():
        for lane in lanes:
            queue.take(lane)
        for lane in lanes:
            served.append(lane)
            queue.finish(lane, stuck=True)
    assert "".join(served) == letters
    for letter in letters:
        queue.offer(Item(f"{letter}2"))
    assert names(queue.take(MAIN)) == "a2 b2 c2 d2 e2", "the longest idle are forgotten"
    assert queue.startable() == ["f", "g"]


def test_a_lane_at_work_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_log.groups._KEPT_APART", 0)
    queue = queue_of("a1", "b1", lanes=2)
    queue.startable()
    queue.set_apart(queue.take(MAIN))
    queue.finish(MAIN)
    assert queue.startable() == ["a", "b"]
    queue.take("a")
    queue.take("b")
    queue.finish("b", stuck=True)
    queue.offer(Item("a2"))
    queue.offer(Item("b2"))
    assert names(queue.take(MAIN)) == "b2", "its group under way must not be overtaken by a2"


def test_drain_takes_everything_out() -> None:
    queue = queue_of("a1", "b1")
    queue.startable()
    queue.set_apart(queue.take(MAIN))
    queue.offer(Item("c1"))
    assert sorted(item.name for item in queue.drain()) == ["a1", "b1", "c1"]
    assert len(queue) == 0


def test_admission_is_bounded_by_count_and_bytes_with_a_retry_hint() -> None:
    admission = Admission(items=2, size_bytes=10, retry_after_ms=70)
    admission.enter(4)
    admission.enter(6)
    with pytest.raises(ResourceExhausted) as refused:
        admission.enter(0)
    assert refused.value.retry_after_ms == 70
    admission.leave(4)
    with pytest.raises(ResourceExhausted):
        admission.enter(5)
    admission.enter(4)
    assert (admission.items, admission.size_bytes) == (2, 10)
