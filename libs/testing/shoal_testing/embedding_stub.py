"""A server of embeddings on a real socket that misbehaves by script, and keeps account of who asked.

Speaks the protocols of Ollama (``/api/embed``), OpenAI (``/v1/embeddings``) and Text Embeddings Inference (``/embed``). The vector of a
text is a function of the text alone, `vector_of`, so that a vector at another text's place is seen.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from base64 import b64encode
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from enum import StrEnum
from hashlib import blake2b
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

DIMENSION = 6
KEY = "a key that is in no error"


class Fault(StrEnum):
    """What is wrong with one answer."""

    NONE = "none"
    REORDERED = "reordered"  # where the protocol has an index, which stays right; else the answer is late
    DUPLICATE_INDEX = "duplicate index"  # where the protocol has an index; else one vector is missing
    MISSING = "missing"
    EXTRA = "extra"
    NAN = "nan"
    ZERO = "zero"
    RAGGED = "ragged"
    WRONG_DIMENSION = "wrong dimension"
    TEXT = "text instead of numbers"
    NO_MEMBER = "another object"
    TRUNCATED_JSON = "truncated json"
    CUT_OFF = "cut off"  # less than the announced length
    RESET = "reset"
    TOO_MANY = "429"
    TOO_MANY_DATE = "429 with a date"
    SERVER_ERROR = "500"
    UNAVAILABLE = "503 with retry-after"
    UNAUTHORIZED = "401"
    NO_MODEL = "404"
    BAD_REQUEST = "400"
    MOVED = "307"
    HUGE = "huge"
    SILENT = "silent"  # until the client gives up


PASSING = frozenset(
    {
        Fault.TRUNCATED_JSON,
        Fault.CUT_OFF,
        Fault.RESET,
        Fault.TOO_MANY,
        Fault.TOO_MANY_DATE,
        Fault.SERVER_ERROR,
        Fault.UNAVAILABLE,
    }
)
HARMLESS = frozenset({Fault.NONE, Fault.REORDERED})
LASTING = frozenset(Fault) - PASSING - HARMLESS - {Fault.SILENT}

_HUGE_BYTES = 1 << 20
_STATUS = {
    Fault.TOO_MANY: (429, {"retry-after": "0"}),
    Fault.SERVER_ERROR: (500, {}),
    Fault.UNAVAILABLE: (503, {"retry-after": "0"}),
    Fault.UNAUTHORIZED: (401, {}),
    Fault.NO_MODEL: (404, {}),
    Fault.BAD_REQUEST: (400, {}),
    Fault.MOVED: (307, {"location": "/elsewhere"}),
}


def vector_of(text: str, dimension: int = DIMENSION) -> npt.NDArray[np.float32]:
    """(dimension,) float32, never zero: of every text another one."""
    digest = blake2b(text.encode(), digest_size=2 * dimension).digest()
    numbers: npt.NDArray[np.float32] = np.frombuffer(digest, "<u2").astype(np.float32) + 1
    return numbers


@dataclass(slots=True)
class Asked:
    """One request. ``at``: `time.monotonic` of its arrival."""

    path: str
    headers: Mapping[str, str]
    body: Any
    at: float


@dataclass(slots=True)
class EmbeddingStub:
    """``async with EmbeddingStub() as stub``; then ``stub.url``.

    Attributes:
        faults: taken by requests in the order of their arrival; after the last all is well.
        asked: every request so far.
        most: requests that were under way at once, at most.
        gate: answers wait for it.
    """

    faults: deque[Fault] = field(default_factory=deque)
    asked: list[Asked] = field(default_factory=list)
    most: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""
    _inside: int = 0
    _server: asyncio.Server | None = None
    _connections: set[asyncio.Task[None]] = field(default_factory=set)

    async def __aenter__(self) -> EmbeddingStub:
        self.gate.set()
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def script(self, *faults: Fault) -> None:
        """What is wrong with the next answers."""
        self.faults.extend(faults)

    @property
    def texts(self) -> list[list[str]]:
        """Of each request."""
        return [_texts(request.body) for request in self.asked]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._answered(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; False if the connection is of no use afterwards."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        path = head[0].split(" ")[1]
        self.asked.append(Asked(path, headers, body, time.monotonic()))
        fault = self.faults.popleft() if self.faults else Fault.NONE
        self._inside += 1
        self.most = max(self.most, self._inside)
        try:
            await self.gate.wait()
            if fault is Fault.SILENT:
                await reader.read(1)  # nothing comes: the client closes
                return False
            if fault is Fault.REORDERED and path != "/v1/embeddings":
                await asyncio.sleep(0)
        finally:
            self._inside -= 1  # before it is answered: then the next may begin
        if fault is Fault.RESET:
            connection: socket.socket = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        status, more, content = _answer(path, body, fault, headers.get("authorization", "Bearer none"))
        cut = fault is Fault.CUT_OFF
        lines = [f"HTTP/1.1 {status} -", f"content-length: {len(content) + cut}", "content-type: application/json"]
        lines += [f"{name}: {value}" for name, value in more.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        await writer.drain()
        return not cut


def _answer(path: str, body: Any, fault: Fault, authorization: str) -> tuple[int, Mapping[str, str], bytes]:
    if fault is Fault.TOO_MANY_DATE:
        return 429, {"retry-after": formatdate(0, usegmt=True)}, b"{}"
    if fault in _STATUS:
        status, headers = _STATUS[fault]
        message = f"it is so; the key was {authorization.removeprefix('Bearer ')}"
        return status, headers, json.dumps({"error": {"message": message}}).encode()
    content = json.dumps(_shaped(path, body, fault)).encode()
    if fault is Fault.TRUNCATED_JSON:
        content = content[:-2]
    if fault is Fault.HUGE:
        content += b" " * _HUGE_BYTES
    return 200, {}, content


def _shaped(path: str, body: Any, fault: Fault) -> Any:
    dimension = body.get("dimensions", DIMENSION)
    rows: list[Any] = [vector_of(text, dimension).tolist() for text in _texts(body)]
    indexed = path == "/v1/embeddings"
    match fault:
        case Fault.MISSING:
            rows.pop()
        case Fault.EXTRA:
            rows.append(rows[0])
        case Fault.NAN:
            rows[-1][0] = float("nan")
        case Fault.ZERO:
            rows[-1] = [0.0] * dimension
        case Fault.RAGGED:
            rows[0] = [*rows[0], 1.0]
        case Fault.WRONG_DIMENSION:
            rows = [[*row, 1.0] for row in rows]
        case Fault.TEXT:
            rows[0] = ["x"] * dimension
        case Fault.DUPLICATE_INDEX if not indexed:
            rows.pop()
    if fault is Fault.NO_MEMBER:
        return {"something": "else"}
    if not indexed:
        return {"embeddings": rows} if path == "/api/embed" else rows
    if body.get("encoding_format") == "base64" and fault in HARMLESS:
        rows = [b64encode(np.array(row, "<f4").tobytes()).decode() for row in rows]
    items = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    if fault is Fault.REORDERED:
        items.reverse()
    if fault is Fault.DUPLICATE_INDEX:
        items = [*items[1:], {**items[0], "index": 1 if len(items) > 1 else 7}]
    return {"object": "list", "data": items}


def _texts(body: Any) -> list[str]:
    texts: list[str] = body["inputs"] if "inputs" in body else body["input"]
    return texts
