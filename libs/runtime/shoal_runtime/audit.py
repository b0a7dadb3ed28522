"""The audit log: JSON lines of the logger ``shoal.audit``, between the other logs or in a file of their own."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import TextIO

from shoal_core.audit import AuditEvent, Outcome
from shoal_core.errors import InvalidArgument
from shoal_core.ports import Clock
from shoal_runtime.logs import JsonFormatter, add_trace

LOGGER = "shoal.audit"
MAX_FIELD_CHARACTERS = 256


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """See `shoal_runtime.sections.AuditSection`."""

    refusals_per_s: float = 20.0
    refusal_burst: int = 200


class AuditLog:
    """Writes events. What was not done is what anybody can cause at will, so the number of such lines in a second is bounded; none is
    left out unseen.

    `record` may be called in any thread.
    """

    def __init__(self, clock: Clock, settings: AuditSettings | None = None) -> None:
        self._clock = clock
        self._settings = settings or AuditSettings()
        self._logger = logging.getLogger(LOGGER)
        self._allowed = float(self._settings.refusal_burst)
        self._counted_at_s = clock.monotonic()
        self._left_out = 0
        self._lock = Lock()
        self.counts = dict.fromkeys(Outcome, 0)

    def record(self, event: AuditEvent) -> None:
        """For `shoal_core.audit.Audit`."""
        fields: dict[str, str | int] = {name: _cut(value) for name, value in asdict(event).items() if value}
        level = logging.INFO if event.outcome is Outcome.DONE else logging.WARNING
        with self._lock:
            self.counts[event.outcome] += 1
            if event.outcome is not Outcome.DONE:
                if not self._may_write():
                    self._left_out += 1
                    return
                if self._left_out:
                    fields["left_out"] = self._left_out
                    self._left_out = 0
        self._logger.log(level, "%s %s", fields["verb"], event.outcome, extra=fields)

    def _may_write(self) -> bool:
        now_s = self._clock.monotonic()
        earned = (now_s - self._counted_at_s) * self._settings.refusals_per_s
        self._counted_at_s = now_s
        self._allowed = min(float(self._settings.refusal_burst), self._allowed + earned)
        if self._allowed < 1:
            return False
        self._allowed -= 1
        return True


def _cut(value: str) -> str:
    """What comes from a request may be as long as a message."""
    return value if len(value) <= MAX_FIELD_CHARACTERS else f"{value[:MAX_FIELD_CHARACTERS]}…"


def configure_audit(file: Path | None, *, service: str = "", stream: TextIO | None = None) -> None:
    """Let audit lines be written, as JSON and whatever the level of other logs: to ``file``, or else to ``stream`` (standard error).

    Raises `InvalidArgument` for a file that cannot be appended to.
    """
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.INFO)
    for old in logger.handlers:
        old.close()
    logger.handlers = []
    logger.propagate = False
    handler = logging.StreamHandler(stream) if file is None else _file_handler(file)
    handler.addFilter(add_trace)
    handler.setFormatter(JsonFormatter(service))
    logger.addHandler(handler)


def _file_handler(file: Path) -> logging.Handler:
    try:
        return logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise InvalidArgument(f"{file} cannot be appended to: {error.strerror or error}", field="audit.file") from error
