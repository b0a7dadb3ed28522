"""JSON in and out: bodies of bounded size, their members with their types, and answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import orjson
from fastapi import Request, Response

from shoal_core.errors import InvalidArgument
from shoal_frontend.apart import apart
from shoal_frontend.http_api.body_error import BodyError, described, wrong_type
from shoal_frontend.http_api.matrices import parse_with_matrix
from shoal_frontend.http_api.positions import path_of, position_of

LARGE_BYTES = 256 << 10  # to read or write more JSON would hold up the event loop
MAX_BODY_BYTES = 40 << 20
JSON_TYPE = "application/json"

_SYNTAX = {
    "unexpected character, expected a string key": "key must be a string",
    "Input is a zero-length, empty document": "EOF while parsing a value",
    "unexpected end of data": "EOF while parsing a value",
}

T = TypeVar("T")


class PayloadTooLarge(Exception):
    """A body of more than ``MAX_BODY_BYTES``: status 413."""


class Disconnected(Exception):
    """Who asked is gone before the body ended."""


def json_response(content: Any, status: int = 200) -> Response:
    """An answer of plain data, or of bytes that are JSON already."""
    data = content if isinstance(content, bytes) else orjson.dumps(content)
    return Response(data, status, media_type=JSON_TYPE)


async def read_body(request: Request) -> bytes:
    """All of it. Raises `PayloadTooLarge`, `Disconnected`."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > MAX_BODY_BYTES:
        raise PayloadTooLarge
    chunks: list[bytes] = []
    size, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunks.append(message.get("body", b""))
        size, more = size + len(chunks[-1]), message.get("more_body", False)
        if size > MAX_BODY_BYTES:
            raise PayloadTooLarge
    return b"".join(chunks)


async def parsed(
    request: Request, make: Callable[[Mapping[str, Any]], T], *, matrix: str = "", quick: bool = True
) -> T:
    """What ``make`` makes of the body, which is an object; in a thread if the body is large, or ``make`` is not ``quick`` anyway.

    The member named by ``matrix``, if it is one, is an array (n, dim) float32 already.
    """
    body = await read_body(request)
    return await apart(not quick or len(body) > LARGE_BYTES, parse, body, make, matrix)


def parse(body: bytes, make: Callable[[Mapping[str, Any]], T], matrix: str = "") -> T:
    """What ``make`` makes of a body. Raises `InvalidArgument` for what is no JSON, `BodyError` for what is no object, and what
    ``make`` raises: a `BodyError` with the line and column where it is.
    """
    value: Any = parse_with_matrix(body, matrix) if matrix else None
    try:
        value = orjson.loads(body) if value is None else value
    except orjson.JSONDecodeError as error:
        problem = f"{_SYNTAX.get(error.msg, error.msg)} at line {error.lineno} column {error.colno}"
        raise InvalidArgument(f"Failed to parse the request body as JSON: {problem}") from error
    try:
        if not isinstance(value, dict):
            raise wrong_type(value, "an object", "")
        return make(value)
    except BodyError as error:
        error.message += position_of(body, path_of(error.place) if error.path is None else error.path, error.spot)
        raise


def whole(body: Mapping[str, Any], name: str) -> int | None:
    """A number from 0 to 2³² − 1, or None. Raises `BodyError`."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong_type(value, "u32", name)
    if not 0 <= value < 2**32:
        raise BodyError(f"invalid value: {described(value)}, expected u32", name)
    return value


def items(value: Any, name: str) -> list[Any]:
    """A list. Raises `BodyError`."""
    if not isinstance(value, list):
        raise wrong_type(value, "a sequence", name)
    return value


def strings(value: Any, name: str, *, nulls: bool = False) -> list[Any]:
    """A list of strings, perhaps with nulls. Raises `BodyError` naming the first that is none."""
    found = items(value, name)
    if set(map(type, found)) <= ({str, type(None)} if nulls else {str}):
        return found
    allowed = (str, type(None)) if nulls else (str,)
    at = next(number for number, item in enumerate(found) if not isinstance(item, allowed))
    raise wrong_type(found[at], "a string", f"{name}[{at}]")


def page_of(request: Request) -> tuple[int | None, int]:
    """Limit and offset of the query string."""
    return _number(request, "limit"), _number(request, "offset") or 0


def _number(request: Request, name: str) -> int | None:
    value = request.query_params.get(name)
    if value is None:
        return None
    if not value.isascii() or not value.isdecimal() or len(value) > 10 or int(value) >= 2**32:
        raise InvalidArgument(f"Failed to deserialize query string: {name}: invalid digit found in string")
    return int(value)
