"""The gateway's core in virtual time: order, bounds, retries, deadlines, the circuit, the cache; nothing here sleeps."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.embedding.core import GatewayCore, Identity
from shoal.embedding.limits import CircuitBreaker, GatewayLimits, TokenBucket, backoff_s, retry_after_ms
from shoal.embedding.protocol import Side
from shoal_core.errors import (
    DeadlineExceeded,
    DimensionMismatch,
    InvalidArgument,
    ResourceExhausted,
    ShoalError,
    Unavailable,
)
from shoal_testing.embedding_stub import vector_of
from shoal_testing.strategies import examples
from shoal_testing.virtual_clock import SeededRandom, VirtualClock

FREE = GatewayLimits(timeout_ms=None, call_timeout_ms=None)
Step = Callable[[Sequence[str]], Any]


@dataclass
class Scripted:
    """A backend: each call takes some time and then does the next step of a script; after the last it answers rightly."""

    clock: VirtualClock
    steps: list[Any] = field(default_factory=list)
    takes_s: Callable[[], float] = lambda: 0.0
    started: list[float] = field(default_factory=list)
    calls: list[list[str]] = field(default_factory=list)
    inside: int = 0
    most: int = 0

    async def call(self, texts: Sequence[str], side: Side) -> object:
        self.started.append(self.clock.monotonic())
        self.calls.append(list(texts))
        step = self.steps.pop(0) if self.steps else None
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            if (pause_s := self.takes_s()) > 0:
                await self.clock.sleep(pause_s)
        finally:
            self.inside -= 1
        if isinstance(step, Exception):
            raise step
        if callable(step):
            return step(texts)
        return [vector_of(f"{side}{text}") for text in texts]


def core_of(
    backend: Scripted, limits: GatewayLimits = FREE, dimension: int | None = None, seed: int = 0
) -> GatewayCore:
    return GatewayCore(Identity("f", "f", dimension), backend, limits, backend.clock, SeededRandom(seed))


def texts(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


def expected(wanted: Sequence[str], side: Side = Side.DOCUMENTS) -> list[list[float]]:
    return [vector_of(f"{side}{text}").tolist() for text in wanted]


async def embedded(core: GatewayCore, clock: VirtualClock, wanted: Sequence[str], **more: Any) -> Any:
    side = more.pop("side", Side.DOCUMENTS)
    return await clock.run(core.embed(wanted, side, field="documents", **more))


# --- order and bounds


@examples(80)
@given(
    count=st.integers(0, 60),
    per_call=st.integers(1, 9),
    characters=st.integers(1, 60),
    at_once=st.integers(1, 6),
    cache=st.sampled_from([0, 1 << 20]),
    copies=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_the_order_is_that_of_the_texts_in_any_order_of_the_calls(
    count: int, per_call: int, characters: int, at_once: int, cache: int, copies: int, seed: int
) -> None:
    clock, chance = VirtualClock(), random.Random(seed)
    backend = Scripted(clock, takes_s=lambda: chance.choice([0.0, 0.1, 0.2, 5.0]))
    limits = GatewayLimits(
        texts_per_call=per_call,
        characters_per_call=characters,
        concurrency=at_once,
        cache_size_bytes=cache,
        timeout_ms=None,
    )
    wanted = texts(count) * copies
    chance.shuffle(wanted)
    vectors = asyncio.run(embedded(core_of(backend, limits), clock, wanted))
    assert vectors.dtype == np.float32
    assert vectors.tolist() == expected(wanted)
    assert backend.most <= at_once
    assert all(len(call) <= per_call for call in backend.calls)
    assert all(len(call) == 1 or sum(map(len, call)) <= characters for call in backend.calls)


@examples(60)
@given(
    rate=st.floats(0.01, 1000),
    burst=st.integers(1, 5),
    at_once=st.integers(1, 4),
    slow=st.lists(st.sampled_from([0.0, 0.001, 1.0, 500.0]), min_size=1, max_size=9),
)
def test_no_more_calls_start_than_the_rate_and_its_burst_allow(
    rate: float, burst: int, at_once: int, slow: list[float]
) -> None:
    clock, chance = VirtualClock(), random.Random(1)
    backend = Scripted(clock, takes_s=lambda: chance.choice(slow))
    limits = GatewayLimits(
        texts_per_call=2,
        concurrency=at_once,
        calls_per_second=rate,
        burst_calls=burst,
        timeout_ms=None,
        call_timeout_ms=None,
    )
    core = core_of(backend, limits)

    async def two_users() -> list[Any]:
        both = (core.embed(texts(21), side, field="documents") for side in Side)
        return await clock.run(asyncio.gather(*both))

    answers = asyncio.run(two_users())
    assert [answer.tolist() for answer in answers] == [expected(texts(21), side) for side in Side]
    started = backend.started
    assert len(started) == 22
    for first in range(len(started)):
        for last in range(first, len(started)):
            assert last - first + 1 <= burst + rate * (started[last] - started[first]) + 1e-6


async def test_a_bound_holds_for_all_that_use_it_together() -> None:
    clock = VirtualClock()
    backend = Scripted(clock, takes_s=lambda: 1.0)
    core = core_of(backend, GatewayLimits(texts_per_call=1, concurrency=3, timeout_ms=None))
    await clock.run(asyncio.gather(*(core.embed(texts(4), Side.QUERIES, field="q") for _ in range(5))))
    assert backend.most == 3


async def test_a_text_that_is_too_long_for_a_call_goes_alone() -> None:
    clock = VirtualClock()
    backend = Scripted(clock)
    await embedded(core_of(backend, GatewayLimits(characters_per_call=5)), clock, ["aa", "bb", "c" * 50, "d"])
    assert backend.calls == [["aa", "bb"], ["c" * 50], ["d"]]


async def test_progress_is_told_after_each_batch() -> None:
    clock = VirtualClock()
    told: list[tuple[int, int]] = []
    core = core_of(Scripted(clock), GatewayLimits(texts_per_call=2, concurrency=1))
    await embedded(core, clock, texts(5), on_progress=lambda done, total: told.append((done, total)))
    assert told == [(2, 5), (4, 5), (5, 5)]


# --- retries


@pytest.mark.parametrize("failure", [Unavailable("x"), ResourceExhausted("x"), DeadlineExceeded("x")])
async def test_attempts_are_bounded(failure: ShoalError) -> None:
    clock = VirtualClock()
    backend = Scripted(clock, [failure] * 9)
    core = core_of(backend, GatewayLimits(attempts=3))
    with pytest.raises(type(failure), match="after 3 attempts"):
        await embedded(core, clock, ["a"])
    assert len(backend.calls) == 3
    assert (core.counters.calls, core.counters.retries) == (3, 2)


async def test_what_another_attempt_cannot_help_is_not_tried_again() -> None:
    clock = VirtualClock()
    backend = Scripted(clock, [InvalidArgument("no")])
    with pytest.raises(InvalidArgument):
        await embedded(core_of(backend), clock, ["a"])
    assert len(backend.calls) == 1


async def test_the_first_failure_ends_the_calls_under_way() -> None:
    clock = VirtualClock()
    backend = Scripted(clock, [None, InvalidArgument("no")], takes_s=iter([100.0, 1.0, 100.0, 100.0]).__next__)
    with pytest.raises(InvalidArgument):
        await embedded(core_of(backend, GatewayLimits(texts_per_call=1, concurrency=2)), clock, texts(9))
    assert (len(backend.calls), backend.inside, clock.monotonic()) == (2, 0, 1.0)


async def test_retry_after_is_waited_for_by_all_calls() -> None:
    clock = VirtualClock()
    backend = Scripted(
        clock, [ResourceExhausted("x", retry_after_ms=7_000)], takes_s=iter([1.0, 2.0, 0, 0, 0]).__next__
    )
    core = core_of(backend, GatewayLimits(texts_per_call=1, concurrency=2, first_backoff_ms=0))
    vectors = await embedded(core, clock, texts(4))
    assert vectors.tolist() == expected(texts(4))
    assert backend.started == [0.0, 0.0, 8.0, 8.0, 8.0]


async def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    clock = VirtualClock()
    backend = Scripted(clock, [ResourceExhausted("x", retry_after_ms=3_600_000)])
    with pytest.raises(ResourceExhausted) as caught:
        await embedded(core_of(backend, GatewayLimits(timeout_ms=60_000)), clock, ["a"])
    assert caught.value.retry_after_ms == 3_600_000
    assert clock.monotonic() == 0.0


@given(attempt=st.integers(1, 200), uniform=st.floats(0, 1, exclude_max=True))
def test_backoff_is_exponential_with_full_jitter_and_bounded(attempt: int, uniform: float) -> None:
    limits = GatewayLimits(first_backoff_ms=100, longest_backoff_ms=5_000)
    assert 0 <= backoff_s(limits, attempt, uniform) <= min(5.0, 0.1 * 2 ** (attempt - 1))
    assert backoff_s(limits, attempt, 0.0) == 0.0


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, 0),
        ("", 0),
        ("soon", 0),
        ("-1", 0),
        ("0", 0),
        ("120", 120_000),
        ("9" * 400, 999_999_999_000),
        ("Tue, 14 Nov 2023 22:13:30 GMT", 10_000),
        ("Tue, 14 Nov 2023 22:13:10 GMT", 0),
        ("Tue, 99 Nov 2023 22:13:10 GMT", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, wanted: int) -> None:
    assert retry_after_ms(value, 1_700_000_000_000_000_000) == wanted  # 22:13:20


# --- deadlines


@pytest.mark.parametrize(
    ("limits", "steps", "takes_s"),
    [
        ({}, [], 100.0),  # in a call
        ({"call_timeout_ms": 700, "first_backoff_ms": 1}, [], 100.0),  # in one of several attempts
        ({"calls_per_second": 0.1, "texts_per_call": 1}, [], 0.0),  # waiting for the rate
        ({"concurrency": 1, "texts_per_call": 1}, [], 0.9),  # waiting for others
        ({"first_backoff_ms": 10**6, "longest_backoff_ms": 10**6}, [Unavailable("x")] * 9, 0.3),  # before a pause
    ],
)
async def test_a_deadline_is_a_deadline(limits: dict[str, Any], steps: list[Any], takes_s: float) -> None:
    clock = VirtualClock()
    backend = Scripted(clock, steps, takes_s=lambda: takes_s)
    bounded = GatewayLimits(**{"timeout_ms": 2_000, "call_timeout_ms": None, "attempts": 100, **limits})
    with pytest.raises((DeadlineExceeded, Unavailable)):
        await embedded(core_of(backend, bounded), clock, texts(9))
    assert clock.monotonic() <= 2.0
    await clock.settle()
    assert backend.inside == 0


async def test_a_call_that_does_not_answer_is_tried_again() -> None:
    clock = VirtualClock()
    backend = Scripted(clock, takes_s=iter([100.0, 0.0]).__next__)
    vectors = await embedded(core_of(backend, GatewayLimits(call_timeout_ms=1_000, first_backoff_ms=0)), clock, ["a"])
    assert vectors.tolist() == expected(["a"])
    assert backend.started == [0.0, 1.0]


async def test_cancelling_ends_the_calls() -> None:
    clock = VirtualClock()
    backend = Scripted(clock, takes_s=lambda: 50.0)
    core = core_of(backend)
    task = asyncio.ensure_future(core.embed(texts(3), Side.DOCUMENTS, field="documents"))
    await clock.settle()
    assert backend.inside == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert backend.inside == 0


# --- the circuit


async def test_a_service_that_does_not_answer_is_left_alone_for_a_while() -> None:
    clock = VirtualClock()
    backend = Scripted(clock, [Unavailable("down")] * 4)
    core = core_of(backend, GatewayLimits(attempts=1, failures_to_open=3, open_ms=10_000, cache_size_bytes=0))
    for _ in range(3):
        with pytest.raises(Unavailable, match="down"):
            await embedded(core, clock, ["a"])
    with pytest.raises(Unavailable, match="left alone") as caught:
        await embedded(core, clock, ["a"])
    assert caught.value.retry_after_ms == 10_000
    assert len(backend.calls) == 3, "nothing is asked while it is open"
    await clock.advance(10.0)
    with pytest.raises(Unavailable, match="down"):  # half open: one call, which fails
        await embedded(core, clock, ["a"])
    with pytest.raises(Unavailable, match="left alone"):
        await embedded(core, clock, ["a"])
    await clock.advance(10.0)
    assert (await embedded(core, clock, ["a"])).tolist() == expected(["a"])
    assert (await embedded(core, clock, ["b"])).tolist() == expected(["b"])
    assert len(backend.calls) == 6


async def test_batches_that_fail_together_wait_for_the_circuit_that_they_open() -> None:
    clock = VirtualClock()
    backend = Scripted(clock, [Unavailable("down")] * 5)
    limits = GatewayLimits(texts_per_call=1, concurrency=4, failures_to_open=4, open_ms=10_000, cache_size_bytes=0)
    vectors = await embedded(core_of(backend, limits), clock, texts(8))
    assert vectors.tolist() == expected(texts(8))
    assert len(backend.calls) == 5 + 8
    assert backend.started[4] >= 10.0, "nothing is asked while it is open"


async def test_an_open_circuit_is_not_waited_for_beyond_the_deadline() -> None:
    clock = VirtualClock()
    backend = Scripted(clock, [Unavailable("down")] * 9)
    core = core_of(backend, GatewayLimits(failures_to_open=2, open_ms=10_000, timeout_ms=5_000))
    with pytest.raises(Unavailable, match="left alone"):
        await embedded(core, clock, ["a"])
    assert len(backend.calls) == 2


async def test_a_trial_that_was_given_up_leaves_room_for_another() -> None:
    clock = VirtualClock()
    backend = Scripted(clock, [Unavailable("down")], takes_s=iter([0.0, 50.0, 0.0]).__next__)
    core = core_of(backend, GatewayLimits(attempts=1, failures_to_open=1, open_ms=1_000))
    with pytest.raises(Unavailable, match="down"):
        await embedded(core, clock, ["a"])
    await clock.advance(1.0)
    trial = asyncio.ensure_future(core.embed(["a"], Side.DOCUMENTS, field="documents"))
    await clock.settle()
    trial.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trial
    assert (await embedded(core, clock, ["a"])).tolist() == expected(["a"])


def test_half_open_admits_one_call() -> None:
    breaker = CircuitBreaker(1, 1_000)
    breaker.admit(0.0, "f")
    breaker.failed(0.0)
    assert breaker.state == "open"
    breaker.admit(1.0, "f")
    assert breaker.state == "half-open"
    with pytest.raises(Unavailable):
        breaker.admit(1.0, "f")
    breaker.abandoned()
    breaker.admit(1.0, "f")
    breaker.succeeded()
    assert breaker.state == "closed"


def test_a_bucket_grants_a_burst_and_more_than_it_when_full() -> None:
    bucket = TokenBucket(10.0, burst=5)
    assert bucket.wait_s(0.0, 5) == 0
    bucket.take(0.0, 5)
    assert bucket.wait_s(0.0, 1) == pytest.approx(0.1)
    assert bucket.wait_s(0.5, 50) == 0, "what is more than the burst waits for a full bucket, not for ever"
    bucket.pause(9.0)
    assert bucket.wait_s(1.0, 1) == pytest.approx(8.0)


# --- answers and the cache


def without_last(wanted: Sequence[str]) -> Any:
    return [vector_of(text).tolist() for text in wanted][:-1]


@pytest.mark.parametrize(
    ("answer", "error", "place"),
    [
        (without_last, InvalidArgument, "documents[2:4]"),
        (lambda wanted: None, InvalidArgument, "documents[2:4]"),
        (lambda wanted: [[1.0], [float("nan")]], DimensionMismatch, "documents[2:4]"),
        (lambda wanted: [[1.0] * 6, [float("nan")] * 6], InvalidArgument, "documents[3]"),
        (lambda wanted: [[0.0] * 6, [1.0] * 6], InvalidArgument, "documents[2]"),
    ],
)
async def test_an_answer_that_does_not_fit_names_the_texts(answer: Step, error: type[ShoalError], place: str) -> None:
    clock = VirtualClock()
    backend = Scripted(clock, [None, answer])
    with pytest.raises(error) as caught:
        await embedded(core_of(backend, GatewayLimits(texts_per_call=2, concurrency=1)), clock, texts(5))
    assert caught.value.field == place
    assert len(backend.calls) == 2


@pytest.mark.parametrize("declared", [5, None])
async def test_the_dimension_is_the_declared_one_or_the_first_one_throughout(declared: int | None) -> None:
    clock = VirtualClock()
    backend = Scripted(clock, [None, lambda wanted: [[1.0] * 7] * len(wanted)])
    with pytest.raises(DimensionMismatch):
        await embedded(core_of(backend, GatewayLimits(texts_per_call=1), dimension=declared), clock, texts(2))
    with pytest.raises(DimensionMismatch):
        await embedded(core_of(Scripted(clock)), clock, ["a"], dimension=4)


async def test_a_text_is_asked_for_once_and_sides_are_apart() -> None:
    clock = VirtualClock()
    backend = Scripted(clock)
    core = core_of(backend)
    assert (await embedded(core, clock, ["a", "b", "a"])).tolist() == expected(["a", "b", "a"])
    assert (await embedded(core, clock, ["c", "b"])).tolist() == expected(["c", "b"])
    assert (await embedded(core, clock, ["a"], side=Side.QUERIES)).tolist() == expected(["a"], Side.QUERIES)
    assert backend.calls == [["a", "b"], ["c"], ["a"]]
    assert (core.counters.texts, core.counters.cached_texts) == (6, 2)


async def test_the_cache_is_bounded_by_bytes_least_recently_used_first_out() -> None:
    clock = VirtualClock()
    backend = Scripted(clock)
    core = core_of(backend, GatewayLimits(cache_size_bytes=2 * (200 + 6 * 4), texts_per_call=1))
    for wanted in ("a", "b", "a", "c", "a", "b"):
        await embedded(core, clock, [wanted])
    assert backend.calls == [["a"], ["b"], ["c"], ["b"]]
    assert core._cache.size_bytes <= 2 * (200 + 6 * 4)


async def test_without_a_cache_every_text_is_asked_for() -> None:
    clock = VirtualClock()
    backend = Scripted(clock)
    core = core_of(backend, GatewayLimits(cache_size_bytes=0))
    await embedded(core, clock, ["a", "a"])
    await embedded(core, clock, ["a"])
    assert backend.calls == [["a", "a"], ["a"]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"texts_per_call": 0},
        {"concurrency": True},
        {"attempts": 1.5},
        {"calls_per_second": 0},
        {"calls_per_second": float("inf")},
        {"calls_per_second": "5"},
        {"timeout_ms": 0},
        {"cache_size_bytes": -1},
        {"burst_calls": None},
    ],
)
def test_bounds_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        GatewayLimits(**wrong)
    assert caught.value.field == next(iter(wrong))
