"""Bounded embedding: whatever order calls end in, the vectors are in the order of the texts, and no bound is exceeded."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.embedding import Bounded, CallableEmbedding, EmbeddingFunction, MiniLM, embed_documents
from shoal.embedding.protocol import Vectors
from shoal_core.errors import DimensionMismatch, InvalidArgument, Unavailable
from shoal_testing.strategies import QUICK

WAIT_S = 20


def number_of(text: str) -> int:
    return int(text.removeprefix("text "))


def texts(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


def rows(wanted: Sequence[str]) -> list[list[float]]:
    return [[float(number_of(text)), 1.0] for text in wanted]


class Steps:
    """A clock whose sleepers move it."""

    def __init__(self) -> None:
        self.now = 100.0
        self._moving = threading.Lock()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        with self._moving:
            self.now += seconds


class Shuffled:
    """Holds calls until ``at_once`` are under way, or all that are left, and lets one of them end by chance; so on."""

    def __init__(self, calls: int, at_once: int, seed: int = 0) -> None:
        self._left, self._at_once = calls, at_once
        self._random = random.Random(seed)
        self._changed = threading.Condition()
        self._inside: list[object] = []
        self._let_go: list[object] = []
        self.most = 0
        self.sizes: list[int] = []
        self.ended: list[int] = []

    def __call__(self, wanted: list[str]) -> list[list[float]]:
        me = object()
        with self._changed:
            self.sizes.append(len(wanted))
            self._inside.append(me)
            self.most = max(self.most, len(self._inside))
            self._let_one_go()
            assert self._changed.wait_for(lambda: me in self._let_go, WAIT_S), "fewer calls at once than allowed"
            self._inside.remove(me)
            self._let_go.remove(me)
            self._left -= 1
            self.ended.append(number_of(wanted[0]))
            self._let_one_go()
        return rows(wanted)

    def _let_one_go(self) -> None:
        if self._inside and len(self._inside) == min(self._at_once, self._left) and not self._let_go:
            self._let_go.append(self._random.choice(self._inside))
            self._changed.notify_all()


@settings(QUICK, max_examples=60)
@given(count=st.integers(1, 40), per_call=st.integers(1, 7), at_once=st.integers(1, 6), seed=st.integers(0, 2**16))
def test_the_order_of_the_texts_is_kept_in_any_order_of_the_calls(
    count: int, per_call: int, at_once: int, seed: int
) -> None:
    calls = -(-count // per_call)
    function = Shuffled(calls, at_once, seed)
    bounded = Bounded(CallableEmbedding("f", 2, function), texts_per_call=per_call, concurrency=at_once)
    vectors = bounded.embed_documents(texts(count))
    assert vectors.dtype == np.float32
    assert vectors.tolist() == rows(texts(count))
    assert function.most == min(at_once, calls)  # never more; and no fewer, or `Shuffled` would wait in vain
    assert sorted(function.sizes, reverse=True) == [per_call] * (count // per_call) + [count % per_call] * (
        count % per_call > 0
    )


def test_calls_do_end_out_of_order_here() -> None:
    function = Shuffled(12, 4, seed=1)
    Bounded(CallableEmbedding("f", 2, function), texts_per_call=1).embed_documents(texts(12))
    assert function.ended != sorted(function.ended)


def test_the_bound_holds_for_all_threads_together() -> None:
    function = Shuffled(24, 3)
    bounded = Bounded(CallableEmbedding("f", 2, function), texts_per_call=1, concurrency=3)
    answers: list[Vectors] = []
    users = [threading.Thread(target=lambda: answers.append(bounded.embed_documents(texts(8)))) for _ in range(3)]
    for user in users:
        user.start()
    for user in users:
        user.join(WAIT_S)
        assert not user.is_alive()
    assert [answer.tolist() for answer in answers] == [rows(texts(8))] * 3
    assert function.most == 3


@settings(QUICK, max_examples=60)
@given(
    rate=st.floats(0.01, 1000),
    ages=st.lists(st.sampled_from([0.0, 0.001, 1.0, 500.0]), max_size=15),
    at_once=st.integers(1, 4),
)
def test_no_two_calls_start_closer_than_the_rate_allows(rate: float, ages: list[float], at_once: int) -> None:
    clock = Steps()
    started: list[float] = []
    pauses = iter(ages)

    def timed(wanted: list[str]) -> list[list[float]]:
        started.append(clock.now)
        clock.sleep(next(pauses, 0.0))
        return rows(wanted)

    function = CallableEmbedding("f", 2, timed)
    bounded = Bounded(function, texts_per_call=2, concurrency=at_once, calls_per_second=rate, clock=clock)
    assert bounded.embed_queries(texts(21)).tolist() == rows(texts(21))
    assert len(started) == 11
    if at_once == 1:  # with several, a call may note its start after the next has moved the clock
        assert min(np.diff(started)) >= 1 / rate * (1 - 1e-9)
        assert bounded.embed_queries(texts(1)).tolist() == rows(texts(1))
        assert started[-1] - started[-2] >= 1 / rate * (1 - 1e-9)  # the next request waits too
    elapsed = max(started) - 100.0
    assert len(started) <= 1 + elapsed * rate * (1 + 1e-9)


def test_without_a_rate_nobody_sleeps() -> None:
    clock = Steps()
    Bounded(CallableEmbedding("f", 2, rows), texts_per_call=1, clock=clock).embed_documents(texts(50))
    assert clock.now == 100.0


class Failing:
    """Fails at one call; counts the calls."""

    def __init__(self, at: int, answer: Any = None) -> None:
        self.at, self.answer = at, answer
        self.lock = threading.Lock()
        self.calls = 0

    def __call__(self, wanted: list[str]) -> Any:
        with self.lock:
            self.calls += 1
        if number_of(wanted[0]) < self.at:
            return rows(wanted)
        if self.answer is None:
            raise Unavailable("the service is away")
        return self.answer


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("rate", [None, 10.0])
def test_the_first_error_ends_it_and_no_call_is_started_after_it(at_once: int, rate: float | None) -> None:
    function = Failing(at=10)
    bounded = Bounded(
        CallableEmbedding("f", 2, function),
        texts_per_call=1,
        concurrency=at_once,
        calls_per_second=rate,
        clock=Steps(),
    )
    with pytest.raises(Unavailable, match="away"):
        bounded.embed_documents(texts(1000))
    assert 11 <= function.calls <= 10 + at_once
    function.at = 10**9
    assert bounded.embed_documents(texts(30)).tolist() == rows(texts(30))  # and the next request works


def test_calls_under_way_are_waited_for() -> None:
    """Nothing of a failed request goes on behind its back."""
    failed, ended = threading.Event(), []

    def slow_and_failing(wanted: list[str]) -> list[list[float]]:
        if number_of(wanted[0]) == 1:
            failed.set()
            raise Unavailable("away")
        assert failed.wait(WAIT_S)
        ended.append(wanted[0])
        return rows(wanted)

    bounded = Bounded(CallableEmbedding("f", 2, slow_and_failing), texts_per_call=1, concurrency=2)
    with pytest.raises(Unavailable):
        bounded.embed_documents(texts(9))
    assert ended == ["text 0"]


@pytest.mark.parametrize(
    ("answer", "error", "field"),
    [
        ([[1.0, 1.0]], InvalidArgument, "documents[4:6]"),  # one vector for two texts
        ([[1.0, 1.0]] * 3, InvalidArgument, "documents[4:6]"),
        ([[1.0], [1.0]], DimensionMismatch, "documents[4:6]"),
        ([[1.0, 1.0], [1.0, float("nan")]], InvalidArgument, "documents[4:6][1]"),
        ([1.0, 1.0], InvalidArgument, "documents[4:6]"),
        ("no", InvalidArgument, "documents[4:6]"),
    ],
)
@pytest.mark.parametrize("dimension", [None, 2])
def test_every_answer_is_checked(answer: Any, error: type[Exception], field: str, dimension: int | None) -> None:
    class Unchecked:
        name = "unchecked"

        def __init__(self) -> None:
            self.dimension = dimension
            self.call = Failing(4, answer)

        def embed_documents(self, texts: Sequence[str]) -> Any:
            return self.call(list(texts))

        embed_queries = embed_documents

    function = Unchecked()
    with pytest.raises(error) as caught:
        Bounded(function, texts_per_call=2, concurrency=1).embed_documents(texts(100))
    assert type(caught.value) is error
    assert getattr(caught.value, "field", "") == field
    assert function.call.calls == 3


def test_it_is_the_function_within() -> None:
    bounded = Bounded(CallableEmbedding("f", 2, rows))
    assert isinstance(bounded, EmbeddingFunction)
    assert (bounded.name, bounded.dimension) == ("f", 2)
    assert embed_documents(bounded, texts(130)).tolist() == rows(texts(130))
    assert bounded.embed_documents([]).shape == (0, 2)
    assert Bounded(CallableEmbedding("f", None, rows)).embed_queries([]).shape == (0, 0)
    with pytest.raises(InvalidArgument, match="list of texts"):
        bounded.embed_documents("text 1")


@pytest.mark.parametrize(
    "bounds",
    [
        {"texts_per_call": 0},
        {"texts_per_call": 1.5},
        {"concurrency": 0},
        {"concurrency": True},
        {"calls_per_second": 0},
        {"calls_per_second": -1.0},
        {"calls_per_second": float("nan")},
        {"calls_per_second": float("inf")},
        {"calls_per_second": "5"},
    ],
)
def test_bounds_that_cannot_be_are_refused(bounds: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Bounded(CallableEmbedding("f", 2, rows), **bounds)
    assert caught.value.field == next(iter(bounds))


@pytest.mark.parametrize("function", [rows, MiniLM, None])
def test_what_is_no_function_is_refused(function: Any) -> None:
    with pytest.raises(InvalidArgument, match="no embedding function"):
        Bounded(function)
