"""What reads wait: the mean that scaling goes by, and the waits told."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from opentelemetry import trace

from shoal_core.errors import ResourceExhausted
from shoal_query.admission import Admission
from shoal_query.queue_time import ADMISSION, EXECUTOR, QueueTime
from shoal_query.rounds import Rounds
from shoal_query.services import Services
from shoal_testing.direct import DirectSystem, no_thread_use
from shoal_testing.schedules import settle
from shoal_testing.spans import RecordedSpans, id_of, linked_from, parent_of
from shoal_testing.virtual_clock import VirtualClock


async def test_the_mean_is_of_all_waits_per_read_over_thirty_seconds() -> None:
    clock = VirtualClock()
    queue_time = QueueTime(clock)
    assert queue_time.recent_mean_ms() == 0
    for _ in range(4):
        queue_time.waited(ADMISSION, 10)
        queue_time.waited(EXECUTOR, 20)
        queue_time.waited(EXECUTOR, 30)
    assert queue_time.recent_mean_ms() == 60
    await clock.advance(12)
    for _ in range(4):
        queue_time.waited(ADMISSION, 0)
    assert queue_time.recent_mean_ms() == 30
    await clock.advance(20)  # the first ones are more than 30 s old
    assert queue_time.recent_mean_ms() == 0
    queue_time.waited(ADMISSION, 8)
    assert queue_time.recent_mean_ms() == pytest.approx(8 / 5)
    await clock.advance(60)
    assert queue_time.recent_mean_ms() == 0


async def test_a_reading_changes_nothing() -> None:
    """It may happen in another thread, in the middle of a wait that is told."""
    clock = VirtualClock()
    queue_time = QueueTime(clock)
    queue_time.waited(ADMISSION, 10)
    await clock.advance(60)
    assert queue_time.recent_mean_ms() == 0
    assert len(queue_time._steps) == 1


async def test_what_is_remembered_is_bounded() -> None:
    clock = VirtualClock()
    queue_time = QueueTime(clock)
    for _ in range(500):
        queue_time.waited(ADMISSION, 1)
        await clock.advance(1)
    assert len(queue_time._steps) <= 7
    assert queue_time.recent_mean_ms() == 1


async def test_admission_tells_waits_and_counts_refusals() -> None:
    clock, told = VirtualClock(), list[tuple[str, float]]()
    admission = Admission(1, 1, QueueTime(clock, lambda *wait: told.append(wait)))

    async def read() -> None:
        async with admission.admitted():
            await clock.sleep(0.2)

    reads = [asyncio.create_task(read()) for _ in range(2)]
    await settle()
    with pytest.raises(ResourceExhausted):
        await read()
    await clock.run(asyncio.gather(*reads))
    assert told == [(ADMISSION, 0), (ADMISSION, 200)]
    assert (admission.refused, admission.present) == (1, 0)


async def test_work_in_a_thread_has_its_callers_context_and_tells_its_wait(spans: RecordedSpans) -> None:
    """What it logs names the caller's trace; an executor alone would not carry it over."""
    system, told = DirectSystem(), list[str]()
    with ThreadPoolExecutor(1) as executor:
        services = Services(
            system.catalog, system.log, system.objects, system.blocks, system.clock, executor, no_thread_use
        )
        services.queue_time.on_wait = lambda queue, waited_ms: told.append(queue)
        with spans.tracer.start_as_current_span("read") as read:
            within = await services.compute(trace.get_current_span)
        await services.compute(trace.get_current_span)
    span = spans.one("query compute")
    assert (parent_of(span), id_of(within)) == (id_of(read), id_of(span))
    assert (span.attributes or {})["shoal.queue_ms"] == 0
    assert told == [EXECUTOR, EXECUTOR]


async def test_a_round_is_the_first_askers_and_linked_to_the_others(spans: RecordedSpans) -> None:
    gate = asyncio.Event()

    async def send() -> int:
        await gate.wait()
        return 1

    rounds = Rounds(send)

    async def ask(name: str) -> None:
        with spans.tracer.start_as_current_span(name):
            await rounds.ask()

    first = asyncio.create_task(ask("a"))
    await settle()
    others = [asyncio.create_task(ask(name)) for name in "bcd"]
    await settle()
    gate.set()
    await asyncio.gather(first, *others)
    a, b, c, d = (spans.one(name) for name in "abcd")
    alone, shared = spans.named("query catch up")
    assert (parent_of(alone), linked_from(alone)) == (id_of(a), set())
    assert (parent_of(shared), linked_from(shared)) == (id_of(b), {id_of(c), id_of(d)})
    assert linked_from(c) == linked_from(d) == {id_of(shared)}
