"""The decision on each append of a group: plain data in, plain data out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from services.logservice.tests.log_support import TENANT, append_of, state_of
from shoal_core.errors import (
    BackPressure,
    DimensionMismatch,
    IdempotencyMismatch,
    InvalidArgument,
    NotFound,
    ShoalError,
    StaleEpoch,
    StaleRead,
    UploadExpired,
    WriteConflict,
)
from shoal_log.decide import (
    Append,
    Check,
    Entry,
    Found,
    LogState,
    Plan,
    Recorded,
    Scanned,
    Upload,
    add_to_set_hash,
    overlaps,
    plan,
)
from shoal_log.settings import AppendSettings

SETTINGS = AppendSettings()


def hashes_of(*ids: str) -> np.ndarray:
    return append_of(ids).batch.sorted_hashes


def run(*appends: Append, state: LogState | None = None, settings: AppendSettings = SETTINGS, **found: object) -> Plan:
    states = {"c": state_of()} if state is None else {state.collection_id: state}
    return plan(appends, Found(states, **found), settings)  # type: ignore[arg-type]


def only(decided: Plan) -> object:
    assert len(decided.outcomes) == 1
    return decided.outcomes[0]


def test_offsets_are_contiguous_over_a_group_and_over_collections() -> None:
    appends = [append_of(["a", "b"]), append_of(["x"], "d"), append_of(["c"]), append_of(["y", "z"], "d")]
    found = Found({"c": state_of(head_offset=10, total_bytes=100), "d": state_of(collection_id="d")})
    decided = plan(appends, found, SETTINGS)
    places = [(entry.append.collection_id, entry.first_offset, entry.end_offset) for entry in decided.entries]
    assert places == [("c", 11, 12), ("d", 1, 1), ("c", 13, 13), ("d", 2, 3)]
    assert decided.states["c"].head_offset == 13
    assert decided.states["c"].total_bytes == 120
    assert [entry.total_bytes for entry in decided.entries] == [110, 10, 120, 20]


def test_one_item_failing_is_a_value_and_the_others_go_on() -> None:
    decided = run(append_of(["a"]), append_of(["b"], epoch=7), append_of(["c"], "gone"), append_of(["d"]))
    kinds = [type(outcome) for outcome in decided.outcomes]
    assert kinds == [Entry, StaleEpoch, NotFound, Entry]
    assert [entry.first_offset for entry in decided.entries] == [1, 2]


@pytest.mark.parametrize(
    ("append", "state", "error"),
    [
        (append_of(["a"]), state_of(alive=False), NotFound),
        (append_of(["a"], tenant="other"), state_of(), NotFound),
        (append_of(["a"], epoch=1), state_of(epoch=2), StaleEpoch),
        (append_of(["a"], epoch=3), state_of(epoch=2), StaleEpoch),
    ],
)
def test_a_collection_that_is_not_the_one_meant_is_never_written(
    append: Append, state: LogState, error: type[ShoalError]
) -> None:
    decided = run(append, state=state)
    assert type(only(decided)) is error
    assert decided.states["c"] == state


def test_the_first_write_sets_the_dimension_for_those_behind_it() -> None:
    decided = run(append_of(["a"]), append_of(["b"], dimension=3), append_of(["c"], dimension=4), append_of(["d"]))
    assert [type(outcome) for outcome in decided.outcomes] == [Entry, Entry, DimensionMismatch, Entry]
    assert decided.states["c"].dimension == 3
    assert "4" in str(decided.outcomes[2])
    assert "3" in str(decided.outcomes[2])


def test_a_refused_write_does_not_set_the_dimension() -> None:
    settings = replace(SETTINGS, uncompacted_records=2)
    decided = run(append_of(["a", "b", "c"], dimension=9), append_of(["d"], dimension=3), settings=settings)
    assert [type(outcome) for outcome in decided.outcomes] == [BackPressure, Entry]
    assert decided.states["c"].dimension == 3


def test_back_pressure_counts_bytes_since_the_compacted_offset() -> None:
    settings = replace(SETTINGS, uncompacted_size_bytes=100, payload_size_bytes=50)
    state = state_of(total_bytes=1090, compacted_bytes=1000, head_offset=5)
    assert type(only(run(append_of(["a"], size_bytes=10), state=state, settings=settings))) is Entry
    refused = only(run(append_of(["a"], size_bytes=11), state=state, settings=settings))
    assert isinstance(refused, BackPressure)
    assert refused.retry_after_ms == settings.backpressure_retry_ms


def test_back_pressure_counts_records_since_the_compacted_offset() -> None:
    settings = replace(SETTINGS, uncompacted_records=3)
    state = state_of(head_offset=102, compacted_offset=100)
    decided = run(append_of(["a"]), append_of(["b"]), state=state, settings=settings)
    assert [type(outcome) for outcome in decided.outcomes] == [Entry, BackPressure]


def test_the_same_key_returns_the_first_outcome_before_any_condition() -> None:
    append = append_of(["a"], idempotency_key="k", epoch=1, check=Check(0, hashes_of("a"), 0, True))
    known = {(TENANT, "c", "k"): Recorded(append.batch.checksum, 4, 6)}
    state = state_of(epoch=9, alive=False, head_offset=6, dimension=1)
    assert only(run(append, state=state, recorded=known)) == Recorded(append.batch.checksum, 4, 6)


def test_the_same_key_with_another_payload_is_an_error() -> None:
    known = {(TENANT, "c", "k"): Recorded(b"other", 4, 6)}
    assert type(only(run(append_of(["a"], idempotency_key="k"), recorded=known))) is IdempotencyMismatch


def test_a_key_used_twice_within_a_group_is_written_once() -> None:
    append = append_of(["a"], idempotency_key="k")
    decided = run(append, append, append_of(["b"], idempotency_key="k"))
    assert [type(outcome) for outcome in decided.outcomes] == [Entry, Recorded, IdempotencyMismatch]
    assert decided.outcomes[1] == Recorded(append.batch.checksum, 1, 1)
    assert decided.states["c"].head_offset == 1


def test_a_key_whose_append_failed_is_free() -> None:
    failing = append_of(["a"], idempotency_key="k", epoch=5)
    decided = run(failing, append_of(["b"], idempotency_key="k"))
    assert [type(outcome) for outcome in decided.outcomes] == [StaleEpoch, Entry]


def check(read_offset: int, *ids: str, scanned_offset: int | None = None, conflict: bool = False) -> Check:
    return Check(read_offset, hashes_of(*ids), read_offset if scanned_offset is None else scanned_offset, conflict)


def test_a_condition_fails_on_what_the_scan_found_what_came_since_and_what_is_ahead_in_the_group() -> None:
    state = state_of(head_offset=8)
    since = {"c": [Scanned(6, hashes_of("old")), Scanned(8, hashes_of("p", "q"))]}
    found_by_scan = append_of(["a"], check=check(3, "z", conflict=True))
    came_since = append_of(["a"], check=check(3, "q", "z", scanned_offset=6))
    seen_by_scan = append_of(["a"], check=check(3, "old", scanned_offset=6))
    ahead_in_group = append_of(["b"], check=check(8, "a"))
    decided = run(found_by_scan, came_since, seen_by_scan, ahead_in_group, state=state, scanned=since)
    assert [type(outcome) for outcome in decided.outcomes] == [WriteConflict, WriteConflict, Entry, WriteConflict]


def test_a_write_at_or_before_the_read_offset_is_no_conflict() -> None:
    since = {"c": [Scanned(8, hashes_of("a"))]}
    assert type(only(run(append_of(["a"], check=check(8, "a")), state=state_of(head_offset=8), scanned=since))) is Entry


def test_a_refused_append_ahead_in_the_group_is_no_conflict() -> None:
    decided = run(append_of(["a"], epoch=4), append_of(["b"], check=check(0, "a")))
    assert [type(outcome) for outcome in decided.outcomes] == [StaleEpoch, Entry]


def test_a_read_offset_below_the_trim_floor_is_a_stale_read() -> None:
    state = state_of(head_offset=20, trim_floor=10)
    assert type(only(run(append_of(["a"], check=check(9, "z")), state=state))) is StaleRead
    assert type(only(run(append_of(["a"], check=check(10, "z")), state=state))) is Entry


def test_a_read_offset_above_the_head_is_refused() -> None:
    assert type(only(run(append_of(["a"], check=check(1, "z"))))) is InvalidArgument


def test_an_object_is_named_only_under_a_young_intent() -> None:
    append = append_of(["a"], upload=Upload("u", "log/c/u"))
    assert type(only(run(append))) is UploadExpired
    assert type(only(run(append, intents=frozenset({"u"})))) is Entry


def test_the_set_hash_is_cumulative_and_pinned() -> None:
    """Stored in the log and checked by every reader: it must never change."""
    one = add_to_set_hash(0, 1, 2, bytes(16))
    assert one.to_bytes(32, "little").hex() == "2b12ec21dbfbc2875ff39f091a9f9a8ea7280a03f102f94c313929dcbf83f86d"
    both = add_to_set_hash(one, 3, 3, bytes(range(16)))
    assert both == add_to_set_hash(add_to_set_hash(0, 3, 3, bytes(range(16))), 1, 2, bytes(16))
    assert add_to_set_hash((1 << 256) - 1, 1, 2, bytes(16)) == one - 1
    decided = run(append_of(["a", "b"]), append_of(["c"]))
    first, second = decided.entries
    assert second.set_hash == add_to_set_hash(first.set_hash, 3, 3, second.append.batch.checksum)
    assert decided.states["c"].set_hash == second.set_hash


def test_overlap_of_sorted_hashes() -> None:
    few = np.array([5, 9], np.uint64)
    assert overlaps(few, np.array([1, 2, 9], np.uint64))
    assert overlaps(np.array([1, 2, 5], np.uint64), few)
    assert not overlaps(few, np.array([1, 2, 2**64 - 1], np.uint64))
    assert not overlaps(few, np.array([], np.uint64))
    assert not overlaps(np.array([], np.uint64), few)


def test_settings_that_could_never_work_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="payload_size_bytes"):
        AppendSettings(payload_size_bytes=100, uncompacted_size_bytes=50)
