"""The audit log: lines of the logger ``shoal.audit``, among the other logs or in a file of their own."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from shoal_core.audit import AuditEvent, Outcome
from shoal_core.errors import InvalidArgument
from shoal_core.ports import Clock
from shoal_runtime.logs import JsonFormatter, add_trace

LOGGER = "shoal.audit"


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """See `shoal_runtime.sections.AuditSection`."""

    refusals_per_s: float = 20.0
    refusal_burst: int = 200


class AuditLog:
    """Writes events. Refusals are what strangers can cause at will, so their number in a second is bounded; none is dropped unseen.

    `record` may be called in any thread.
    """

    def __init__(self, clock: Clock, settings: AuditSettings | None = None) -> None:
        self._clock = clock
        self._settings = settings or AuditSettings()
        self._logger = logging.getLogger(LOGGER)
        self._allowed = float(self._settings.refusal_burst)
        self._counted_at_s = clock.monotonic()
        self._left_out = 0
        self.counts = dict.fromkeys(Outcome, 0)

    def record(self, event: AuditEvent) -> None:
        """For `shoal_core.audit.Audit`."""
        self.counts[event.outcome] += 1
        fields = {name: value for name, value in asdict(event).items() if value}
        if event.outcome is not Outcome.REFUSED:
            self._logger.info("%s %s", event.verb, event.outcome, extra=fields)
            return
        if not self._may_write():
            self._left_out += 1
            return
        if self._left_out:
            fields["left_out"] = self._left_out
            self._left_out = 0
        self._logger.warning("%s %s", event.verb, event.outcome, extra=fields)

    def _may_write(self) -> bool:
        now_s = self._clock.monotonic()
        earned = (now_s - self._counted_at_s) * self._settings.refusals_per_s
        self._counted_at_s = now_s
        self._allowed = min(float(self._settings.refusal_burst), self._allowed + earned)
        if self._allowed < 1:
            return False
        self._allowed -= 1
        return True


def configure_audit(file: Path | None, *, service: str = "") -> None:
    """Let audit lines be written whatever the level of other logs: to ``file`` alone, or where those go.

    Raises `InvalidArgument` for a file that cannot be appended to.
    """
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.INFO)
    for old in logger.handlers:
        old.close()
    logger.handlers = []
    logger.propagate = file is None
    if file is None:
        return
    try:
        handler = logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise InvalidArgument(f"{file} cannot be appended to: {error.strerror or error}", field="audit.file") from error
    handler.addFilter(add_trace)
    handler.setFormatter(JsonFormatter(service))
    logger.addHandler(handler)
