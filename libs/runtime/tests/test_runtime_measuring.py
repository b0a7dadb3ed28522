"""What metrics need beside counters, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from shoal_core.errors import Unavailable
from shoal_runtime.measuring import Polled, Shared, watch_event_loop
from shoal_runtime.sections import TelemetrySection
from shoal_runtime.telemetry import Telemetry, _senders
from shoal_testing.virtual_clock import VirtualClock


async def test_a_polled_answer_is_the_last_one_and_none_after_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock()
    answers: Iterator[int | Exception] = iter([1, 2, Unavailable("away"), ZeroDivisionError("defect"), 5, 6])

    async def ask() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    polled = Polled("thing", ask, clock, interval_ms=1_000)
    assert polled.value is None
    task = asyncio.create_task(polled.run())
    seen: list[int | None] = []
    for _ in range(5):
        await clock.advance(0.5)
        seen.append(polled.value)
        await clock.advance(0.5)
    task.cancel()
    assert seen == [1, 2, None, None, 5]
    assert [record.message for record in caplog.records] == ["cannot measure the thing: away"]


async def test_a_shared_reading_is_made_anew_after_half_a_second() -> None:
    clock, count = VirtualClock(), iter(range(10))
    read = Shared(lambda: next(count), clock)
    assert (read(), read()) == (0, 0)
    await clock.advance(0.4)
    assert read() == 0
    await clock.advance(0.2)
    assert read() == 1


async def test_how_late_the_event_loop_is() -> None:
    class Late(VirtualClock):
        async def sleep(self, seconds: float) -> None:
            await super().sleep(seconds + 0.003)

    clock, late = Late(), list[float]()
    task = asyncio.create_task(watch_event_loop(clock, late.append))
    await clock.advance(1.1)
    task.cancel()
    assert late == pytest.approx([3, 3, 3, 3])


def test_gauges_without_a_value_are_not_shown() -> None:
    telemetry = Telemetry("querynode")
    values: dict[str, float] = {}
    telemetry.gauges("shoal_some", "Some.", lambda: [(value, {"of": name}) for name, value in values.items()])
    telemetry.totals("shoal_sums", "Sums.", lambda: [(value, {"of": name}) for name, value in values.items()])
    assert b"shoal_some{" not in telemetry.render()
    values |= {"a": 1, "b": 2}
    page = telemetry.render()
    assert b'shoal_some{of="a"} 1.0' in page
    assert b'shoal_sums_total{of="b"} 2.0' in page
    telemetry.close()


@pytest.mark.parametrize(
    ("endpoint", "interval_ms", "sent"), [("", 500, 0), ("http://h:1", 0, 0), ("http://h:1", 500, 1)]
)
def test_metrics_are_sent_only_if_both_are_said(endpoint: str, interval_ms: int, sent: int) -> None:
    settings = TelemetrySection(otlp_endpoint=endpoint, metrics_interval_ms=interval_ms)
    senders = _senders(settings)
    assert len(senders) == sent
    for sender in senders:
        sender.shutdown()
