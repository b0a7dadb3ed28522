"""The golden transcript: what a genuine server of the reference system answered to a sequence of requests, and how ours compares.

``golden.json`` has one exchange per line, in order: release 1.5.9, one node, an empty store. ``T`` stands for the default database,
``{ID}`` for the id of the first collection, ``<id>`` for any id in an answer. ``differences.md`` lists every answer that differs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Send = Callable[[str, str, bytes], Awaitable[tuple[int, bytes]]]

_HERE = Path(__file__).parent
_DATABASE = "/tenants/default_tenant/databases/default_database/"
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ABSENT = object()
# How many cores a host has, what time it is, and what is opaque.
_NOT_COMPARED = ("num_threads", "nanosecond heartbeat", "read_token")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and the reference system's answer; ``answer`` is None if it has no body."""

    number: int
    request: str
    body: str
    status: int
    answer: Any


@dataclass(frozen=True, slots=True)
class Difference:
    """One answer of ours that differs, as the table of differences has it."""

    number: int
    request: str
    theirs: str
    ours: str


def exchanges() -> Iterator[Exchange]:
    """All of them, in order; bodies as clients write JSON, without spaces."""
    for number, given in enumerate(json.loads((_HERE / "golden.json").read_text()), 1):
        body = given["raw"] if "raw" in given else _text(given["body"]) if "body" in given else ""
        yield Exchange(number, given["request"], body, given["status"], given.get("answer"))


async def replay(send: Send) -> list[Difference]:
    """Send every request, in order; the answers that differ. ``send`` takes method, path and body, and answers status and body."""
    found: list[Difference] = []
    collection = ""
    for exchange in exchanges():
        method, path = exchange.request.split(" ", 1)
        target = path.replace("{ID}", collection)
        target = _DATABASE + target.removeprefix("T/") if target.startswith("T/") else target
        target = target if target.startswith("/api/") else "/api/v2" + target
        status, data = await send(method, target, exchange.body.encode())
        answer = _parsed(data)
        if not collection and isinstance(answer, dict) and "configuration_json" in answer:
            collection = answer["id"]
        theirs, ours = _compared(exchange, status, _normal(answer))
        if theirs != ours:
            request = f"{exchange.request} {exchange.body}".strip()
            found.append(Difference(exchange.number, request, theirs, ours))
    return found


def listed() -> list[Difference]:
    """The table of differences: each with a reason."""
    found = []
    for line in (_HERE / "differences.md").read_text().splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)]
        if len(cells) == 7 and cells[1].isdecimal():
            assert cells[5], f"no reason: {line}"
            found.append(Difference(int(cells[1]), *(cell.strip("`") for cell in cells[2:5])))
    return found


def row(difference: Difference) -> str:
    """A row of the table, without its reason."""
    cells = (difference.request, difference.theirs, difference.ours)
    return f"| {difference.number} | " + " | ".join(f"`{cell}`".replace("|", "\\|") for cell in cells) + " | |"


def _compared(exchange: Exchange, status: int, answer: Any) -> tuple[str, str]:
    """What differs, in both answers: all of an error, of other answers the values that are not the same."""
    expected = _normal(exchange.answer)
    if max(status, exchange.status) >= 400 or not isinstance(expected, dict | list):
        return _summary(exchange.status, expected), _summary(status, answer)
    wanted, found = dict(_leaves(expected)), dict(_leaves(answer))
    places = [place for place in {**wanted, **found} if _differ(wanted.get(place, _ABSENT), found.get(place, _ABSENT))]
    theirs = [f"{exchange.status}"] * (status != exchange.status) + [_value(wanted, place) for place in places]
    ours = [f"{status}"] * (status != exchange.status) + [_value(found, place) for place in places]
    return ", ".join(theirs), ", ".join(ours)


def _differ(one: Any, other: Any) -> bool:
    return type(one) is not type(other) or one != other


def _value(leaves: Mapping[str, Any], place: str) -> str:
    return f"{place}: {_text(leaves[place])}" if place in leaves else f"no {place}"


def _summary(status: int, answer: Any) -> str:
    if isinstance(answer, dict) and set(answer) == {"error", "message"}:
        message = answer["message"].replace("\n", "\\n")  # a row of the table is one line
        return f"{status} {answer['error']} {message}"
    return f"{status} {'' if answer is None else answer if isinstance(answer, str) else _text(answer)}".strip()


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    members: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        members = [(f"{place}.{key}" if place else key, item) for key, item in value.items()]
    elif isinstance(value, list):
        members = [(f"{place}[{number}]", item) for number, item in enumerate(value)]
    if not members:
        yield place, value
    for inner, item in members:
        yield from _leaves(item, inner)


def _normal(value: Any) -> Any:
    match value:
        case dict():
            return {key: 0 if key in _NOT_COMPARED else _normal(item) for key, item in value.items()}
        case list():
            return [_normal(item) for item in value]
        case str():
            return _ID.sub("<id>", value)
    return value


def _parsed(data: bytes) -> Any:
    if not data:
        return None
    try:
        return json.loads(data)
    except ValueError:
        return data.decode()


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
