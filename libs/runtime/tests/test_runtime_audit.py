"""The audit log: what a line has, where it goes, and that strangers cannot fill the disk with it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shoal_core.audit import AuditEvent, Outcome
from shoal_core.errors import InvalidArgument
from shoal_runtime.audit import LOGGER, AuditLog, AuditSettings, configure_audit
from shoal_testing.virtual_clock import VirtualClock

DONE = AuditEvent("delete_collection", Outcome.DONE, "token:1", "10.0.0.9:1", "acme", "main", "docs")
REFUSED = AuditEvent("get", Outcome.REFUSED, "token:2", tenant="zeta", reason="NotFound")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    logger = logging.getLogger(LOGGER)
    before = (logger.level, list(logger.handlers), logger.propagate)
    yield
    configure_audit(None)  # closes what a test opened
    logger.level, logger.handlers, logger.propagate = before


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_line_is_one_object_with_what_is_known(tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    configure_audit(file, service="frontend")
    log = AuditLog(VirtualClock())
    log.record(DONE)
    log.record(REFUSED)
    first, second = lines(file)
    assert {
        key: first[key] for key in ("verb", "outcome", "principal", "peer", "tenant", "database", "collection")
    } == {
        "verb": "delete_collection",
        "outcome": "done",
        "principal": "token:1",
        "peer": "10.0.0.9:1",
        "tenant": "acme",
        "database": "main",
        "collection": "docs",
    }
    assert first["level"] == "INFO"
    assert first["service"] == "frontend"
    assert first["logger"] == LOGGER
    assert "reason" not in first
    assert "detail" not in first
    assert second["level"] == "WARNING"
    assert second["reason"] == "NotFound"
    assert "collection" not in second


def test_without_a_file_lines_go_to_the_stream_as_json_whatever_other_logs_look_like() -> None:
    stream = io.StringIO()
    configure_audit(None, stream=stream)
    others = logging.getLogger("shoal")
    before = others.level
    others.setLevel(logging.ERROR)
    try:
        AuditLog(VirtualClock()).record(DONE)
    finally:
        others.setLevel(before)
    assert json.loads(stream.getvalue())["collection"] == "docs"


def test_what_comes_from_a_request_is_cut() -> None:
    stream = io.StringIO()
    configure_audit(None, stream=stream)
    AuditLog(VirtualClock()).record(replace(REFUSED, tenant="t" * 1_000_000, detail="x\ny"))
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["tenant"] == "t" * 256 + "…"
    assert json.loads(line)["detail"] == "x\ny"


def test_a_file_that_cannot_be_written_is_an_error_of_the_setting(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as caught:
        configure_audit(tmp_path / "missing" / "audit.log")
    assert caught.value.field == "audit.file"


async def test_what_was_not_done_is_bounded_and_what_is_left_out_is_counted() -> None:
    clock, stream = VirtualClock(), io.StringIO()
    configure_audit(None, stream=stream)
    log = AuditLog(clock, AuditSettings(refusals_per_s=2.0, refusal_burst=3))
    for number in range(10):
        log.record(replace(REFUSED, outcome=Outcome.FAILED) if number % 2 else REFUSED)
    log.record(DONE)  # what was done is always written
    first = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["outcome"] for line in first] == ["refused", "failed", "refused", "done"]
    await clock.advance(1.0)
    stream.truncate(0)
    for _ in range(10):
        log.record(REFUSED)
    written = [json.loads(line.lstrip("\0")) for line in stream.getvalue().splitlines()]
    assert [line.get("left_out", 0) for line in written] == [7, 0]
    assert log.counts == {Outcome.DONE: 1, Outcome.FAILED: 5, Outcome.REFUSED: 15}
