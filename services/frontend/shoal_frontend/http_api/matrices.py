"""The matrix of a JSON body, parsed without an object per number.

Of ``{"embeddings":[[…],…],…}`` only what is around the matrix goes through the general parser. The matrix itself goes through
simdjson, in pieces, as a piece holds the interpreter's lock while it is parsed. Whatever is not plainly of this form, or has something
wrong, is left to the general parser, whose errors say what it is.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import simdjson

_PIECE_BYTES = 128 << 10
_BEFORE = re.compile(rb"[ \t\n\r]*:[ \t\n\r]*\[[ \t\n\r]*(?=\[)")
_END = re.compile(rb"\][ \t\n\r]*\]")
_BETWEEN = re.compile(rb"[ \t\n\r]*,[ \t\n\r]*(?=\[)")
_PLACE = b"here was the matrix"


def parse_with_matrix(body: bytes, name: str) -> dict[str, Any] | None:
    """The object of a body whose member ``name`` is a list of equally long lists of numbers, with an array (n, dim) float32 for it.

    None if it is not of that form, or not certainly. Numbers beyond float32 become infinite.
    """
    key = b'"%b"' % name.encode()
    at = body.find(key)
    start = _BEFORE.match(body, at + len(key))
    if at < 0 or start is None:
        return None
    try:
        matrix, end = _matrix(body, start.end())
        if body.find(key, end) >= 0 or _PLACE in body[:at] or _PLACE in body[end:]:
            return None
        value = orjson.loads(b'%b:"%b"%b' % (body[: at + len(key)], _PLACE, body[end:]))
    except (ValueError, TypeError, RuntimeError):  # the last is simdjson's for numbers that it has no type for
        return None
    if not isinstance(value, dict) or value.get(name) != _PLACE.decode():
        return None  # a member of a member
    value[name] = matrix
    return value


def _matrix(body: bytes, start: int) -> tuple[npt.NDArray[np.float32], int]:
    """The rows from ``start`` on and where their list ends. Raises `ValueError` or `TypeError` for other than rows of one length."""
    parser = simdjson.Parser()
    parts: list[npt.NDArray[np.float32]] = []
    end: int | None = None
    while end is None:
        stop = body.find(b"]", start + _PIECE_BYTES) + 1 or len(body)
        found = _END.search(body, start, stop + 1)
        stop, end = (stop, None) if found is None else (found.start() + 1, found.end())
        rows = parser.parse(b"[%b]" % body[start:stop])
        parts.append(_part(rows, brackets=body.count(b"[", start, stop)))
        del rows  # the next piece takes its place
        if end is None:
            between = _BETWEEN.match(body, stop)
            if between is None:
                end = _end(body, stop)
            else:
                start = between.end()
    return np.concatenate(parts), end


def _end(body: bytes, at: int) -> int:
    """Where the list ends whose last row ends at ``at``. Raises `ValueError` where it goes on otherwise than with a row."""
    found = _END.match(body, at - 1)
    if found is None:
        raise ValueError("no comma between rows")
    return found.end()


def _part(rows: Any, brackets: int) -> npt.NDArray[np.float32]:
    """Of a parsed list of lists."""
    widths = {*map(len, rows)}
    if len(widths) != 1 or 0 in widths or brackets != len(rows):
        raise ValueError("rows of several lengths, or none, or lists within them")
    with np.errstate(over="ignore"):
        flat = np.frombuffer(rows.as_buffer(of_type="d"), np.float64).astype(np.float32)
    return flat.reshape(len(rows), -1)
