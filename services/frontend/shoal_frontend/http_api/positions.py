"""Where in a JSON text a value is, for messages about it. It is looked for once something is wrong, not while reading."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

_SPACE = re.compile(r"[ \t\n\r]*")
_PART = re.compile(r"\[(\d+)\]|([^.\[\]]+)")
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str)


def path_of(place: str) -> tuple[str | int, ...]:
    """``metadatas[0].k`` → ``("metadatas", 0, "k")``."""
    return tuple(int(number) if number else name for number, name in _PART.findall(place))


def position_of(body: bytes, path: Sequence[str | int], spot: str) -> str:
    """Such as `` at line 1 column 13``; empty where it cannot be told.

    Args:
        body: JSON in UTF-8.
        path: to the value, as far as there is one.
        spot: see `BodyError`.
    """
    try:
        text = body.decode()
        end = _end_of(text, path, spot)
    except (ValueError, IndexError, RecursionError):
        return ""
    start = text.rfind("\n", 0, end) + 1
    return f" at line {text.count(chr(10), 0, end) + 1} column {len(text[start:end].encode())}"


def _end_of(text: str, path: Sequence[str | int], spot: str) -> int:
    at = key_end = _skip(text, 0)
    for part in path:
        found = _member(text, at, part)
        if found is None:
            break
        key_end, at = found
    if spot == "key":
        return key_end
    end = _DECODER.raw_decode(text, at)[1]
    if spot == "value":
        return end
    after = _skip(text, end)
    return after + 1 if text[after : after + 1] in ("}", "]") else after


def _member(text: str, at: int, part: str | int) -> tuple[int, int] | None:
    """Of one member of the object or list at ``at``: the end of its key and the start of its value."""
    if text[at] not in "{[":
        return None
    is_object, number = text[at] == "{", 0
    at = _skip(text, at + 1)
    while text[at] not in "}]":
        name: str | int = number
        key_end = at
        if is_object:
            name, key_end = _DECODER.raw_decode(text, at)
            at = _skip(text, _skip(text, key_end) + 1)
        if name == part:
            return key_end, at
        at = _skip(text, _DECODER.raw_decode(text, at)[1])
        at = _skip(text, at + 1) if text[at] == "," else at
        number += 1
    return None


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()
