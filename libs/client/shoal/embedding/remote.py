"""Functions that a service computes: one call is one POST; what the service answers becomes rows, or a typed error.

The HTTP library is loaded on first use. Nothing here names what authenticates in an error.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, Protocol

from shoal.embedding.limits import retry_after_ms
from shoal.embedding.protocol import RemoteFunction, Side
from shoal_core.errors import (
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    ShoalError,
    Unauthenticated,
    Unavailable,
)
from shoal_core.ports import Clock

_CONNECT_TIMEOUT_S: Final = 10.0
_KEPT_CONNECTIONS: Final = 20
_PARSED_INLINE_BYTES: Final = 64 << 10
_QUOTED_CHARACTERS: Final = 300


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service answered. ``headers`` have names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """Sends what a function asks."""

    async def post(self, url: str, content: bytes, headers: Mapping[str, str], limit_bytes: int) -> Answer:
        """Raises `Unavailable` without an answer, `InvalidArgument` for one that is longer than ``limit_bytes``."""
        ...


class HttpTransport:
    """Over HTTP, with connections kept open. Belongs to one event loop. Redirects are not followed: they would take the key along."""

    def __init__(self) -> None:
        try:
            self._http: Any = import_module("httpx2")
        except ImportError as error:
            raise FailedPrecondition(
                "functions of services need the package 'httpx2'; install shoal[remote]", field="embedding_function"
            ) from error
        self._client = self._http.AsyncClient(
            timeout=self._http.Timeout(None, connect=_CONNECT_TIMEOUT_S),  # the gateway has the deadlines
            limits=self._http.Limits(max_connections=None, max_keepalive_connections=_KEPT_CONNECTIONS),
            follow_redirects=False,
        )

    async def post(self, url: str, content: bytes, headers: Mapping[str, str], limit_bytes: int) -> Answer:
        """See `Transport.post`."""
        chunks: list[bytes] = []
        size_bytes = 0
        try:
            async with self._client.stream("POST", url, content=content, headers=headers) as response:
                async for chunk in response.aiter_bytes():
                    chunks.append(chunk)
                    size_bytes += len(chunk)
                    if size_bytes > limit_bytes:
                        raise InvalidArgument(f"{url} answered more than {limit_bytes} bytes")
                return Answer(response.status_code, dict(response.headers), b"".join(chunks))
        except self._http.HTTPError as error:
            raise Unavailable(f"{url} gave no answer ({type(error).__name__})") from error

    async def close(self) -> None:
        """Give up the connections."""
        await self._client.aclose()


class RemoteBackend:
    """One service."""

    def __init__(
        self,
        function: RemoteFunction,
        transport: Transport,
        clock: Clock,
        *,
        answer_size_bytes: int,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._function = function
        self._transport = transport
        self._clock = clock
        self._answer_size_bytes = answer_size_bytes
        self._environment = environment

    async def call(self, texts: Sequence[str], side: Side) -> object:
        """See `Backend.call`."""
        request = self._function.request(texts, side)
        key = _key(self._function, self._environment)
        headers = {**request.headers, "content-type": "application/json", "accept-encoding": "identity"}
        if key:
            headers["authorization"] = f"Bearer {key}"
        content = json.dumps(request.body, ensure_ascii=False).encode()
        try:
            answer = await self._transport.post(request.url, content, headers, self._answer_size_bytes)
        except ShoalError as error:
            raise type(error)(f"{self._name}: {error.message}", retry_after_ms=error.retry_after_ms) from error
        if answer.status != 200:
            raise self._refusal(answer, key)
        if len(answer.body) <= _PARSED_INLINE_BYTES:
            return self._read(answer.body, len(texts))
        return await asyncio.to_thread(self._read, answer.body, len(texts))

    @property
    def _name(self) -> str:
        return f"embedding function {self._function.name!r}"

    def _read(self, body: bytes, count: int) -> object:
        try:
            parsed = json.loads(body)
        except (ValueError, RecursionError) as error:  # cut off on the way, or the page of a proxy
            raise Unavailable(f"{self._name}: {self._function.url} answered no JSON") from error
        try:
            return self._function.rows(parsed, count)
        except InvalidArgument as error:
            raise InvalidArgument(f"{self._name}: {self._function.url} answered {error.message}") from error

    def _refusal(self, answer: Answer, key: str) -> ShoalError:
        said = f"{self._name}: {self._function.url} answered {answer.status}"
        wait_ms = retry_after_ms(answer.headers.get("retry-after"), self._clock.time_ns())
        match answer.status:
            case 401:
                variable = self._function.api_key_env_var
                hint = f"the key in {variable}" if variable else "it wants a key; name its variable in api_key_env_var"
                return Unauthenticated(f"{said}; check {hint}" if variable else f"{said}; {hint}")
            case 403:
                return PermissionDenied(f"{said}; its key may not do this")
            case 429:
                return ResourceExhausted(f"{said}: too many requests", retry_after_ms=wait_ms)
            case 408 | 425:
                return Unavailable(said, retry_after_ms=wait_ms)
            case 404 | 405:
                return FailedPrecondition(f"{said}; check url and model{_quoted(answer.body, key)}")
            case 413:
                return InvalidArgument(f"{said}; send fewer or shorter texts in a call{_quoted(answer.body, key)}")
            case status if status >= 500:
                return Unavailable(said, retry_after_ms=wait_ms)
            case status if status >= 400:
                return InvalidArgument(f"{said}{_quoted(answer.body, key)}")
        return FailedPrecondition(f"{said} instead of vectors; check url")


def _key(function: RemoteFunction, environment: Mapping[str, str]) -> str:
    variable = function.api_key_env_var
    if variable is None:
        return ""
    key = environment.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        problem = "is not set" if not key else "holds what cannot be sent in a header"
        raise FailedPrecondition(
            f"embedding function {function.name!r} takes its key from the environment variable {variable}, which {problem}",
            field="embedding_function",
        )
    return key


def _quoted(body: bytes, key: str) -> str:
    """What the service says of it, without what authenticates."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    for name in ("error", "message", "detail"):
        if isinstance(found, dict):
            found = found.get(name, found)
    if not isinstance(found, str):
        return ""
    shown = found.replace(key, "***") if key else found
    return f': "{shown[:_QUOTED_CHARACTERS]}"'
