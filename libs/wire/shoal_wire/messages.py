"""Messages and bytes: how large they may be, and keeping work on large ones off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from shoal_core.limits import Limits

LARGE_BYTES = 1 << 20

_P = ParamSpec("_P")
_T = TypeVar("_T")


def message_options(limits: Limits | None = None) -> list[tuple[str, int]]:
    """Options for channels and servers: the size of messages both ways, which gRPC limits to 4 MiB on its own."""
    size_bytes = (limits or Limits()).message_size_bytes
    return [("grpc.max_receive_message_length", size_bytes), ("grpc.max_send_message_length", size_bytes)]


async def sized(size_bytes: int, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """``function(...)``, in a thread if it works on a large message."""
    if size_bytes <= LARGE_BYTES:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)
