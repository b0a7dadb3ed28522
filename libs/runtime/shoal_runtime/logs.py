"""Logging for machines (one JSON object per line) or people, with the ids of the current trace on every line."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from opentelemetry import trace

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "trace_id",
    "span_id",
    "color_message",  # uvicorn's, for terminals
}


def configure_logging(
    level: str = "INFO", *, as_json: bool = True, service: str = "", stream: TextIO | None = None
) -> None:
    """Make the root logger write to ``stream`` (standard error), replacing what was configured before.

    Args:
        level: DEBUG, INFO, WARNING or ERROR.
        as_json: one object per line; keys that callers pass as ``extra`` become members.
        service: a member of every line, if given.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.addFilter(add_trace)
    handler.setFormatter(JsonFormatter(service) if as_json else logging.Formatter(_TEXT_FORMAT))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)


def standard_error() -> TextIO:
    """Standard error by a descriptor of its own, which stays what it is when descriptor 2 becomes another file."""
    return os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")


_TEXT_FORMAT = "%(asctime)s %(levelname)-7s %(name)s %(message)s"


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time (UTC), level, logger, message, trace and span id, ``extra`` keys, exception."""

    def __init__(self, service: str = "") -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._service:
            line["service"] = self._service
        for name in ("trace_id", "span_id"):
            if value := getattr(record, name, ""):
                line[name] = value
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD and name not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        # `str` also keeps a pydantic secret masked.
        return json.dumps(line, default=str, ensure_ascii=False)


def add_trace(record: logging.LogRecord) -> bool:
    context = trace.get_current_span().get_span_context()
    record.trace_id = trace.format_trace_id(context.trace_id) if context.is_valid else ""
    record.span_id = trace.format_span_id(context.span_id) if context.is_valid else ""
    return True
