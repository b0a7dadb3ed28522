"""Handshakes that gRPC servers of this process refused.

gRPC tells nobody of them but standard error, and an audit log must know. So standard error goes through a pipe, from which every line
goes on to where it went before; those about handshakes are told besides. gRPC does not say who it was.

Whoever is told may write logs, and must not write them into this pipe, whose only reader it holds up: logs have a standard error of
their own (`shoal_runtime.logs.standard_error`). What native code writes in the moment of a crash may stay in the pipe.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_STDERR = 2
_CHUNK_BYTES = 64 << 10
_LINE_BYTES = 16 << 10
_EXIT_S = 1.0
_FAILED = re.compile(
    rb"[IWE]\d{4} [\d:.]+ +\d+ ssl_transport_security\S* Handshake failed with error \w+: (?:error:\w+:[^:]*:[^:]*:)?([A-Za-z_]+)"
)


def failed_handshake(line: bytes) -> str | None:
    """Why, if the line is about a handshake that failed: ``peer did not return a certificate``."""
    found = _FAILED.match(line)
    return found[1].decode().lower().replace("_", " ") if found else None


@contextmanager
def refused_handshakes(refused: Callable[[str], None]) -> Iterator[None]:
    """Within the block ``refused(reason)`` is called, in a thread, for each handshake that gRPC refused."""
    before = os.dup(_STDERR)
    reading, writing = os.pipe()
    os.dup2(writing, _STDERR)
    os.close(writing)
    reader = threading.Thread(target=_read, args=(reading, before, refused), name="shoal-stderr", daemon=True)
    reader.start()
    try:
        yield
    finally:
        os.dup2(
            before, _STDERR
        )  # the last writing end, unless a child process has another: the reader comes to the end
        reader.join(_EXIT_S)
        if not reader.is_alive():
            os.close(reading)
            os.close(before)


def _read(reading: int, before: int, refused: Callable[[str], None]) -> None:
    rest = b""
    while data := os.read(reading, _CHUNK_BYTES):
        _write(before, data)
        *lines, rest = (rest + data).split(b"\n")
        rest = rest[:_LINE_BYTES]
        for line in lines:
            reason = failed_handshake(line)
            if reason is not None:
                refused(reason)


def _write(before: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(before, view) :]
        except OSError:
            return  # nobody reads it any more
